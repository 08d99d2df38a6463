"""Loops that run any kernel of a type, which they are given by its address.

What shares a kernel's chunks among threads depends on the kernel's type alone, but takes Numba longer to compile than
the kernel. So there is one such loop for all kernels of a type: its first argument is the address of the kernel's
machine code, and `call` calls what lies there, for a price of nanoseconds a chunk.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gradmark.numerics.compile_cache import jit

Kernel = Callable[..., Any]

_compiled: dict[tuple[str, Any, bool], Kernel] = {}
_compiling = threading.Lock()


def bound(name: str, function: Callable[..., Any], signature: Any, *kernels: Kernel, parallel: bool = True) -> Kernel:
    """A loop that calls these kernels.

    Parameters
    ----------
    name : str
        Of the loop, unique among those of gradmark. Of two loops of one name and signature, the one compiled first
        serves both.
    function : callable
        Its first arguments are the kernels' addresses, for `call`.
    signature : numba signature
        Of the arguments after the addresses.
    *kernels : callables
        What `jit` has returned for signatures that give nothing back.
    parallel : bool
        Whether threads share its `prange` loops.
    """
    key = name, signature, parallel
    with _compiling:
        if key not in _compiled:
            given = types.void(*[types.int64] * len(kernels), *signature.args)
            full_name = f"{name}-{'shared' if parallel else 'alone'}"
            _compiled[key] = jit(function, given, name=full_name, parallel=parallel)
    return _Bound(_compiled[key], kernels)


class _Bound(functools.partial[Any]):
    """A loop with its first arguments. It keeps the kernels, whose machine code goes with them."""

    kernels: tuple[Kernel, ...]

    def __new__(cls, loop: Kernel, kernels: tuple[Kernel, ...]) -> _Bound:
        self = super().__new__(cls, loop, *map(_address, kernels))
        self.kernels = kernels
        return self


def _address(kernel: Any) -> int:
    (overload,) = kernel.overloads.values()
    assert overload.signature.return_type == types.none
    address: int = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
    return address


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call the kernel at an address with a tuple of arguments, which must have the types of its signature.

    Whether an array is read-only does not matter: the machine code does not know.
    """
    given = list(arguments)

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
