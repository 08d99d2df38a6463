"""Random orthogonal matrices, distributed by Haar's measure, in NumPy: four ways to the same distribution.

`fill` gives the tall matrix Q (m, n), m >= n, with orthonormal columns, from the stream of normals of a seed. The
elements of the stream are the entries of a Gaussian matrix Z in the order of memory, or, for `householder`, those of
its lower trapezoid, column after column: reflector j takes m - j of them, from j m - j (j - 1) / 2 on.

    qr              Z = QR by LAPACK, the diagonal of R positive. Mezzadri, Notices AMS 54, 2007.
    householder     The reflectors of such a factorization, drawn instead of computed, and multiplied. Stewart, SIAM J.
                    Numer. Anal. 17, 1980. Half of the operations of `qr`, and nearly all of them matrix products.
    cholesky_qr2    The Q of `qr` by ZᵀZ = RᵀR, Q = Z R⁻¹, and the same again for what rounding left. Yamamoto,
                    Nakatsukasa, Yanagisawa, Fukaya, ETNA 44, 2015. For m >= 2n: the condition of Z, which the first
                    pass squares, is then at most about 6.
    polar           The polar factor of Z, by Newton and Schulz's iteration: matrix products and nothing else.

The methods give different matrices for one seed, but for `qr` and `cholesky_qr2`, which differ by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import blas, lapack

from gradmark.numerics.blas import add_product, divide_by_triangle

BLOCK = 128
"""Reflectors that are applied at once: enough for matrix products at full speed, few beside the rest of the work."""

FillNormal = Callable[..., None]
"""(out, first, seed, mean, std), as in `philox_numpy`."""


def orthogonal(shape: tuple[int, ...], dtype: Any, method: str, gain: float, seed: int, fill_normal: FillNormal) -> Any:
    """A weight of this shape and dtype: gain Q, or its transpose; computed in float32 for float16."""
    rows, columns = shape[0], math.prod(shape[1:])
    q = np.empty((rows, columns), np.promote_types(dtype, np.float32))
    fill(q.T if rows < columns else q, method, gain, seed, fill_normal)
    return q.astype(dtype, copy=False).reshape(shape)


def refusal(method: str, m: int, n: int) -> str | None:
    """Why the method cannot make a matrix (m, n), m >= n, in a sentence; None where it can."""
    if method != "cholesky_qr2" or m >= 2 * n:
        return None
    return (
        f"method='cholesky_qr2' squares the condition of a Gaussian matrix, which is bounded where one side is at least"
        f" twice the other, not at {m} x {n}: take method='householder' or 'qr'"
    )


def chosen(method: str, m: int, n: int) -> str:
    """The method that "auto" means at (m, n), m >= n; a function of the shape, so that a seed means one matrix.

    There is no crossover: `householder` was the fastest at every shape of `python -m benchmarks.initializer_peers`, and
    it alone makes any part of a matrix.
    """
    return "householder" if method == "auto" else method


def fill(out: Any, method: str, gain: float, seed: int, fill_normal: FillNormal) -> None:
    """Fill `out` with gain Q.

    Parameters
    ----------
    out : array
        (m, n), m >= n, float32 or float64: a C-contiguous matrix or the transpose of one.
    method : str
        One of those above, or "auto".
    gain : float
        Times Q.
    seed : int
        Of the stream.
    fill_normal : callable
        Gives its elements.
    """
    _METHODS[chosen(method, *out.shape)](out, seed, fill_normal)
    if gain != 1.0:
        out *= out.dtype.type(gain)


def by_qr(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """LAPACK's QR; its matrices are in Fortran's order, so that a matrix in C's takes a copy."""
    _fill_gaussian(out, seed, fill_normal)
    z = np.asfortranarray(out)
    factor, form = lapack.get_lapack_funcs(("geqrf", "orgqr"), (z,))
    work = 64 * z.shape[1]
    z, tau, _, _ = factor(z, lwork=work, overwrite_a=True)
    # LAPACK fixes no signs. With R's diagonal positive the factorization is unique, and Q is Haar.
    signs = np.where(np.diagonal(z) < 0, -1, 1).astype(z.dtype)
    z, _, _ = form(z, tau, lwork=work, overwrite_a=True)
    np.multiply(z, signs, out=out)


def by_cholesky_qr2(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """Two passes of CholeskyQR, in place."""
    _fill_gaussian(out, seed, fill_normal)
    for _ in range(2):
        r, _ = lapack.get_lapack_funcs(("potrf",), (out,))[0](_gram(out), lower=False, overwrite_a=True)
        divide_by_triangle(out, np.ascontiguousarray(r))


def by_polar(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """Newton and Schulz's iteration X <- X (3 - XᵀX) / 2, scaled while the smallest singular value grows, in place."""
    _fill_gaussian(out, seed, fill_normal)
    m, n = out.shape
    schedule = PolarSchedule(m, n, float(np.finfo(out.dtype).eps))
    out /= out.dtype.type(schedule.largest)
    for _ in range(STEPS):
        gram = _gram(out)
        diagonal = np.einsum("jj->j", gram)
        diagonal -= 1.0
        step = schedule.step(float(np.linalg.norm(gram)))
        gram *= out.dtype.type(step.cubic)
        diagonal += out.dtype.type(step.linear + step.cubic)
        _multiply_rows(out, gram)
        del gram, diagonal
        if step.last:
            return
    raise no_convergence(seed, m, n)


class PolarStep(NamedTuple):
    """X <- X (linear + cubic XᵀX)."""

    linear: float
    cubic: float
    last: bool


class PolarSchedule:
    """The steps from a Gaussian matrix (m, n), divided by `largest`, to its polar factor.

    A step maps each singular value x in (0, 1] to a x (3 - (a x)²) / 2, at most 1; without the scale a it squares the
    distance from 1. The scale that lifts the smallest the most is √(3 / (1 + x + x²)), but it is bounded (Chen, Chow, A
    stable scaling of Newton-Schulz, 2014). Where the smallest is below what is assumed here, it takes more steps.
    """

    def __init__(self, m: int, n: int, eps: float) -> None:
        # Singular values are farther beyond √m ± √n than t with a probability below exp(-t²/2) (Davidson, Szarek 2001).
        # A square's smallest is below ε/√n with a probability of about ε (Edelman, SIAM J. Matrix Anal. Appl. 9, 1988).
        self.largest = math.sqrt(m) + math.sqrt(n) + 8.0
        self._smallest = max(math.sqrt(m) - math.sqrt(n) - 8.0, 0.01 / math.sqrt(n)) / self.largest
        self._near = 0.1 * math.sqrt(eps)

    def step(self, distance: float) -> PolarStep:
        """The next step, where the Frobenius norm of XᵀX - I is `distance`."""
        x = self._smallest
        a = min(math.sqrt(3.0 / (1.0 + x + x * x)), _LARGEST_SCALE) if distance > 0.5 else 1.0
        self._smallest = min(0.5 * a * y * (3.0 - (a * y) ** 2) for y in (x, 1.0))
        return PolarStep(1.5 * a, -0.5 * a**3, distance < self._near)


_LARGEST_SCALE = 1.5
"""Beyond, singular values near 1 become small, and errors large beside them: √3 maps 1 to 0."""

STEPS = 100
"""Of `polar`, at most. A smallest singular value of 1e-16 of the largest takes about 90."""


def no_convergence(seed: int, m: int, n: int) -> ArithmeticError:
    """What `polar` says of a matrix that is singular to the precision of its dtype."""
    return ArithmeticError(f"polar did not converge in {STEPS} steps at seed={seed}, {m} x {n}: take method='qr'")


def by_householder(out: Any, seed: int, fill_normal: FillNormal) -> None:
    """Reflectors from the last block to the first, each block as I - V T Vᵀ.

    Q is H_0 H_1 ... S. H_j maps the drawn x_j, which begins in row j, to a multiple of the unit vector, so that column
    j of Q is, but for its sign, x_j / |x_j| in the space that the columns before it leave: uniform on the sphere there.
    The signs S are those with which it is that itself.
    """
    m, n = out.shape
    for start, stop in reversed(blocks(m, n)):
        v = _drawn_block(m, start, stop, out.dtype, seed, fill_normal)
        t, signs = block_factor(v[:, : stop - start], _gram_of_rows(v))
        _apply(out, start, stop, v, t, signs)


def blocks(m: int, n: int) -> list[tuple[int, int]]:
    """Start and stop of the blocks of reflectors: short ones where the reflectors are, near the corner of a square.

    The longer the block beside its reflectors, the larger T and its rounding: at (64, 64) in float64, one block was
    off by 1.3 times what four are.
    """
    result = []
    start = 0
    while start < n:
        size = min(BLOCK, max(32, (m - start) // 2))
        result.append((start, min(start + size, n)))
        start += size
    return result


def block_factor(head: Any, gram: Any) -> tuple[Any, Any]:
    """T of a block I - V T Vᵀ and the signs of its columns. Makes reflectors of the drawn vectors, in place.

    T⁻¹ is the upper triangle of VᵀV, its diagonal halved (Puglisi, SIAM J. Sci. Stat. Comput. 13, 1992). With such a T
    the block is orthogonal whatever V is, so that only the rounding of VᵀV matters: it is in float64.

    Parameters
    ----------
    head : array
        (b, b): row j begins with j zeros, then come the first elements of drawn vector j.
        What makes a reflector of it is added to its first element, head[j, j].
    gram : array
        (b, b), float64: the products of the drawn vectors, of which the upper triangle is read.

    Returns
    -------
    t : array
        (b, b), upper triangular, of the dtype of `head`.
    signs : array
        (b,), of it too.
    """
    first = np.einsum("jj->j", head)
    x, squares = first.astype(np.float64), np.diagonal(gram)
    signs = np.where(x < 0.0, 1.0, -1.0)
    first -= (signs * np.sqrt(squares)).astype(head.dtype)
    if squares[-1] == x[-1] * x[-1]:
        # One element alone: nothing is left to reflect, and it gives its own sign.
        first[-1], signs[-1] = 0.0, -signs[-1]
    # Vectors i < j: v_i v_j = x_i x_j + x_i[j] added_j, as x_j[i] is 0.
    added = first - x
    inverse = np.triu(gram + head.astype(np.float64) * added, 1)
    half = 0.5 * (squares + added * (first + x))
    np.einsum("jj->j", inverse)[:] = np.where(half > 0.0, half, 1.0)
    t, _ = lapack.dtrtri(inverse)
    return np.ascontiguousarray(t, head.dtype), signs.astype(head.dtype)


def _drawn_block(m: int, start: int, stop: int, dtype: Any, seed: int, fill_normal: FillNormal) -> Any:
    """The vectors that become reflectors start to stop - 1, one a row, from row `start` of Q on."""
    count, length = stop - start, m - start
    flat = np.empty(count * length, dtype)
    # They stand in the stream without gaps: drawn by one call, behind room for the zeros, and each moved to its place.
    begin = count * (count - 1) // 2
    fill_normal(flat[begin:], start * m - start * (start - 1) // 2, seed, 0.0, 1.0)
    v = flat.reshape(count, length)
    for j, row in enumerate(v):
        row[j:] = flat[begin : begin + length - j]
        row[:j] = 0.0
        begin += length - j
    return v


def _apply(out: Any, start: int, stop: int, v: Any, t: Any, signs: Any) -> None:
    """Multiply the columns from `stop` on with the block, and set its own."""
    b, n = stop - start, out.shape[1]
    corner, head = out[start:, start:stop], np.empty((b, b), out.dtype)
    add_product(head, -1.0, t, v[:, :b], 0.0)
    head *= signs
    add_product(corner, 1.0, v.T, head, 0.0)
    np.einsum("jj->j", corner[:b])[:] += signs
    if stop == n:
        return
    out[start:stop, stop:] = 0.0
    w = np.empty((2, b, n - stop), out.dtype)
    add_product(w[0], 1.0, v[:, b:], out[stop:, stop:], 0.0)
    add_product(w[1], 1.0, t, w[0], 0.0)
    add_product(out[start:, stop:], -1.0, v.T, w[1], 1.0)


def _fill_gaussian(out: Any, seed: int, fill_normal: FillNormal) -> None:
    flat = (out if out.flags.c_contiguous else out.T).reshape(-1)
    fill_normal(flat, 0, seed, 0.0, 1.0)


def _gram(x: Any) -> Any:
    """XᵀX in the dtype of X, with a diagonal that is rounded once, from float64.

    What the diagonal is off by, columns of Q are too long or short by; with it, their angles are the larger error.
    """
    gram = np.empty((x.shape[1], x.shape[1]), x.dtype)
    add_product(gram, 1.0, x.T, x, 0.0)
    squares = np.zeros(x.shape[1])
    for begin in range(0, x.shape[0], 64):
        part = x[begin : begin + 64].astype(np.float64)
        squares += np.einsum("ij,ij->j", part, part)
    np.einsum("jj->j", gram)[:] = squares
    return gram


def _gram_of_rows(v: Any) -> Any:
    """The upper triangle of VVᵀ in float64, in pieces. A whole product takes half as long again."""
    gram = np.zeros((len(v), len(v)), order="F")
    for begin in range(0, v.shape[1], _PIECE):
        part = v[:, begin : begin + _PIECE].astype(np.float64)
        gram = blas.dsyrk(1.0, part.T, beta=1.0, c=gram, trans=1, overwrite_c=True)
    return gram


_PIECE = 1 << 10
"""Elements of a vector at a time: with 128 vectors in float64, 1 MiB."""


def _multiply_rows(x: Any, by: Any) -> None:
    """X = X by, some rows at a time."""
    rows = max(BLOCK, x.shape[0] // 16)
    part = np.empty((rows, x.shape[1]), x.dtype)
    for begin in range(0, x.shape[0], rows):
        old = x[begin : begin + rows]
        add_product(part[: len(old)], 1.0, old, by, 0.0)
        old[...] = part[: len(old)]


_METHODS: dict[str, Callable[..., None]] = {
    "qr": by_qr,
    "householder": by_householder,
    "cholesky_qr2": by_cholesky_qr2,
    "polar": by_polar,
}
METHODS: tuple[str, ...] = tuple(_METHODS)
