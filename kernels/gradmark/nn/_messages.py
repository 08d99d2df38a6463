"""What processes that hold parts of one weight tell each other. Nobody waits forever for one that has died or hangs."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch

TIMEOUT = datetime.timedelta(minutes=5)
"""How long a process waits for a message. Before a sum, others draw the reflectors of a block: milliseconds to seconds.
Before the last message of TSQR, they factorize (2n, n) at each level of its tree."""


def add_up(share: Any, group: Any) -> None:
    """The sum over the processes of a group, in place. All of them call it."""
    _finish(lambda: torch.distributed.all_reduce(share, group=group, async_op=True), share.device)


def send(tensor: Any, rank: int, group: Any) -> None:
    """To a process of the group, by its rank among all processes, which receives it. What is empty is not sent."""
    if tensor.numel():
        whole = tensor.contiguous()
        _finish(lambda: torch.distributed.isend(whole, dst=rank, group=group), whole.device)


def receive(tensor: Any, rank: int, group: Any) -> Any:
    """A contiguous tensor with what that process sends, in place."""
    if tensor.numel():
        _finish(lambda: torch.distributed.irecv(tensor, src=rank, group=group), tensor.device)
    return tensor


def _finish(start: Callable[[], Any], device: Any) -> None:
    try:
        # To start may fail too, where it is known already that the other process has died.
        work = start()
        # On other devices it is their queue that waits, and the process group that ends it.
        work.wait(timeout=TIMEOUT) if device.type == "cpu" else work.wait()
    except RuntimeError as error:
        limit = f", or has not answered for {TIMEOUT.total_seconds():g} s" if device.type == "cpu" else ""
        raise RuntimeError(
            f"orthogonal_: a process that holds other rows has died{limit};"
            f" this part of the weight is not initialized ({error})"
        ) from error
