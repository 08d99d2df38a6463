"""`gradmark.nn.init.initialize_`: recipes, names, and what it refuses. Sharded models: test_nn_sharded.py."""

import doctest
import functools

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import Linear

import gradmark
from gradmark.nn import init

SEED = 20260104
RECIPE = {"*.bias": "zeros", "*.weight": "he_normal"}


def model(layers=2):
    return torch.nn.Sequential(*(Linear(5, 5) for _ in range(layers)), torch.nn.ReLU())


def weights(name, shape=(5, 5), row_name="he_normal", **parameters):
    return getattr(gradmark.backend("torch"), row_name)(shape, seed=SEED, stream=name, **parameters)


def test_the_example_in_the_docstring_runs():
    (example,) = doctest.DocTestFinder().find(init.initialize_, "initialize_", globs={}, module=False)
    assert doctest.DocTestRunner().run(example) == (0, 4)


def test_every_parameter_has_a_stream_of_its_name():
    net = model()
    filled = init.initialize_(net, RECIPE, SEED)
    assert filled == {
        "0.weight": "he_normal_()",
        "0.bias": "zeros_()",
        "1.weight": "he_normal_()",
        "1.bias": "zeros_()",
    }
    for index in (0, 1):
        assert torch.equal(net[index].weight, weights(f"{index}.weight"))
        assert torch.equal(net[index].bias, torch.zeros(5))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_layer_more_changes_no_other():
    small, large = model(2), model(4)
    init.initialize_(small, RECIPE, SEED)
    init.initialize_(large, RECIPE, SEED)
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, large.get_parameter(name))


def mark(tensor, *, seed, stream):
    with torch.no_grad():
        tensor.fill_(len(stream))


RULES = {
    "a name": ("xavier_normal", weights("0.weight", row_name="xavier_normal"), "xavier_normal_()"),
    "a name with its underscore": ("he_normal_", weights("0.weight"), "he_normal_()"),
    "a function of torch.nn.init's name": (
        "kaiming_normal",
        weights("0.weight", gain=torch.nn.init.calculate_gain("leaky_relu", 0)),
        "kaiming_normal_()",
    ),
    "a pair": (("normal", {"std": 0.02}), weights("0.weight", row_name="normal", std=0.02), "normal_(std=0.02)"),
    "a function": (init.he_normal_, weights("0.weight"), "he_normal_()"),
    "a partial function": (
        functools.partial(init.normal_, std=0.5),
        weights("0.weight", row_name="normal", std=0.5),
        "normal_(std=0.5)",
    ),
    "a function of one's own": (mark, torch.full((5, 5), 8.0), "mark()"),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_rule_in_every_form(kind):
    rule, expected, described = RULES[kind]
    net = model(1)
    assert init.initialize_(net, {"*.weight": rule}, SEED, default="zeros")["0.weight"] == described
    assert torch.equal(net[0].weight, expected)
    of_callable = model(1)
    init.initialize_(of_callable, lambda name, parameter, module: rule if parameter.ndim == 2 else "zeros", SEED)
    assert torch.equal(of_callable[0].weight, expected)


def test_the_first_key_that_matches_counts():
    net = torch.nn.ModuleDict({"first": Linear(4, 3), "second": torch.nn.Conv1d(2, 2, 3), "third": Linear(4, 4)})
    constants = {n: ("constant", {"val": float(n)}) for n in range(1, 5)}
    recipe = {
        "first.weight": constants[1],
        Linear: {"w*": constants[2], "bias": constants[3]},
        "*": constants[4],
    }
    init.initialize_(net, recipe, SEED)
    found = {name: parameter.unique().item() for name, parameter in net.named_parameters()}
    assert found == {
        "first.weight": 1.0,
        "first.bias": 3.0,
        "second.weight": 4.0,
        "second.bias": 4.0,
        "third.weight": 2.0,
        "third.bias": 3.0,
    }


def test_a_class_stands_for_its_subclasses():
    class Own(Linear):
        pass

    net = torch.nn.Sequential(Own(3, 3))
    filled = init.initialize_(net, {Linear: {"weight": "eye", "bias": "zeros"}}, SEED)
    assert filled == {"0.weight": "eye_()", "0.bias": "zeros_()"}


def test_a_callable_is_given_name_parameter_and_module():
    net = model(1)
    seen = []
    init.initialize_(net, lambda *given: seen.append(given), SEED, default="zeros")
    assert [(name, parameter is net.get_parameter(name), module is net[0]) for name, parameter, module in seen] == [
        ("0.weight", True, True),
        ("0.bias", True, True),
    ]
    assert all((parameter == 0).all() for parameter in net.parameters())


def test_the_default_is_for_what_nothing_matches():
    net = model(2)
    init.initialize_(net, {"0.weight": "he_normal"}, SEED, default=("constant", {"val": 2.0}))
    assert torch.equal(net[0].weight, weights("0.weight"))
    assert (net[1].weight == 2).all()


def test_a_tied_parameter_is_filled_once_by_its_first_name():
    net = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(6, 4), "head": Linear(4, 6, bias=False)})
    net["head"].weight = net["embedding"].weight
    assert init.initialize_(net, {"*": "normal"}, SEED) == {"embedding.weight": "normal_()"}
    assert torch.equal(net["head"].weight, weights("embedding.weight", (6, 4), "normal"))


def test_buffers_are_not_touched():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    net[0].running_mean.fill_(7.0)
    init.initialize_(net, {"*": "zeros"}, SEED)
    assert (net[0].running_mean == 7).all()


def in_a_process_group(net, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", world_size=1, rank=0)
    return torch.nn.parallel.DistributedDataParallel(net)


WRAPPERS = {
    "compiled": lambda net, path: torch.compile(net, backend="eager"),
    "a compiled layer": lambda net, path: torch.nn.Sequential(torch.compile(net[0], backend="eager"), *net[1:]),
    "a checkpointed layer": lambda net, path: torch.nn.Sequential(checkpoint_wrapper(net[0]), *net[1:]),
    "distributed data parallel": in_a_process_group,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_change_neither_names_nor_weights(wrapper, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    plain, wrapped = model(), model()
    try:
        filled = init.initialize_(WRAPPERS[wrapper](wrapped, tmp_path), RECIPE, SEED)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert filled == init.initialize_(plain, RECIPE, SEED)
    for ours, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_of_the_meta_device_needs_memory_first():
    with torch.device("meta"):
        net = model(1)
    with pytest.raises(ValueError, match=r"no memory to fill: 0\.weight, 0\.bias\. Call module\.to_empty"):
        init.initialize_(net, RECIPE, SEED)
    init.initialize_(net.to_empty(device="cpu"), RECIPE, SEED)
    assert torch.equal(net[0].weight, weights("0.weight"))


def test_a_bias_that_is_left_out_is_no_misspelling():
    net = torch.nn.Sequential(Linear(3, 3, bias=False))
    recipe = {Linear: {"weight": "he_normal", "bias": "zeros"}}
    assert init.initialize_(net, recipe, SEED) == {"0.weight": "he_normal_()"}


def test_a_stage_of_a_pipeline_has_its_part_of_the_recipe():
    net = torch.nn.ModuleDict({"1": Linear(5, 5)})
    recipe = {"embedding.weight": "normal", **RECIPE}
    with pytest.raises(ValueError, match=r"'embedding\.weight'; the parameters are 1\.weight, 1\.bias\."):
        init.initialize_(net, recipe, SEED)
    init.initialize_(net, recipe, SEED, allow_unused=True)
    assert torch.equal(net["1"].weight, weights("1.weight"))


# (module, recipe, more keywords, the error, a part of its message)
BAD_CALLS = {
    "no rule": (model, {"*.bias": "zeros"}, {}, ValueError, r"nothing in the recipe matches 0\.weight, 1\.weight"),
    "no rule of a callable": (model, lambda *_: None, {}, ValueError, r"matches 0\.weight, 0\.bias, 1\.weight"),
    "a misspelt pattern": (
        model,
        {"*.wieght": "normal", "*": "zeros"},
        {},
        ValueError,
        r"no param.*: '\*\.wieght'",
    ),
    "a pattern behind another": (
        model,
        {"*": "zeros", "0.bias": "zeros"},
        {},
        ValueError,
        r"an earlier k.*'0\.bias'",
    ),
    "a misspelt parameter": (
        model,
        {Linear: {"wieght": "normal"}, "*": "zeros"},
        {},
        ValueError,
        "Linear: 'wieght'",
    ),
    "a class that is not there": (
        model,
        {torch.nn.Conv2d: {"weight": "normal"}, "*": "zeros"},
        {},
        ValueError,
        "Conv2d: 'weight'",
    ),
    "an unknown initializer": (model, {"*": "he_norml"}, {}, ValueError, r"'he_norml' for '\*'; known: .*he_normal"),
    "initialize_ as an initializer": (model, {"*": "initialize"}, {}, ValueError, "unknown initializer 'initialize'"),
    "an unknown default": (model, {"0.bias": "zeros"}, {"default": "zero"}, ValueError, "unknown initializer 'zero'"),
    "an unknown argument": (model, {"*": ("normal", {"sigma": 1})}, {}, TypeError, "normal_.sigma=1.*sigma"),
    "an argument that lacks": (model, {"*": "constant"}, {}, TypeError, "constant_.*val"),
    "a function of torch": (
        model,
        {"*": torch.nn.init.normal_},
        {},
        TypeError,
        "normal_.*Those of gradmark.nn",
    ),
    "a rule that is a number": (model, {"*": 0}, {}, TypeError, r"the rule for '\*' must be the name .* got 0"),
    "a pair of other things": (model, {"*": ("normal", 2.0)}, {}, TypeError, "must be the name"),
    "a rule of a callable": (model, lambda *_: 1.0, {}, TypeError, "for the parameter '0.weight' must be"),
    "a class without a mapping": (model, {Linear: "normal"}, {}, TypeError, "the value of Linear must be a mapping"),
    "a key that is none": (model, {0: "normal"}, {}, TypeError, "text or a class of torch.nn.Module, got 0"),
    "a recipe that is none": (model, "normal", {}, TypeError, "a mapping or a callable, got 'normal'"),
    "a seed that is none": (model, {"*": "zeros"}, {"seed": 0.5}, TypeError, "seed must be an int"),
    "no module": (lambda: "model", {"*": "zeros"}, {}, TypeError, "module must be a torch.nn.Module, got 'model'"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_recipes_are_told_what_is_accepted_and_nothing_is_written(case):
    make, recipe, keywords, error, message = BAD_CALLS[case]
    net = make()
    before = [p.detach().clone() for p in net.parameters()] if isinstance(net, torch.nn.Module) else []
    with pytest.raises(error, match=message):
        init.initialize_(net, recipe, **{"seed": SEED, **keywords})
    assert all(map(torch.equal, before, net.parameters() if before else []))


def test_what_an_initializer_refuses_is_said_with_the_name():
    with pytest.raises(ValueError, match="at least 2 dimensions") as refused:
        init.initialize_(model(1), {"*": "he_normal"}, SEED)
    assert refused.value.__notes__ == ["while initializing '0.bias'"]


def test_flattened_parameters_are_refused():
    net = model(1)
    net[0].weight._is_flat_param = True
    with pytest.raises(ValueError, match=r"FSDP1 has flattened parameters into 0\.weight; .*fully_shard"):
        init.initialize_(net, RECIPE, SEED)
