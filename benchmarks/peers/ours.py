"""gradmark's backends as contenders, and the memory's own speed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .._worktree import catalog
from . import yardsticks
from .arguments import arguments
from .cases import AbsentError, Data

Call = Callable[[], Any]


def allocating(backend: str, data: Data) -> Call:
    """The function of a backend as its user calls it."""
    function, positional, keywords = _function(backend, data)
    return functools.partial(function, *positional, **keywords)


def numba_out(data: Data) -> Call:
    """The function of the Numba backend, into an array that exists."""
    function, positional, keywords = _function("numba", data)
    return functools.partial(function, *positional, **keywords, out=np.empty_like(data.x))


def yardstick(data: Data) -> Call:
    """The copy, or for a backward pass the triad, of the same bytes."""
    copy, triad = yardsticks.kernels()
    out = np.empty_like(data.x)
    if data.case.backward:
        return functools.partial(triad, data.grad, data.x, out)
    return functools.partial(copy, data.x, out)


def _function(backend: str, data: Data) -> tuple[Callable[..., Any], Any, dict[str, Any]]:
    import gradmark

    case = data.case
    name = catalog.backward_of(case.operation) if case.backward else case.operation
    try:
        function = getattr(gradmark.backend(backend), name)
    except AttributeError as error:
        raise AbsentError(str(error)) from error
    positional, keywords = arguments(data)
    if backend == "torch":
        positional, keywords = _in_torch(positional), {name: _in_torch(value) for name, value in keywords.items()}
    return function, positional, keywords


def _in_torch(value: Any) -> Any:
    """Tensors over the memory of arrays, in lists and tuples as well; anything else as it is."""
    import torch

    if isinstance(value, list | tuple):
        return type(value)(map(_in_torch, value))
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
