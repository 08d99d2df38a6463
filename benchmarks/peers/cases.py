"""What is timed: an operation's pass at one size and dtype; and the arrays that all contenders share."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._worktree import catalog, workloads

EXPONENTS = tuple(range(8, 27, 2))
"""Sizes are 2^k elements: those that `--sizes all` takes."""

DEFAULT_EXPONENTS = (12, 16, 24)
"""What fits 20 minutes: where one call's overhead counts, in the L2 cache, in memory."""

ELEMENTWISE, GATED, ROWWISE, STABILIZERS = "elementwise", "gated", "row-wise", "stabilizers"
INITIALIZERS = "initializers"
GROUPS = (ELEMENTWISE, GATED, ROWWISE, STABILIZERS, INITIALIZERS)

ROW_LENGTH = 1024
"""Of the last axis of row-wise and gated operations: a hidden layer's width."""

GROUP_EXPONENTS = (16, 24)
"""Sizes of what is not elementwise, in elements of the input."""

LISTS = {"2000 x 256": (2000, 256), "10 x 2^22": (10, 2**22)}
"""Of clip_grad_norm: the arrays of many small layers, and of a few large ones."""

IMAGES = {16: (16, 64, 8, 8), 24: (64, 64, 64, 64)}
"""Of batch_norm, by exponent: batch, channels, height, width."""

RESIDUAL_ACTIVATIONS = ("relu", "gelu")

FILLS = ("uniform", "normal", "trunc_normal")
"""Random initializers that others are made of."""

FILL_EXPONENTS = (22, 24)
"""In place: 16 MiB, in the last-level cache of a current machine, and 64 MiB, beyond it. Of new arrays the first: what
draws by operations on whole arrays takes seconds a call for more."""

IN_PLACE = "in place"
"""The variant of a fill that writes into an array which exists; the other one makes a new array."""

MATRICES = ("1024x1024", "4096x1024", "1024x4096", "4096x4096")
"""Of orthogonal."""

_BATCH_NORM = ("batch_norm", "batch_norm_inference")


class AbsentError(Exception):
    """A contender cannot take part in a case; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is timed in the same rounds.

    Attributes
    ----------
    group, operation : str
        One of `GROUPS`, and a row of the catalog.
    operation_pass : str
        "forward" or "backward".
    size : str
        "2^16" (elements), the number and length of arrays, or the shape of a matrix such as "1024x1024".
    dtype : str
        "float32" or "float64".
    variant : str
        The activation of residual_add; "training" for a seeded activation with a seed; "in place" for a random
        initializer that fills an array; "" elsewhere.
    """

    group: str
    operation: str
    operation_pass: str
    size: str
    dtype: str
    variant: str = ""

    @property
    def exponent(self) -> int | None:
        """k, where the size is 2^k elements."""
        return int(self.size[2:]) if self.size.startswith("2^") else None

    @property
    def row(self) -> Any:
        """The row of the operation."""
        return catalog.operation(self.operation)

    @property
    def backward(self) -> bool:
        """Whether it is the backward pass."""
        return self.operation_pass == catalog.BACKWARD

    @property
    def noisy(self) -> bool:
        """Whether it draws random numbers, which no two libraries draw alike."""
        return self.variant == workloads.TRAINING or (self.group in (ROWWISE, INITIALIZERS) and self.row.seeded)

    @property
    def name(self) -> str:
        """operation, and the variant where there is one."""
        return "+".join(filter(None, (self.operation, self.variant)))

    def __str__(self) -> str:
        return f"{self.name} {self.operation_pass}, {self.size}, {self.dtype}"


def plan(
    operations: Iterable[str], groups: Sequence[str], passes: Sequence[str], exponents: Sequence[int], dtype: str
) -> list[Case]:
    """The cases of these operations; `exponents` are those of elementwise ones.

    By size, small first, since the budget may end before the list; within a size in the catalog's order. Initializers
    come last, fills before matrices.
    """
    found: list[Case] = []
    for name in operations:
        row = catalog.operation(name)
        group = _group(row)
        if group not in groups:
            continue
        forward_only = name == "clip_grad_norm" or group == INITIALIZERS
        for variant in _variants(row):
            for which in (catalog.FORWARD,) if forward_only else catalog.PASSES:
                if which in passes:
                    case = functools.partial(Case, group=group, operation=name, operation_pass=which, dtype=dtype)
                    found += [case(size=size, variant=variant) for size in _sizes(name, group, variant, exponents)]
    return sorted(found, key=_order)


def _sizes(name: str, group: str, variant: str, exponents: Sequence[int]) -> list[str]:
    if name in ("clip_grad_norm", "orthogonal"):
        return list(LISTS if name == "clip_grad_norm" else MATRICES)
    of_fill = FILL_EXPONENTS if variant == IN_PLACE else FILL_EXPONENTS[:1]
    return [f"2^{k}" for k in {ELEMENTWISE: exponents, INITIALIZERS: of_fill}.get(group, GROUP_EXPONENTS)]


def _order(case: Case) -> tuple[bool, float]:
    """Initializers last, since a matrix takes as long as many other cases."""
    if case.operation == "orthogonal":
        return True, math.log2(math.prod(_matrix(case.size))) + FILL_EXPONENTS[-1]
    return case.group == INITIALIZERS, float(case.exponent or 0)


def _matrix(size: str) -> tuple[int, ...]:
    return tuple(map(int, size.split("x")))


def _variants(row: Any) -> tuple[str, ...]:
    if row.name == "residual_add":
        return RESIDUAL_ACTIVATIONS
    if row.name in FILLS:
        return (IN_PLACE, "")
    return ("", workloads.TRAINING) if row.family == "activations" and row.seeded else ("",)


def operations() -> list[str]:
    """The operations that are compared with peers, in the catalog's order."""
    return [name for name, row in catalog.OPERATIONS.items() if _group(row)]


def _group(row: Any) -> str:
    """The group of a row; "" where it is not compared here."""
    if row.family == "activations":
        return ELEMENTWISE
    if row.family == "stabilizers":
        return STABILIZERS if row.name in (*_BATCH_NORM, "residual_add", "clip_grad_norm") else ""
    if row.family == "initializers":
        return INITIALIZERS if row.name in (*FILLS, "orthogonal") else ""
    return {"gated": GATED, "rowwise": ROWWISE}.get(row.family, "")


class Data:
    """The arrays of one case. NumPy's; torch shares their memory, JAX may copy them.

    Normals: zeros would take the cheap side of every branch.
    """

    def __init__(self, case: Case) -> None:
        self.case = case

    @functools.cached_property
    def x(self) -> np.ndarray:
        """The input."""
        return self.normal(self.shape, seed=1)

    @functools.cached_property
    def grad(self) -> np.ndarray:
        """The gradient with respect to the result."""
        shape = self.shape
        return self.normal((shape[0], shape[1] // 2) if self.case.group == GATED else shape, seed=2)

    @functools.cached_property
    def other(self) -> np.ndarray:
        """The second input of residual_add."""
        return self.normal(self.shape, seed=3)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input; of an initializer, of its result."""
        exponent = self.case.exponent
        if self.case.operation == "orthogonal":
            return _matrix(self.case.size)
        if exponent is None:
            raise ValueError(f"{self.case} is a list of arrays")
        if self.case.operation in _BATCH_NORM:
            return IMAGES[exponent]
        if self.case.group in (GATED, ROWWISE):
            return (2**exponent // ROW_LENGTH, ROW_LENGTH)
        return (2**exponent,)

    def normal(self, shape: tuple[int, ...], seed: int) -> np.ndarray:
        """Standard normals: a million of them, repeated. No branch predictor learns that many."""
        period = np.random.default_rng(seed).standard_normal(min(math.prod(shape), 2**20), dtype=np.float32)
        return np.resize(period, shape).astype(self.case.dtype, copy=False)

    @property
    def bytes_moved(self) -> int:
        """The least traffic of the case: each input read once, each output written once."""
        case = self.case
        item = np.dtype(case.dtype).itemsize
        if case.group == INITIALIZERS:
            return math.prod(self.shape) * item
        if case.exponent is None:
            count, length = LISTS[case.size]
            return 2 * count * length * item
        inputs = 2.0 if case.operation == "residual_add" else 1.0
        outputs = 0.5 if case.group == GATED else 1.0
        arrays = inputs + outputs + (inputs if case.group == GATED and case.backward else float(case.backward))
        return int(arrays * math.prod(self.shape) * item)

    @property
    def beyond_cache(self) -> bool:
        """Whether it lives in memory: at least twice the last-level cache."""
        cache = workloads.last_level_cache() or workloads.ASSUMED_LAST_LEVEL_CACHE
        return self.bytes_moved >= 2 * cache
