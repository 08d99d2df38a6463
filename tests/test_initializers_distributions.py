"""The distributions of every initializer in every backend: moments, Kolmogorov-Smirnov, bounds, orthogonality, Haar.

Seeds are fixed, so a test passes always or never. For a seed not looked at before, a correct initializer fails one
statistical comparison with probability at most FALSE_ALARM; there are about 1100 of them, so all pass with 99.9 %.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import gradmark
from gradmark import catalog
from gradmark.initializers.public import fans

FALSE_ALARM = 1e-6

ROWS = {row.name: row for row in catalog.INITIALIZERS}
INDEPENDENT = [n for n, row in ROWS.items() if row.distribution in ("uniform", "normal", "truncated", "chosen")]
NAMED = [name for name in INDEPENDENT if isinstance(ROWS[name].of, str)]

LINEAR, CONVOLUTION = (300, 250), (48, 32, 5, 7)
SEED = 20260101

_LEAKY = "he_uniform he_normal lecun_uniform lecun_normal"
PEER_ARGUMENTS = {
    "uniform_fan_in": lambda gain: {"a": math.sqrt(6 / gain**2 - 1)},
    **dict.fromkeys(_LEAKY.split(), lambda gain: {"a": math.sqrt(max(0.0, 2 / gain**2 - 1))}),
}
"""Where the function of torch.nn.init has no gain but the slope `a` of a leaky ReLU: it scales by √(2 / (1 + a²))."""


def weights(backend, row_name, shape, dtype="float32", seed=SEED, **parameters):
    """The weights of a backend as a float64 NumPy array."""
    made = getattr(gradmark.backend(backend), row_name)(shape, seed=seed, dtype=dtype, **parameters)
    return np.asarray(made, dtype=np.float64)


def parameters_of(row_name):
    """The defaults; all samples together; and each word of a choice beside the first sample."""
    row = ROWS[row_name]
    defaults = {p.name: p.usual for p in row.parameters}
    others = [{**defaults, p.name: word} for p in row.parameters for word in p.samples[1:]]
    return [defaults, {p.name: p.samples[0] for p in row.parameters}, *others]


def stated(row_name, shape, parameters):
    """The distribution that the catalog states, as one of scipy.stats."""
    row = ROWS[row_name]
    arguments = parameters if row.of is None else row.arguments(*fans(shape), **parameters)
    distribution = row.case_of(parameters).distribution
    if distribution == "uniform":
        return stats.uniform(arguments["low"], arguments["high"] - arguments["low"])
    if distribution == "truncated":
        mean, std, a, b = (arguments[name] for name in ("mean", "std", "a", "b"))
        return stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    return stats.norm(arguments["mean"], arguments["std"])


every_case = pytest.mark.parametrize(
    ("row_name", "parameters", "shape"),
    [(name, p, shape) for name in INDEPENDENT for p in parameters_of(name) for shape in (LINEAR, CONVOLUTION)],
)
every_backend = pytest.mark.parametrize("backend", gradmark.BACKENDS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@every_case
@every_backend
@both_dtypes
def test_weights_follow_the_stated_distribution(row_name, parameters, shape, backend, dtype):
    sample = weights(backend, row_name, shape, dtype, **parameters).ravel()
    assert stats.kstest(sample, stated(row_name, shape, parameters).cdf).pvalue > FALSE_ALARM


@every_case
@every_backend
def test_mean_and_variance(row_name, parameters, shape, backend):
    # By the central limit theorem: var(mean) = σ² / n, var(s²) = (kurtosis - 1) σ⁴ / n.
    expected = stated(row_name, shape, parameters)
    sample = weights(backend, row_name, shape, **parameters)
    z = stats.norm.isf(FALSE_ALARM / 2)
    mean, variance, excess = (float(moment) for moment in expected.stats("mvk"))
    assert abs(sample.mean() - mean) <= z * math.sqrt(variance / sample.size)
    assert abs(np.mean((sample - mean) ** 2) - variance) <= z * variance * math.sqrt((excess + 2) / sample.size)


@every_backend
@pytest.mark.parametrize("row_name", INDEPENDENT)
def test_neighbours_are_not_correlated(row_name, backend):
    # Of n independent pairs, the correlation has standard deviation 1/√n. Lags: within a pair and a block of the
    # generator, the row above, and its chunks.
    sample = weights(backend, row_name, LINEAR).ravel()
    sample = (sample - sample.mean()) / sample.std()
    z = stats.norm.isf(FALSE_ALARM / 2)
    for lag in (1, 2, 3, 4, LINEAR[1], 2**14, 2**15, 2**16):
        correlation = np.mean(sample[lag:] * sample[:-lag])
        assert abs(correlation) <= z / math.sqrt(sample.size - lag), lag


@every_backend
@both_dtypes
@pytest.mark.parametrize("row_name", [name for name in INDEPENDENT if ROWS[name].distribution == "uniform"])
def test_uniform_weights_keep_their_bounds_and_come_near_them(row_name, backend, dtype):
    for parameters in parameters_of(row_name):
        low, high = (float(np.dtype(dtype).type(b)) for b in stated(row_name, LINEAR, parameters).support())
        sample = weights(backend, row_name, LINEAR, dtype, **parameters)
        assert low <= sample.min()
        assert sample.max() < high
        # All n weights keep a distance d of an end with probability (1 - d / (high - low))^n.
        near = (high - low) * -math.log(FALSE_ALARM) / sample.size
        assert sample.min() <= low + near
        assert sample.max() >= high - near


@every_backend
@both_dtypes
def test_tails_of_the_normal(backend, dtype):
    # The count beyond 4 σ is binomial: of a million normals, about 63.
    sample = np.abs(weights(backend, "normal", 1_000_000, dtype))
    expected = 2 * stats.norm.sf(4.0)
    assert stats.binomtest(int((sample > 4.0).sum()), sample.size, expected).pvalue > FALSE_ALARM


@every_backend
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_truncated_weights_keep_their_bounds_and_come_near_them(backend, dtype):
    # 0.1 is below, -0.3 and 0.3 are above or below a float of each dtype: the bounds are not rounded outwards.
    if dtype not in gradmark.backend(backend).dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    for a, b in ((-0.3, 0.1), (0.1, 0.3), (-2.0, 2.0)):
        sample = weights(backend, "trunc_normal", (300, 400), dtype, a=a, b=b)
        assert a <= sample.min() <= a + 0.01
        assert b - 0.01 <= sample.max() <= b


@pytest.mark.parametrize("row_name", [name for name in NAMED if ROWS[name].distribution == "truncated"])
def test_truncation_leaves_the_scale(row_name):
    """JAX and Keras divide by 0.87962566103423978; the standard deviation is that of the normal variant."""
    assert pytest.approx(0.87962566103423978, rel=1e-15) == catalog.TRUNCATED_STD
    normal = ROWS[row_name.replace("_truncated", "")]
    defaults = {p.name: p.usual for p in normal.parameters}
    for gain in (0.5, 1.0):
        expected = normal.arguments(30, 50, **{**defaults, "gain": gain})["std"]
        assert stated(row_name, (50, 30), {**defaults, "gain": gain}).std() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("row_name", [name for name in NAMED if ROWS[name].distribution != "truncated"])
@pytest.mark.parametrize("shape", [LINEAR, CONVOLUTION, (3, 5), (7, 2, 3)])
@pytest.mark.parametrize("gain", [None, 0.5, 1.0])
def test_scales_are_those_of_pytorch(row_name, shape, gain, monkeypatch):
    # What torch.nn.init passes on to the generator of the same distribution is what our row computes.
    row = ROWS[row_name]
    asked = []
    for method in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, method, lambda self, a, b, generator=None: asked.append((a, b)))
    gain = row.parameters[0].default if gain is None else gain
    peer = getattr(torch.nn.init, row.peer.rpartition(".")[2])
    theirs = PEER_ARGUMENTS.get(row_name, lambda gain: {"gain": gain})(gain)
    modes = next((p.words for p in row.parameters if p.name == "mode"), (None,))
    for mode in modes:
        chosen = {} if mode is None else {"mode": mode}
        asked.clear()
        peer(torch.empty(shape), **theirs, **chosen)
        expected = tuple(row.arguments(*fans(shape), gain=gain, **chosen).values())
        assert asked == [pytest.approx(expected, rel=1e-14)]


ORTHOGONAL_SHAPES = [
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


@every_backend
@both_dtypes
@pytest.mark.parametrize("shape", [*ORTHOGONAL_SHAPES, (256, 256)])
def test_orthogonality(shape, backend, dtype):
    # Householder's Q is off by some c √n eps. Measured: at most 3.1 √n eps, c falling with n; torch.nn.init's own
    # at most 2.9. The smallest errors are a few roundings of 1, so torch's counts as at least eps.
    error = max(orthogonality_error(weights(backend, "orthogonal", shape, dtype, seed)) for seed in range(5))
    eps = np.finfo(dtype).eps
    assert error <= 6 * math.sqrt(min(shape[0], math.prod(shape[1:]))) * eps
    generator = torch.Generator().manual_seed(0)
    peers = [torch.empty(shape, dtype=getattr(torch, dtype)) for _ in range(5)]
    peer = max(orthogonality_error(torch.nn.init.orthogonal_(w, generator=generator).numpy()) for w in peers)
    assert error <= 4 * max(peer, eps)


@every_backend
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (4, 3, 2, 2)])
def test_gain_scales_an_orthogonal_matrix(shape, backend):
    unit = weights(backend, "orthogonal", shape, "float64")
    np.testing.assert_array_equal(weights(backend, "orthogonal", shape, "float64", gain=-2.0), -2.0 * unit)


def orthogonality_error(matrix):
    """||QᵀQ - I||₂ of the tall one of Q and its transpose, flattened to (out, rest)."""
    q = matrix.astype(np.float64).reshape(matrix.shape[0], -1)
    q = q if q.shape[0] >= q.shape[1] else q.T
    return np.linalg.norm(q.T @ q - np.eye(q.shape[1]), 2)


# Haar ---------------------------------------------------------------------------------------------------------------

MATRICES, N = 1000, 8


def square(backend):
    return np.stack([weights(backend, "orthogonal", (N, N), "float64", seed) for seed in range(MATRICES)])


def square_without_signs():
    """What QR gives before its signs are fixed, from the same Gaussian matrices."""
    return np.stack([np.linalg.qr(weights("numpy", "normal", (N, N), "float64", seed))[0] for seed in range(MATRICES)])


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


@every_backend
def test_square_orthogonal_matrices_are_haar(backend):
    matrices = square(backend)
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


@every_backend
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (4, 3, 3)])
def test_entries_of_rectangular_orthogonal_matrices_are_haar(shape, backend):
    # Columns of a tall matrix, rows of a wide one, are uniform on the sphere of the longer side.
    matrices = np.stack([weights(backend, "orthogonal", shape, "float64", seed) for seed in range(MATRICES)])
    entries = matrices.reshape(MATRICES, -1)
    for k in range(entries.shape[1]):
        assert entry_pvalue(entries[:, k], max(shape[0], math.prod(shape[1:]))) > FALSE_ALARM, k
