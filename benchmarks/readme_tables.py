"""The tables of README.md, from the result files of `gradmark verify`, `choose` and `check --study`, and of
`python -m benchmarks.accuracy` and `python -m benchmarks.peers`.

cog calls `tables`. A table whose file is missing says so; no figure comes from anywhere else.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).parent / "evidence"

_SCHEMA = 1

_NOT_YET = "not yet measured"

_COMMANDS = {"accuracy": "python -m benchmarks.accuracy", "peers": "python -m benchmarks.peers"}
"""What writes a result file where it is not `gradmark` and the file's kind."""


def tables(folder: Path = EVIDENCE) -> str:
    """All tables, in Markdown.

    Parameters
    ----------
    folder : Path
        Holds verify*.json, accuracy*.json, choose*.json, peers*.json and check-study*.json.

    Raises
    ------
    ValueError
        A file is of another schema or kind than its name says.
    """
    sections = (
        *_section("Accuracy: worst error in ULP", folder, "verify", _accuracy),
        *_section("Accuracy of the activations, over millions of inputs and more", folder, "accuracy", _sweep),
        *_section("Speed: the fastest backend", folder, "choose", _speed),
        *_section("Speed: beside what you would use instead", folder, "peers", _peers),
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
            f" expected {_SCHEMA} and {kind!r}: write it with `{_COMMANDS.get(kind, f'gradmark {kind}')} --json`"
        )
    return record


def _origin(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    commit = f"commit {record['commit'][:10]}" if record["commit"] else "no commit"
    if record["uncommitted"]:
        commit += " with uncommitted changes"
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "numba", "torch") if versions.get(name))
    interrupted = " Interrupted: incomplete." if record.get("interrupted") else ""
    vectors = f" ({machine['vectors']})" if machine.get("vectors") else ""
    return (
        f"`{record['command']}` on {machine['cpu']}{vectors}, {machine['cores']} cores, {machine['system']};"
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


def _sweep(record: dict[str, Any]) -> Iterator[str]:
    """One line an operation and pass, one column a backend and dtype: worst error over the sweep."""
    entries = record["entries"]
    columns = [(backend, dtype) for dtype in ("float32", "float64") for backend in ("numpy", "numba")]
    found = {(entry["operation"], entry["pass"], entry["backend"], entry["dtype"]): entry for entry in entries}
    operations = list(dict.fromkeys(entry["operation"] for entry in entries))
    yield from _markdown(
        ["operation", "pass", "allowed", *(f"{backend} {dtype}" for backend, dtype in columns)],
        (
            [operation, which, _allowed(found, operation, which), *texts]
            for operation in operations
            for which in ("forward", "backward")
            for texts in [[_worst(found.get((operation, which, *column))) for column in columns]]
        ),
    )
    missed = [entry for entry in entries if not entry["passed"]]
    everything = [e for e in entries if e["exhaustive"]]
    others = [entry for entry in entries if not entry["exhaustive"]]
    yield (
        "\nIn ULP of the result; backward in ULP of max(|dx|, |g|/64); below the smallest normal number in ULP of that."
        f" {len(missed)} of {len(entries)} beyond what is allowed (in bold)."
    )
    if everything:
        yield (
            f"\n{_counted(len(everything), 'entry', 'entries')} (float32, forward, *) met all 2³² inputs at the usual"
            f" parameters, and others at each further one. The reference is float64, with an error of at most"
            f" {max(entry['reference_error'] for entry in everything):.1g} ULP."
        )
    if others:
        yield (
            f"\nThe others met {min(entry['points'] for entry in others):.2g} points and more: bit patterns of all"
            " binades, [-40, 40], where results become subnormal, and around 0, kinks and zeros of the derivative."
        )
    yield from _commits(entries)


def _allowed(found: dict[Any, dict[str, Any]], operation: str, which: str) -> str:
    bars = {entry["allowed"] for key, entry in found.items() if key[:2] == (operation, which)}
    return ", ".join(f"{bar:g}" for bar in sorted(bars))


def _worst(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return _NOT_YET
    text = "not finite" if entry["worst"] is None else f"{entry['worst']:.3g}"
    others = [f"{count} wrong {name}" for name, count in entry["disagreements"].items() if count and name != "inf"]
    text = "; ".join([text + ("*" if entry["exhaustive"] else ""), *others])
    return text if entry["passed"] else f"**{text}**"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _commits(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    commits = dict.fromkeys(
        (entry["measured"]["commit"] or "no commit")[:10]
        + (" with uncommitted changes" if entry["measured"]["uncommitted"] else "")
        for entry in entries
    )
    yield f"\nMeasured at {', '.join(commits)}."


def _peers(record: dict[str, Any]) -> Iterator[str]:
    """The bars, then every cell against the fastest peer, then what else was missed."""
    threads = ", ".join(f"{name} {count}" for name, count in record["threads"].items())
    libraries = ", ".join(f"{name} {version}" for name, version in record["libraries"].items())
    memory = f" Memory of results: {record['memory']}." if "memory" in record else ""
    yield f"Threads: {threads}.{memory} {libraries}.\n"
    yield from _markdown(
        ["bar", "at least", "held", "worst", "geometric mean", ""],
        (
            [
                bar["bar"],
                f"{bar['least']:.3g}",
                f"{bar['held']} of {bar['compared']}" if bar["compared"] else _NOT_YET,
                _number(bar["worst"]),
                _number(bar["geometric_mean"]),
                _met(bar),
            ]
            for bar in record["summary"]
        ),
    )
    if record["call_seconds"] is not None:
        yield f"\nOne call of a Numba kernel on one number takes {1e6 * record['call_seconds']:.2g} µs."
    yield (
        "\nTimes the time of gradmark's Numba backend that the fastest peer takes, and which it is; in bold where the"
        f" peer wins. Peers: {', '.join(_took_part(record))}; everybody allocates its"
        " result. †: PyTorch's backward pass starts from what its forward pass has saved (the result, the sum of the"
        " inputs, the noise); ours has the inputs alone, and computes it again.\n"
    )
    yield from _against_the_fastest(record)
    yield from _initializers(record)
    for bar in record["summary"][2:]:
        if bar["losses"]:
            yield (
                f"\n<details><summary>Missed, {bar['bar']}: {len(bar['losses'])} of {bar['compared']}</summary>\n\n"
                f"The other's time over ours: {'; '.join(map(_loss, bar['losses']))}.\n\n</details>"
            )
    for name, reason in record["missing"].items():
        yield f"\n{name}: not measured ({reason})."
    yield from _commits(record["entries"])


def _met(bar: dict[str, Any]) -> str:
    if not bar["compared"]:
        return ""
    met = bar["geometric_mean"] >= bar["least"] if bar.get("mean_only") else not bar["losses"]
    return "met" if met else "**missed**"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _took_part(record: dict[str, Any]) -> list[str]:
    timed = {name for entry in record["entries"] for name in entry["over_numba"]}
    return [name for name in _PEERS if name in timed or name in record["missing"]]


def _initializers(record: dict[str, Any]) -> Iterator[str]:
    """One line a case, one column a contender: how many times our time it takes."""
    entries = [entry for entry in record["entries"] if entry["group"] == _INITIALIZERS]
    if not entries:
        return
    columns = list(dict.fromkeys(name for entry in entries for name in entry["over_numba"]))
    yield "\nInitializers: times the time of gradmark's Numba backend that each takes.\n"
    yield from _markdown(
        ["initializer", "size", "dtype", *columns],
        (
            [
                " ".join(filter(None, (entry["operation"], entry["variant"]))),
                *(entry[name] for name in ("size", "dtype")),
                *(_ratio(entry["over_numba"].get(name)) for name in columns),
            ]
            for entry in entries
        ),
    )


_INITIALIZERS = "initializers"
"""The group, as in benchmarks/peers/cases.py."""


def _against_the_fastest(record: dict[str, Any]) -> Iterator[str]:
    entries = [entry for entry in record["entries"] if entry["group"] != _INITIALIZERS]
    sizes = sorted({(entry["bytes_moved"], entry["size"]) for entry in entries if entry["elements"]})
    columns = list(dict.fromkeys(size for _, size in sorted(sizes, key=lambda one: int(one[1][2:]))))
    cells = {(*_row(entry), entry["size"]): entry for entry in entries}
    yield from _markdown(
        ["operation", "pass", "dtype", *columns],
        (
            [*row, *(_fastest(cells.get((*row, size))) for size in columns)]
            for row in dict.fromkeys(_row(entry) for entry in entries if entry["elements"])
        ),
    )


def _row(entry: dict[str, Any]) -> tuple[str, str, str]:
    return "+".join(filter(None, (entry["operation"], entry["variant"]))), entry["pass"], entry["dtype"]


_PEERS = ("naive NumPy", "torch eager", "torch.compile", "numexpr", "JAX", "SciPy", "Keras")
_TIE = 0.98
"""As in benchmarks/peers/bars.py: cog imports this file alone."""


def _fastest(entry: dict[str, Any] | None) -> str:
    found = [] if entry is None else [(entry["over_numba"][n], n) for n in _PEERS if entry["over_numba"].get(n)]
    if not found:
        return ""
    ratio, name = min(found, key=lambda one: one[0]["median"])
    saved = " †" if name == "torch eager" and entry.get("eager_from_result") else ""
    text = f"{ratio['median']:.2f} {name}{saved}"
    return f"**{text}**" if ratio["median"] < _TIE else text


def _loss(loss: dict[str, Any]) -> str:
    name = "+".join(filter(None, (loss["operation"], loss["variant"])))
    ratio = _ratio({"median": loss["ratio"], "low": loss["low"], "high": loss["high"]})
    return f"{name} {loss['pass']} {loss['size']} {loss['dtype']}: {loss['against']} {ratio}"


def _speed(record: dict[str, Any]) -> Iterator[str]:
    """One line a workload: the fastest, its lead with the interval, and its lead over NumPy."""
    if "crossovers" in record:
        yield from _speed_by_sizes(record)
    else:
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


def _speed_by_sizes(record: dict[str, Any]) -> Iterator[str]:
    """One line an operation and pass: who leads at which sizes, and by how much at the largest that was measured."""
    curves: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for r in record["results"]:
        name = "+".join(filter(None, (r["operation"], r["variant"])))
        curves.setdefault((name, r["pass"], r["dtype"], r["place"]), []).append(r)
    rows = []
    for (name, operation_pass, *_), curve in curves.items():
        measured = sorted((r for r in curve if r["status"] == "measured"), key=lambda r: r["elements"])
        last = measured[-1] if measured else curve[0]
        at = _elements(last["elements"]) if measured else ""
        fastest, lead, over_numpy = _answer(last)
        lead = "tie" if fastest == "tie" else lead
        rows.append([name, operation_pass, "; ".join(_ranges(measured)) or fastest, at, lead, over_numpy])
    head = ["operation", "pass", "fastest, by elements", "at", "times faster than the next", "than numpy"]
    yield from _markdown(head, rows)


def _ranges(measured: list[dict[str, Any]]) -> list[str]:
    """Such as "numpy 2^6–2^10", "numba=numpy 2^13": sizes beside each other with the same answer."""
    found: list[tuple[str, int, int]] = []
    for r in measured:
        label = r["fastest"] or "=".join(sorted(r["leaders"]))
        first = found.pop()[1] if found and found[-1][0] == label else r["elements"]
        found.append((label, first, r["elements"]))
    return [f"{label} {'–'.join(dict.fromkeys(map(_elements, ends)))}" for label, *ends in found]


def _elements(number: int) -> str:
    return f"2^{number.bit_length() - 1}" if number & (number - 1) == 0 else str(number)


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
    yield from _lost(parts.get("lost"))
    yield from _foreign(parts.get("foreign", {}))
    measured = (f"{name} at {part['measured']['commit'][:10]}" for name, part in parts.items())
    yield f"\n`gradmark check --study PART` measures one part; the command above was the last: {', '.join(measured)}."


def _lost(part: dict[str, Any] | None) -> Iterator[str]:
    """What the clock says of kernels that lost something, and what the machine code says."""
    yield "\nSlowdowns as they happen, in the serial Numba kernels:\n"
    rows = []
    for name, what in _LOSSES.items():
        if part is None or "failed" in part:
            rows.append([what, *[""] * len(_COUNTS), _NOT_YET])
        else:
            found = part[name]
            changes = collections.Counter(change["what"] for change in found["kernel_changes"])
            seen = [f"{change} ({count} kernel{'s' * (count > 1)})" for change, count in changes.items()]
            rows.append([what, *(str(found["check"][key]) for key in _COUNTS), "; ".join(seen) or "nothing"])
    yield from _markdown(["what was lost", *_COUNTS, "in the machine code"], rows)


_LOSSES = {
    "upcast": "float32: computed in float64",
    "unfused": "the fusion: two passes instead of one",
    "scalar": "the vectorization",
}


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
        return _NOT_YET
    real, simulated = part["real"], part["simulated"]
    return (
        f"{real['red']} of {real['checks']} run; {simulated['red']} of {simulated['checks']} simulated from their"
        f" rounds (below {simulated['red_at_most']:.2%})"
    )


def _found(part: dict[str, Any] | None, kind: str) -> str:
    if part is None or "failed" in part:
        return _NOT_YET
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
        return _NOT_YET
    faster = f", {found['faster']} faster" if found["faster"] else ""
    return f"{found['slower']} of {found['benchmarks']} flagged as slower{faster}"


def _took(part: dict[str, Any] | None) -> str:
    if part is None or "failed" in part:
        return _NOT_YET
    check = part["check"]
    return f"{check['seconds'] / 60:.1f} min, {check['same']} of {check['benchmarks']} settled as the same"


def _planted(part: dict[str, Any] | None) -> str:
    if part is None or "failed" in part:
        return _NOT_YET
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
