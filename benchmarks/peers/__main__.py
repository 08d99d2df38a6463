"""`python -m benchmarks.peers`: gradmark beside what a user would pick instead, in the same rounds.

The rules are in the package's docstring. The default is what fits 20 minutes: float32 at 2^12, 2^16 and 2^24 elements
(`--sizes all` and `--dtype float32,float64` take hours; `--json FILE` merges, `--resume` leaves out what FILE has).
What the budget does not allow is listed as not measured.

Exit codes: 0 every bar that was judged is met, 1 one is not, 2 the command was wrong or nothing was measured,
130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import _evidence, _freed_memory
from .._worktree import catalog
from . import bars, cases, contenders, report, timing
from .cases import Case

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

DTYPES = ("float32", "float64")

_RESERVE_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process by default) and return its exit code."""
    return _evidence.command("benchmarks.peers", arguments, _parser, _run, WRONG)


def _parser() -> argparse.ArgumentParser:
    from gradmark import console

    _, description, codes = (__doc__ or "").strip().split("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=description, epilog=codes)
    parser.add_argument("--ops", type=console.names, metavar="OP,…", help="only these operations (default: all)")
    parser.add_argument("--groups", type=console.names, metavar="G,…", help=f"only these of {', '.join(cases.GROUPS)}")
    parser.add_argument("--passes", type=console.names, metavar="P,…", help="forward, backward (default: both)")
    parser.add_argument(
        "--sizes",
        type=console.names,
        metavar="K,…",
        help="exponents of 2, of elementwise operations (default: 12,16,24), or all (8,10,…,26)",
    )
    parser.add_argument("--dtype", type=console.names, default=["float32"], metavar="D,…", help="float32, float64")
    parser.add_argument(
        "--budget", type=console.duration, default=1200.0, metavar="TIME", help="all included: 20m (default), 90s, 60m"
    )
    parser.add_argument("--json", metavar="FILE", help="merge the results into it; - for stdout, in place of the text")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has of the same code")
    parser.add_argument(
        "--plot", metavar="DIR", help="draw a figure (SVG) of each elementwise operation into this folder"
    )
    return parser


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    from gradmark import console

    began = time.perf_counter()
    planned = _planned(options)
    if not planned:
        raise console.UsageError("no benchmark has the given operations, groups and passes together")
    if options.plot:
        _check_plots(Path(options.plot))
    if options.resume and options.json in (None, "-"):
        raise console.UsageError("--resume needs --json FILE, which says what is there")
    file = _evidence.Growing(options.json, "peers", _key, _FIELDS)
    entries = file.entries
    head = _head(given)
    missing = contenders.missing_libraries()
    skipped = [case for case in planned if options.resume and _is_fresh(entries.get(_case_key(case)), head["code"])]
    _say_beginning(head, missing, len(planned), len(skipped))
    done = set(map(_case_key, skipped))
    interrupted = False
    others = _others_cpu_seconds()
    try:
        with _evidence.terminated_like_interrupted():
            for entry in _measure([case for case in planned if case not in skipped], missing, began + options.budget):
                done.add(_key(entry))
                found = {**entry, "code": head["code"], "measured": _evidence.measured(head)}
                file.add([found], functools.partial(_record, head, missing))
    except KeyboardInterrupt:
        interrupted = True
    entries = file.entries
    shown = [entries[key] for key in map(_case_key, planned) if key in done]
    if options.json == "-":
        console.write_json("-", _record(head, missing, entries))
    else:
        why = "interrupted" if interrupted else "budget"
        report.show(shown, [str(case) for case in planned if _case_key(case) not in done], why)
    _say_whether_quiet(others, time.perf_counter() - began)
    if options.plot:
        _plot(list(entries.values()), Path(options.plot))
    if interrupted:
        console.complain("interrupted: what was finished is kept" if file.problem is None else "interrupted")
        return INTERRUPTED
    if not shown:
        raise console.UsageError("nothing was measured; give a larger --budget")
    if file.problem is not None:
        raise console.UsageError(file.problem)
    return FAILED if any(bars.holds(bar) is False for bar in bars.summary(shown)) else DONE


def _others_cpu_seconds() -> float | None:
    """CPU seconds of all but this process and the compilers that it has started; None where they are not known."""
    from gradmark.tracking import machine

    spent, times = machine.other_cpu_seconds(), os.times()
    return None if spent is None else spent - times.children_user - times.children_system


def _say_whether_quiet(before: float | None, seconds: float) -> None:
    """Say so, where other processes have kept cores busy since `_others_cpu_seconds` was `before`."""
    from gradmark import console
    from gradmark.tracking import choice_table

    after = _others_cpu_seconds()
    if before is None or after is None:
        return
    for warning in choice_table.not_quiet((after - before) / seconds):
        console.complain(warning)


def _planned(options: argparse.Namespace) -> list[Case]:
    from gradmark import console

    operations = console.known("operation", options.ops, cases.operations())
    groups = console.known("group", options.groups, cases.GROUPS)
    passes = console.known("pass", options.passes, catalog.PASSES)
    dtypes = console.known("dtype", options.dtype, DTYPES)
    if options.sizes == ["all"]:
        exponents = list(cases.EXPONENTS)
    else:
        accepted = [str(k) for k in range(cases.EXPONENTS[0], cases.EXPONENTS[-1] + 1)]
        chosen = options.sizes or [str(k) for k in cases.DEFAULT_EXPONENTS]
        exponents = [int(k) for k in console.known("size", chosen, accepted)]
    return [case for dtype in dtypes for case in cases.plan(operations, groups, passes, exponents, dtype)]


def _head(given: Sequence[str]) -> dict[str, Any]:
    import gradmark

    package = Path(gradmark.__file__).parent
    parts = ("activations", "stabilizers", "initializers", "numerics", "gated", "rowwise", "arrays.py", "backends.py")
    present = [package / part for part in parts if (package / part).exists()]
    return {
        **_evidence.head("peers", "benchmarks.peers", given),
        "threads": contenders.give_threads(),
        "memory": _freed_memory.keep_freed_memory(),
        "libraries": contenders.versions(),
        "code": _evidence.fingerprint(*present),
        "call_seconds": timing.call_seconds(),
    }


def _measure(planned: Sequence[Case], missing: Mapping[str, str], ends: float) -> Iterator[dict[str, Any]]:
    """Time the cases in turn, as far as the time goes; the entries come as they are made."""
    from gradmark import console

    with console.progress("time left") as progress:
        task = progress.add_task("starting", total=len(planned), left="")

        def tick() -> None:
            minutes, seconds = divmod(max(0, round(ends - time.perf_counter())), 60)
            progress.update(task, left=f"{minutes}:{seconds:02}", refresh=True)

        setups = [0.0]
        for position, case in enumerate(planned):
            # A compilation cannot be broken off, so none is begun that may last beyond the budget.
            left = ends - _RESERVE_SECONDS - time.perf_counter()
            if left <= statistics.median(setups):
                return
            progress.update(task, description=str(case), completed=position)
            tick()
            share = left / (len(planned) - position)
            entry = timing.timed_case(case, missing, share=share, left=left, tick=tick)
            if entry is not None:
                setups.append(entry["setup_seconds"])
                yield entry


# --- results ----------------------------------------------------------------------------------------------------------

Key = tuple[str, str, str, str, str]

_FIELDS = (
    *("group", "elements", "bytes_moved", "beyond_cache", "absent", "setup_seconds", "seconds", "over_numba"),
    *("naive_over_numpy", "yardstick_over_numba", "code", "measured"),
)


def _key(entry: Mapping[str, Any]) -> Key:
    return entry["operation"], entry["variant"], entry["pass"], entry["size"], entry["dtype"]


def _case_key(case: Case) -> Key:
    return case.operation, case.variant, case.operation_pass, case.size, case.dtype


def _is_fresh(entry: Mapping[str, Any] | None, code: str) -> bool:
    return entry is not None and entry["code"] == code


def _record(head: dict[str, Any], missing: Mapping[str, str], entries: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
    order = {name: n for n, name in enumerate(catalog.OPERATIONS)}
    ordered = sorted(
        entries.values(),
        key=lambda e: (
            order.get(e["operation"], len(order)),
            e["variant"],
            e["dtype"],
            e["pass"] != "forward",
            _size(e),
        ),
    )
    return {**head, "missing": missing, "summary": bars.summary(ordered), "entries": ordered}


def _passes(entry: Mapping[str, Any]) -> int:
    return catalog.PASSES.index(entry["pass"])


def _size(entry: Mapping[str, Any]) -> float:
    return float(entry["elements"] or entry["bytes_moved"])


def _say_beginning(head: Mapping[str, Any], missing: Mapping[str, str], planned: int, skipped: int) -> None:
    from gradmark import console

    threads = ", ".join(f"{name} {count}" for name, count in head["threads"].items())
    console.complain(f"{head['machine']['cpu']}; threads: {threads}; JAX as many as there are cores")
    console.complain(f"memory of results: {head['memory']}")
    console.complain(f"{planned} cases" + (f", {skipped} of them already in the file" if skipped else ""))
    for name, reason in missing.items():
        console.complain(f"without {name}: {reason}")


def _check_plots(folder: Path) -> None:
    """Raise, before anything is measured, where figures could not be drawn."""
    import importlib.util

    from gradmark import console

    if importlib.util.find_spec("matplotlib") is None:
        raise console.UsageError("--plot needs matplotlib: pip install 'gradmark[peers]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise console.UsageError(f"--plot {folder}: {error.strerror}; give a folder that can be written") from error
    if not os.access(folder, os.W_OK):
        raise console.UsageError(f"--plot {folder}: give a folder that can be written")


def _plot(entries: Sequence[dict[str, Any]], folder: Path) -> None:
    from gradmark import console

    from . import figures

    files = figures.draw(entries, folder)
    drawn = f"{len(files)} figure{'' if len(files) == 1 else 's'} in {folder}"
    others = dict.fromkeys(entry["operation"] for entry in entries if entry["group"] != cases.ELEMENTWISE)
    if others:
        drawn += f"; none of {', '.join(others)}: only elementwise operations are drawn"
    console.complain(drawn)


if __name__ == "__main__":
    sys.exit(main())
