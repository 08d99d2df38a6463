"""Backends: which exist, which are usable here, and the namespace of functions that each one gives.

Every backend has the same functions with identical signatures: those of the catalog.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from gradmark import catalog
from gradmark.arrays import ArrayLibrary, NumpyArrays, TorchArrays
from gradmark.errors import BackendUnavailableError

DTYPES: dict[str, tuple[str, ...]] = {
    "numpy": ("float16", "float32", "float64"),
    "numba": ("float32", "float64"),
    "torch": ("float16", "bfloat16", "float32", "float64"),
}
"""The dtypes that each backend takes; half precision is computed in float32."""

BACKENDS: tuple[str, ...] = tuple(DTYPES)


class Backend:
    """The operations of one backend: `backend.gelu(x)`, `backend.gelu_backward(grad, x)`, …

    Attributes
    ----------
    name : str
        One of `gradmark.BACKENDS`.
    device : str
        Where its initializers put their result: "cpu", or a CUDA device for the torch backend. Activations and
        stabilizers run where their input is.
    """

    def __init__(self, name: str, device: str, arrays: ArrayLibrary) -> None:
        self.name = name
        self.device = device
        self._arrays = arrays

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that this backend takes."""
        return self._arrays.dtypes

    def __reduce__(self) -> tuple[Any, ...]:
        return _backend, (self.name, self.device)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # Copying and pickling ask for such names before there is anything to look up.
            raise AttributeError(name)
        row = catalog.OPERATIONS.get(name.removesuffix("_backward"))
        functions = {} if row is None else self._functions(row)
        if name not in functions:
            known = ", ".join(catalog.OPERATIONS)
            raise AttributeError(f"the {self.name} backend has no function {name!r}; known operations: {known}")
        for function_name, function in functions.items():
            setattr(self, function_name, function)
        return functions[name]

    def __dir__(self) -> list[str]:
        operations = catalog.OPERATIONS.values()
        backward = [catalog.backward_of(row.name) for row in operations if row.family != "initializers"]
        return sorted([*super().__dir__(), *catalog.OPERATIONS, *backward])

    def __repr__(self) -> str:
        return f"gradmark.backend({self.name!r}, device={self.device!r})"

    def _functions(self, row: catalog.Operation) -> dict[str, Callable[..., Any]]:
        public = importlib.import_module(f"gradmark.{row.family}.public")
        implementation = importlib.import_module(f"gradmark.{row.family}.{self.name}")
        functions: dict[str, Callable[..., Any]] = public.functions(row, implementation, self._arrays)
        return functions


def backend(name: str, *, device: str = "cpu") -> Backend:
    """The namespace of functions of one backend.

    Parameters
    ----------
    name : str
        One of `gradmark.BACKENDS`: "numpy", "numba" or "torch".
    device : str
        Where the initializers of the torch backend put their result, such as "cuda" or "cuda:1".

    Raises
    ------
    LookupError
        There is no backend of this name; the message lists those that exist.
    BackendUnavailableError
        The backend or the device cannot be used here; the message says why.

    Examples
    --------
    >>> import numpy as np, gradmark
    >>> gradmark.backend("numpy").relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    reason = why_unusable(name, device)
    if reason is not None:
        raise BackendUnavailableError(reason)
    return _backend(name, _device_name(device))


@functools.cache
def _backend(name: str, device: str) -> Backend:
    dtypes = DTYPES[name]
    arrays: ArrayLibrary = TorchArrays(name, dtypes, device) if name == "torch" else NumpyArrays(name, dtypes)
    return Backend(name, device, arrays)


def why_unusable(name: str, device: str = "cpu") -> str | None:
    """Why the backend cannot be used here on `device`, in a sentence; None where it can.

    Parameters
    ----------
    name : str
        One of `gradmark.BACKENDS`.
    device : str or torch.device
        Such as "cpu", "cuda" or "cuda:1".

    Raises
    ------
    LookupError
        There is no backend of this name; the message lists those that exist.
    TypeError
        A device that is neither text nor a torch.device.
    """
    return _why_unusable(repr(name) if not isinstance(name, str) else name, _device_name(device))


def _device_name(device: Any) -> str:
    """The device as text; all numbers of the CPU are one."""
    if not isinstance(device, str):
        if type(device).__module__ != "torch":
            raise TypeError(f"device must be text such as 'cpu' or 'cuda:0', or a torch.device, got {device!r}")
        device = str(device)
    kind, _, index = device.partition(":")
    return "cpu" if kind == "cpu" and index.isdigit() else device


@functools.cache
def _why_unusable(name: str, device: str) -> str | None:
    if name not in DTYPES:
        raise LookupError(f"unknown backend {name!r}; known backends: {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed: pip install 'gradmark[{name}]'"
    if device == "cpu":
        return None
    if name != "torch":
        return f"the {name} backend runs on the CPU only; for device {device!r} use the torch backend"
    return _why_no_torch_device(device)


def _why_no_torch_device(device: str) -> str | None:
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        return f"{device!r} is no device: give 'cpu', 'cuda' or 'cuda:INDEX'"
    if parsed.type == "cpu":
        return None
    if parsed.type != "cuda":
        return f"device type {parsed.type!r} is not supported: give 'cpu', 'cuda' or 'cuda:INDEX'"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    count = torch.cuda.device_count()
    if parsed.index is not None and parsed.index >= count:
        return f"there is no {device!r}: this machine has {count} CUDA device(s), numbered from 0"
    return None
