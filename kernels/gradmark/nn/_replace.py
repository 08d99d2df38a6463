"""torch.nn's activations in a model, made ours in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from gradmark.nn._modules import CLASSES


@dataclass(frozen=True, slots=True)
class Replaced:
    """What `replace_activations` did to a model.

    Attributes
    ----------
    swapped : mapping of str to str
        Of each module that is ours now, by its qualified name in the model, its class. A module that is in the model
        several times is there by the first of its names.
    left : mapping of str to str
        Of each activation that stayed as it was, the reason.
    """

    swapped: Mapping[str, str]
    left: Mapping[str, str]

    def __repr__(self) -> str:
        lines = [f"{len(self.swapped)} swapped, {len(self.left)} left alone"]
        for title, items in (("swapped", self.swapped), ("left alone", self.left)):
            width = max(map(len, items), default=0)
            lines += [f"{title}:"] * bool(items)
            lines += [f"  {name or '(the model)':{width}}  {what}" for name, what in items.items()]
        return "\n".join(lines)


def replace_activations(model: torch.nn.Module) -> Replaced:
    """Make torch.nn's activations in a model those of gradmark.nn, in place.

    A module stays the object that it is, and becomes an instance of our subclass of its class. So its parameters,
    buffers, device, dtype, training flag and hooks are kept, optimizers and whoever else holds it or its parameters see
    the same, a module in several places is swapped in all of them, and the state-dict does not change.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a single activation. Its activations are found wherever `model.modules()` finds them, whatever
        holds them. What a forward method calls (torch.nn.functional.relu, tensor.tanh()) is no module: it stays.

    Our modules take what the kernels take: strided tensors of floating point. They do without what torch.nn's allow
    beside that: integers, complex and sparse and nested tensors, DTensors as inputs, a softmax of no dimension,
    torch.jit.script and forward-mode derivatives. torch.compile, torch.export, torch.fx and torch.jit.trace see one
    operator for each.

    Returns
    -------
    Replaced
        What was swapped; and what was left alone, with the reason: instances of subclasses, whose forward may be
        another one, modules whose own `forward` was assigned to them, and functions that layers of torch.nn hold as
        their `activation`.

    Raises
    ------
    TypeError
        `model` is no module, or a compiled one, whose code is the one before.

    Examples
    --------
    >>> import torch, gradmark
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2), torch.nn.Tanh())
    >>> gradmark.nn.replace_activations(model)
    2 swapped, 0 left alone
    swapped:
      1  GELU
      3  Tanh
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is a ScriptModule, which is compiled; replace the activations before torch.jit.script")
    swapped, left = {}, {}
    for name, module in model.named_modules():
        reason = _why_left(module)
        if reason is not None:
            left[name] = reason
        elif type(module) in _OURS:
            module.__class__ = _OURS[type(module)]
            swapped[name] = type(module).__name__
    return Replaced(MappingProxyType(swapped), MappingProxyType(left))


_OURS: Mapping[type, Any] = MappingProxyType(
    {getattr(torch.nn, name): ours for name, ours in CLASSES.items() if issubclass(ours, getattr(torch.nn, name, ()))}
)
"""Our class for one of torch.nn's."""


def _why_left(module: torch.nn.Module) -> str | None:
    """Why an activation is not swapped; None where it is, and of what is none."""
    theirs = next((kind for kind in type(module).__mro__ if kind in _OURS), None)
    if theirs is None:
        function: Any = getattr(module, "activation", None)
        if getattr(function, "__module__", None) in ("torch.nn.functional", "torch._C._nn", "torch"):
            return f"its activation is the function {function.__name__}; construct the layer with a module"
        return None
    if type(module) is _OURS[theirs]:
        return "it is gradmark's already"
    if type(module) is not theirs:
        return f"{type(module).__name__} is a subclass of torch.nn.{theirs.__name__}, with what may be another forward"
    if "forward" in vars(module):
        return "its forward was assigned to it, and hides that of the class"
    return None
