"""In-place initializers for PyTorch: drop-in for `torch.nn.init`, with a seed, at any sharding.

Every initializer of the catalog is here as `NAME_(tensor, ..., *, seed, stream=None)`, and so are
`kaiming_uniform_` and `kaiming_normal_`. Names, order and defaults of the parameters are those of
`torch.nn.init` where it has the function; only `seed` is new. Weights are those of `gradmark.backend(...).NAME`: an
element depends on the seed and on its index in the whole weight. So a DTensor is filled shard by shard, each on its
own process, without communication and without the whole weight anywhere, and holds the same weights at any number of
processes. Only `orthogonal_` communicates, where the longer side is sharded: its weights are the same up to rounding.
Fans are those of the whole weight.

`initialize_` does so for a whole model, with a stream of random numbers for each parameter.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from gradmark import catalog
from gradmark.arrays import check_distinct_elements
from gradmark.backends import backend
from gradmark.initializers.public import checked_arguments
from gradmark.nn._docstrings import docstring, kaiming_docstring
from gradmark.nn._fill import FILLS
from gradmark.nn._orthogonal import orthogonal
from gradmark.nn._shards import Part, local_part
from gradmark.numerics.philox import check_seed, stream_seed
from gradmark.signatures import define

if TYPE_CHECKING:
    from gradmark.nn._model import initialize_ as initialize_

_ROWS = {row.name: row for row in catalog.INITIALIZERS}

_NAMES_OF_TORCH = {"uniform": {"low": "a", "high": "b"}, "constant": {"value": "val"}}
"""What torch.nn.init calls a parameter that the catalog calls otherwise."""


_KAIMING = {"kaiming_uniform_": "he_uniform", "kaiming_normal_": "he_normal"}
"""What torch.nn.init has besides: the rows of the catalog, by other parameters."""


def __getattr__(name: str) -> Any:
    if name == "initialize_":
        from gradmark.nn import _model

        found: Any = _model.initialize_
    elif name in _KAIMING:
        found = _kaiming(name)
    elif name.endswith("_") and name[:-1] in _ROWS:
        found = _function(_ROWS[name[:-1]])
    else:
        raise AttributeError(f"gradmark.nn.init has no {name!r}; it has {', '.join(__dir__())}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(["initialize_", *_KAIMING, *(f"{name}_" for name in _ROWS)])


def _function(row: catalog.Initializer) -> Callable[..., Any]:
    """The in-place function of a row: the signature is that of the backends, with a tensor for shape and dtype."""
    given = inspect.signature(getattr(backend("torch"), row.name)).parameters
    parameters = [p for name, p in given.items() if name not in ("shape", "seed", "dtype", "stream")]
    names = {p.name: _NAMES_OF_TORCH.get(row.name, {}).get(p.name, p.name) for p in parameters}
    of_torch = [p.replace(name=names[p.name], kind=p.POSITIONAL_OR_KEYWORD) for p in parameters]
    seed = "seed, stream=None" if row.seeded else "seed=None, stream=None"
    signature = f"({', '.join(['tensor', *map(str, of_torch), '*', seed])})"
    values = ", ".join(f"{name!r}: {name_of_torch}" for name, name_of_torch in names.items())
    body = f"return initialize(tensor, {{{values}}}, seed, stream)"
    function = define(f"{row.name}_", signature, body, {"initialize": functools.partial(_initialize, row)}, "")
    function.__doc__ = docstring(row, names)
    # Where pickle finds it.
    function.__module__ = __name__
    return function


def _kaiming(name: str) -> Callable[..., Any]:
    """He's initializer by the parameters of torch.nn.init."""
    row = _ROWS[_KAIMING[name]]

    def kaiming(
        tensor: Any,
        a: float = 0.0,
        mode: str = "fan_in",
        nonlinearity: str = "leaky_relu",
        *,
        seed: int,
        stream: str | None = None,
    ) -> Any:
        gain = torch.nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
        return _initialize(row, tensor, {"gain": gain, "mode": mode}, seed, stream)

    kaiming.__name__ = kaiming.__qualname__ = name
    kaiming.__doc__ = kaiming_docstring(name, row)
    return kaiming


def _initialize(row: catalog.Initializer, tensor: Any, parameters: Mapping[str, Any], seed: Any, stream: Any) -> Any:
    """Check everything, then fill what this process has of `tensor`."""
    _check_tensor(tensor)
    local, part = local_part(tensor)
    check_distinct_elements(tuple(local.shape), tuple(local.stride()), 1, "tensor")
    own_seed: Any = stream_seed(check_seed(seed), stream) if row.seeded else None
    arguments = checked_arguments(row, part.shape, str(tensor.dtype).removeprefix("torch."), parameters)
    if local.device.type == "meta" or 0 in part.shape:
        return tensor
    kind = row.case_of(parameters).name
    if kind == "orthogonal":
        # Where a process has no elements, others may need its sums.
        with _writing(tensor, local):
            orthogonal(tensor, local.detach(), part, own_seed, **arguments)
    elif kind not in FILLS:
        named = {"seed": seed, "stream": stream} if row.seeded else {}
        _fill_whole(row, tensor, local, part, {**named, **parameters})
    elif local.numel():
        with _writing(tensor, local):
            FILLS[kind](local.detach(), part, own_seed, **arguments)
    return tensor


def _fill_whole(row: catalog.Initializer, tensor: Any, local: Any, part: Part, keywords: Mapping[str, Any]) -> None:
    """Fill with an initializer that knows whole weights only."""
    if not part.whole:
        raise ValueError(
            f"{row.name}_ makes whole weights only, and this process holds {part.local_shape} of shape {part.shape}"
            f" (placements {tensor.placements}); initialize before sharding, or take another initializer"
        )
    made = getattr(backend("torch", device=str(local.device)), row.name)
    weights = made(part.shape, dtype=local.dtype, **keywords)
    with _writing(tensor, local):
        local.detach().copy_(weights)


def _check_tensor(tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor must be a torch.Tensor, got {tensor!r} of type {type(tensor).__name__}")
    accepted = backend("torch").dtypes
    if str(tensor.dtype).removeprefix("torch.") not in accepted:
        raise TypeError(f"tensor has dtype {tensor.dtype}; accepted: {', '.join(accepted)}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"tensor has layout {tensor.layout}; accepted: torch.strided, a dense tensor")
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError("tensor was made in inference mode, which allows no change outside of it; give its clone()")


@contextlib.contextmanager
def _writing(tensor: Any, local: Any) -> Iterator[None]:
    """A context in which what a tensor holds may be changed; autograd sees that it was."""
    for changed in (tensor,) if tensor is local else (tensor, local):
        # Kernels that write to its memory tell nobody. Tensors of inference mode have no version.
        if not changed.is_inference():
            torch.autograd.graph.increment_version(changed)
    with torch.no_grad():
        yield
