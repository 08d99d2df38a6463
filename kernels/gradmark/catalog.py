"""THE TABLE: one row an operation, and everything about it that is not an implementation.

Tests, benchmarks, the verify table, the chooser and the documentation are derived from these rows;
none keeps a list of its own. Only the standard library is imported here, because the benchmark suite
reads this file from the working tree, by path, whatever version of gradmark is installed.

A formula is a Python expression. `gradmark.verification` evaluates it in mpmath with hundreds of
digits, so formula and reference cannot drift apart. Its names are mpmath's (exp, tanh, erfc, sqrt, pi)
and the operation's own: `x`, and the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Pass = Literal["forward", "backward"]

FORWARD: Pass = "forward"
BACKWARD: Pass = "backward"
PASSES: tuple[Pass, ...] = (FORWARD, BACKWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of an operation, beside its arrays."""

    name: str
    default: float | None
    """The default; None means that the caller must give it."""
    learnable: bool = False
    """Learnable: a number, or an array of shape (), (1,) or (channels,); backward gives its gradient."""
    partial: str | None = None
    """Of a learnable parameter: the derivative of y with respect to it, as an expression."""
    samples: tuple[float, ...] = ()
    """Values at which the tests evaluate it, beside the default."""
    doc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """A place where one backend, for a stated reason, keeps less than the row's contract.

    A test proves that the deviation still exists: one that has gone must be deleted.
    """

    backend: str
    operation_pass: Pass
    floor: str | None = None
    """Errors count in ULP of max(|result|, floor); an expression in x, g and the parameters."""
    infinities: bool = False
    """The backend gives NaN or infinity at an x that is infinite or so large that an intermediate overflows."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An elementwise activation y = f(x) and its backward pass dx = g f'(x)."""

    name: str
    formula: str
    derivative: str
    source: str
    parameters: tuple[Parameter, ...] = ()
    kinks: tuple[float, ...] = ()
    """Points where a piecewise definition switches. There, and for NaN, `derivative` says which branch."""
    signed_zero: bool = True
    """f(-0.0) is a zero whose sign the contract fixes (that of the formula's limit)."""
    ulp: Mapping[Pass, float] = field(default_factory=lambda: MappingProxyType({FORWARD: 4.0, BACKWARD: 8.0}))
    """Largest error in ULP in float32 and float64. Backward counts in ULP of max(|dx|, |g|/64).

    Where a derivative crosses zero as a difference of two terms (gelu near x = -0.75), an error of one ULP in a term
    is up to 32 ULP of |g|/64: that is what the larger bounds are.
    """
    deviations: tuple[Deviation, ...] = ()
    saved: tuple[str, ...] = ("x",)
    """What backward needs from the forward pass."""
    peer: str
    """The same function in PyTorch, an expression in torch, F = torch.nn.functional, x and the parameters.

    The tests differentiate it by autograd.
    """
    version: int = 1
    """Raise it when a benchmark's meaning changes: asv then starts a new line in its history."""

    family: Literal["activations"] = "activations"

    @property
    def learnable(self) -> tuple[Parameter, ...]:
        """The parameters whose gradients backward returns, in order."""
        return tuple(p for p in self.parameters if p.learnable)

    def deviation(self, backend: str, operation_pass: Pass) -> Deviation | None:
        """The deviation of `backend` in this pass, or None."""
        for deviation in self.deviations:
            if (deviation.backend, deviation.operation_pass) == (backend, operation_pass):
                return deviation
        return None


Distribution = Literal["uniform", "normal", "orthogonal", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Initializer:
    """An initializer: shape and seed in, weights out. Shapes are PyTorch's (out, in, *kernel)."""

    name: str
    formula: str
    source: str
    distribution: Distribution
    parameters: tuple[Parameter, ...] = ()
    of: str | None = None
    """The initializer that this one is a named case of; it has no implementation of its own."""
    arguments: Callable[..., Mapping[str, float]] | None = None
    """(fan_in, fan_out, **parameters) -> the arguments of `of`."""
    peer: str
    """The function of torch.nn.init with the same distribution."""
    version: int = 1

    family: Literal["initializers"] = "initializers"

    @property
    def seeded(self) -> bool:
        """Whether the weights are random, so that a seed is required."""
        return self.distribution != "fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stabilizer:
    """A remedy for gradients that vanish or explode. Signatures are Python's, spelled out."""

    name: str
    formula: str
    source: str
    forward: str
    """The signature of the forward function."""
    returns: tuple[str, ...]
    """Names of the forward results."""
    backward: str
    """The signature of the backward function."""
    gradients: tuple[str, ...]
    """Names of the backward results."""
    ulp: Mapping[Pass, float]
    """Largest error in ULP of the scale that the tests state (sums: the sum of magnitudes)."""
    peer: str
    version: int = 1

    family: Literal["stabilizers"] = "stabilizers"


Operation = Activation | Initializer | Stabilizer

_ATEN_ERF = "ATen computes 1 + erf, which cancels for x < 0: the error is relative to |x|"
_ATEN_TANH = "ATen computes 1 + tanh, which cancels for x < 0: the error is relative to |x|"
_ATEN_SIGMOID = "ATen divides by 1 + exp(-x), which overflows where the result has just become subnormal"
_ATEN_SILU_LIMIT = "ATen computes s (1 + x (1 - s)) with a rounded 1 - s, and inf · 0 at an infinite x"
_ATEN_OUTPUT = "ATen derives from the rounded y, so that 1 - y cancels: the error is relative to |g|"
_ATEN_SWISH = "the gate is ATen's sigmoid of a rounded beta x"


ACTIVATIONS: tuple[Activation, ...] = (
    Activation(
        name="sigmoid",
        formula="1 / (1 + exp(-x))",
        derivative="1 / (2 + exp(x) + exp(-x))",
        source="LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998",
        deviations=(
            Deviation(backend="torch", operation_pass=FORWARD, floor="tiny / eps", reason=_ATEN_SIGMOID),
            Deviation(backend="torch", operation_pass=BACKWARD, floor="abs(g)", reason=_ATEN_OUTPUT),
        ),
        peer="torch.sigmoid(x)",
    ),
    Activation(
        name="tanh",
        formula="tanh(x)",
        derivative="sech(x) ** 2",
        source="LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998",
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, floor="abs(g)", reason=_ATEN_OUTPUT),),
        peer="torch.tanh(x)",
    ),
    Activation(
        name="relu",
        formula="0 if x < 0 else x",
        derivative="0 if x <= 0 else 1",
        source="Nair, Hinton, ICML 2010",
        kinks=(0.0,),
        signed_zero=False,
        ulp=MappingProxyType({FORWARD: 0.0, BACKWARD: 0.0}),
        peer="F.relu(x)",
    ),
    Activation(
        name="leaky_relu",
        formula="x if x > 0 else negative_slope * x",
        derivative="1 if x > 0 else negative_slope",
        source="Maas, Hannun, Ng, ICML 2013",
        parameters=(
            Parameter(
                name="negative_slope",
                default=0.01,
                samples=(0.2,),
                doc="slope for x <= 0; the default is PyTorch's and JAX's (Keras: 0.3)",
            ),
        ),
        kinks=(0.0,),
        ulp=MappingProxyType({FORWARD: 1.0, BACKWARD: 1.0}),
        peer="F.leaky_relu(x, negative_slope)",
    ),
    Activation(
        name="prelu",
        formula="x if x > 0 else alpha * x",
        derivative="1 if x > 0 else alpha",
        source="He, Zhang, Ren, Sun, ICCV 2015, eq. 1",
        parameters=(
            Parameter(
                name="alpha",
                default=0.25,
                learnable=True,
                partial="0 if x > 0 else x",
                samples=(-0.5,),
                doc="slope for x <= 0, one or one per channel; the default is that of torch.nn.PReLU",
            ),
        ),
        kinks=(0.0,),
        ulp=MappingProxyType({FORWARD: 1.0, BACKWARD: 1.0}),
        peer="F.prelu(x, alpha)",
    ),
    Activation(
        name="elu",
        formula="x if x > 0 else alpha * expm1(x)",
        derivative="alpha * exp(x) if x <= 0 else 1",
        source="Clevert, Unterthiner, Hochreiter, ICLR 2016",
        parameters=(Parameter(name="alpha", default=1.0, samples=(0.5,), doc="scale for x <= 0"),),
        kinks=(0.0,),
        peer="F.elu(x, alpha)",
    ),
    Activation(
        name="gelu",
        formula="x * erfc(-x / sqrt(2)) / 2",
        derivative="erfc(-x / sqrt(2)) / 2 + x * exp(-x * x / 2) / sqrt(2 * pi)",
        source="Hendrycks, Gimpel, arXiv:1606.08415, x Φ(x)",
        ulp=MappingProxyType({FORWARD: 8.0, BACKWARD: 128.0}),
        deviations=(
            Deviation(backend="torch", operation_pass=FORWARD, floor="abs(x)", infinities=True, reason=_ATEN_ERF),
            Deviation(backend="torch", operation_pass=BACKWARD, floor="abs(g)", infinities=True, reason=_ATEN_ERF),
        ),
        peer="F.gelu(x)",
    ),
    Activation(
        name="gelu_tanh",
        formula="x / (1 + exp(-2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3)))",
        derivative=(
            "1 / (1 + exp(-2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3)))"
            " + x * 2 * sqrt(2 / pi) * (1 + 3 * 0.044715 * x ** 2)"
            " / (2 + exp(2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3))"
            " + exp(-2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3)))"
        ),
        source="Hendrycks, Gimpel, arXiv:1606.08415, the tanh approximation: (1 + tanh(z)) / 2 = 1 / (1 + exp(-2z))",
        ulp=MappingProxyType({FORWARD: 6.0, BACKWARD: 64.0}),
        deviations=(
            Deviation(backend="torch", operation_pass=FORWARD, floor="abs(x)", infinities=True, reason=_ATEN_TANH),
            Deviation(
                backend="torch",
                operation_pass=BACKWARD,
                floor="abs(g) * (1 + abs(x))",
                infinities=True,
                reason=_ATEN_TANH,
            ),
        ),
        peer="F.gelu(x, approximate='tanh')",
    ),
    Activation(
        name="swish",
        formula="x / (1 + exp(-beta * x))",
        derivative="1 / (1 + exp(-beta * x)) + beta * x / (2 + exp(beta * x) + exp(-beta * x))",
        source="Ramachandran, Zoph, Le, arXiv:1710.05941, eq. 1",
        parameters=(
            Parameter(
                name="beta",
                default=1.0,
                learnable=True,
                partial="x ** 2 / (2 + exp(beta * x) + exp(-beta * x))",
                samples=(1.702, -0.5),
                doc="slope of the gate, one or one per channel; beta = 1 is SiLU, beta = 1.702 the quick GELU",
            ),
        ),
        ulp=MappingProxyType({FORWARD: 4.0, BACKWARD: 48.0}),
        deviations=(
            Deviation(
                backend="torch",
                operation_pass=FORWARD,
                floor="max(abs(y) * (1 + abs(beta * x)), 128 * tiny / eps)",
                reason=_ATEN_SWISH,
            ),
        ),
        peer="x * torch.sigmoid(beta * x)",
    ),
    Activation(
        name="silu",
        formula="x / (1 + exp(-x))",
        derivative="1 / (1 + exp(-x)) + x / (2 + exp(x) + exp(-x))",
        source="Elfwing, Uchibe, Doya, arXiv:1702.03118",
        ulp=MappingProxyType({FORWARD: 4.0, BACKWARD: 48.0}),
        deviations=(
            Deviation(
                backend="torch", operation_pass=FORWARD, floor="128 * tiny / eps", infinities=True, reason=_ATEN_SIGMOID
            ),
            Deviation(
                backend="torch",
                operation_pass=BACKWARD,
                floor="abs(g) * (1 + abs(x))",
                infinities=True,
                reason=_ATEN_SILU_LIMIT,
            ),
        ),
        peer="F.silu(x)",
    ),
)

_GAIN = Parameter(name="gain", default=1.0, samples=(1.1,), doc="factor on the standard deviation")
_HE_GAIN = Parameter(
    name="gain", default=math.sqrt(2.0), samples=(1.0,), doc="factor on the standard deviation; √2 for ReLU"
)


def _symmetric(bound: float) -> Mapping[str, float]:
    return {"low": -bound, "high": bound}


def _centred(std: float) -> Mapping[str, float]:
    return {"mean": 0.0, "std": std}


INITIALIZERS: tuple[Initializer, ...] = (
    Initializer(
        name="uniform",
        formula="U(low, high)",
        source="the distribution itself",
        distribution="uniform",
        parameters=(
            Parameter(name="low", default=0.0, samples=(-0.3,), doc="lower bound"),
            Parameter(name="high", default=1.0, samples=(0.7,), doc="upper bound, above low"),
        ),
        peer="torch.nn.init.uniform_",
    ),
    Initializer(
        name="normal",
        formula="N(mean, std²)",
        source="Box, Muller, Ann. Math. Stat. 29, 1958",
        distribution="normal",
        parameters=(
            Parameter(name="mean", default=0.0, samples=(0.5,), doc="mean"),
            Parameter(name="std", default=1.0, samples=(0.1,), doc="standard deviation, not negative"),
        ),
        peer="torch.nn.init.normal_",
    ),
    Initializer(
        name="uniform_fan_in",
        formula="U(-b, b), b = gain / √fan_in",
        source="LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998; the default of torch.nn.Linear",
        distribution="uniform",
        parameters=(_GAIN,),
        of="uniform",
        arguments=lambda fan_in, fan_out, gain: _symmetric(gain / math.sqrt(fan_in)),
        peer="torch.nn.init.kaiming_uniform_",
    ),
    Initializer(
        name="xavier_uniform",
        formula="U(-b, b), b = gain √(6 / (fan_in + fan_out))",
        source="Glorot, Bengio, AISTATS 2010, eq. 16",
        distribution="uniform",
        parameters=(_GAIN,),
        of="uniform",
        arguments=lambda fan_in, fan_out, gain: _symmetric(gain * math.sqrt(6.0 / (fan_in + fan_out))),
        peer="torch.nn.init.xavier_uniform_",
    ),
    Initializer(
        name="xavier_normal",
        formula="N(0, σ²), σ = gain √(2 / (fan_in + fan_out))",
        source="Glorot, Bengio, AISTATS 2010, eq. 12",
        distribution="normal",
        parameters=(_GAIN,),
        of="normal",
        arguments=lambda fan_in, fan_out, gain: _centred(gain * math.sqrt(2.0 / (fan_in + fan_out))),
        peer="torch.nn.init.xavier_normal_",
    ),
    Initializer(
        name="he_uniform",
        formula="U(-b, b), b = gain √(3 / fan_in)",
        source="He, Zhang, Ren, Sun, ICCV 2015, eq. 10",
        distribution="uniform",
        parameters=(_HE_GAIN,),
        of="uniform",
        arguments=lambda fan_in, fan_out, gain: _symmetric(gain * math.sqrt(3.0 / fan_in)),
        peer="torch.nn.init.kaiming_uniform_",
    ),
    Initializer(
        name="he_normal",
        formula="N(0, σ²), σ = gain / √fan_in",
        source="He, Zhang, Ren, Sun, ICCV 2015, eq. 10",
        distribution="normal",
        parameters=(_HE_GAIN,),
        of="normal",
        arguments=lambda fan_in, fan_out, gain: _centred(gain / math.sqrt(fan_in)),
        peer="torch.nn.init.kaiming_normal_",
    ),
    Initializer(
        name="orthogonal",
        formula="gain Q, QR = Z with Z ~ N(0, 1) and diag(R) > 0: Q is Haar",
        source="Saxe, McClelland, Ganguli, ICLR 2014; Mezzadri, Notices AMS 54, 2007 (signs)",
        distribution="orthogonal",
        parameters=(_GAIN,),
        peer="torch.nn.init.orthogonal_",
    ),
    Initializer(
        name="constant",
        formula="value",
        source="the definition",
        distribution="fixed",
        parameters=(Parameter(name="value", default=None, samples=(0.5,), doc="the value of every element"),),
        peer="torch.nn.init.constant_",
    ),
    Initializer(
        name="zeros",
        formula="0",
        source="the definition",
        distribution="fixed",
        of="constant",
        arguments=lambda fan_in, fan_out: {"value": 0.0},
        peer="torch.nn.init.zeros_",
    ),
    Initializer(
        name="identity",
        formula="gain I (rows × columns)",
        source="Le, Jaitly, Hinton, arXiv:1504.00941",
        distribution="fixed",
        parameters=(_GAIN,),
        peer="torch.nn.init.eye_",
    ),
)

STABILIZERS: tuple[Stabilizer, ...] = (
    Stabilizer(
        name="batch_norm",
        formula="y = (x - mean) invstd weight + bias, with the batch's mean and biased variance, per channel (axis 1)",
        source="Ioffe, Szegedy, ICML 2015, algorithm 1",
        forward="(x, weight, bias, running_mean, running_var, *, momentum=0.1, eps=1e-05, out=None)",
        returns=("y", "mean", "invstd", "running_mean", "running_var"),
        backward="(grad, x, weight, mean, invstd, *, out=None)",
        gradients=("dx", "dweight", "dbias"),
        ulp=MappingProxyType({FORWARD: 16.0, BACKWARD: 32.0}),
        peer="torch.nn.functional.batch_norm(training=True)",
    ),
    Stabilizer(
        name="batch_norm_inference",
        formula="y = (x - running_mean) / √(running_var + eps) weight + bias, per channel (axis 1)",
        source="Ioffe, Szegedy, ICML 2015, algorithm 2",
        forward="(x, weight, bias, running_mean, running_var, *, eps=1e-05, out=None)",
        returns=("y",),
        backward="(grad, x, weight, running_mean, running_var, *, eps=1e-05, out=None)",
        gradients=("dx", "dweight", "dbias"),
        ulp=MappingProxyType({FORWARD: 16.0, BACKWARD: 32.0}),
        peer="torch.nn.functional.batch_norm(training=False)",
    ),
    Stabilizer(
        name="clip_grad_norm",
        formula="y_i = g_i min(1, max_norm / (n + 1e-6)), n = √Σ g_i² over all arrays",
        source="Pascanu, Mikolov, Bengio, ICML 2013; 1e-6 as in torch.nn.utils.clip_grad_norm_",
        forward="(grads, max_norm, *, out=None)",
        returns=("clipped", "total_norm"),
        backward="(cotangents, grads, max_norm, *, out=None)",
        gradients=("dgrads",),
        ulp=MappingProxyType({FORWARD: 8.0, BACKWARD: 16.0}),
        peer="torch.nn.utils.clip_grad_norm_",
    ),
    Stabilizer(
        name="clip_grad_value",
        formula="y_i = min(max(g_i, -clip_value), clip_value)",
        source="Mikolov, PhD thesis, Brno 2012, section 3.3",
        forward="(grads, clip_value, *, out=None)",
        returns=("clipped",),
        backward="(cotangents, grads, clip_value, *, out=None)",
        gradients=("dgrads",),
        ulp=MappingProxyType({FORWARD: 0.0, BACKWARD: 0.0}),
        peer="torch.nn.utils.clip_grad_value_",
    ),
    Stabilizer(
        name="residual_add",
        formula="y = activation(x + f)",
        source="He, Zhang, Ren, Sun, CVPR 2016, eq. 1",
        forward="(x, f, *, activation=None, out=None)",
        returns=("y",),
        backward="(grad, x, f, *, activation=None, out=None)",
        gradients=("d",),
        ulp=MappingProxyType({FORWARD: 4.0, BACKWARD: 8.0}),
        peer="activation(x + f)",
    ),
)

_ROWS: tuple[Operation, ...] = (*ACTIVATIONS, *INITIALIZERS, *STABILIZERS)
OPERATIONS: Mapping[str, Operation] = MappingProxyType({row.name: row for row in _ROWS})
FAMILIES: tuple[str, ...] = ("activations", "initializers", "stabilizers")


def operation(name: str) -> Operation:
    """The row of the operation called `name`.

    Raises
    ------
    LookupError
        No operation has this name; the message lists those that exist.
    """
    try:
        return OPERATIONS[name]
    except (KeyError, TypeError):
        known = ", ".join(OPERATIONS)
        raise LookupError(f"unknown operation {name!r}; known operations: {known}") from None


def backward_of(name: str) -> str:
    """The name of the backward function of the operation called `name`."""
    return f"{name}_backward"
