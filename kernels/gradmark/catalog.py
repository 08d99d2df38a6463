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
from collections.abc import Callable, Iterable, Mapping
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
    compared: bool = False
    """Only compared with, in float32 for half precision: so it may exceed the range of x's dtype there."""
    doc: str

    @property
    def usual(self) -> float:
        """The default; the first sample where the caller must give the value."""
        return self.samples[0] if self.default is None else self.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An option of an operation that is one of a few words."""

    name: str
    default: str
    words: tuple[str, ...]
    """The words that are accepted; the tests call the operation with each."""
    doc: str

    @property
    def usual(self) -> str:
        """The default."""
        return self.default

    @property
    def samples(self) -> tuple[str, ...]:
        """The other words."""
        return tuple(word for word in self.words if word != self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """An option of an operation that is a number of things, 1 or more."""

    name: str
    default: int
    samples: tuple[int, ...]
    """Values at which the tests call the operation, beside the default."""
    doc: str

    @property
    def usual(self) -> int:
        """The default."""
        return self.default


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
    overflow: bool = False
    """Where the derivative overflows, so does the result, though its product with the gradient may be finite."""
    nan: bool = False
    """Where x is NaN, the backend's derivative is that of another branch."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An elementwise activation y = f(x) and its backward pass dx = g f'(x)."""

    name: str
    formula: str
    derivative: str
    source: str
    parameters: tuple[Parameter, ...] = ()
    requires: tuple[str, ...] = ()
    """What must hold of the parameters, as expressions; a call where one does not is a ValueError."""
    conventions: str = ""
    """Where libraries disagree: whose the default is, and how to get the others."""
    seeded: bool = False
    """With `seed=` each element x <= 0 gets a slope of its own, uniform between `lower` and `upper` (training)."""
    kinks: tuple[float, ...] = ()
    """Points where a piecewise definition switches. There, and for NaN, `derivative` says which branch."""
    signed_zero: bool = True
    """f(-0.0) is a zero whose sign the contract fixes (that of the formula's limit)."""
    ulp: Mapping[Pass, float] = field(default_factory=lambda: MappingProxyType({FORWARD: 2.0, BACKWARD: 4.0}))
    """Largest error in ULP in float32 and float64. Backward counts in ULP of max(|dx|, |g|/64): a zero of the
    derivative is a difference of two terms, and is judged on the scale of the gradient."""
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

    @property
    def required(self) -> tuple[Parameter, ...]:
        """The parameters that have no default, in order; they come first."""
        return tuple(p for p in self.parameters if p.default is None)

    def unmet(self, values: Iterable[float]) -> str | None:
        """The first of `requires` that does not hold of the parameters' values, or None."""
        names = {p.name: value for p, value in zip(self.parameters, values, strict=True)}
        return next((text for text in self.requires if not eval(text, names)), None)

    def deviation(self, backend: str, operation_pass: Pass) -> Deviation | None:
        """The deviation of `backend` in this pass, or None."""
        for deviation in self.deviations:
            if (deviation.backend, deviation.operation_pass) == (backend, operation_pass):
                return deviation
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """A gated unit y = f(a) b, where a (the gate) and b (the value) are the two halves of x along an axis.

    da = g b f'(a) and db = g f(a); both come from x, nothing else is saved.
    """

    name: str
    gate: str
    """f, one of the activations without parameters. Its formula and derivative are the reference."""
    gate_last: bool
    """The default of `gate_last`: whether the gate is the second half of x."""
    source: str
    conventions: str
    """Whose order of the halves the default is, and who has the other."""
    ulp: Mapping[Pass, float]
    """Largest error in ULP in float32 and float64. In da it counts in ULP of max(|da|, |g b|/64)."""
    saved: tuple[str, ...] = ("x",)
    """What backward needs from the forward pass."""
    peer: str
    """The same function in PyTorch, an expression in torch, F = torch.nn.functional, a and b."""
    version: int = 1

    family: Literal["gated"] = "gated"

    @property
    def activation(self) -> Activation:
        """The row of f. Where a backend deviates in f or f', it deviates here by as much times |b| or |g|."""
        return next(row for row in ACTIVATIONS if row.name == self.gate)

    @property
    def formula(self) -> str:
        """y, as an expression in a and b."""
        return f"{self.gate}(a) * b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rowwise:
    """A function of all elements along an axis: of each row, where the axis is the last.

    Formula, gradient and scales are expressions in vectors, of one row: x, y, g, the noise n, and the parameters;
    `descending` sorts, `ranks` counts from 1. A row that holds NaN or +inf, or nothing but -inf, gives NaN.
    """

    name: str
    formula: str
    gradient: str
    """dx in g and in what is saved."""
    source: str
    parameters: tuple[Parameter, ...] = ()
    requires: tuple[str, ...] = ()
    """What must hold of the parameters, as expressions; a call where one does not is a ValueError."""
    conventions: str = ""
    """Where libraries disagree: whose the default is, and how to get the others."""
    seeded: bool = False
    """Noise n from `seed=`, drawn again in backward; with `hard=True`, y is 1 at the largest element and 0 elsewhere,
    and the gradient is that of the row (straight-through)."""
    saved: tuple[str, ...] = ("y",)
    """What backward needs from the forward pass: y or x."""
    ulp: Mapping[Pass, float]
    """Largest error in float32 and float64, in ULP of max(|result|, scale)."""
    scales: Mapping[Pass, str]
    """The scale of the errors. Where the result is a difference: the magnitudes that are subtracted."""
    deviations: tuple[Deviation, ...] = ()
    peer: str
    """The same function in PyTorch, an expression in torch, F = torch.nn.functional, x, axis, n and the parameters."""
    version: int = 1

    family: Literal["rowwise"] = "rowwise"

    def deviation(self, backend: str, operation_pass: Pass) -> Deviation | None:
        """The deviation of `backend` in this pass, or None."""
        for deviation in self.deviations:
            if (deviation.backend, deviation.operation_pass) == (backend, operation_pass):
                return deviation
        return None


MOST_DIMENSIONS = 64
"""What NumPy 2 and PyTorch allow."""

Distribution = Literal["uniform", "normal", "truncated", "chosen", "sparse", "orthogonal", "fixed"]
"""What is drawn. "chosen": what the option `distribution` says."""

Option = Parameter | Choice | Count
"""What the caller of an initializer may say beside shape, seed and dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initializer:
    """An initializer: shape and seed in, weights out. Shapes are PyTorch's (out, in, *kernel)."""

    name: str
    formula: str
    source: str
    distribution: Distribution
    dimensions: tuple[int, int] = (0, MOST_DIMENSIONS)
    """The least and the most dimensions of a shape."""
    parameters: tuple[Option, ...] = ()
    requires: tuple[str, ...] = ()
    """What must hold of the parameters, as expressions; a call where one does not is a ValueError."""
    conventions: str = ""
    """Where libraries disagree: whose the default is, and how to get the others."""
    of: str | Mapping[str, str] | None = None
    """The initializer that this one is a case of; it has no implementation of its own. A mapping: of several, by the
    word of the option `distribution`."""
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

    def case_of(self, parameters: Mapping[str, float | str]) -> Initializer:
        """The initializer whose implementation gives the weights at these parameters; itself unless it is a case."""
        if self.of is None:
            return self
        name = self.of if isinstance(self.of, str) else self.of[str(parameters["distribution"])]
        return next(row for row in INITIALIZERS if row.name == name)

    def unmet(self, parameters: Mapping[str, float | str]) -> str | None:
        """The first of `requires` that does not hold of the parameters, or None."""
        return next((text for text in self.requires if not eval(text, dict(parameters))), None)


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


Operation = Activation | Gated | Rowwise | Initializer | Stabilizer

_ATEN_ERF = "ATen computes 1 + erf, which cancels for x < 0: the error is relative to |x|"
_ATEN_TANH = "ATen computes 1 + tanh, which cancels for x < 0: the error is relative to |x|"
_ATEN_SIGMOID = "ATen divides by 1 + exp(-x), which overflows where the result has just become subnormal"
_ATEN_SILU_LIMIT = "ATen computes s (1 + x (1 - s)) with a rounded 1 - s, and inf · 0 at an infinite x"
_ATEN_OUTPUT = "ATen derives from the rounded y, so that 1 - y cancels: the error is relative to |g|"
_ATEN_SWISH = "the gate is ATen's sigmoid of a rounded beta x"
_ATEN_SWISH_SLOPE = "σ and 1 - σ are ATen's sigmoids of a rounded beta x: the error is relative to |g|"
_ATEN_EXP = "ATen's exp(x) overflows where g exp(x) may be finite"
_ATEN_NAN = "at NaN ATen's vectorized loop takes another branch than its scalar one"
_ATEN_HARD_SIGMOID = "at NaN ATen gives 0"
_ATEN_HARD_SWISH = "ATen multiplies by a clipped x + 3 and divides by 6: -inf · 0, and an overflow"
_ATEN_HARD_SWISH_SLOPE = "ATen adds 1/2 to a rounded x/3: the error is relative to |g|; at NaN its loops differ"
_ATEN_TANHSHRINK = "tanh x is rounded before it is subtracted: the error is relative to |x|"
_ATEN_SOFTPLUS = "ATen takes exp of a rounded beta x"
_ATEN_MISH = "ATen multiplies tanh(log(1 + exp(x))), which may be subnormal, by x; and -inf · 0"
_ATEN_MISH_SLOPE = "ATen computes 1 - tanh²: the error is relative to |g|; and inf · 0"


_EXACT = MappingProxyType({FORWARD: 0.0, BACKWARD: 0.0})
# The activation's own error, where an ULP of f(a) may be two of f(a) b, and one more rounding.
_GATED = MappingProxyType({FORWARD: 3.0, BACKWARD: 4.5})
_SELU_SCALE = "1.0507009873554804934193349852946"
_SELU_ALPHA = "1.6732632423543772848170429916717"

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
        ulp=_EXACT,
        peer="F.relu(x)",
    ),
    Activation(
        name="leaky_relu",
        formula="x if x > 0 else negative_slope * x",
        derivative="1 if x > 0 else negative_slope",
        source="Maas, Hannun, Ng, ICML 2013",
        parameters=(Parameter(name="negative_slope", default=0.01, samples=(0.2,), doc="slope for x <= 0"),),
        conventions="0.01 as in PyTorch and JAX; Keras: negative_slope=0.2",
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
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.elu(x, alpha)",
    ),
    Activation(
        name="gelu",
        formula="x * erfc(-x / sqrt(2)) / 2",
        derivative="erfc(-x / sqrt(2)) / 2 + x * exp(-x * x / 2) / sqrt(2 * pi)",
        source="Hendrycks, Gimpel, arXiv:1606.08415, x Φ(x)",
        conventions="exact, as in PyTorch and Keras; JAX's default is gelu_tanh",
        deviations=(
            Deviation(backend="torch", operation_pass=FORWARD, floor="2 * abs(x)", infinities=True, reason=_ATEN_ERF),
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
        conventions="beta may be learned; what JAX, Keras and timm call swish has beta = 1, which is silu",
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
        deviations=(
            Deviation(
                backend="torch",
                operation_pass=FORWARD,
                floor="max(abs(y) * (1 + abs(beta * x)), 128 * tiny / eps)",
                reason=_ATEN_SWISH,
            ),
            Deviation(backend="torch", operation_pass=BACKWARD, floor="abs(g)", reason=_ATEN_SWISH_SLOPE),
        ),
        peer="x * torch.sigmoid(beta * x)",
    ),
    Activation(
        name="silu",
        formula="x / (1 + exp(-x))",
        derivative="1 / (1 + exp(-x)) + x / (2 + exp(x) + exp(-x))",
        source="Elfwing, Uchibe, Doya, arXiv:1702.03118",
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
    Activation(
        name="relu6",
        formula="0 if x < 0 else (6 if x > 6 else x)",
        derivative="0 if x <= 0 or x >= 6 else 1",
        source="Krizhevsky, Convolutional Deep Belief Networks on CIFAR-10, 2010",
        kinks=(0.0, 6.0),
        signed_zero=False,
        ulp=_EXACT,
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.relu6(x)",
    ),
    Activation(
        name="squared_relu",
        formula="0 if x < 0 else x * x",
        derivative="0 if x <= 0 else 2 * x",
        source="So, Mańke, Liu, Dai, Shazeer, Le, NeurIPS 2021 (Primer)",
        kinks=(0.0,),
        signed_zero=False,
        ulp=MappingProxyType({FORWARD: 0.5, BACKWARD: 0.5}),
        peer="F.relu(x) ** 2",
    ),
    Activation(
        name="rrelu",
        formula="x if x >= 0 else (lower + upper) / 2 * x",
        derivative="1 if x > 0 else (lower + upper) / 2",
        source="Xu, Wang, Chen, Li, arXiv:1505.00853; the slope at 0 is PyTorch's",
        parameters=(
            Parameter(name="lower", default=1 / 8, samples=(0.0,), doc="least slope for x < 0; 1/8 as in PyTorch"),
            Parameter(name="upper", default=1 / 3, samples=(0.5,), doc="largest slope for x < 0; 1/3 as in PyTorch"),
        ),
        requires=("lower <= upper",),
        kinks=(0.0,),
        seeded=True,
        peer="F.rrelu(x, lower, upper, training=False)",
    ),
    Activation(
        name="celu",
        formula="x if x > 0 else alpha * expm1(x / alpha)",
        derivative="exp(x / alpha) if x <= 0 else 1",
        source="Barron, arXiv:1704.07483, eq. 2",
        parameters=(
            Parameter(
                name="alpha",
                default=1.0,
                samples=(0.5, 1.3),
                doc="scale for x <= 0, of the result and of x; from 2^-20 to 2^20",
            ),
        ),
        requires=("2**-20 <= alpha <= 2**20",),
        kinks=(0.0,),
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.celu(x, alpha)",
    ),
    Activation(
        name="selu",
        formula=f"{_SELU_SCALE} * x if x > 0 else {_SELU_SCALE} * {_SELU_ALPHA} * expm1(x)",
        derivative=f"{_SELU_SCALE} * {_SELU_ALPHA} * exp(x) if x <= 0 else {_SELU_SCALE}",
        source="Klambauer, Unterthiner, Mayr, Hochreiter, NIPS 2017; its constants to 32 digits as in their code",
        kinks=(0.0,),
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.selu(x)",
    ),
    Activation(
        name="hard_sigmoid",
        formula="0 if x <= -3 else (1 if x >= 3 else (x + 3) / 6)",
        derivative="0 if x <= -3 or x >= 3 else 1.0 / 6",
        source="Howard et al., ICCV 2019 (MobileNetV3), section 5.2",
        conventions="PyTorch, JAX and Keras 3 agree; Keras 2 had 0.2 x + 0.5 between -2.5 and 2.5, which is not here",
        kinks=(-3.0, 3.0),
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_HARD_SIGMOID),),
        peer="F.hardsigmoid(x)",
    ),
    Activation(
        name="hard_tanh",
        formula="min_val if x < min_val else (max_val if x > max_val else x)",
        derivative="0 if x <= min_val or x >= max_val else 1",
        source="Collobert, PhD thesis, Paris 2004",
        parameters=(
            Parameter(name="min_val", default=-1.0, samples=(-0.1,), doc="the least value"),
            Parameter(name="max_val", default=1.0, samples=(2.5,), doc="the largest value"),
        ),
        requires=("min_val <= max_val",),
        kinks=(-1.0, 1.0, -0.1, 2.5),
        ulp=_EXACT,
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.hardtanh(x, min_val, max_val)",
    ),
    Activation(
        name="hard_swish",
        formula="x * 0 if x <= -3 else (x if x >= 3 else x * (x + 3) / 6)",
        derivative="0 if x <= -3 else (1 if x >= 3 else (2 * x + 3) / 6)",
        source="Howard et al., ICCV 2019 (MobileNetV3), section 5.2",
        kinks=(-3.0, 3.0),
        deviations=(
            Deviation(backend="torch", operation_pass=FORWARD, infinities=True, reason=_ATEN_HARD_SWISH),
            Deviation(
                backend="torch", operation_pass=BACKWARD, floor="abs(g)", nan=True, reason=_ATEN_HARD_SWISH_SLOPE
            ),
        ),
        peer="F.hardswish(x)",
    ),
    Activation(
        name="hard_mish",
        formula="x * 0 if x <= -2 else (x if x >= 0 else x * (x + 2) / 2)",
        derivative="0 if x < -2 else (1 if x >= 0 else x + 1)",
        source="Misra's H-Mish, half of x min(2, max(0, x + 2)), as in timm, with its derivative -1 at -2",
        kinks=(-2.0, 0.0),
        peer="x / 2 * (x + 2).clamp(0, 2)",
    ),
    Activation(
        name="threshold",
        formula="value if x <= threshold else x",
        derivative="0 if x <= threshold else 1",
        source="torch.nn.Threshold",
        parameters=(
            Parameter(name="threshold", default=None, samples=(0.1, -1.0), doc="x up to here is replaced"),
            Parameter(name="value", default=None, samples=(20.0, -0.5), doc="what replaces it"),
        ),
        conventions="both arguments are required, as in PyTorch and in Keras",
        kinks=(0.1, -1.0),
        signed_zero=False,
        ulp=_EXACT,
        peer="F.threshold(x, threshold, value)",
    ),
    Activation(
        name="softshrink",
        formula="0 if -lambd <= x <= lambd else (x - lambd if x > lambd else x + lambd)",
        derivative="0 if -lambd <= x <= lambd else 1",
        source="Donoho, Johnstone, Biometrika 81, 1994",
        parameters=(Parameter(name="lambd", default=0.5, samples=(0.1,), doc="half the width of the zero; >= 0"),),
        requires=("lambd >= 0",),
        kinks=(-0.5, 0.5, -0.1, 0.1),
        signed_zero=False,
        ulp=MappingProxyType({FORWARD: 0.5, BACKWARD: 0.0}),
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.softshrink(x, lambd)",
    ),
    Activation(
        name="hardshrink",
        formula="0 if -lambd <= x <= lambd else x",
        derivative="0 if -lambd <= x <= lambd else 1",
        source="Donoho, Johnstone, Biometrika 81, 1994",
        parameters=(Parameter(name="lambd", default=0.5, samples=(0.1,), doc="half the width of the zero; >= 0"),),
        requires=("lambd >= 0",),
        kinks=(-0.5, 0.5, -0.1, 0.1),
        signed_zero=False,
        ulp=_EXACT,
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.hardshrink(x, lambd)",
    ),
    Activation(
        name="tanhshrink",
        formula="x - tanh(x)",
        derivative="tanh(x) ** 2",
        source="torch.nn.Tanhshrink",
        deviations=(Deviation(backend="torch", operation_pass=FORWARD, floor="abs(x)", reason=_ATEN_TANHSHRINK),),
        peer="F.tanhshrink(x)",
    ),
    Activation(
        name="softsign",
        formula="x / (1 + abs(x))",
        derivative="1 / (1 + abs(x)) ** 2",
        source="Turian, Bergstra, Bengio, NAACL HLT 2009",
        peer="F.softsign(x)",
    ),
    Activation(
        name="softplus",
        formula="x if beta * x > threshold else log1p(exp(beta * x)) / beta",
        derivative="1 if beta * x > threshold else 1 / (1 + exp(-beta * x))",
        source="Dugas, Bengio, Bélisle, Nadeau, Garcia, NIPS 2000",
        parameters=(
            Parameter(name="beta", default=1.0, samples=(2.0, 0.3), doc="sharpness, from 1e-3 to 1e6"),
            Parameter(
                name="threshold", default=20.0, samples=(5.0, 1000.0), compared=True, doc="beyond this beta x, y = x"
            ),
        ),
        requires=("1e-3 <= beta <= 1e6",),
        conventions="the threshold is PyTorch's; JAX and Keras have none, which is threshold=1e30",
        kinks=(20.0, 5.0),
        signed_zero=False,
        deviations=(
            Deviation(
                backend="torch", operation_pass=FORWARD, floor="abs(y) * (1 + abs(beta * x))", reason=_ATEN_SOFTPLUS
            ),
        ),
        peer="F.softplus(x, beta, threshold)",
    ),
    Activation(
        name="log_sigmoid",
        formula="-log1p(exp(-x))",
        derivative="1 / (1 + exp(x))",
        source="the logarithm of the logistic function",
        signed_zero=False,
        peer="F.logsigmoid(x)",
    ),
    Activation(
        name="mish",
        formula="x * exp(x) * (exp(x) + 2) / (exp(x) * (exp(x) + 2) + 2)",
        derivative=(
            "exp(x) * (exp(x) + 2) / (exp(x) * (exp(x) + 2) + 2)"
            " + 4 * x * exp(x) * (exp(x) + 1) / (exp(x) * (exp(x) + 2) + 2) ** 2"
        ),
        source="Misra, BMVC 2020: x tanh(log(1 + exp(x))), with tanh(log(u)) = (u² - 1) / (u² + 1)",
        deviations=(
            Deviation(
                backend="torch", operation_pass=FORWARD, floor="2 * abs(x) * tiny", infinities=True, reason=_ATEN_MISH
            ),
            Deviation(
                backend="torch",
                operation_pass=BACKWARD,
                floor="abs(g) * (1 + abs(x))",
                infinities=True,
                reason=_ATEN_MISH_SLOPE,
            ),
        ),
        peer="F.mish(x)",
    ),
    Activation(
        name="quick_gelu",
        formula="x / (1 + exp(-1.702 * x))",
        derivative="1 / (1 + exp(-1.702 * x)) + 1.702 * x / (2 + exp(1.702 * x) + exp(-1.702 * x))",
        source="Hendrycks, Gimpel, arXiv:1606.08415, section 2",
        deviations=(
            Deviation(
                backend="torch",
                operation_pass=FORWARD,
                floor="max(abs(y) * (1 + abs(1.702 * x)), 128 * tiny / eps)",
                reason=_ATEN_SWISH,
            ),
            Deviation(backend="torch", operation_pass=BACKWARD, floor="abs(g)", reason=_ATEN_SWISH_SLOPE),
        ),
        peer="x * torch.sigmoid(1.702 * x)",
    ),
    Activation(
        name="squareplus",
        formula="(x + sqrt(x * x + b)) / 2 if x > 0 else b / (2 * (sqrt(x * x + b) - x))",
        derivative="(1 + x / sqrt(x * x + b)) / 2 if x > 0 else b / (2 * (x * x + b - x * sqrt(x * x + b)))",
        source="Barron, arXiv:2112.11687, eq. 1",
        parameters=(
            Parameter(
                name="b",
                default=4.0,
                samples=(1.0, 0.25),
                doc="curvature, from 2^-20 to 2^20; 4 as in JAX and Keras: y(0) = 1",
            ),
        ),
        requires=("2**-20 <= b <= 2**20",),
        signed_zero=False,
        peer="(x + (x * x + b).sqrt()) / 2",
    ),
    Activation(
        name="sparse_plus",
        formula="0 if x <= -1 else (x if x >= 1 else (x + 1) ** 2 / 4)",
        derivative="0 if x <= -1 else (1 if x >= 1 else (x + 1) / 2)",
        source="jax.nn.sparse_plus; the loss of Martins, Astudillo, ICML 2016, for two classes",
        kinks=(-1.0, 1.0),
        signed_zero=False,
        peer="torch.where(x <= -1, 0 * x, torch.where(x >= 1, x, (x + 1) ** 2 / 4))",
    ),
    Activation(
        name="sparse_sigmoid",
        formula="0 if x <= -1 else (1 if x >= 1 else (x + 1) / 2)",
        derivative="0 if x <= -1 or x >= 1 else 1.0 / 2",
        source="Martins, Astudillo, ICML 2016: sparsemax of two classes",
        kinks=(-1.0, 1.0),
        signed_zero=False,
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, nan=True, reason=_ATEN_NAN),),
        peer="F.hardtanh(x, -1, 1) / 2 + 0.5",
    ),
    Activation(
        name="exponential",
        formula="exp(x)",
        derivative="exp(x)",
        source="the definition",
        signed_zero=False,
        deviations=(Deviation(backend="torch", operation_pass=BACKWARD, overflow=True, reason=_ATEN_EXP),),
        peer="torch.exp(x)",
    ),
    Activation(
        name="identity",
        formula="x",
        derivative="1",
        source="the definition",
        ulp=_EXACT,
        peer="x + 0",
    ),
)

GATED: tuple[Gated, ...] = (
    Gated(
        name="glu",
        gate="sigmoid",
        gate_last=True,
        source="Dauphin, Fan, Auli, Grangier, ICML 2017, eq. 1",
        conventions="the gate is last, as in PyTorch, JAX, Keras and timm's GluMlp",
        ulp=_GATED,
        peer="a.sigmoid() * b",
    ),
    Gated(
        name="reglu",
        gate="relu",
        gate_last=False,
        source="Shazeer, arXiv:2002.05202, eq. 5",
        conventions="the gate is first, as in Shazeer's equations and Megatron; timm's GluMlp: gate_last=True",
        ulp=MappingProxyType({FORWARD: 0.5, BACKWARD: 0.5}),
        peer="F.relu(a) * b",
    ),
    Gated(
        name="geglu",
        gate="gelu",
        gate_last=False,
        source="Shazeer, arXiv:2002.05202, eq. 5",
        conventions=(
            "the gate is first, as in Shazeer's equations, Megatron, vLLM and ModernBERT; diffusers' GEGLU and timm's"
            " GluMlp: gate_last=True. The exact GELU; Liger has geglu_tanh"
        ),
        ulp=_GATED,
        peer="F.gelu(a) * b",
    ),
    Gated(
        name="geglu_tanh",
        gate="gelu_tanh",
        gate_last=False,
        source="Shazeer, arXiv:2002.05202, eq. 5, with the tanh approximation of GELU",
        conventions="the gate is first, as in Liger, T5 1.1 and Gemma; timm's GluMlp: gate_last=True",
        ulp=_GATED,
        peer="F.gelu(a, approximate='tanh') * b",
    ),
    Gated(
        name="swiglu",
        gate="silu",
        gate_last=False,
        source="Shazeer, arXiv:2002.05202, eq. 5, with β = 1",
        conventions=(
            "the gate is first, as in Shazeer's equations, Liger, Megatron, vLLM, Hugging Face's Phi-3 and timm's"
            " SwiGLUPacked; timm's GluMlp: gate_last=True"
        ),
        ulp=_GATED,
        peer="F.silu(a) * b",
    ),
    Gated(
        name="bilinear",
        gate="identity",
        gate_last=False,
        source="Shazeer, arXiv:2002.05202, eq. 4, after Dauphin, Fan, Auli, Grangier, ICML 2017",
        conventions="a product knows no order: gate_last changes nothing",
        ulp=MappingProxyType({FORWARD: 0.5, BACKWARD: 0.5}),
        peer="a * b",
    ),
)

# Numba keeps 2; the exp of NumPy has an error of 1 ULP, and four roundings follow.
_SOFTMAX = MappingProxyType({FORWARD: 2.5, BACKWARD: 4.0})
_ATEN_DIFFERENCE = (
    "ATen's exp enlarges the rounding error of x - max x, and has one of several ULP of its own; along an axis that is"
    " not the last it sums one after the other in the dtype, where thousands of elements cost more than is allowed here"
)
_ATEN_LOGARITHM = "ATen takes the logarithm of a rounded 1 + s: where y is small, the error is relative to 1"
_ATEN_SUM = "ATen sums in the dtype: the error grows with the length"
_SOFTMAX_SCALE = "y * (abs(g) + sum(abs(g) * y))"
# What rounding the logits (x + n) / tau to the dtype does to a ratio of their exponentials.
_LOGITS = "(abs(where(y > 0, x, 0)) + abs(n)) / tau"
_GUMBEL_SPREAD = f"(1 + {_LOGITS} + sum(y * {_LOGITS}))"


def _softmax_deviations(depth: str) -> tuple[Deviation, ...]:
    """Those of softmax and softmin; `depth` is how far a logit lies below the largest."""
    return (
        Deviation(
            backend="torch",
            operation_pass=FORWARD,
            floor=f"where(y > 0, y * (4 + {depth}), 0)",
            reason=_ATEN_DIFFERENCE,
        ),
        Deviation(backend="torch", operation_pass=BACKWARD, floor=f"2 * {_SOFTMAX_SCALE}", reason=_ATEN_SUM),
    )


ROWWISE: tuple[Rowwise, ...] = (
    Rowwise(
        name="softmax",
        formula="exp(x) / sum(exp(x))",
        gradient="y * (g - sum(g * y))",
        source="Bridle, Neurocomputing, NATO ASI Series F 68, 1990",
        ulp=_SOFTMAX,
        scales=MappingProxyType({FORWARD: "0", BACKWARD: _SOFTMAX_SCALE}),
        deviations=_softmax_deviations("max(x) - x"),
        peer="F.softmax(x, axis)",
    ),
    Rowwise(
        name="log_softmax",
        formula="x - log(sum(exp(x)))",
        gradient="g - exp(y) * sum(g)",
        source="the logarithm of softmax",
        ulp=MappingProxyType({FORWARD: 2.0, BACKWARD: 4.0}),
        scales=MappingProxyType({FORWARD: "0", BACKWARD: "abs(g) + exp(y) * sum(abs(g))"}),
        deviations=(
            Deviation(backend="torch", operation_pass=FORWARD, floor="2", reason=_ATEN_LOGARITHM),
            Deviation(
                backend="torch",
                operation_pass=BACKWARD,
                floor="2 * (abs(g) + exp(y) * sum(abs(g)))",
                reason=_ATEN_SUM,
            ),
        ),
        peer="F.log_softmax(x, axis)",
    ),
    Rowwise(
        name="softmin",
        formula="exp(-x) / sum(exp(-x))",
        gradient="y * (sum(g * y) - g)",
        source="torch.nn.Softmin: softmax of -x",
        ulp=_SOFTMAX,
        scales=MappingProxyType({FORWARD: "0", BACKWARD: _SOFTMAX_SCALE}),
        deviations=_softmax_deviations("max(-x) + x"),
        peer="F.softmin(x, axis)",
    ),
    Rowwise(
        name="sparsemax",
        formula="maximum(x - max((cumsum(descending(x)) - 1) / ranks(x)), 0)",
        gradient="where(y > 0, g - sum(where(y > 0, g, 0)) / sum(y > 0), 0)",
        source="Martins, Astudillo, ICML 2016, algorithm 1; its threshold is the largest of these quotients",
        ulp=MappingProxyType({FORWARD: 2.0, BACKWARD: 4.0}),
        scales=MappingProxyType(
            {FORWARD: "1", BACKWARD: "where(y > 0, abs(g) + sum(where(y > 0, abs(g), 0)) / sum(y > 0), 0)"}
        ),
        peer=(
            "F.relu(x - ((x.sort(axis, descending=True)[0].cumsum(axis) - 1) / torch.ones_like(x).cumsum(axis))"
            ".amax(axis, keepdim=True))"
        ),
    ),
    Rowwise(
        name="gumbel_softmax",
        formula="exp((x + n) / tau) / sum(exp((x + n) / tau))",
        gradient="y * (g - sum(g * y)) / tau",
        source="Jang, Gu, Poole, ICLR 2017, eq. 2; Maddison, Mnih, Teh, ICLR 2017",
        parameters=(Parameter(name="tau", default=1.0, samples=(0.5,), doc="temperature, positive"),),
        requires=("tau > 0",),
        conventions="tau and hard as in PyTorch, whose noise comes from its global generator; here it is the seed's",
        seeded=True,
        saved=("x",),
        ulp=MappingProxyType({FORWARD: 2.0, BACKWARD: 4.0}),
        scales=MappingProxyType(
            {FORWARD: f"y * {_GUMBEL_SPREAD}", BACKWARD: f"{_SOFTMAX_SCALE} / tau * {_GUMBEL_SPREAD}"}
        ),
        peer="F.softmax((x + n) / tau, axis)",
    ),
)

_GAIN = Parameter(name="gain", default=1.0, samples=(1.1,), doc="factor on the standard deviation")
_HE_GAIN = Parameter(
    name="gain", default=math.sqrt(2.0), samples=(1.0,), doc="factor on the standard deviation; √2 for ReLU"
)


_KERNELS = (3, 5)
"""Dimensions of the weights of a convolution in one to three dimensions."""


def _symmetric(bound: float) -> Mapping[str, float]:
    return {"low": -bound, "high": bound}


def _centred(std: float) -> Mapping[str, float]:
    return {"mean": 0.0, "std": std}


TRUNCATED_STD = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
"""The standard deviation of N(0, 1) within [-2, 2], 0.8796: 1 - 2 · 2 φ(2) / (2 Φ(2) - 1) is its square."""


def _truncated(std: float) -> Mapping[str, float]:
    """Arguments of `trunc_normal` with this standard deviation, after truncation at two of those before it."""
    wider = std / TRUNCATED_STD
    return {"mean": 0.0, "std": wider, "a": -2.0 * wider, "b": 2.0 * wider}


def _scaled(distribution: str, gain: float, fan: float) -> Mapping[str, float]:
    """Arguments of the initializer of this distribution, for weights of the standard deviation gain / √fan."""
    if distribution == "uniform":
        return _symmetric(gain * math.sqrt(3.0 / fan))
    std = gain / math.sqrt(fan)
    return _centred(std) if distribution == "normal" else _truncated(std)


_FANS: Mapping[str, Callable[[int, int], float]] = MappingProxyType(
    {
        "fan_in": lambda fan_in, fan_out: fan_in,
        "fan_out": lambda fan_in, fan_out: fan_out,
        "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
        "fan_geo_avg": lambda fan_in, fan_out: math.sqrt(fan_in) * math.sqrt(fan_out),
    }
)
"""The number of terms that `mode` divides the variance by."""


def _he(distribution: str) -> Callable[..., Mapping[str, float]]:
    return lambda fan_in, fan_out, gain, mode: _scaled(distribution, gain, _FANS[mode](fan_in, fan_out))


_MODE = Choice(
    name="mode",
    default="fan_in",
    words=("fan_in", "fan_out"),
    doc="fan_in keeps the variance of activations, fan_out that of gradients",
)

_TRUNCATION = "truncated at ±2 σ' = ±2 σ / 0.8796, so that σ is what is left, as in JAX and Keras"


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
        name="trunc_normal",
        formula="N(mean, std²) within [a, b]",
        source="the inverse of its distribution function; Wichura, Algorithm AS 241, Appl. Stat. 37, 1988",
        distribution="truncated",
        parameters=(
            Parameter(name="mean", default=0.0, samples=(0.5,), doc="mean before truncation"),
            Parameter(name="std", default=1.0, samples=(0.1,), doc="standard deviation before truncation"),
            Parameter(name="a", default=-2.0, samples=(1.0,), doc="smallest weight"),
            Parameter(name="b", default=2.0, samples=(9.0,), doc="largest weight, above a"),
        ),
        peer="torch.nn.init.trunc_normal_",
    ),
    Initializer(
        name="variance_scaling",
        formula="variance σ² = scale / n, with mean 0; n = fan_in, fan_out or an average of both",
        source="jax.nn.initializers.variance_scaling; He, Zhang, Ren, Sun, ICCV 2015, section 2.2",
        distribution="chosen",
        parameters=(
            Parameter(name="scale", default=1.0, samples=(2.0,), doc="n σ², positive"),
            Choice(
                name="mode",
                default="fan_in",
                words=tuple(_FANS),
                doc="what n is; fan_avg is the arithmetic, fan_geo_avg the geometric average of both",
            ),
            Choice(
                name="distribution",
                default="truncated_normal",
                words=("truncated_normal", "normal", "uniform"),
                doc="what is drawn; truncated_normal ends at ±2 σ' = ±2 σ / 0.8796, so that σ is what is left",
            ),
        ),
        requires=("scale > 0",),
        conventions="names and meaning as in JAX, which has no defaults; the defaults are Keras's, which says"
        " 'untruncated_normal' for 'normal' and has no fan_geo_avg",
        of=MappingProxyType({"truncated_normal": "trunc_normal", "normal": "normal", "uniform": "uniform"}),
        arguments=lambda fan_in, fan_out, scale, mode, distribution: _scaled(
            distribution, math.sqrt(scale), _FANS[mode](fan_in, fan_out)
        ),
        peer="torch.nn.init.kaiming_normal_",
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
        name="lecun_uniform",
        formula="U(-b, b), b = gain √(3 / fan_in)",
        source="LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, eq. 16",
        distribution="uniform",
        parameters=(_GAIN,),
        of="uniform",
        arguments=lambda fan_in, fan_out, gain: _scaled("uniform", gain, fan_in),
        peer="torch.nn.init.kaiming_uniform_",
    ),
    Initializer(
        name="lecun_normal",
        formula="N(0, σ²), σ = gain / √fan_in",
        source="LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, eq. 16",
        distribution="normal",
        parameters=(_GAIN,),
        of="normal",
        arguments=lambda fan_in, fan_out, gain: _scaled("normal", gain, fan_in),
        peer="torch.nn.init.kaiming_normal_",
    ),
    Initializer(
        name="lecun_truncated_normal",
        formula=f"N(0, σ'²), σ = gain / √fan_in, {_TRUNCATION}",
        source="LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, eq. 16; jax.nn.initializers.lecun_normal",
        distribution="truncated",
        parameters=(_GAIN,),
        of="trunc_normal",
        arguments=lambda fan_in, fan_out, gain: _scaled("truncated_normal", gain, fan_in),
        peer="torch.nn.init.trunc_normal_",
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
        name="xavier_truncated_normal",
        formula=f"N(0, σ'²), σ = gain √(2 / (fan_in + fan_out)), {_TRUNCATION}",
        source="Glorot, Bengio, AISTATS 2010, eq. 12; jax.nn.initializers.glorot_normal",
        distribution="truncated",
        parameters=(_GAIN,),
        of="trunc_normal",
        arguments=lambda fan_in, fan_out, gain: _truncated(gain * math.sqrt(2.0 / (fan_in + fan_out))),
        peer="torch.nn.init.trunc_normal_",
    ),
    Initializer(
        name="he_uniform",
        formula="U(-b, b), b = gain √(3 / n), n = fan_in or fan_out",
        source="He, Zhang, Ren, Sun, ICCV 2015, eq. 10",
        distribution="uniform",
        parameters=(_HE_GAIN, _MODE),
        of="uniform",
        arguments=_he("uniform"),
        peer="torch.nn.init.kaiming_uniform_",
    ),
    Initializer(
        name="he_normal",
        formula="N(0, σ²), σ = gain / √n, n = fan_in or fan_out",
        source="He, Zhang, Ren, Sun, ICCV 2015, eq. 10",
        distribution="normal",
        parameters=(_HE_GAIN, _MODE),
        of="normal",
        arguments=_he("normal"),
        peer="torch.nn.init.kaiming_normal_",
    ),
    Initializer(
        name="he_truncated_normal",
        formula=f"N(0, σ'²), σ = gain / √n, {_TRUNCATION}, n = fan_in or fan_out",
        source="He, Zhang, Ren, Sun, ICCV 2015, eq. 10; jax.nn.initializers.he_normal",
        distribution="truncated",
        parameters=(_HE_GAIN, _MODE),
        of="trunc_normal",
        arguments=_he("truncated_normal"),
        peer="torch.nn.init.trunc_normal_",
    ),
    Initializer(
        name="orthogonal",
        formula="gain Q, orthonormal columns where out >= rest, else rows; Q is Haar",
        source=(
            "Saxe, McClelland, Ganguli, ICLR 2014; Stewart, SIAM J. Numer. Anal. 17, 1980;"
            " Mezzadri, Notices AMS 54, 2007"
        ),
        distribution="orthogonal",
        dimensions=(2, MOST_DIMENSIONS),
        parameters=(
            _GAIN,
            Choice(
                name="method",
                default="auto",
                words=("auto", "qr", "householder", "cholesky_qr2", "polar"),
                doc="how Q is made; each gives another matrix for a seed, but `qr` and `cholesky_qr2` the same",
            ),
        ),
        conventions=(
            "PyTorch, JAX and Keras compute the QR of a Gaussian matrix: `qr`, by LAPACK. `householder` draws its\n"
            "reflectors instead, with half of the operations. `cholesky_qr2` needs one side to be at least twice the\n"
            "other. `polar` is matrix products only. `auto` is a function of the shape, and the same everywhere."
        ),
        peer="torch.nn.init.orthogonal_",
    ),
    Initializer(
        name="delta_orthogonal",
        formula="orthogonal of shape (out, in) at the centre of the kernel, 0 elsewhere; in <= out",
        source="Xiao, Bahri, Sohl-Dickstein, Schoenholz, Pennington, ICML 2018, algorithm 1",
        distribution="orthogonal",
        dimensions=_KERNELS,
        parameters=(_GAIN,),
        conventions="the centre of k elements is (k - 1) div 2, as in JAX, whose gain is called scale",
        peer="torch.nn.init.orthogonal_",
    ),
    Initializer(
        name="sparse",
        formula="N(0, std²); in each column the share `sparsity` of the rows, rounded up, is 0",
        source="Martens, ICML 2010, section 5; torch.nn.init.sparse_",
        distribution="sparse",
        dimensions=(2, 2),
        parameters=(
            Parameter(name="sparsity", default=None, samples=(0.3, 1.0, 0.0), doc="share of zeros, from 0 to 1"),
            Parameter(
                name="std", default=0.01, samples=(2.0,), doc="standard deviation of the other weights, not negative"
            ),
        ),
        requires=("0 <= sparsity <= 1",),
        peer="torch.nn.init.sparse_",
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
        name="ones",
        formula="1",
        source="the definition",
        distribution="fixed",
        of="constant",
        arguments=lambda fan_in, fan_out: {"value": 1.0},
        peer="torch.nn.init.ones_",
    ),
    Initializer(
        name="eye",
        formula="gain I (rows × columns)",
        source="Le, Jaitly, Hinton, arXiv:1504.00941",
        distribution="fixed",
        dimensions=(2, 2),
        parameters=(_GAIN,),
        peer="torch.nn.init.eye_",
    ),
    Initializer(
        name="dirac",
        formula="1 at the centre of the kernel from input d to output d of each group, 0 elsewhere",
        source="Zagoruyko, Komodakis, arXiv:1706.00388; torch.nn.init.dirac_",
        distribution="fixed",
        dimensions=_KERNELS,
        parameters=(
            Count(name="groups", default=1, samples=(2,), doc="into how many groups the outputs are split evenly"),
        ),
        conventions="the centre of k elements is k div 2, as in PyTorch",
        peer="torch.nn.init.dirac_",
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
        ulp=_EXACT,
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

_ROWS: tuple[Operation, ...] = (*ACTIVATIONS, *GATED, *ROWWISE, *INITIALIZERS, *STABILIZERS)
OPERATIONS: Mapping[str, Operation] = MappingProxyType({row.name: row for row in _ROWS})
FAMILIES: tuple[str, ...] = ("activations", "gated", "rowwise", "initializers", "stabilizers")


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
