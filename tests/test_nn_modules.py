"""Modules: torch.nn's where it has them, the backends' functions where not; gradients of two orders; bad input."""

import copy
import doctest
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest
import torch

import gradmark
from gradmark import catalog
from gradmark.catalog import FORWARD, Activation, Gated, Rowwise, backward_of
from gradmark.nn import _kernels, _modules
from gradmark.nn._operators import ROWS, operator

numba = pytest.importorskip("numba")

CLASSES = _modules.CLASSES
OF_TORCH = [name for name in CLASSES if hasattr(torch.nn, name)]
OWN = [name for name in CLASSES if name not in OF_TORCH]
# What torch.nn wants to be told, and what is worth another value than the default.
ARGUMENTS = {
    "Threshold": [{"threshold": 0.1, "value": 20.0}],
    "GELU": [{}, {"approximate": "tanh"}],
    "PReLU": [{}, {"num_parameters": 6, "init": -0.5}],
    "Swish": [{}, {"num_parameters": 6, "init": 1.7}],
    "Hardtanh": [{}, {"min_val": -0.1, "max_val": 2.5}],
    "GumbelSoftmax": [{}, {"tau": 0.5}, {"hard": True}],
}
SAMPLED = {"alpha": 0.7, "negative_slope": 0.2, "beta": 2.0, "threshold": 5.0, "lambd": 0.1, "b": 1.0}
SAMPLED["gate_last"] = True


def cases(names=tuple(CLASSES)):
    """Each module by its defaults, and with other arguments where it has some."""
    found = []
    for name in names:
        known = inspect.signature(CLASSES[name]).parameters
        dim = {"dim": 1} if "dim" in known else {}
        given = ARGUMENTS.get(name)
        if given is None:
            sampled = {key: value for key, value in SAMPLED.items() if key in known}
            given = [{}, *([sampled] if sampled else [])]
        for arguments in given:
            label = "-".join([name, *map(str, arguments.values())])
            found.append(pytest.param(name, dim | arguments, id=label))
    return found


def inputs(*shape, dtype=torch.float64, seed=1):
    """Of both signs, and at least 1e-3 away from every kink in the catalog."""
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kinks = [kink for row in catalog.ACTIVATIONS for kink in (*row.kinks, 2.5 if row.name == "softplus" else 0.0)]
    for kink in kinks:
        x = torch.where((x - kink).abs() < 1e-2, kink + 2e-2, x)
    return x.to(dtype)


def of_rows(name):
    """The rows that a module calls."""
    if name == "Softmax2d":
        return [catalog.operation("softmax")]
    return [row for row in ROWS if f"call_{row.name}" in CLASSES[name].forward.__globals__]


def results(module, x, grad):
    x = x.clone().requires_grad_()
    y = module(x)
    parameters = list(module.parameters())
    return y.detach(), *torch.autograd.grad(y, [x, *parameters], grad(y))


def some_gradient(y):
    return torch.linspace(-1.5, 2.0, max(y.numel(), 1), dtype=y.dtype)[: y.numel()].reshape(y.shape)


def exact_gradient(y):
    """One that all dtypes have."""
    values = torch.tensor([1.5, -0.75, 0.5, -2.0], dtype=y.dtype)
    return values[torch.arange(y.numel()) % 4].reshape(y.shape)


def seeded(function, *given):
    torch.manual_seed(11)
    return function(*given)


def test_every_row_is_a_module_but_the_identity():
    reached = {row.name for name in CLASSES for row in of_rows(name)}
    assert {row.name for row in ROWS} - reached == {"identity"}
    assert [row.name for row in ROWS if row.formula == "x"] == ["identity"]


def test_torch_nn_has_no_activation_that_is_not_here():
    theirs = set(torch.nn.modules.activation.__all__)
    assert theirs - set(OF_TORCH) == {"MultiheadAttention"}
    assert len(OF_TORCH) >= 28
    assert set(OWN) >= {"Swish", "SwiGLU", "Sparsemax", "GumbelSoftmax", "SquaredReLU"}


def test_names_are_listed_and_unknown_ones_list_them():
    assert {"GELU", "SwiGLU", "init", "replace_activations"} <= set(dir(gradmark.nn))
    with pytest.raises(AttributeError, match=r"no attribute 'Gelu'; it has .*GELU"):
        gradmark.nn.Gelu  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "arguments"), cases(OF_TORCH))
def test_values_and_gradients_of_torch_nn(name, arguments, dtype):
    ours, theirs = CLASSES[name](**arguments).to(dtype), getattr(torch.nn, name)(**arguments).to(dtype)
    if name == "RReLU":
        ours.eval(), theirs.eval()
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    x = inputs(5, 6, 4, 2, dtype=dtype)
    # The torch backend is ATen; what it keeps less than the catalog says is a few ULP of the scale.
    bounds = {"rtol": 1e-11, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 4e-6, "atol": 1e-6}
    if name in ("CELU", "Hardsigmoid"):
        # torch 2.13.0 differentiates these with 1/alpha and 1/6 of float32.
        bounds = {key: max(bound, 1e-7) for key, bound in bounds.items()}
    for found, expected in zip(results(ours, x, some_gradient), results(theirs, x, some_gradient), strict=True):
        # A parameter's gradient is a sum of terms that cancel.
        scale = 1.0 if found.shape == x.shape or found.ndim == x.ndim else 30.0
        torch.testing.assert_close(found, expected, rtol=bounds["rtol"], atol=bounds["atol"] * scale)


@pytest.mark.parametrize(("name", "arguments"), cases(OWN))
def test_own_modules_are_the_functions_of_the_backend(name, arguments):
    module = CLASSES[name](**arguments).double()
    (row,) = of_rows(name)
    x = inputs(5, 6, 4)
    namespace = gradmark.backend("numba")
    keywords = {}
    if not isinstance(row, Activation):
        keywords = {"axis": 1} | {k: v for k, v in arguments.items() if k != "dim"}
    if isinstance(row, Activation):
        keywords = {p.name: arguments.get(p.name, p.usual) for p in row.parameters if not p.learnable}
        keywords |= {p.name: getattr(module, p.name).detach().numpy() for p in row.learnable}
    if row.family != "gated" and row.seeded:
        torch.manual_seed(11)
        keywords["seed"] = int(_modules._drawn_seed())
    expected = getattr(namespace, row.name)(x.numpy(), **keywords)
    np.testing.assert_array_equal(seeded(module, x).detach().numpy(), expected)


@pytest.mark.parametrize(("name", "arguments"), cases())
def test_first_and_second_derivatives(name, arguments):
    module = CLASSES[name](**arguments).double()
    parameters = tuple(module.parameters())
    if arguments.get("hard"):
        # Straight-through: the gradient is not that of the value.
        soft = CLASSES[name](**arguments | {"hard": False}).double()
        x = inputs(3, 6)
        assert torch.equal(seeded(results, module, x, some_gradient)[1], seeded(results, soft, x, some_gradient)[1])
        return
    x = inputs(2, 6, 2).requires_grad_()

    def function(x, *parameters):
        return seeded(torch.func.functional_call, module, dict(zip(names, parameters, strict=True)), (x,))

    names = [name for name, _ in module.named_parameters()]
    assert torch.autograd.gradcheck(function, (x, *parameters), atol=1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input #1 requires gradient")
        assert torch.autograd.gradgradcheck(function, (x, *parameters), atol=1e-6)


def test_derivatives_of_third_order():
    x = inputs(4).requires_grad_()
    first = torch.autograd.grad(gradmark.nn.GELU()(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
    third = torch.autograd.grad(second.sum(), x)[0]
    # gelu'' = φ (2 - x²), hence gelu''' = φ (x³ - 4x).
    density = torch.exp(-(x.detach() ** 2) / 2) / np.sqrt(2 * np.pi)
    torch.testing.assert_close(second.detach(), density * (2 - x.detach() ** 2), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(third, density * (x.detach() ** 3 - 4 * x.detach()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "arguments"), cases())
def test_half_precision_is_float32_rounded_once(name, arguments, dtype):
    half = CLASSES[name](**arguments).to(dtype)
    x = inputs(3, 6, 4, 2).to(dtype)
    y, dx, *_ = seeded(results, half, x, exact_gradient)
    wide_y, wide_dx, *_ = seeded(results, copy.deepcopy(half).float(), x.float(), exact_gradient)
    # What keeps y has it rounded.
    keeps_y = next((row.name for row in of_rows(name) if row.saved == ("y",)), None)
    if keeps_y is not None:
        wide_dx = operator(backward_of(keeps_y))(exact_gradient(wide_y), y.float(), 1)
    info = torch.finfo(dtype)
    # Half a step, and what the torch backend errs in float32 where it cancels, by the catalog relative to |x| or |g|.
    rows = [row.activation if isinstance(row, Gated) else row for row in of_rows(name)]
    cancels = any(isinstance(row, Rowwise) or row.deviations for row in rows)
    bound, error = 0.501 * info.eps, 1e-6 if cancels else 2e-7
    for ours, wide in ((y, wide_y), (dx, wide_dx)):
        assert ours.dtype is dtype
        # Below the normal numbers steps are equal.
        torch.testing.assert_close(ours.float(), wide, rtol=bound, atol=2 * bound * info.tiny + error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_autocast_changes_no_dtype(name, dtype):
    module, x = CLASSES[name](**cases([name])[0].values[1]), inputs(3, 6, 4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = seeded(module, x.requires_grad_())
    assert y.dtype is dtype
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in module.parameters())


LAYOUTS = {
    "strided": lambda: inputs(5, 6, 8)[:, :, ::2],
    "transposed": lambda: inputs(4, 6, 5).transpose(0, 2),
    "channels last": lambda: inputs(3, 6, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: inputs(1, 6, 1).expand(3, 6, 4),
    "vector": lambda: inputs(6),
    "parameter": lambda: torch.nn.Parameter(inputs(3, 6)),
    "no elements": lambda: inputs(0, 6, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["GELU", "ReLU", "PReLU", "Swish", "SwiGLU", "GLU", "Softmax", "Sparsemax"])
def test_layouts(name, layout):
    x = LAYOUTS[layout]().detach()
    dim = 0 if x.ndim == 1 else 1
    module = CLASSES[name](**({"dim": dim} if "dim" in inspect.signature(CLASSES[name]).parameters else {})).double()
    dense = x.contiguous()
    for found, expected in zip(results(module, x, some_gradient), results(module, dense, some_gradient), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    y = module(x.clone().requires_grad_())
    # The gradient of a sum has stride 0.
    y.sum().backward()


def test_zero_dimensions():
    x = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    for module in (gradmark.nn.ELU(), gradmark.nn.PReLU().double()):
        y = module(x)
        assert y.shape == ()
        assert torch.autograd.gradcheck(module, (x,))


def test_only_what_is_asked_for_gets_a_gradient():
    module = gradmark.nn.PReLU().double()
    x = inputs(3, 4)
    module(x).sum().backward()
    assert x.grad is None
    assert module.weight.grad.shape == (1,)
    module.weight.requires_grad_(False)
    x.requires_grad_()
    module(x).sum().backward()
    assert module.weight.grad.shape == (1,)
    with torch.no_grad():
        assert not module(x).requires_grad


INPLACE = [name for name in CLASSES if "inplace" in inspect.signature(CLASSES[name]).parameters]


@pytest.mark.parametrize("name", INPLACE)
def test_in_place(name):
    arguments = cases([name])[0].values[1]
    module, plain = CLASSES[name](inplace=True, **arguments).eval(), CLASSES[name](**arguments).eval()
    x = inputs(3, 4)
    given = x.clone()
    assert module(given) is given
    assert torch.equal(given, plain(x))
    leaf = x.clone().requires_grad_()
    middle = leaf * 2
    y = module(middle)
    assert y is middle
    y.backward(some_gradient(y))
    expected = results(plain, 2 * x, some_gradient)
    assert torch.equal(leaf.grad, 2 * expected[1])
    assert torch.equal(middle.detach(), expected[0])
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        module(leaf)


def test_random_slopes_follow_pytorchs_generator():
    module, x = gradmark.nn.RReLU(), torch.full((1000,), -1.0)
    first, again, other = seeded(module, x), seeded(module, x), module(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert -1 / 3 <= first.min() < first.max() <= -1 / 8
    leaf = x.clone().requires_grad_()
    y = seeded(module, leaf)
    y.sum().backward()
    # Backward draws the slopes of forward.
    torch.testing.assert_close(leaf.grad, -y.detach())
    assert len(module.eval()(x).unique()) == 1


def test_gumbel_noise_follows_pytorchs_generator():
    module, x = gradmark.nn.GumbelSoftmax(hard=True), inputs(50, 7)
    first, again, other = seeded(module, x), seeded(module, x), module(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.sum(-1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("name", ["Softmax", "Softmin", "LogSoftmax"])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 3, 4, 6)], ids=str)
def test_axis_that_torch_nn_implies(name, shape):
    x = inputs(*shape)
    with pytest.warns(UserWarning, match="[Ii]mplicit"):
        expected = getattr(torch.nn, name)()(x)
    with pytest.warns(UserWarning, match="implicit choice .* dim="):
        found = CLASSES[name]()(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_state_dicts_are_those_of_torch_nn():
    theirs = torch.nn.PReLU(6, init=0.125)
    ours = gradmark.nn.PReLU(6)
    ours.load_state_dict(theirs.state_dict())
    assert {k: v.shape for k, v in ours.state_dict().items()} == {"weight": (6,)}
    assert torch.equal(ours.weight, theirs.weight)
    assert {k: v.shape for k, v in gradmark.nn.Swish(3).state_dict().items()} == {"beta": (3,)}
    assert gradmark.nn.Swish(device="meta", dtype=torch.float64).beta.dtype is torch.float64


@pytest.mark.parametrize(("name", "arguments"), cases())
def test_copies(name, arguments):
    module, x = CLASSES[name](**arguments), inputs(3, 6, dtype=torch.float32)
    if name == "Softmax2d":
        x = inputs(3, 6, 4, 2, dtype=torch.float32)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert type(other) is type(module)
        assert repr(other) == repr(module)
        assert torch.equal(seeded(other, x), seeded(module, x))


def test_the_backend_comes_from_one_function(monkeypatch):
    assert _kernels.backend_of("gelu", FORWARD, torch.ones(3)) == "numba"
    assert _kernels.backend_of("gelu", FORWARD, torch.ones(3, dtype=torch.float64)) == "numba"
    for tensor in (
        torch.ones(3, dtype=torch.float16),
        torch.ones(4)[::2],
        torch.ones(3, device="meta"),
        torch.ones(3).to_sparse(),
        torch.ones(3, dtype=torch.int64),
    ):
        assert _kernels.backend_of("gelu", FORWARD, tensor) == "torch"
    assert set(_kernels.backend_of.__annotations__) == {"operation", "operation_pass", "tensor", "return"}


def test_numba_works_on_the_memory_of_the_tensor(monkeypatch):
    seen = []
    real = gradmark.backend("numba").gelu

    def spy(x, out):
        seen.append((x.ctypes.data, out.ctypes.data))
        return real(x, out=out)

    forward = _kernels.kernel(catalog.operation("gelu"), FORWARD)
    monkeypatch.setattr(forward.__globals__["of_arrays"]["numba"], "gelu", spy)
    x = inputs(4)
    y = forward(x)
    assert seen == [(x.data_ptr(), y.data_ptr())]


def test_what_serves_is_what_dispatch_chooses():
    x, y = inputs(64, dtype=torch.float32), inputs(64, dtype=torch.float16)
    assert _kernels.backend_of("gelu", FORWARD, x) == "numba"
    assert _kernels.backend_of("gelu", FORWARD, y) == "torch"
    for name in gradmark.BACKENDS:
        with gradmark.using(name):
            assert _kernels.backend_of("gelu", FORWARD, x) == name
            expected = gradmark.backend(name).gelu(x.numpy() if name != "torch" else x)
            assert torch.equal(gradmark.nn.GELU()(x), torch.as_tensor(expected))
    with gradmark.using("numba"), pytest.raises(TypeError, match=r"using.'numba'. cannot serve .* float16"):
        gradmark.nn.GELU()(y)


def test_a_tensor_whose_sign_is_still_to_be_changed():
    x = torch.complex(inputs(8), inputs(8, seed=2)).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(gradmark.nn.GELU()(x), gradmark.nn.GELU()(x.resolve_neg()), rtol=1e-14, atol=1e-16)


def test_seeds_are_drawn_on_the_cpu():
    x = inputs(64)
    torch.set_default_device("meta")
    try:
        assert gradmark.nn.RReLU()(x).device.type == "cpu"
    finally:
        torch.set_default_device(None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_torch_fx_and_torch_jit_trace_see_operators():
    net = torch.nn.Sequential(gradmark.nn.GELU(), gradmark.nn.PReLU(), gradmark.nn.Softmax(dim=-1)).double()
    x, other = inputs(3, 4), inputs(7, 4)
    for traced in (torch.fx.symbolic_trace(net), torch.jit.trace(net, x)):
        assert torch.equal(traced(other), net(other))


class TestBadInput:
    @pytest.mark.parametrize("name", ["GELU", "ReLU", "SwiGLU", "Softmax", "PReLU"])
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (torch.ones(2, 4, dtype=torch.complex64), "dtype complex64.*float16, bfloat16, float32, float64"),
            (torch.ones(2, 4, dtype=torch.int64), "dtype int64.*float16, bfloat16, float32, float64"),
            (torch.ones(2, 4, dtype=torch.bool), "dtype bool.*float16"),
            (torch.ones(2, 4).to_sparse(), r"layout torch\.sparse_coo; dense"),
        ],
        ids=["complex", "integer", "bool", "sparse"],
    )
    def test_dtypes_and_layouts(self, name, given, message):
        module = CLASSES[name](**({"dim": -1} if name == "Softmax" else {}))
        with pytest.raises(TypeError, match=message):
            module(given)

    @pytest.mark.filterwarnings("ignore:.*quantize")
    @pytest.mark.filterwarnings("ignore:.*quantized")
    def test_quantized(self):
        x = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        with pytest.raises(TypeError, match=r"dtype qint8.*float16, bfloat16, float32, float64"):
            gradmark.nn.GELU()(x)

    @pytest.mark.parametrize("name", ["PReLU", "Swish"])
    def test_two_devices(self, name):
        # The meta device stands for a second one.
        module = CLASSES[name](device="meta")
        with pytest.raises(ValueError, match="is on meta, x on cpu; nothing is copied between devices"):
            module(torch.ones(2, 3))

    @pytest.mark.parametrize("name", ["PReLU", "Swish"])
    def test_channels(self, name):
        with pytest.raises(ValueError, match=r"has shape \(3,\); accepted: .*\(5,\), one per channel"):
            CLASSES[name](3)(torch.ones(2, 5))

    def test_two_dtypes(self):
        with pytest.raises(TypeError, match="float32, x has float64; they must be the same"):
            gradmark.nn.PReLU()(inputs(3))

    def test_no_tensor(self):
        with pytest.raises(TypeError, match=r"takes torch\.Tensor"):
            gradmark.nn.GELU()(np.ones(3))

    def test_odd_lengths_and_lacking_axes(self):
        with pytest.raises(ValueError, match="length 3 along axis 1"):
            gradmark.nn.SwiGLU()(torch.ones(2, 3))
        with pytest.raises(ValueError, match="axis 5 is out of range"):
            gradmark.nn.Softmax(dim=5)(torch.ones(2, 3))
        with pytest.raises(ValueError, match="Softmax2d takes"):
            gradmark.nn.Softmax2d()(torch.ones(2, 3))

    def test_constructors(self):
        with pytest.raises(TypeError, match="num_parameters must be an int"):
            gradmark.nn.Swish(2.5)
        with pytest.raises(ValueError, match="init must be finite"):
            gradmark.nn.Swish(init=float("nan"))
        with pytest.raises(TypeError, match="gate_last must be True or False"):
            gradmark.nn.SwiGLU(gate_last="yes")
        with pytest.raises(TypeError, match="b must be a real number"):
            gradmark.nn.Squareplus("4")

    def test_options_and_values_out_of_range(self):
        with pytest.raises(ValueError, match=r"approximate='erf'; accepted: approximate='none' or approximate='tanh'"):
            gradmark.nn.GELU(approximate="erf")(torch.ones(3))
        with pytest.raises(ValueError, match="softplus requires"):
            gradmark.nn.Softplus(beta=-1.0)(torch.ones(3))

    def test_a_gradient_that_was_overwritten(self):
        x = torch.ones(3, requires_grad=True) * 2
        y = gradmark.nn.GELU()(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("name", OWN)
def test_examples_run(name):
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(CLASSES[name], name, globs={}):
        assert runner.run(example).failed == 0
    assert runner.tries > 0


@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row, Gated | Rowwise)], ids=lambda row: row.name)
def test_axes_from_both_ends(row):
    if row.family == "rowwise" and row.seeded:
        pytest.skip("its noise is another one for each call")
    name = next(name for name in CLASSES if name != "Softmax2d" and row in of_rows(name))
    x = inputs(2, 6, 4)
    for dim in range(3):
        assert torch.equal(CLASSES[name](dim=dim)(x), CLASSES[name](dim=dim - 3)(x))
