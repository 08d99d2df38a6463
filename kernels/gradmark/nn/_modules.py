"""The operations as modules: torch.nn's own classes with our forward, and classes for what torch.nn lacks.

A class of torch.nn's keeps its constructor, attributes, state-dict and repr, as it is inherited: only `forward` is
replaced. Which operation it calls, with which attributes, is what `gradmark.drop_in` says of the function of that name
in torch.nn.functional. The other classes are made from the rows of the catalog.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gradmark import drop_in
from gradmark.arrays import check_flag, finite_number, positive_int
from gradmark.catalog import FORWARD, Activation, Gated, Parameter, Rowwise
from gradmark.nn._kernels import Row, arguments
from gradmark.nn._operators import ROWS, operator
from gradmark.signatures import define

_SPELLINGS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "glu": "GLU",
    "reglu": "ReGLU",
    "geglu": "GEGLU",
    "swiglu": "SwiGLU",
    # torch.nn.Bilinear is a layer with weights.
    "bilinear": "BilinearGLU",
}
"""Words of names of operations that are not written as Swish and Mish are."""

Attributes = Mapping[str, str]
"""Of each argument of an operator after x, the expression of its value, with `self` and `x`."""


@dataclass(frozen=True, slots=True)
class _Branch:
    """An operation that a module calls, where its options are these."""

    row: Row
    attributes: Attributes
    options: Mapping[str, Any]


def _classes() -> dict[str, type[torch.nn.Module]]:
    """Every module, by name."""
    found = {theirs.__name__: _derived(theirs, branches) for theirs, branches in _known_to_torch()}
    found["Softmax2d"] = _softmax2d()
    reached = {branch.row.name for _, branches in _known_to_torch() for branch in branches}
    for row in ROWS:
        # What changes nothing is torch.nn.Identity, which does not even copy.
        if row.name not in reached and row.formula != "x":
            own = _own(row)
            found[own.__name__] = own
    return found


def _known_to_torch() -> Iterator[tuple[type[torch.nn.Module], list[_Branch]]]:
    """The activation modules of torch.nn of which `drop_in` knows the function, and what they call."""
    functions = {drop_in.function_of(call).replace("_", ""): drop_in.function_of(call) for call in reversed(_CALLS)}
    for name in torch.nn.modules.activation.__all__:
        if name.lower() in functions:
            theirs = getattr(torch.nn, name)
            yield theirs, _branches(functions[name.lower()], theirs)


_CALLS = tuple(drop_in.TORCH)


def _branches(function: str, theirs: type[torch.nn.Module]) -> list[_Branch]:
    """One for each operation that the function of torch.nn.functional can be, by the options that say which."""
    longest: dict[str, tuple[ast.Call, ast.Call]] = {}
    for text, our_text in drop_in.calls(f"torch.nn.functional.{function}").items():
        call, ours = _parsed(text), _parsed(our_text)
        name = ast.unparse(ours.func)
        if name not in longest or len(call.args) > len(longest[name][0].args):
            longest[name] = call, ours
    chosen_by = {name for call, _ in longest.values() for name in _options(call)}
    defaults = {name: inspect.signature(theirs).parameters[name].default for name in chosen_by}
    return [
        _Branch(_row(name), _attributes_of_call(_row(name), ours), defaults | _options(call))
        for name, (call, ours) in longest.items()
    ]


def _parsed(call: str) -> ast.Call:
    expression = ast.parse(call, mode="eval").body
    if not isinstance(expression, ast.Call):
        raise ValueError(f"{call!r} of gradmark.drop_in is no call")
    return expression


def _options(call: ast.Call) -> dict[str, Any]:
    """The keywords that choose the operation; `training` is the module's own state."""
    return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg != "training"}


def _row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def _attributes_of_call(row: Row, ours: ast.Call) -> Attributes:
    """What a call such as `hard_tanh(x, min_val, max_val)` says of the operator's arguments."""
    names = [p.name for p in row.parameters] if isinstance(row, Activation) else []
    given = dict(zip(names, map(ast.unparse, ours.args[1:]), strict=False))
    given |= {str(keyword.arg): ast.unparse(keyword.value) for keyword in ours.keywords}
    return _values(row, {name: f"self.{attribute}" for name, attribute in given.items()})


def _values(row: Row, given: Mapping[str, str]) -> Attributes:
    """Of each argument of the operator after x, its expression; what is not given has the row's default."""
    values = {"seed": "drawn_seed()" if isinstance(row, Rowwise) else "drawn_seed() if self.training else None"}
    if isinstance(row, Gated):
        values["gate_last"] = repr(row.gate_last)
    values |= given
    learnable = [p.name for p in row.learnable] if isinstance(row, Activation) else []
    values |= {name: f"like(x, {values[name]})" for name in learnable}
    if isinstance(row, Rowwise):
        values["axis"] = f"axis_of({values['axis']}, x)"
    return {a.name: values[a.name] for a in arguments(row, FORWARD)[1:]}


def _derived(theirs: type[torch.nn.Module], branches: list[_Branch]) -> type[torch.nn.Module]:
    """A class of torch.nn's with our forward."""
    name = theirs.__name__
    rows = ", ".join(f"`{branch.row.name}`" for branch in branches)
    doc = f"""torch.nn.{name}, computed by {rows} of gradmark.

Constructor, attributes and state-dict are those of torch.nn.{name}, which this is a subclass of.
{_SHARED}"""
    inplace = "inplace" in inspect.signature(theirs).parameters
    return type(name, (theirs,), {"forward": _forward(branches, inplace), "__doc__": doc, "__module__": "gradmark.nn"})


_SHARED = """
Half precision is computed in float32 and rounded once; the result has the dtype of x, also under autocast. Gradients
of all orders, torch.func and torch.compile work; forward-mode derivatives do not.

Raises
------
TypeError
    In forward: x is no dense tensor of float16, bfloat16, float32 or float64.
ValueError
    In forward: a parameter on another device than x, or of another length than x has channels (axis 1).
"""


def _forward(branches: list[_Branch], inplace: bool) -> Callable[..., Any]:
    """`forward(self, x)`."""
    names: dict[str, Any] = {
        "axis_of": _axis_of,
        "drawn_seed": _drawn_seed,
        "like": _like,
        "written_over": _written_over,
        "unknown_option": _unknown_option,
    }
    lines = []
    for branch in branches:
        called = f"call_{branch.row.name}"
        names[called] = operator(branch.row.name)
        call = f"{called}({', '.join(['x', *branch.attributes.values()])})"
        lines.append(f"return {call}")
        if inplace:
            lines[-1:] = ["if self.inplace:", f"    return written_over(x, lambda x: {call})", f"return {call}"]
        if len(branches) > 1:
            condition = " and ".join(f"self.{name} == {value!r}" for name, value in branch.options.items())
            lines[-1:] = [f"if {condition}:", f"    {lines[-1]}"]
    if len(branches) > 1:
        lines.append(f"raise unknown_option(self, {[dict(branch.options) for branch in branches]!r})")
    return define("forward", "(self, x)", "\n".join(lines), names, "The operation, of a tensor of any shape.")


def _unknown_option(module: Any, known: list[dict[str, Any]]) -> ValueError:
    given = ", ".join(f"{name}={getattr(module, name)!r}" for name in known[0])
    accepted = " or ".join(", ".join(f"{name}={value!r}" for name, value in one.items()) for one in known)
    return ValueError(f"{type(module).__name__} has {given}; accepted: {accepted}")


def _like(x: Any, parameter: Any) -> Any:
    """The parameter; under autocast, where x may come in half precision, in the dtype of x."""
    if isinstance(x, torch.Tensor) and parameter.dtype is not x.dtype and torch.is_autocast_enabled(x.device.type):
        return parameter.to(x.dtype)
    return parameter


def _written_over(x: Any, function: Callable[[Any], Any]) -> Any:
    """The result in the memory of x. Backward needs x, and then gets a copy: `inplace` is no gain here."""
    if x.requires_grad and torch.is_grad_enabled():
        return x.copy_(function(x.clone()))
    return x.copy_(function(x))


def _drawn_seed() -> Any:
    """From PyTorch's generator of the CPU, which torch.manual_seed sets; in a tensor, so that it can be traced."""
    return torch.randint(0, 2**63 - 1, (), device="cpu")


def _axis_of(dim: int | None, x: Any) -> int:
    """The axis; where there is none, the one that torch.nn takes, with its warning."""
    if dim is not None:
        return dim
    axis = 0 if x.ndim in (0, 1, 3) else 1
    warnings.warn(
        f"implicit choice of the dimension is deprecated in torch.nn: construct the module with dim={axis}, which is"
        " what is taken here",
        UserWarning,
        stacklevel=3,
    )
    return axis


def _softmax2d() -> type[torch.nn.Module]:
    softmax = operator("softmax")

    def forward(self: torch.nn.Module, x: Any) -> Any:
        """Softmax over the channels of (N, C, H, W) or (C, H, W)."""
        if x.ndim not in (3, 4):
            raise ValueError(f"x has shape {tuple(x.shape)}; Softmax2d takes (N, C, H, W) or (C, H, W)")
        return softmax(x, -3)

    doc = f"torch.nn.Softmax2d, computed by `softmax` of gradmark.\n{_SHARED}"
    body = {"forward": forward, "__doc__": doc, "__module__": "gradmark.nn"}
    return type("Softmax2d", (torch.nn.Softmax2d,), body)


class _Own(torch.nn.Module):
    """What the modules share that torch.nn does not have."""

    def extra_repr(self) -> str:
        shown = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


def _own(row: Row) -> type[torch.nn.Module]:
    """A class of a row that torch.nn has no class of."""
    name = "".join(_SPELLINGS.get(word, word.capitalize()) for word in row.name.split("_"))
    inplace = isinstance(row, Activation) and not row.learnable
    branch = _Branch(row, _values(row, {arg: f"self.{attribute}" for arg, attribute in _held(row).items()}), {})
    namespace = {
        "__init__": _constructor(row, inplace),
        "forward": _forward([branch], inplace),
        "__doc__": _own_doc(row, name, inplace),
        "__module__": "gradmark.nn",
    }
    return type(name, (_Own,), namespace)


def _held(row: Row) -> dict[str, str]:
    """Of the operator's arguments that the module holds, the attribute; axes are called dim in torch.nn."""
    names = [argument.name for argument in arguments(row, FORWARD)[1:] if argument.name != "seed"]
    return {name: "dim" if name == "axis" else name for name in names}


def _constructor(row: Row, inplace: bool) -> Callable[..., None]:
    """`__init__`, with the row's defaults."""
    signature, lines = ["self"], ["module_init(self)"]
    for p in _parameters(row):
        if p.learnable:
            signature += ["num_parameters=1", f"init={p.default!r}", "device=None", "dtype=None"]
            lines += [
                "self.num_parameters = positive_int(num_parameters, 'num_parameters')",
                "self.init = finite_number(init, 'init')",
                f"self.{p.name} = filled((num_parameters,), self.init, device, dtype)",
            ]
        else:
            signature.append(f"{p.name}={p.default!r}")
            lines.append(f"self.{p.name} = finite_number({p.name}, {p.name!r})")
    for name, default in _flags(row, inplace).items():
        signature.append(f"{name}={default!r}")
        lines.append(f"self.{name} = check_flag({name}, {name!r})")
    if not isinstance(row, Activation):
        signature.append("dim=-1")
        lines.append("self.dim = dim")
    names = {
        "module_init": torch.nn.Module.__init__,
        "finite_number": finite_number,
        "positive_int": positive_int,
        "check_flag": check_flag,
        "filled": _filled,
    }
    return define("__init__", f"({', '.join(signature)})", "\n".join(lines), names, "")


def _parameters(row: Row) -> tuple[Parameter, ...]:
    return () if isinstance(row, Gated) else row.parameters


def _flags(row: Row, inplace: bool) -> dict[str, bool]:
    flags = {"gate_last": row.gate_last} if isinstance(row, Gated) else {}
    if isinstance(row, Rowwise) and row.seeded:
        flags["hard"] = False
    return flags | ({"inplace": False} if inplace else {})


def _filled(shape: tuple[int, ...], value: float, device: Any, dtype: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full(shape, value, device=device, dtype=dtype or torch.get_default_dtype()))


def _own_doc(row: Row, name: str, inplace: bool) -> str:
    conventions = f"\nConventions\n-----------\n{row.conventions}\n" if row.conventions else ""
    return f"""y = {row.formula}: `{row.name}` as a module.

Parameters
----------
{_parameter_docs(row, inplace)}{_SHARED}{conventions}
Source
------
{row.source}

Examples
--------
>>> import torch, gradmark
>>> gradmark.nn.{name}()(torch.ones(2, 4)).shape
torch.Size([2, {2 if isinstance(row, Gated) else 4}])
"""


def _parameter_docs(row: Row, inplace: bool) -> str:
    lines = []
    for p in _parameters(row):
        if p.learnable:
            lines += [
                f"num_parameters : int\n    Of `{p.name}`, which is learned: 1, or one for each channel (axis 1 of x).",
                f"init : float\n    Its first value. {p.doc[0].upper()}{p.doc[1:]}. Default: {p.default!r}.",
                "device, dtype : optional\n    Of the parameter.",
            ]
        else:
            lines.append(f"{p.name} : float\n    {p.doc[0].upper()}{p.doc[1:]}. Default: {p.default!r}.")
    docs = {
        "gate_last": "Whether the gate is the second half of x. Default: {}.",
        "hard": "Whether y is 1 at the largest element and 0 elsewhere (straight-through). Default: {}.",
        "inplace": "Whether the result is written over x. Where a gradient is needed, x is copied first. Default: {}.",
    }
    lines += [f"{flag} : bool\n    {docs[flag].format(default)}" for flag, default in _flags(row, inplace).items()]
    if isinstance(row, Gated):
        lines.append("dim : int\n    The axis that is halved, of an even length. Default: -1.")
    if isinstance(row, Rowwise):
        lines.append("dim : int\n    The axis of the rows. Default: -1.")
    return "".join(f"{line}\n" for line in lines)


CLASSES: Mapping[str, type[torch.nn.Module]] = _classes()
"""The modules, by name."""
