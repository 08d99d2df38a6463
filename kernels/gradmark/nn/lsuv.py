"""Layer-sequential unit variance (LSUV): weights scaled until each layer's outputs, for given data, have variance 1.

The layers are scaled in one forward pass, by a hook that runs right after each: it scales the weight, computes the
output anew, and hands that on. So the input of each layer is already that of the scaled layers before it, and no layer
is computed more often than it is scaled.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from gradmark.arrays import finite_number, positive_int
from gradmark.nn import init
from gradmark.numerics.philox import check_seed


class Scaling(NamedTuple):
    """What was done to a layer."""

    before: float | None
    """The variance of its output with orthogonal weights; None of a layer that did not run."""
    after: float | None
    """The variance of its output now."""
    iterations: int
    """How often its weight was scaled."""


def lsuv_(
    module: torch.nn.Module, batch: Any, *, seed: int, tolerance: float = 0.1, max_iterations: int = 10
) -> dict[str, Scaling]:
    """Initialize the linear layers and convolutions of a module so that each has outputs of variance 1 for a batch.

    Weights are set to orthogonal ones; then, in the order in which the layers run, each is divided by the standard
    deviation of the layer's output until the variance is 1 within the tolerance. Biases stay as they are. The module
    is run once, without gradients and in evaluation mode: dropout is off, and no running statistic changes.

    Parameters
    ----------
    module : torch.nn.Module
        Its Linear, Conv and ConvTranspose layers are initialized in place, itself included, frozen or not. The first
        call counts of a layer that is called several times, the first call of all where layers share a weight. The
        weight of a layer that does not run is orthogonal and not scaled.
    batch : torch.Tensor or tuple
        What the module is called with: `module(batch)`, or `module(*batch)` of a tuple. Two samples or more, along
        the first axis of the first tensor.
    seed : int
        0 <= seed < 2**64. A weight is drawn from the stream named after it, such as "encoder.0.weight" (the first of
        its names, where layers share it).
    tolerance : float
        How far the variance may be from 1, positive. Default: 0.1.
    max_iterations : int
        How often a weight may be scaled, 1 or more. Default: 10.

    Returns
    -------
    scalings : dict of str to Scaling
        Of each layer, by its qualified name ("" for the module itself): the variance before and after, over all
        elements of its output, and the number of iterations. In the order in which they ran, then those that did not.
        Of layers that share a weight, the one that ran first.

    Raises
    ------
    TypeError
        A module or a batch that is none, a seed or a number of iterations that is no int.
    ValueError
        A module without such layers, or of which none runs; a weight that is computed from others or not yet there; a
        batch of less than two samples; an output of variance 0, NaN or infinity; parameters out of range.
    RuntimeError
        The variance of a layer did not come within the tolerance.

    Whatever is raised, also by the module itself: weights, modes and hooks are then as they were before.

    Source
    ------
    Mishkin, Matas, ICLR 2016, arXiv:1511.06422, algorithm 1

    Examples
    --------
    >>> import torch
    >>> from gradmark.nn import lsuv_
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    >>> batch = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> scalings = lsuv_(net, batch, seed=0)
    >>> list(scalings)
    ['0', '2']
    >>> 0.9 <= net(batch).var().item() <= 1.1
    True
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {module!r} of type {type(module).__name__}")
    seed = check_seed(seed)
    tolerance = finite_number(tolerance, "tolerance")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    inputs = _inputs(batch)
    layers = _layers(module)
    scaler = _Scaler(tolerance, positive_int(max_iterations, "max_iterations"))
    with torch.no_grad(), _weights_restored_on_error(layers), _evaluation(module):
        _make_orthogonal(layers, seed)
        with scaler.hooked(layers), _noted(f"while lsuv_ called the module with {', '.join(map(_described, inputs))}"):
            module(*inputs)
        if not scaler.scalings:
            raise ValueError(f"no layer runs when the module is called; its layers: {', '.join(map(repr, layers))}")
    unused = [name for name, layer in _owners(layers).items() if not scaler.has_scaled(layer)]
    return scaler.scalings | {name: Scaling(None, None, 0) for name in unused}


_LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
)


class _Scaler:
    """Scales each weight when a layer that has it first runs."""

    def __init__(self, tolerance: float, max_iterations: int) -> None:
        self.scalings: dict[str, Scaling] = {}
        self._scaled: set[int] = set()
        self._tolerance = tolerance
        self._max_iterations = max_iterations

    def has_scaled(self, layer: Any) -> bool:
        """Whether the weight of this layer has been scaled."""
        return id(layer.weight) in self._scaled

    @contextlib.contextmanager
    def hooked(self, layers: dict[str, Any]) -> Iterator[None]:
        """Within it, a layer that runs is scaled."""
        # First of its hooks: those of the caller then see the scaled output, and once.
        handles = [
            layer.register_forward_hook(self._hook(name), prepend=True, with_kwargs=True)
            for name, layer in layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
            if self.has_scaled(layer):
                return None
            return self._scale(name, layer, args, kwargs, output)

        return hook

    def _scale(self, name: str, layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
        before = variance = _variance(output, name)
        iterations = 0
        while abs(variance - 1.0) > self._tolerance:
            if iterations == self._max_iterations:
                raise RuntimeError(
                    f"layer {name!r}: the variance of the output is {variance:.6g} after {iterations} iterations, from"
                    f" {before:.6g} with orthogonal weights; wanted: 1 ± {self._tolerance:g}."
                    f" {_advice(before, variance)}"
                )
            layer.weight.div_(math.sqrt(variance))
            output = layer.forward(*args, **kwargs)
            variance = _variance(output, name)
            iterations += 1
        self._scaled.add(id(layer.weight))
        self.scalings[name] = Scaling(before, variance, iterations)
        return output


def _advice(before: float, after: float) -> str:
    if after == before:
        return (
            "Scaling the weight changes nothing: for this batch the inputs of the layer are zeros, or nothing beside"
            " its bias; or it normalizes its weight itself"
        )
    return "A bias that varies too much is not scaled; else give a larger tolerance or more iterations"


@contextlib.contextmanager
def _noted(what: str) -> Iterator[None]:
    """An error says with what the module was called."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def _described(x: Any) -> str:
    return f"a tensor {tuple(x.shape)}" if isinstance(x, torch.Tensor) else f"one {type(x).__name__}"


def _variance(output: Any, name: str) -> float:
    """The variance over all elements, computed at least in float32."""
    computed_in = torch.promote_types(output.dtype, torch.float32)
    variance = float(output.to(computed_in).var(correction=0)) if output.numel() else math.nan
    if not 0.0 < variance < math.inf:
        raise ValueError(
            f"layer {name!r}: the variance of the output, of shape {tuple(output.shape)}, is {variance:g}, and no"
            " scale makes it 1; give a batch of finite numbers for which the outputs of this layer differ"
        )
    return variance


def _layers(module: torch.nn.Module) -> dict[str, Any]:
    """The layers by name."""
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    if not found:
        kinds = ", ".join(kind.__name__ for kind in _LAYERS)
        raise ValueError(f"the module, a {type(module).__name__}, has none of the layers that are scaled: {kinds}")
    for name, layer in found.items():
        _check_weight(layer._parameters.get("weight"), name)
    return found


def _owners(layers: dict[str, Any]) -> dict[str, Any]:
    """The layers, but of those that share a weight the first only."""
    first: dict[int, str] = {}
    for name, layer in layers.items():
        first.setdefault(id(layer.weight), name)
    return {name: layers[name] for name in first.values()}


def _check_weight(weight: Any, name: str) -> None:
    if weight is None:
        raise ValueError(
            f"layer {name!r} computes its weight from other parameters: initialize it before it is parametrized"
        )
    if isinstance(weight, torch.nn.parameter.UninitializedParameter):
        raise ValueError(f"layer {name!r} has no shape yet: call the module once before")
    if weight.is_meta:
        raise ValueError(f"layer {name!r} is on the meta device, without numbers: move it to a device before")


@contextlib.contextmanager
def _weights_restored_on_error(layers: dict[str, Any]) -> Iterator[None]:
    saved = [(layer.weight, layer.weight.detach().clone()) for layer in _owners(layers).values()]
    try:
        yield
    except BaseException:
        for weight, values in saved:
            weight.copy_(values)
        raise


@contextlib.contextmanager
def _evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each submodule has its own mode again."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


def _make_orthogonal(layers: dict[str, Any], seed: int) -> None:
    for name, layer in _owners(layers).items():
        init.orthogonal_(layer.weight, seed=seed, stream=f"{name}.weight" if name else "weight")


def _inputs(batch: Any) -> tuple[Any, ...]:
    inputs = batch if isinstance(batch, tuple) else (batch,)
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    if not tensors:
        raise TypeError(
            f"batch must be a tensor, or a tuple that holds one, got {batch!r} of type {type(batch).__name__}"
        )
    shape = tuple(tensors[0].shape)
    if not shape or shape[0] < 2:
        raise ValueError(f"batch must hold 2 samples or more along its first axis, got shape {shape}")
    return inputs
