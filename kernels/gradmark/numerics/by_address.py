"""Loops that run any kernel of a type, which they are given by its address.

What shares a kernel's chunks among threads depends on the kernel's type alone, but takes Numba longer to compile than
the kernel. So there is one such loop for all kernels of a type: its first argument is the address of the kernel's
machine code, and `call` calls what lies there, for a price of nanoseconds a chunk.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from gradmark.numerics.compile_cache import jit

Kernel = Callable[..., Any]

_compiled: dict[tuple[Any, ...], Kernel] = {}
_compiling = threading.Lock()
_callable: list[Any] = []
"""The signatures of the kernels that the loop being compiled may call."""


def _after_fork_in_child() -> None:
    """Another thread may have been compiling: in the child it is not, and its lock would stay."""
    global _compiling
    _compiling = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def bound(name: str, function: Callable[..., Any], signature: Any, *kernels: Kernel, parallel: bool = True) -> Kernel:
    """A loop that calls these kernels.

    Parameters
    ----------
    name : str
        Of the loop, unique among those of gradmark. Of two loops of one name whose signatures and kernels' signatures
        are the same, the one compiled first serves both.
    function : callable
        Its first arguments are the kernels' addresses, for `call`.
    signature : numba signature
        Of the arguments after the addresses.
    *kernels : callables
        What `jit` has returned for signatures that give nothing back.
    parallel : bool
        Whether threads share its `prange` loops.
    """
    called = tuple(_overload(kernel).signature for kernel in kernels)
    key = name, signature, parallel, called
    with _compiling:
        if key not in _compiled:
            given = types.void(*[types.int64] * len(kernels), *signature.args)
            # The cache of machine code knows a loop by its name and its own signature.
            of_kernels = hashlib.sha256(repr(called).encode()).hexdigest()[:8]
            full_name = f"{name}-{'shared' if parallel else 'alone'}-{of_kernels}"
            _callable[:] = called
            _forget_typed_calls()
            _compiled[key] = jit(function, given, name=full_name, parallel=parallel)
    return _Bound(_compiled[key], kernels)


class _Bound(functools.partial[Any]):
    """A loop with its first arguments. It keeps the kernels, whose machine code goes with them."""

    kernels: tuple[Kernel, ...]

    def __new__(cls, loop: Kernel, kernels: tuple[Kernel, ...]) -> _Bound:
        self = super().__new__(cls, loop, *map(_address, kernels))
        self.kernels = kernels
        return self


def _forget_typed_calls() -> None:
    """Numba types an intrinsic once for each tuple of types; here it hangs on the kernels, too, which it may call."""
    for template in cpu_target.typing_context.resolve_value_type(call).templates:
        template._impl_cache.clear()


def _overload(kernel: Any) -> Any:
    (overload,) = kernel.overloads.values()
    return overload


def _address(kernel: Any) -> int:
    overload = _overload(kernel)
    address: int = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
    return address


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call the kernel at an address with a tuple of arguments.

    They must have the types of a kernel that `bound` was given, or the loop does not compile. What the machine code
    does not tell apart may differ: the sign of an integer, a writeable array where one is read, a contiguous one where
    any strides are taken.
    """
    given = [types.unliteral(one) for one in arguments]
    if not any(signature.return_type == types.none and _fits(given, signature.args) for signature in _callable):
        raise TypingError(f"no kernel of this loop takes {given}; they take {[s.args for s in _callable]}")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        convention = context.call_conv
        kind = convention.get_function_type(types.none, given)
        kernel = builder.inttoptr(values[0], kind.as_pointer())
        status, _ = convention.call_function(
            builder, kernel, types.none, given, cgutils.unpack_tuple(builder, values[1])
        )
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(address, arguments), generate


def _fits(given: Any, declared: Any) -> bool:
    return len(given) == len(declared) and all(map(_is_passed_as, given, declared))


def _is_passed_as(given: Any, declared: Any) -> bool:
    """Whether a value of one type is to the machine code of a kernel one of the other."""
    if isinstance(given, types.Integer) and isinstance(declared, types.Integer):
        return bool(given.bitwidth == declared.bitwidth)
    if isinstance(given, types.Array) and isinstance(declared, types.Array):
        same = (given.dtype, given.ndim) == (declared.dtype, declared.ndim)
        layout = declared.layout in (given.layout, "A")
        return bool(same and layout and (given.mutable or not declared.mutable) and given.aligned)
    if isinstance(given, types.BaseTuple) and isinstance(declared, types.BaseTuple):
        return _fits(given.types, declared.types)
    return bool(given == declared)
