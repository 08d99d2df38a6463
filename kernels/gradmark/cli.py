"""The command `gradmark`: verify, choose, backends.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a verification failed, 2 the command was
wrong or nothing could be done, 130 interrupted, 141 nobody read the output any more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradmark
from gradmark import catalog

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from gradmark.tracking.choose import Choice
    from gradmark.verification import Check
    from gradmark.workloads import Target

DONE, FAILED, WRONG, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141

_DESCRIPTION = "Activations and weight initializers in NumPy, Numba and PyTorch: verified equal, and timed."
_EXIT_CODES = (
    "exit codes: 0 done; 1 a verification failed; 2 the command was wrong, or nothing could be done;"
    " 130 interrupted (what was finished is printed)"
)


_JSON_HELP = "write the results there as well; - for stdout, in place of the table"


class UsageError(Exception):
    """What was asked for does not exist or cannot be done; the message says what is accepted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process by default) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    options.given = given
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except UsageError as error:
        _complain(f"gradmark {options.command}: {error}")
        return WRONG
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gradmark", description=_DESCRIPTION, epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"gradmark {gradmark.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_choose(commands)
    _add_verify(commands)
    help_text = "which backends are usable here, or why not"
    backends = commands.add_parser("backends", help=help_text, description=help_text, epilog=_EXIT_CODES)
    backends.set_defaults(run=_backends)
    return parser


def _add_choose(commands: Any) -> None:
    choose = commands.add_parser(
        "choose",
        help="the fastest backend of each operation on this machine",
        description="Time every operation over all usable backends and name the fastest, or a tie.",
        epilog=_EXIT_CODES,
    )
    choose.add_argument("--ops", type=_names, metavar="OP,…", help="only these operations (default: all)")
    choose.add_argument("--dtype", default="float32", help="float32 (default), float64, float16 or bfloat16")
    choose.add_argument(
        "--sizes",
        type=_names,
        default=["cache"],
        metavar="S,…",
        help="cache (default: all of it fits the default budget), memory (give it --budget 10m), or both",
    )
    choose.add_argument(
        "--budget", type=_duration, default=120.0, metavar="TIME", help="all included: 90s, 2m (default), 1m30s"
    )
    choose.add_argument("--json", metavar="FILE", help=_JSON_HELP)
    choose.set_defaults(run=_choose)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="compare the backends with the exact values",
        description="Compare each backend with the exact values, in ULP, and print the worst error of each operation.",
        epilog=_EXIT_CODES,
    )
    verify.add_argument("operations", nargs="*", metavar="OPERATION", help="only these operations (default: all)")
    verify.add_argument("--backend", type=_names, metavar="B,…", help="only these backends (default: all usable ones)")
    verify.add_argument("--dtype", type=_names, metavar="D,…", help="only these dtypes (default: all)")
    verify.add_argument("--json", metavar="FILE", help=_JSON_HELP)
    verify.set_defaults(run=_verify)


# --- backends ---------------------------------------------------------------------------------------------------------


def _backends(options: argparse.Namespace) -> int:
    from gradmark import backends, workloads

    grid = _grid("backend", "dtypes", "here")
    for target in workloads.TARGETS.values():
        reason = _why_unusable(target)
        grid.add_row(target.name, ", ".join(backends.DTYPES[target.backend]), reason or "usable")
    _stdout().print(grid)
    return DONE


# --- choose -----------------------------------------------------------------------------------------------------------


def _choose(options: argparse.Namespace) -> int:
    began = time.perf_counter()
    operations = _known("operation", options.ops, catalog.OPERATIONS)
    _check_writable(options.json)
    with _progress("time left") as progress:
        from gradmark import workloads
        from gradmark.tracking import choose, machine

        sizes = _known("size", options.sizes, workloads.TIMED_SIZES)
        (dtype,) = _known("dtype", [options.dtype], _dtypes())
        head = machine.provenance("choose", options.given)
        targets = choose.usable_targets(dtype)
        if all(targets.values()):
            raise UsageError(f"no backend can be used: {_reasons(targets)}")
        planned = choose.plan(operations, sizes, dtype)
        display = _Countdown(progress, total=len(planned), ends=began + options.budget)
        choice = choose.choose(
            planned, targets, budget=options.budget, began=began, before=display.before, tick=display.tick
        )
    _write_json(options.json, {**head, **choose.record(choice, budget=options.budget)})
    if options.json != "-":
        _print_choice(choice, options.budget, head["machine"])
    if choice.interrupted:
        return INTERRUPTED
    return DONE if any(finding.status == choose.MEASURED for finding in choice.findings) else WRONG


def _print_choice(choice: Choice, budget: float, machine: dict[str, Any]) -> None:
    from gradmark.tracking import choice_table

    console = _stdout()
    console.print(f"{machine['cpu']}, {machine['cores']} cores")
    console.print(choice_table.table(choice))
    for note in choice_table.footnotes(choice, budget=budget):
        console.print(note)


class _Countdown:
    """Shows which workload is measured, and how much of the budget is left.

    It is drawn between the rounds only: a thread that draws while a kernel is timed would slow it.
    """

    _EVERY = 0.25

    def __init__(self, progress: Progress, total: int, ends: float) -> None:
        self._progress = progress
        self._ends = ends
        self._task = progress.add_task("starting", total=total, left=self._left())
        self._done = -1
        self._drawn = 0.0

    def before(self, workload: Any) -> None:
        self._done += 1
        name = f"{workload.operation} {workload.operation_pass}, {workload.size}"
        self._progress.update(self._task, completed=self._done, description=name)
        self.tick()

    def tick(self) -> None:
        if time.perf_counter() - self._drawn >= self._EVERY:
            self._drawn = time.perf_counter()
            self._progress.update(self._task, left=self._left(), refresh=True)

    def _left(self) -> str:
        minutes, seconds = divmod(max(0, round(self._ends - time.perf_counter())), 60)
        return f"{minutes}:{seconds:02}"


# --- verify -----------------------------------------------------------------------------------------------------------


def _verify(options: argparse.Namespace) -> int:
    operations = _known("operation", options.operations or None, catalog.OPERATIONS)
    _check_writable(options.json)
    with _progress("checks") as progress:
        from gradmark import verification, workloads
        from gradmark.tracking import machine

        dtypes = _known("dtype", options.dtype, _dtypes())
        asked = _known("backend", options.backend, workloads.TARGETS)
        unusable = {name: _why_unusable(workloads.TARGETS[name]) for name in asked}
        if options.backend and any(unusable.values()):
            raise UsageError(_reasons(unusable))
        usable = [name for name in asked if unusable[name] is None]
        head = machine.provenance("verify", options.given)
        checks, interrupted = _collect(verification.verify(operations, usable, dtypes), progress)
    unchecked = (
        [] if interrupted else [name for name in operations if name not in {check.operation for check in checks}]
    )
    body = {
        "interrupted": interrupted,
        "unusable": {name: reason for name, reason in unusable.items() if reason is not None},
        "unchecked": unchecked,
        "checks": [_record_check(check) for check in checks],
    }
    _write_json(options.json, {**head, **body})
    if options.json != "-" and checks:
        _print_checks(checks, unusable, unchecked)
    if interrupted:
        _complain("interrupted: the rest was not verified")
        return INTERRUPTED
    if not all(check.passed for check in checks):
        return FAILED
    if not checks or (options.operations and unchecked):
        raise UsageError(_nothing_verified(unchecked, usable, unusable))
    return DONE


def _collect(found: Iterator[Check], progress: Progress) -> tuple[list[Check], bool]:
    """The checks, and whether Ctrl-C ended them."""
    task = progress.add_task("verifying", total=None, left="0")
    progress.refresh()
    checks: list[Check] = []
    try:
        for check in found:
            checks.append(check)
            name = f"{check.operation} {check.operation_pass} {check.target} {check.dtype}"
            progress.update(task, description=name, left=str(len(checks)), refresh=True)
    except KeyboardInterrupt:
        return checks, True
    return checks, False


def _print_checks(checks: Sequence[Check], unusable: Mapping[str, str | None], unchecked: Sequence[str]) -> None:
    grid = _grid("operation", "pass", "backend", "dtype", "worst\nULP", "allowed", "at", "result")
    notes: dict[str, int] = {}
    for check in checks:
        remarks = [remark for remark in (check.note, _unit_remark(check)) if remark]
        marks = "".join(f"[{notes.setdefault(remark, len(notes) + 1)}]" for remark in remarks)
        grid.add_row(
            check.operation,
            check.operation_pass,
            check.target,
            check.dtype,
            f"{check.worst:.3g}",
            f"{check.allowed:.3g}",
            _shortened(check.where),
            ("pass" if check.passed else "FAIL") + marks,
            style=None if check.passed else "bold red",
        )
    console = _stdout()
    console.print(grid)
    for note, number in notes.items():
        console.print(f"[{number}] {note}.")
    for name, reason in unusable.items():
        if reason is not None:
            console.print(f"{name} was not verified: {reason}.")
    if unchecked:
        console.print(f"Without a comparison here: {', '.join(unchecked)}.")
    failed = sum(not check.passed for check in checks)
    console.print(f"{len(checks)} checks, {failed} failed.")


def _shortened(where: str) -> str:
    """The input with six digits to a number, for the table; result files have all of them."""
    digits = re.sub(r"-?\d+\.\d+(e[+-]?\d+)?", lambda number: f"{float(number[0]):.6g}", where)
    return digits.replace(" = ", "=")


def _unit_remark(check: Check) -> str:
    return "" if check.unit == "ULP" else f"counted in {check.unit}"


def _nothing_verified(unchecked: Sequence[str], usable: Sequence[str], unusable: Mapping[str, str | None]) -> str:
    from gradmark import backends, workloads

    takes = "; ".join(f"{name} takes {', '.join(backends.DTYPES[workloads.TARGETS[name].backend])}" for name in usable)
    because = "; ".join(filter(None, (takes, _reasons(unusable))))
    return f"nothing could be verified for {', '.join(unchecked)} with these backends and dtypes ({because})"


def _record_check(check: Check) -> dict[str, Any]:
    record = {**dataclasses.asdict(check), "passed": check.passed}
    record["pass"] = record.pop("operation_pass")
    record["backend"] = record.pop("target")
    # JSON has neither NaN nor infinity: an error that is not finite is null, and `passed` tells what it means.
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


# --- what all commands share ------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("it is empty; give names, separated by commas")
    return names


def _duration(text: str) -> float:
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = 60 * float(match[1] or 0) + float(match[2] or 0) if match else 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; give 90s, 2m or 1m30s, up to a day")
    return seconds


def _known(kind: str, given: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The names given, without repetition, or all that are known where none is given."""
    accepted = list(known)
    unknown = [name for name in given or () if name not in accepted]
    if unknown:
        raise UsageError(f"unknown {kind} {', '.join(map(repr, unknown))}; accepted: {', '.join(accepted)}")
    return accepted if given is None else list(dict.fromkeys(given))


def _dtypes() -> list[str]:
    from gradmark import backends

    return list(dict.fromkeys(name for names in backends.DTYPES.values() for name in names))


def _why_unusable(target: Target) -> str | None:
    return gradmark.why_unusable(target.backend, target.device)


def _reasons(unusable: Mapping[str, str | None]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in unusable.items() if reason is not None)


def _check_writable(file: str | None) -> None:
    """Fail before minutes are spent, and leave what is there."""
    if file in (None, "-"):
        return
    path = Path(str(file))
    if path.is_dir():
        raise UsageError(f"--json {file}: this is a folder; give a file's name, or -")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--json {file}: the folder {path.absolute().parent} does not exist")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageError(f"--json {file}: no permission to write there")


def _write_json(file: str | None, record: dict[str, Any]) -> None:
    if file is None:
        return
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {file}: {error.strerror}") from error


def _complain(message: str) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    # A terminal gets whole words in its width, a file or a pipe whole lines.
    console.print(message, soft_wrap=not console.is_terminal)


def _stdout() -> Console:
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            # Rich's own answer is exit code 1, which means a failed verification here.
            raise BrokenPipeError

    return Output(highlight=False, markup=False)


def _grid(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in ("worst\nULP", "allowed") else "left", overflow="fold")
    return grid


@contextmanager
def _progress(counted: str) -> Iterator[Progress]:
    """A progress bar on stderr that is drawn when it is told to, and gone at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn(counted + " {task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        yield progress


if __name__ == "__main__":
    sys.exit(main())
