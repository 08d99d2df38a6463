"""The public functions of an initializer: arguments checked once, then the backend's implementation.

An implementation of the initializer `f` with parameters p is a function

    f(shape, seed, dtype, device, *p) -> weights        (without seed where nothing is random)

It may rely on this: shape is a tuple of positive ints of an allowed length, 0 <= seed < 2^64, dtype is one of the
array library, and the parameters are floats for which no weight overflows, or one of the words of a choice. A row
with `of` is a named case: it has no implementation of its own.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from gradmark.arrays import ArrayLibrary, finite_number, positive_int
from gradmark.catalog import MOST_DIMENSIONS, Choice, Count, Initializer, Option
from gradmark.numerics import haar
from gradmark.numerics.philox import LARGEST_NORMAL, check_seed, interval, stream_seed, truncation
from gradmark.signatures import define


def functions(row: Initializer, implementation: ModuleType, arrays: ArrayLibrary) -> dict[str, Callable[..., Any]]:
    """The function of `row`, by name."""
    names = {"initialize": functools.partial(_initialize, row, implementation, arrays)}
    parameters = ", ".join(f"{p.name!r}: {p.name}" for p in row.parameters)
    seed = "(seed, stream)" if row.seeded else "()"
    body = f"return initialize(shape, {seed}, dtype, {{{parameters}}})"
    return {row.name: define(row.name, signature(row), body, names, _doc(row))}


def signature(row: Initializer) -> str:
    """The signature of the function of `row`: what has no default comes first."""
    required = [p.name for p in row.parameters if p.default is None]
    optional = [f"{p.name}={p.default!r}" for p in row.parameters if p.default is not None]
    stream = ["stream=None"] if row.seeded else []
    keywords = [*(["seed"] if row.seeded else []), *required, "dtype='float32'", *optional, *stream]
    return f"(shape, *, {', '.join(keywords)})"


def fans(shape: int | Sequence[int]) -> tuple[int, int]:
    """fan_in and fan_out of a weight: the inputs that an output sees, and the outputs that an input reaches.

    Parameters
    ----------
    shape : tuple or list of int
        (out, in, *kernel), as in PyTorch.

    Returns
    -------
    fan_in, fan_out : int
        in · k and out · k, where k is the number of elements of the kernel (1 for a linear layer).

    Raises
    ------
    TypeError, ValueError
        A shape that is none, or of fewer than two dimensions.

    Source
    ------
    He, Zhang, Ren, Sun, ICCV 2015, section 2.2; the convention is that of torch.nn.init.

    Examples
    --------
    >>> from gradmark.initializers.public import fans
    >>> fans((128, 64, 3, 3))
    (576, 1152)
    """
    checked = check_shape(shape)
    if len(checked) < 2:
        raise ValueError(
            f"fan_in and fan_out need a shape (out, in, *kernel) of at least 2 dimensions, got shape {checked}"
        )
    kernel = math.prod(checked[2:])
    return checked[1] * kernel, checked[0] * kernel


def check_shape(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of ints; TypeError or ValueError unless it is a shape."""
    lengths = (shape,) if isinstance(shape, numbers.Integral) else shape
    if not isinstance(lengths, (tuple, list)):
        raise TypeError(f"shape must be an int or a tuple of ints, got {shape!r} of type {type(shape).__name__}")
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, numbers.Integral):
            raise TypeError(f"shape must hold ints, got {length!r} of type {type(length).__name__} in shape {shape!r}")
        if int(length) < 0:
            raise ValueError(f"shape must not hold negative lengths, got {shape!r}")
    if len(lengths) > MOST_DIMENSIONS:
        raise ValueError(f"shape has {len(lengths)} dimensions; at most {MOST_DIMENSIONS} are accepted")
    return tuple(int(length) for length in lengths)


_LARGEST = {"float16": 65504.0, "bfloat16": (2 - 2**-7) * 2.0**127, "float32": (2 - 2**-23) * 2.0**127}
_LARGEST["float64"] = (2 - 2**-52) * 2.0**1023
"""The largest finite number of each dtype: IEEE 754, and bfloat16 with float32's exponent and 8 bits of significand."""

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

_MATRICES_FOR_QR = 3
"""What an orthogonal matrix takes at its peak, in matrices, by the method that takes the most."""

_BYTES_TO_SORT = 32
"""What an element of a sparse matrix takes beside itself: a key of 8 bytes, its place, and a copy of each."""


def _initialize(
    row: Initializer,
    implementation: ModuleType,
    arrays: ArrayLibrary,
    shape: Any,
    seed: tuple[Any, ...],
    dtype: Any,
    parameters: Mapping[str, Any],
) -> Any:
    shape = check_shape(shape)
    seeds = (stream_seed(check_seed(seed[0]), seed[1]),) if seed else ()
    dtype = arrays.check_dtype_name(dtype)
    dtype_name = str(dtype).removeprefix("torch.")
    _check_memory(row, shape, dtype_name, arrays.device)
    arguments = checked_arguments(row, shape, dtype_name, parameters)
    with arrays.quiet():
        if 0 in shape:
            return implementation.constant(shape, dtype, arrays.device, value=0.0)
        kernel = getattr(implementation, row.case_of(parameters).name)
        return kernel(shape, *seeds, dtype, arrays.device, **arguments)


def checked_arguments(
    row: Initializer, shape: tuple[int, ...], dtype: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of the implementation of `row`, or of the one that it is a case of; an error where they are bad.

    Parameters
    ----------
    row : Initializer
        Which one.
    shape : tuple of int
        The shape of all weights, which fans are taken of.
    dtype : str
        The name of their dtype.
    parameters : mapping
        The value of each parameter of the row.
    """
    _check_dimensions(row, shape)
    arguments = {option.name: _checked(row, option, parameters[option.name]) for option in row.parameters}
    requirement = row.unmet(arguments)
    if requirement is not None:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ValueError(f"{row.name} requires {requirement}, got {given}")
    computed_by = row.case_of(arguments).name
    if row.of is not None:
        arguments = _arguments(row, shape, arguments)
    _CHECKS[computed_by](row, shape, dtype, **arguments)
    return arguments


def _checked(row: Initializer, option: Option, value: Any) -> Any:
    """The value of an option as the implementations take it."""
    if isinstance(option, Choice):
        return _checked_word(row, option, value)
    if isinstance(option, Count):
        return positive_int(value, f"{row.name}: {option.name}")
    return finite_number(value, option.name)


def _checked_word(row: Initializer, option: Choice, value: Any) -> str:
    accepted = ", ".join(map(repr, option.words))
    if not isinstance(value, str):
        raise TypeError(
            f"{row.name}: {option.name} must be one of {accepted}, got {value!r} of type {type(value).__name__}"
        )
    if value not in option.words:
        raise ValueError(f"{row.name}: {option.name} must be one of {accepted}, got {value!r}")
    return str(value)


def _arguments(row: Initializer, shape: tuple[int, ...], parameters: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the initializer that `row` is a named case of."""
    assert row.arguments is not None
    for name, value in parameters.items():
        if not isinstance(value, str) and value < 0:
            raise ValueError(f"{row.name}: {name} must not be negative, got {value!r}")
    # Only what is random is scaled by fans. Those of an empty weight may be 0, and scale nothing.
    fan_in, fan_out = fans(shape) if row.seeded else (1, 1)
    return dict(row.arguments(max(fan_in, 1), max(fan_out, 1), **parameters))


def _check_uniform(row: Initializer, shape: tuple[int, ...], dtype: str, *, low: float, high: float) -> None:
    _check_range(row, shape, dtype, low=low, high=high)
    computed_in = "float64" if dtype == "float64" else "float32"
    _, span, _ = interval(low, high, computed_in)
    if not math.isfinite(span):
        raise ValueError(f"{row.name}: high - low overflows {computed_in}, got low={low!r}, high={high!r}")
    # A named case of gain 0 is U(0, 0).
    if row.of is None and span <= 0:
        raise ValueError(f"{row.name}: low must be below high in {computed_in}, got low={low!r}, high={high!r}")


def _check_normal(row: Initializer, shape: tuple[int, ...], dtype: str, *, mean: float, std: float) -> None:
    if std < 0:
        raise ValueError(f"{row.name}: std must not be negative, got {std!r}")
    largest = LARGEST_NORMAL["float64" if dtype == "float64" else "float32"]
    if not abs(mean) + std * largest <= _LARGEST[dtype]:
        raise ValueError(
            f"{row.name}: mean={mean!r} and std={std!r} give weights up to |mean| + {largest:.2f} std;"
            f" {dtype} ends at {_LARGEST[dtype]:.6g}"
        )


def _check_truncated(
    row: Initializer, shape: tuple[int, ...], dtype: str, *, mean: float, std: float, a: float, b: float
) -> None:
    _check_range(row, shape, dtype, a=a, b=b)
    if row.of is None and not a < b:
        raise ValueError(f"{row.name}: a must be below b, got a={a!r}, b={b!r}")
    try:
        truncation(mean, std, a, b, dtype)
    except ValueError as error:
        raise ValueError(f"{row.name}: {error}") from None


def _check_orthogonal(row: Initializer, shape: tuple[int, ...], dtype: str, *, gain: float, method: str) -> None:
    _check_range(row, shape, dtype, gain=gain)
    rows, columns = shape[0], math.prod(shape[1:])
    reason = haar.refusal(method, max(rows, columns), min(rows, columns))
    if reason is not None:
        raise ValueError(f"{row.name}: {reason}")


def _check_delta_orthogonal(row: Initializer, shape: tuple[int, ...], dtype: str, *, gain: float) -> None:
    if shape[1] > shape[0]:
        raise ValueError(
            f"{row.name} keeps the norm of its input, which needs in <= out in the shape (out, in, *kernel),"
            f" got shape {shape}"
        )
    _check_range(row, shape, dtype, gain=gain)


def _check_sparse(row: Initializer, shape: tuple[int, ...], dtype: str, *, sparsity: float, std: float) -> None:
    _check_normal(row, shape, dtype, mean=0.0, std=std)


def _check_dirac(row: Initializer, shape: tuple[int, ...], dtype: str, *, groups: int) -> None:
    if shape[0] % groups:
        raise ValueError(f"{row.name}: groups must divide the {shape[0]} outputs of shape {shape}, got groups={groups}")


def _check_dimensions(row: Initializer, shape: tuple[int, ...]) -> None:
    least, most = row.dimensions
    if not least <= len(shape) <= most:
        axes = "(rows, columns)" if row.dimensions == (2, 2) else "(out, in, *kernel)"
        raise ValueError(f"{row.name} needs a shape {axes} {_dimensions(row)}, got shape {shape}")


def _dimensions(row: Initializer) -> str:
    least, most = row.dimensions
    if least == most:
        return f"of exactly {least} dimensions"
    if most < MOST_DIMENSIONS:
        return f"of {least} to {most} dimensions"
    return f"of at least {least} dimensions" if least else "of any number of dimensions"


def _check_range(row: Initializer, shape: tuple[int, ...], dtype: str, **arguments: float) -> None:
    for name, value in arguments.items():
        if not abs(value) <= _LARGEST[dtype]:
            raise ValueError(f"{row.name}: {name}={value!r} overflows {dtype}, which ends at {_LARGEST[dtype]:.6g}")


_CHECKS: dict[str, Callable[..., None]] = {
    "uniform": _check_uniform,
    "normal": _check_normal,
    "trunc_normal": _check_truncated,
    "orthogonal": _check_orthogonal,
    "delta_orthogonal": _check_delta_orthogonal,
    "sparse": _check_sparse,
    "constant": _check_range,
    "eye": _check_range,
    "dirac": _check_dirac,
}
"""What each initializer asks of its shape and parameters."""


def _check_memory(row: Initializer, shape: tuple[int, ...], dtype: str, device: str) -> None:
    """Raise before any work where the weights cannot fit. Lengths beside a 0 must be addressable all the same."""
    size = _BYTES[dtype] * math.prod(length for length in shape if length > 0)
    if 0 in shape:
        available = 2**63 - 1
    else:
        available = _memory(device)
        if row.name == "delta_orthogonal":
            size += _MATRICES_FOR_QR * max(4, _BYTES[dtype]) * math.prod(shape[:2])
        elif row.distribution == "orthogonal":
            size *= _MATRICES_FOR_QR * max(1, 4 // _BYTES[dtype])
        elif row.distribution == "sparse":
            size += _BYTES_TO_SORT * math.prod(shape)
    if size > available:
        raise MemoryError(
            f"{row.name} of shape {shape} in {dtype} needs {size >> 20} MiB;"
            f" {device} has {available >> 20} MiB: give a smaller shape"
        )


@functools.cache
def _memory(device: str) -> int:
    """Bytes of memory of a device, used or not."""
    if device == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


_SEED = """\
seed : int
    0 <= seed < 2**64. Element i of the stream depends on the seed and on i alone: {}
"""

_STREAM = """\
stream : str, optional
    The name of a stream of random numbers of its own under this seed, such as the qualified name of a parameter: the
    weights then depend on the seed and the name, and not on what else is drawn. Default: the seed's unnamed stream.
"""

_SAME_SEED = {
    "uniform": "the same seed gives the same\n    bits at any thread count and in every backend.",
    "normal": "the same seed gives the same\n    bits at any thread count and in every backend.",
    "truncated": "the same seed gives the same\n    bits at any thread count and in every backend.",
    "chosen": "the same seed gives the same\n    bits at any thread count and in every backend.",
    "sparse": "the same seed gives the same\n    bits at any thread count and in every backend.",
    "orthogonal": "the same seed gives the same\n    matrix by the same method, up to the rounding of matrix products.",
}


def _doc(row: Initializer) -> str:
    dimensions = "of at least 2 dimensions" if row.of is not None and row.seeded else _dimensions(row)
    seed = _SEED.format(_SAME_SEED[row.distribution]) if row.seeded else ""
    stream, named = (_STREAM, ", a stream that is no str") if row.seeded else ("", "")
    parameters = "".join(map(_parameter_doc, row.parameters))
    note = _NOTES.get(row.name, _NOTES.get(row.distribution, ""))
    required = "".join(f", {p.name}={p.samples[0]!r}" for p in row.parameters if p.default is None)
    shape = (6, 4, 3)[: max(2, row.dimensions[0])]
    call = f"{shape}{', seed=0' if row.seeded else ''}{required}"
    conventions = f"\nConventions\n-----------\n{row.conventions}\n" if row.conventions else ""
    return f"""Weights: {row.formula}.

Parameters
----------
shape : int, or tuple or list of int
    (out, in, *kernel) as in PyTorch, {dimensions}; without elements where a length is 0.
{seed}{parameters}dtype : str or dtype
    The dtype of the result; half precision is computed in float32.
{stream}
Returns
-------
weights : array
    C-contiguous, of the shape and dtype asked for, on the backend's device.{note}

Raises
------
TypeError
    A shape or seed that is no int, a parameter that is no number or no word, a dtype that the backend lacks{named}.
ValueError
    A negative length, too few dimensions, a seed or a parameter out of range, an unknown word, weights that would
    overflow the dtype.
MemoryError
    More weights than the device has memory for.
{conventions}
Source
------
{row.source}

Examples
--------
>>> import gradmark
>>> gradmark.backend("numpy").{row.name}({call}).shape
{shape}
"""


_NOTES = {
    "truncated": """
    Within [a, b], in every dtype. Each weight is the quantile of one random number: nothing is drawn again.""",
    "uniform": """
    Below `high` in float32 and float64; rounding to half precision may reach it.""",
    "sparse": """
    Which rows of a column are 0: those with the smallest numbers of the seed's stream "sparse", of which each element
    has one of its own.""",
    "delta_orthogonal": """
    A convolution with it keeps the norm of its input, times |gain|, where its padding is circular.""",
    "orthogonal": """
    Flattened to (out, rest), its rows are orthogonal with norm |gain| if out <= rest, else its columns.""",
}


def _parameter_doc(parameter: Option) -> str:
    default = "" if parameter.default is None else f" Default: {parameter.default!r}."
    kind = f"{{{', '.join(map(repr, parameter.words))}}}" if isinstance(parameter, Choice) else "float"
    kind = "int" if isinstance(parameter, Count) else kind
    return f"{parameter.name} : {kind}\n    {parameter.doc[0].upper()}{parameter.doc[1:]}.{default}\n"
