"""The operations as operators of torch.library, behind autograd, torch.func.vmap and torch.compile.

`torch.ops.gradmark.gelu(x)` and `torch.ops.gradmark.gelu_backward(grad, x)` are what torch.compile, torch.export and
opcheck see. Eager calls take a shorter way to the same kernels: PyTorch's dispatcher and the autograd of torch.library
cost more than a small kernel.

Backward is differentiated once more, and as often as is asked for, by the expressions of `_derivatives`. Under autocast
nothing is cast: an operation gives the dtype of its input, and computes half precision in float32. There is no
forward-mode derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from gradmark import catalog
from gradmark.catalog import BACKWARD, FORWARD, Activation, Gated, Pass, Rowwise, backward_of
from gradmark.gated.public import first_half
from gradmark.nn._derivatives import is_piecewise_linear, second
from gradmark.nn._kernels import Row, arguments, kernel

Function = Callable[..., Any]

ROWS: tuple[Row, ...] = (*catalog.ACTIVATIONS, *catalog.GATED, *catalog.ROWWISE)
"""The operations that are functions of one tensor, and so can be modules without state of their own."""

# torch.library's class has no annotations.
_LIBRARY: Any = cast(Any, torch.library.Library)("gradmark", "DEF")


def operator(name: str) -> Function:
    """The function of tensors called `name`, such as "gelu" or "gelu_backward", with autograd.

    Its arguments are those of `_kernels.arguments`, by position.
    """
    return _OPERATORS[name]


def _define(row: Row) -> None:
    _OPERATORS[backward_of(row.name)] = _defined(row, BACKWARD)
    _OPERATORS[row.name] = _defined(row, FORWARD)


def _defined(row: Row, operation_pass: Pass) -> Function:
    name = row.name if operation_pass == FORWARD else backward_of(row.name)
    given = arguments(row, operation_pass)
    compute = kernel(row, operation_pass)
    results = ", ".join(["Tensor"] * (1 + (len(_learnable(row)) if operation_pass == BACKWARD else 0)))
    declared = ", ".join(f"{argument.kind} {argument.name}" for argument in given)
    _LIBRARY.define(f"{name}({declared}) -> " + (f"({results})" if "," in results else results))
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gradmark::{name}", _fake(row, operation_pass), lib=_LIBRARY)
    setup, backward = (_of_forward if operation_pass == FORWARD else _of_backward)(row)
    torch.library.register_autograd(f"gradmark::{name}", backward, setup_context=setup, lib=_LIBRARY)
    registered = getattr(torch.ops.gradmark, name).default
    torch.library.register_vmap(f"gradmark::{name}", _batched(row, operation_pass, lambda: registered), lib=_LIBRARY)
    function = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(compute),
            "setup_context": staticmethod(setup),
            "backward": staticmethod(backward),
            "vmap": staticmethod(_batched(row, operation_pass, lambda: _OPERATORS[name])),
        },
    )
    return _shortest(registered, function, compute)


def _shortest(registered: Any, function: Any, compute: Function) -> Function:
    """A function that goes to the kernel on the shortest way that what surrounds the call allows."""
    # What torch.autograd.Function.apply does before it comes to this serves torch.func, and takes longer than the rest.
    apply = super(torch.autograd.Function, function).apply

    def call(*given: Any) -> Any:
        if torch.compiler.is_compiling():
            return registered(*given)
        if type(given[0]) not in _PLAIN or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
            return registered(_tensor(given[0]), *given[1:])
        if torch._C._are_functorch_transforms_active():
            return function.apply(*given)
        return apply(*given) if torch.is_grad_enabled() else compute(*given)

    return call


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def _tensor(x: Any) -> Any:
    # What is no tensor but answers for one is traced: a proxy of torch.fx.
    if not isinstance(x, torch.Tensor) and not hasattr(type(x), "__torch_function__"):
        raise TypeError(
            f"x is of type {type(x).__module__}.{type(x).__qualname__}; a module takes torch.Tensor"
            " (torch.from_numpy converts an array without a copy)"
        )
    return x


def _fake(row: Row, operation_pass: Pass) -> Function:
    """What the results look like: torch.compile computes with that."""
    if operation_pass == FORWARD:
        if isinstance(row, Gated):
            return lambda x, axis, gate_last: torch.empty_like(first_half(x, axis, row.name)[1])
        return lambda x, *rest: torch.empty_like(x)
    learnable = len(_learnable(row))
    if learnable:
        return lambda grad, x, *rest: (torch.empty_like(x), *map(torch.empty_like, rest[:learnable]))
    return lambda grad, saved, *rest: torch.empty_like(saved)


def _learnable(row: Row) -> tuple[catalog.Parameter, ...]:
    return row.learnable if isinstance(row, Activation) else ()


def _of_forward(row: Row) -> tuple[Function, Function]:
    """What the forward pass keeps, and the gradients of its arguments."""
    given = arguments(row, FORWARD)
    tensors = sum(argument.is_tensor for argument in given)
    rest = [None] * (len(given) - 1 - len(_learnable(row)))
    of_result = row.saved == ("y",)
    name = backward_of(row.name)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output if of_result else inputs[0], *inputs[1:tensors])
        ctx.numbers = inputs[tensors:]

    def backward(ctx: Any, grad: Any) -> Any:
        found = _OPERATORS[name](grad, *ctx.saved_tensors, *ctx.numbers)
        return (*found, *rest) if type(found) is tuple else (found, *rest)

    return setup, backward


def _of_backward(row: Row) -> tuple[Function, Function]:
    """The same of the backward pass."""
    given = arguments(row, BACKWARD)
    tensors = sum(argument.is_tensor for argument in given)
    differentiated = 2 + len(_learnable(row))
    rest = [None] * (len(given) - differentiated)
    derivatives = _derivatives_of(row)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    def backward(ctx: Any, *cotangents: Any) -> Any:
        saved = ctx.saved_tensors
        return *derivatives(cotangents, saved[:differentiated], saved[differentiated:], ctx.numbers), *rest

    return setup, backward


def _derivatives_of(row: Row) -> Function:
    """(cotangents, (grad, x or y, ...), (seed,) or (), numbers) -> the gradients of the second."""
    forward, backward = row.name, backward_of(row.name)

    def of_activation(cotangents: Any, tensors: Any, seed: Any, numbers: Any) -> Any:
        # grad f'(x) is linear in grad: with respect to that, it is its own derivative.
        grad, x = tensors
        again = _OPERATORS[backward](cotangents[0], x, *seed, *numbers)
        return again, torch.zeros_like(x) if straight else second(row, cotangents, (grad, x), numbers)[1]

    def of_seeded_row(cotangents: Any, tensors: Any, seed: Any, numbers: Any) -> Any:
        # The gradient is a function of grad and y, and y one of x, whose noise only the kernels know.
        grad, x = tensors
        *parameters, _, axis = numbers
        y = _OPERATORS[forward](x, *seed, *parameters, False, axis)
        of_grad, of_y = second(row, cotangents, (grad, y), numbers)
        return of_grad, _OPERATORS[backward](of_y, x, *seed, *numbers)

    def of_any(cotangents: Any, tensors: Any, seed: Any, numbers: Any) -> Any:
        return second(row, cotangents, tensors, numbers)

    if isinstance(row, Activation) and not row.learnable:
        straight = is_piecewise_linear(row)
        return of_activation
    return of_seeded_row if isinstance(row, Rowwise) and row.seeded else of_any


def _batched(row: Row, operation_pass: Pass, called: Callable[[], Function]) -> Function:
    """The rule for torch.func.vmap of what is `called`: one call for all samples, where that gives the same."""
    tensors = sum(argument.is_tensor for argument in arguments(row, operation_pass))
    together = not _learnable(row) and not (isinstance(row, Activation | Rowwise) and row.seeded)

    def rule(info: Any, dims: Any, *given: Any) -> Any:
        batch, function = info.batch_size, called()
        if together:
            moved = [_in_front(tensor, dim, batch) for tensor, dim in zip(given[:tensors], dims, strict=False)]
            numbers = given[tensors:]
            if not isinstance(row, Activation):
                numbers = _one_axis_more(row, moved[-1], numbers)
            return function(*moved, *numbers), 0
        if operation_pass == FORWARD and _learnable(row) and _channels_stay(given[0], dims):
            x = _in_front(given[0], dims[0], batch)
            return function(x.flatten(0, 1), *given[1:]).unflatten(0, x.shape[:2]), 0
        # A gradient that is a sum, or random numbers by their index: each sample is a call.
        samples = [function(*_sample(given, dims, i)) for i in range(batch)]
        if type(samples[0]) is tuple:
            return tuple(map(torch.stack, zip(*samples, strict=True))), tuple(0 for _ in samples[0])
        return torch.stack(samples), 0

    return rule


def _in_front(tensor: Any, dim: int | None, batch: int) -> Any:
    return tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _one_axis_more(row: Row, batched: Any, numbers: tuple[Any, ...]) -> tuple[Any, ...]:
    """The numbers, with the axis counted in what has the batch in front; it is checked before."""
    index = [argument.name for argument in arguments(row, FORWARD) if not argument.is_tensor].index("axis")
    axis = numbers[index]
    # An axis that a sample lacks must not become the batch's.
    moved = axis + 1 if axis >= 0 else axis if -axis < batched.ndim else axis - 1
    return *numbers[:index], moved, *numbers[index + 1 :]


def _channels_stay(x: Any, dims: Any) -> bool:
    """Whether samples can be taken together along axis 0, which leaves the channels on axis 1."""
    return dims[0] is not None and x.ndim >= 3 and not any(dim is not None for dim in dims[1:])


def _sample(given: tuple[Any, ...], dims: Any, i: int) -> list[Any]:
    return [value if dim is None else value.select(dim, i) for value, dim in zip(given, dims, strict=True)]


_OPERATORS: dict[str, Function] = {}
for _row in ROWS:
    _define(_row)
