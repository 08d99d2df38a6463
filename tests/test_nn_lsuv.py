"""LSUV: unit variance layer by layer, whatever the module; and everything as it was where that cannot be."""

import doctest
import math

import pytest
import torch
from torch import nn

import gradmark
from gradmark.nn import lsuv, lsuv_
from gradmark.numerics.philox import stream_seed


def mlp(bias=True):
    return nn.Sequential(
        nn.Linear(20, 64, bias), nn.ReLU(), nn.Linear(64, 64, bias), nn.Tanh(), nn.Linear(64, 10, bias)
    )


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


class Residual(nn.Module):
    """Registered in another order than they run."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.inner = nn.Linear(32, 16)
        self.outer = nn.Linear(16, 32)
        self.unused = nn.Linear(3, 5)

    def forward(self, x):
        return self.head(x + self.inner(torch.relu(self.outer(x))))


def batch(*shape, scale=3.0, offset=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)) * scale + offset


def outputs(module, x):
    """The output of each layer in evaluation mode, by name."""
    found = {}
    handles = [
        layer.register_forward_hook(lambda m, i, o, name=name: found.setdefault(name, o))
        for name, layer in module.named_modules()
    ]
    modes = {m: m.training for m in module.modules()}
    with torch.no_grad():
        module.eval()(x)
    for handle in handles:
        handle.remove()
    for m, training in modes.items():
        m.training = training
    return found


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module, before):
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    for submodule in module.modules():
        assert not submodule._forward_hooks


NETS = {
    "mlp": (mlp, (128, 20), ["0", "2", "4"]),
    "mlp without biases": (lambda: mlp(bias=False), (128, 20), ["0", "2", "4"]),
    "convolutional": (convolutional, (16, 3, 9, 9), ["0", "4", "6", "8"]),
    "residual": (Residual, (64, 16), ["outer", "inner", "head", "unused"]),
    "one layer": (lambda: nn.Linear(20, 30), (64, 20), [""]),
    "one dimension": (lambda: nn.Conv1d(4, 6, 3), (8, 4, 10), [""]),
    "three dimensions": (lambda: nn.Conv3d(2, 6, 3), (4, 2, 5, 5, 5), [""]),
    "double": (lambda: mlp().double(), (128, 20), ["0", "2", "4"]),
}


def made(net):
    make, shape, _ = NETS[net]
    torch.manual_seed(1)
    module, x = make(), batch(*shape)
    x = x.double() if net == "double" else x
    with torch.no_grad():
        module(x)  # A lazy layer has its shape then.
    return module, x


@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
@pytest.mark.parametrize("net", NETS)
def test_each_layer_has_unit_variance_in_the_order_of_execution(net, tolerance):
    module, x = made(net)
    scalings = lsuv_(module, x, seed=3, tolerance=tolerance)
    assert list(scalings) == NETS[net][2]
    found = outputs(module, x)
    for name, scaling in scalings.items():
        if scaling.before is None:
            continue
        variance = found[name].var(correction=0).item()
        assert abs(variance - 1) <= tolerance + 1e-5, name
        assert scaling.after == pytest.approx(variance, rel=1e-4)
        assert abs(scaling.before - 1) > tolerance or scaling.iterations == 0


@pytest.mark.parametrize("net", NETS)
def test_weights_are_multiples_of_the_orthogonal_ones_of_their_stream(net):
    module, x = made(net)
    before = state(module)
    scalings = lsuv_(module, x, seed=3)
    for name, scaling in scalings.items():
        weight = module.get_submodule(name).weight.detach()
        seed = stream_seed(3, f"{name}.weight" if name else "weight")
        orthogonal = gradmark.backend("torch").orthogonal(tuple(weight.shape), seed=seed, dtype=weight.dtype)
        factor = (weight * orthogonal).sum() / (orthogonal * orthogonal).sum()
        torch.testing.assert_close(weight, orthogonal * factor, rtol=1e-5, atol=1e-7)
        assert (scaling.iterations == 0) == (abs(factor.item() - 1) < 1e-6)
    scaled = {f"{name}.weight" if name else "weight" for name in scalings}
    for name, tensor in module.state_dict().items():
        assert name in scaled or torch.equal(tensor, before[name]), name


def test_without_biases_one_iteration_is_enough():
    module, x = made("mlp without biases")
    scalings = lsuv_(module, x, seed=3, tolerance=1e-4)
    assert [s.iterations for s in scalings.values()] == [1, 1, 1]


def test_the_seed_decides_and_other_generators_are_left_alone():
    weights = []
    for seed in (3, 3, 4):
        module, x = made("mlp")
        generator = torch.get_rng_state()
        lsuv_(module, x, seed=seed)
        assert torch.equal(torch.get_rng_state(), generator)
        weights.append(module[2].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_modes_hooks_gradients_and_statistics_are_left_alone():
    module, x = made("convolutional")
    module.train()
    module[3].eval()
    seen = []
    module[0].register_forward_hook(lambda m, i, o: seen.append(o.var(correction=0).item()))
    running = module[1].running_mean.clone()
    lsuv_(module, x, seed=0)
    assert [m.training for m in module] == [True, True, True, False, *[True] * 5]
    assert torch.equal(module[1].running_mean, running)
    assert len(module[0]._forward_hooks) == 1
    assert all(not m._forward_hooks for m in module[1:])
    assert seen == [pytest.approx(1, abs=0.1)], "the caller's hook sees the scaled output, once"
    assert all(p.requires_grad and p.grad is None and p.grad_fn is None for p in module.parameters())


def test_a_layer_that_is_called_twice_is_scaled_by_its_first_call():
    layer = nn.Linear(12, 12)
    module = nn.Sequential(layer, nn.ReLU(), layer)
    x = batch(64, 12)
    scalings = lsuv_(module, x, seed=1)
    assert list(scalings) == ["0"]
    assert layer(x).var(correction=0).item() == pytest.approx(1, abs=0.1)


def test_a_weight_of_two_layers_is_scaled_by_the_one_that_runs_first():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Linear(12, 12), nn.Linear(12, 12)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    module, x = Tied(), batch(64, 12)
    scalings = lsuv_(module, x, seed=1)
    assert list(scalings) == ["first"]
    assert module.first(x).var(correction=0).item() == pytest.approx(1, abs=0.1)
    assert module.second.weight is module.first.weight


def test_a_layer_that_does_not_run_is_orthogonal_and_reported():
    module, x = made("residual")
    assert lsuv_(module, x, seed=3)["unused"] == lsuv.Scaling(None, None, 0)
    weight = module.unused.weight.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(3))


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, x, y):
            return self.layer(input=x * y)

    x = batch(32, 4)
    module = Two()
    lsuv_(module, (x, 2 * x), seed=0)
    assert module(x, 2 * x).var(correction=0).item() == pytest.approx(1, abs=0.1)


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        self.layer(x)
        raise KeyboardInterrupt("stopped")


def nothing_runs():
    module = Residual()
    module.forward = lambda x: x
    return module


def wide_bias():
    module = mlp()
    nn.init.normal_(module[2].bias, std=5.0)
    return module


def with_nan(position):
    x = batch(64, 20)
    x[3, 4] = position
    return x


# (the module, the batch, further arguments, the error, a part of its message)
FAILING = {
    "zero variance": (
        lambda: mlp(bias=False),
        torch.zeros(8, 20),
        {},
        ValueError,
        "layer '0': the variance .* is 0, and no scale",
    ),
    "zeros and a bias": (
        mlp,
        torch.zeros(8, 20),
        {},
        RuntimeError,
        "layer '0': the variance .* after 10 iterations.* for this batch the inputs of the layer are zeros",
    ),
    "nan": (mlp, with_nan(math.nan), {}, ValueError, "layer '0': the variance .* is nan"),
    "infinity": (mlp, with_nan(math.inf), {}, ValueError, "layer '0': the variance .* is nan"),
    "overflow": (mlp, batch(8, 20, scale=1e30), {}, ValueError, "layer '0': the variance .* is (inf|nan)"),
    "dead": (
        lambda: nn.Sequential(nn.Linear(20, 4, bias=False), nn.Threshold(1e9, 0.0), nn.Linear(4, 4, bias=False)),
        batch(64, 20),
        {},
        ValueError,
        "layer '2': the variance",
    ),
    "a bias that varies too much": (
        wide_bias,
        batch(64, 20),
        {},
        RuntimeError,
        r"layer '2': the variance of the output is [\d.]+ after 10 iterations, from [\d.]+ with orthogonal weights;"
        r" .* A bias that varies too much",
    ),
    "too few iterations": (
        mlp,
        batch(64, 20),
        {"tolerance": 1e-9, "max_iterations": 1},
        RuntimeError,
        "layer '0': .* after 1 iterations, .* wanted: 1 ± 1e-09",
    ),
    "the module raises": (Raising, batch(8, 4), {}, KeyboardInterrupt, "stopped"),
    "the batch does not fit": (
        mlp,
        batch(8, 21),
        {},
        RuntimeError,
        r"mat1 and mat2 shapes .*\nwhile lsuv_ called the module with a tensor \(8, 21\)$",
    ),
    "nothing runs": (nothing_runs, batch(8, 16), {}, ValueError, "no layer runs .* 'head', 'inner', 'outer', 'unused'"),
    "no layer": (lambda: nn.ReLU(), batch(8, 4), {}, ValueError, "a ReLU, has none of the layers .* Linear, Conv1d"),
    "one sample": (mlp, batch(1, 20), {}, ValueError, r"2 samples or more along its first axis, got shape \(1, 20\)"),
    "a number": (mlp, torch.tensor(1.0), {}, ValueError, r"2 samples or more .* got shape \(\)"),
    "no samples": (mlp, batch(0, 20), {}, ValueError, r"got shape \(0, 20\)"),
    "no tensor": (mlp, [[1.0] * 20] * 8, {}, TypeError, "batch must be a tensor, or a tuple that holds one"),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 4))),
        batch(8, 20),
        {},
        ValueError,
        "layer '0' computes its weight from other parameters",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), batch(8, 20), {}, ValueError, "layer '0' has no shape yet"),
    "meta": (lambda: nn.Linear(20, 4, device="meta"), batch(8, 20), {}, ValueError, "layer '' is on the meta device"),
    "seed is negative": (mlp, batch(8, 20), {"seed": -1}, ValueError, "seed must be an int"),
    "seed is a float": (mlp, batch(8, 20), {"seed": 1.0}, TypeError, "seed must be an int"),
    "tolerance is zero": (mlp, batch(8, 20), {"tolerance": 0.0}, ValueError, "tolerance must be positive, got 0.0"),
    "tolerance is nan": (mlp, batch(8, 20), {"tolerance": math.nan}, ValueError, "tolerance must be finite"),
    "no iterations": (mlp, batch(8, 20), {"max_iterations": 0}, ValueError, "max_iterations must be 1 or more, got 0"),
    "iterations are a float": (mlp, batch(8, 20), {"max_iterations": 2.0}, TypeError, "max_iterations must be an int"),
}


@pytest.mark.parametrize("case", FAILING)
def test_on_an_error_everything_is_as_it_was(case):
    make, x, arguments, error, message = FAILING[case]
    module = make().train()
    lazy_or_meta = case in ("lazy", "meta")
    before = {} if lazy_or_meta else state(module)
    with pytest.raises(error, match=message):
        lsuv_(module, x, **{"seed": 0, **arguments})
    if not lazy_or_meta:
        assert_unchanged(module, before)
    assert all(m.training for m in module.modules())


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got 'mlp' of type str"):
        lsuv_("mlp", batch(8, 20), seed=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    module, x = mlp().to(dtype), batch(64, 20).to(dtype)
    lsuv_(module, x, seed=0)
    assert module(x).float().var(correction=0).item() == pytest.approx(1, abs=0.1)
    assert module[0].weight.dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu():
    module, x = mlp().cuda(), batch(64, 20).cuda()
    lsuv_(module, x, seed=0)
    assert module(x).var(correction=0).item() == pytest.approx(1, abs=0.1)


def test_the_example_runs():
    (example,) = doctest.DocTestFinder().find(lsuv_, "lsuv_", globs={})
    assert doctest.DocTestRunner().run(example) == (0, 7)
