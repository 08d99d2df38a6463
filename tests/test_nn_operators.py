"""Operators of torch.library: opcheck, torch.compile, torch.func, fake tensors; by the catalog."""

import inspect
import shutil

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import gradmark
from gradmark import catalog
from gradmark.catalog import BACKWARD, FORWARD, Activation, Gated, backward_of
from gradmark.nn import _modules
from gradmark.nn._derivatives import is_piecewise_linear
from gradmark.nn._kernels import arguments, saved_of
from gradmark.nn._operators import ROWS, operator

CLASSES = _modules.CLASSES
PASSES = [pytest.param(row, p, id=f"{row.name}-{p}") for row in ROWS for p in (FORWARD, BACKWARD)]


def of_operator(row, operation_pass, dtype=torch.float64, shape=(4, 6)):
    """The operator, and arguments for it."""
    generator = torch.Generator().manual_seed(5)

    def tensor(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    half = (shape[0], shape[1] // 2) if isinstance(row, Gated) else shape
    values = {"x": tensor(shape), "grad": tensor(half), "seed": torch.tensor(7), "axis": 1, "gate_last": False}
    values["y"] = operator(row.name)(values["x"], 1) if saved_of(row) == "y" else None
    values["hard"] = False
    if not isinstance(row, Gated):
        values |= {p.name: tensor(shape[1:2]) if p.learnable else float(p.usual) for p in row.parameters}
    if values["y"] is not None:
        values["y"] = values["y"].detach().requires_grad_()
    name = row.name if operation_pass == FORWARD else backward_of(row.name)
    given = [values[argument.name] for argument in arguments(row, operation_pass)]
    return getattr(torch.ops.gradmark, name).default, operator(name), given


def first(found):
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize(("row", "operation_pass"), PASSES)
def test_opcheck(row, operation_pass):
    registered, _, given = of_operator(row, operation_pass)
    torch.library.opcheck(registered, given)


@pytest.mark.parametrize(("row", "operation_pass"), PASSES)
def test_the_short_way_gives_the_same(row, operation_pass):
    registered, call, given = of_operator(row, operation_pass)
    leaves = [value for value in given if isinstance(value, torch.Tensor) and value.requires_grad]
    found = []
    for function in (registered, call):
        result = function(*given)
        results = result if isinstance(result, tuple) else (result,)
        total = sum((y * (i + 2)).sin().sum() for i, y in enumerate(results))
        found.append([*results, *torch.autograd.grad(total, leaves)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("row", catalog.ACTIVATIONS, ids=lambda row: row.name)
def test_what_is_piecewise_linear_has_no_curvature(row):
    x = torch.linspace(-7.1, 6.9, 1001, dtype=torch.float64)
    values = [p.usual for p in row.parameters]
    y = torch.from_numpy(getattr(gradmark.backend("numba"), row.name)(x.numpy(), *values))
    # A piecewise linear function bends at its kinks only.
    assert (int((torch.diff(y, n=2).abs() > 1e-9).sum()) <= 8) == is_piecewise_linear(row)


def vmapped(function, in_dims, given, randomness="error"):
    return torch.func.vmap(function, in_dims=in_dims, randomness=randomness)(*given)


@pytest.mark.parametrize(("row", "operation_pass"), PASSES)
@pytest.mark.parametrize("batched", ["first", "last", "some"])
def test_vmap_is_the_loop(row, operation_pass, batched):
    registered, call, given = of_operator(row, operation_pass)
    batch, dims, stacked = 3, [], []
    for index, value in enumerate(given):
        if not isinstance(value, torch.Tensor) or (batched == "some" and index > 0) or value.dtype == torch.int64:
            dims.append(None)
            stacked.append(value.detach() if isinstance(value, torch.Tensor) else value)
            continue
        samples = [value.detach() * scale for scale in (1.0, -0.5, 0.25)]
        dims.append(0 if batched == "first" else value.ndim if batched == "last" else 0)
        stacked.append(torch.stack(samples, dims[-1]))
    for function in (registered, call):
        found = vmapped(function, tuple(dims), stacked)
        for i in range(batch):
            one = [v if d is None else v.select(d, i) for v, d in zip(stacked, dims, strict=True)]
            expected = function(*one)
            pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
            for ours, theirs in pairs:
                torch.testing.assert_close(ours[i], theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row, Activation) and row.learnable], ids=str)
def test_samples_of_images_share_the_channels_parameter(row):
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    parameter = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    found = torch.func.vmap(operator(row.name), in_dims=(0, None))(x, parameter)
    expected = torch.stack([operator(row.name)(sample, parameter) for sample in x])
    assert torch.equal(found, expected)


def test_vmap_of_an_axis_that_a_sample_lacks():
    with pytest.raises(ValueError, match="axis"):
        torch.func.vmap(lambda x: operator("softmax")(x, -2))(torch.ones(3, 4))
    with pytest.raises(ValueError, match="axis"):
        torch.func.vmap(lambda x: operator("softmax")(x, 1))(torch.ones(3, 4))


@pytest.mark.parametrize("name", ["GELU", "PReLU", "Swish", "SwiGLU", "Softmax", "LogSoftmax", "Hardsigmoid", "Mish"])
def test_torch_func(name):
    module = CLASSES[name](**({"dim": -1} if "dim" in inspect.signature(CLASSES[name]).parameters else {})).double()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    x = torch.linspace(-2.05, 1.9, 6, dtype=torch.float64)

    def loss(x):
        return (module(x) ** 2).sum()

    leaf = x.clone().requires_grad_()
    expected = torch.autograd.functional.hessian(loss, leaf)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(loss))(x), expected, rtol=1e-10, atol=1e-12)
    rows = torch.stack([x, 2 * x])
    each = torch.func.vmap(torch.func.grad(loss))(rows)
    torch.testing.assert_close(each[0], torch.func.grad(loss)(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(each[1], torch.autograd.grad(loss(b := (2 * x).requires_grad_()), b)[0])


def test_gradients_per_sample():
    """The usual use of torch.func: a gradient of the parameters for each sample."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), gradmark.nn.PReLU(6), torch.nn.Linear(6, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(model, parameters, (sample.unsqueeze(0),)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        expected = torch.autograd.grad(model(sample.unsqueeze(0)).square().sum(), list(model.parameters()))
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][i], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["RReLU", "GumbelSoftmax"])
def test_randomness_of_vmap(name):
    module, x = CLASSES[name](), -torch.ones(4, 50)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(module)(x)
    same, different = (torch.func.vmap(module, randomness=how)(x) for how in ("same", "different"))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_is_refused():
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(gradmark.nn.GELU(), (torch.ones(3),), (torch.ones(3),))


def trained(function, x):
    leaf = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = function(leaf)
    y.sin().sum().backward()
    return y.detach(), leaf.grad


@pytest.mark.parametrize("name", CLASSES)
def test_compiled_without_breaks(name):
    known = inspect.signature(CLASSES[name]).parameters
    arguments = {"dim": 1} if "dim" in known else {"threshold": 0.1, "value": 2.0} if name == "Threshold" else {}
    module, x = CLASSES[name](**arguments), torch.randn(3, 6, 4)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for found, expected in zip(trained(compiled, x), trained(module, x), strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.manual_seed(3)
        y = compiled(x)
        torch.manual_seed(3)
        torch.testing.assert_close(y, module(x))


def model():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 12), gradmark.nn.GELU(), gradmark.nn.ReLU(inplace=True), torch.nn.Linear(12, 12)]
    layers += [gradmark.nn.PReLU(12), gradmark.nn.SwiGLU(), gradmark.nn.LogSoftmax(dim=-1)]
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_model(dynamic):
    eager = model()
    torch.compiler.reset()
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (5, 7):
        x = torch.randn(batch, 8)
        for found, expected in zip(trained(compiled, x), trained(eager, x), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_compiled_by_inductor():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("inductor compiles C++, and there is neither g++ nor clang++ here")
    eager = model()
    torch.compiler.reset()
    compiled = torch.compile(eager, fullgraph=True)
    x = torch.randn(5, 8)
    for found, expected in zip(trained(compiled, x), trained(eager, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_exported_model_calls_the_operators():
    program = torch.export.export(model().eval(), (torch.randn(5, 8),))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"gradmark.gelu.default", "gradmark.prelu.default", "gradmark.swiglu.default"} <= targets
    x = torch.randn(5, 8)
    torch.testing.assert_close(program.module()(x), model()(x))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_traced_calls_are_operators(mode):
    """Where a mode records what is called, the short way would hide it."""
    graph = make_fx(lambda x: gradmark.nn.SwiGLU()(gradmark.nn.GELU()(x)), tracing_mode=mode)(torch.randn(3, 4))
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called == ["gradmark.gelu.default", "gradmark.swiglu.default"]


@pytest.mark.parametrize("name", CLASSES)
def test_meta_tensors(name):
    known = inspect.signature(CLASSES[name]).parameters
    arguments = {"dim": 1} if "dim" in known else {"threshold": 0.1, "value": 2.0} if name == "Threshold" else {}
    module = CLASSES[name](**arguments)
    x = torch.ones(3, 6, 4)
    y = module.to("meta")(x.to("meta"))
    assert y.is_meta
    assert y.shape == CLASSES[name](**arguments)(x).shape
