"""`gradmark.gelu(x)`: every function of the catalog for NumPy arrays and tensors, served by the fastest backend.

Which backend serves a call, in this order:

1. `backend=` of the call;
2. `with gradmark.using("numba"):` around it;
3. the environment variable GRADMARK_BACKEND, read at the first call;
4. this machine's profile, which `gradmark choose` has measured (`gradmark.profiles`), also read at the first call;
5. the shipped default, see `default_ranking`.

1 to 3 are explicit: where that backend cannot serve the call, an error says why. 4 and 5 are automatic: where the first
backend is not installed or does not take the dtype or the device, the next one serves.

What comes out is of the type that went in, whoever serves; nothing is copied, neither between devices nor between the
libraries (`gradmark.crossing`). Tensors on CUDA are served by torch only. Initializers give NumPy arrays, and tensors
where the call says backend="torch".

The choice is remembered by dtype and by the power of two below the number of elements. So the functions are written
out from their signatures, and look up there who serves the call.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from gradmark import backends, catalog, crossing, profiles, workloads
from gradmark.arrays import NumpyArrays, TorchArrays
from gradmark.backends import BACKENDS, DTYPES
from gradmark.errors import BackendUnavailableError, ProfileError, ProfileWarning
from gradmark.signatures import define

VARIABLE = "GRADMARK_BACKEND"

_NATIVE = {"numpy": ("numpy", "numba"), "torch": ("torch",)}
"""The backends that take the arrays of each library as they are."""

_BROKEN = (ImportError, OSError)
"""What the import of a library raises that is installed but does not fit another one: as good as none. OSError: its
shared objects, which it loads itself."""

_selected: ContextVar[str | None] = ContextVar("gradmark.using", default=None)


@functools.cache
def function(name: str) -> Callable[..., Any]:
    """The function called `name` of the catalog, for arrays of any library.

    Parameters
    ----------
    name : str
        An operation, or an operation and "_backward".

    Raises
    ------
    AttributeError
        There is no such function.
    """
    model = getattr(backends.backend("numpy"), name)
    row = catalog.operation(name.removesuffix("_backward"))
    parameters = list(inspect.signature(model).parameters.values())
    if isinstance(row, catalog.Initializer):
        return _initializer(row, parameters, model.__doc__)
    return _operation(name, row, parameters, model.__doc__)


@contextlib.contextmanager
def using(backend: str) -> Iterator[None]:
    """Within the `with` block, calls without `backend=` are served by this backend.

    It holds for this thread or asynchronous task and for tasks started by it. A thread that is started within the block
    begins without it, as it does without all context variables. Blocks may be nested.

    Parameters
    ----------
    backend : str
        One of `gradmark.BACKENDS`.

    Raises
    ------
    LookupError
        There is no backend of this name; the message lists those that exist.
    BackendUnavailableError
        The backend cannot be used here; the message says why.

    Examples
    --------
    >>> import numpy as np, gradmark
    >>> with gradmark.using("numpy"):
    ...     gradmark.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    reason = backends.why_unusable(backend)
    if reason is not None:
        raise BackendUnavailableError(reason)
    token = _selected.set(backend)
    try:
        yield
    finally:
        _selected.reset(token)


def backend_of_tensor(operation: str, operation_pass: catalog.Pass, tensor: Any, *, plain: bool = True) -> str:
    """The backend that serves a call with this tensor: for who calls the backends' functions by himself.

    Parameters
    ----------
    operation, operation_pass : str
        An operation of the catalog, and "forward" or "backward".
    tensor : torch.Tensor
        The first of the call.
    plain : bool
        Whether other libraries have a view of its memory as it is; of a tensor that is not, an automatic choice is
        torch.

    Raises
    ------
    TypeError, ValueError, LookupError, BackendUnavailableError
        `gradmark.using` or GRADMARK_BACKEND names a backend that cannot serve the call; the message says why.
    """
    key = _selected.get(), operation, operation_pass, tensor.dtype, tensor.device, tensor.numel().bit_length(), plain
    found = _backends_of_tensors.get(key)
    if found is None:
        found = _backends_of_tensors[key] = _backend_of_tensor(operation, operation_pass, tensor, plain)
    return found


def _backend_of_tensor(operation: str, operation_pass: catalog.Pass, tensor: Any, plain: bool) -> str:
    call = _call([tensor], "")
    wanted, chosen_by = _explicit(_selected.get())
    if wanted is not None:
        refusal = _refusal(wanted, call, "x", chosen_by)
        if refusal is not None:
            raise refusal
        return wanted
    name = operation if operation_pass == catalog.FORWARD else catalog.backward_of(operation)
    for candidate in _ranking(catalog.operation(operation), operation_pass, call) if plain else []:
        if _refusal(candidate, call, "x", "") is None:
            with contextlib.suppress(*_BROKEN):
                getattr(backends.backend(candidate), name)
                return candidate
    return "torch"


def default_ranking(library: str, dtype: str) -> tuple[str, ...]:
    """The backends in the order in which they are tried where there is no profile.

    Numba first, then the array's own library, then the other one. `benchmarks/evidence/choose.json` (2¹⁶ elements in
    float32, two cores of an AMD EPYC): of the 86 functions that were measured, numba was alone the fastest in 71 and
    among the fastest in 13 more; torch was alone the fastest in 2 (gelu and log_softmax, forward), NumPy in none. Numba
    takes no half precision: there the array's own library serves, for which nothing else must be imported.

    Parameters
    ----------
    library : str
        "numpy" or "torch", of the array.
    dtype : str
        The name of its dtype.
    """
    other = "torch" if library == "numpy" else "numpy"
    ranking = ("numba", library, other)
    return tuple(backend for backend in ranking if dtype in DTYPES[backend])


def forget() -> None:
    """Read GRADMARK_BACKEND and the profile again at the next call: they may have changed."""
    _machine.forget()
    for table in _tables:
        table.clear()


def read_nothing() -> None:
    """As if there were neither GRADMARK_BACKEND nor a profile: measurements and tests do not depend on them."""
    forget()
    _machine.read_nothing()


class _Machine:
    """What is read once: the environment variable and the profile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._variable: str | None = None
        self._profile: profiles.Profile | None = None
        self._read = False

    def read_nothing(self) -> None:
        self.forget()
        self._read = True

    def variable(self) -> str | None:
        self._read_once()
        return self._variable

    def profile(self) -> profiles.Profile | None:
        self._read_once()
        return self._profile

    def _read_once(self) -> None:
        if self._read:
            return
        message = None
        # Another thread must wait: what it would decide without the profile would be remembered.
        with self._lock:
            if not self._read:
                self._variable = os.environ.get(VARIABLE) or None
                if self._variable is None:
                    self._profile, message = _profile_and_complaint()
                self._read = True
        # At last, so that a warning which the caller has made an error is raised once as well.
        if message is not None:
            warnings.warn(message, ProfileWarning, stacklevel=_FRAMES)


def _profile_and_complaint() -> tuple[profiles.Profile | None, str | None]:
    """This machine's profile, and what is to be said where there is none that can be used."""
    try:
        profile = profiles.load()
        old = [] if profile is not None else profiles.stale()
    except ProfileError as error:
        return None, f"{error}. Until then the shipped default is used"
    if not old:
        return profile, None
    path, why = old[0]
    return None, (
        f"no profile of gradmark choose fits; {path.name}: {why}. `gradmark choose` makes one, until then the shipped"
        " default is used"
    )


_FRAMES = 8
"""From where the warning is given up to the caller of a function of the catalog, for whom it is."""

_machine = _Machine()
_backends_of_tensors: dict[Any, str] = {}
_tables: list[dict[Any, Any]] = [_backends_of_tensors]
"""Who serves which calls: of all functions, and of `backend_of_tensor`."""


class _Call(NamedTuple):
    """What the choice of a backend depends on, beside the function."""

    library: str
    """Whose arrays these are: "numpy" or "torch"."""
    dtype: str
    device: str
    bits: int
    """Of the number of elements. All of one length are served as the smallest, whichever of them comes first."""
    variant: str

    @property
    def elements(self) -> int:
        return 1 << (self.bits - 1) if self.bits else 0


class _Finder:
    """Finds who serves the calls of one function, and remembers it in its tables."""

    def __init__(self, name: str, row: catalog.Operation, leading: str) -> None:
        self.of_arrays: dict[Any, Callable[..., Any]] = {}
        self.of_tensors: dict[Any, Callable[..., Any]] = {}
        _tables.extend((self.of_arrays, self.of_tensors))
        self._name = name
        self._row = row
        self._pass = catalog.FORWARD if name == row.name else catalog.BACKWARD
        self._leading = leading

    def find(self, array: Any, backend: Any, variant: Any = "") -> Callable[..., Any]:
        """Who serves a call with this first array; the next call of its kind finds it in the tables."""
        self._check(array, self._leading)
        _check_name(backend)
        variant = variant if isinstance(variant, str) else ""
        served = self._serving(_call([array], variant), backend)
        if type(array) is np.ndarray:
            self.of_arrays[backend, array.dtype, array.size.bit_length(), variant] = served
        else:
            key = backend, type(array), array.dtype, array.device, array.numel().bit_length(), variant
            self.of_tensors[key] = served
        return served

    def find_for_list(self, arrays: Any, backend: Any) -> Callable[..., Any]:
        """Who serves a call with a list of arrays in the first place."""
        _check_name(backend)
        if not isinstance(arrays, list | tuple) or not arrays:
            # No list, which any backend says; or an empty one, which tells no library.
            torch = _is_tensor(arrays) or _explicit(backend)[0] == "torch"
            return self._function("torch" if torch else "numpy")
        for i, array in enumerate(arrays):
            self._check(array, f"{self._leading}[{i}]")
        call = _call(arrays, "")
        table = self.of_arrays if call.library == "numpy" else self.of_tensors
        if (backend, call) not in table:
            table[backend, call] = self._serving(call, backend)
        return table[backend, call]

    def _check(self, value: Any, role: str) -> None:
        if type(value) is not np.ndarray and not _is_tensor(value):
            kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            raise TypeError(
                f"{role} is of type {kind}; gradmark.{self._name} takes numpy.ndarray or torch.Tensor (numpy.asarray"
                " converts numbers and lists)"
            )

    def _serving(self, call: _Call, backend: str | None) -> Callable[..., Any]:
        wanted, chosen_by = _explicit(backend)
        if wanted is not None:
            refusal = _refusal(wanted, call, self._leading, chosen_by)
            if refusal is not None:
                raise refusal
            return self._served_by(wanted, call.library, None)
        own = self._function(call.library)
        for candidate in _ranking(self._row, self._pass, call):
            if _refusal(candidate, call, self._leading, "") is None:
                with contextlib.suppress(*_BROKEN):
                    return self._served_by(candidate, call.library, own)
        # Nobody takes it: the array's own library says what it would take.
        return own

    def _served_by(self, backend: str, library: str, otherwise: Callable[..., Any] | None) -> Callable[..., Any]:
        served = self._function(backend)
        if backend in _NATIVE[library]:
            return served
        if library == "numpy":
            dtypes = tuple(name for name in DTYPES[backend] if name in DTYPES["numpy"])
            return crossing.arrays_by_torch(served, NumpyArrays(backend, dtypes), otherwise)
        return crossing.tensors_by_numpy(served, TorchArrays(backend, DTYPES[backend]), otherwise)

    def _function(self, backend: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(backends.backend(backend), self._name)
        return found


def _call(arrays: Sequence[Any], variant: str) -> _Call:
    """What the choice depends on in a call with these arrays, of which the first tells library and device."""
    dtypes = {str(array.dtype).removeprefix("torch.") for array in arrays}
    # Of several dtypes that which the fewest backends take: who serves must take them all.
    dtype = min(dtypes, key=lambda name: sum(name in accepted for accepted in DTYPES.values()))
    elements = sum(array.size if type(array) is np.ndarray else array.numel() for array in arrays)
    if type(arrays[0]) is np.ndarray:
        return _Call("numpy", dtype, "cpu", elements.bit_length(), variant)
    return _Call("torch", dtype, str(arrays[0].device), elements.bit_length(), variant)


def _ranking(row: catalog.Operation, operation_pass: catalog.Pass, call: _Call) -> list[str]:
    """The backends in the order in which an automatic choice tries them."""
    profile = _machine.profile()
    measured: tuple[str, ...] = ()
    if profile is not None:
        point = profile.point(row.name, operation_pass, call.dtype, call.elements, variant=call.variant)
        measured = point.ranking if point is not None else ()
    ranking = (*measured, *default_ranking(call.library, call.dtype))
    return [backend for backend in dict.fromkeys(ranking) if backend in BACKENDS]


def _explicit(backend: str | None) -> tuple[str | None, str]:
    """The backend that somebody has chosen, or None; and who it was, in words."""
    if backend is not None:
        within = backend == _selected.get()
        return backend, f"gradmark.using({backend!r})" if within else f"backend={backend!r}"
    variable = _machine.variable()
    if variable is not None and variable not in BACKENDS:
        raise LookupError(f"{VARIABLE} names the unknown backend {variable!r}; known backends: {', '.join(BACKENDS)}")
    return variable, f"{VARIABLE}={variable}"


def _check_name(backend: Any) -> None:
    if backend is not None and (not isinstance(backend, str) or backend not in BACKENDS):
        raise LookupError(f"unknown backend {backend!r}; known backends: {', '.join(BACKENDS)}")


def _refusal(backend: str, call: _Call, role: str, chosen_by: str) -> Exception | None:
    """Why the backend cannot serve the call, as an error; None where it can."""
    cannot = f"{chosen_by} cannot serve this call"
    reason = backends.why_unusable(backend)
    if reason is not None:
        return BackendUnavailableError(f"{cannot}: {reason}")
    if call.device != "cpu" and backend != "torch":
        return ValueError(
            f"{cannot}: {role} is on {call.device}, and the {backend} backend runs on the CPU only; nothing is copied"
            f" between devices silently: use the torch backend, or give {role}.cpu()"
        )
    if call.dtype not in DTYPES[backend]:
        accepted = ", ".join(DTYPES[backend])
        return TypeError(f"{cannot}: {role} has dtype {call.dtype}; the {backend} backend takes {accepted}")
    return None


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor; without torch, or before anybody has imported it, there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _operation(
    name: str, row: catalog.Operation, parameters: list[inspect.Parameter], doc: str | None
) -> Callable[..., Any]:
    names = [parameter.name for parameter in parameters]
    leading = next(role for role in ("grads", "x", "y") if role in names)
    finder = _Finder(name, row, leading)
    variant = _variant(row)
    of_list = leading == "grads"
    lines = ["serve = find(grads, backend)"] if of_list else _look_up(leading, variant)
    body = [
        *("if backend is None:", "    backend = selected()"),
        *lines,
        f"return serve({_passed_on(parameters)})",
    ]
    signature = _signature([*parameters, *_optional("backend")])
    globals_ = {
        "ndarray": np.ndarray,
        "selected": _selected.get,
        "of_arrays": finder.of_arrays,
        "of_tensors": finder.of_tensors,
        "find": finder.find_for_list if of_list else finder.find,
    }
    return define(name, signature, "\n".join(body), globals_, _documented(doc, _BACKEND))


def _look_up(x: str, variant: str) -> list[str]:
    return [
        "try:",
        f"    if type({x}) is ndarray:",
        f"        serve = of_arrays[backend, {x}.dtype, {x}.size.bit_length(), {variant}]",
        "    else:",
        f"        serve = of_tensors[backend, type({x}), {x}.dtype, {x}.device, {x}.numel().bit_length(), {variant}]",
        "except (KeyError, AttributeError, TypeError):",
        "    serve = None",
        # Outside of the handler: an error is then not shown as one that happened while another was handled.
        "if serve is None:",
        f"    serve = find({x}, backend, {variant})",
    ]


def _variant(row: catalog.Operation) -> str:
    """The variant of a call as `gradmark.workloads` names it, as an expression in its parameters."""
    if isinstance(row, catalog.Activation) and row.seeded:
        return f"'' if seed is None else {workloads.TRAINING!r}"
    if isinstance(row, catalog.Initializer):
        method = next((p for p in row.parameters if p.name == "method"), None)
        return "''" if method is None else f"'' if method == {method.default!r} else method"
    return "activation or ''" if isinstance(row, catalog.Stabilizer) and "activation" in row.forward else "''"


def _initializer(row: catalog.Initializer, parameters: list[inspect.Parameter], doc: str | None) -> Callable[..., Any]:
    finder = _InitializerFinder(row)
    body = f"return find(shape, dtype, backend, device, {_variant(row)})({_passed_on(parameters)})"
    signature = _signature([*parameters, *_optional("backend", "device")])
    return define(row.name, signature, body, {"find": finder.find}, _documented(doc, _INITIALIZER_BACKEND))


class _InitializerFinder:
    """Finds who serves the calls of one initializer."""

    def __init__(self, row: catalog.Initializer) -> None:
        self._row = row
        self._table: dict[Any, Callable[..., Any]] = {}
        _tables.append(self._table)

    def find(self, shape: Any, dtype: Any, backend: Any, device: Any, variant: Any) -> Callable[..., Any]:
        """Who serves a call with these arguments: the backend that the call names, or one whose result is an array."""
        if backend is not None:
            there = "cpu" if device is None else device
            named: Callable[..., Any] = getattr(backends.backend(backend, device=there), self._row.name)
            return named
        if device is not None:
            raise ValueError(
                f"device={str(device)!r} needs backend='torch', which gives a tensor; without it {self._row.name} gives"
                " a NumPy array"
            )
        variant = variant if isinstance(variant, str) else ""
        call = _Call("numpy", _name_of(dtype), "cpu", _elements(shape).bit_length(), variant)
        key = _selected.get(), call
        if key not in self._table:
            self._table[key] = self._giving_arrays(*key)
        return self._table[key]

    def _giving_arrays(self, selected: str | None, call: _Call) -> Callable[..., Any]:
        if call.dtype in DTYPES["torch"] and call.dtype not in DTYPES["numpy"]:
            raise TypeError(
                f"dtype {call.dtype!r} needs backend='torch', which gives a tensor; a NumPy array may have"
                f" {', '.join(DTYPES['numpy'])}"
            )
        wanted, chosen_by = _explicit(selected)
        if wanted is not None:
            refusal = _refusal(wanted, call, "the result", chosen_by)
            if refusal is not None:
                raise refusal
            return self._served_by(wanted)
        for candidate in _ranking(self._row, catalog.FORWARD, call):
            if _refusal(candidate, call, "the result", "") is None:
                with contextlib.suppress(*_BROKEN):
                    return self._served_by(candidate)
        return self._served_by("numpy")

    def _served_by(self, backend: str) -> Callable[..., Any]:
        served: Callable[..., Any] = getattr(backends.backend(backend), self._row.name)
        return served if backend in _NATIVE["numpy"] else lambda *args, **keywords: served(*args, **keywords).numpy()


def _elements(shape: Any) -> int:
    """How many weights; 1 where this is no shape, which the backend says."""
    lengths = shape if isinstance(shape, list | tuple) else (shape,)
    plain = all(isinstance(length, numbers.Integral) and int(length) >= 0 for length in lengths)
    return int(math.prod(map(int, lengths))) if plain else 1


def _name_of(dtype: Any) -> str:
    if isinstance(dtype, str):
        return dtype
    try:
        return str(np.dtype(dtype))
    except TypeError:
        return str(dtype).removeprefix("torch.")


def _optional(*names: str) -> list[inspect.Parameter]:
    return [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]


def _signature(parameters: list[inspect.Parameter]) -> str:
    return str(inspect.Signature(parameters))


def _passed_on(parameters: list[inspect.Parameter]) -> str:
    """The arguments of the call that the function passes on, positional ones by their place."""
    return ", ".join(f"{p.name}={p.name}" if p.kind is inspect.Parameter.KEYWORD_ONLY else p.name for p in parameters)


_BACKEND = """\
backend : str, optional
    Who serves this call, one of `gradmark.BACKENDS`; an error where it cannot. None: whom `gradmark.using` or
    GRADMARK_BACKEND names, else the fastest in this machine's profile (`gradmark choose`), else numba where it takes
    the dtype, else the array's own library.
"""

_INITIALIZER_BACKEND = """\
backend : str, optional
    Who serves this call, one of `gradmark.BACKENDS`; "torch" gives a tensor. None: a NumPy array, made by whom
    `gradmark.using` or GRADMARK_BACKEND names, else by the fastest in this machine's profile (`gradmark choose`), else
    by numba where it has the dtype, else by numpy.
device : str or torch.device, optional
    Of the tensor that backend="torch" gives. Default: the CPU.
"""

_RAISES = """\
LookupError, gradmark.BackendUnavailableError
    A backend that is unknown, or that cannot be used here; the message says why.
"""


def _documented(doc: str | None, backend: str) -> str:
    """The docstring of a backend's function, and what is new here."""
    with_backend = (doc or "").replace("\nReturns\n-------\n", f"{backend}\nReturns\n-------\n", 1)
    return with_backend.replace("Raises\n------\n", f"Raises\n------\n{_RAISES}", 1)
