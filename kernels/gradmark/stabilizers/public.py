"""The public functions of the stabilizers: arguments checked once, then the backend's implementation.

An implementation has, for each row of the catalog, a forward and a backward function with the parameters of the
row's signatures, positional; `residual_add` and its backward take the activation's name (or None) and its parameters
in place of `activation`. It may rely on this: shapes, dtypes and devices fit; numbers are floats; per-channel arrays
are 1-d; `out` is None, or like the input and the same memory as an input or none of it. It may return a plain tuple
where the public function returns a named one.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from gradmark.arrays import ArrayLibrary, check_same_shape, finite_number
from gradmark.catalog import ACTIVATIONS, Activation, Stabilizer, backward_of
from gradmark.signatures import define

Function = Callable[..., Any]


class BatchNormResult(NamedTuple):
    """What batch normalization gives in training."""

    y: Any
    """The normalized input; shape and dtype of x."""
    mean: Any
    """Mean of the batch, (channels,), in the dtype of the statistics; backward takes it."""
    invstd: Any
    """1 / √(biased variance of the batch + eps), like mean; backward takes it."""
    running_mean: Any
    """(1 - momentum) running_mean + momentum mean, new; None where none was given."""
    running_var: Any
    """(1 - momentum) running_var + momentum (unbiased variance of the batch), new; None where none was given."""


class BatchNormGradients(NamedTuple):
    """The gradients of batch normalization."""

    dx: Any
    """Shape and dtype of x."""
    dweight: Any
    """Shape and dtype of weight; None where weight is None."""
    dbias: Any
    """Like dweight: backward is not told of the bias, whose gradient does not depend on it."""


class ClippedGradients(NamedTuple):
    """What clipping by the global norm gives."""

    clipped: list[Any]
    """The scaled arrays, in the order of grads."""
    total_norm: Any
    """The global norm before clipping, a 0-d array of float64."""


def functions(row: Stabilizer, implementation: ModuleType, arrays: ArrayLibrary) -> dict[str, Function]:
    """The forward and the backward function of `row`, by name."""
    backward = backward_of(row.name)
    operation = _OPERATIONS[row.name]
    kernels = getattr(implementation, row.name), getattr(implementation, backward)
    forward_body, backward_body = operation.bodies(arrays, *kernels)
    return {
        row.name: _function(row.name, row.forward, forward_body, _document(row, operation.forward_doc)),
        backward: _function(backward, row.backward, backward_body, _document(row, operation.backward_doc)),
    }


def residual_activations() -> tuple[str, ...]:
    """The activations that residual_add accepts: those that their input alone decides."""
    return tuple(row.name for row in ACTIVATIONS if _why_not_residual(row) is None)


def _why_not_residual(row: Activation) -> str | None:
    if row.learnable:
        return "it has a learnable parameter"
    if row.seeded:
        return "its slopes are random"
    if any(p.default is None for p in row.parameters):
        return "its parameters have no defaults"
    return None


class _Operation(NamedTuple):
    bodies: Callable[[ArrayLibrary, Function, Function], tuple[Function, Function]]
    """(arrays, forward kernel, backward kernel) -> the two functions, with the parameters of the row's signatures."""
    forward_doc: str
    backward_doc: str


def _function(name: str, signature: str, body: Function, doc: str) -> Function:
    parameters = ", ".join(inspect.signature(define(name, signature, "pass", {}, "")).parameters)
    return define(name, signature, f"return run({parameters})", {"run": body}, doc)


def _document(row: Stabilizer, doc: str) -> str:
    return f"{doc}\n\nSource\n------\n{row.source}\n"


def _batch_norm(arrays: ArrayLibrary, forward_kernel: Function, backward_kernel: Function) -> tuple[Function, Function]:
    def forward(
        x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any, eps: Any, out: Any
    ) -> BatchNormResult:
        _check_batch(arrays, x)
        _check_more_than_one_value(x)
        if (running_mean is None) != (running_var is None):
            missing = "running_mean" if running_mean is None else "running_var"
            raise ValueError(f"{missing} is None and the other is not; give both running statistics or neither")
        if not _plain(arrays, x, (weight, bias, running_mean, running_var)):
            _check_affine(arrays, x, weight, bias)
            if running_mean is not None:
                _check_running(arrays, x, running_mean, running_var)
        momentum, eps = _momentum(momentum), _eps(eps)
        named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        out = _output(arrays, out, x, {"x": x, **named})
        with arrays.quiet():
            result = forward_kernel(x, weight, bias, running_mean, running_var, momentum, eps, out)
        return BatchNormResult(*result)

    def backward(grad: Any, x: Any, weight: Any, mean: Any, invstd: Any, out: Any) -> BatchNormGradients:
        _check_batch(arrays, x)
        _check_grad(arrays, grad, x)
        if not _plain(arrays, x, (weight,), mean, invstd):
            _check_affine(arrays, x, weight, None)
            for role, statistic in (("mean", mean), ("invstd", invstd)):
                _check_per_channel(arrays, statistic, role, x, (_statistics_dtype(x),))
        named = {"grad": grad, "x": x, "weight": weight, "mean": mean, "invstd": invstd}
        out = _output(arrays, out, x, named)
        with arrays.quiet():
            return BatchNormGradients(*backward_kernel(grad, x, weight, mean, invstd, out))

    return forward, backward


def _batch_norm_inference(
    arrays: ArrayLibrary, forward_kernel: Function, backward_kernel: Function
) -> tuple[Function, Function]:
    def forward(x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: Any, out: Any) -> Any:
        _check_batch(arrays, x)
        if not _plain(arrays, x, (weight, bias), running_mean, running_var):
            _check_affine(arrays, x, weight, bias)
            _check_running(arrays, x, running_mean, running_var)
        eps = _eps(eps)
        named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        out = _output(arrays, out, x, {"x": x, **named})
        with arrays.quiet():
            return forward_kernel(x, weight, bias, running_mean, running_var, eps, out)

    def backward(
        grad: Any, x: Any, weight: Any, running_mean: Any, running_var: Any, eps: Any, out: Any
    ) -> BatchNormGradients:
        _check_batch(arrays, x)
        _check_grad(arrays, grad, x)
        if not _plain(arrays, x, (weight,), running_mean, running_var):
            _check_affine(arrays, x, weight, None)
            _check_running(arrays, x, running_mean, running_var)
        eps = _eps(eps)
        named = {"grad": grad, "x": x, "weight": weight, "running_mean": running_mean, "running_var": running_var}
        out = _output(arrays, out, x, named)
        with arrays.quiet():
            return BatchNormGradients(*backward_kernel(grad, x, weight, running_mean, running_var, eps, out))

    return forward, backward


def _clip_grad_norm(
    arrays: ArrayLibrary, forward_kernel: Function, backward_kernel: Function
) -> tuple[Function, Function]:
    def forward(grads: Any, max_norm: Any, out: Any) -> ClippedGradients:
        grads, limit, out = _clip_arguments(arrays, grads, max_norm, "max_norm", out)
        with arrays.quiet():
            return ClippedGradients(*forward_kernel(grads, limit, out))

    def backward(cotangents: Any, grads: Any, max_norm: Any, out: Any) -> list[Any]:
        grads, limit, out = _clip_arguments(arrays, grads, max_norm, "max_norm", out, cotangents)
        with arrays.quiet():
            result: list[Any] = backward_kernel(list(cotangents), grads, limit, out)
        return result

    return forward, backward


def _clip_grad_value(
    arrays: ArrayLibrary, forward_kernel: Function, backward_kernel: Function
) -> tuple[Function, Function]:
    def forward(grads: Any, clip_value: Any, out: Any) -> list[Any]:
        grads, limit, out = _clip_arguments(arrays, grads, clip_value, "clip_value", out)
        with arrays.quiet():
            result: list[Any] = forward_kernel(grads, limit, out)
        return result

    def backward(cotangents: Any, grads: Any, clip_value: Any, out: Any) -> list[Any]:
        grads, limit, out = _clip_arguments(arrays, grads, clip_value, "clip_value", out, cotangents)
        with arrays.quiet():
            result: list[Any] = backward_kernel(list(cotangents), grads, limit, out)
        return result

    return forward, backward


def _residual_add(
    arrays: ArrayLibrary, forward_kernel: Function, backward_kernel: Function
) -> tuple[Function, Function]:
    def check(x: Any, f: Any) -> None:
        arrays.check(x, "x")
        arrays.check_like(f, "f", x, "x")
        check_same_shape(f, "f", x, "x")

    def forward(x: Any, f: Any, activation: Any, out: Any) -> Any:
        check(x, f)
        parameters = _activation_parameters(activation)
        out = _output(arrays, out, x, {"x": x, "f": f})
        with arrays.quiet():
            return forward_kernel(x, f, activation, parameters, out)

    def backward(grad: Any, x: Any, f: Any, activation: Any, out: Any) -> Any:
        check(x, f)
        _check_grad(arrays, grad, x)
        parameters = _activation_parameters(activation)
        out = _output(arrays, out, x, {"grad": grad, "x": x, "f": f})
        with arrays.quiet():
            return backward_kernel(grad, x, f, activation, parameters, out)

    return forward, backward


def _activation_parameters(activation: Any) -> tuple[float, ...]:
    """The defaults of the activation's parameters; LookupError where residual_add does not take it."""
    if activation is None:
        return ()
    if isinstance(activation, str) and activation in _residual_parameters():
        return _residual_parameters()[activation]
    accepted = residual_activations()
    known = {row.name: _why_not_residual(row) for row in ACTIVATIONS}
    why = known.get(activation) if isinstance(activation, str) else None
    why = why or "unknown activation"
    raise LookupError(f"activation={activation!r}: {why}; accepted: None, {', '.join(accepted)}")


@functools.cache
def _residual_parameters() -> Mapping[str, tuple[float, ...]]:
    """By activation, the defaults of its parameters."""
    rows = [row for row in ACTIVATIONS if _why_not_residual(row) is None]
    return {row.name: tuple(p.default for p in row.parameters if p.default is not None) for row in rows}


def _check_batch(arrays: ArrayLibrary, x: Any) -> None:
    arrays.check(x, "x")
    if x.ndim < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; batch normalization takes (batch, channels, *spatial),"
            " at least two axes, and normalizes each channel"
        )


def _check_more_than_one_value(x: Any) -> None:
    values = x.shape[0] * math.prod(x.shape[2:])
    if values < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: {values} value(s) per channel; training needs at least 2, as fewer have no"
            " variance (with given statistics use batch_norm_inference)"
        )


def _check_grad(arrays: ArrayLibrary, grad: Any, x: Any) -> None:
    arrays.check_like(grad, "grad", x, "x")
    check_same_shape(grad, "grad", x, "x")


def _plain(arrays: ArrayLibrary, x: Any, optional: Sequence[Any], *required: Any) -> bool:
    """Whether x's numbers per channel are as they should be: True of nearly all calls, and quick."""
    dtype, shape = x.dtype, (x.shape[1],)
    given = [v for v in optional if v is not None]
    given += required
    return (
        _statistics_dtype(x) == _name_of(dtype)
        and arrays.plainly_accepted([x, *given])
        and all([v.dtype == dtype and v.shape == shape for v in given])  # noqa: C419
    )


def _check_affine(arrays: ArrayLibrary, x: Any, weight: Any, bias: Any) -> None:
    accepted = tuple(dict.fromkeys((_dtype_name(x), _statistics_dtype(x))))
    for role, array in (("weight", weight), ("bias", bias)):
        if array is not None:
            _check_per_channel(arrays, array, role, x, accepted)


def _check_running(arrays: ArrayLibrary, x: Any, running_mean: Any, running_var: Any) -> None:
    for role, array in (("running_mean", running_mean), ("running_var", running_var)):
        _check_per_channel(arrays, array, role, x, (_statistics_dtype(x),))


def _check_per_channel(arrays: ArrayLibrary, array: Any, role: str, x: Any, dtypes: tuple[str, ...]) -> None:
    arrays.check(array, role)
    if _dtype_name(array) not in dtypes:
        raise TypeError(
            f"{role} has dtype {_dtype_name(array)}; accepted with x of {_dtype_name(x)}: {' or '.join(dtypes)}"
        )
    if array.device != x.device:
        raise ValueError(f"{role} is on {array.device}, x on {x.device}; nothing is copied between devices silently")
    if tuple(array.shape) != (x.shape[1],):
        raise ValueError(
            f"{role} has shape {tuple(array.shape)}; accepted: ({x.shape[1]},), one value per channel"
            f" (axis 1 of x, whose shape is {tuple(x.shape)})"
        )


def _statistics_dtype(x: Any) -> str:
    # Half precision would lose most of a running statistic's updates: a step of momentum is below half an ULP.
    return "float64" if _dtype_name(x) == "float64" else "float32"


def _dtype_name(array: Any) -> str:
    return _name_of(array.dtype)


@functools.cache
def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _momentum(value: Any) -> float:
    number = finite_number(value, "momentum")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], the weight of the new batch; got {value!r}")
    return number


def _eps(value: Any) -> float:
    number = finite_number(value, "eps")
    if number <= 0.0:
        raise ValueError(f"eps must be > 0, so that a constant channel does not divide by 0; got {value!r}")
    return number


def _output(arrays: ArrayLibrary, out: Any, like: Any, inputs: dict[str, Any]) -> Any:
    """`out`, checked; None stays None, as native kernels allocate their result themselves."""
    if out is None:
        return None
    return arrays.output(out, like, [(role, array) for role, array in inputs.items() if array is not None])


def _clip_arguments(
    arrays: ArrayLibrary, grads: Any, limit: Any, limit_name: str, out: Any, cotangents: Any = None
) -> tuple[list[Any], float, list[Any] | None]:
    """The arguments, checked. `out` comes back as the list of the gradients itself where it holds the same arrays."""
    grads = _checked_list(arrays, grads, "grads")
    number = finite_number(limit, limit_name)
    if number < 0.0:
        raise ValueError(f"{limit_name} must be >= 0, got {limit!r}")
    inputs = {"grads": grads}
    if cotangents is not None:
        inputs["cotangents"] = _checked_list(arrays, cotangents, "cotangents", like=grads)
    if out is None:
        return grads, number, None
    outputs = list(out) if isinstance(out, list | tuple) else out
    if not arrays.plainly_apart(outputs, *inputs.values()):
        outputs = _checked_list(arrays, out, "out", like=grads)
        _check_outputs(arrays, outputs, inputs)
    return grads, number, grads if all(map(operator.is_, outputs, grads)) else outputs


def _check_outputs(arrays: ArrayLibrary, outputs: list[Any], inputs: dict[str, list[Any]]) -> None:
    """Raise ValueError unless each can be written to while the inputs are still read."""
    for i, y in enumerate(outputs):
        try:
            arrays.output(y, inputs["grads"][i], [(f"{role}[{i}]", items[i]) for role, items in inputs.items()])
        except ValueError as error:
            raise ValueError(f"out[{i}]{str(error).removeprefix('out')}") from None
    for role, items in inputs.items():
        _check_separate(arrays, outputs, items, role)
    _check_separate(arrays, outputs, outputs, "out")


def _checked_list(arrays: ArrayLibrary, items: Any, role: str, like: Sequence[Any] | None = None) -> list[Any]:
    """The list, each of its arrays checked; against the arrays of `like` where that is given."""
    if hasattr(items, "dtype"):
        raise TypeError(f"{role} is a single array; give a list of arrays: wrap it as [{role}]")
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise TypeError(f"{role} is of type {type(items).__name__}; give a list or tuple of arrays: list({role})")
    if like is None:
        _check_one_device(arrays, items, role)
        return list(items)
    if len(items) != len(like):
        raise ValueError(f"{role} has {len(items)} array(s), grads has {len(like)}; give one for each")
    for i, (item, other) in enumerate(zip(items, like, strict=True)):
        arrays.check_like(item, f"{role}[{i}]", other, f"grads[{i}]")
        check_same_shape(item, f"{role}[{i}]", other, f"grads[{i}]")
    return list(items)


def _check_one_device(arrays: ArrayLibrary, items: Sequence[Any], role: str) -> None:
    if arrays.plainly_accepted(items):
        return
    device = None
    for i, item in enumerate(items):
        arrays.check(item, f"{role}[{i}]")
        device = item.device if device is None else device
        if item.device != device:
            raise ValueError(
                f"{role}[{i}] is on {item.device}, {role}[0] on {device}; a norm over several devices is not"
                " supported: move the arrays to one"
            )


def _check_separate(arrays: ArrayLibrary, outputs: list[Any], others: list[Any], role: str) -> None:
    """Raise ValueError where outputs[i] shares memory with others[j], j != i: it would be changed before it is read."""
    spans = sorted(
        [(*arrays.extent(y), 0, i) for i, y in enumerate(outputs)]
        + [(*arrays.extent(other), 1, j) for j, other in enumerate(others)]
    )
    open_spans: list[tuple[int, int, int, int]] = []
    for span in spans:
        first, last, side, index = span
        if first == last:
            continue
        open_spans = [other for other in open_spans if other[1] > first]
        for _, _, other_side, other_index in open_spans:
            i, j = (index, other_index) if side == 0 else (other_index, index)
            if other_side != side and i != j and arrays.overlap(outputs[i], others[j]):
                raise ValueError(
                    f"out[{i}] shares memory with {role}[{j}]; out[{i}] may be grads[{i}] itself or separate memory"
                )
        open_spans.append(span)


_CLIP_RAISES = """\
Raises
------
TypeError
    A single array in place of a list, an array of another library or of a dtype that the backend lacks.
ValueError
    Arrays on several devices, lists of different lengths, shapes that differ, a limit that is negative or not finite,
    or an `out` whose arrays are read-only, of another shape, or overlap other arrays than their own.
gradmark.NonFiniteError
    A ValueError: NaN or infinity in a gradient; the message gives the index of the array. What `out` then holds is
    unspecified, except that clip_grad_norm has not touched it."""

_BATCH_RAISES = """\
Raises
------
TypeError
    An array of another library, or of a dtype that does not fit; the message lists what does.
ValueError
    x with less than two axes, per-channel arrays of another shape than (channels,), a number out of its range, devices
    that differ, an `out` that is read-only, of another shape, or that overlaps an input partly."""

_BATCH_FORWARD = f"""\
Normalize each channel by the statistics of the batch: y = (x - mean) invstd weight + bias.

Parameters
----------
x : array of shape (batch, channels, *spatial)
    At least two values per channel, else ValueError. What is not C-contiguous, the numba backend copies first.
weight, bias : array of shape (channels,), or None
    Dtype of x, or float32 where x is float16 or bfloat16. None stands for 1 and 0.
running_mean, running_var : array of shape (channels,), or None
    Running statistics, both or neither: float64 with x of float64, else float32 (half precision would lose most of an
    update). They are not changed.
momentum : float
    Weight of this batch in the new running statistics, in [0, 1].
eps : float
    Added to the variance, > 0.
out : array, optional
    Where y goes: shape, dtype and device of x. May be x itself.

Returns
-------
BatchNormResult
    y, mean, invstd, running_mean, running_var. The variance that normalizes is biased (divided by the number of
    values), the one that enters running_var is unbiased, as in PyTorch.

{_BATCH_RAISES}"""

_BATCH_BACKWARD = f"""\
The gradients of `batch_norm`: dx = weight invstd (g - Σg / m - x̂ Σ(g x̂) / m), x̂ = (x - mean) invstd, m values.

Parameters
----------
grad : array
    The gradient with respect to y; shape, dtype and device of x.
x, weight
    As in the forward pass.
mean, invstd : array of shape (channels,)
    As the forward pass returned them.
out : array, optional
    Where dx goes. May be grad or x itself.

Returns
-------
BatchNormGradients
    dx, dweight = Σ g x̂, dbias = Σ g; the last two are None where weight is None.

{_BATCH_RAISES}"""

_INFERENCE_FORWARD = f"""\
Normalize each channel by given statistics: y = (x - running_mean) / √(running_var + eps) weight + bias.

Parameters
----------
x : array of shape (batch, channels, *spatial)
    May be empty.
weight, bias : array of shape (channels,), or None
    Dtype of x, or float32 where x is float16 or bfloat16. None stands for 1 and 0.
running_mean, running_var : array of shape (channels,)
    float64 with x of float64, else float32.
eps : float
    Added to the variance, > 0.
out : array, optional
    Where y goes: shape, dtype and device of x. May be x itself.

Returns
-------
y : array
    Shape, dtype and device of x.

{_BATCH_RAISES}"""

_INFERENCE_BACKWARD = f"""\
The gradients of `batch_norm_inference`: dx = g weight / √(running_var + eps).

Parameters
----------
grad : array
    The gradient with respect to y; shape, dtype and device of x.
x, weight, running_mean, running_var, eps
    As in the forward pass.
out : array, optional
    Where dx goes. May be grad or x itself.

Returns
-------
BatchNormGradients
    dx, dweight = Σ g (x - running_mean) / √(running_var + eps), dbias = Σ g; the last two are None where weight is
    None.

{_BATCH_RAISES}"""

_CLIP_NORM_FORWARD = f"""\
Scale gradients by one coefficient, so that their global 2-norm is at most max_norm.

Parameters
----------
grads : sequence of arrays
    Any shapes and accepted dtypes, on one device; may be empty.
max_norm : float
    Finite and >= 0. 0 gives zeros, as in PyTorch.
out : list of arrays, optional
    Where the results go, each like its gradient. out=grads clips in place.

Returns
-------
ClippedGradients
    clipped, the list of the scaled arrays, and total_norm, the norm before clipping as a 0-d array of float64:
    it is accumulated in float64 and does not overflow or underflow on the way.

{_CLIP_RAISES}"""

_CLIP_NORM_BACKWARD = f"""\
The vector-Jacobian product of `clip_grad_norm`: c v - (c / (n (n + 1e-6))) <v, g> g where it clipped, else v.

n is the global norm, c < 1 the coefficient, <v, g> the sum over all arrays.

Parameters
----------
cotangents : sequence of arrays
    v: the gradients with respect to the clipped arrays, each like its gradient.
grads, max_norm
    As in the forward pass.
out : list of arrays, optional
    Where the results go. May be grads or cotangents.

Returns
-------
dgrads : list of arrays
    Like grads.

{_CLIP_RAISES}"""

_CLIP_VALUE_FORWARD = f"""\
Clamp every element of every gradient to [-clip_value, clip_value].

Parameters
----------
grads : sequence of arrays
    Any shapes and accepted dtypes, on one device; may be empty.
clip_value : float
    Finite and >= 0; rounded to the dtype of each array.
out : list of arrays, optional
    Where the results go, each like its gradient. out=grads clips in place.

Returns
-------
clipped : list of arrays
    Like grads.

{_CLIP_RAISES}"""

_CLIP_VALUE_BACKWARD = f"""\
The vector-Jacobian product of `clip_grad_value`: v where |g| <= clip_value, else 0, as autograd of clamp.

Parameters
----------
cotangents : sequence of arrays
    v: the gradients with respect to the clipped arrays, each like its gradient.
grads, clip_value
    As in the forward pass, which rejects NaN; here the gradient at NaN is 0.
out : list of arrays, optional
    Where the results go. May be grads or cotangents.

Returns
-------
dgrads : list of arrays
    Like grads.

{_CLIP_RAISES}"""

_RESIDUAL_RAISES = f"""\
Raises
------
TypeError
    An array of another library or of a dtype that the backend lacks; the message lists what it takes.
ValueError
    Shapes or devices that differ, an `out` that is read-only, of another shape, or that overlaps an input partly.
LookupError
    An activation that is unknown, or that its input alone does not decide.
    Accepted: None, {", ".join(residual_activations())}."""

_RESIDUAL_FORWARD = f"""\
y = activation(x + f), the sum rounded to the dtype before the activation.

Parameters
----------
x, f : array
    Of the same shape, dtype and device; nothing is broadcast.
activation : str, optional
    Name of an activation without learnable parameters; its fixed ones have their defaults. None is the identity.
out : array, optional
    Where y goes. May be x or f itself.

Returns
-------
y : array
    Shape, dtype and device of x.

{_RESIDUAL_RAISES}"""

_RESIDUAL_BACKWARD = f"""\
d = grad · activation'(x + f), the gradient in x and in f alike.

Parameters
----------
grad : array
    The gradient with respect to y; shape, dtype and device of x.
x, f, activation
    As in the forward pass.
out : array, optional
    Where d goes. May be grad, x or f itself.

Returns
-------
d : array
    Shape, dtype and device of x.

{_RESIDUAL_RAISES}"""

_OPERATIONS: dict[str, _Operation] = {
    "batch_norm": _Operation(_batch_norm, _BATCH_FORWARD, _BATCH_BACKWARD),
    "batch_norm_inference": _Operation(_batch_norm_inference, _INFERENCE_FORWARD, _INFERENCE_BACKWARD),
    "clip_grad_norm": _Operation(_clip_grad_norm, _CLIP_NORM_FORWARD, _CLIP_NORM_BACKWARD),
    "clip_grad_value": _Operation(_clip_grad_value, _CLIP_VALUE_FORWARD, _CLIP_VALUE_BACKWARD),
    "residual_add": _Operation(_residual_add, _RESIDUAL_FORWARD, _RESIDUAL_BACKWARD),
}
