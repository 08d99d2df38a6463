"""replace_activations: what is swapped, what is kept, what is left alone and said."""

import copy
import doctest
import weakref

import pytest
import torch
from torch import nn

import gradmark
from gradmark.nn import _replace, replace_activations


class Block(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), shared, nn.BatchNorm1d(6)])
        self.gates = nn.ModuleDict({"a": nn.PReLU(6), "b": shared})
        self.last = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.GELU(approximate="tanh")))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return torch.relu(self.last(self.gates["b"](self.gates["a"](x))))


def model():
    torch.manual_seed(0)
    shared = nn.SiLU()
    return nn.Sequential(Block(shared), Block(shared), nn.LogSoftmax(dim=-1))


def test_values_and_gradients_stay():
    before, after = model().double(), model().double()
    x = torch.randn(4, 6, dtype=torch.float64)
    found = replace_activations(after)
    assert len(found.swapped) == 6
    for one in (before, after):
        one(x).sum().backward()
    torch.testing.assert_close(after(x), before(x), rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(after.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


def test_everything_nested_is_named_and_shared_modules_once():
    found = replace_activations(model())
    assert dict(found.swapped) == {
        "0.layers.1": "SiLU",
        "0.gates.a": "PReLU",
        "0.last.1.0": "GELU",
        "1.gates.a": "PReLU",
        "1.last.1.0": "GELU",
        "2": "LogSoftmax",
    }
    assert dict(found.left) == {}


def test_modules_keep_what_they_are():
    net = model().half().eval()
    before = dict(net.named_modules())
    weights = dict(net.named_parameters())
    state = copy.deepcopy(net.state_dict())
    called = []
    handle = net[0].gates["a"].register_forward_hook(lambda module, given, result: called.append("forward"))
    net[0].gates["a"].register_full_backward_hook(lambda module, given, result: called.append("backward"))
    net[0].gates["a"].weight.requires_grad_(False)
    net[1].gates["a"].train()
    replace_activations(net)
    assert all(module is before[name] for name, module in net.named_modules())
    assert all(p is weights[name] for name, p in net.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert (net[0].gates["a"].training, net[1].gates["a"].training) == (False, True)
    assert (net[0].gates["a"].weight.requires_grad, net[1].gates["a"].weight.requires_grad) == (False, True)
    assert net[0].gates["a"].weight.dtype is torch.float16
    assert net[0].last[1][0].approximate == "tanh"
    net.float()(torch.randn(3, 6)).sum().backward()
    assert called == ["forward", "backward"]
    handle.remove()
    assert isinstance(net[0].gates["a"], gradmark.nn.PReLU)


def test_a_single_activation_and_weak_references():
    module = nn.Tanh()
    seen = weakref.ref(module)
    assert dict(replace_activations(module).swapped) == {"": "Tanh"}
    assert seen() is module
    assert type(module) is gradmark.nn.Tanh
    assert "(the model)  Tanh" in repr(_replace.Replaced({"": "Tanh"}, {}))


@pytest.mark.parametrize("kind", _replace._OURS, ids=lambda kind: kind.__name__)
def test_every_activation_of_torch_nn_is_swapped(kind):
    module = kind(0.1, 2.0) if kind is nn.Threshold else kind()
    assert dict(replace_activations(nn.Sequential(module)).swapped) == {"0": kind.__name__}
    assert type(module) is getattr(gradmark.nn, kind.__name__)


class Loud(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_is_left_alone_and_why():
    assigned = nn.ReLU()
    assigned.forward = lambda x: x
    parametrized = nn.PReLU()
    nn.utils.parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    encoder = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    net = nn.ModuleList([Loud(), assigned, parametrized, encoder, nn.Identity(), nn.MultiheadAttention(8, 2)])
    replace_activations(ours := nn.GELU())
    net.append(ours)
    found = replace_activations(net)
    # What makes the parameter is an activation like others.
    assert dict(found.swapped) == {"2.parametrizations.weight.0": "Softplus"}
    assert dict(found.left) == {
        "0": "Loud is a subclass of torch.nn.ReLU, with what may be another forward",
        "1": "its forward was assigned to it, and hides that of the class",
        "2": "ParametrizedPReLU is a subclass of torch.nn.PReLU, with what may be another forward",
        "3": "its activation is the function relu; construct the layer with a module",
        "6": "it is gradmark's already",
    }
    assert type(net[0]) is Loud
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(net[0](x), torch.tensor([0.0, 4.0]))
    assert torch.equal(net[1](x), x)
    assert repr(found).splitlines()[0] == "1 swapped, 5 left alone"
    assert "  0  Loud is a subclass" in repr(found)


def test_bad_input():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 'relu' of type str"):
        replace_activations("relu")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_script_is_refused():
    with pytest.raises(TypeError, match=r"replace the activations before torch\.jit\.script"):
        replace_activations(torch.jit.script(nn.ReLU()))


def test_a_compiled_model_follows():
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager")
    x = torch.randn(3, 4)
    before = compiled(x)
    assert dict(replace_activations(compiled).swapped) == {"_orig_mod.1": "GELU"}
    torch.testing.assert_close(compiled(x), before)


def test_a_symbolically_traced_model():
    net = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    x = torch.randn(3, 4)
    before = net(x)
    assert dict(replace_activations(net).swapped) == {"1": "GELU"}
    torch.testing.assert_close(net(x), before)


def test_the_example_runs():
    (example,) = doctest.DocTestFinder(recurse=False).find(replace_activations, globs={})
    runner = doctest.DocTestRunner()
    assert runner.run(example).failed == 0
    assert runner.tries > 0
