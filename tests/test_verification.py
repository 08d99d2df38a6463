"""Every operation, in every backend, device and dtype, against its definition: what `gradmark verify` reports."""

import dataclasses

import mpmath
import numpy as np
import pytest

import gradmark
from gradmark import catalog, reference, verification
from gradmark.backends import DTYPES
from gradmark.catalog import Activation, Initializer
from gradmark.verification import Check, check_operation, orthogonal
from gradmark.workloads import TARGETS
from targets import namespace_of

EVERY = [(t, d) for t in TARGETS for d in DTYPES[TARGETS[t].backend]]
METHODS = ("qr", "householder", "cholesky_qr2", "polar")


def expected_passes(row):
    if isinstance(row, Activation):
        return ["forward", "backward", *(f"backward ({p.name})" for p in row.learnable)]
    if row.name == "orthogonal":
        return [f"{what}{method}" for method in ("", *(f" ({m})" for m in METHODS)) for what in ("forward", "values")]
    return ["forward"] if isinstance(row, Initializer) else ["forward", "backward"]


@pytest.mark.parametrize(("target", "dtype"), EVERY)
@pytest.mark.parametrize("operation", catalog.OPERATIONS)
def test_agrees_with_the_definition(operation, target, dtype):
    row = catalog.operation(operation)
    checks = list(check_operation(row, namespace_of(target), target, dtype))
    assert [c.operation_pass for c in checks] == expected_passes(row)
    assert [str(c) for c in checks if not c.passed] == []


class Wrong:
    """A backend that errs in one function by the least that must be found."""

    def __init__(self, backend, function, spoil):
        self._backend = backend
        self.name, self.device, self._arrays = backend.name, backend.device, backend._arrays
        self._function, self._spoil = function, spoil

    def __getattr__(self, name):
        right = getattr(self._backend, name)
        return right if name != self._function else lambda *a, **k: self._spoil(right(*a, **k))


def off_by_a_few_ulp(result):
    if hasattr(result, "y"):
        return result._replace(y=off_by_a_few_ulp(result.y))
    if isinstance(result, tuple):
        return (off_by_a_few_ulp(result[0]), *result[1:])
    if isinstance(result, list):
        return [off_by_a_few_ulp(r) for r in result]
    wrong = result.copy()
    wrong.flat[wrong.size // 2] *= 1 + 1e-4
    return wrong


@pytest.mark.parametrize("operation", [n for n in catalog.OPERATIONS if n not in ("zeros", "eye", "dirac")])
def test_a_wrong_backend_is_found(operation):
    """One element, off by one part in 10 000, anywhere in the families: the check must fail, or it proves nothing."""
    row = catalog.operation(operation)
    wrong = Wrong(gradmark.backend("numpy"), operation, off_by_a_few_ulp)
    forward = next(iter(check_operation(row, wrong, "numpy", "float32")))
    assert not forward.passed


class WrongMethod:
    """A backend whose orthogonal weights are wrong by one method; `spoil` gets the call and what it is given."""

    def __init__(self, backend, method, spoil):
        self._backend, self._method, self._spoil = backend, method, spoil
        self.name, self.device = backend.name, backend.device

    def orthogonal(self, shape, **keywords):
        right = self._backend.orthogonal
        if keywords.get("method") != self._method:
            return right(shape, **keywords)
        return self._spoil(right, shape, **keywords)


def without_signs(right, shape, **keywords):
    """The commonest error: a sign that is LAPACK's. What is orthogonal stays so."""
    weights = right(shape, **keywords)
    weights[..., 0] *= -1
    return weights


def of_another_seed(right, shape, seed, **keywords):
    return right(shape, seed=seed + 1, **keywords)


def not_converged(right, shape, **keywords):
    weights = right(shape, **keywords)
    weights += weights * type(weights.flat[0])(1e-5)
    return weights


def off_in_one_element(right, shape, **keywords):
    return off_by_a_few_ulp(right(shape, **keywords))


def failed_checks(method, spoil):
    wrong = WrongMethod(gradmark.backend("numpy"), method, spoil)
    checks = check_operation(catalog.operation("orthogonal"), wrong, "numpy", "float32")
    return {check.operation_pass for check in checks if not check.passed}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spoil", [not_converged, off_in_one_element])
def test_a_method_whose_weights_are_not_orthogonal_is_found(method, spoil):
    assert failed_checks(method, spoil) == {f"forward ({method})", f"values ({method})"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spoil", [without_signs, of_another_seed])
def test_a_method_that_makes_another_orthogonal_matrix_is_found(method, spoil):
    assert failed_checks(method, spoil) == {f"values ({method})"}


def test_a_method_that_gives_the_matrix_of_another_is_found():
    def polar_for_qr(right, shape, method, **keywords):
        return right(shape, method="polar", **keywords)

    assert failed_checks("qr", polar_for_qr) == {"values (qr)"}


def test_the_exact_matrices_are_what_they_are_called():
    """The references themselves, beside LAPACK's factors of the same normals, rounded."""
    for shape in ((40, 20), (18, 40)):
        z = gradmark.backend("numpy").normal(shape, seed=orthogonal._SEED, dtype="float64")
        z = z if shape[0] > shape[1] else z.T
        q, r = np.linalg.qr(z)
        u, _, vt = np.linalg.svd(z, full_matrices=False)
        for method, expected in (("qr", q * np.sign(np.diagonal(r))), ("polar", u @ vt)):
            exact, condition = orthogonal._exact(method, shape, "float64")
            np.testing.assert_allclose(exact.astype(float), expected, rtol=0, atol=1e-13)
            assert condition == pytest.approx(np.linalg.cond(z))
    exact, condition = orthogonal._exact("householder", (40, 20), "float64")
    x = gradmark.backend("numpy").normal((40,), seed=orthogonal._SEED, dtype="float64")
    np.testing.assert_allclose(exact[:, 0].astype(float), x / np.linalg.norm(x), rtol=0, atol=1e-15)
    assert condition == 1.0


def test_nan_and_infinity_are_never_passed():
    check = Check("gelu", "forward", "numpy", "float32", float("nan"), 1.0, "x = 1")
    assert not check.passed
    assert not dataclasses.replace(check, worst=float("inf")).passed
    one = mpmath.mpf(1)
    assert reference.error_in_ulp(float("nan"), one, 0, "float32") == float("inf")
    assert reference.error_in_ulp(float("inf"), one, 0, "float32") == float("inf")
    assert reference.error_in_ulp(1.0, mpmath.nan, 0, "float32") == float("inf")
    assert reference.error_in_ulp(1.0, mpmath.inf, 0, "float32") == float("inf")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ulp_is_numpys_spacing(dtype):
    extremes = float(np.finfo(dtype).max / 2), float(np.finfo(dtype).tiny)
    for value in (1.0, 1.5, 2.0, 0.1, 1e-3, 6.1e-5, 1000.0, *extremes):
        stored = np.dtype(dtype).type(value)
        assert float(reference.ulp(mpmath.mpf(float(stored)), dtype)) == float(np.spacing(stored))


def test_errors_are_counted_in_ulp():
    x = np.float32(0.3)
    exact = mpmath.mpf(float(x))
    assert reference.error_in_ulp(float(np.nextafter(x, np.float32(1))), exact, 0, "float32") == 1.0
    assert reference.error_in_ulp(float(x), exact, 0, "float32") == 0.0


def test_unknown_operations_and_targets():
    with pytest.raises(LookupError, match="known operations"):
        list(verification.verify(["swoosh"], ["numpy"], ["float32"]))
    with pytest.raises(KeyError):
        list(verification.verify(["gelu"], ["abacus"], ["float32"]))
