"""torch, eager and compiled: the kernels that autograd calls, and autograd where there are none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._worktree import workloads
from .arguments import MAX_NORM, arguments, learnable, lists
from .cases import ELEMENTWISE, ROWWISE, AbsentError, Case, Data

Call = Callable[[], Any]
Function = Callable[..., Any]

_EPS = 1e-5
_MOMENTUM = 0.1


def eager(data: Data) -> Call:
    """As a user calls it; a backward pass as autograd calls it, or autograd on the graph of an expression."""
    case = data.case
    if case.operation == "clip_grad_norm":
        return _clip(data)
    if not case.backward and case.group == ELEMENTWISE:
        function, inputs, fixed = _elementwise(data)
        return functools.partial(function, *inputs, *fixed)
    if not case.backward:
        function, inputs = _forward(data)
        return functools.partial(function, *inputs)
    kernel = _kernel(data)
    if kernel is not None:
        return kernel
    import torch

    function, inputs = _forward(data)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    return functools.partial(torch.autograd.grad, function(*leaves), leaves, _tensor(data.grad), retain_graph=True)


def starts_from_result(case: Case) -> bool:
    """Whether autograd starts from what the forward pass has found (y, a sum, what it drew), where ours has x."""
    return case.backward and (case.operation in _FROM_RESULT or case.noisy)


def compiled(data: Data) -> Call:
    """torch.compile of the forward pass, or of a function of (grad, x) that `vjp` makes of it."""
    if data.case.operation == "clip_grad_norm":
        raise AbsentError("a list of thousands of tensors is no graph to compile")
    import torch

    # In this process: a pool of compilers beside it would be there while others are timed.
    torch._inductor.config.compile_threads = 1
    # Functions of one source line share a cache; when it is full, torch.compile runs them uncompiled.
    torch._dynamo.reset()
    function, inputs = _compilable(data)
    # fullgraph: an error where it would run a part uncompiled.
    return functools.partial(torch.compile(function, dynamic=False, fullgraph=True), *inputs)


def _compilable(data: Data) -> tuple[Function, tuple[Any, ...]]:
    if not data.case.backward:
        return _forward(data)
    import torch

    if data.case.operation in _BATCH_NORM:
        # It starts from the statistics, which vjp would compute again.
        kernel = _batch_norm_kernel(data, torch.ops.aten)
        return kernel.func, kernel.args
    forward, inputs = _forward(data)
    return (lambda grad, *arrays: torch.func.vjp(forward, *arrays)[1](grad)), (_tensor(data.grad), *inputs)


def expression(row: Any) -> Function:
    """An activation's `peer` as a function of x and the parameters."""
    names = ", ".join(["x", *(p.name for p in row.parameters)])
    return _evaluated(f"lambda {names}: {row.peer}")


def _forward(data: Data) -> tuple[Function, tuple[Any, ...]]:
    """The forward pass, and the tensors that it is differentiated by."""
    case = data.case
    if case.group == ELEMENTWISE:
        function, inputs, fixed = _elementwise(data)
        return (lambda *tensors: function(*tensors, *fixed)), inputs
    if case.operation == "residual_add":
        return _evaluated(f"lambda x, f: F.{case.variant}(x + f)"), (_tensor(data.x), _tensor(data.other))
    if case.operation in _BATCH_NORM:
        return _batch_norm(data)
    if case.operation in _NAMED:
        return _evaluated(_NAMED[case.operation]), (_tensor(data.x),)
    if case.group == ROWWISE:
        return _evaluated(f"lambda x, axis=-1: {case.row.peer}"), (_tensor(data.x),)
    unit = _evaluated(f"lambda a, b: {case.row.peer}")
    return (lambda x: unit(*x.chunk(2, -1))), (_tensor(data.x),)


def _elementwise(data: Data) -> tuple[Function, tuple[Any, ...], list[float]]:
    """An activation as a function of tensors and of fixed parameters, and these."""
    row = data.case.row
    function = _training if data.case.variant == workloads.TRAINING else expression(row)
    tensors = (data.x, *(learnable(p, data) for p in row.parameters if p.learnable))
    return function, tuple(map(_tensor, tensors)), [p.usual for p in row.parameters if not p.learnable]


_NAMED = {"glu": "F.glu", "gumbel_softmax": "F.gumbel_softmax"}
"""Functions that torch has, where the row's `peer` is an expression; torch draws its own noise."""

_BATCH_NORM = ("batch_norm", "batch_norm_inference")


def _batch_norm(data: Data) -> tuple[Function, tuple[Any, ...]]:
    x, weight, bias, *statistics = map(_tensor, arguments(data)[0])
    training = data.case.operation == "batch_norm"
    functional = _evaluated("F.batch_norm")

    def function(x: Any, weight: Any, bias: Any) -> Any:
        return functional(x, *statistics, weight, bias, training, _MOMENTUM, _EPS)

    return function, (x, weight, bias)


def _training(x: Any, lower: float, upper: float) -> Any:
    import torch

    return torch.nn.functional.rrelu(x, lower, upper, training=True)


def _evaluated(text: str) -> Function:
    import torch

    function: Function = eval(text, {"torch": torch, "F": torch.nn.functional})
    return function


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


def _clip(data: Data) -> Call:
    import torch

    parameters = []
    for array in lists(data):
        grad = torch.from_numpy(array)
        parameter = torch.nn.Parameter(torch.empty_like(grad))
        parameter.grad = grad
        parameters.append(parameter)
    return functools.partial(torch.nn.utils.clip_grad_norm_, parameters, MAX_NORM)


# --- the kernels that autograd calls ----------------------------------------------------------------------------------


def _kernel(data: Data) -> Call | None:
    """The kernel that autograd calls for a backward pass, with what it saves; None where there is none."""
    import torch

    aten, case = torch.ops.aten, data.case
    if case.group == ELEMENTWISE:
        return _elementwise_kernel(data, aten)
    if case.operation == "residual_add":
        # Autograd has saved x + f (of relu the result), which ours adds up again.
        return functools.partial(_OF_SUM[case.variant], aten, _tensor(data.grad), _tensor(data.x + data.other))
    if case.operation in _BATCH_NORM:
        return _batch_norm_kernel(data, aten)
    if case.operation in _OF_SAVED:
        return functools.partial(_OF_SAVED[case.operation], aten, *map(_tensor, arguments(data)[0]))
    return None


def _elementwise_kernel(data: Data, aten: Any) -> Call | None:
    grad, x, parameters = _tensor(data.grad), _tensor(data.x), [p.usual for p in data.case.row.parameters]
    if data.case.variant == workloads.TRAINING:
        noise = x.clone()
        aten.rrelu_with_noise(x, noise, *parameters, True)
        return functools.partial(aten.rrelu_with_noise_backward, grad, x, noise, *parameters, True, False)
    name = data.case.operation
    if name not in _ATEN:
        return None
    saved = _SAVED[name](aten, x) if name in _SAVED else expression(data.case.row)(x, *parameters)
    return functools.partial(_ATEN[name], aten, grad, x, saved, *parameters)


def _batch_norm_kernel(data: Data, aten: Any) -> functools.partial[Any]:
    grad, x, weight, mean, invstd = map(_tensor, arguments(data)[0])
    training = data.case.operation == "batch_norm"
    statistics = (None, None, mean, invstd) if training else (mean, invstd, None, None)
    kernel = aten.native_batch_norm_backward
    return functools.partial(kernel, grad, x, weight, *statistics, training, _EPS, [True, True, True])


_OF_SUM: Mapping[str, Function] = {
    "relu": lambda aten, grad, total: aten.threshold_backward(grad, total, 0),
    "gelu": lambda aten, grad, total: aten.gelu_backward(grad, total),
}
_OF_SAVED: Mapping[str, Function] = {
    "glu": lambda aten, grad, x: aten.glu_backward(grad, x, -1),
    "softmax": lambda aten, grad, y: aten._softmax_backward_data(grad, y, -1, y.dtype),
    "log_softmax": lambda aten, grad, y: aten._log_softmax_backward_data(grad, y, -1, y.dtype),
}
_ATEN: Mapping[str, Callable[..., Any]] = {
    "sigmoid": lambda aten, g, x, y: aten.sigmoid_backward(g, y),
    "tanh": lambda aten, g, x, y: aten.tanh_backward(g, y),
    "relu": lambda aten, g, x, y: aten.threshold_backward(g, y, 0),
    "leaky_relu": lambda aten, g, x, y, slope: aten.leaky_relu_backward(g, x, slope, False),
    "elu": lambda aten, g, x, y, alpha: aten.elu_backward(g, alpha, 1, 1, False, x),
    "gelu": lambda aten, g, x, y: aten.gelu_backward(g, x),
    "gelu_tanh": lambda aten, g, x, y: aten.gelu_backward(g, x, approximate="tanh"),
    "silu": lambda aten, g, x, y: aten.silu_backward(g, x),
    "relu6": lambda aten, g, x, y: aten.hardtanh_backward(g, x, 0, 6),
    "rrelu": lambda aten, g, x, y, low, high: aten.leaky_relu_backward(g, x, (low + high) / 2, False),
    "celu": lambda aten, g, x, y, alpha: aten.elu_backward(g, alpha, 1, 1 / alpha, False, x),
    "selu": lambda aten, g, x, y: aten.elu_backward(g, 1.6732632423543772, 1.0507009873554805, 1, False, x),
    "hard_sigmoid": lambda aten, g, x, y: aten.hardsigmoid_backward(g, x),
    "hard_tanh": lambda aten, g, x, y, low, high: aten.hardtanh_backward(g, x, low, high),
    "hard_swish": lambda aten, g, x, y: aten.hardswish_backward(g, x),
    "threshold": lambda aten, g, x, y, threshold, value: aten.threshold_backward(g, x, threshold),
    "softshrink": lambda aten, g, x, y, lambd: aten.softshrink_backward(g, x, lambd),
    "hardshrink": lambda aten, g, x, y, lambd: aten.hardshrink_backward(g, x, lambd),
    "softplus": lambda aten, g, x, y, beta, threshold: aten.softplus_backward(g, x, beta, threshold),
    "log_sigmoid": lambda aten, g, x, buffer: aten.log_sigmoid_backward(g, x, buffer),
    "mish": lambda aten, g, x, y: aten.mish_backward(g, x),
    "exponential": lambda aten, g, x, y: g * y,
    "identity": lambda aten, g, x, y: g.clone(),
}
"""The kernel that autograd calls, from the gradient and what it saves of x and y; the others are expressions."""

_FROM_RESULT = ("sigmoid", "tanh", "exponential", "log_sigmoid", "residual_add")

_SAVED: Mapping[str, Callable[[Any, Any], Any]] = {"log_sigmoid": lambda aten, x: aten.log_sigmoid_forward(x)[1]}
"""What autograd saves in place of y."""
