"""Docstrings of in-place initializers, made from those of the backends, so that nothing is written twice."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from gradmark.backends import backend
from gradmark.catalog import Initializer
from gradmark.nn._fill import FILLS

_TENSOR = """\
tensor : torch.Tensor
    What is filled, in place{}.
    It is float16, bfloat16, float32 or float64, on any device, contiguous or not. On the meta device nothing is
    written.
    {}
"""
_PARTS = "Of a DTensor, sharded or not, the part on this process is filled."
_RECTANGLES = """\
Of a DTensor, the part on this process is filled. Where the longer side of the weight, as a matrix
    (out, rest), is sharded, all processes of the mesh have to call this. `householder` takes shards along dimension 0,
    1 or both. `qr` takes any shards of the longer side alone, where that is more than twice the shorter one, n: TSQR
    (Demmel, Grigori, Hoemmen, Langou, SIAM J. Sci. Comput. 34(1), 2012), by messages of at most n² elements, in a
    copy of the part and O(n²) elements, however many processes there are. Other methods make whole weights."""
_FAILING = """\
RuntimeError
    A process that this one waits for has died, or has not answered for five minutes. The weight is not initialized.
"""
_WHOLE = "A DTensor has to be whole on this process: replicated."
_FIXED_SEED = """\
seed, stream : optional
    Nothing is random here; they are accepted so that all initializers can be called alike.
"""


def docstring(row: Initializer, names: Mapping[str, str]) -> str:
    """The docstring of the in-place function of `row`.

    Parameters
    ----------
    row : Initializer
        Which one.
    names : mapping
        Of each parameter of the backends' function, beside shape, seed, dtype and stream, its name here.
    """
    text = inspect.getdoc(getattr(backend("torch"), row.name)) or ""
    summary, _, sections = text.partition("\n\nParameters\n----------\n")
    entries = _entries(sections.partition("\n\nReturns\n")[0])
    parameters = _renamed("".join(f"{name} : {entries[of_row]}\n" for of_row, name in names.items()), names)
    seed = f"seed : {entries['seed']}\nstream : {entries['stream']}\n" if row.seeded else _FIXED_SEED
    dimensions = re.search(r"of (?:at least|exactly|\d to) \d dimensions", entries["shape"])
    shape = f": (out, in, *kernel) {dimensions[0]}" if dimensions else ""
    computed_by = row.case_of({p.name: p.usual for p in row.parameters}).name
    held = _RECTANGLES if computed_by == "orthogonal" else _PARTS if computed_by in FILLS else _WHOLE
    tensor = _TENSOR.format(shape, held)
    failing = _FAILING if held == _RECTANGLES else ""
    how_equal = "bit for bit" if held != _RECTANGLES else "bit for bit; of shards up to rounding"
    return f"""Fill with {_renamed(summary.removeprefix("Weights: ").removesuffix("."), names)}, in place.

Parameters
----------
{tensor}{parameters}{seed}
Returns
-------
tensor : torch.Tensor
    The same. Its elements are those of gradmark.backend("torch").{row.name} of the whole shape, {how_equal}.

Raises
------
TypeError
    What is no tensor, or of another dtype or layout; a seed that is no int, a stream that is no str, a parameter that
    is no number.
ValueError
    Too few dimensions, a seed or a parameter out of range, weights that would overflow the dtype; a DTensor that is
    not sharded as said above, or not on this process. Nothing is written then.
{failing}
Source
------
{row.source}

Examples
--------
{_example(row, text, names)}
"""


def kaiming_docstring(name: str, row: Initializer) -> str:
    """The docstring of `name`, the function of `row` by the parameters of torch.nn.init."""
    return f"""Fill with {row.formula}, in place: `{row.name}_` by the parameters of torch.nn.init.

Parameters
----------
tensor : torch.Tensor
    (out, in, *kernel), of at least 2 dimensions; as for `{row.name}_`.
a : float
    The slope of leaky_relu for x < 0. Default: 0.
mode : str
    "fan_in" keeps the variance in the forward pass, "fan_out" that in the backward pass.
nonlinearity : str
    What torch.nn.init.calculate_gain knows. Default: "leaky_relu".
seed : int
    0 <= seed < 2**64.
stream : str, optional
    The name of a stream of random numbers of its own.

Returns
-------
tensor : torch.Tensor
    The same.

Raises
------
TypeError, ValueError
    As `{row.name}_`; a mode or a nonlinearity that there is not.

Source
------
{row.source}

Examples
--------
>>> import torch
>>> from gradmark.nn import init
>>> init.{name}(torch.empty(6, 4), mode="fan_out", nonlinearity="relu", seed=0).shape
torch.Size([6, 4])
"""


def _entries(section: str) -> dict[str, str]:
    """Of each parameter in a section of a docstring, what stands behind its name and colon."""
    starts = list(re.finditer(r"^(\w+) : ", section, re.MULTILINE))
    ends = [*(match.start() for match in starts[1:]), len(section)]
    return {match[1]: section[match.end() : end].rstrip() for match, end in zip(starts, ends, strict=True)}


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """A text with the names of parameters that torch.nn.init has."""
    for of_row, name in names.items():
        text = re.sub(rf"(?<!the ){of_row}\b", name, text, flags=re.IGNORECASE) if of_row != name else text
    return text


def _example(row: Initializer, text: str, names: Mapping[str, str]) -> str:
    """The example of the backends' docstring, with a tensor for the shape."""
    call = re.search(rf"\.{row.name}\((\([\d, ]+\))(.*)\)\.shape\n(\(.*\))", text)
    assert call is not None, f"the docstring of {row.name} has no example of the usual form"
    keywords = re.sub(r"(\w+)=", lambda match: f"{names.get(match[1], match[1])}=", call[2])
    lengths = call[3].removeprefix("(").removesuffix(")")
    return f"""\
>>> import torch
>>> from gradmark.nn import init
>>> init.{row.name}_(torch.empty({call[1]}){keywords}).shape
torch.Size([{lengths}])"""
