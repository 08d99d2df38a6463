"""The tables of README.md, from the result files of `gradmark verify --json` and `gradmark choose --json`.

cog calls `tables`. A table whose file is missing says so; no figure comes from anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).parent / "evidence"

_SCHEMA = 1


def tables(folder: Path = EVIDENCE) -> str:
    """All tables, in Markdown.

    Parameters
    ----------
    folder : Path
        Holds verify*.json and choose*.json.

    Raises
    ------
    ValueError
        A file is of another schema or kind than its name says.
    """
    sections = (
        *_section("Accuracy: worst error in ULP", folder, "verify", _accuracy),
        *_section("Speed: the fastest backend", folder, "choose", _speed),
        *_section("Pull requests: how often gradmark check errs", folder, "check-study", _study),
    )
    return "\n".join(("", *sections))


def _section(title: str, folder: Path, kind: str, render: Any) -> Iterator[str]:
    yield f"### {title}\n"
    files = sorted(folder.glob(f"{kind}*.json"))
    if not files:
        yield "Not yet measured.\n"
    for file in files:
        record = _read(file, kind)
        yield f"{_origin(record)}\n"
        yield from render(record)
        yield ""


def _read(file: Path, kind: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if (record.get("schema"), record.get("kind")) != (_SCHEMA, kind):
        raise ValueError(
            f"{file.name} has schema {record.get('schema')!r} and kind {record.get('kind')!r};"
            f" expected {_SCHEMA} and {kind!r}: write it with `gradmark {kind} --json`"
        )
    return record


def _origin(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    commit = f"commit {record['commit'][:10]}" if record["commit"] else "no commit"
    if record["uncommitted"]:
        commit += " with uncommitted changes"
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "numba", "torch") if versions.get(name))
    interrupted = " Interrupted: incomplete." if record.get("interrupted") else ""
    return (
        f"`{record['command']}` on {machine['cpu']}, {machine['cores']} cores, {machine['system']};"
        f" Python {versions['python']}, {libraries}; {commit}, {record['created'][:10]}.{interrupted}"
    )


def _accuracy(record: dict[str, Any]) -> Iterator[str]:
    """One line an operation and pass, one column a backend and dtype: worst error, of what is allowed."""
    checks = record["checks"]
    columns = list(dict.fromkeys((check["backend"], check["dtype"]) for check in checks))
    found = {(check["operation"], check["pass"], check["backend"], check["dtype"]): check for check in checks}
    yield from _markdown(
        ["operation", "pass", *(f"{backend} {dtype}" for backend, dtype in columns)],
        (
            [operation, which, *(_error(found.get((operation, which, *column))) for column in columns)]
            for operation, which in dict.fromkeys((check["operation"], check["pass"]) for check in checks)
        ),
    )
    failed = sum(not check["passed"] for check in checks)
    yield f"\n{len(checks)} comparisons, {failed} beyond what is allowed (in bold)."
    for note in dict.fromkeys(check["note"] for check in checks if check["note"]):
        backends = ", ".join(dict.fromkeys(check["backend"] for check in checks if check["note"] == note))
        operations = ", ".join(dict.fromkeys(check["operation"] for check in checks if check["note"] == note))
        yield f"\n{backends}, {operations}: {note}."
    for name, reason in record["unusable"].items():
        yield f"\n{name}: not verified ({reason})."


def _error(check: dict[str, Any] | None) -> str:
    if check is None:
        return ""
    text = "not finite" if check["worst"] is None else f"{check['worst']:.3g}"
    return text if check["passed"] else f"**{text}**"


def _speed(record: dict[str, Any]) -> Iterator[str]:
    """One line a workload: the fastest, its lead with the interval, and its lead over NumPy."""
    yield from _markdown(
        ["operation", "pass", "size", "fastest", "times faster than the next", "than numpy"],
        (
            ["+".join(filter(None, (r["operation"], r["variant"]))), r["pass"], r["size"], *_answer(r)]
            for r in record["results"]
        ),
    )
    dtypes = ", ".join(dict.fromkeys(result["dtype"] for result in record["results"]))
    yield (
        f"\n{dtypes}. Median of the ratios within each round ({record['confidence']:.0%} interval);"
        " ~ where the slower one was given up after the trial rounds, without an interval."
    )
    if record["others_cores"] is not None:
        yield f"\nOther processes kept {record['others_cores']:.2f} cores busy meanwhile."
    for name, reason in record["targets"].items():
        if reason is not None:
            yield f"\n{name}: not measured ({reason})."


def _study(record: dict[str, Any]) -> Iterator[str]:
    """One line a question: the bar, what the check did, and what stock asv did on the very same commits."""
    parts = record["parts"]
    asv = parts.get("asv", {})
    yield from _markdown(
        ["", "bar", "gradmark check", "`asv continuous -f 1.05`, same commits"],
        [
            ["identical code: red checks", "≤ 1 %", _red(parts.get("identical")), _flagged(asv.get("identical"))],
            ["the same, one core kept busy: red checks", "≤ 2 %", _red(parts.get("busy")), ""],
            ["+10 %, serial: found", "≥ 99 %", _found(parts.get("plus10"), "serial"), _flagged(asv.get("plus10"))],
            ["+5 %, serial: found", "≥ 90 %", _found(parts.get("plus5"), "serial"), _flagged(asv.get("plus5"))],
            ["+10 %, parallel: found", "≥ 80 %", _found(parts.get("plus10"), "parallel"), ""],
            ["+5 %, parallel: found", "", _found(parts.get("plus5"), "parallel"), ""],
            ["200 benchmarks, nothing changed: time", "≤ 10 min", _took(parts.get("many_identical")), ""],
            ["a slowdown planted in 1 of 200", "it, and only it", _planted(parts.get("many_planted")), ""],
        ],
    )
    missed = _missed(parts.get("plus5"))
    if missed:
        yield f"\nSerial benchmarks whose +5 % was not found, each with the slowdown it can see: {missed}."
    yield from _foreign(parts.get("foreign", {}))
    measured = (f"{name} at {part['measured']['commit'][:10]}" for name, part in parts.items())
    yield f"\nEach part was measured by a command of its own: {', '.join(measured)}."


def _foreign(part: dict[str, Any]) -> Iterator[str]:
    suites = {name: found for name, found in part.items() if name not in ("measured", "failed")}
    if suites:
        yield "\nSuites that are not ours, built from their source distributions:\n"
        yield from _markdown(
            ["project", "compared", "benchmarks", "slower", "faster", "same", "undecided", "failed", "time"],
            (
                [
                    f"{name} {found['version']}",
                    what,
                    *(str(found[head]["check"][key]) for key in _COUNTS),
                    _time(found[head]),
                ]
                for name, found in suites.items()
                for head, what in (("same", "identical code"), ("slow", "one function does a fifth of its work again"))
            ),
        )


_COUNTS = ("benchmarks", "slower", "faster", "same", "undecided", "failed")


def _time(found: dict[str, Any]) -> str:
    return f"{found['check']['seconds'] / 60:.1f} min"


def _red(part: dict[str, Any] | None) -> str:
    if part is None or "failed" in part:
        return "not yet measured"
    real, simulated = part["real"], part["simulated"]
    return (
        f"{real['red']} of {real['checks']} run; {simulated['red']} of {simulated['checks']} simulated from their"
        f" rounds (below {simulated['red_at_most']:.2%})"
    )


def _found(part: dict[str, Any] | None, kind: str) -> str:
    if part is None or "failed" in part:
        return "not yet measured"
    of_kind = [one for one in part["benchmarks"] if one["kind"] == kind]
    powers = [one["simulated_power"] for one in of_kind if one["simulated_power"] is not None]
    found = f"{part['found'][kind]['slower']} of {part['found'][kind]['benchmarks']} in one check"
    return f"{found}; {sum(powers) / len(powers):.1%} simulated from its rounds" if powers else found


def _missed(part: dict[str, Any] | None) -> str:
    if part is None or "failed" in part:
        return ""
    missed = [one for one in part["benchmarks"] if one["kind"] == "serial" and one["verdict"] != "slower"]
    seen = (f"+{one['detectable']:.1%}" if one["detectable"] else "more than +100 %" for one in missed)
    return ", ".join(f"`{one['benchmark']}` ({text})" for one, text in zip(missed, seen, strict=True))


def _flagged(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not yet measured"
    faster = f", {found['faster']} faster" if found["faster"] else ""
    return f"{found['slower']} of {found['benchmarks']} flagged as slower{faster}"


def _took(part: dict[str, Any] | None) -> str:
    if part is None or "failed" in part:
        return "not yet measured"
    check = part["check"]
    return f"{check['seconds'] / 60:.1f} min, {check['same']} of {check['benchmarks']} settled as the same"


def _planted(part: dict[str, Any] | None) -> str:
    if part is None or "failed" in part:
        return "not yet measured"
    names = ", ".join(f"`{one['benchmark']}` ({one['ratio']:.3f})" for one in part["slower"]) or "nothing"
    return f"found: {names}; planted in `{part['planted']}`"


def _answer(result: dict[str, Any]) -> list[str]:
    if result["status"] != "measured":
        return [f"not measured ({result['status']})", "", ""]
    first = result["leaders"][0]
    versus_numpy = "" if first == "numpy" else _ratio(result["numpy_over_first"])
    if result["fastest"] is None:
        return ["tie", ", ".join(result["leaders"]), versus_numpy]
    return [first, _ratio(result["runner_up_over_first"]), versus_numpy]


def _ratio(interval: dict[str, float | None] | None) -> str:
    if interval is None:
        return ""
    if interval["low"] is None:
        return f"~{interval['median']:.3g}"
    return f"{interval['median']:.3g} ({interval['low']:.3g}–{interval['high']:.3g})"


def _markdown(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
