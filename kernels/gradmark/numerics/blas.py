"""Matrix products of BLAS in place, on views of NumPy arrays.

numpy.matmul cannot add to its result and scipy.linalg.blas copies what is not contiguous: a factorization that
updates a corner of a matrix would move as many bytes as it computes. So SciPy's BLAS is called by its pointers, with
the strides of the views. The arguments are those that gradmark's own kernels make; nothing is checked.

Loops of products use this BLAS alone: NumPy's is another library with threads of its own, and the threads of either
wait for work busily, on the cores that those of the other need.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from scipy.linalg import cython_blas

Function = Callable[..., None]


def add_product(c: Any, alpha: float, a: Any, b: Any, beta: float) -> None:
    """C = alpha A B + beta C, in place.

    Parameters
    ----------
    c, a, b : array
        (m, n), (m, k) and (k, n), float32 or all float64, each with neighbours in memory along one dimension, as
        views of contiguous matrices and their transposes are. C overlaps neither A nor B; with beta = 0 it is not read.
    """
    if c.size == 0:
        return
    if not _is_column_major(c):
        c, a, b = c.T, b.T, a.T
    (rows, columns), inner = c.shape, a.shape[1]
    (form_a, lead_a), (form_b, lead_b) = _form(a), _form(b)
    number = _NUMBERS[c.dtype.name]
    integers = [ctypes.c_int(value) for value in (rows, columns, inner, lead_a, lead_b, _form(c)[1])]
    m, n, k, lda, ldb, ldc = map(ctypes.byref, integers)
    factor, old = ctypes.byref(number(alpha)), ctypes.byref(number(beta))
    _function(f"{_PREFIXES[c.dtype.name]}gemm", 13)(
        form_a, form_b, m, n, k, factor, a.ctypes.data, lda, b.ctypes.data, ldb, old, c.ctypes.data, ldc
    )


def divide_by_triangle(b: Any, r: Any) -> None:
    """B = B R⁻¹, in place: b of shape (m, n) as above, r (n, n), C-contiguous, of which the upper triangle is read."""
    rows, columns = b.shape
    # R in C order is Rᵀ in Fortran's, a lower triangle. Of a B in C order it is Rᵀ⁻¹ Bᵀ that BLAS computes.
    side, transpose = (b"R", b"T") if _is_column_major(b) else (b"L", b"N")
    m, n = (rows, columns) if _is_column_major(b) else (columns, rows)
    lead = _form(b)[1]
    integers = [ctypes.c_int(value) for value in (m, n, max(columns, 1), lead)]
    m_, n_, ldr, ldb = map(ctypes.byref, integers)
    one = ctypes.byref(_NUMBERS[b.dtype.name](1.0))
    _function(f"{_PREFIXES[b.dtype.name]}trsm", 11)(
        side, b"L", transpose, b"N", m_, n_, one, r.ctypes.data, ldr, b.ctypes.data, ldb
    )


_NUMBERS = {"float32": ctypes.c_float, "float64": ctypes.c_double}
_PREFIXES = {"float32": "s", "float64": "d"}


def _is_column_major(x: Any) -> bool:
    """Neighbours of a column are neighbours in memory. A single row or column is both, whatever its strides say."""
    return bool(x.strides[0] == x.itemsize or x.shape[0] == 1) and (x.shape[1] == 1 or x.strides[1] >= x.itemsize)


def _form(x: Any) -> tuple[bytes, int]:
    """Whether BLAS has to transpose the view, and its leading dimension."""
    if _is_column_major(x):
        return b"N", x.strides[1] // x.itemsize if x.shape[1] > 1 else max(x.shape[0], 1)
    return b"T", x.strides[0] // x.itemsize if x.shape[0] > 1 else max(x.shape[1], 1)


@functools.cache
def _function(name: str, arguments: int) -> Function:
    """SciPy's function of BLAS: all arguments are pointers."""
    capsule = cython_blas.__pyx_capi__[name]
    pointer = _PointerOf(("PyCapsule_GetPointer", ctypes.pythonapi))
    text = _NameOf(("PyCapsule_GetName", ctypes.pythonapi))
    kinds = [ctypes.c_void_p] * arguments
    return ctypes.CFUNCTYPE(None, *kinds)(pointer(capsule, text(capsule)))


_PointerOf = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_NameOf = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)
