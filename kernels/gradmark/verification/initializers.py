"""Initializers against their definition: the Philox stream, written out in Python integers and mpmath."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import mpmath
import numpy as np

from gradmark import reference
from gradmark.backends import Backend
from gradmark.catalog import Initializer
from gradmark.families import rounded
from gradmark.initializers.public import fans
from gradmark.numerics import philox
from gradmark.verification.check import Check, from_backend

# Odd, so that the last block and the last pair are cut; with a kernel, so that the fans are not the shape.
_SHAPE = (7, 5, 3)
_SQUARE = (48, 48)
# Of even and of odd length, so that the centre shows.
_KERNEL = (6, 4, 3, 2)
_MATRIX = (23, 11)
_SEED = 0x9E3779B97F4A7C15

_NORMAL_ULP = 4.0
"""In ULP of std r + |mean|: the logarithm, its root, sine or cosine, two products and a sum round about once each."""

_TRUNCATED_ULP = 8.0
"""In ULP of std + |mean|: a tail rounds four times, which the quantile passes on with p / φ(z) < 1.26; the quantile
rounds as often as a normal does, and is at most 2 within the bounds that are checked."""

_ALLOWED = {
    "uniform": 0.0,
    "fixed": 0.0,
    "normal": _NORMAL_ULP,
    "sparse": _NORMAL_ULP,
    "truncated": _TRUNCATED_ULP,
    # The largest of those that can be chosen.
    "chosen": _TRUNCATED_ULP,
}

# ‖QᵀQ - I‖_F in units of √n eps, of the rounded result: Householder QR is orthogonal to a small multiple of eps in
# each column (Higham, Accuracy and Stability, 2002, theorem 19.4), and rounding adds half an ULP to each entry.
_ORTHOGONALITY = 8.0


def check_initializer(row: Initializer, namespace: Backend, target: str, dtype: str) -> Iterator[Check]:
    """One check, of the weights of each parameter set, in ULP; orthogonal ones have a module of their own."""
    shape = _shape(row)
    worst, where = -1.0, ""
    for parameters in _parameter_sets(row):
        keywords = {"seed": _SEED} if row.seeded else {}
        found = from_backend(getattr(namespace, row.name)(shape, **keywords, dtype=dtype, **parameters))
        expected, floors = _expected(row, shape, parameters, dtype)
        for index, (element, exact, floor) in enumerate(zip(found.ravel(), expected, floors, strict=True)):
            error = reference.error_in_ulp(float(element), exact, floor, dtype)
            if not error <= worst:
                given = "".join(f", {name} = {_shown(value)}" for name, value in parameters.items())
                worst, where = error, f"element {index} of shape {shape}{given}"
    allowed = _ALLOWED[row.distribution]
    if allowed and dtype in ("float16", "bfloat16"):
        # Computed with more digits.
        allowed = 0.51
    yield Check(row.name, "forward", target, dtype, worst, allowed, where)


def _shape(row: Initializer) -> tuple[int, ...]:
    if row.name == "eye":
        return _SQUARE
    return {2: _MATRIX, 5: _KERNEL}.get(row.dimensions[1], _SHAPE)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _parameter_sets(row: Initializer) -> list[dict[str, Any]]:
    defaults: dict[str, Any] = {p.name: p.usual for p in row.parameters}
    samples = [{**defaults, p.name: sample} for p in row.parameters for sample in p.samples]
    return [defaults, *(s for s in samples if s.get("low", -1.0) < s.get("high", 1.0))]


def _expected(
    row: Initializer, shape: tuple[int, ...], parameters: Mapping[str, Any], dtype: str
) -> tuple[list[Any], list[Any]]:
    """The exact elements, and for each the scale below which its error is not relative."""
    count = int(np.prod(shape))
    if row.name == "eye":
        value = mpmath.mpf(float(rounded(np.array([parameters["gain"]]), dtype)[0]))
        rows, columns = shape
        elements = [value if i == j else mpmath.mpf(0) for i in range(rows) for j in range(columns)]
        return elements, [0] * count
    if row.name == "dirac":
        return _dirac(shape, parameters["groups"]), [0] * count
    if row.name == "sparse":
        return _sparse(shape, parameters["sparsity"], parameters["std"], dtype)
    arguments: Mapping[str, Any] = parameters
    if row.of is not None and row.arguments is not None:
        arguments = row.arguments(*fans(shape), **parameters)
    distribution = row.case_of(parameters).distribution
    if distribution == "fixed":
        return [mpmath.mpf(float(rounded(np.array([arguments["value"]]), dtype)[0]))] * count, [0] * count
    if distribution == "uniform":
        return _uniform(count, arguments["low"], arguments["high"], dtype)
    if distribution == "truncated":
        return _truncated(count, arguments, dtype)
    return _normal(count, arguments["mean"], arguments["std"], dtype)


def _dirac(shape: tuple[int, ...], groups: int) -> list[Any]:
    """One element after the other, by its index."""
    outputs, centre = shape[0] // groups, tuple(length // 2 for length in shape[2:])
    indices = itertools.product(*map(range, shape))
    return [mpmath.mpf(int((out % outputs, *at) == (into, *centre))) for out, into, *at in indices]


def _sparse(shape: tuple[int, ...], sparsity: float, std: float, dtype: str) -> tuple[list[Any], list[Any]]:
    """The normals, and 0 where the 53-bit number of the stream "sparse" is one of the smallest of its column."""
    rows, columns = shape
    elements, floors = _normal(rows * columns, 0.0, std, dtype)
    keys, _ = _integers(rows * columns, "float64", philox.stream_seed(_SEED, "sparse"))
    for column in range(columns):
        in_order = sorted(range(rows), key=lambda row: (keys[row * columns + column], row))
        for row in in_order[: math.ceil(sparsity * rows)]:
            elements[row * columns + column], floors[row * columns + column] = mpmath.mpf(0), 0
    return elements, floors


def _words(block: int, seed: int) -> list[int]:
    """Philox4x32-10 in Python's integers (Salmon et al. 2011, section 3.3)."""
    c = [block & 0xFFFFFFFF, block >> 32, 0, 0]
    k = list(philox.key(seed))
    for _ in range(philox.ROUNDS):
        first, second = philox.M0 * c[0], philox.M1 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & 0xFFFFFFFF, (first >> 32) ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + philox.W0) & 0xFFFFFFFF, (k[1] + philox.W1) & 0xFFFFFFFF]
    return c


def _integers(count: int, dtype: str, seed: int = _SEED) -> tuple[list[int], int]:
    """The random integer of each element, and its bits: 32 or 53."""
    if dtype == "float64":
        blocks = [_words(block, seed) for block in range(-(-count // 2))]
        pairs = [pair for w in blocks for pair in ((w[0], w[1]), (w[2], w[3]))]
        return [(a >> 5 << 26) + (b >> 6) for a, b in pairs], 53
    return [word for block in range(-(-count // 4)) for word in _words(block, seed)], 32


def _uniform(count: int, low: float, high: float, dtype: str) -> tuple[list[Any], list[Any]]:
    """low + (high - low) u, each operation rounded once: NumPy's scalars do that."""
    wide = np.float64 if dtype == "float64" else np.float32
    integers, bits = _integers(count, dtype)
    first, end = wide(low), wide(high)
    span, last = wide(end - first), np.nextafter(end, first)
    scale = [wide(v >> 8) * wide(2.0**-24) if bits == 32 else wide(v) * wide(2.0**-53) for v in integers[:count]]
    values = np.array([min(wide(first + wide(span * u)), last) for u in scale], dtype=np.float64)
    return [mpmath.mpf(float(v)) for v in rounded(values, dtype)], [0] * count


def _normal(count: int, mean: float, std: float, dtype: str) -> tuple[list[Any], list[Any]]:
    """Box-Muller, exactly; near a zero of the cosine, or where mean and std z cancel, errors are those of std r."""
    integers, bits = _integers(count + 1, dtype)
    wide = np.float64 if dtype == "float64" else np.float32
    mean, std = float(wide(mean)), float(wide(std))
    elements: list[Any] = []
    floors: list[Any] = []
    with mpmath.workprec(300):
        for j in range(0, count, 2):
            # Of 32 bits, 31 make the radius.
            radius_bits = 31 if bits == 32 else bits
            u = mpmath.ldexp(float(wide(integers[j] >> (bits - radius_bits) | 1)), -radius_bits)
            turned = (integers[j + 1] + (1 << (bits - 3))) % (1 << bits)
            within = turned % (1 << (bits - 2)) - (1 << (bits - 3))
            quarter_turns = (turned >> (bits - 2)) + mpmath.ldexp(float(wide(within)), 2 - bits)
            radius = std * mpmath.sqrt(-2 * mpmath.log(u))
            angle = mpmath.pi / 2 * quarter_turns
            elements += [mean + radius * mpmath.cos(angle), mean + radius * mpmath.sin(angle)]
            floors += [radius + abs(mean)] * 2
    return elements[:count], floors[:count]


def _truncated(count: int, arguments: Mapping[str, float], dtype: str) -> tuple[list[Any], list[Any]]:
    """The quantiles, exactly; where mean and std z cancel, errors are those of their sum of magnitudes."""
    integers, bits = _integers(count, dtype)
    mean, std, a, b = (arguments[name] for name in ("mean", "std", "a", "b"))
    elements, floors = [], []
    near = philox.truncation(mean, std, a, b, dtype).near
    with mpmath.workprec(150):
        low, high = (mpmath.ncdf((mpmath.mpf(bound) - mean) / std) for bound in (a, b))
        for v in integers[:count]:
            if bits == 53:
                u = mpmath.ldexp(v | 1, -53)
            elif near:
                u = mpmath.ldexp(v >> 1 | 1, -31)
            else:
                u = mpmath.ldexp(2 * v + 1, -33)
            p = low + (high - low) * u
            z = mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)
            elements.append(mean + std * z)
            floors.append(abs(mean) + std)
    return elements, floors
