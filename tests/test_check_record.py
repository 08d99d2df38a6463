"""The JSON of a check: written so that it can be read, and read as if an enemy had written it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmark.tracking.check import results
from gradmark.tracking.check.record import KINDS, SIDES, from_record, record
from gradmark.tracking.check.results import (
    Comparison,
    ErrorRates,
    KernelChange,
    Report,
    Revision,
    Sentinel,
    Unavailable,
)

COMMIT = "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d"

SLOWER = Comparison(
    "suite.time_x", ("'a'", "3"), "serial", "slower", "seconds", 1.05, 1.04, 1.06, 0.03, 24, 1e-5, 1.05e-5
)
FAILED = Comparison("suite.time_y", (), "parallel", "failed", reason="ValueError: x", side="head")

REPORT = Report(
    project="project",
    base=Revision("main", COMMIT),
    head=Revision("feature", COMMIT[::-1], uncommitted=True),
    suite="head",
    threshold=0.03,
    confidence=0.99,
    comparisons=(SLOWER, FAILED),
    unavailable=(Unavailable("suite.time_z", ("1",), "no CUDA"),),
    only_in_base=("old.time_x",),
    kernel_changes=(KernelChange("f(float32[::1])", "suite.time_x", "lost", {"lanes": 16}, {"lanes": 1}),),
    sentinel=Sentinel((replace(SLOWER, verdict="same"),), biased=False),
    error_rates=ErrorRates(0.0, 0.003, 1000, 0.04),
    notes=("A note.",),
    environment="2 cores",
    seconds=72.5,
    rounds=24,
    provenance={"versions": {"numpy": "2.0", "numba": None}, "list": [1, 2.5, True, "x"]},
)


def through_json(data):
    return json.loads(json.dumps(data, allow_nan=False))


def test_a_report_comes_back_as_it_was():
    assert from_record(through_json(record(REPORT))) == REPORT
    bare = Report("p", Revision("a", COMMIT), Revision("b", COMMIT), "base", 0.03, 0.99, ())
    assert from_record(through_json(record(bare))) == bare


finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
comparisons = st.builds(
    Comparison,
    name=st.text(),
    params=st.lists(st.text(), max_size=3).map(tuple),
    kind=st.sampled_from(KINDS),
    verdict=st.sampled_from(results.VERDICTS),
    unit=st.text(),
    ratio=st.none() | finite,
    high=st.none() | finite.map(abs),
    low=st.none() | finite.map(lambda x: -abs(x)),
    detectable=st.none() | finite.map(abs),
    rounds=st.integers(0, 10**9),
    base=st.none() | finite,
    head=st.none() | finite,
    reason=st.none() | st.text(),
    side=st.none() | st.sampled_from(SIDES),
)


@settings(deadline=None)
@given(st.lists(comparisons, max_size=3).map(tuple), st.lists(st.text(), max_size=3).map(tuple), st.booleans())
def test_any_report_comes_back_as_it_was(found, texts, interrupted):
    report = replace(REPORT, comparisons=found, notes=texts, only_in_base=texts, interrupted=interrupted)
    assert from_record(through_json(record(report))) == report


def test_the_record_has_what_is_promised():
    data = record(REPORT)
    assert (data["schema"], data["kind"], data["exit_code"]) == (results.SCHEMA, "check", 1)
    assert data["counts"] == {"slower": 1, "faster": 0, "same": 0, "undecided": 0, "failed": 1}
    assert sum(data["counts"].values()) == len(data["benchmarks"]) == 2
    assert data["benchmarks"][0] == {
        "name": "suite.time_x",
        "params": ["'a'", "3"],
        "kind": "serial",
        "verdict": "slower",
        "unit": "seconds",
        "ratio": 1.05,
        "low": 1.04,
        "high": 1.06,
        "detectable": 0.03,
        "rounds": 24,
        "base": 1e-5,
        "head": 1.05e-5,
        "reason": None,
        "side": None,
    }
    names = {field.name for field in dataclasses.fields(Report)} - {"comparisons"}
    assert names <= data.keys()


def test_what_json_does_not_have_is_written_all_the_same():
    odd = {
        "nan": math.nan,
        "inf": [-math.inf],
        "numpy": np.float64(2.5),
        "count": np.int64(3),
        "array": np.arange(2),
        "path": Path("x"),
        1: "key",
        "tuple": (1, 2),
        "surrogate": "\ud800",
    }
    text = json.dumps(record(replace(REPORT, comparisons=(replace(SLOWER, low=math.nan),), provenance=odd)))
    text.encode()
    data = json.loads(text)
    assert data["benchmarks"][0]["low"] is None
    assert data["provenance"] == {
        "nan": None,
        "inf": [None],
        "numpy": 2.5,
        "count": 3,
        "array": [0, 1],
        "path": "x",
        "1": "key",
        "tuple": [1, 2],
        "surrogate": "\\ud800",
    }
    assert isinstance(from_record(data), Report)
    name = replace(REPORT, project="caf\udce9")
    assert json.dumps(record(name), ensure_ascii=False).encode()


NESTED = []
for _ in range(50):
    NESTED = [NESTED]

MALFORMED = [
    (["schema"], 2),
    (["schema"], None),
    (["kind"], "choose"),
    (["project"], 3),
    (["project"], "x" * 20_001),
    (["base"], None),
    (["base", "name"], []),
    (["base", "commit"], "HEAD"),
    (["base", "commit"], COMMIT + "\n"),
    (["base", "commit"], "@octocat"),
    (["base", "commit"], "a" * 65),
    (["head", "uncommitted"], 1),
    (["suite"], "other"),
    (["threshold"], "0.03"),
    (["threshold"], math.nan),
    (["threshold"], -0.1),
    (["confidence"], 1.5),
    (["benchmarks"], {}),
    (["benchmarks"], None),
    (["benchmarks"], [None] * 20_001),
    (["benchmarks", 0], "x"),
    (["benchmarks", 0, "name"], None),
    (["benchmarks", 0, "params"], "ab"),
    (["benchmarks", 0, "params", 0], 1),
    (["benchmarks", 0, "kind"], "other"),
    (["benchmarks", 0, "kind"], []),
    (["benchmarks", 0, "verdict"], "fine"),
    (["benchmarks", 0, "verdict"], {}),
    (["benchmarks", 0, "unit"], None),
    (["benchmarks", 0, "ratio"], "1.05"),
    (["benchmarks", 0, "ratio"], True),
    (["benchmarks", 0, "ratio"], math.inf),
    (["benchmarks", 0, "ratio"], 10**400),
    (["benchmarks", 0, "low"], math.nan),
    (["benchmarks", 0, "low"], 2.0),
    (["benchmarks", 0, "high"], []),
    (["benchmarks", 0, "detectable"], -0.1),
    (["benchmarks", 0, "rounds"], 1.5),
    (["benchmarks", 0, "rounds"], True),
    (["benchmarks", 0, "rounds"], -1),
    (["benchmarks", 0, "rounds"], 10**10),
    (["benchmarks", 0, "base"], "x"),
    (["benchmarks", 0, "head"], -math.inf),
    (["benchmarks", 0, "reason"], 5),
    (["benchmarks", 0, "side"], "left"),
    (["unavailable"], None),
    (["unavailable", 0, "name"], 1),
    (["unavailable", 0, "params"], None),
    (["unavailable", 0, "reason"], None),
    (["only_in_base", 0], None),
    (["kernel_changes", 0, "kernel"], 1),
    (["kernel_changes", 0, "benchmark"], 1),
    (["kernel_changes", 0, "what"], 1),
    (["kernel_changes", 0, "base"], []),
    (["kernel_changes", 0, "head"], {"lanes": math.nan}),
    (["sentinel"], []),
    (["sentinel", "biased"], None),
    (["sentinel", "comparisons", 0, "verdict"], ""),
    (["error_rates"], 0.1),
    (["error_rates", "false_alarm"], 1.1),
    (["error_rates", "false_alarm_bound"], None),
    (["error_rates", "simulations"], 1.0),
    (["error_rates", "detectable"], "x"),
    (["notes"], "a note"),
    (["notes", 0], {}),
    (["environment"], None),
    (["seconds"], -1),
    (["rounds"], None),
    (["interrupted"], 0),
    (["provenance"], []),
    (["provenance", "list"], NESTED),
    (["provenance", "list", 1], math.inf),
    (["provenance", "list"], ["x" * 20_001]),
]


def put(data, path, value):
    *parents, last = path
    for key in parents:
        data = data[key]
    data[last] = value


def field(path):
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.lstrip(".")


@pytest.mark.parametrize(("path", "value"), MALFORMED, ids=[f"{field(p)}-{i}" for i, (p, _) in enumerate(MALFORMED)])
def test_a_malformed_field_is_refused_by_its_name(path, value):
    data = copy.deepcopy(through_json(record(REPORT)))
    put(data, path, value)
    with pytest.raises(ValueError, match=r"^[\w\[\]., ]+: ") as caught:
        from_record(data)
    # In provenance the keys are the author's, and stay out.
    assert str(caught.value).startswith(path[0] if path[0] in ("provenance", "schema") else field(path)) or (
        path == ["kind"] or path[0] == "kernel_changes"
    )


def test_a_missing_field_is_refused_by_its_name():
    def every(data, path=()):
        items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
        for key, value in items:
            if isinstance(data, dict):
                yield (*path, key)
            if key not in ("provenance", "counts") and path[-1:] not in (("base",), ("head",)):
                yield from every(value, (*path, key))

    whole = through_json(record(REPORT))
    optional = {("exit_code",), ("counts",)}
    paths = [path for path in every(whole) if path not in optional]
    assert len(paths) > 60
    for path in paths:
        if path[0] == "kernel_changes" and path[-1] == "lanes":
            continue
        data = copy.deepcopy(whole)
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        with pytest.raises(ValueError, match=r"missing|^schema, kind"):
            from_record(data)


@pytest.mark.parametrize("data", [None, [], "x", 3, {}, {"schema": 1}, {"schema": 1, "kind": "check"}])
def test_what_is_no_record_is_refused(data):
    with pytest.raises(ValueError, match=": "):
        from_record(data)


def test_an_unknown_field_is_left_out_and_what_follows_from_the_rest_is_not_believed():
    data = {**record(REPORT), "new": 1, "exit_code": 0, "counts": {"slower": 0}}
    assert from_record(through_json(data)).exit_code == 1


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PATHS = [path for path, _ in MALFORMED]


def read(data):
    """The report and None, or None and the message."""
    try:
        return from_record(data), None
    except ValueError as error:
        return None, str(error)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PATHS), junk)
def test_junk_is_refused_or_is_a_report_that_can_be_written(path, value):
    data = copy.deepcopy(through_json(record(REPORT)))
    put(data, path, value)
    report, message = read(data)
    if report is None:
        assert message.isprintable()
    else:
        json.dumps(record(report), allow_nan=False)


def test_no_text_of_the_author_is_in_an_error():
    text = "\n::add-mask::x ##[add-mask]x"
    refused = 0
    for path in PATHS:
        for value in (text, [text], {text: text}, {text: math.nan}):
            data = copy.deepcopy(through_json(record(REPORT)))
            put(data, path, value)
            _, message = read(data)
            refused += message is not None
            assert "mask" not in (message or "")
    assert refused > len(PATHS)
