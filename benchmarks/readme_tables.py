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
    interrupted = " Interrupted: incomplete." if record["interrupted"] else ""
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
