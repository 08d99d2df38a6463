"""The command `gradmark`: check, choose, verify, backends.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a verification failed or a benchmark is
slower, 2 the command was wrong or nothing could be done, 3 a check could not measure or another choose is running, 130
interrupted, 141 nobody read the output any more.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradmark
from gradmark import catalog, check_command, choose_command, console

if TYPE_CHECKING:
    from rich.progress import Progress

    from gradmark.verification import Check
    from gradmark.workloads import Target

DONE, FAILED, WRONG, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141

_DESCRIPTION = "Activations and weight initializers in NumPy, Numba and PyTorch: verified equal, and timed."
_EXIT_CODES = (
    "exit codes: 0 done; 1 a verification failed; 2 the command was wrong, or nothing could be done;"
    " 130 interrupted (what was finished is printed)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process by default) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    options.given = given
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except console.UsageError as error:
        console.complain(f"gradmark {options.command}: {error}")
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
    check_command.add(commands)
    choose_command.add(commands)
    _add_verify(commands)
    help_text = "which backends are usable here, or why not"
    backends = commands.add_parser("backends", help=help_text, description=help_text, epilog=_EXIT_CODES)
    backends.set_defaults(run=_backends)
    return parser


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="compare the backends with the exact values",
        description="Compare each backend with the exact values, in ULP, and print the worst error of each operation.",
        epilog=_EXIT_CODES,
    )
    verify.add_argument(
        "operations", nargs="*", type=console.names, metavar="OPERATION", help="only these operations (default: all)"
    )
    verify.add_argument(
        "--backend", type=console.names, metavar="B,…", help="only these backends (default: all usable ones)"
    )
    verify.add_argument("--dtype", type=console.names, metavar="D,…", help="only these dtypes (default: all)")
    verify.add_argument("--json", metavar="FILE", help=console.JSON_HELP)
    verify.set_defaults(run=_verify)


# --- backends ---------------------------------------------------------------------------------------------------------


def _backends(options: argparse.Namespace) -> int:
    from gradmark import backends, workloads

    grid = console.grid("backend", "dtypes", "here")
    for target in workloads.TARGETS.values():
        reason = _why_unusable(target)
        grid.add_row(target.name, ", ".join(backends.DTYPES[target.backend]), reason or "usable")
    console.stdout().print(grid)
    return DONE


# --- verify -----------------------------------------------------------------------------------------------------------


def _verify(options: argparse.Namespace) -> int:
    given = [name for names in options.operations for name in names]
    operations = console.known("operation", given or None, catalog.OPERATIONS)
    console.check_writable("--json", options.json)
    with console.progress("checks") as progress:
        from gradmark import verification, workloads
        from gradmark.tracking import machine

        dtypes = console.known("dtype", options.dtype, _dtypes())
        asked = console.known("backend", options.backend, workloads.TARGETS)
        unusable = {name: _why_unusable(workloads.TARGETS[name]) for name in asked}
        if options.backend and any(unusable.values()):
            raise console.UsageError(_reasons(unusable))
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
    console.write_json(options.json, {**head, **body})
    if options.json != "-" and checks:
        _print_checks(checks, unusable, unchecked)
    if interrupted:
        console.complain("interrupted: the rest was not verified")
        return INTERRUPTED
    if not all(check.passed for check in checks):
        return FAILED
    if not checks or (options.operations and unchecked):
        raise console.UsageError(_nothing_verified(unchecked, usable, unusable))
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
    grid = console.grid("operation", "pass", "backend", "dtype", "worst\nULP", "allowed", "at", "result")
    notes: dict[str, int] = {}
    for check in checks:
        remarks = [remark for remark in (check.note, _unit_remark(check)) if remark]
        marks = "".join(f"[{notes.setdefault(remark, len(notes) + 1)}]" for remark in remarks)
        grid.add_row(
            check.operation,
            # Of a pass by a method, that on a line of its own.
            check.operation_pass.replace(" (", "\n("),
            check.target,
            check.dtype,
            f"{check.worst:.3g}",
            f"{check.allowed:.3g}",
            _shortened(check.where),
            ("pass" if check.passed else "FAIL") + marks,
            style=None if check.passed else "bold red",
        )
    out = console.stdout()
    out.print(grid)
    for note, number in notes.items():
        out.print(f"[{number}] {note}.")
    for name, reason in unusable.items():
        if reason is not None:
            out.print(f"{name} was not verified: {reason}.")
    if unchecked:
        out.print(f"Without a comparison here: {', '.join(unchecked)}.")
    failed = sum(not check.passed for check in checks)
    out.print(f"{len(checks)} checks, {failed} failed.")


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


def _dtypes() -> list[str]:
    from gradmark import backends

    return list(dict.fromkeys(name for names in backends.DTYPES.values() for name in names))


def _why_unusable(target: Target) -> str | None:
    return gradmark.why_unusable(target.backend, target.device)


def _reasons(unusable: Mapping[str, str | None]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in unusable.items() if reason is not None)


if __name__ == "__main__":
    sys.exit(main())
