"""`python -m benchmarks.training`, on the digits and on made-up ones; and what it says where it cannot run."""

import json
import math
import re
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

from benchmarks import training  # noqa: E402

SMALL = ["--depth", "2", "--width", "16", "--epochs", "2", "--budget", "0.5s"]


@pytest.fixture
def made_up(monkeypatch):
    """Digits of another kind, so that scikit-learn is not needed."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (300,), generator=generator)
    images = torch.rand(300, 64, generator=generator, dtype=torch.float64) / 4
    images[torch.arange(300), labels] += 2
    monkeypatch.setattr(training, "_digits", lambda: (images, labels))


@pytest.mark.parametrize("name", ["GELU", "ReLU", "PReLU", "Softplus", "Hardsigmoid"])
def test_curves_are_equal(made_up, tmp_path, capsys, name):
    file = tmp_path / "found.json"
    assert training.main([*SMALL, "--activation", name, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert record["equal"] is True
    assert record["model"]["activation"] == name
    assert set(record["loss"]) == {"float64", "float32"}
    for dtype, curves in record["loss"].items():
        assert len(curves["gradmark.nn"]) == len(curves["torch.nn"]) == 2 * 5
        # Were the weights to stay, the loss would have one value for each of the five batches.
        assert len(set(curves["torch.nn"])) == 10
        assert record["difference"][dtype] <= record["bound"][dtype]
    assert record["bound"] == training.BOUNDS or name in training.INEXACT
    assert record["schema"] >= 1
    assert set(record["seconds"]) == {"torch.nn", "gradmark.nn"}
    shown = capsys.readouterr()
    assert shown.out.count(": equal") == 2
    assert "timing a step" in shown.err


def test_another_gradient_is_seen(made_up, monkeypatch, capsys):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * (1 + 1e-6)

    real = training.Task.model

    def model(self, who, dtype):
        network = real(self, who, dtype)
        if who == training.OURS:
            network[1].register_forward_hook(lambda module, given, result: Wrong.apply(result))
        return network

    monkeypatch.setattr(training.Task, "model", model)
    assert training.main(SMALL) == 1
    assert "loss in float64" in (shown := capsys.readouterr().out)
    assert "NOT EQUAL" in shown


def test_a_loss_that_is_not_finite_is_not_equal():
    assert training._difference([1.0, math.nan], [1.0, math.nan]) == math.inf
    assert training._difference([2.0, 1.0], [2.0, 1.5]) == 0.25


def test_json_on_stdout_is_all_that_is_there(made_up, capsys):
    assert training.main([*SMALL, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "training"


def test_the_same_weights_and_batches(made_up):
    options = training._parser().parse_args(SMALL)
    task = training._task(options)
    ours, theirs = (task.model(who, torch.float64) for who in (training.OURS, training.THEIRS))
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert [type(module).__module__ for module in (ours[1], theirs[1])] == [
        "gradmark.nn",
        "torch.nn.modules.activation",
    ]
    assert all(map(torch.equal, task.batches(1), task.batches(1)))
    assert not torch.equal(task.batches(0)[0], task.batches(1)[0])


def test_every_activation_that_is_offered_can_be_trained(made_up):
    names = training._activations()
    assert {"GELU", "PReLU", "ReLU", "SiLU", "Tanh"} <= set(names)
    for name in names:
        task = training._task(training._parser().parse_args([*SMALL, "--activation", name, "--epochs", "1"]))
        assert math.isfinite(training._curve(task, training.OURS, torch.float32, lambda: None)[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--activation", "Gelu"], "unknown activation 'Gelu'; accepted: .*GELU"),
        (["--depth", "0"], "--depth must be 1 or more, got 0"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--json", "/nowhere/found.json"], "the folder /nowhere does not exist"),
    ],
)
def test_wrong_calls(made_up, capsys, arguments, message):
    assert training.main([*SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_without_scikit_learn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert training.main(SMALL) == 2
    assert "pip install 'gradmark[peers]'" in capsys.readouterr().err


def test_interrupted(made_up, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_curve", interrupted)
    assert training.main(SMALL) == 130


def test_the_digits(capsys):
    pytest.importorskip("sklearn", reason="scikit-learn, which the digits come with, is not installed")
    assert training.main(SMALL) == 0
    assert capsys.readouterr().out.count(": equal") == 2
