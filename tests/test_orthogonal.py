"""Orthogonal matrices by every method in every backend: orthogonality, Haar's measure, parts of a matrix, memory.

Seeds are fixed, so a test passes always or never. For a seed not looked at before, a correct method fails one
statistical comparison with probability at most FALSE_ALARM; there are about 1000 of them, so all pass with 99.9 %.
"""

import itertools
import math
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

import gradmark
from gradmark import catalog
from gradmark.numerics import blas, haar, haar_torch, philox_torch

FALSE_ALARM = 1e-6
(METHODS,) = [p.words for p in catalog.OPERATIONS["orthogonal"].parameters if p.name == "method"]

apart = pytest.mark.parametrize("backend", ["numpy", "torch"])
"""The backends that have code of their own; what Numba gives is NumPy's, bit for bit."""
every_backend = pytest.mark.parametrize("backend", gradmark.BACKENDS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def weights(backend, shape, dtype="float32", seed=0, **parameters):
    """The weights of a backend as a NumPy array."""
    return np.asarray(gradmark.backend(backend).orthogonal(shape, seed=seed, dtype=dtype, **parameters))


SHAPES = [
    (1, 1),
    (2, 2),
    (5, 3),
    (3, 5),
    (1, 7),
    (7, 1),
    (64, 64),
    (300, 20),
    (20, 300),
    (16, 8, 3, 3),
    (8, 2, 2),
]


def served(shapes):
    """Each shape with each method that makes one of it."""
    return [
        pytest.param(shape, method, id=f"{'x'.join(map(str, shape))}-{method}")
        for shape in shapes
        for method in haar.METHODS
        if haar.refusal(method, *sorted((shape[0], math.prod(shape[1:])), reverse=True)) is None
    ]


@both_dtypes
@pytest.mark.parametrize("shape", [(40, 40), (20, 90), (300, 150), (16, 4, 3, 3)])
def test_numba_gives_the_bits_of_numpy(shape, dtype):
    methods = [m for m in METHODS if m != "cholesky_qr2" or shape != (40, 40)]
    for method in methods:
        first, second = (weights(b, shape, dtype, 9, method=method) for b in ("numpy", "numba"))
        assert first.tobytes() == second.tobytes(), method


@every_backend
@pytest.mark.parametrize("shape", [(40, 40), (20, 90), (2000, 20)])
def test_auto_is_one_of_the_methods(shape, backend):
    method = haar.chosen("auto", max(shape), min(shape))
    assert method in haar.METHODS
    assert weights(backend, shape).tobytes() == weights(backend, shape, method=method).tobytes()


@apart
@both_dtypes
@pytest.mark.parametrize(("shape", "method"), served([*SHAPES, (256, 256), (200, 257), (300, 90)]))
def test_orthogonality(shape, method, backend, dtype):
    # Householder's Q is off by some c √n eps. Measured: at most 3.1 √n eps, c falling with n; torch.nn.init's own
    # at most 2.9. The smallest errors are a few roundings of 1, so torch's counts as at least eps.
    error = max(orthogonality_error(weights(backend, shape, dtype, seed, method=method)) for seed in range(5))
    eps = np.finfo(dtype).eps
    assert error <= 6 * math.sqrt(min(shape[0], math.prod(shape[1:]))) * eps
    generator = torch.Generator().manual_seed(0)
    peers = [torch.empty(shape, dtype=getattr(torch, dtype)) for _ in range(5)]
    peer = max(orthogonality_error(torch.nn.init.orthogonal_(w, generator=generator).numpy()) for w in peers)
    assert error <= 4 * max(peer, eps)


@every_backend
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (4, 3, 2, 2)])
def test_gain_scales_an_orthogonal_matrix(shape, backend):
    unit = weights(backend, shape, "float64")
    np.testing.assert_array_equal(weights(backend, shape, "float64", gain=-2.0), -2.0 * unit)


def orthogonality_error(matrix):
    """||QᵀQ - I||₂ of the tall one of Q and its transpose, flattened to (out, rest)."""
    q = matrix.astype(np.float64).reshape(matrix.shape[0], -1)
    q = q if q.shape[0] >= q.shape[1] else q.T
    return np.linalg.norm(q.T @ q - np.eye(q.shape[1]), 2)


# Haar ---------------------------------------------------------------------------------------------------------------

MATRICES, N = 1000, 8


def square(backend, method):
    return np.stack([weights(backend, (N, N), "float64", seed, method=method) for seed in range(MATRICES)])


def square_without_signs():
    """What QR gives before its signs are fixed, from the same Gaussian matrices."""
    normal = gradmark.backend("numpy").normal
    return np.stack([np.linalg.qr(normal((N, N), seed=seed, dtype="float64"))[0] for seed in range(MATRICES)])


def entry_pvalue(entry, n):
    """A column of Haar Q is uniform on the sphere: with q one of its entries, (q + 1) / 2 ~ Beta((n-1)/2, (n-1)/2)."""
    return stats.kstest((entry + 1) / 2, stats.beta((n - 1) / 2, (n - 1) / 2).cdf).pvalue


def trace_pvalue(matrices):
    """Traces of Haar matrices are N(0, 1) up to terms that vanish faster than exponentially in n.

    Diaconis, Shahshahani, J. Appl. Probab. 31A, 1994; Johansson, Annals of Mathematics 145, 1997.
    """
    return stats.kstest(np.trace(matrices, axis1=1, axis2=2), stats.norm.cdf).pvalue


def angle_pvalue(matrices):
    """The angles in (0, π) of Haar eigenvalues are uniform in O(n), n even.

    Their density is n - 1 plus sin((n-1)θ) / sin θ for determinant 1, minus it for -1 (Katz, Sarnak, Random matrices,
    Frobenius eigenvalues, and monodromy, 1999); the two determinants are equally likely. Eigenvalues of a matrix
    repel each other, so counts vary less than those of independent angles, and the test's p-value errs upwards.
    """
    angles = np.angle(np.linalg.eigvals(matrices)).ravel()
    return stats.kstest(angles[(angles > 1e-8) & (angles < np.pi - 1e-8)] / np.pi, stats.uniform.cdf).pvalue


def determinant_pvalue(matrices):
    """The determinant is 1 or -1, each with probability 1/2."""
    positive = int((np.linalg.det(matrices) > 0).sum())
    return stats.binomtest(positive, len(matrices), 0.5).pvalue


@pytest.mark.parametrize(("shape", "method"), served([(N, N)]))
@apart
def test_square_orthogonal_matrices_are_haar(backend, shape, method):
    matrices = square(backend, method)
    for i in range(N):
        for j in range(N):
            assert entry_pvalue(matrices[:, i, j], N) > FALSE_ALARM, (i, j)
    for pvalue in (trace_pvalue, angle_pvalue, determinant_pvalue):
        assert pvalue(matrices) > FALSE_ALARM, pvalue.__name__


def test_the_tests_of_haar_find_that_signs_were_not_fixed():
    matrices = square_without_signs()
    assert entry_pvalue(matrices[:, 0, 0], N) < FALSE_ALARM
    for pvalue in (trace_pvalue, angle_pvalue, determinant_pvalue):
        assert pvalue(matrices) < FALSE_ALARM, pvalue.__name__


@pytest.mark.parametrize(("shape", "method"), served([(9, 4), (4, 3, 3)]))
@apart
def test_entries_of_rectangular_orthogonal_matrices_are_haar(shape, method, backend):
    # Columns of a tall matrix, rows of a wide one, are uniform on the sphere of the longer side.
    matrices = np.stack([weights(backend, shape, "float64", seed, method=method) for seed in range(MATRICES)])
    entries = matrices.reshape(MATRICES, -1)
    for k in range(entries.shape[1]):
        assert entry_pvalue(entries[:, k], max(shape[0], math.prod(shape[1:]))) > FALSE_ALARM, k


# Methods ------------------------------------------------------------------------------------------------------------


def test_the_row_has_the_methods_that_there_are():
    assert ("auto", *haar.METHODS) == METHODS


@both_dtypes
@pytest.mark.parametrize(("shape", "method"), served([(40, 40), (90, 20), (20, 90), (16, 4, 3, 3), (300, 300)]))
def test_backends_agree_as_the_method_is_conditioned(shape, method, dtype):
    # First-order perturbation: |dQ| <= √2 κ(Z) |dZ| / |Z| for the factor Q of QR (Sun, BIT 31, 1991), and
    # 2 |dZ| / σ_min for the polar one (Li, SIAM J. Matrix Anal. Appl. 16, 1995), with an error |dZ| of some √n eps |Z|.
    # Reflectors are drawn: nothing is conditioned. Measured: at most 0.08 of n κ eps; of reflectors, 0.2 n eps.
    z = gradmark.backend("numpy").normal((shape[0], math.prod(shape[1:])), seed=9, dtype=dtype)
    condition = 1.0 if method == "householder" else np.linalg.cond(z)
    reference, *others = (weights(b, shape, dtype, 9, method=method).reshape(z.shape) for b in gradmark.BACKENDS)
    for other in others:
        assert np.linalg.norm(other - reference, 2) <= min(z.shape) * condition * np.finfo(dtype).eps


@every_backend
@pytest.mark.parametrize("shape", [(60, 30), (20, 90), (500, 3)])
def test_two_ways_to_the_factor_of_qr(shape, backend):
    z = gradmark.backend("numpy").normal(shape, seed=3, dtype="float64")
    tall = z if shape[0] > shape[1] else z.T
    q, r = np.linalg.qr(tall)
    q *= np.where(np.diagonal(r) < 0, -1, 1)
    for method in ("qr", "cholesky_qr2"):
        found = weights(backend, shape, "float64", 3, method=method)
        np.testing.assert_allclose(found if shape[0] > shape[1] else found.T, q, rtol=0, atol=1e-13)


@every_backend
def test_polar_is_the_nearest_orthogonal_matrix(backend):
    z = gradmark.backend("numpy").normal((30, 20), seed=3, dtype="float64")
    u, _, vt = np.linalg.svd(z, full_matrices=False)
    np.testing.assert_allclose(weights(backend, (30, 20), "float64", 3, method="polar"), u @ vt, rtol=0, atol=1e-13)


@every_backend
def test_a_column_of_reflectors_is_the_first_drawn_vector(backend):
    x = gradmark.backend("numpy").normal((200,), seed=3, dtype="float64")
    found = weights(backend, (200, 20), "float64", 3, method="householder")
    np.testing.assert_allclose(found[:, 0], x / np.linalg.norm(x), rtol=0, atol=1e-15)


@every_backend
def test_a_wide_matrix_is_the_transpose_of_a_tall_one(backend):
    tall, wide = (weights(backend, shape, "float64", 3, method="householder") for shape in ((70, 50), (50, 70)))
    np.testing.assert_allclose(wide.T, tall, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 5), (64, 64), (1000, 1000), (5000, 300), (200, 199)])
def test_blocks_follow_each_other(m, n):
    blocks = haar.blocks(m, n)
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    assert blocks[-1][1] == n
    assert all(0 < stop - start <= haar.BLOCK for start, stop in blocks)


@both_dtypes
def test_a_vector_of_zeros_is_reflected_by_nothing(dtype):
    # Box and Muller's radius is 0 for one word in 2^31.
    def fill_zeros(out, *_):
        out[...] = 0.0

    for shape in ((6, 6), (6, 4)):
        q = np.empty(shape, dtype)
        haar.fill(q, "householder", 1.0, 0, fill_zeros)
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        haar_torch.fill(tensor, "householder", 1.0, 0, fill_zeros)
        for found in (q, tensor.numpy()):
            np.testing.assert_array_equal(np.abs(found), np.eye(*shape))


def test_polar_gives_up_on_a_singular_matrix():
    def fill_ones(out, *_):
        out[...] = 1.0

    q = np.empty((6, 6), "float32")
    with pytest.raises(ArithmeticError, match="take method='qr'"):
        haar.fill(q, "polar", 1.0, 0, fill_ones)


@every_backend
@pytest.mark.parametrize("shape", [(30, 30), (30, 16), (16, 30), (5, 2, 2, 2)])
def test_cholesky_qr2_asks_for_a_long_side(shape, backend):
    with pytest.raises(ValueError, match=r"at least twice the other, not at .*take method='householder' or 'qr'"):
        weights(backend, shape, method="cholesky_qr2")


@every_backend
@pytest.mark.parametrize(("method", "error"), [("QR", ValueError), ("", ValueError), (None, TypeError), (1, TypeError)])
def test_an_unknown_method(backend, method, error):
    with pytest.raises(error, match="method must be one of 'auto', 'qr', 'householder', 'cholesky_qr2', 'polar', got"):
        weights(backend, (4, 4), method=method)


@pytest.mark.parametrize("shape", [(512, 512), (4096, 64), (64, 4096), (1 << 18, 4)])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("method", ["qr", "householder", "cholesky_qr2", "polar"])
def test_memory_is_at_most_two_and_a_half_matrices(method, backend, shape):
    if haar.refusal(method, max(shape), min(shape)) is not None:
        shape = (512, 256)
    orthogonal = gradmark.backend(backend).orthogonal
    orthogonal((8, 2), seed=0, method=method)
    tracemalloc.start()
    orthogonal(shape, seed=0, method=method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2.5 * 4 * math.prod(shape) + (1 << 20), peak / (4 * math.prod(shape))


# Parts --------------------------------------------------------------------------------------------------------------

PARTS = {
    "rows": ((257, 200), [0, 100, 230, 257], [0, 200]),
    "columns": ((257, 200), [0, 257], [0, 50, 51, 200]),
    "rows and columns": ((300, 300), [0, 1, 150, 300], [0, 130, 300]),
    "without rows": ((150, 40), [0, 0, 70, 70, 150], [0, 40, 40]),
    "less than a block": ((9, 5), [0, 2, 9], [0, 5]),
}


@both_dtypes
@pytest.mark.parametrize("name", PARTS)
def test_parts_are_those_of_the_whole(name, dtype):
    (m, n), rows, columns = PARTS[name]
    whole = torch.empty((m, n), dtype=getattr(torch, dtype))
    haar_torch.fill(whole, "householder", 1.0, 5, philox_torch.fill_normal)
    found = torch.full_like(whole, math.nan)
    for column, *_ in enumerate(columns[:-1]):
        across = columns[column], columns[column + 1]
        parts = [haar_torch.Part((m, n), down, across, None) for down in itertools.pairwise(rows)]
        for part, filled in zip(parts, in_threads(parts, whole.dtype), strict=True):
            found[slice(*part.rows), slice(*part.columns)] = filled
    assert (found - whole).abs().max() <= 4 * torch.finfo(whole.dtype).eps


def in_threads(parts, dtype):
    """Each part filled by a thread of its own; sums are over all of them."""
    barrier, shares = threading.Barrier(len(parts), timeout=30), [None] * len(parts)
    filled = [torch.empty((p.rows[1] - p.rows[0], p.columns[1] - p.columns[0]), dtype=dtype) for p in parts]

    def run(k):
        def add_up(tensor):
            shares[k] = tensor.clone()
            barrier.wait()
            total = sum(shares[1:], start=shares[0])
            barrier.wait()
            tensor.copy_(total)

        part = haar_torch.Part(parts[k].shape, parts[k].rows, parts[k].columns, add_up)
        haar_torch.fill_part(filled[k], part, 5, philox_torch.fill_normal)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return filled


# BLAS ---------------------------------------------------------------------------------------------------------------


def views(rows, columns, dtype, generator):
    """Random matrices of this shape, each laid out in another way."""
    large = generator.normal(size=(2 * rows + 3, 2 * columns + 3)).astype(dtype)
    yield large[1 : rows + 1, 2 : columns + 2]
    yield np.asfortranarray(large)[1 : rows + 1, 2 : columns + 2]
    yield np.ascontiguousarray(large[:rows, :columns])
    yield np.asfortranarray(large[:rows, :columns])
    yield np.ascontiguousarray(large.T)[1 : columns + 1, 2 : rows + 2].T


SIZES = [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (1, 1, 5), (5, 1, 1), (1, 7, 1), (17, 33, 9)]


@both_dtypes
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_products_are_added_in_place(m, k, n, dtype):
    generator = np.random.default_rng(0)
    for a in views(m, k, dtype, generator):
        for b in views(k, n, dtype, generator):
            for c in views(m, n, dtype, generator):
                all_of_it = c if c.base is None else c.base
                before = all_of_it.copy()
                expected = 2.0 * (a.astype("float64") @ b) + 0.5 * c
                blas.add_product(c, 2.0, a, b, 0.5)
                np.testing.assert_allclose(c, expected, rtol=0, atol=1e2 * np.finfo(dtype).eps)
                assert np.count_nonzero(all_of_it != before) <= c.size


@both_dtypes
@pytest.mark.parametrize(("m", "n"), [(3, 4), (1, 5), (5, 1), (1, 1), (33, 9)])
def test_division_by_a_triangle(m, n, dtype):
    generator = np.random.default_rng(0)
    r = np.triu(generator.normal(size=(n, n))) + 3.0 * np.eye(n)
    below = np.tril(np.full((n, n), np.nan), -1)
    for b in views(m, n, dtype, generator):
        expected = b.astype("float64") @ np.linalg.inv(r)
        blas.divide_by_triangle(b, (r + below).astype(dtype))
        np.testing.assert_allclose(b, expected, rtol=0, atol=1e2 * np.finfo(dtype).eps)


def test_a_product_without_elements():
    c = np.ones((0, 3), "float32")
    blas.add_product(c, 1.0, np.ones((0, 2), "float32"), np.ones((2, 3), "float32"), 0.0)
    assert c.shape == (0, 3)
