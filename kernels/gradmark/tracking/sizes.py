"""Sizes of workloads as a user writes and reads them, and which of them fit into memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gradmark import workloads
from gradmark.workloads import Workload

SWEEP = ("65536", "1024", "1048576", "8192", "16777216", "64", "4194304")
"""What `gradmark choose` measures where no sizes are given, in this order, as far as the budget goes: first where most
layers are, then what is small and what is beyond the caches, then what lies between."""

ACCEPTED = (*workloads.TIMED_SIZES, "or numbers of elements such as 65536, 2^16 or 1e6")

MOST_ELEMENTS = 2**48
"""Of a size: no machine has the memory, and shapes of more would overflow elsewhere first."""

ARRAYS = 4
"""What the inputs and the result of a call are at most, in arrays of the size: residual_add's backward has as many."""

TEMPORARIES = 6
"""What a NumPy expression or torch holds besides, in arrays of the size: gelu's backward in NumPy needs about five."""

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def parse(text: str) -> str:
    """The size of a `Workload`: one of the timed names, or a number as 65536, 2^16, 2**16 or 1e6.

    Raises
    ------
    ValueError
        It is none, or beyond what is accepted; the message says what would be.
    """
    text = text.strip()
    if text in workloads.TIMED_SIZES:
        return text
    elements = _number(text)
    if elements is None:
        raise ValueError(f"unknown size {text!r}; accepted: {', '.join(ACCEPTED)}")
    if not workloads.LEAST_ELEMENTS <= elements <= MOST_ELEMENTS:
        raise ValueError(
            f"size {text} has {elements} elements; accepted: {workloads.LEAST_ELEMENTS} to {shown(MOST_ELEMENTS)}"
        )
    return str(elements)


def _number(text: str) -> int | None:
    power = re.fullmatch(r"(\d{1,3})(?:\^|\*\*)(\d{1,3})", text)
    if power:
        base, exponent = int(power[1]), int(power[2])
        return int(base**exponent)
    if not re.fullmatch(r"\d{1,15}(\.\d{1,15})?(e\+?\d{1,2})?", text, re.IGNORECASE):
        return None
    number = float(text)
    return int(number) if number.is_integer() else None


def shown(elements: int) -> str:
    """A number of elements as a reader wants it: 2^16, 1e6 or 999936.

    Examples
    --------
    >>> shown(65536), shown(1_000_000), shown(999_936)
    ('2^16', '1e6', '999936')
    """
    if elements >= 16 and elements & (elements - 1) == 0:
        return f"2^{elements.bit_length() - 1}"
    digits = str(elements).rstrip("0")
    zeros = len(str(elements)) - len(digits)
    return f"{digits}e{zeros}" if zeros >= 3 else str(elements)


def middle(below: int, above: int) -> int:
    """The size halfway on a log scale; a power of two between two of them."""
    if below & (below - 1) == 0 and above & (above - 1) == 0:
        return int(2 ** ((below.bit_length() + above.bit_length() - 2) // 2))
    return math.isqrt(below * above)


def too_large(planned: Iterable[Workload], targets: int, free: int | None) -> dict[Workload, str]:
    """The workloads that do not fit into memory, and why, before anything is allocated.

    Parameters
    ----------
    planned : iterable of Workload
    targets : int
        How many hold their arrays at a time.
    free : int or None
        Bytes, see `free_memory`; None where it is not known: then nothing is too large.
    """
    if free is None:
        return {}
    found: dict[Workload, str] = {}
    for workload in planned:
        each = _ITEM_BYTES[workload.dtype] * (ARRAYS * targets + TEMPORARIES)
        if workload.elements * each > free:
            found[workload] = (
                f"{shown(workload.elements)} elements of {workload.dtype} need about"
                f" {workload.elements * each / 2**30:,.1f} GiB for {targets} backends in turn, and"
                f" {free / 2**30:.1f} GiB are free; at most {shown(_power_below(free // each))} fit"
            )
    return found


def _power_below(number: int) -> int:
    return int(2 ** (max(number, 1).bit_length() - 1))


def free_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not tell.

    A container's limit counts as well.
    """
    meminfo = _lines("/proc/meminfo")
    if "MemAvailable:" not in meminfo:
        return None
    free = 1024 * int(meminfo["MemAvailable:"].split()[0])
    limit, used = (next(iter(_lines(f"/sys/fs/cgroup/memory.{name}")), "") for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _lines(path: str) -> Mapping[str, str]:
    """The lines of a file of the system, the first word as the key; nothing where there is no such file."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return {}
    return {word: rest for word, _, rest in (line.partition(" ") for line in text.splitlines())}
