"""The distributions of every initializer in every backend: moments, Kolmogorov-Smirnov, bounds, orthogonality, Haar.

Seeds are fixed, so a test passes always or never. For a seed not looked at before, a correct initializer fails one
statistical comparison with probability at most FALSE_ALARM; there are about 1250 of them, so all pass with 99.8 %.
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
