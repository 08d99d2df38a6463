"""Elementwise operations on millions of points, or on all that a dtype has: the points, the errors, the tallies.

A `Job` is one operation, pass, dtype and set of parameters. Its points lie in `regions`, which are derived from the
row; a `Piece` is a stretch of one region, small enough for one process and one progress step. `judge` runs the
backends on a piece and compares them with `gradmark.verification.wide`, whose own error `reference_error` measures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mpmath
import numpy as np

from gradmark import catalog, reference
from gradmark.backends import backend
from gradmark.catalog import BACKWARD, FORWARD, Activation, Pass
from gradmark.verification import wide
from gradmark.verification.activations import parameter_sets

PIECE: Mapping[str, int] = {"float32": 2**22, "float64": 2**20}
"""Points a piece, some tenths of a second; a backend gets them in one call, as an array of 16 or 8 MiB."""

RESOLUTION: Mapping[str, float] = {"float32": 1e-3, "float64": 2.0**-5}
"""ULP by which the reference may err: long double has 2⁻¹¹ to a rounding. A bar is exceeded beyond that."""

BOUNDS = (0.5, 1.0, 2.0)
"""ULP beyond which errors are counted; 0.5 is the error of a result that is rounded once."""

BACKWARD_STRIDE = 37
"""Of the bit patterns of float32, so many points a backward pass: 1.16e8. Odd, so that all low bits occur."""

SAMPLE_SHARE = 61
"""Values of a parameter beside the default get so many times fewer points."""

_GRADIENTS = (1.0, -0.75, 3e-3, -200.0, 2.0**-100, -(2.0**100), -1.1e-20, 5e9, 1.99, -1.25)
"""Incoming gradients, in turn, with three more that are near underflow: thirteen, a prime that nothing else cycles in.

An error in ULP is largest where the result's mantissa is just below 2, so the gradients have mantissas of all sizes.
"""


@dataclass(frozen=True, slots=True)
class Job:
    """What is judged together.

    Attributes
    ----------
    operation, operation_pass, dtype : str
        A row of the catalog, "forward" or "backward", "float32" or "float64".
    parameters : tuple of float
        One for each of the row's parameters, before it is rounded to the dtype.
    backends : tuple of str
    stride : int
        1: all of the job's points; n: every n-th.
    """

    operation: str
    operation_pass: Pass
    dtype: str
    parameters: tuple[float, ...]
    backends: tuple[str, ...]
    stride: int = 1

    @property
    def row(self) -> Activation:
        """The row of the operation."""
        row = catalog.operation(self.operation)
        if not isinstance(row, Activation):
            raise LookupError(f"{self.operation} is not elementwise; the sweep takes activations")
        return row

    @property
    def is_usual(self) -> bool:
        """Whether the parameters are those of a call that names none, or the samples where the row has no default."""
        return self.parameters == parameter_sets(self.row)[0]

    @property
    def exhaustive(self) -> bool:
        """Whether the points are all bit patterns of the dtype."""
        return (self.dtype, self.operation_pass) == ("float32", FORWARD) and self.is_usual and self.stride == 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one region of a job."""

    job: Job
    region: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Region:
    """A sequence of points: `at(start, count)` gives float64 or float32 numbers of it."""

    name: str
    size: int
    at: Callable[[int, int], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What is known of one backend's errors.

    Attributes
    ----------
    points : int
    worst : float
        The largest error in ULP; inf where NaN stood against a number.
    where : dict of str to str
        The input with it, the result and the exact value.
    beyond : tuple of int
        How many errors exceed each of `BOUNDS`, by more than `RESOLUTION`.
    nan, inf, sign : int
        How many results disagree: NaN against a number; infinite where the exact value rounds to a finite number, or
        the other way round; of the wrong sign, zeros included (forward passes only).
    """

    points: int = 0
    worst: float = -1.0
    where: dict[str, str] = field(default_factory=dict)
    beyond: tuple[int, ...] = (0,) * len(BOUNDS)
    nan: int = 0
    inf: int = 0
    sign: int = 0

    def __add__(self, other: Tally) -> Tally:
        larger = self if self.worst >= other.worst else other
        return Tally(
            points=self.points + other.points,
            worst=larger.worst,
            where=larger.where,
            beyond=tuple(a + b for a, b in zip(self.beyond, other.beyond, strict=True)),
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
            sign=self.sign + other.sign,
        )


def jobs(row: Activation, operation_pass: Pass, dtype: str, backends: Sequence[str], *, stride: int = 1) -> list[Job]:
    """The jobs of a row: the usual parameters, and each sample of one beside them on fewer points."""
    first, *others = parameter_sets(row)
    job = Job(row.name, operation_pass, dtype, first, tuple(backends), stride)
    return [job, *(replace(job, parameters=p, stride=stride * SAMPLE_SHARE) for p in others)]


def pieces(job: Job) -> Iterator[Piece]:
    """The job, cut up."""
    for index, region in enumerate(regions(job)):
        for start in range(0, region.size, PIECE[job.dtype]):
            yield Piece(job, index, start, min(PIECE[job.dtype], region.size - start))


# --- points -----------------------------------------------------------------------------------------------------------


def regions(job: Job) -> tuple[Region, ...]:
    """Where the points of a job lie: all bit patterns, or `spread_regions`."""
    return (_bit_patterns(1),) if job.exhaustive else spread_regions(job)


@functools.lru_cache(maxsize=64)
def spread_regions(job: Job) -> tuple[Region, ...]:
    """A share of the bit patterns, and so every binade, with what they would miss.

    That is [-40, 40], where results become subnormal, and the surroundings of 0, of the kinks and of the zeros of the
    derivative.
    """
    given = rounded(job.parameters, job.dtype)
    tails = _tails(job.row, job.operation_pass, given, job.dtype)
    centres = _centres(job.row, given)
    if job.dtype == "float32":
        binades = _bit_patterns(job.stride * (1 if job.operation_pass == FORWARD else BACKWARD_STRIDE))
        inner, tail, near = 2**22, 2**22, 2**22
    else:
        binades = Region("bit patterns", _share(2**25, job.stride), _random_bits)
        inner, tail, near = 2**26, 2**24, 2**24
    return (
        binades,
        Region("[-40, 40]", _share(inner, job.stride), functools.partial(_uniform, ((-40.0, 40.0),))),
        *((Region("tails", _share(tail, job.stride), functools.partial(_uniform, tails)),) if tails else ()),
        Region("surroundings", _share(near, job.stride), functools.partial(_around, centres, job.dtype)),
    )


def _share(size: int, stride: int) -> int:
    return -(-size // stride)


def _bit_patterns(stride: int) -> Region:
    # Odd, so that the low bits take all values.
    step = stride | 1

    def at(start: int, count: int) -> Any:
        pattern = np.arange(start * step, (start + count) * step, step, dtype=np.uint64)
        return pattern.astype(np.uint32).view(np.float32)

    return Region("bit patterns", -(-(2**32) // step), at)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ / φ: its multiples modulo 2⁶⁴ are spread evenly (Weyl; Knuth, TAOCP 3, 6.4)."""


def _spread(start: int, count: int) -> Any:
    return np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GOLDEN


def _fractions(start: int, count: int) -> Any:
    return (_spread(start, count) >> np.uint64(11)) * 2.0**-53


def _random_bits(start: int, count: int) -> Any:
    return _spread(start, count).view(np.float64)


def _uniform(intervals: Sequence[tuple[float, float]], start: int, count: int) -> Any:
    low, high = np.array(intervals).T
    which = np.arange(start, start + count) % len(low)
    return low[which] + (high - low)[which] * _fractions(start, count)


def _around(centres: Sequence[float], dtype: str, start: int, count: int) -> Any:
    """Centre ± 2^-u with uniform u, down to the centre itself."""
    turn, which = np.divmod(np.arange(start, start + count), len(centres))
    centre = np.array(centres)[which]
    exponent = -1.2 * (reference.MANTISSA_BITS[dtype] + 1) * _fractions(start, count)
    return centre + np.where(turn % 2, -1.0, 1.0) * np.maximum(1.0, np.abs(centre)) * np.exp2(exponent)


_TAIL_GRID = 1.0 / 32


def _tails(
    row: Activation, operation_pass: Pass, parameters: tuple[float, ...], dtype: str
) -> tuple[tuple[float, float], ...]:
    """Intervals in which f (or f') is small enough to be subnormal, but not yet 0."""
    x = np.arange(-1200.0, 1200.0 + _TAIL_GRID, _TAIL_GRID)
    size = np.abs(wide.evaluate(row, operation_pass, x.astype(dtype), parameters))
    exponent = reference.SMALLEST_EXPONENT[dtype]
    vanished = exponent - reference.MANTISSA_BITS[dtype] - 4
    within = (size > np.ldexp(size.dtype.type(1), vanished)) & (size < np.ldexp(size.dtype.type(1), exponent + 3))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], within, [False]]).astype(np.int8)))
    return tuple(
        (float(x[first]) - _TAIL_GRID, float(x[last - 1]) + _TAIL_GRID) for first, last in edges.reshape(-1, 2)
    )


def _centres(row: Activation, parameters: tuple[float, ...]) -> tuple[float, ...]:
    """0, the kinks, and the zeros of the derivative, by bisection."""

    def slope(x: Any) -> Any:
        return wide.evaluate(row, BACKWARD, np.asarray(x, dtype=np.float64), parameters)

    x = np.linspace(-40.0, 40.0, 5001)
    s = slope(x)
    crossing = np.flatnonzero(s[:-1] * s[1:] < 0)
    low, high = x[crossing], x[crossing + 1]
    for _ in range(60):
        middle = (low + high) / 2
        left = slope(middle) * slope(low) > 0
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    return tuple(dict.fromkeys([0.0, *map(float, row.kinks), *map(float, low)]))


def rounded(parameters: Sequence[float], dtype: str) -> tuple[float, ...]:
    """The parameters as the dtype represents them."""
    return tuple(float(np.dtype(dtype).type(p)) for p in parameters)


@functools.cache
def _gradients(dtype: str) -> Any:
    tiny = 2.0 ** reference.SMALLEST_EXPONENT[dtype]
    smallest = np.finfo(dtype).smallest_subnormal
    return np.array([*_GRADIENTS, 6.0 * tiny, -0.37 * tiny, smallest], dtype=dtype)


def _points(piece: Piece) -> tuple[Any, Any]:
    """x, and for a backward pass the incoming gradients; arrays of the job's dtype."""
    job = piece.job
    with np.errstate(all="ignore"):
        x = regions(job)[piece.region].at(piece.start, piece.count).astype(job.dtype, copy=False)
    if job.operation_pass == FORWARD:
        return x, None
    cycle = _gradients(job.dtype)
    return x, np.resize(np.roll(cycle, -(piece.start % cycle.size)), x.size)


# --- errors -----------------------------------------------------------------------------------------------------------

_BLOCK = {"float32": 2**15, "float64": 2**13}
"""Points that are compared at a time: a handful of arrays of them in the wide format stay in a core's L2 cache."""


def judge(piece: Piece) -> dict[str, Tally]:
    """The tally of each of the job's backends over the piece."""
    job = piece.job
    x, grad = _points(piece)
    found = {name: _results(job, name, x, grad) for name in job.backends}
    tallies = {name: Tally() for name in job.backends}
    given = rounded(job.parameters, job.dtype)
    for low in range(0, x.size, _BLOCK[job.dtype]):
        part = slice(low, min(low + _BLOCK[job.dtype], x.size))
        exact = wide.evaluate(job.row, job.operation_pass, x[part], given)
        g = None if grad is None else grad[part]
        if g is not None:
            with np.errstate(all="ignore"):
                exact = exact * g
        for name, result in found.items():
            tallies[name] += _compare(job, x[part], g, result[part], exact)
    return tallies


def _results(job: Job, name: str, x: Any, grad: Any) -> Any:
    namespace = backend(name)
    arguments = [
        np.array([value], dtype=job.dtype) if p.learnable else value
        for value, p in zip(job.parameters, job.row.parameters, strict=True)
    ]
    if grad is None:
        return getattr(namespace, job.operation)(x, *arguments)
    found = getattr(namespace, catalog.backward_of(job.operation))(grad, x, *arguments)
    return found[0] if isinstance(found, tuple) else found


def _compare(job: Job, x: Any, grad: Any, found: Any, exact: Any) -> Tally:
    errors, nan, inf = errors_in_ulp(found, exact, grad, job.dtype)
    worst = float(errors.max(initial=-1.0))
    bounds = [bound + RESOLUTION[job.dtype] for bound in BOUNDS]
    tally = Tally(
        points=found.size,
        worst=worst,
        beyond=tuple(int(np.count_nonzero(errors > bound)) if worst > bound else 0 for bound in bounds),
        nan=nan,
        inf=inf,
        sign=_wrong_signs(job.row, found, exact) if grad is None else 0,
    )
    if worst <= 0:
        return tally
    i = int(errors.argmax())
    where = {"x": _shown(x[i]), "result": _shown(found[i]), "exact": np.format_float_scientific(exact[i], precision=19)}
    if grad is not None:
        where["grad"] = _shown(grad[i])
    where |= {p.name: repr(value) for p, value in zip(job.row.parameters, job.parameters, strict=True)}
    return replace(tally, where=where)


def errors_in_ulp(found: Any, exact: Any, grad: Any, dtype: str) -> tuple[Any, int, int]:
    """The error of each result, and how many results disagree about NaN and about infinity.

    Parameters
    ----------
    found : numpy.ndarray
        Results in `dtype`.
    exact : numpy.ndarray
        What they should be, in the wide format.
    grad : numpy.ndarray or None
        The incoming gradients of a backward pass.
    dtype : str
        "float32" or "float64".

    Returns
    -------
    errors : numpy.ndarray
        |found - exact| in ULP of max(|exact|, |grad| / 64, the smallest normal number), float64; inf where only one of
        the two is NaN. Near infinity they are counted as though the exponents went on: infinity is 2¹²⁸ (2¹⁰²⁴), and a
        result that overflows a little early or late errs by a few ULP.
    nan, inf : int
        inf: infinite where the exact value rounds to a finite number, or the other way round.
    """
    with np.errstate(all="ignore"):
        size = np.abs(exact)
        np.maximum(size, math.ldexp(1.0, reference.SMALLEST_EXPONENT[dtype]), out=size)
        if grad is not None:
            np.maximum(size, np.abs(grad.astype(size.dtype)) / 64, out=size)
        difference = np.subtract(found, exact, dtype=exact.dtype)
        np.abs(difference, out=difference)
        # False as well for a NaN or an infinity in either.
        if size.max(initial=0) < _edge(exact.dtype, dtype) and difference.max(initial=0) < np.inf:
            return _in_ulp(difference, size, dtype), 0, 0
        return _errors_near_infinity(found, exact, size, dtype)


def _errors_near_infinity(found: Any, exact: Any, size: Any, dtype: str) -> tuple[Any, int, int]:
    edge = _edge(exact.dtype, dtype)
    half_ulp = edge * 2.0 ** -(reference.MANTISSA_BITS[dtype] + 2)
    unknown = np.isnan(exact)
    wrong = np.isnan(found) != unknown
    inf = (np.isinf(found) != (np.abs(exact) >= edge - half_ulp)) & ~unknown & ~wrong
    difference = np.abs(np.clip(found.astype(exact.dtype), -edge, edge) - np.clip(exact, -edge, edge))
    errors = _in_ulp(difference, np.minimum(size, edge - half_ulp), dtype)
    errors[unknown] = 0.0
    errors[wrong] = np.inf
    return errors, int(np.count_nonzero(wrong)), int(np.count_nonzero(inf))


def _edge(wide_dtype: Any, dtype: str) -> Any:
    """The power of two above the largest number of `dtype`."""
    return np.ldexp(wide_dtype.type(1), 2 - reference.SMALLEST_EXPONENT[dtype])


def _in_ulp(difference: Any, size: Any, dtype: str) -> Any:
    """difference / 2^(exponent of size - mantissa bits), in float64; both arrays are overwritten."""
    mantissa_bits = reference.MANTISSA_BITS[dtype]
    if size.dtype != np.float64:
        return np.ldexp(difference, mantissa_bits + 1 - np.frexp(size)[1]).astype(np.float64)
    # The bits of 2^(mantissa bits - exponent), by a subtraction.
    bits = size.view(np.uint64)
    np.bitwise_and(bits, np.uint64(0x7FF << 52), out=bits)
    np.subtract(np.uint64((2046 + mantissa_bits) << 52), bits, out=bits)
    return np.multiply(difference, size, out=difference)


def _wrong_signs(row: Activation, found: Any, exact: Any) -> int:
    """How often the signs differ, that of a zero where the row fixes it or where the exact value is not 0."""
    wrong = np.signbit(found) != np.signbit(exact)
    if not wrong.any():
        return 0
    wrong &= ~np.isnan(exact) & ~np.isnan(found)
    if not row.signed_zero:
        wrong &= exact != 0
    return int(np.count_nonzero(wrong))


def _shown(value: Any) -> str:
    if np.isnan(value):
        return f"nan ({value.view(f'uint{8 * value.itemsize}'):#x})"
    return str(value)


# --- the reference's own error ----------------------------------------------------------------------------------------


def reference_error(job: Job, start: int, count: int) -> float:
    """The largest error of the wide reference in ULP of the job's dtype, against mpmath.

    Parameters
    ----------
    job : Job
    start, count : int
        Which of the points that are drawn, in turn, from `spread_regions`.
    """
    given = rounded(job.parameters, job.dtype)
    with np.errstate(all="ignore"):
        x = np.array([_drawn(spread_regions(job), k) for k in range(start, start + count)]).astype(job.dtype)
    x = x[np.isfinite(x)]
    found = wide.evaluate(job.row, job.operation_pass, x, given)
    return max((_own_error(job, given, a, b) for a, b in zip(x, found, strict=True)), default=0.0)


def _drawn(where: tuple[Region, ...], k: int) -> float:
    turn, which = divmod(k, len(where))
    region = where[which]
    return float(region.at(turn * int(_GOLDEN) % region.size, 1)[0])


def _own_error(job: Job, parameters: tuple[float, ...], x: Any, found: Any) -> float:
    function = reference.forward if job.operation_pass == FORWARD else reference.derivative
    exact = function(job.row, float(x), parameters)
    edge = _edge(found.dtype, job.dtype)
    if abs(exact) >= wide.exactly(edge) and abs(found) >= edge:
        return 0.0  # Where it rounds to infinity, how far beyond does not matter.
    with mpmath.workprec(300):
        floor = mpmath.ldexp(1, reference.SMALLEST_EXPONENT[job.dtype])
        if job.operation_pass == BACKWARD:
            floor = max(floor, mpmath.mpf(1) / 64)
        return float(abs(wide.exactly(found) - exact) / reference.ulp(max(abs(exact), floor), job.dtype))
