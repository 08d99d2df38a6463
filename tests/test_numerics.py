"""The elementary functions, the loops that run them, and the cache of what was compiled."""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import mpmath
import numpy as np
import pytest

import gradmark
from gradmark import catalog
from gradmark.catalog import backward_of

numba = pytest.importorskip("numba")

from gradmark.numerics import by_address, coefficients, compile_cache, fit, fused  # noqa: E402
from gradmark.numerics.elementary import elementary  # noqa: E402
from gradmark.numerics.evaluate import evaluated  # noqa: E402
from gradmark.reference import error_in_ulp  # noqa: E402
from gradmark.stabilizers.loops_numba import Loop  # noqa: E402
from machine_code import text_of  # noqa: E402

ROWS = [pytest.param(row, id=row.name) for row in catalog.ACTIVATIONS]


def test_coefficients_are_those_that_the_script_finds():
    assert Path(coefficients.__file__).read_text() == fit.module_source()


# name, reference in extended precision, interval, largest error in ULP.
ELEMENTARY = [
    ("exp", np.exp, -87, 88, 1.05),
    ("expm1", np.expm1, -30, 0.3, 1.1),
    ("tanh", np.tanh, -12, 12, 1.6),
    ("log", np.log, 1e-5, 1e5, 1.5),
    ("log1p_unit", np.log1p, 0, 1, 1.35),
    ("tanhshrink", lambda x: x - np.tanh(x), 0.3, 12, 1.7),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "reference", "low", "high", "ulp"), ELEMENTARY, ids=[e[0] for e in ELEMENTARY])
@pytest.mark.parametrize("evaluator", ["numba", "numpy"])
def test_elementary_functions(evaluator, name, reference, low, high, ulp, dtype):
    """The one specification, compiled and interpreted: both keep its errors."""
    x = np.linspace(low, high, 20_001).astype(dtype)
    f = getattr({"numba": elementary, "numpy": evaluated}[evaluator](dtype), name)
    arguments = (x, np.zeros_like(x)) if name == "log1p_unit" else (x,)
    found = f(*arguments) if evaluator == "numpy" else compiled_over(f, *arguments)
    exact = reference(x.astype(np.longdouble))
    error = np.abs((found.astype(np.longdouble) - exact) / np.spacing(np.abs(exact.astype(dtype))))
    assert error.max() <= ulp


def compiled_over(f, *arguments):
    """f, element by element."""
    if len(arguments) == 1:

        @numba.njit(error_model="numpy")
        def over(x, out):
            for i in range(x.size):
                out[i] = f(x[i])

    else:

        @numba.njit(error_model="numpy")
        def over(x, y, out):
            for i in range(x.size):
                out[i] = f(x[i], y[i])

    out = np.empty_like(arguments[0])
    over(*arguments, out)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_tail_and_its_slope(dtype):
    """t Q(t) and t φ(t) - Q(t) against mpmath, about the zero of the slope as well."""
    m = elementary(dtype)
    zero = coefficients.TAIL_ZERO[0]
    t = np.concatenate([np.linspace(0, 13, 400), zero * (1 + np.linspace(-1e-3, 1e-3, 41))]).astype(dtype)
    with mpmath.workdps(40):
        q = [mpmath.erfc(mpmath.mpf(float(v)) / mpmath.sqrt(2)) / 2 for v in t]
        density = [mpmath.exp(-(mpmath.mpf(float(v)) ** 2) / 2) / mpmath.sqrt(2 * mpmath.pi) for v in t]
        tails = [mpmath.mpf(float(v)) * a for v, a in zip(t, q, strict=True)]
        slopes = [mpmath.mpf(float(v)) * b - a for v, a, b in zip(t, q, density, strict=True)]
        for f, exact, ulp in ((m.tail, tails, 1.7), (m.tail_slope, slopes, 3.5)):
            found = compiled_over(f, t)
            errors = [error_in_ulp(float(y), e, 0, dtype) for y, e in zip(found, exact, strict=True)]
            assert max(errors) <= ulp


def loops_of(function):
    """The `Pointwise` and `Channelwise` objects that an implementation calls."""
    for cell in function.__closure__ or ():
        found = cell.cell_contents
        if isinstance(found, (fused.Pointwise, fused.Channelwise)):
            yield found
        elif callable(found) and getattr(found, "__closure__", None):
            yield from loops_of(found)


def assembly_of(loop, dtype):
    """The assembly of a kernel's serial loops, out of place and in place."""
    if isinstance(loop, fused.Pointwise):
        variants = [loop.compile(dtype), loop.compile(dtype, aliased=loop.arrays - 1)]
    else:
        layouts = ("single", "rows", "columns") if loop.sums else ("rows", "columns")
        variants = [loop.compile(dtype, layout) for layout in layouts]
    return [text_of(compiled) for compiled in variants]


# Symbols of the C library; a kernel's own name has "kernel." before and "-" after it.
LIBM = r"(?<![\w.])(?:exp|expm1|tanh|erf|erfc|log|log1p|pow|fma|sqrt)f?(?![\w-])"


@pytest.mark.skipif("x86" not in platform.machine(), reason="reads x86 assembly")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.id != "identity"])
def test_hot_loops_are_vectorized_and_call_nothing(row, dtype):
    """Packed arithmetic in every kernel, and no call to scalar libm: both are lost silently, at 20 times the time."""
    implementation = importlib.import_module("gradmark.activations.numba")
    suffix = "ps" if dtype == "float32" else "pd"
    for name in (row.name, backward_of(row.name)):
        loops = list(loops_of(getattr(implementation, name)))
        assert loops
        for loop in loops:
            for assembly in assembly_of(loop, dtype):
                packed = re.findall(rf"\bv\w+{suffix}\s+.*%[yz]mm", assembly)
                assert packed, f"{loop.name}: no packed {dtype} arithmetic"
                libm = re.findall(LIBM, assembly)
                assert libm == [], f"{loop.name} calls {libm}"


@pytest.mark.skipif("x86" not in platform.machine(), reason="reads x86 assembly")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("part", ["batch_norm", "clipping"])
def test_hot_loops_of_stabilizers_are_vectorized(part, dtype):
    module = importlib.import_module(f"gradmark.stabilizers.{part}_numba")
    loops = {found.name: found for value in vars(module).values() for found in loops_in(value)}
    assert len(loops) >= 6
    for name, loop in loops.items():
        assembly = text_of(loop.serial(np.dtype(dtype)))
        # Sums, products and comparisons: a sum of float32 runs in float64.
        assert re.findall(r"\bv(?:add|sub|mul|cmp|fmadd)\w*p[sd]\s+.*%[yz]mm", assembly), f"{name}: nothing packed"
        assert re.findall(LIBM, assembly) == [], name


def loops_in(value):
    """The loops over elements that a stabilizer's module holds, by themselves or in a tuple.

    One with stages leaves the elements to them: loops that the module holds as well.
    """
    return [
        loop for loop in (value if isinstance(value, tuple) else (value,)) if isinstance(loop, Loop) and not loop.stages
    ]


def test_the_search_for_libm_can_find_it(tmp_path, monkeypatch):
    """Also in a kernel that the cache had: its assembly is that of the process which compiled it."""
    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(tmp_path))

    def over(x, out):
        for i in range(x.size):
            out[i] = np.tanh(x[i])

    array = numba.float32[::1]
    fresh, loaded = (compile_cache.jit(over, numba.void(array, array), name="of-this-test") for _ in range(2))
    assert [sum(one.stats.cache_hits.values()) for one in (fresh, loaded)] == [0, 1]
    assert re.findall(LIBM, text_of(fresh))
    assert instructions(text_of(loaded)) == instructions(text_of(fresh))


def instructions(assembly):
    return re.findall(r"^\t[a-z].*", assembly, re.MULTILINE)


@pytest.mark.parametrize("row", ROWS)
def test_results_do_not_depend_on_threads_or_chunks(row, monkeypatch):
    """The parallel, the serial and the streaming loop, one thread and all, in place: the same bits, in sums as well."""
    backend = gradmark.backend("numba")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, fused.CHEAP_PARALLEL_FROM // 2 + 77)).astype(np.float32)
    grad = rng.normal(size=x.shape).astype(np.float32)
    backward = getattr(backend, backward_of(row.name))
    required = [p.samples[0] for p in row.parameters if p.default is None]

    def both(x=x, out=None):
        found = backward(grad, x, *required)
        return [getattr(backend, row.name)(x, *required, out=out), *(found if isinstance(found, tuple) else (found,))]

    threads = numba.get_num_threads()
    try:
        results = []
        for count in {1, threads}:
            numba.set_num_threads(count)
            results.append(both())
        with fused._threads:  # As if another call had the threads: the serial loop.
            results.append(both())
    finally:
        numba.set_num_threads(threads)
    monkeypatch.setattr(fused, "STREAM_FROM", 0)
    results.append(both())
    again = x.copy()
    results.append(both(again, out=again))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    # An element's value depends neither on where it stands nor on how many there are.
    np.testing.assert_array_equal(
        results[0][0][:, 5:11], getattr(backend, row.name)(np.ascontiguousarray(x[:, 5:11]), *required)
    )


def test_calls_from_several_python_threads():
    x = np.linspace(-3, 3, fused.PARALLEL_FROM * 2, dtype=np.float32)
    gelu = gradmark.backend("numba").gelu
    expected = gelu(x)
    wrong = []

    def work():
        wrong.extend(1 for _ in range(20) if not np.array_equal(gelu(x), expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


USE_IN_A_FORKED_CHILD = """
import os, numpy as np, gradmark
backend = gradmark.backend("numba")
x = np.linspace(-3, 3, 1 << 17, dtype=np.float32)
expected = backend.gelu(x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(backend.gelu(x), expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
STABILIZERS_IN_A_FORKED_CHILD = """
import os, numpy as np, gradmark
backend = gradmark.backend("numba")
small, large = np.ones((2, 3), np.float32), np.ones((64, 64, 32), np.float32)
backend.batch_norm(small, None, None, None, None)
backend.batch_norm_backward(small, small, None, small[0], small[0])
backend.clip_grad_norm([small], 1.0)
child = os.fork()
if child == 0:
    backend.batch_norm(large, None, None, None, None)
    backend.clip_grad_norm([large], 1.0)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
INITIALIZERS_IN_A_FORKED_CHILD = """
import os, gradmark
backend = gradmark.backend("numba")
backend.he_normal((2, 3), seed=0)
child = os.fork()
if child == 0:
    backend.he_normal((512, 512), seed=0)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    "code",
    [USE_IN_A_FORKED_CHILD, STABILIZERS_IN_A_FORKED_CHILD, INITIALIZERS_IN_A_FORKED_CHILD],
    ids=["activations", "stabilizers", "initializers"],
)
def test_a_forked_child_computes(code):
    """OpenMP would end it: "fork() called from a process already using GNU OpenMP"."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.strip() == "0"


def test_a_loop_calls_kernels_of_the_types_that_it_was_compiled_for_only(tmp_path, monkeypatch):
    """By its address alone, machine code takes whatever it is given for what it expects."""
    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(tmp_path))
    array = numba.float32[::1]

    def times(out, factor):
        for i in range(out.size):
            out[i] *= factor

    def rows(address, out):
        for i in numba.prange(2):
            by_address.call(address, (out[i : i + 1], 3.0))

    def of_integers(address, out):
        for i in numba.prange(2):
            by_address.call(address, (out[i : i + 1], i))

    kernel = compile_cache.jit(times, numba.void(array, numba.float64), name="times-of-this-test")
    out = np.array([1, 2, 4], np.float32)
    by_address.bound("rows-of-this-test", rows, numba.void(array), kernel)(out)
    assert out.tolist() == [3, 6, 4]
    with pytest.raises(numba.core.errors.TypingError, match="no kernel of this loop takes"):
        by_address.bound("integers-of-this-test", of_integers, numba.void(array), kernel)
    # Another kernel is another loop, whatever the name.
    other = compile_cache.jit(lambda out, factor: None, numba.void(array, numba.int64), name="none-of-this-test")
    with pytest.raises(numba.core.errors.TypingError, match="no kernel of this loop takes"):
        by_address.bound("rows-of-this-test", rows, numba.void(array), other)


COUNT_COMPILATIONS = """
import numpy as np
import gradmark
gradmark.backend("numba").relu(np.ones(4, np.float32))
import gradmark.activations.numba as module
loop = next(c.cell_contents for c in module.relu.__closure__ if hasattr(c.cell_contents, "compile"))
serial = loop.compile("float32")
print(sum(serial.stats.cache_hits.values()), sum(serial.stats.cache_misses.values()))
"""


def run_with_cache(folder, code=COUNT_COMPILATIONS):
    environment = {**os.environ, "GRADMARK_CACHE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()


def test_second_process_loads_what_the_first_compiled(tmp_path):
    assert run_with_cache(tmp_path) == ["0", "1"]
    assert run_with_cache(tmp_path) == ["1", "0"]


def test_damaged_and_unwritable_caches_cost_a_compilation_only(tmp_path):
    run_with_cache(tmp_path)
    for path in tmp_path.rglob("*.nbi"):
        path.write_bytes(b"garbage")
    assert run_with_cache(tmp_path) == ["0", "1"]
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run_with_cache(blocked) == ["0", "1"]


def test_the_key_changes_with_any_kernel_source(tmp_path, monkeypatch):
    package = Path(compile_cache.__file__).parents[1]
    shutil.copytree(package, tmp_path / "gradmark")
    monkeypatch.setattr(compile_cache, "__file__", str(tmp_path / "gradmark" / "numerics" / "compile_cache.py"))
    before = compile_cache.source_hash.__wrapped__()
    assert before == compile_cache.source_hash.__wrapped__()
    for edited in ("numerics/elementary.py", "activations/numba.py", "stabilizers/numba.py"):
        path = tmp_path / "gradmark" / edited
        path.write_text(path.read_text() + "\n# edited\n")
        after = compile_cache.source_hash.__wrapped__()
        assert after != before
        before = after


def test_processes_that_compile_at_the_same_time_do_not_swap_their_kernels(monkeypatch, tmp_path):
    # Two processes, each with one signature of a kernel: both look into the empty cache before either writes.
    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(tmp_path))

    def body(x):
        return x * x

    load = numba.core.caching.IndexDataCacheFile._load_index
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "_load_index", lambda cache: {})
    for kind in (numba.int64, numba.float64):
        compile_cache.jit(body, kind(kind), name="of-this-test")
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "_load_index", load)
    loaded = [compile_cache.jit(body, kind(kind), name="of-this-test") for kind in (numba.int64, numba.float64)]
    assert [sum(one.stats.cache_hits.values()) for one in loaded] == [1, 1]
    assert loaded[0](3) == 9
    assert loaded[1](1.5) == 2.25


MIXED = """
import sys
import numpy as np
import gradmark

backend, x = gradmark.backend("numba"), np.linspace(-8, 8, 2**16)
wrong = []
for name, size in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    arguments = [x[:size]] * (2 if name.endswith("_backward") else 1)
    if not np.allclose(getattr(backend, name)(*arguments), getattr(gradmark.backend("numpy"), name)(*arguments)):
        wrong.append(name)
sys.exit(f"wrong: {wrong}" if wrong else 0)
"""


@pytest.mark.parametrize(
    ("cached", "other"), [("tanhshrink_backward", "relu_backward"), ("mish", "sigmoid"), ("tanh", "softsign")]
)
def test_kernels_from_the_cache_and_compiled_ones_are_not_mixed_up(tmp_path, cached, other):
    """A loop that an earlier process has compiled, one that this process does, and the parallel loop of the first."""
    environment = {**os.environ, "GRADMARK_CACHE_DIR": str(tmp_path)}
    for calls in ([cached, "100"], [cached, "100", other, "100", cached, str(2**16)]):
        done = subprocess.run([sys.executable, "-c", MIXED, *calls], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
