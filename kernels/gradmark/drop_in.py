"""Activation functions and initializers of other libraries, and the call of gradmark that gives the same values.

What stands on the right is a function of a backend: `gradmark.backend("numba").gelu_tanh(x)`. A function with
parameters has a line without them, for its defaults, and one with them. Where ours is `seed`ed, theirs draws from a
generator of its own: the distribution is the same, the numbers are not. The tests compare the values of each line
with the installed library (but for `ERRING`), and fail where it has an activation function that is not here. Only the
standard library is imported.

Initializers, which are random, have the same distribution, options and defaults. `shape` is that of the weights in
the layout of the library that is called: (out, in, *kernel) for ours and PyTorch's, (*kernel, in, out) for JAX's and
Keras's, whose options for other layouts (`in_axis`, `input_axes`, `column_axis`) have no counterpart. `w` is the
tensor that PyTorch fills.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Calls = Mapping[str, str]


def calls(name: str) -> dict[str, str]:
    """Their calls and ours, of one function.

    Parameters
    ----------
    name : str
        Such as "torch.nn.functional.gelu", "jax.nn.gelu", "torch.nn.init.kaiming_uniform_".

    Returns
    -------
    calls : dict of str to str
        Their call -> ours, a function of `gradmark.backend(...)`.

    Raises
    ------
    LookupError
        The function is not here; the message lists those of its library, or the libraries that have one of its name.

    Examples
    --------
    >>> from gradmark import drop_in
    >>> drop_in.calls("keras.activations.leaky_relu")
    {'leaky_relu(x, negative_slope)': 'leaky_relu(x, negative_slope)', 'leaky_relu(x)': 'leaky_relu(x, 0.2)'}
    """
    library, _, function = str(name).rpartition(".")
    if library not in LIBRARIES:
        alike = [f"{known}.{of}" for known in LIBRARIES for of in _functions(known) if of == function.lower()]
        hint = f"give one of {', '.join(alike)}" if alike else f"known libraries: {', '.join(LIBRARIES)}"
        raise LookupError(f"{str(name)!r} is in no library that is known here; {hint}")
    found = {theirs: ours for theirs, ours in LIBRARIES[library].items() if function_of(theirs) == function}
    if not found:
        known = ", ".join(_functions(library))
        raise LookupError(f"no function {function!r} of {library} here; known functions: {known}")
    return found


def _functions(library: str) -> dict[str, None]:
    return dict.fromkeys(map(function_of, LIBRARIES[library]))


def function_of(call: str) -> str:
    """The name of the function that a call calls."""
    return call.partition("(")[0]


TORCH: Calls = MappingProxyType(
    {
        "celu(x, alpha)": "celu(x, alpha)",
        "celu(x)": "celu(x)",
        "elu(x, alpha)": "elu(x, alpha)",
        "elu(x)": "elu(x)",
        "gelu(x)": "gelu(x)",
        "gelu(x, approximate='tanh')": "gelu_tanh(x)",
        "glu(x)": "glu(x)",
        "glu(x, dim)": "glu(x, axis=dim)",
        "gumbel_softmax(x)": "gumbel_softmax(x, seed=seed)",
        "hardshrink(x, lambd)": "hardshrink(x, lambd)",
        "hardshrink(x)": "hardshrink(x)",
        "hardsigmoid(x)": "hard_sigmoid(x)",
        "hardswish(x)": "hard_swish(x)",
        "hardtanh(x, min_val, max_val)": "hard_tanh(x, min_val, max_val)",
        "hardtanh(x)": "hard_tanh(x)",
        "leaky_relu(x, negative_slope)": "leaky_relu(x, negative_slope)",
        "leaky_relu(x)": "leaky_relu(x)",
        "log_softmax(x, dim)": "log_softmax(x, axis=dim)",
        "logsigmoid(x)": "log_sigmoid(x)",
        "mish(x)": "mish(x)",
        "prelu(x, weight)": "prelu(x, weight)",
        "relu(x)": "relu(x)",
        "relu6(x)": "relu6(x)",
        "rrelu(x, lower, upper)": "rrelu(x, lower, upper)",
        "rrelu(x)": "rrelu(x)",
        "rrelu(x, training=True)": "rrelu(x, seed=seed)",
        "selu(x)": "selu(x)",
        "sigmoid(x)": "sigmoid(x)",
        "silu(x)": "silu(x)",
        "softmax(x, dim)": "softmax(x, axis=dim)",
        "softmin(x, dim)": "softmin(x, axis=dim)",
        "softplus(x, beta, threshold)": "softplus(x, beta, threshold)",
        "softplus(x)": "softplus(x)",
        "softshrink(x, lambd)": "softshrink(x, lambd)",
        "softshrink(x)": "softshrink(x)",
        "softsign(x)": "softsign(x)",
        "tanh(x)": "tanh(x)",
        "tanhshrink(x)": "tanhshrink(x)",
        "threshold(x, threshold, value)": "threshold(x, threshold, value)",
        # In place.
        "celu_(x)": "celu(x, out=x)",
        "elu_(x)": "elu(x, out=x)",
        "hardtanh_(x)": "hard_tanh(x, out=x)",
        "leaky_relu_(x)": "leaky_relu(x, out=x)",
        "relu_(x)": "relu(x, out=x)",
        "rrelu_(x)": "rrelu(x, out=x)",
        "selu_(x)": "selu(x, out=x)",
        "threshold_(x, threshold, value)": "threshold(x, threshold, value, out=x)",
    }
)

JAX: Calls = MappingProxyType(
    {
        "celu(x, alpha)": "celu(x, alpha)",
        "celu(x)": "celu(x)",
        "elu(x, alpha)": "elu(x, alpha)",
        "elu(x)": "elu(x)",
        "gelu(x)": "gelu_tanh(x)",
        "gelu(x, approximate=False)": "gelu(x)",
        "glu(x)": "glu(x)",
        "glu(x, axis)": "glu(x, axis=axis)",
        "hard_sigmoid(x)": "hard_sigmoid(x)",
        "hard_silu(x)": "hard_swish(x)",
        "hard_swish(x)": "hard_swish(x)",
        "hard_tanh(x)": "hard_tanh(x)",
        "identity(x)": "identity(x)",
        "leaky_relu(x, negative_slope)": "leaky_relu(x, negative_slope)",
        "leaky_relu(x)": "leaky_relu(x)",
        "log_sigmoid(x)": "log_sigmoid(x)",
        "log_softmax(x)": "log_softmax(x)",
        "log_softmax(x, axis)": "log_softmax(x, axis=axis)",
        "mish(x)": "mish(x)",
        "relu(x)": "relu(x)",
        "relu6(x)": "relu6(x)",
        "selu(x)": "selu(x)",
        "sigmoid(x)": "sigmoid(x)",
        "silu(x)": "silu(x)",
        "soft_sign(x)": "softsign(x)",
        "softmax(x)": "softmax(x)",
        "softmax(x, axis)": "softmax(x, axis=axis)",
        "softplus(x)": "softplus(x, threshold=1e30)",
        "sparse_plus(x)": "sparse_plus(x)",
        "sparse_sigmoid(x)": "sparse_sigmoid(x)",
        "squareplus(x, b)": "squareplus(x, b)",
        "squareplus(x)": "squareplus(x)",
        "swish(x)": "silu(x)",
        "tanh(x)": "tanh(x)",
    }
)

KERAS: Calls = MappingProxyType(
    {
        "celu(x, alpha)": "celu(x, alpha)",
        "celu(x)": "celu(x)",
        "elu(x, alpha)": "elu(x, alpha)",
        "elu(x)": "elu(x)",
        "exponential(x)": "exponential(x)",
        "gelu(x)": "gelu(x)",
        "gelu(x, approximate=True)": "gelu_tanh(x)",
        "glu(x)": "glu(x)",
        "glu(x, axis)": "glu(x, axis=axis)",
        "hard_shrink(x, threshold)": "hardshrink(x, threshold)",
        "hard_shrink(x)": "hardshrink(x)",
        "hard_sigmoid(x)": "hard_sigmoid(x)",
        "hard_silu(x)": "hard_swish(x)",
        "hard_swish(x)": "hard_swish(x)",
        "hard_tanh(x)": "hard_tanh(x)",
        "leaky_relu(x, negative_slope)": "leaky_relu(x, negative_slope)",
        "leaky_relu(x)": "leaky_relu(x, 0.2)",
        "linear(x)": "identity(x)",
        "log_sigmoid(x)": "log_sigmoid(x)",
        "log_softmax(x)": "log_softmax(x)",
        "log_softmax(x, axis)": "log_softmax(x, axis=axis)",
        "mish(x)": "mish(x)",
        "relu(x)": "relu(x)",
        "relu(x, negative_slope)": "leaky_relu(x, negative_slope)",
        "relu(x, max_value=max_val)": "hard_tanh(x, 0.0, max_val)",
        "relu(x, threshold=threshold)": "threshold(x, threshold, 0.0)",
        "relu6(x)": "relu6(x)",
        "selu(x)": "selu(x)",
        "sigmoid(x)": "sigmoid(x)",
        "silu(x)": "silu(x)",
        "soft_shrink(x, threshold)": "softshrink(x, threshold)",
        "soft_shrink(x)": "softshrink(x)",
        "softmax(x)": "softmax(x)",
        "softmax(x, axis)": "softmax(x, axis=axis)",
        "softplus(x)": "softplus(x, threshold=1e30)",
        "softsign(x)": "softsign(x)",
        "sparse_plus(x)": "sparse_plus(x)",
        "sparse_sigmoid(x)": "sparse_sigmoid(x)",
        # That of Martins, Astudillo, ICML 2016. Keras 3.15 errs: its rows do not sum to 1.
        "sparsemax(x)": "sparsemax(x)",
        "sparsemax(x, axis)": "sparsemax(x, axis=axis)",
        "squareplus(x, b)": "squareplus(x, b)",
        "squareplus(x)": "squareplus(x)",
        "swish(x)": "silu(x)",
        "tanh(x)": "tanh(x)",
        "tanh_shrink(x)": "tanhshrink(x)",
        "threshold(x, threshold, value)": "threshold(x, threshold, value)",
    }
)

TIMM: Calls = MappingProxyType(
    {
        "gelu(x)": "gelu(x)",
        "gelu_tanh(x)": "gelu_tanh(x)",
        "hard_mish(x)": "hard_mish(x)",
        "hard_sigmoid(x)": "hard_sigmoid(x)",
        "hard_swish(x)": "hard_swish(x)",
        "mish(x)": "mish(x)",
        "quick_gelu(x)": "quick_gelu(x)",
        "sigmoid(x)": "sigmoid(x)",
        "swish(x)": "silu(x)",
        "tanh(x)": "tanh(x)",
    }
)
"""Beside these, timm's create_act knows the functions of torch.nn.functional."""

LIGER: Calls = MappingProxyType(
    {
        # a_b holds a and b beside each other along its last axis.
        "liger_geglu(a, b)": "geglu_tanh(a_b)",
        "liger_relu_squared(x)": "squared_relu(x)",
        "liger_softmax(x)": "softmax(x)",
        "liger_sparsemax(x)": "sparsemax(x)",
        "liger_sparsemax(x, dim)": "sparsemax(x, axis=dim)",
        "liger_swiglu(a, b)": "swiglu(a_b)",
    }
)

_HE_GAIN = "gain=(2 / (1 + a**2)) ** 0.5"

TORCH_INITIALIZERS: Calls = MappingProxyType(
    {
        "constant_(w, val)": "constant(shape, value=val)",
        "dirac_(w)": "dirac(shape)",
        "dirac_(w, groups)": "dirac(shape, groups=groups)",
        "eye_(w)": "eye(shape)",
        "kaiming_normal_(w)": "he_normal(shape, seed=seed)",
        "kaiming_normal_(w, a, mode)": f"he_normal(shape, seed=seed, {_HE_GAIN}, mode=mode)",
        "kaiming_normal_(w, nonlinearity='relu')": "he_normal(shape, seed=seed)",
        "kaiming_normal_(w, nonlinearity='linear')": "lecun_normal(shape, seed=seed)",
        "kaiming_normal_(w, nonlinearity='selu')": "lecun_normal(shape, seed=seed, gain=3 / 4)",
        "kaiming_normal_(w, nonlinearity='sigmoid')": "lecun_normal(shape, seed=seed)",
        "kaiming_normal_(w, nonlinearity='tanh')": "lecun_normal(shape, seed=seed, gain=5 / 3)",
        "kaiming_uniform_(w)": "he_uniform(shape, seed=seed)",
        "kaiming_uniform_(w, a, mode)": f"he_uniform(shape, seed=seed, {_HE_GAIN}, mode=mode)",
        "kaiming_uniform_(w, nonlinearity='relu')": "he_uniform(shape, seed=seed)",
        "kaiming_uniform_(w, nonlinearity='linear')": "lecun_uniform(shape, seed=seed)",
        "kaiming_uniform_(w, nonlinearity='selu')": "lecun_uniform(shape, seed=seed, gain=3 / 4)",
        "kaiming_uniform_(w, nonlinearity='sigmoid')": "lecun_uniform(shape, seed=seed)",
        "kaiming_uniform_(w, nonlinearity='tanh')": "lecun_uniform(shape, seed=seed, gain=5 / 3)",
        # What torch.nn.Linear and the convolutions use.
        "kaiming_uniform_(w, a=5**0.5)": "uniform_fan_in(shape, seed=seed)",
        "normal_(w)": "normal(shape, seed=seed)",
        "normal_(w, mean, std)": "normal(shape, seed=seed, mean=mean, std=std)",
        "ones_(w)": "ones(shape)",
        "orthogonal_(w)": "orthogonal(shape, seed=seed)",
        "orthogonal_(w, gain)": "orthogonal(shape, seed=seed, gain=gain)",
        "sparse_(w, sparsity)": "sparse(shape, seed=seed, sparsity=sparsity)",
        "sparse_(w, sparsity, std)": "sparse(shape, seed=seed, sparsity=sparsity, std=std)",
        "trunc_normal_(w)": "trunc_normal(shape, seed=seed)",
        "trunc_normal_(w, mean, std, a, b)": "trunc_normal(shape, seed=seed, mean=mean, std=std, a=a, b=b)",
        "uniform_(w)": "uniform(shape, seed=seed)",
        "uniform_(w, a, b)": "uniform(shape, seed=seed, low=a, high=b)",
        "xavier_normal_(w)": "xavier_normal(shape, seed=seed)",
        "xavier_normal_(w, gain)": "xavier_normal(shape, seed=seed, gain=gain)",
        "xavier_uniform_(w)": "xavier_uniform(shape, seed=seed)",
        "xavier_uniform_(w, gain)": "xavier_uniform(shape, seed=seed, gain=gain)",
        "zeros_(w)": "zeros(shape)",
    }
)

JAX_INITIALIZERS: Calls = MappingProxyType(
    {
        "constant(value)(key, shape)": "constant(shape, value=value)",
        "delta_orthogonal()(key, shape)": "delta_orthogonal(shape, seed=seed)",
        "delta_orthogonal(scale)(key, shape)": "delta_orthogonal(shape, seed=seed, gain=scale)",
        "glorot_normal()(key, shape)": "xavier_truncated_normal(shape, seed=seed)",
        "glorot_uniform()(key, shape)": "xavier_uniform(shape, seed=seed)",
        "he_normal()(key, shape)": "he_truncated_normal(shape, seed=seed)",
        "he_uniform()(key, shape)": "he_uniform(shape, seed=seed)",
        "kaiming_normal()(key, shape)": "he_truncated_normal(shape, seed=seed)",
        "kaiming_uniform()(key, shape)": "he_uniform(shape, seed=seed)",
        "lecun_normal()(key, shape)": "lecun_truncated_normal(shape, seed=seed)",
        "lecun_uniform()(key, shape)": "lecun_uniform(shape, seed=seed)",
        "normal()(key, shape)": "normal(shape, seed=seed, std=0.01)",
        "normal(stddev)(key, shape)": "normal(shape, seed=seed, std=stddev)",
        "ones(key, shape)": "ones(shape)",
        "orthogonal()(key, shape)": "orthogonal(shape, seed=seed)",
        "orthogonal(scale)(key, shape)": "orthogonal(shape, seed=seed, gain=scale)",
        "truncated_normal()(key, shape)": "trunc_normal(shape, seed=seed, std=0.01, a=-0.02, b=0.02)",
        "truncated_normal(stddev, lower=lower, upper=upper)(key, shape)": (
            "trunc_normal(shape, seed=seed, std=stddev, a=lower * stddev, b=upper * stddev)"
        ),
        "uniform()(key, shape)": "uniform(shape, seed=seed, high=0.01)",
        "uniform(scale)(key, shape)": "uniform(shape, seed=seed, high=scale)",
        "variance_scaling(scale, mode, distribution)(key, shape)": (
            "variance_scaling(shape, seed=seed, scale=scale, mode=mode, distribution=distribution)"
        ),
        "xavier_normal()(key, shape)": "xavier_truncated_normal(shape, seed=seed)",
        "xavier_uniform()(key, shape)": "xavier_uniform(shape, seed=seed)",
        "zeros(key, shape)": "zeros(shape)",
    }
)

_KERAS_CLASSES: Calls = MappingProxyType(
    {
        "Constant()(shape)": "constant(shape, value=0.0)",
        "Constant(value)(shape)": "constant(shape, value=value)",
        "GlorotNormal()(shape)": "xavier_truncated_normal(shape, seed=seed)",
        "GlorotUniform()(shape)": "xavier_uniform(shape, seed=seed)",
        "HeNormal()(shape)": "he_truncated_normal(shape, seed=seed)",
        "HeUniform()(shape)": "he_uniform(shape, seed=seed)",
        "Identity()(shape)": "eye(shape)",
        "Identity(gain)(shape)": "eye(shape, gain=gain)",
        "LecunNormal()(shape)": "lecun_truncated_normal(shape, seed=seed)",
        "LecunUniform()(shape)": "lecun_uniform(shape, seed=seed)",
        "Ones()(shape)": "ones(shape)",
        "Orthogonal()(shape)": "orthogonal(shape, seed=seed)",
        "Orthogonal(gain)(shape)": "orthogonal(shape, seed=seed, gain=gain)",
        "RandomNormal()(shape)": "normal(shape, seed=seed, std=0.05)",
        "RandomNormal(mean, stddev)(shape)": "normal(shape, seed=seed, mean=mean, std=stddev)",
        "RandomUniform()(shape)": "uniform(shape, seed=seed, low=-0.05, high=0.05)",
        "RandomUniform(minval, maxval)(shape)": "uniform(shape, seed=seed, low=minval, high=maxval)",
        "TruncatedNormal()(shape)": "trunc_normal(shape, seed=seed, std=0.05, a=-0.1, b=0.1)",
        "TruncatedNormal(mean, stddev)(shape)": (
            "trunc_normal(shape, seed=seed, mean=mean, std=stddev, a=mean - 2 * stddev, b=mean + 2 * stddev)"
        ),
        "VarianceScaling()(shape)": "variance_scaling(shape, seed=seed)",
        "VarianceScaling(scale, mode)(shape)": "variance_scaling(shape, seed=seed, scale=scale, mode=mode)",
        "VarianceScaling(scale, mode, distribution='untruncated_normal')(shape)": (
            "variance_scaling(shape, seed=seed, scale=scale, mode=mode, distribution='normal')"
        ),
        "VarianceScaling(scale, mode, distribution='uniform')(shape)": (
            "variance_scaling(shape, seed=seed, scale=scale, mode=mode, distribution='uniform')"
        ),
        "Zeros()(shape)": "zeros(shape)",
    }
)

_KERAS_ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Constant": ("constant",),
        "GlorotNormal": ("glorot_normal",),
        "GlorotUniform": ("glorot_uniform",),
        "HeNormal": ("he_normal",),
        "HeUniform": ("he_uniform",),
        "Identity": ("identity", "IdentityInitializer"),
        "LecunNormal": ("lecun_normal",),
        "LecunUniform": ("lecun_uniform",),
        "Ones": ("ones",),
        "Orthogonal": ("orthogonal", "OrthogonalInitializer"),
        "RandomNormal": ("random_normal",),
        "RandomUniform": ("random_uniform",),
        "TruncatedNormal": ("truncated_normal",),
        "VarianceScaling": ("variance_scaling",),
        "Zeros": ("zeros",),
    }
)

KERAS_INITIALIZERS: Calls = MappingProxyType(
    {
        name + theirs.removeprefix(function_of(theirs)): ours
        for theirs, ours in _KERAS_CLASSES.items()
        for name in (function_of(theirs), *_KERAS_ALIASES[function_of(theirs)])
    }
)
"""Keras has each class under a second name, and some under a third."""

ACTIVATIONS: Mapping[str, Calls] = MappingProxyType(
    {
        "torch.nn.functional": TORCH,
        "jax.nn": JAX,
        "keras.activations": KERAS,
        "timm.layers.activations": TIMM,
        "liger_kernel.transformers.functional": LIGER,
    }
)
"""Their activation functions and ours, by library."""

INITIALIZERS: Mapping[str, Calls] = MappingProxyType(
    {
        "torch.nn.init": TORCH_INITIALIZERS,
        "jax.nn.initializers": JAX_INITIALIZERS,
        "keras.initializers": KERAS_INITIALIZERS,
    }
)
"""Their initializers and ours, by library."""

LIBRARIES: Mapping[str, Calls] = MappingProxyType({**ACTIVATIONS, **INITIALIZERS})
"""Their calls and ours, by library."""

_RANKS = "Keras (3.15.1) sums the ranks of the support where the algorithm counts them: its rows do not sum to 1"
ERRING: Mapping[tuple[str, str], str] = MappingProxyType(
    {("keras.activations", "sparsemax(x)"): _RANKS, ("keras.activations", "sparsemax(x, axis)"): _RANKS}
)
"""Calls of theirs, by library, that give other values than the function of that name has; and why."""
