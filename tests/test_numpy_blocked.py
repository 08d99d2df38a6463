"""The NumPy backend's blocks and threads, and the naive expressions that it is compared with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from benchmarks.naive import NAIVE

import gradmark
from gradmark import catalog
from gradmark.activations import numpy as activations
from gradmark.catalog import backward_of
from gradmark.numerics import blocked, coefficients_blocked, fit_blocked
from gradmark.numerics.blocked import BLOCK, LONG_ROW, spread

ROWS = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS]
LEARNABLE = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS if row.learnable]


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    """So many threads, however small the array."""
    monkeypatch.setattr(blocked, "threads", lambda: request.param)
    monkeypatch.setattr(blocked, "PARALLEL_FROM", 1)
    for kernel in activations.KERNELS.values():
        monkeypatch.setattr(kernel, "parallel_from", 1)
    return request.param


def values(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    found = (rng.normal(size=shape) * rng.choice([1e-3, 1.0, 5.0, 300.0], size=shape)).astype(dtype)
    found.reshape(-1)[:: 4 * BLOCK // 3] = np.nan
    found.reshape(-1)[1 :: 4 * BLOCK // 3] = np.inf
    found.reshape(-1)[2 :: 4 * BLOCK // 3] = -np.inf
    return found


def bits(array):
    return array.view({2: np.int16, 4: np.int32, 8: np.int64}[array.itemsize])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("row", ROWS)
def test_blocks_and_threads_change_no_bit(row, dtype, threads):
    """Each element by itself, in whatever block and thread; also over the input."""
    backend = gradmark.backend("numpy")
    usual = [p.usual for p in row.parameters if p.default is None]
    x, grad = values(3 * BLOCK + 77, dtype, 1), values(3 * BLOCK + 77, dtype, 2)
    for name, arrays in ((row.name, (x,)), (backward_of(row.name), (grad, x))):
        function = getattr(backend, name)
        whole = function(*arrays, *usual)
        whole = whole[0] if isinstance(whole, tuple) else whole
        for part in (slice(0, 100), slice(BLOCK - 9, BLOCK + 9), slice(2 * BLOCK + 5, 3 * BLOCK + 77)):
            found = function(*[a[part].copy() for a in arrays], *usual)
            found = found[0] if isinstance(found, tuple) else found
            np.testing.assert_array_equal(bits(found), bits(whole[part]), err_msg=f"{name} {part}")
        copies = [a.copy() for a in arrays]
        function(*copies, *usual, out=copies[-1])
        np.testing.assert_array_equal(bits(copies[-1]), bits(whole), err_msg=name)


SHAPES = [
    (3 * BLOCK + 77,),
    (2, 3, LONG_ROW + 5),
    (2, 3, BLOCK + 5),
    (5000, 7),
    (70, 6, 9),
    (20, 8, LONG_ROW - 5),
    (3, BLOCK + 5),
    (20, BLOCK // 30, 50),
    (0, 3),
    (3, 0, 2),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("row", LEARNABLE)
def test_one_parameter_per_channel(row, shape, dtype, threads):
    """Long rows and short ones, rows wider than a block, a rest of the batch: against channels one by one, to the bit.

    A parameter of 1, 0, or another power of two is no exception.
    """
    backend = gradmark.backend("numpy")
    rng = np.random.default_rng(3)
    channels = shape[1] if len(shape) > 1 else 1
    x, grad = 9 * rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    parameter = np.resize([1.0, 0.3, -0.25, 0.0, -1.7, 2.0, 1e-3], channels).astype(dtype)
    y = getattr(backend, row.name)(x, parameter)
    dx, dparameter = getattr(backend, backward_of(row.name))(grad, x, parameter)
    assert dparameter.shape == (channels,)
    for c in {*range(min(channels, 7)), *([channels // 2, channels - 1] if channels else [])}:
        # A view of one channel, with one parameter.
        part = (slice(None), slice(c, c + 1)) if len(shape) > 1 else slice(None)
        own = parameter[c : c + 1]
        np.testing.assert_array_equal(y[part], getattr(backend, row.name)(x[part], own))
        dx_own, d_own = getattr(backend, backward_of(row.name))(grad[part], x[part], own)
        np.testing.assert_array_equal(dx[part], dx_own)
        scale = (np.abs(grad[part]) * x[part] ** 2).sum(dtype=np.float64) * 1e-13 + np.finfo(dtype).eps
        np.testing.assert_allclose(dparameter[c], d_own[0], rtol=4 * np.finfo(dtype).eps, atol=scale)


@pytest.mark.parametrize("shape", SHAPES[:-2], ids=str)
@pytest.mark.parametrize("row", LEARNABLE)
def test_sums_do_not_depend_on_the_number_of_threads(row, shape, monkeypatch):
    rng = np.random.default_rng(4)
    x, grad = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    parameter = rng.normal(size=shape[1] if len(shape) > 1 else 1).astype(np.float32)
    monkeypatch.setattr(blocked, "PARALLEL_FROM", 1)
    found = []
    for count in (1, 2, 3, 8):
        monkeypatch.setattr(blocked, "threads", lambda count=count: count)
        found.append(getattr(gradmark.backend("numpy"), backward_of(row.name))(grad, x, parameter)[1])
    for other in found[1:]:
        np.testing.assert_array_equal(bits(other), bits(found[0]))


def test_each_task_runs_once(threads):
    seen = []
    spread(50, lambda index, work: seen.append(index), parallel=True)
    assert sorted(seen) == list(range(50))


def test_an_error_in_a_task_arrives(threads):
    def task(index, work):
        if index == 30:
            raise ArithmeticError("task 30")

    with pytest.raises(ArithmeticError, match="task 30"):
        spread(50, task, parallel=True)


def test_calls_from_several_threads(threads):
    backend = gradmark.backend("numpy")
    x = values(9 * BLOCK, "float32", 5)
    expected = bits(backend.gelu(x))
    right = []

    def call():
        right.extend(np.array_equal(bits(backend.gelu(x)), expected) for _ in range(5))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert right == [True] * 20


def run(script):
    """The script's output, in a process of its own with two threads for every array."""
    setup = """
import atexit, os, sys, threading
import numpy as np
import gradmark
from gradmark.activations import numpy as activations
from gradmark.numerics import blocked

backend = gradmark.backend("numpy")
blocked.threads = lambda: 2
x = np.linspace(-9, 9, 9 * blocked.BLOCK, dtype=np.float32)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", setup + script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_threads_start_again_in_a_forked_child():
    script = """
y = backend.gelu(x)
assert threading.active_count() == 2
child = os.fork()
if child == 0:
    same = np.array_equal(backend.gelu(x), y) and threading.active_count() == 2
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(backend.gelu(x), y)
"""
    run(script)


def test_small_arrays_start_no_thread():
    assert run("backend.gelu(x[:1000]); print(threading.active_count())") == "1\n"


def test_calls_while_the_interpreter_exits():
    assert run("atexit.register(lambda: print(float(backend.relu(np.resize(x, 10**6))[-1] >= 0)))") == "1.0\n"


def test_coefficients_are_those_of_the_script():
    assert fit_blocked.module_source() == Path(coefficients_blocked.__file__).read_text()


def test_every_row_has_naive_expressions():
    assert list(NAIVE) == [row.name for row in catalog.ACTIVATIONS]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", ROWS)
def test_naive_expressions_are_the_row(row, dtype):
    """On moderate numbers: what they lose by cancellation is relative to x and to the gradient."""
    backend = gradmark.backend("numpy")
    rng = np.random.default_rng(6)
    x, grad = (rng.uniform(-4, 4, 4000).astype(dtype) for _ in range(2))
    real = np.dtype(dtype).type
    usual = [p.usual for p in row.parameters]
    numbers = [real(value) for value in usual]
    rtol = 64 * float(np.finfo(dtype).eps)
    forward, backward = NAIVE[row.name]
    y = forward(x, *numbers)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, getattr(backend, row.name)(x, *usual), rtol=rtol, atol=rtol)
    found, expected = backward(grad, x, *numbers), getattr(backend, backward_of(row.name))(grad, x, *usual)
    if not row.learnable:
        found, expected = (found,), (expected,)
    assert found[0].dtype == dtype
    np.testing.assert_allclose(found[0], expected[0], rtol=4 * rtol, atol=4 * rtol)
    for a, b in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=4 * rtol, atol=4000 * rtol)


def test_a_naive_expression_is_no_call_of_ours():
    source = Path(sys.modules["benchmarks.naive"].__file__).read_text()
    assert not re.search(r"import gradmark|from gradmark", source)
