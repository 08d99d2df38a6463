"""What Numba's kernels lost between base and head, from the summaries of `assembly`: no timing, so no noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradmark.tracking.check.assembly import math_family
from gradmark.tracking.check.results import KernelChange

Summary = dict[str, Any]
"""One kernel of one side, as `assembly.compiled_kernels` describes it."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many kernels `compare_kernels` could compare. Functions without a loop on either side are not counted.

    Attributes
    ----------
    compared : int
        On both sides and inspected on both.
    not_inspected : int
        On both sides, but the assembly of one of them is not known.
    only_in_base, only_in_head : int
        Compiled on one side alone, as a function that was renamed; or one of several of that name, and it is not
        known which.
    reasons : tuple of str
        Why kernels were not inspected, each reason once, sorted.
    """

    compared: int
    not_inspected: int
    only_in_base: int
    only_in_head: int
    reasons: tuple[str, ...]


def compare_kernels(base: list[Summary], head: list[Summary], benchmark: str) -> list[KernelChange]:
    """Find the kernels whose loops lost vector width, compute in float64 now, or call the math library anew.

    Parameters
    ----------
    base, head : list of dict
        What `assembly.compiled_kernels` gave on each side after the same benchmark.
    benchmark : str
        Its label.

    Returns
    -------
    list of KernelChange
        Sorted by kernel; a kernel that lost several things has an entry for each. Kernels are paired by name and
        signature; `coverage` counts those that are not compared. What was gained, and small differences in the
        instructions, are no change.

    Examples
    --------
    >>> kernel = {"name": "m.f", "signature": "int64", "inspected": True, "reason": None}
    >>> counted = {**kernel, "lanes": 16, "bits": 512, "dtype": "f32", "loops": 3, "math": []}
    >>> scalar = {**counted, "lanes": 1, "bits": 32}
    >>> [change.what for change in compare_kernels([counted], [scalar], "bench.time_f")]
    ['lost vectorization: 16 lanes → 1']
    """
    return [
        KernelChange(f"{before['name']}({before['signature']})", benchmark, what, _counted(before), _counted(after))
        for before, after in _match(base, head).pairs
        for what in _losses(before, after)
    ]


def coverage(base: list[Summary], head: list[Summary]) -> Coverage:
    """Count what `compare_kernels` compares of the same two lists, and what it cannot."""
    matched = _match(base, head)
    return Coverage(
        len(matched.pairs),
        matched.not_inspected,
        matched.only_in_base,
        matched.only_in_head,
        tuple(sorted({kernel["reason"] for kernel in (*base, *head) if not kernel["inspected"]})),
    )


# What one kernel lost.


def _losses(base: Summary, head: Summary) -> Iterator[str]:
    if _is_float(base) == _is_float(head) and _narrower(base, head):
        lost = "lost vectorization" if head["lanes"] == 1 else "narrower vectors"
        yield f"{lost}: {base['lanes']} lanes → {head['lanes']}"
    new = _new_calls(base, head)
    if new:
        yield f"calls {' and '.join(new)} in its loop, one element at a time"
    if base["dtype"] == "f32" and head["dtype"] == "f64":
        yield "computes in float64 instead of float32"
    if base["dtype"] == "f32" and head["dtype"] == "f32+f64":
        yield "computes partly in float64, not in float32 alone"


def _is_float(kernel: Summary) -> bool:
    return str(kernel["dtype"]).startswith("f")


def _narrower(base: Summary, head: Summary) -> bool:
    """Whether lanes were lost, and not because each became wider: eight float64 fill the vector of 16 float32."""
    if base["lanes"] is None or head["lanes"] is None:
        return False
    return bool(head["lanes"] < base["lanes"] and head["bits"] < base["bits"])


def _new_calls(base: Summary, head: Summary) -> list[str]:
    """Functions of the math library that head calls in addition to those of base.

    One that took another's place is no loss that could be seen here, and neither is one in another precision.
    """
    known = {math_family(name) for name in base["math"]}
    now = {math_family(name) for name in head["math"]}
    return [name for name in head["math"] if math_family(name) not in known] if len(now) > len(known) else []


def _counted(kernel: Summary) -> Summary:
    return {key: value for key, value in kernel.items() if key not in ("name", "signature", "inspected", "reason")}


# Which kernel of head is which of base.


@dataclass(frozen=True, slots=True)
class _Matched:
    pairs: list[tuple[Summary, Summary]]
    not_inspected: int
    only_in_base: int
    only_in_head: int


def _match(base: Sequence[Summary], head: Sequence[Summary]) -> _Matched:
    """Pair the kernels by name and signature.

    Closures out of one factory have both in common. Of these, two that are alike are taken for the same kernel. What
    is then left is paired in order of width, but only if both sides have as many: else it is not known which is new.
    """
    before, after = _by_key(base), _by_key(head)
    pairs: list[tuple[Summary, Summary]] = []
    not_inspected = only_in_base = only_in_head = 0
    for key in sorted(before.keys() | after.keys()):
        ours, theirs = before.get(key, []), after.get(key, [])
        if all(kernel.get("loops") == 0 for kernel in (*ours, *theirs)):
            continue  # Small functions that kernels call: LLVM has them inside the kernels' loops.
        if all(kernel["inspected"] for kernel in (*ours, *theirs)):
            found = _pair(ours, theirs)
            common = len(found)
            pairs += found
        else:
            common = min(len(ours), len(theirs))
            not_inspected += common
        only_in_base += len(ours) - common
        only_in_head += len(theirs) - common
    return _Matched(pairs, not_inspected, only_in_base, only_in_head)


def _by_key(kernels: Sequence[Summary]) -> dict[tuple[str, str], list[Summary]]:
    found: dict[tuple[str, str], list[Summary]] = {}
    for kernel in kernels:
        found.setdefault((kernel["name"], kernel["signature"]), []).append(kernel)
    return found


def _pair(base: list[Summary], head: list[Summary]) -> list[tuple[Summary, Summary]]:
    pairs, rest, left = [], [], sorted(head, key=_facts, reverse=True)
    for kernel in sorted(base, key=_facts, reverse=True):
        twin = next((other for other in left if _facts(other) == _facts(kernel)), None)
        if twin is None:
            rest.append(kernel)
        else:
            left.remove(twin)
            pairs.append((kernel, twin))
    return pairs + list(zip(rest, left, strict=True)) if len(rest) == len(left) else pairs


def _facts(kernel: Summary) -> tuple[Any, ...]:
    """All that a loss is seen by, the width first."""
    return kernel["lanes"] or 0, kernel["bits"] or 0, kernel["dtype"] or "", kernel["math"]
