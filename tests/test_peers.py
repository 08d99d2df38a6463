"""What gradmark is compared with: equal work, the same values, the bars, the figures, the command."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import _freed_memory, readme_tables
from benchmarks.peers import (
    arguments,
    bars,
    cases,
    contenders,
    expressions,
    figures,
    initializing,
    report,
    timing,
    torch_peers,
)

from gradmark import catalog
from gradmark.catalog import ACTIVATIONS, BACKWARD, FORWARD, PASSES
from gradmark.tracking import measure
from gradmark.verification import sweep, wide

ROOT = Path(__file__).resolve().parent.parent

ROWS = pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)


def need(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'gradmark[peers]'")


# --- cases ------------------------------------------------------------------------------------------------------------


def test_the_plan_has_every_pass_of_every_operation_at_every_size():
    planned = cases.plan(cases.operations(), cases.GROUPS, PASSES, cases.EXPONENTS, "float32")
    keys = {(c.operation, c.operation_pass, c.size) for c in planned}
    for row in ACTIVATIONS:
        assert {(row.name, p, f"2^{k}") for p in PASSES for k in range(8, 27, 2)} <= keys
    for row in (*catalog.GATED, *catalog.ROWWISE):
        assert {(row.name, p, f"2^{k}") for p in PASSES for k in cases.GROUP_EXPONENTS} <= keys
    assert ("clip_grad_norm", FORWARD, "2000 x 256") in keys
    assert {c.variant for c in planned if c.operation == "residual_add"} == {"relu", "gelu"}
    assert {(c.operation, c.variant, c.size) for c in planned if c.group == cases.INITIALIZERS} == {
        *itertools.product(cases.FILLS, ("in place", ""), ("2^22",)),
        *((name, "in place", "2^24") for name in cases.FILLS),
        *(("orthogonal", "", size) for size in ("1024x1024", "4096x1024", "1024x4096", "4096x4096")),
    }
    assert {c.operation_pass for c in planned if c.group == cases.INITIALIZERS} == {FORWARD}
    assert len(set(planned)) == len(planned)


def test_what_takes_longest_comes_last():
    planned = cases.plan(cases.operations(), cases.GROUPS, PASSES, cases.EXPONENTS, "float32")
    assert {c.group for c in planned[-13:]} == {cases.INITIALIZERS}
    assert [c.size for c in planned[-4:]] == ["1024x1024", "4096x1024", "1024x4096", "4096x4096"]


def test_the_inputs_are_the_same_for_everybody():
    (case,) = cases.plan(["gelu"], cases.GROUPS, [BACKWARD], [8], "float64")
    one, two = cases.Data(case), cases.Data(case)
    assert np.array_equal(one.x, two.x)
    assert one.x.dtype == np.float64
    assert one.bytes_moved == 3 * 8 * 256
    assert not one.beyond_cache
    assert not np.array_equal(one.x, one.grad)


# --- contenders -------------------------------------------------------------------------------------------------------


def uncompiled():
    """JAX operation by operation: what it computes is the same."""
    if importlib.util.find_spec("jax") is None:
        return contextlib.nullcontext()
    import jax

    return jax.disable_jit()


def ready(case):
    """The calls of a case but torch.compile's, which would take seconds each."""
    data = cases.Data(case)
    found = contenders.makers(data)
    found.pop(contenders.COMPILED)
    with pytest.MonkeyPatch.context() as patch, uncompiled():
        patch.setattr(timing, "makers", lambda data: found)
        calls, absent = timing._made(data, contenders.missing_libraries())
    return calls, absent


SMALL = [
    case
    for case in cases.plan(cases.operations(), cases.GROUPS, PASSES, [8], "float32")
    if case.size in ("2^8", "2^16", "2000 x 256")
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_contender_that_has_a_case_gives_the_same_values(case):
    need("torch")
    need("numba")
    calls, absent = ready(case)
    for name, reason in absent.items():
        assert "failed" not in reason, f"{name}: {reason}"
        assert reason != "gives other values", name
    assert {contenders.NUMPY, contenders.NUMBA, contenders.TORCH, contenders.EAGER} <= set(calls)
    if case.group == cases.ELEMENTWISE and not case.variant:
        assert contenders.NAIVE in calls


def test_a_contender_with_other_values_is_not_timed(monkeypatch):
    (case,) = cases.plan(["relu"], cases.GROUPS, [FORWARD], [8], "float32")
    wrong = {contenders.NUMPY: lambda d: lambda: d.x, contenders.EAGER: lambda d: lambda: 2 * d.x}
    monkeypatch.setattr(timing, "makers", lambda data: wrong)
    calls, absent = timing._made(cases.Data(case), {})
    assert list(calls) == [contenders.NUMPY]
    assert absent == {contenders.EAGER: "gives other values"}


def test_a_contender_that_fails_costs_nobody_else_and_is_said(monkeypatch):
    (case,) = cases.plan(["relu"], cases.GROUPS, [FORWARD], [8], "float32")

    def broken(data):
        raise RuntimeError("no compiler\nat all")

    makers = {contenders.NUMPY: lambda d: lambda: d.x, contenders.COMPILED: broken, contenders.JAX: broken}
    monkeypatch.setattr(timing, "makers", lambda data: makers)
    calls, absent = timing._made(cases.Data(case), {contenders.JAX: "jax is not installed"})
    assert list(calls) == [contenders.NUMPY]
    assert absent[contenders.COMPILED] == "failed with RuntimeError: no compiler"
    assert absent[contenders.JAX] == "jax is not installed"


def test_missing_libraries_are_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert set(contenders.missing_libraries()) >= {contenders.JAX, contenders.NUMEXPR, contenders.EAGER}
    assert "gradmark[peers]" in contenders.missing_libraries()[contenders.JAX]


@ROWS
def test_torch_eager_backward_is_what_autograd_gives(row):
    need("torch")
    import torch

    case, *_ = cases.plan([row.name], cases.GROUPS, [BACKWARD], [8], "float64")
    data = cases.Data(case)
    found = torch_peers.eager(data)()
    x = torch.from_numpy(data.x.copy()).requires_grad_()
    parameters = [torch.full((1,), p.usual, dtype=x.dtype) if p.learnable else p.usual for p in row.parameters]
    (expected,) = torch.autograd.grad(torch_peers.expression(row)(x, *parameters), x, torch.from_numpy(data.grad))
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, expected)


@ROWS
@pytest.mark.parametrize("which", PASSES)
def test_numexpr_expressions_are_the_catalogs_formulas(row, which):
    formula = row.formula if which == FORWARD else row.derivative
    if "erfc" in formula:
        with pytest.raises(expressions.NotExpressibleError, match="no erfc"):
            expressions.numexpr(formula, "float32")
        return
    text, constants = expressions.numexpr(formula, "float64")
    assert not re.search(r"\d\.\d|\bif\b|\bor\b", text), text
    names = {name: getattr(np, name) for name in (*expressions._FUNCTIONS, "where")}
    x = np.linspace(-5, 5, 101)
    parameters = [p.usual for p in row.parameters]
    given = dict(zip([p.name for p in row.parameters], parameters, strict=True))
    value = eval(text, {"__builtins__": {}}, {**names, **given, **constants, "x": x})
    expected = wide.evaluate(row, which, x, sweep.rounded(parameters, "float64"))
    np.testing.assert_allclose(np.broadcast_to(value, x.shape), expected.astype(float), rtol=1e-12, atol=1e-12)


def test_the_yardsticks_move_what_they_say():
    need("numba")
    from benchmarks.peers import yardsticks

    copy, triad = yardsticks.kernels()
    a, b, out = np.arange(1001.0), np.ones(1001), np.zeros(1001)
    copy(a, out)
    assert np.array_equal(out, a)
    triad(a, b, out)
    assert np.array_equal(out, a + 3)
    if "x86" in platform.machine():
        # One that gathered its elements by index was three times slower than the memory: every kernel passed beside it.
        (assembly,) = triad.inspect_asm().values()
        assert re.search(r"\bv(?:fmadd\w+|mul)pd\s.*%[yz]mm", assembly)
        assert not re.search(r"\bv(?:gather|scatter)", assembly)


def test_clip_grad_norm_works_in_place_everywhere():
    (case,) = [c for c in SMALL if c.operation == "clip_grad_norm"]
    positional, keywords = arguments.arguments(cases.Data(case))
    assert keywords["out"] is positional[0]


# --- initializers -----------------------------------------------------------------------------------------------------


def initializer(operation, size, variant="", dtype="float32"):
    return cases.Case(
        group=cases.INITIALIZERS,
        operation=operation,
        operation_pass=FORWARD,
        size=size,
        dtype=dtype,
        variant=variant,
    )


FILLS = [initializer(*one) for one in itertools.product(cases.FILLS, ("2^16",), ("in place", ""))]
FILLS += [initializer("normal", "2^12", variant, "float64") for variant in ("in place", "")]
MATRICES = [initializer("orthogonal", size) for size in ("96x96", "160x80", "80x160")]


@contextlib.contextmanager
def single_precision_of_jax():
    """JAX's precision is the process's: what float64 has set does not reach the next test."""
    if importlib.util.find_spec("jax") is None:
        yield
        return
    import jax

    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("case", [*FILLS, *MATRICES], ids=str)
def test_everybody_draws_from_one_distribution(case):
    need("torch")
    need("numba")
    data = cases.Data(case)
    with single_precision_of_jax():
        calls, absent = timing._made(data, contenders.missing_libraries())
        results = {name: call() for name, call in calls.items()}
    expected = {contenders.NUMPY, contenders.NUMBA, contenders.TORCH, contenders.EAGER}
    expected |= {contenders.NAIVE} if case.operation != "trunc_normal" else set()
    if not case.variant:
        found = {contenders.JAX: "jax", contenders.KERAS: "keras"}
        expected |= {name for name, module in found.items() if importlib.util.find_spec(module)}
    assert set(calls) == expected, absent
    for name, result in results.items():
        assert initializing.same_distribution(data, result), name


@pytest.mark.parametrize("case", [c for c in FILLS if c.variant], ids=str)
def test_in_place_is_into_the_same_array_and_drawn_again(case):
    need("torch")
    need("numba")
    calls, _ = timing._made(cases.Data(case), {})
    for name, call in calls.items():
        first, second = call(), call()
        assert np.may_share_memory(np.asarray(first), np.asarray(second)), name
        np.asarray(second)[:] = 7.0
        assert not (np.asarray(call()) == 7.0).any(), name


@pytest.mark.parametrize("case", [c for c in (*FILLS, *MATRICES) if not c.variant], ids=str)
def test_otherwise_every_call_makes_a_new_array(case):
    need("torch")
    need("numba")
    with single_precision_of_jax():
        calls, _ = timing._made(cases.Data(case), contenders.missing_libraries())
        for name, call in calls.items():
            first, second = call(), call()
            assert not np.may_share_memory(np.asarray(first), np.asarray(second)), name


def scaled(data):
    return 1.03 * np.random.default_rng(0).standard_normal(data.shape, dtype=np.float32)


OTHERS = {
    "a wider normal": ("normal", scaled),
    "a shifted one": ("normal", lambda d: np.random.default_rng(0).standard_normal(d.shape, dtype=np.float32) + 0.03),
    "another dtype": ("normal", lambda d: np.random.default_rng(0).standard_normal(d.shape)),
    "a shorter one": ("normal", lambda d: np.random.default_rng(0).standard_normal(100, dtype=np.float32)),
    "a constant": ("normal", lambda d: np.zeros(d.shape, np.float32)),
    "not a number": ("normal", lambda d: np.full(d.shape, np.nan, np.float32)),
    "beyond the bounds": ("uniform", lambda d: np.random.default_rng(0).random(d.shape, dtype=np.float32) * 2.02 - 1),
    "not truncated": ("trunc_normal", lambda d: 0.8796 * np.random.default_rng(0).standard_normal(d.shape, np.float32)),
    "cut off": (
        "trunc_normal",
        lambda d: np.random.default_rng(0).standard_normal(d.shape, dtype=np.float32).clip(-2, 2),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_distribution_is_not_timed(name, monkeypatch):
    operation, make = OTHERS[name]
    data = cases.Data(initializer(operation, "2^16"))
    wrong = make(data)
    right = functools.partial(initializing.ours, "numpy")
    monkeypatch.setattr(
        timing, "makers", lambda data: {contenders.NUMPY: right, contenders.EAGER: lambda d: lambda: wrong}
    )
    calls, absent = timing._made(data, {})
    assert list(calls) == [contenders.NUMPY]
    assert absent == {contenders.EAGER: "gives other values"}


@pytest.mark.parametrize("size", ["96x96", "160x80", "80x160"])
def test_a_matrix_that_is_not_orthogonal_is_found(size):
    data = cases.Data(initializer("orthogonal", size))
    q = initializing.in_numpy(data)()
    assert initializing.same_distribution(data, q)
    long = max(q.shape)
    gaussian = np.random.default_rng(0).standard_normal(q.shape, dtype=np.float32) / np.float32(long**0.5)
    assert not initializing.same_distribution(data, gaussian)
    assert not initializing.same_distribution(data, q * np.float32(1.0001))


def test_the_moments_are_those_of_the_distributions():
    from scipy import stats

    distributions = {"uniform": stats.uniform(-1, 2), "normal": stats.norm(), "trunc_normal": stats.truncnorm(-2, 2)}
    for name, distribution in distributions.items():
        _, std, kurtosis = initializing._MOMENTS[name]
        mean, variance, excess = map(float, distribution.stats("mvk"))
        assert (mean, variance, excess + 3.0) == pytest.approx((0.0, std**2, kurtosis))


def filled(operation, variant="in place", **ratios):
    """An entry of an initializer, with the ratios to our time."""
    names = {"torch": contenders.EAGER, "numpy": contenders.NAIVE, "keras": contenders.KERAS}
    return entry(exponent=22) | {
        **{"operation": operation, "variant": variant, "group": cases.INITIALIZERS},
        "over_numba": {names[name]: ratio(value) for name, value in ratios.items() if name in names},
        "naive_over_numpy": ratio(ratios.get("backend")),
    }


def test_the_bars_of_initializers():
    matrix = filled("orthogonal", "", torch=2.5, numpy=3.9) | {"size": "4096x4096", "elements": None}
    found = bars.summary(
        [
            filled("uniform", torch=4.5),
            filled("uniform", "", torch=1.0),
            filled("normal", torch=3.5, numpy=9.0, backend=0.4),
            filled("normal", "", torch=1.0, numpy=1.0, backend=9.0),
            filled("trunc_normal", torch=16.0),
            matrix,
        ]
    )
    met = {bar["bar"]: bars.holds(bar) for bar in found if bar["compared"]}
    assert met == {
        "uniform in place: 4 times as fast as torch's": True,
        "normal in place: 4 times as fast as torch's": False,
        "normal in place: 8 times as fast as NumPy's": True,
        "trunc_normal in place: 15 times as fast as torch's": True,
        "orthogonal: twice as fast as torch's": True,
        "orthogonal: 4 times as fast as numpy.linalg.qr": False,
        "normal in place: gradmark numpy half as fast as NumPy's Generator": False,
    }
    assert {bar["compared"] for bar in found if bar["bar"] in met} == {1}


def test_initializers_have_a_table_of_their_own():
    record = {"missing": {}, "entries": [entry(eager=1.5), filled("normal", torch=5.0, keras=7.0)]}
    rows = list(readme_tables._initializers(record))
    assert rows[1] == "| initializer | size | dtype | torch eager | Keras |"
    assert rows[3] == "| normal in place | 2^22 | float32 | 5 (4.9–5.1) | 7 (6.9–7.1) |"
    assert not any("normal" in line for line in readme_tables._against_the_fastest(record))
    assert list(readme_tables._initializers({"missing": {}, "entries": [entry(eager=1.5)]})) == []
    assert readme_tables._took_part(record) == [contenders.EAGER, contenders.KERAS]


def test_the_group_of_initializers_is_timed(tmp_path, monkeypatch):
    need("torch")
    need("numba")
    from benchmarks.peers import __main__ as command

    monkeypatch.setattr(contenders, "give_threads", lambda: {"cores": 2})
    monkeypatch.setattr(_freed_memory, "keep_freed_memory", lambda: "as the system has it")
    monkeypatch.setattr(timing, "call_seconds", lambda: None)
    monkeypatch.setattr(cases, "FILL_EXPONENTS", (10,))
    monkeypatch.setattr(cases, "MATRICES", ("32x32",))
    monkeypatch.setattr(contenders, "missing_libraries", lambda: {contenders.JAX: "no", contenders.KERAS: "no"})
    file = tmp_path / "peers.json"
    code = command.main(["--groups", "initializers", "--budget", "60s", "--json", str(file)])
    assert code in (command.DONE, command.FAILED)
    entries = json.loads(file.read_text())["entries"]
    keys = {(e["operation"], e["variant"], e["pass"], e["size"]) for e in entries}
    fills = {(name, variant, FORWARD, "2^10") for name in cases.FILLS for variant in ("in place", "")}
    assert keys == {*fills, ("orthogonal", "", FORWARD, "32x32")}
    for one in entries:
        assert {contenders.NUMPY, contenders.TORCH, contenders.EAGER} <= set(one["over_numba"])
        assert one["bytes_moved"] == 4 * 1024


# --- timing and bars --------------------------------------------------------------------------------------------------


def test_ratios_are_those_within_the_rounds(monkeypatch):
    (case,) = cases.plan(["relu"], cases.GROUPS, [FORWARD], [8], "float32")
    seconds = {
        contenders.NUMBA: (1.0, 2.0) * 5,
        contenders.EAGER: (3.0, 6.0) * 5,
        contenders.NAIVE: (9.0, 8.0, 9.0),
        contenders.NUMPY: (2.0, 4.0) * 5,
    }
    monkeypatch.setattr(timing, "_made", lambda data, missing: ({}, {}))
    result = measure.Measurement(seconds, dict.fromkeys(seconds, 1), False)
    monkeypatch.setattr(measure, "measure", lambda *args, **kwargs: result)
    entry = timing.timed_case(case, {}, share=1, left=1, tick=lambda: None)
    assert entry["over_numba"][contenders.EAGER] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert entry["over_numba"][contenders.NAIVE] == {"median": 9.0, "low": None, "high": None}
    assert entry["naive_over_numpy"]["median"] == 4.5
    assert entry["yardstick_over_numba"] is None
    json.dumps(entry, allow_nan=False)


def entry(operation="gelu", which=FORWARD, exponent=16, **ratios):
    group = cases._group(catalog.operation(operation))
    of = {name: ratio(value) for name, value in ratios.items() if name not in ("naive", "yardstick")}
    names = {"eager": contenders.EAGER, "jax": contenders.JAX, "numpy": contenders.NUMPY}
    return {
        "operation": operation,
        "variant": "",
        "pass": which,
        "size": f"2^{exponent}",
        "dtype": "float32",
        "group": group,
        "elements": 2**exponent,
        "bytes_moved": 8 * 2**exponent,
        "beyond_cache": exponent >= 24,
        "absent": {},
        "seconds": {contenders.NUMBA: {"median": 1e-6, "low": 1e-6, "high": 1e-6, "rounds": 9}}
        | {
            names[n]: {"median": 1e-6 * v, "low": None, "high": None, "rounds": 3} for n, v in ratios.items() if n in of
        },
        "over_numba": {names[name]: value for name, value in of.items()},
        "naive_over_numpy": ratio(ratios.get("naive")),
        "yardstick_over_numba": ratio(ratios.get("yardstick")),
    }


def ratio(median):
    return None if median is None else {"median": median, "low": median - 0.1, "high": median + 0.1}


def by_name(summary, start):
    (found,) = [bar for bar in summary if bar["bar"].startswith(start)]
    return found


def test_a_cell_where_a_peer_wins_is_a_loss():
    found = bars.summary([entry(eager=1.5, jax=0.7), entry("tanh", eager=2.0), entry("relu", eager=0.99)])
    fastest = by_name(found, "numba, from 2^12 elements: as fast")
    assert (fastest["compared"], fastest["held"], fastest["worst"]) == (3, 2, 0.7)
    (loss,) = fastest["losses"]
    assert (loss["operation"], loss["against"], loss["ratio"]) == ("gelu", contenders.JAX, 0.7)
    assert bars.holds(fastest) is False
    mean = by_name(found, "numba, from 2^12 elements: 1.5 times")
    assert mean["geometric_mean"] == pytest.approx((1.5 * 2.0 * 0.99) ** (1 / 3))
    assert bars.holds(mean) is False


def test_the_table_says_where_torch_starts_from_its_result():
    (case,) = [c for c in SMALL if str(c).startswith("sigmoid backward")]
    assert torch_peers.starts_from_result(case)
    assert not any(torch_peers.starts_from_result(c) for c in SMALL if not c.backward or c.operation == "gelu")
    assert all(torch_peers.starts_from_result(c) for c in SMALL if c.backward and "residual_add" in str(c))
    assert all(torch_peers.starts_from_result(c) for c in SMALL if c.backward and "gumbel_softmax" in str(c))
    loss = entry("sigmoid", which=BACKWARD, eager=0.5)
    assert readme_tables._fastest(loss) == "**0.50 torch eager**"
    assert readme_tables._fastest({**loss, "eager_from_result": True}) == "**0.50 torch eager †**"
    assert readme_tables._fastest({**entry(eager=2.0, jax=0.7), "eager_from_result": True}) == "**0.70 JAX**"


def test_who_gives_the_input_back_has_not_done_the_work(monkeypatch):
    (case,) = [c for c in SMALL if str(c).startswith("identity backward")]
    lazy = {contenders.EAGER: lambda data: lambda: torch_peers._tensor(data.grad)}
    monkeypatch.setattr(timing, "makers", lambda data: {contenders.NUMPY: lambda data: data.grad.copy, **lazy})
    calls, absent = timing._made(cases.Data(case), {})
    assert list(calls) == [contenders.NUMPY]
    assert absent == {contenders.EAGER: "gives its input back, and makes no array"}


def test_ours_are_no_peers():
    fastest = by_name(bars.summary([entry(eager=1.5, numpy=0.5)]), "numba, from 2^12 elements: as fast")
    assert fastest["worst"] == 1.5


def test_below_the_overhead_other_bars_hold():
    found = bars.summary([entry(exponent=8, eager=0.8), entry("tanh", exponent=10, eager=0.7)])
    assert by_name(found, "numba, from 2^12 elements: as fast")["compared"] == 0
    small = by_name(found, "numba, below 2^12")
    assert [loss["operation"] for loss in small["losses"]] == ["tanh"]
    assert bars.holds(by_name(found, "numba, from 2^12 elements: as fast")) is None


def test_bandwidth_numpy_and_learnable_bars():
    found = bars.summary(
        [
            entry("relu", exponent=24, yardstick=0.85),
            entry("gelu", exponent=24, which=BACKWARD, yardstick=0.95, naive=3.0),
            entry("leaky_relu", naive=1.0),
            entry("tanh", naive=1.5),
            entry("prelu", eager=1.9),
            entry("swiglu", eager=2.1),
        ]
    )
    bandwidth = by_name(found, "numba, beyond the cache")
    assert [(loss["operation"], loss["against"]) for loss in bandwidth["losses"]] == [("relu", "copy")]
    # leaky_relu has no transcendental function.
    numpy_bar = by_name(found, "numpy:")
    assert (numpy_bar["compared"], [loss["operation"] for loss in numpy_bar["losses"]]) == (2, ["tanh"])
    learnable = by_name(found, "learnable and gated")
    assert (learnable["compared"], [loss["operation"] for loss in learnable["losses"]]) == (2, ["prelu"])


def test_the_output_names_losses_absences_and_what_was_not_measured(capsys):
    lost = entry(eager=1.5, jax=0.7)
    lost["absent"] = {contenders.NUMEXPR: "NumExpr has no erfc"}
    report.show([lost], ["gelu backward, 2^16, float32"], "budget")
    out = " ".join(capsys.readouterr().out.split())
    assert "gelu forward 2^16 float32: numba 1 µs; torch eager 1.5 (1.4–1.6); JAX 0.7 (0.6–0.8)" in out
    assert "numexpr: NumExpr has no erfc (gelu forward)" in out
    assert "Not measured (budget): gelu backward, 2^16, float32." in out
    assert "gelu forward 2^16 float32: JAX takes 0.7 (0.6–0.8) times our time" in out
    assert "MISSED" in out


def test_the_readme_shows_every_cell_and_every_loss(tmp_path):
    entries = [entry(eager=1.5, jax=0.7), entry(which=BACKWARD, exponent=24, eager=2.0, yardstick=0.5)]
    for one in entries:
        one["measured"] = {"commit": "0123456789abcdef", "uncommitted": False}
    record = {
        **{"schema": 1, "kind": "peers", "command": "python -m benchmarks.peers", "created": "2026-01-01"},
        **{"commit": None, "uncommitted": None, "versions": {"python": "3.11"}},
        "machine": {"cpu": "a CPU", "cores": 2, "system": "Linux"},
        **{"threads": {"cores": 2}, "libraries": {"jax": "1"}, "call_seconds": 1e-6},
        "missing": {contenders.NUMEXPR: "numexpr is not installed"},
        **{"summary": bars.summary(entries), "entries": entries},
    }
    (tmp_path / "peers.json").write_text(json.dumps(record))
    text = readme_tables.tables(tmp_path)
    assert "| gelu | forward | float32 | **0.70 JAX** |  |" in text
    assert "| gelu | backward | float32 |  | 2.00 torch eager |" in text
    assert "gelu backward 2^24 float32: triad 0.5 (0.4–0.6)" in text
    assert "numexpr: not measured (numexpr is not installed)." in text
    assert "Measured at 0123456789." in text
    assert (readme_tables._PEERS, readme_tables._TIE) == (contenders.PEERS, bars.TIE)


FAULTS_OF_A_SECOND_RESULT = """
import resource, sys
from benchmarks import _freed_memory
if sys.argv[1] == "kept":
    assert _freed_memory.keep_freed_memory() == "glibc, which keeps freed memory"
import numpy as np
np.ones(2**24, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_results_are_made_of_memory_that_was_freed():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS_OF_A_SECOND_RESULT, how],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"},
            ).stdout
        )
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 200 < 10_000 < faults["given back"]


# --- figures ----------------------------------------------------------------------------------------------------------


def test_labels_are_kept_apart_and_moved_no_further_than_need_be():
    places = [0.1, 0.5, 0.5, 0.99, 1.0]
    moved = figures._apart(places)
    height = figures._LABEL_HEIGHT
    assert all(b - a >= height - 1e-9 for a, b in itertools.pairwise(moved))
    assert moved[0] == 0.1
    assert moved[1:3] == pytest.approx([0.5 - height / 2, 0.5 + height / 2])
    assert moved[-1] == pytest.approx(1.0)
    assert figures._apart([]) == []


def test_a_figure_an_operation(tmp_path):
    need("matplotlib")
    drawn = [
        entry(operation, which, k, eager=1.5, jax=2.0)
        for operation in ("gelu", "relu")
        for which in PASSES
        for k in (8, 16)
    ]
    drawn[1]["seconds"][contenders.YARDSTICK] = {"median": 1e-6}
    files = figures.draw(drawn, tmp_path)
    assert [file.name for file in files] == ["gelu.svg", "relu.svg"]
    text = files[0].read_text()
    assert text.startswith("<?xml")
    assert text.count("memory limit") >= 1
    before = files[0].read_bytes()
    figures.draw(drawn, tmp_path)
    assert files[0].read_bytes() == before


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.peers", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ops", "gelu2"), "unknown operation 'gelu2'"),
        (("--sizes", "40"), "unknown size '40'"),
        (("--groups", "fused"), "unknown group 'fused'"),
        (("--dtype", "float16"), "unknown dtype 'float16'"),
        (("--resume",), "--resume needs --json"),
    ],
)
def test_wrong_arguments_are_said(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_command_merges_its_results(tmp_path, monkeypatch):
    from benchmarks.peers import __main__ as command

    monkeypatch.setattr(contenders, "give_threads", lambda: {"cores": 2})
    monkeypatch.setattr(_freed_memory, "keep_freed_memory", lambda: "as the system has it")
    monkeypatch.setattr(timing, "call_seconds", lambda: 1e-6)
    timed = []

    def timed_case(case, missing, *, share, left, tick):
        timed.append(case)
        tick()
        return {**entry(case.operation, case.operation_pass, case.exponent, eager=2.0), "setup_seconds": 0.1}

    monkeypatch.setattr(timing, "timed_case", timed_case)
    file = tmp_path / "peers.json"
    first = ["--ops", "gelu", "--sizes", "12", "--budget", "60s", "--json", str(file)]
    assert command.main(first) == 0
    assert command.main([*first[:1], "gelu,relu", *first[2:], "--resume"]) == 0
    assert [(case.operation, case.operation_pass) for case in timed] == [
        ("gelu", FORWARD),
        ("gelu", BACKWARD),
        ("relu", FORWARD),
        ("relu", BACKWARD),
    ]
    record = json.loads(file.read_text())
    assert (record["schema"], record["kind"]) == (1, "peers")
    assert len(record["entries"]) == 4
    commands = {entry["operation"]: entry["measured"]["command"] for entry in record["entries"]}
    assert "gelu,relu" in commands["relu"]
    assert "gelu,relu" not in commands["gelu"]
    assert by_name(record["summary"], "numba, from 2^12 elements: as fast")["compared"] == 4


def test_what_the_budget_does_not_allow_is_said(monkeypatch, capsys):
    from benchmarks.peers import __main__ as command

    monkeypatch.setattr(contenders, "give_threads", lambda: {"cores": 2})
    monkeypatch.setattr(_freed_memory, "keep_freed_memory", lambda: "as the system has it")
    monkeypatch.setattr(timing, "call_seconds", lambda: None)
    monkeypatch.setattr(timing, "timed_case", lambda case, missing, **rest: None)
    assert command.main(["--ops", "relu", "--sizes", "12", "--budget", "10s"]) == 2
    printed = capsys.readouterr()
    assert "Not measured (budget): relu forward, 2^12, float32; relu backward, 2^12, float32." in " ".join(
        printed.out.split()
    )
    assert "nothing was measured" in printed.err


def test_interruption_keeps_what_was_finished(tmp_path, monkeypatch):
    from benchmarks.peers import __main__ as command

    monkeypatch.setattr(contenders, "give_threads", lambda: {"cores": 2})
    monkeypatch.setattr(_freed_memory, "keep_freed_memory", lambda: "as the system has it")
    monkeypatch.setattr(timing, "call_seconds", lambda: None)
    calls = iter([{**entry("relu", eager=2.0), "setup_seconds": 0.1}])

    def timed_case(case, missing, **rest):
        try:
            return next(calls)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(timing, "timed_case", timed_case)
    file = tmp_path / "peers.json"
    assert command.main(["--ops", "relu", "--sizes", "16", "--json", str(file)]) == 130
    assert len(json.loads(file.read_text())["entries"]) == 1


@pytest.mark.alone
def test_the_call_that_is_timed_for_its_overhead_alone():
    need("numba")
    assert 0 < timing.call_seconds() < 1e-3


def test_nothing_is_imported_before_it_is_used():
    # asv imports every module of the folder, whatever is installed in its environments.
    script = (
        "import sys, pkgutil, importlib, benchmarks.peers as p\n"
        "for m in pkgutil.iter_modules(p.__path__): importlib.import_module(f'benchmarks.peers.{m.name}')\n"
        "import benchmarks.accuracy\n"
        "print([m for m in ('torch', 'numba', 'jax', 'numexpr', 'matplotlib', 'gradmark') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_same_values_looks_at_the_first_array():
    (case,) = cases.plan(["relu"], cases.GROUPS, [FORWARD], [8], "float32")
    data = cases.Data(case)
    x = np.ones(10)
    assert contenders.same_values(data, (x, 3), x)
    assert not contenders.same_values(data, x * 1.01, x)
    assert not contenders.same_values(data, x[:5], x)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--groups", "gated"], "together"),
        (["--plot", "/dev/null/figures"], "matplotlib|can be written"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_measured(monkeypatch, capsys, more, message):
    from benchmarks.peers import __main__ as command

    monkeypatch.setattr(timing, "timed_case", lambda *args, **rest: pytest.fail("measured"))
    assert command.main(["--ops", "relu", "--sizes", "12", *more]) == 2
    assert re.search(message, capsys.readouterr().err)
