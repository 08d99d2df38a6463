"""`gradmark.gelu(x)` and all the others: equal to the backend that serves, whatever arrays come in; who serves."""

import asyncio
import functools
import inspect
import os
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import gradmark
from gradmark import backends, catalog, dispatch, profiles, workloads
from gradmark.backends import BACKENDS, DTYPES
from gradmark.catalog import backward_of
from gradmark.errors import ProfileWarning
from gradmark.profiles import Decision, Key, Point, Profile
from gradmark.workloads import TARGETS

WORKLOADS = [
    pytest.param(workload, id=f"{workload.operation}-{workload.operation_pass}-{workload.variant}".rstrip("-"))
    for row in catalog.OPERATIONS.values()
    if row.family != "initializers"
    for workload in workloads.of_row(row, small=True)
]
INITIALIZERS = [pytest.param(row, id=row.name) for row in catalog.INITIALIZERS]
KINDS = ("numpy", "torch")


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """No profile, no variable: what a machine has before `gradmark choose`."""
    monkeypatch.setattr("gradmark.profiles.folder", lambda: tmp_path)
    monkeypatch.delenv("GRADMARK_BACKEND", raising=False)
    dispatch.forget()
    yield
    dispatch.read_nothing()


def usable(name):
    reason = gradmark.why_unusable(name)
    if reason is not None:
        pytest.skip(reason)
    return name


@pytest.fixture(params=BACKENDS)
def backend(request):
    return usable(request.param)


@pytest.fixture(params=KINDS)
def kind(request):
    return usable(request.param)


def ones(kind, shape=(3,), dtype="float32"):
    if kind == "numpy":
        return np.ones(shape, dtype)
    torch = pytest.importorskip("torch")
    return torch.ones(shape, dtype=getattr(torch, dtype))


def flat(result):
    """The arrays of a result, in order."""
    if isinstance(result, list | tuple):
        return [array for item in result for array in flat(item)]
    return [] if result is None else [result]


def assert_equal(result, expected, kind):
    assert type(result) is type(expected) or not isinstance(expected, list | tuple)
    found, wanted = flat(result), flat(expected)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert type(a) is (np.ndarray if kind == "numpy" else sys.modules["torch"].Tensor)
        assert tuple(a.shape) == tuple(b.shape)
        assert str(a.dtype).removeprefix("torch.") == str(b.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_equal_to_the_backend_that_serves(workload, kind, backend):
    expected = workload.prepare(gradmark.backend(backend), TARGETS[backend]).call()
    call = workload.prepare(gradmark, TARGETS[kind]).call
    out = call.keywords["out"]
    with gradmark.using(backend):
        result = call()
        assert_equal(result, expected, kind)
        for given, written in zip(flat(out), flat(result), strict=False):
            assert written is given
        del call.keywords["out"]
        assert_equal(call(), expected, kind)
    assert_equal(call(backend=backend), expected, kind)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_shipped_default(workload, kind):
    expected = workload.prepare(gradmark.backend("numba"), TARGETS["numba"]).call()
    assert_equal(workload.prepare(gradmark, TARGETS[kind]).call(), expected, kind)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_signatures_are_the_backends(workload):
    name = workload.operation if workload.operation_pass == "forward" else backward_of(workload.operation)
    ours, theirs = getattr(gradmark, name), getattr(gradmark.backend("numpy"), name)
    parameters = inspect.signature(ours).parameters
    assert [*inspect.signature(theirs).parameters.values()] == [*parameters.values()][:-1]
    assert str([*parameters.values()][-1]) == "backend=None"
    assert parameters["backend"].kind is inspect.Parameter.KEYWORD_ONLY
    assert ours.__name__ == name
    assert "\nbackend : str, optional\n" in ours.__doc__
    assert "BackendUnavailableError" in ours.__doc__
    assert ours.__doc__.splitlines()[0] == theirs.__doc__.splitlines()[0]
    assert getattr(gradmark, name) is ours
    assert pickle.loads(pickle.dumps(ours)) is ours
    assert name in dir(gradmark)


def arguments_of(row):
    workload = workloads.of_row(row, small=True)[0]
    call = workload.prepare(gradmark.backend("numpy"), TARGETS["numpy"]).call
    return call.args, call.keywords


@pytest.mark.parametrize("row", INITIALIZERS)
def test_initializers(row, backend):
    args, keywords = arguments_of(row)
    expected = getattr(gradmark.backend(backend), row.name)(*args, **keywords)
    function = getattr(gradmark, row.name)
    kind = "torch" if backend == "torch" else "numpy"
    assert_equal(function(*args, **keywords, backend=backend), expected, kind)
    assert_equal(function(*args, **keywords, backend=backend, device="cpu"), expected, kind)
    with gradmark.using(backend):
        assert_equal(function(*args, **keywords), expected, "numpy")
    assert_equal(function(*args, **keywords), getattr(gradmark.backend("numba"), row.name)(*args, **keywords), "numpy")
    names = list(inspect.signature(function).parameters)
    assert names == [*inspect.signature(getattr(gradmark.backend("numpy"), row.name)).parameters, "backend", "device"]
    assert "\ndevice : str or torch.device, optional\n" in function.__doc__


def test_initializers_have_no_backward():
    with pytest.raises(AttributeError, match="no attribute 'he_normal_backward'"):
        _ = gradmark.he_normal_backward


def test_errors_of_initializers():
    with pytest.raises(ValueError, match=r"device='cuda' needs backend='torch'"):
        gradmark.he_normal((2, 2), seed=1, device="cuda")
    with pytest.raises(gradmark.BackendUnavailableError, match="runs on the CPU only"):
        gradmark.he_normal((2, 2), seed=1, device="cuda", backend="numba")
    with pytest.raises(TypeError, match="dtype 'bfloat16' needs backend='torch'"):
        gradmark.he_normal((2, 2), seed=1, dtype="bfloat16")
    with (
        gradmark.using("numba"),
        pytest.raises(TypeError, match=r"using\('numba'\) cannot serve this call: the result has"),
    ):
        gradmark.he_normal((2, 2), seed=1, dtype="float16")
    with pytest.raises(TypeError, match="shape must be an int or a tuple of ints"):
        gradmark.he_normal("ab", seed=1)
    with pytest.raises(TypeError, match="dtype 'int32' is not available"):
        gradmark.he_normal((2, 2), seed=1, dtype="int32")
    with pytest.raises(LookupError, match="unknown backend 'jax'"):
        gradmark.he_normal((2, 2), seed=1, backend="jax")


def test_half_precision_of_initializers():
    expected = gradmark.backend("numpy").he_normal((4, 4), seed=1, dtype="float16")
    assert_equal(gradmark.he_normal((4, 4), seed=1, dtype=np.float16), expected, "numpy")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_has_somebody(kind, dtype):
    if kind == "numpy" and dtype == "bfloat16":
        pytest.skip("NumPy has none")
    served = dispatch.default_ranking(kind, dtype)[0]
    assert served == ("numba" if dtype in DTYPES["numba"] else kind)
    expected = gradmark.backend(served).gelu(ones("torch" if served == "torch" else "numpy", dtype=dtype))
    result = gradmark.gelu(ones(kind, dtype=dtype))
    assert type(result) is type(ones(kind))
    assert np.asarray(result.float() if dtype == "bfloat16" else result).tolist() == expected.tolist()


class Spy:
    """Which backend serves: its function called `name` is replaced by one that says so."""

    def __init__(self, monkeypatch, name):
        self.calls = []
        for backend in filter(lambda b: gradmark.why_unusable(b) is None, BACKENDS):
            namespace = gradmark.backend(backend)
            monkeypatch.setattr(namespace, name, self.wrapped(backend, getattr(namespace, name)))

    def wrapped(self, backend, function):
        @functools.wraps(function)
        def served(*args, **keywords):
            self.calls.append(backend)
            return function(*args, **keywords)

        return served

    def of(self, call):
        self.calls.clear()
        call()
        (found,) = self.calls
        return found


@pytest.fixture
def served_by(monkeypatch):
    """Who serves `gradmark.gelu` of an array."""
    spy = Spy(monkeypatch, "gelu")
    dispatch.forget()
    return lambda x, **keywords: spy.of(lambda: gradmark.gelu(x, **keywords))


def save(*points, operation="gelu", operation_pass="forward", dtype="float32", variant="", key=None):
    """A profile in which these are the rankings at sizes, from the fastest to the slowest."""
    measured = tuple(
        Point(
            elements=elements,
            fastest=ranking[0],
            leaders=(ranking[0],),
            runner_up=ranking[1] if len(ranking) > 1 else None,
            ratio=None,
            low=None,
            high=None,
            numpy_ratio=None,
            seconds={name: float(place) for place, name in enumerate(ranking, start=1)},
        )
        for elements, ranking in points
    )
    decision = Decision(operation, variant, operation_pass, dtype, "host", measured)
    path = profiles.save(Profile(key or Key.here(), "2026-01-01T00:00:00+00:00", (decision,)))
    dispatch.forget()
    return path


def test_who_is_asked_first(served_by, kind, monkeypatch):
    """Each of the five, from the last to the first."""
    x = ones(kind)
    assert served_by(x) == "numba"
    save((2, ("numpy", "numba")))
    assert served_by(x) == "numpy"
    monkeypatch.setenv("GRADMARK_BACKEND", usable("torch"))
    assert served_by(x) == "numpy", "the variable is read once"
    dispatch.forget()
    assert served_by(x) == "torch"
    with gradmark.using("numba"):
        assert served_by(x) == "numba"
        assert served_by(x, backend="numpy") == "numpy"
        with gradmark.using("numpy"):
            assert served_by(x) == "numpy"
        assert served_by(x) == "numba"
    assert served_by(x) == "torch"
    monkeypatch.setenv("GRADMARK_BACKEND", "")
    dispatch.forget()
    assert served_by(x) == "numpy"


def test_the_nearest_size_of_the_profile(served_by, kind):
    save((2**4, ("numpy", "numba")), (2**10, ("numba", "numpy")))
    found = {bits: served_by(ones(kind, 2**bits)) for bits in (0, 4, 6, 8, 10, 12)}
    assert found == {0: "numpy", 4: "numpy", 6: "numpy", 8: "numba", 10: "numba", 12: "numba"}
    assert served_by(ones(kind, 0)) == "numpy"
    assert served_by(ones(kind, 2**4, "float64")) == "numba", "nothing is known of float64"


def test_a_size_between_two_powers_is_served_as_the_lower(served_by):
    save((2**4, ("numpy",)), (2**5, ("numba",)))
    assert [served_by(np.ones(n, "f4")) for n in (31, 16, 32, 63)] == ["numpy", "numpy", "numba", "numba"]


def test_passes_and_variants_of_the_profile(monkeypatch):
    x = np.ones(8, "f4")
    save((8, ("numpy", "numba")), operation="rrelu", variant=workloads.TRAINING)
    save((8, ("torch", "numba")), operation="rrelu")
    spy = Spy(monkeypatch, "rrelu")
    dispatch.forget()
    assert spy.of(lambda: gradmark.rrelu(x, seed=1)) == "numpy"
    assert spy.of(lambda: gradmark.rrelu(x)) == "torch"
    spy = Spy(monkeypatch, "residual_add")
    save((8, ("numpy", "numba")), operation="residual_add", variant="gelu")
    save((8, ("torch", "numba")), operation="residual_add", variant="relu")
    assert spy.of(lambda: gradmark.residual_add(x, x, activation="gelu")) == "numpy"
    assert spy.of(lambda: gradmark.residual_add(x, x, activation="relu")) == "torch"
    spy = Spy(monkeypatch, "gelu_backward")
    save((8, ("numpy",)), operation_pass="backward")
    assert spy.of(lambda: gradmark.gelu_backward(x, x)) == "numpy"


def test_lists_and_initializers_of_the_profile(monkeypatch, kind):
    save((16, ("numpy", "numba")), operation="clip_grad_norm")
    spy = Spy(monkeypatch, "clip_grad_norm")
    dispatch.forget()
    assert spy.of(lambda: gradmark.clip_grad_norm([ones(kind, 8), ones(kind, 8)], 1.0)) == "numpy"
    for backend in ("numpy", "torch"):
        save((16, (backend,)), operation="he_normal")
        spy = Spy(monkeypatch, "he_normal")
        dispatch.forget()
        found = []
        assert spy.of(lambda found=found: found.append(gradmark.he_normal((4, 4), seed=1))) == backend
        assert type(found[0]) is np.ndarray


def test_what_the_profile_names_may_be_missing(served_by, monkeypatch):
    save((4, ("abacus", "torch-cuda", "torch", "numpy", "numba")))
    assert served_by(ones("numpy", 4)) == "torch"
    real = backends._why_unusable
    monkeypatch.setattr(backends, "_why_unusable", lambda n, d: "gone" if n in ("torch", "numba") else real(n, d))
    dispatch.forget()
    assert served_by(ones("numpy", 4)) == "numpy"


def test_a_backend_that_cannot_be_imported_is_passed_over(monkeypatch):
    real = dispatch._Finder._function

    def broken(self, backend):
        if backend == "numba":
            raise ImportError("Numba needs NumPy 2.3 or less")
        return real(self, backend)

    monkeypatch.setattr(dispatch._Finder, "_function", broken)
    dispatch.forget()
    np.testing.assert_array_equal(gradmark.gelu(np.ones(3)), gradmark.backend("numpy").gelu(np.ones(3)))
    with pytest.raises(ImportError, match="Numba needs NumPy"):
        gradmark.gelu(np.ones(3), backend="numba")


def test_every_backend_may_be_missing_but_numpy():
    code = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in ("numba", "torch") else real(name, *a)
import numpy as np, gradmark
x = np.ones((2, 2), "float32")
assert gradmark.gelu(x).shape == (2, 2)
assert gradmark.he_normal((2, 2), seed=1).shape == (2, 2)
assert not {"numba", "torch"} & set(sys.modules)
for call in (lambda: gradmark.gelu(x, backend="torch"), lambda: gradmark.zeros(3, backend="numba")):
    try:
        call()
    except gradmark.BackendUnavailableError as error:
        assert "is not installed: pip install" in str(error)
    else:
        raise SystemExit(1)
"""
    environment = {**os.environ, "GRADMARK_CACHE_DIR": str(profiles.folder())}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_numpy_arrays_do_not_import_torch():
    code = "import sys, numpy as np, gradmark; gradmark.gelu(np.ones(3)); print('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "GRADMARK_BACKEND"}
    found = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == "False"


def test_using_is_of_a_thread_and_a_task(served_by):
    x, found = ones("numpy"), {}

    def in_a_thread():
        found["thread"] = served_by(x)

    async def task(name, wait):
        with gradmark.using(name):
            await asyncio.sleep(wait)
            found[name] = served_by(x)

    async def both():
        await asyncio.gather(task("numpy", 0.02), task("numba", 0.01))
        found["after"] = served_by(x)

    with gradmark.using("numpy"):
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
    asyncio.run(both())
    assert found == {"thread": "numba", "numpy": "numpy", "numba": "numba", "after": "numba"}


def test_using_ends_with_an_error(served_by):
    with pytest.raises(ZeroDivisionError), gradmark.using("numpy"):
        _ = 1 / 0
    assert served_by(ones("numpy")) == "numba"
    with (
        pytest.raises(LookupError, match="unknown backend 'jax'; known backends: numpy, numba, torch"),
        gradmark.using("jax"),
    ):
        pass


def test_unknown_backends(kind, monkeypatch):
    for name in ("jax", "", 3, ["numpy"]):
        with pytest.raises(LookupError, match=r"unknown backend .*; known backends: numpy, numba, torch"):
            gradmark.gelu(ones(kind), backend=name)
        with pytest.raises(LookupError, match=r"unknown backend .*; known backends: numpy, numba, torch"):
            gradmark.clip_grad_value([ones(kind)], 1.0, backend=name)
    monkeypatch.setenv("GRADMARK_BACKEND", "jax")
    dispatch.forget()
    for call in (lambda: gradmark.gelu(ones(kind)), lambda: gradmark.zeros(3)):
        with pytest.raises(
            LookupError, match="GRADMARK_BACKEND names the unknown backend 'jax'; known backends: numpy"
        ):
            call()


def test_an_explicit_choice_that_cannot_serve_says_why(kind, monkeypatch):
    x = ones(kind, dtype="float16")
    with pytest.raises(
        TypeError, match=r"^backend='numba' cannot serve this call: x has dtype float16; the numba backe"
    ):
        gradmark.gelu(x, backend="numba")
    with gradmark.using("numba"), pytest.raises(TypeError, match=r"^gradmark.using\('numba'\) cannot serve this call"):
        gradmark.gelu_backward(x, x)
    monkeypatch.setenv("GRADMARK_BACKEND", "numba")
    dispatch.forget()
    with pytest.raises(TypeError, match=r"^GRADMARK_BACKEND=numba cannot serve this call: y has dtype float16"):
        gradmark.softmax_backward(x, x)
    with pytest.raises(TypeError, match=r"^GRADMARK_BACKEND=numba cannot serve this call: grads has dtype float16"):
        gradmark.clip_grad_norm([ones(kind), x], 1.0)
    real = backends._why_unusable
    monkeypatch.setattr(backends, "_why_unusable", lambda n, d: "torch is gone" if n == "torch" else real(n, d))
    with pytest.raises(gradmark.BackendUnavailableError, match="backend='torch' cannot serve this call: torch is gone"):
        gradmark.gelu(x, backend="torch")


def test_dtypes_that_nobody_takes(kind):
    for dtype in ("int32", "bool", "complex64"):
        with pytest.raises(TypeError, match=f"x has dtype {dtype}; the {kind} backend takes float16, "):
            gradmark.gelu(ones(kind, dtype=dtype))


def test_no_arrays():
    np_matrix = np.ones((2, 2)).view(np.matrix)
    for value in ([1.0, 2.0], 1.0, None, "x", np.float32(1), np_matrix):
        for backend in (None, *BACKENDS):
            with pytest.raises(TypeError, match=r"x is of type .*; gradmark.gelu takes numpy.ndarray or torch.Tensor"):
                gradmark.gelu(value, backend=backend)
    with pytest.raises(TypeError, match=r"grads\[1\] is of type float; gradmark.clip_grad_norm takes"):
        gradmark.clip_grad_norm([np.ones(2), 1.0], 1.0)
    with pytest.raises(TypeError, match="grads is a single array; give a list of arrays"):
        gradmark.clip_grad_norm(np.ones(2), 1.0)


def test_empty_lists(backend):
    for keywords in ({}, {"backend": backend}):
        clipped, norm = gradmark.clip_grad_norm([], 1.0, **keywords)
        assert clipped == []
        assert float(norm) == 0.0


def test_python_errors_are_pythons():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        gradmark.gelu()
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        gradmark.gelu(np.ones(2), beta=1)


def test_mixed_arguments(backend):
    torch = pytest.importorskip("torch")
    array, tensor = ones("numpy"), ones("torch")
    for call in (
        lambda: gradmark.gelu_backward(tensor, array, backend=backend),
        lambda: gradmark.gelu_backward(array, tensor, backend=backend),
        lambda: gradmark.gelu(array, out=tensor, backend=backend),
        lambda: gradmark.gelu(tensor, out=array, backend=backend),
        lambda: gradmark.prelu(torch.ones(2, 3), np.ones(3, "f4"), backend=backend),
        lambda: gradmark.clip_grad_norm([array, tensor], 1.0, backend=backend),
        lambda: gradmark.clip_grad_norm([tensor, array], 1.0, backend=backend),
    ):
        with pytest.raises(
            TypeError, match=r"is of type (torch.Tensor|numpy.ndarray); |is of type .*, other arguments"
        ):
            call()


def test_two_devices(backend):
    """Of a kind that every machine has: `meta` holds no memory, and is no CPU."""
    torch = pytest.importorskip("torch")
    here, there = torch.ones(3), torch.ones(3, device="meta")
    with pytest.raises(ValueError, match=r"grad is on meta, .*nothing is copied between devices silently"):
        gradmark.gelu_backward(there, here, backend=backend)
    with pytest.raises(ValueError, match=r"out is on meta, .*nothing is copied between devices silently"):
        gradmark.gelu(here, out=there, backend=backend)
    with pytest.raises(ValueError, match=r"is on (cpu|meta)"):
        gradmark.gelu_backward(here, there, backend=backend)
    if backend != "torch":
        with pytest.raises(ValueError, match=f"x is on meta, and the {backend} backend runs on the CPU only"):
            gradmark.gelu(there, backend=backend)
    assert gradmark.gelu(there).device.type == "meta"


def test_sparse_quantized_and_complex(backend):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"x has layout torch\.sparse_coo; dense"):
        gradmark.gelu(torch.eye(2).to_sparse(), backend=backend)
    with pytest.raises(TypeError, match=r"grad has layout torch\.sparse_coo; dense"):
        gradmark.gelu_backward(torch.eye(2).to_sparse(), torch.eye(2), backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the quantized dtypes
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match="x has dtype quint8"):
        gradmark.gelu(quantized, backend=backend)
    with pytest.raises(TypeError, match="x has dtype complex64"):
        gradmark.gelu(torch.ones(3, dtype=torch.complex64).conj(), backend=backend)
    with pytest.raises(TypeError, match="grad has dtype bfloat16"):
        gradmark.gelu_backward(torch.ones(3, dtype=torch.bfloat16), torch.ones(3), backend=backend)


def test_tensors_within_autograd(backend):
    torch = pytest.importorskip("torch")
    x, leaf = torch.ones(3), torch.ones(3, requires_grad=True)
    for call in (
        lambda: gradmark.gelu(leaf, backend=backend),
        lambda: gradmark.gelu(torch.nn.Parameter(x), backend=backend),
        lambda: gradmark.gelu_backward(leaf, x, backend=backend),
        lambda: gradmark.gelu(x, out=leaf, backend=backend),
        lambda: gradmark.clip_grad_norm([leaf], 1.0, backend=backend),
    ):
        with pytest.raises(ValueError, match="requires grad"):
            call()
    with torch.no_grad():
        with pytest.raises(ValueError, match="out requires grad"):
            gradmark.gelu(x, out=torch.zeros(3, requires_grad=True), backend=backend)
        for given in (leaf, torch.nn.Parameter(x)):
            result = gradmark.gelu(given, backend=backend)
            assert type(result) is torch.Tensor
            assert not result.requires_grad


def test_memory_is_shared(kind, backend):
    """`out` is written to, in place where it is an input, and inputs are never changed."""
    x = ones(kind, (4, 6)) * 2
    expected = np.asarray(gradmark.backend("numpy").relu6(np.full((4, 6), -2, "f4")))
    x *= -1
    for given in (x, x.T, x[::2], x[:, 1:3]):
        before = np.asarray(given).copy()
        out = given * 0 + 7
        assert gradmark.relu6(given, out=out, backend=backend) is out
        np.testing.assert_array_equal(np.asarray(out), expected.flat[0] * np.ones(before.shape))
        np.testing.assert_array_equal(np.asarray(given), before)
    view = x[:, 1:3]
    assert gradmark.relu6(view, out=view, backend=backend) is view
    assert float(x[:, 1:3].min()) == 0.0
    assert float(x[:, 0].max()) == -2.0
    with pytest.raises(ValueError, match="out overlaps x without being the same"):
        gradmark.relu6(x[:, 1:], out=x[:, :-1], backend=backend)


def test_lists_in_place(kind, backend):
    grads = [ones(kind, 3), ones(kind, (2, 2))]
    kept = list(grads)
    clipped, _ = gradmark.clip_grad_norm(grads, 1e-3, out=grads, backend=backend)
    assert all(a is b for a, b in zip(clipped, kept, strict=True))
    assert float(kept[0].max()) < 1e-3


def test_what_torch_has_no_view_of():
    pytest.importorskip("torch")
    x = np.linspace(-3, 3, 7, dtype="f4")
    expected = gradmark.backend("torch").gelu(sys.modules["torch"].from_numpy(x)).numpy()
    locked = x.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(gradmark.gelu(locked, backend="torch"), expected)
    with pytest.raises(ValueError, match="out is read-only"):
        gradmark.gelu(x, out=locked, backend="torch")
    unaligned = np.frombuffer(b"\0" + x.tobytes(), "u1")[1:].view("f4")
    assert not unaligned.flags.aligned
    records = np.zeros(7, [("x", "f4"), ("y", "i1")])
    records["x"] = x
    for given in (x[::-1][::-1][::-1], unaligned, records["x"]):
        with pytest.raises(ValueError, match=r"x .*torch.*; give x.copy\(\), or use another backend"):
            gradmark.gelu(given, backend="torch")
    with pytest.raises(TypeError, match="native byte order"):
        gradmark.gelu_backward(x.astype(">f4"), x, backend="torch")
    save((7, ("torch",)))
    np.testing.assert_array_equal(gradmark.gelu(x), expected)
    for given in (x[::-1], unaligned, records["x"]):
        np.testing.assert_array_equal(gradmark.gelu(given), gradmark.backend("numpy").gelu(given))
        out = np.empty(14, "f4")[::-2]
        assert gradmark.gelu(x, out=out) is out
        np.testing.assert_array_equal(out, gradmark.backend("numpy").gelu(x))


def test_what_numpy_has_no_view_of():
    torch = pytest.importorskip("torch")
    x = torch.linspace(-3, 3, 8)
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg()
    with pytest.raises(ValueError, match=r"x cannot be had by the numba backend: .*; use the torch backend"):
        gradmark.gelu(negated, backend="numba")
    expected = gradmark.backend("torch").gelu(-x)
    assert torch.equal(gradmark.gelu(negated), expected)


def test_profiles_that_cannot_be_used_warn_once(served_by):
    x = ones("numpy", 4)
    for content, message in (
        ("{", "is corrupt, no JSON: .*delete it, .*Until then the shipped default is used"),
        ('{"kind": "gradmark profile", "schema": 99}', "newer gradmark .schema 99, this one reads 1.: update gradmark"),
    ):
        path = profiles.path_of(Key.here())
        path.write_text(content)
        dispatch.forget()
        with pytest.warns(ProfileWarning, match=message) as caught:
            assert served_by(x) == "numba"
        assert len(caught) == 1
        assert caught[0].filename == __file__
        # Warnings are errors here: a second one would raise.
        assert served_by(ones("numpy", 400)) == "numba"
        assert gradmark.zeros(3).shape == (3,)


def test_a_warning_that_is_an_error_is_raised_once(served_by):
    profiles.path_of(Key.here()).write_text("{")
    dispatch.forget()
    with pytest.raises(ProfileWarning):
        gradmark.gelu(np.ones(4))
    assert served_by(np.ones(4)) == "numba"


def test_stale_profiles_are_said_and_not_used(served_by):
    here = Key.here()
    save((4, ("numpy",)), key=Key(here.cpu, here.gpu, here.threads, {**here.versions, "numba": "0.1"}))
    with pytest.warns(ProfileWarning, match=r"measured with numba 0.1 \(here .*gradmark choose. makes one"):
        assert served_by(ones("numpy", 4)) == "numba"
    save((4, ("numpy",)))
    assert served_by(ones("numpy", 4)) == "numpy"


def test_a_profile_of_another_machine_under_this_ones_name(served_by):
    here = Key.here()
    path = save((4, ("numpy",)), key=Key("abacus", None, here.threads, here.versions))
    path.rename(profiles.path_of(here))
    dispatch.forget()
    with pytest.warns(ProfileWarning, match="of another machine or other versions: processor abacus"):
        assert served_by(ones("numpy", 4)) == "numba"


def test_no_name_of_an_operation_hides_one_of_the_package():
    taken = {name for name in vars(gradmark) if inspect.ismodule(vars(gradmark)[name])} | set(gradmark._HOME)
    assert not taken & set(gradmark._functions())
