"""The contract of the stabilizers: one set of functions in every backend, and typed errors for bad input."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
import torch

import gradmark
from gradmark import catalog
from gradmark.stabilizers import public
from stabilizing import Arrays


def implementation(name):
    module = importlib.import_module(f"gradmark.stabilizers.{name}")
    return {
        function_name: str(inspect.signature(function))
        for function_name, function in vars(module).items()
        # Also what the module has from parts of it, such as clipping_numba.
        if inspect.isfunction(function)
        and function.__module__.startswith("gradmark.stabilizers.")
        and function.__module__.endswith(name)
        and not function_name.startswith("_")
    }


@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_backends_define_the_same_functions(name):
    functions = implementation(name)
    rows = [n for row in catalog.STABILIZERS for n in (row.name, catalog.backward_of(row.name))]
    assert list(functions) == rows, "the functions of the catalog's rows, in its order, and nothing else in public"
    assert functions == implementation("numpy")


@pytest.mark.parametrize("row", catalog.STABILIZERS, ids=lambda row: row.name)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_public_signatures_are_those_of_the_row(name, row):
    backend = gradmark.backend(name)
    for function_name, signature in ((row.name, row.forward), (catalog.backward_of(row.name), row.backward)):
        function = getattr(backend, function_name)
        assert str(inspect.signature(function)) == signature
        assert function.__name__ == function_name
        for section in ("Parameters\n----", "Returns\n----", "Raises\n----", "Source\n----", row.source):
            assert section in function.__doc__
        for parameter in inspect.signature(function).parameters:
            assert parameter in function.__doc__


def test_named_results_are_those_of_the_rows():
    rows = {row.name: row for row in catalog.STABILIZERS}
    assert public.BatchNormResult._fields == rows["batch_norm"].returns
    assert public.ClippedGradients._fields == rows["clip_grad_norm"].returns
    for name in ("batch_norm", "batch_norm_inference"):
        assert public.BatchNormGradients._fields == rows[name].gradients


def good(name, function):
    """Arguments that are accepted, by name."""
    a = Arrays(name)
    x, grad = a(np.arange(24.0).reshape(4, 3, 2)), a(np.ones((4, 3, 2)))
    ones = {k: a(np.ones(3)) for k in ("weight", "bias", "running_mean", "running_var", "mean", "invstd")}
    lists = {"grads": [a(np.ones(3)), a(np.ones((2, 2)))], "cotangents": [a(np.ones(3)), a(np.ones((2, 2)))]}
    known = {"x": x, "grad": grad, "f": grad, **ones, **lists, "max_norm": 1.0, "clip_value": 1.0}
    parameters = inspect.signature(getattr(a.backend, function)).parameters
    return {k: known[k] for k, p in parameters.items() if p.default is inspect.Parameter.empty}


NORMS = ["batch_norm", "batch_norm_backward", "batch_norm_inference", "batch_norm_inference_backward"]
CLIPS = ["clip_grad_norm", "clip_grad_norm_backward", "clip_grad_value", "clip_grad_value_backward"]
RESIDUALS = ["residual_add", "residual_add_backward"]
BOTH_NORMS, BACKWARD_NORMS = NORMS[::2], NORMS[1::2]

F32, BAD = "float32", np.array([1.0])
# functions, argument, its bad value made from a function that makes arrays, error, message
CASES = [
    (NORMS + RESIDUALS, "x", lambda a: [1.0, 2.0], TypeError, "x is of type list; the .* backend takes"),
    (
        NORMS + RESIDUALS,
        "x",
        lambda a: a(np.ones((4, 3, 2)), "int64"),
        TypeError,
        "x has dtype int64; the .* backend takes",
    ),
    (NORMS, "x", lambda a: a(np.ones(5)), ValueError, r"x has shape \(5,\); .* \(batch, channels, \*spatial\)"),
    (NORMS, "x", lambda a: a(np.ones(())), ValueError, "at least two axes"),
    (NORMS, "x", lambda a: a(np.ones((4, 3, 2)), F32), TypeError, "float"),
    (
        ["batch_norm"],
        "x",
        lambda a: a(np.ones((1, 3))),
        ValueError,
        r"1 value\(s\) per channel; training needs",
    ),
    (["batch_norm"], "x", lambda a: a(np.ones((1, 3, 1, 1))), ValueError, "use batch_norm_inference"),
    (["batch_norm"], "x", lambda a: a(np.ones((0, 3, 4))), ValueError, r"0 value\(s\) per channel"),
    (BACKWARD_NORMS + RESIDUALS[1:], "grad", lambda a: a(np.ones((4, 3))), ValueError, r"grad has shape \(4, 3\)"),
    (
        BACKWARD_NORMS + RESIDUALS[1:],
        "grad",
        lambda a: a(np.ones((4, 3, 2)), F32),
        TypeError,
        "grad has dtype float32",
    ),
    (NORMS, "weight", lambda a: a(np.ones(4)), ValueError, r"weight has shape \(4,\); accepted: \(3,\)"),
    (NORMS, "weight", lambda a: a(np.ones((3, 1))), ValueError, r"weight has shape \(3, 1\)"),
    (
        NORMS,
        "weight",
        lambda a: a(np.ones(3), F32),
        TypeError,
        "float32; accepted with x of float64: float64",
    ),
    (NORMS, "weight", lambda a: 1.0, TypeError, "weight is of type float"),
    (BOTH_NORMS, "bias", lambda a: a(np.ones(2)), ValueError, r"bias has shape \(2,\)"),
    (BOTH_NORMS, "running_mean", lambda a: a(np.ones(2)), ValueError, r"running_mean has shape \(2,\)"),
    (BOTH_NORMS, "running_var", lambda a: a(np.ones(3), F32), TypeError, "running_var has dtype float32"),
    (
        ["batch_norm"],
        "running_mean",
        lambda a: None,
        ValueError,
        "running_mean is None .* statistics or neither",
    ),
    (["batch_norm"], "running_var", lambda a: None, ValueError, "running_var is None"),
    (NORMS[2:], "running_var", lambda a: None, TypeError, "running_var is of type NoneType"),
    (NORMS[1:2], "mean", lambda a: a(np.ones(2)), ValueError, r"mean has shape \(2,\)"),
    (NORMS[1:2], "invstd", lambda a: a(np.ones(3), F32), TypeError, "invstd has dtype float32"),
    (NORMS[:1], "momentum", lambda a: 1.5, ValueError, r"momentum must lie in \[0, 1\]"),
    (NORMS[:1], "momentum", lambda a: -0.1, ValueError, r"momentum must lie in \[0, 1\]"),
    (NORMS[:1], "momentum", lambda a: None, TypeError, "momentum must be a real number"),
    (BOTH_NORMS + NORMS[3:], "eps", lambda a: 0.0, ValueError, "eps must be > 0"),
    (BOTH_NORMS + NORMS[3:], "eps", lambda a: float("nan"), ValueError, "eps must be finite"),
    (NORMS + RESIDUALS, "out", lambda a: a(np.ones((4, 3))), ValueError, "out has shape"),
    (NORMS + RESIDUALS, "out", lambda a: a(np.ones((4, 3, 2)), F32), TypeError, "out has dtype float32"),
    (CLIPS, "grads", lambda a: a(BAD), TypeError, r"grads is a single array; .* wrap it as \[grads\]"),
    (CLIPS, "grads", lambda a: (a(BAD) for _ in "ab"), TypeError, r"type generator; .* list\(grads\)"),
    (CLIPS, "grads", lambda a: "gradients", TypeError, "type str"),
    (CLIPS, "grads", lambda a: [a(BAD), None], TypeError, r"grads\[1\] is of type NoneType"),
    (CLIPS, "grads", lambda a: [a(BAD), a(BAD, "int64")], TypeError, r"grads\[1\] has dtype int64"),
    (CLIPS[1::2], "cotangents", lambda a: a(BAD), TypeError, "cotangents is a single array"),
    (CLIPS[1::2], "cotangents", lambda a: [a(BAD)], ValueError, r"cotangents has 1 array\(s\), grads has 2"),
    (CLIPS[1::2], "cotangents", lambda a: [a(BAD), a(BAD)], ValueError, r"cotangents\[0\] has shape \(1,\)"),
    (CLIPS[:2], "max_norm", lambda a: -1.0, ValueError, "max_norm must be >= 0"),
    (CLIPS[:2], "max_norm", lambda a: float("inf"), ValueError, "max_norm must be finite"),
    (CLIPS[:2], "max_norm", lambda a: "1", TypeError, "max_norm must be a real number"),
    (CLIPS[2:], "clip_value", lambda a: -1.0, ValueError, "clip_value must be >= 0"),
    (CLIPS[2:], "clip_value", lambda a: True, TypeError, "clip_value must be a real number"),
    (CLIPS, "out", lambda a: a(BAD), TypeError, "out is a single array"),
    (CLIPS, "out", lambda a: [a(BAD)], ValueError, r"out has 1 array\(s\), grads has 2"),
    (CLIPS, "out", lambda a: [a(np.ones(3)), a(np.ones(4))], ValueError, r"out\[1\] has shape \(4,\)"),
    (CLIPS, "out", lambda a: [a(np.ones(3), F32), a(np.ones((2, 2)))], TypeError, r"out\[0\] has dtype float32"),
    (RESIDUALS, "f", lambda a: a(np.ones((4, 3, 1))), ValueError, r"f has shape .*nothing is broadcast"),
    (RESIDUALS, "f", lambda a: a(np.ones((4, 3, 2)), F32), TypeError, "f has dtype float32, x has"),
]
CALLS = [(function, *case[1:]) for case in CASES for function in case[0]]


@pytest.mark.parametrize("name", gradmark.BACKENDS)
@pytest.mark.parametrize(
    ("function", "argument", "value", "error", "message"),
    CALLS,
    ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CALLS)],
)
def test_bad_input(name, function, argument, value, error, message):
    arguments = good(name, function)
    run = getattr(gradmark.backend(name), function)
    run(**arguments)
    with pytest.raises(error, match=message):
        run(**arguments | {argument: value(Arrays(name))})


@pytest.mark.parametrize("function", [*NORMS, *RESIDUALS])
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_out_that_overlaps_an_input(name, function):
    a = Arrays(name)
    memory = a(np.arange(26.0))
    arguments = good(name, function) | {"x": memory[:24].reshape(4, 3, 2)}
    with pytest.raises(ValueError, match="out overlaps x"):
        getattr(a.backend, function)(**arguments, out=memory[2:].reshape(4, 3, 2))
    if function in NORMS:
        arguments = good(name, function) | {"weight": memory[:3]}
        with pytest.raises(ValueError, match="out overlaps weight"):
            getattr(a.backend, function)(**arguments, out=memory[2:].reshape(4, 3, 2))


@pytest.mark.parametrize("function", CLIPS)
@pytest.mark.parametrize("name", gradmark.BACKENDS)
def test_out_lists_that_overlap(name, function):
    a = Arrays(name)
    arguments = good(name, function)
    role = "cotangents" if function.endswith("backward") else "grads"
    limit = next(k for k in arguments if k in ("max_norm", "clip_value"))
    memory = a(np.ones(9))
    same_shape = {k: [memory[:3], memory[3:6]] for k in ("grads", "cotangents") if k in arguments} | {limit: 1.0}
    run = getattr(a.backend, function)
    with pytest.raises(ValueError, match=r"out\[0\] overlaps grads\[0\]"):
        run(**same_shape, out=[memory[1:4], a(np.ones(3))])
    with pytest.raises(ValueError, match=rf"out\[[01]\] shares memory with (grads|{role})\[[01]\]"):
        run(**same_shape, out=[memory[3:6], memory[:3]])
    with pytest.raises(ValueError, match=r"out\[0\] shares memory with grads\[1\]"):
        run(**same_shape, out=[memory[5:8], a(np.ones(3))])
    twice = a(np.ones(3))
    with pytest.raises(ValueError, match=r"out\[[01]\] shares memory with out\[[01]\]"):
        run(**same_shape, out=[twice, twice])
    run(**same_shape, out=same_shape["grads"])
    # Arrays that own their memory: what is quickly found to be apart must not be these.
    own = {k: [a(np.ones(3)), a(np.ones(3))] for k in same_shape if k != limit} | {limit: 1.0}
    first, second = own["grads"]
    with pytest.raises(ValueError, match=r"out\[[01]\] shares memory with grads\[[01]\]"):
        run(**own, out=[second, first])
    other = a(np.ones(3))
    with pytest.raises(ValueError, match=r"out\[[01]\] shares memory with out\[[01]\]"):
        run(**own, out=[other, other])
    with pytest.raises(ValueError, match=r"out\[[01]\] shares memory with grads\[[01]\]"):
        run(**own, out=[second[:], other])
    with pytest.raises(TypeError, match=r"out\[1\] is of type list"):
        run(**own, out=[first, [1.0, 1.0, 1.0]])
    with pytest.raises(ValueError, match=r"out has 1 array\(s\), grads has 2"):
        run(**own, out=[first])
    with pytest.raises(ValueError, match=r"out\[1\] has shape \(4,\)"):
        run(**own, out=[first, a(np.ones(4))])


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_read_only_out(name):
    a = Arrays(name)
    frozen = np.ones((4, 3, 2))
    frozen.flags.writeable = False
    for function in (*NORMS, *RESIDUALS):
        with pytest.raises(ValueError, match="out is read-only"):
            getattr(a.backend, function)(**good(name, function), out=frozen)
    frozen_list = [frozen[0, :, 0], np.ones((2, 2))]
    for function in CLIPS:
        with pytest.raises(ValueError, match=r"out\[0\] is read-only"):
            getattr(a.backend, function)(**good(name, function), out=frozen_list)


def test_devices_that_differ():
    backend = gradmark.backend("torch")
    x, ones = torch.ones(4, 3), torch.ones(3)
    elsewhere = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match=r"weight is on meta, x on cpu"):
        backend.batch_norm(x, elsewhere, None, None, None)
    with pytest.raises(ValueError, match=r"running_mean is on meta, x on cpu"):
        backend.batch_norm(x, None, None, elsewhere, ones)
    with pytest.raises(ValueError, match=r"grads\[1\] is on meta, grads\[0\] on cpu"):
        backend.clip_grad_norm([ones, elsewhere], 1.0)
    with pytest.raises(ValueError, match="f is on meta"):
        backend.residual_add(ones, elsewhere)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_half_precision_statistics_are_refused(name):
    a = Arrays(name, "float16")
    x, half = a(np.ones((4, 3))), a(np.ones(3))
    with pytest.raises(TypeError, match="running_mean has dtype float16; accepted with x of float16: float32"):
        a.backend.batch_norm(x, half, half, half, half)
    with pytest.raises(TypeError, match="weight has dtype float64; accepted with x of float16: float16 or float32"):
        a.backend.batch_norm(x, a(np.ones(3), "float64"), None, None, None)
