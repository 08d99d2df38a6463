"""The stream of random numbers: published answers, equal bits in all backends, and nothing but seed and index in it."""

import inspect
import platform
import re

import mpmath
import numba
import numpy as np
import pytest
import torch
from numba import types
from scipy import special, stats

from gradmark.numerics import (
    philox,
    philox_coefficients,
    philox_fit,
    philox_numba,
    philox_numpy,
    philox_torch,
    philox_transforms,
)
from gradmark.numerics.fit import rounded
from machine_code import text_of

STREAMS = {"numpy": philox_numpy, "numba": philox_numba, "torch": philox_torch}
FILLS = ("fill_uniform", "fill_normal", "fill_truncated_normal")
DTYPES = ("float32", "float64")
ODD_SIZE = 10**6 + 7
SEED = 0x123456789ABCDEF0

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Counter, key, words of philox4x32 with 10 rounds, from the file kat_vectors of Random123 (D. E. Shaw Research)."""


def words_numpy(counter, key):
    return [int(w[0]) for w in philox_numpy.block(*(np.array([c], np.uint64) for c in counter), *key)]


def words_numba(counter, key):
    block = philox_numba.block

    @numba.njit
    def compiled(c0, c1, c2, c3, k0, k1):
        return block(c0, c1, c2, c3, k0, k1)

    return [int(w) for w in compiled(*map(np.uint64, (*counter, *key)))]


def words_torch(counter, key):
    return [int(w) for w in philox_torch.block(*(torch.tensor(c, dtype=torch.int64) for c in counter), *key)]


def fill(backend, name, size, dtype, first=0, seed=SEED, a=0.0, b=1.0):
    """The elements first, ..., first + size - 1 as a NumPy array, computed by a backend."""
    out = torch.empty(size, dtype=getattr(torch, dtype)) if backend == "torch" else np.empty(size, dtype)
    bounds = (-2.0, 2.5) if name == "fill_truncated_normal" else ()
    getattr(STREAMS[backend], name)(out, first, seed, a, b, *bounds)
    return np.asarray(out)


@pytest.mark.parametrize("words", [words_numpy, words_numba, words_torch])
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_blocks_are_the_published_ones(words, counter, key, expected):
    assert words(counter, key) == list(expected)


@pytest.mark.parametrize(
    ("seed", "stream", "expected"),
    [
        (0, "", 0x3C1B4FBFD8FFAFC3),
        (0, "layers.0.weight", 0x109FE626FF01F1B9),
        (2**64 - 1, "layers.0.weight", 0x670A9238BA3EF645),
        (1, "Φ.weight", 0xAB746186DB29707C),
    ],
)
def test_seeds_of_streams_are_fixed(seed, stream, expected):
    """Computed once by RFC 7693, without hashlib: a seed's promise, which no release may change."""
    assert philox.stream_seed(seed, stream) == expected


def test_a_stream_without_a_name_has_the_seed_itself():
    assert philox.stream_seed(2**64 - 1, None) == 2**64 - 1
    for wrong in (b"layers.0.weight", 0, ("a",)):
        with pytest.raises(TypeError, match="stream must be a str or None, got"):
            philox.stream_seed(0, wrong)


def test_streams_of_like_names_and_seeds_differ():
    names = ["", "\ud800", *(f"layers.{i}.weight" for i in range(1000))]
    assert len({philox.stream_seed(seed, name) for seed in (0, 1, 2**63) for name in names}) == 3 * len(names)


def reference_uniform(index, seed, dtype):
    """u of one element, from its definition, in Python's integers."""
    per_block = {"float32": 4, "float64": 2}[dtype]
    block = index // per_block
    words = words_numpy((block & 0xFFFFFFFF, block >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    if dtype == "float32":
        return (words[index % 4] >> 8) / 2**24
    a, b = words[2 * (index % 2) : 2 * (index % 2) + 2]
    return ((a >> 5) * 2**26 + (b >> 6)) / 2**53


@pytest.mark.parametrize("backend", STREAMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 1, 2**32 - 3, 2**34 - 2, 2**40 + 3])
def test_elements_follow_their_definition(backend, dtype, first):
    values = fill(backend, "fill_uniform", 9, dtype, first)
    assert values.tolist() == [reference_uniform(first + i, SEED, dtype) for i in range(9)]


@pytest.mark.parametrize("backend", STREAMS)
def test_normals_follow_their_definition(backend):
    words = words_numpy((5, 0, 0, 0), (SEED & 0xFFFFFFFF, SEED >> 32))
    u = (words[2] >> 1 | 1) / 2**31
    # Up to the rounding of u and of the angle.
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * words[3] / 2**32
    expected = [3 + 2 * radius * np.cos(angle), 3 + 2 * radius * np.sin(angle)]
    found = fill(backend, "fill_normal", 2, "float32", 22, a=3.0, b=2.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * 2.0**-24 * (3 + 2 * radius))


# The second block index is beyond 2^32: the counter's upper word is used.
@pytest.mark.parametrize("first", [0, 3, 2**34 + 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FILLS)
def test_all_backends_give_equal_bits(name, dtype, first):
    reference = fill("numpy", name, ODD_SIZE, dtype, first, a=-0.3, b=0.7)
    for backend in ("numba", "torch"):
        found = fill(backend, name, ODD_SIZE, dtype, first, a=-0.3, b=0.7)
        assert found.tobytes() == reference.tobytes(), backend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*FILLS, "fill_gumbel"])
def test_the_size_of_chunks_changes_nothing(monkeypatch, name, dtype):
    parameters = {"fill_truncated_normal": (0.0, 1.0, -2.0, 2.5), "fill_gumbel": ()}.get(name, (0.0, 1.0))
    # Across the block where the second word of the counter changes.
    first = 4 * 2**32 - ODD_SIZE // 3
    found = []
    for chunks in (80, 2):
        monkeypatch.setattr(philox_numpy, "CHUNKS", chunks)
        found.append(np.empty(ODD_SIZE, dtype))
        getattr(philox_numpy, name)(found[-1], first, SEED, *parameters)
    assert found[0].tobytes() == found[1].tobytes()


# Runs shorter than a block, of many blocks, and longer than what is shared by the threads or computed at once.
@pytest.mark.parametrize("length", [1, 3, 7, 64, 301, 2**18 + 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FILLS)
def test_runs_hold_the_elements_from_their_first_on(name, dtype, length):
    runs = 2 if length > 2**18 else 2 + 3000 // length
    first = np.arange(runs) * (length + 5) + 2**34 - 3
    bounds = (-2.0, 2.5) if name == "fill_truncated_normal" else ()
    whole = fill("numba", name, int(first[-1]) + length - 2**34 + 3, dtype, 2**34 - 3, a=-0.3, b=0.7)
    expected = whole[first[:, None] - first[0] + np.arange(length)]
    for backend, module in STREAMS.items():
        out = np.empty((runs, length), dtype)
        of_backend = (torch.from_numpy(out), torch.from_numpy(first)) if backend == "torch" else (out, first)
        getattr(module, name)(*of_backend, SEED, -0.3, 0.7, *bounds)
        assert out.tobytes() == expected.tobytes(), backend


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_transforms_have_equal_bits(dtype):
    """The smallest and the largest u, the ends of a quadrant and its middle, in all four: no draw meets them all."""
    real = np.dtype(dtype).type
    integer = np.int32 if dtype == "float32" else np.int64
    bits = 31 if dtype == "float32" else 53
    u = np.array([2.0**-bits, 3 * 2.0**-bits, 0.5, np.sqrt(0.5), np.nextafter(real(np.sqrt(0.5)), real(0)), 0.7, 1.0])
    t = np.array([-0.5, -(2.0 ** -(bits - 1)), 0.0, 2.0 ** -(bits - 1), 0.25, 0.5 - 2.0**-24])
    u, quadrant, t = (a.ravel() for a in np.meshgrid(u.astype(real), np.arange(4, dtype=integer), t.astype(real)))
    name = f"_normal_pair_{real(0).itemsize * 8}"
    expected = [z.tobytes() for z in getattr(philox_numpy, name)(u, quadrant, t)]
    found = getattr(philox_torch, name)(*map(torch.from_numpy, (u, quadrant, t)))
    assert [z.numpy().tobytes() for z in found] == expected
    pair = getattr(philox_numba, name)

    @numba.njit(error_model="numpy")
    def compiled(u, quadrant, t, first, second):
        for i in range(u.size):
            first[i], second[i] = pair(u[i], quadrant[i], t[i])

    results = np.empty_like(u), np.empty_like(u)
    compiled(u, quadrant, t, *results)
    assert [z.tobytes() for z in results] == expected
    assert np.isfinite(results).all()


TRUNCATIONS = [(0.0, 1.0, -2.0, 2.0), (0.3, 1.7, -1.0, 9.0), (0.0, 1.0, 7.0, 8.0), (0.0, 1.0, -30.0, -29.0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameters", TRUNCATIONS, ids=str)
def test_truncated_normals_have_equal_bits_near_and_far(parameters, dtype):
    """Intervals about the mean, and in tails of 1e-12 and 1e-190."""
    found = {}
    for name, module in STREAMS.items():
        out = torch.empty(100_003, dtype=getattr(torch, dtype)) if name == "torch" else np.empty(100_003, dtype)
        module.fill_truncated_normal(out, 2**34 + 5, SEED, *parameters)
        found[name] = np.asarray(out)
    assert found["numpy"].tobytes() == found["numba"].tobytes() == found["torch"].tobytes()
    mean, std, a, b = parameters
    low, high = (a - mean) / std, (b - mean) / std
    assert stats.kstest(found["numpy"], stats.truncnorm(low, high, mean, std).cdf).pvalue > 1e-6


@pytest.mark.parametrize(("dtype", "ulp"), [("float32", 4), ("float64", 4)])
def test_quantiles_of_tails(dtype, ulp):
    """Against SciPy in float64, or mpmath: where a tail's polynomial begins and ends, and at 1/2."""
    real = np.dtype(dtype).type
    transforms = philox_transforms.transforms(philox_numpy._Arithmetic(dtype))
    near = [philox_transforms.NEAR, 1e-9, 1e-3, np.exp(-5) / 4, 0.074, 0.0751, 0.3, 0.49, 0.5]
    far = [] if dtype == "float32" else [1e-12, 1.3e-11, 1.5e-11, 1e-100, 1e-300]
    with mpmath.workdps(40):
        for transform, tails in ((transforms.truncated_near, near), (transforms.truncated, near + far)):
            p = np.array(tails, real)
            # u = 1 and no probability at the lower bound: the tail itself.
            z = transform(np.ones_like(p), np.zeros_like(p), (real(0), real(1)), (p, real(1) - p))
            for found, tail in zip(z, p, strict=True):
                start = float(special.ndtri(float(tail)))
                exact = mpmath.findroot(lambda t, p=tail: mpmath.log(mpmath.ncdf(t)) - mpmath.log(float(p)), start)
                assert abs(float(found) - exact) <= ulp * np.finfo(real).eps * max(1, abs(exact)), tail


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_coefficients_are_those_of_the_fit(dtype):
    for name, powers in philox_fit.fit(dtype).items():
        found = getattr(philox_coefficients, name)[dtype]
        assert found == tuple(rounded(c, dtype) for c in powers), name


@pytest.mark.parametrize("backend", STREAMS)
@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_part_can_be_computed_by_itself(backend, name, dtype):
    # Larger than every backend's chunk, so that parts begin and end within chunks and across them.
    whole = fill(backend, name, 200_003, dtype)
    for begin, end in [(0, 1), (1, 2), (3, 3), (2, 5), (5, 70_001), (65_535, 200_003), (99_999, 199_998)]:
        assert fill(backend, name, end - begin, dtype, begin).tobytes() == whole[begin:end].tobytes()


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(name, dtype):
    threads = numba.get_num_threads()
    try:
        results = []
        for count in {1, threads}:
            numba.set_num_threads(count)
            results.append(fill("numba", name, ODD_SIZE, dtype).tobytes())
    finally:
        numba.set_num_threads(threads)
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_serial_and_parallel_loops_give_equal_bits(name, dtype):
    fill("numba", name, 1, dtype)
    # The usual bounds of a truncated normal are near.
    key = (name.removeprefix("fill_").replace("_normal", "_near" if "truncated" in name else "_normal"), dtype)
    _, _, real, count = philox_numba._DISTRIBUTIONS[key]
    scalar = np.float32 if real == types.float32 else np.float64
    parameters = tuple(scalar(0.25 + k / 16) for k in range(count))
    results = []
    for loop in philox_numba._compiled[*key, 1]:
        out = np.empty(ODD_SIZE, dtype)
        loop(out, 3, np.uint64(1), np.uint64(2), parameters)
        results.append(out.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("backend", STREAMS)
@pytest.mark.parametrize("name", FILLS)
def test_every_bit_of_the_seed_matters(backend, name):
    seeds = [0, *(1 << bit for bit in range(64))]
    streams = {fill(backend, name, 8, "float32", seed=seed).tobytes() for seed in seeds}
    assert len(streams) == len(seeds)


@pytest.mark.parametrize("backend", STREAMS)
def test_the_last_float_before_high_is_the_largest(backend):
    # Four floats apart: 1 + span u rounds to high for every u > 7/8, unless it is clamped.
    low, high = 1.0, 1.0 + 2.0**-21
    assert np.float32(low) + np.float32(high - low) * np.float32(0.9) == np.float32(high)
    values = fill(backend, "fill_uniform", 1000, "float32", a=low, b=high)
    assert sorted(set(values.tolist())) == [low + k * 2.0**-23 for k in range(4)]


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 31), ("float64", 53)])
def test_the_largest_normal_is_that_of_the_smallest_u(dtype, bits):
    real, integer = (np.float32, np.int32) if dtype == "float32" else (np.float64, np.int64)
    pair = getattr(philox_numpy, f"_normal_pair_{dtype.removeprefix('float')}")
    largest = pair(np.array([2.0**-bits], real), np.zeros(1, integer), np.zeros(1, real))[0].item()
    assert largest == pytest.approx(philox.LARGEST_NORMAL[dtype], rel=2 * float(np.finfo(real).eps))


def test_all_streams_have_the_same_functions():
    def public(module):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = {name: f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")}
        order = sorted(own, key=lambda name: own[name].__code__.co_firstlineno)
        return [(name, list(inspect.signature(own[name]).parameters)) for name in order]

    assert public(philox_numpy) == public(philox_numba) == public(philox_torch)
    assert [name for name, _ in public(philox_numpy)] == [
        "fill_uniform",
        "fill_normal",
        "fill_truncated_normal",
        "fill_gumbel",
        "block",
    ]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names the vector registers of x86-64")
@pytest.mark.parametrize("distribution", philox_numba._DISTRIBUTIONS, ids="-".join)
def test_the_loops_are_vectorized(distribution):
    # Whether LLVM vectorizes it hangs on what Numba inlines; a loop that is not is several times slower.
    _, _, real, _ = philox_numba._DISTRIBUTIONS[distribution]
    loop, _ = philox_numba._run_of_elements(*distribution)
    assembly = text_of(loop)
    assert re.search(r"pmuludq\s.*%[xyz]mm", assembly)
    assert re.search(rf"\bv?mulp{'s' if real == types.float32 else 'd'}\s.*%[xyz]mm", assembly)
    assert not re.search(r"\b(?:log|sin|cos|exp)f?\b(?!-)", assembly)
