"""What to time: operation, pass, size and dtype, with the inputs that each needs.

Derived from the catalog. The asv suite, `gradmark choose` and pytest-benchmark time these workloads, so that their
numbers mean the same. The suite reads this file from the working tree, by path, whatever version of gradmark is
installed: only the standard library, NumPy and the catalog beside it are imported, the latter relatively.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.metadata
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from . import catalog

ASSUMED_LAST_LEVEL_CACHE = 32 * 2**20
"""Bytes, where the machine does not tell: the L3 that the cores of one AMD Zen chiplet share, a common size."""

SIZES: Mapping[str, str] = MappingProxyType(
    {
        "small": "2¹⁰ elements: only to see that a workload runs",
        "cache": "2¹⁶ elements: 256 KiB an array in float32, in the L2 cache of a current core",
        "memory": "2²⁴ elements: 64 MiB an array in float32, beyond the last-level cache (skipped where it is not)",
    }
)
"""Sizes of elementwise workloads. They are fixed: a size that followed the machine would tear its history apart."""

TIMED_SIZES: tuple[str, ...] = ("cache", "memory")

LEAST_ELEMENTS = 2**4
"""Of a size that is a number: below it, the shapes of some operations have an axis of length 0."""

_ELEMENTS = {"small": 2**10, "cache": 2**16, "memory": 2**24}
_IMAGES = {"small": (4, 4, 8, 8), "cache": (16, 64, 8, 8), "memory": (64, 64, 64, 64)}
_LISTS = {"small": (4, 2**8), "cache": (2**8, 2**8), "memory": (4, 2**22)}
_MATRICES = {"small": (16,), "timed": (4096,), "orthogonal": (512, 2048, 4096), "kernel": (1024,)}
_KERNEL = "x3x3"
"""What stands behind the channels in the size of weights that need a kernel."""
_RESIDUAL_ACTIVATIONS = ("relu", "gelu")
TRAINING = "training"
"""The variant of a seeded activation that draws its slopes."""
_EPS = 1e-5
"""What batch norm adds to the variance: the default of the row's signature."""


class UnavailableError(RuntimeError):
    """A workload cannot be run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A backend on a device."""

    name: str
    backend: str
    device: str = "cpu"


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "numpy": Target("numpy", "numpy"),
        "numba": Target("numba", "numba"),
        "torch": Target("torch", "torch"),
        "torch-cuda": Target("torch-cuda", "torch", "cuda"),
    }
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workload that is ready to be timed."""

    call: Callable[[], Any]
    """Runs it once; on CUDA it returns when the kernels are launched."""
    bytes_moved: int
    """The least traffic that the result needs: each input read once, each output written once."""
    synchronize: Callable[[], None]
    """Waits for the device; does nothing on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An operation's pass at one size, for any backend.

    Attributes
    ----------
    operation, operation_pass : str
        A row of the catalog, and "forward" or "backward".
    size : str
        One of `SIZES`; or a number of elements such as "65536", of which shapes are made that have as many or up to a
        few per cent fewer; or the shape of weights such as "4096x4096" or "1024x1024x3x3".
    variant : str
        The activation of residual_add; "training" for a seeded activation with a seed; the method of orthogonal, where
        it is not the default; "" elsewhere.
    dtype : str
        "float32" unless another one was asked for.
    """

    operation: str
    operation_pass: catalog.Pass
    size: str
    variant: str = ""
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        """How many elements x has, or the weights, or the list of gradients: of one array of the largest kind."""
        return math.prod(_shape(self))

    def prepare(self, namespace: Any, target: Target) -> Prepared:
        """Build the inputs, and a callable without arguments that runs the operation on them.

        Parameters
        ----------
        namespace
            What `gradmark.backend(...)` gives, of whatever version is installed; see `open_target`.
        target : Target
            Where the arrays are to be.

        Raises
        ------
        UnavailableError
            The installed gradmark lacks the operation in this backend, or one of its options; or the size "memory" fits
            the cache.
        """
        function = self._function(namespace)
        parameters = inspect.signature(function).parameters
        arguments = _arguments(self, target)
        lacking = [name for name in arguments.keywords if name not in parameters]
        if lacking:
            raise UnavailableError(f"the installed gradmark's {self.operation} takes no {', '.join(lacking)} yet")
        keywords = dict(arguments.keywords)
        if "out" in parameters:
            keywords["out"] = arguments.out
        bytes_moved = _bytes(arguments.positional) + _bytes(arguments.out) + arguments.written_besides
        if self.size == "memory":
            _check_beyond_cache(bytes_moved, target)
        call = functools.partial(function, *arguments.positional, **keywords)
        return Prepared(call, bytes_moved, _synchronizer(target))

    def prepare_from_host(self, namespace: Any, target: Target) -> Prepared:
        """As `prepare`, of arrays that lie in the host's memory: each call copies them to the device, and what it gives
        back. The copies are part of the call, and `bytes_moved` is that of the operation alone.

        Parameters
        ----------
        namespace
            What `gradmark.backend("torch", device=...)` gives.
        target : Target
            A backend of tensors and the device to which they are copied.
        """
        function = self._function(namespace)
        arguments = _arguments(self, dataclasses.replace(target, device="cpu"))

        def call() -> Any:
            there = [_copied(argument, target.device) for argument in arguments.positional]
            keywords = {name: _copied(value, target.device) for name, value in arguments.keywords.items()}
            return _copied(function(*there, **keywords), "cpu")

        bytes_moved = _bytes(arguments.positional) + _bytes(arguments.out) + arguments.written_besides
        return Prepared(call, bytes_moved, _synchronizer(target))

    def _function(self, namespace: Any) -> Callable[..., Any]:
        backward = self.operation_pass == catalog.BACKWARD
        name = catalog.backward_of(self.operation) if backward else self.operation
        try:
            function: Callable[..., Any] = getattr(namespace, name)
        except AttributeError as error:
            raise UnavailableError(f"the installed gradmark has no {name} here: {error}") from error
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("gradmark."):
                raise
            raise UnavailableError(f"the installed gradmark has no {name} here: {error}") from error
        return function


def of_row(row: catalog.Operation, *, small: bool = False) -> tuple[Workload, ...]:
    """The workloads of one operation: both passes at each timed size, or at the size that only shows that they run.

    Raises
    ------
    LookupError
        Nobody has said what inputs this stabilizer needs.
    """
    return tuple(_workloads(row, small))


def class_name(operation: str, variant: str = "") -> str:
    """What the asv suite calls the class of an operation: leaky_relu -> LeakyRelu."""
    return "".join(part.capitalize() for part in f"{operation}_{variant}".split("_"))


def open_target(gradmark: ModuleType, name: str) -> tuple[Any, Target]:
    """The namespace of the target called `name`, and the target.

    Parameters
    ----------
    gradmark : module
        The package to time, of whatever version.
    name : str
        One of `TARGETS`.

    Raises
    ------
    LookupError
        No target has this name; the message lists those that exist.
    UnavailableError
        The backend or its device cannot be used here; the message says why.
    """
    if name not in TARGETS:
        raise LookupError(f"unknown target {name!r}; known targets: {', '.join(TARGETS)}")
    target = TARGETS[name]
    if target.device == "cuda":
        reason = _why_cuda_is_out_of_question()
        if reason is not None:
            raise UnavailableError(reason)
    if not hasattr(gradmark, "backend"):
        raise UnavailableError(f"gradmark {getattr(gradmark, '__version__', '?')} has no backends yet")
    try:
        return gradmark.backend(target.backend, device=target.device), target
    except (LookupError, RuntimeError) as error:
        raise UnavailableError(str(error)) from error


def last_level_cache() -> int | None:
    """Bytes of the last-level cache of the CPU, or None where the machine does not tell."""
    found = caches()
    return max(found)[1] if found else None


def caches() -> list[tuple[int, int]]:
    """(level, bytes) of every cache of the first CPU that holds data, as Linux tells it."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found.append((int(level), _parse_size(size)))
    return found


def _parse_size(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def _check_beyond_cache(footprint: int, target: Target) -> None:
    # Below twice the cache's size, part of the arrays is still there when the next call reads them.
    cache = _cache_of(target)
    if footprint < 2 * cache:
        raise UnavailableError(
            f"the arrays ({footprint / 2**20:.0f} MiB) are less than twice the last-level cache"
            f" ({cache / 2**20:.0f} MiB): this would not time memory"
        )


def _cache_of(target: Target) -> int:
    if target.device == "cpu":
        return last_level_cache() or ASSUMED_LAST_LEVEL_CACHE
    import torch

    return int(torch.cuda.get_device_properties(target.device).L2_cache_size)


def _why_cuda_is_out_of_question() -> str | None:
    # Importing torch only to hear that there is no GPU would cost a benchmark process seconds.
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "torch is not installed"
    if version.endswith("+cpu"):
        return f"torch {version} is a build without CUDA"
    if not sys.platform.startswith("linux") or Path("/dev/kfd").exists():
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no CUDA driver (libcuda.so.1)"
    return None


def _synchronizer(target: Target) -> Callable[[], None]:
    if target.device == "cpu":
        return _nothing
    import torch

    return functools.partial(torch.cuda.synchronize, target.device)


def _nothing() -> None:
    """Wait for the CPU, which has already finished."""


def _workloads(row: catalog.Operation, small: bool) -> Iterator[Workload]:
    if isinstance(row, catalog.Initializer):
        kernel = _KERNEL if row.dimensions[0] > 2 else ""
        kind = "kernel" if kernel else "orthogonal" if row.distribution == "orthogonal" else "timed"
        for n in _MATRICES["small" if small else kind]:
            yield Workload(operation=row.name, operation_pass=catalog.FORWARD, size=f"{n}x{n}{kernel}")
        return
    if isinstance(row, catalog.Stabilizer) and row.name not in _STABILIZER_ARGUMENTS:
        raise LookupError(f"no workload for {row.name!r}: say in _STABILIZER_ARGUMENTS what inputs it needs")
    variants: tuple[str, ...] = ("", TRAINING) if isinstance(row, catalog.Activation) and row.seeded else ("",)
    variants = _RESIDUAL_ACTIVATIONS if row.name == "residual_add" else variants
    for variant in variants:
        for operation_pass in catalog.PASSES:
            for size in ("small",) if small else TIMED_SIZES:
                yield Workload(operation=row.name, operation_pass=operation_pass, size=size, variant=variant)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    positional: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    out: Any = None
    written_besides: int = 0
    """Bytes of results that have no place in `out`."""


class _Inputs:
    """Seeded arrays on one target. Normals, since zeros would take the cheap side of every branch."""

    def __init__(self, target: Target, dtype: str) -> None:
        self._target = target
        self._dtype = dtype
        self._generator = np.random.default_rng(20231114)

    def normal(self, shape: tuple[int, ...]) -> Any:
        # A million of them, repeated: no branch predictor learns that many, and 2²⁴ would take longer than the timing.
        period = self._generator.standard_normal(min(math.prod(shape), 2**20), dtype=np.float32)
        return self.array(np.resize(period, shape))

    def array(self, values: np.ndarray) -> Any:
        if self._target.backend != "torch":
            return values.astype(self._dtype, copy=False)
        import torch

        return torch.from_numpy(values).to(self._target.device, getattr(torch, self._dtype))

    def empty_like(self, array: Any) -> Any:
        if self._target.backend != "torch":
            return np.empty_like(array)
        import torch

        return torch.empty_like(array)


def _arguments(workload: Workload, target: Target) -> _Arguments:
    row = catalog.operation(workload.operation)
    inputs = _Inputs(target, workload.dtype)
    if isinstance(row, catalog.Activation):
        return _activation(row, workload, inputs)
    if isinstance(row, catalog.Gated):
        return _gated(workload, inputs)
    if isinstance(row, catalog.Rowwise):
        return _rowwise(row, workload, inputs)
    if isinstance(row, catalog.Initializer):
        return _initializer(row, workload)
    return _STABILIZER_ARGUMENTS[row.name](workload, inputs)


def _shape(workload: Workload) -> tuple[int, ...]:
    """The shape of x, or of the weights; for a list of gradients their number and the length of each."""
    row, size = catalog.operation(workload.operation), workload.size
    if row.family == "initializers":
        return _weights(row, int(size)) if size.isdigit() else tuple(map(int, size.split("x")))
    if row.family == "stabilizers" and row.name in _SHAPES:
        by_name, by_number = _SHAPES[row.name]
        return by_number(int(size)) if size.isdigit() else by_name[size]
    rows, columns = _matrix(int(size) if size.isdigit() else _ELEMENTS[size])
    # Gated units halve the last axis.
    return rows, columns - columns % 2 if row.family == "gated" else columns


def _matrix(elements: int) -> tuple[int, int]:
    """Square where the number is a power of four, of twice as many columns where it is another power of two."""
    rows = 2 ** ((elements.bit_length() - 1) // 2)
    return rows, elements // rows


def _weights(row: catalog.Initializer, elements: int) -> tuple[int, ...]:
    if row.dimensions[0] > 2:
        # delta_orthogonal takes no more inputs than outputs.
        inputs, outputs = _matrix(elements // 4)
        return outputs, inputs, 4
    return _matrix(elements)


def _image(elements: int) -> tuple[int, int, int, int]:
    """(batch, channels, height, width), at most 64 of the first two each."""
    power = elements.bit_length() - 1
    channels = 2 ** min(6, power // 3)
    batch = 2 ** min(6, (power - power // 3) // 2)
    height = 2 ** ((power - channels.bit_length() - batch.bit_length() + 2) // 2)
    return batch, channels, height, elements // (batch * channels * height)


def _list(elements: int) -> tuple[int, int]:
    count = 2 ** min(8, (elements.bit_length() - 1) // 2)
    return count, elements // count


def _activation(row: catalog.Activation, workload: Workload, inputs: _Inputs) -> _Arguments:
    shape = _shape(workload)
    grads = (inputs.normal(shape),) if workload.operation_pass == catalog.BACKWARD else ()
    x = inputs.normal(shape)
    # In training a learnable parameter is an array; a number would be converted in every call.
    learnable = tuple(inputs.array(np.full(1, p.default, dtype=np.float32)) for p in row.learnable)
    keywords = {p.name: value for p, value in zip(row.learnable, learnable, strict=True)}
    keywords |= {p.name: p.usual for p in row.required}
    if workload.variant == TRAINING:
        keywords["seed"] = 1
    return _Arguments(positional=(*grads, x), keywords=keywords, out=inputs.empty_like(x))


def _gated(workload: Workload, inputs: _Inputs) -> _Arguments:
    rows, columns = _shape(workload)
    half = inputs.normal((rows, columns // 2))
    x = inputs.normal((rows, columns))
    if workload.operation_pass == catalog.FORWARD:
        return _Arguments(positional=(x,), out=inputs.empty_like(half))
    return _Arguments(positional=(half, x), out=inputs.empty_like(x))


def _rowwise(row: catalog.Rowwise, workload: Workload, inputs: _Inputs) -> _Arguments:
    rows, columns = shape = _shape(workload)
    keywords = {"seed": 1} if row.seeded else {}
    x = inputs.normal(shape)
    if workload.operation_pass == catalog.FORWARD:
        return _Arguments(positional=(x,), keywords=keywords, out=inputs.empty_like(x))
    # No kernel's speed depends on what is saved: any positive y is as good as that of the forward pass.
    saved = x if row.saved == ("x",) else inputs.array(np.full((rows, columns), 1 / columns, dtype=np.float32))
    grad = inputs.normal(shape)
    return _Arguments(positional=(grad, saved), keywords=keywords, out=inputs.empty_like(x))


def _initializer(row: catalog.Initializer, workload: Workload) -> _Arguments:
    shape = _shape(workload)
    keywords: dict[str, Any] = {p.name: p.samples[0] for p in row.parameters if p.default is None}
    keywords["dtype"] = workload.dtype
    if row.seeded:
        keywords["seed"] = 1
    if workload.variant:
        keywords["method"] = workload.variant
    item = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[workload.dtype]
    return _Arguments(positional=(shape,), keywords=keywords, written_besides=math.prod(shape) * item)


def _batch_norm(workload: Workload, inputs: _Inputs) -> _Arguments:
    shape = _shape(workload)
    channels = (shape[1],)
    x, weight = inputs.normal(shape), inputs.normal(channels)
    if workload.operation_pass == catalog.FORWARD:
        bias, mean, variance = inputs.normal(channels), inputs.normal(channels), _ones(channels, inputs)
        return _Arguments(positional=(x, weight, bias, mean, variance), out=inputs.empty_like(x))
    # Standard normals have the statistics 0 and 1 to within the sampling error, which no kernel's speed depends on.
    mean, invstd = inputs.array(np.zeros(channels, np.float32)), _ones(channels, inputs)
    grad = inputs.normal(shape)
    return _Arguments(positional=(grad, x, weight, mean, invstd), out=inputs.empty_like(x))


def _batch_norm_inference(workload: Workload, inputs: _Inputs) -> _Arguments:
    # The forward takes the same arrays as in training; the backward takes the running variance where that takes invstd.
    return _batch_norm(workload, inputs)


def _clip_grad_norm(workload: Workload, inputs: _Inputs) -> _Arguments:
    # The norm of normals is the root of their number, so this clips.
    return _clip(workload, inputs, bound=1.0)


def _clip_grad_value(workload: Workload, inputs: _Inputs) -> _Arguments:
    # Clips the 32 % of normals that lie beyond one standard deviation.
    return _clip(workload, inputs, bound=1.0)


def _clip(workload: Workload, inputs: _Inputs, bound: float) -> _Arguments:
    count, length = _shape(workload)
    grads = [inputs.normal((length,)) for _ in range(count)]
    out = [inputs.empty_like(grad) for grad in grads]
    if workload.operation_pass == catalog.FORWARD:
        return _Arguments(positional=(grads, bound), out=out)
    cotangents = [inputs.normal((length,)) for _ in range(count)]
    return _Arguments(positional=(cotangents, grads, bound), out=out)


def _residual_add(workload: Workload, inputs: _Inputs) -> _Arguments:
    shape = _shape(workload)
    x, f = inputs.normal(shape), inputs.normal(shape)
    grads = (inputs.normal(shape),) if workload.operation_pass == catalog.BACKWARD else ()
    keywords = {"activation": workload.variant}
    return _Arguments(positional=(*grads, x, f), keywords=keywords, out=inputs.empty_like(x))


_STABILIZER_ARGUMENTS: Mapping[str, Callable[[Workload, _Inputs], _Arguments]] = MappingProxyType(
    {
        "batch_norm": _batch_norm,
        "batch_norm_inference": _batch_norm_inference,
        "clip_grad_norm": _clip_grad_norm,
        "clip_grad_value": _clip_grad_value,
        "residual_add": _residual_add,
    }
)


_SHAPES: Mapping[str, tuple[Mapping[str, tuple[int, ...]], Callable[[int], tuple[int, ...]]]] = MappingProxyType(
    {
        "batch_norm": (_IMAGES, _image),
        "batch_norm_inference": (_IMAGES, _image),
        "clip_grad_norm": (_LISTS, _list),
        "clip_grad_value": (_LISTS, _list),
    }
)
"""Of the stabilizers whose x is no matrix: its shape by the name of the size, and by the number of elements."""


def _ones(shape: tuple[int, ...], inputs: _Inputs) -> Any:
    return inputs.array(np.ones(shape, np.float32))


def _copied(value: Any, device: str) -> Any:
    """Tensors, and those in lists, on this device; whatever else it is as it is."""
    if isinstance(value, list | tuple):
        return [_copied(one, device) for one in value]
    return value.to(device) if hasattr(value, "device") and hasattr(value, "to") else value


def _bytes(arrays: Any) -> int:
    if isinstance(arrays, list | tuple):
        return sum(_bytes(array) for array in arrays)
    return int(getattr(arrays, "nbytes", 0))
