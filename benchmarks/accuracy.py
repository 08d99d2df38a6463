"""`python -m benchmarks.accuracy`: the worst error of every elementwise operation, in ULP.

float32 forward is checked on all 2³² inputs, everything else on more than 10⁸ points that include the hard regions;
see `gradmark.verification.sweep`. One process a core; each has one thread. With `--json FILE` the results are merged
into FILE as soon as an operation's pass is finished, so that Ctrl-C (or SIGTERM) costs only the one that is
running.

Exit codes: 0 within the bars of the catalog, 1 beyond one of them, 2 the command was wrong or nothing could be checked,
130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _evidence

if TYPE_CHECKING:
    from gradmark.verification.sweep import Job, Tally

# asv imports every module of this folder, whatever gradmark is installed: so what is needed of it is imported below.

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

BACKENDS = ("numpy", "numba")
DTYPES = ("float32", "float64")

LARGEST_STRIDE = 2**22
"""It leaves a thousand points of float32."""

CHECKED_POINTS = 10_000
"""On which the reference itself is compared with mpmath, a job of usual parameters."""
_CHECKED_AT_ONCE = 500
_SAMPLE_CHECKED_POINTS = 500


_FIELDS = (
    *("worst", "allowed", "passed", "where", "points", "exhaustive", "stride", "beyond", "disagreements"),
    *("reference_error", "code", "measured"),
)


@dataclass(slots=True)
class Subject:
    """An operation's pass in one dtype, and what is known of it so far."""

    operation: str
    operation_pass: str
    dtype: str
    backends: tuple[str, ...]
    jobs: list[Job]
    tallies: dict[str, Tally]
    outstanding: int = 0
    reference_error: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process by default) and return its exit code."""
    return _evidence.command("benchmarks.accuracy", arguments, _parser, _run, WRONG)


def _parser() -> argparse.ArgumentParser:
    from gradmark import console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--ops", type=console.names, metavar="OP,…", help="only these operations (default: all)")
    parser.add_argument("--backend", type=console.names, metavar="B,…", help="numpy, numba (default: both)")
    parser.add_argument("--dtype", type=console.names, metavar="D,…", help="float32, float64 (default: both)")
    parser.add_argument("--passes", type=console.names, metavar="P,…", help="forward, backward (default: both)")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="every N-th point (default: 1, all)")
    parser.add_argument(
        "--json", metavar="FILE", help="merge the results into this file; - for stdout, in place of the table"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out what the file has of the same code and at most this stride",
    )
    return parser


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    from gradmark import catalog, console

    operations = console.known("operation", options.ops, [row.name for row in catalog.ACTIVATIONS])
    backends = console.known("backend", options.backend, BACKENDS)
    dtypes = console.known("dtype", options.dtype, DTYPES)
    passes = console.known("pass", options.passes, catalog.PASSES)
    if not 1 <= options.stride <= LARGEST_STRIDE:
        raise console.UsageError(f"--stride {options.stride}: give 1 (all points) to {LARGEST_STRIDE}")
    if options.resume and options.json in (None, "-"):
        raise console.UsageError("--resume needs --json FILE, which says what is there")
    file = _evidence.Growing(options.json, "accuracy", _key, _FIELDS)
    absent = _absent(operations, backends)
    wanted = [
        (operation, which, backend, dtype)
        for operation in operations
        for dtype in dtypes
        for which in passes
        for backend in backends
        if (operation, backend) not in absent
    ]
    kept = _kept(wanted, file.entries, options)
    head = _evidence.head("accuracy", "benchmarks.accuracy", given)
    finished: list[dict[str, Any]] = [file.entries[key] for key in wanted if key in kept]
    code = DONE
    try:
        for subject in _sweep(_subjects([key for key in wanted if key not in kept], options.stride)):
            found = [_entry(subject, backend, options.stride, head) for backend in subject.backends]
            finished += found
            file.add(found, functools.partial(_record, head))
    except KeyboardInterrupt:
        code = INTERRUPTED
    if options.json == "-":
        console.write_json("-", {**head, "entries": finished})
    else:
        _print(finished, absent)
    if code == INTERRUPTED:
        console.complain("interrupted: what was finished is kept" if file.problem is None else "interrupted")
        return code
    if not finished:
        raise console.UsageError("nothing could be checked")
    if file.problem is not None:
        raise console.UsageError(file.problem)
    return DONE if all(entry["passed"] for entry in finished) else FAILED


def _kept(wanted: Iterable[Key], entries: Mapping[Key, dict[str, Any]], options: argparse.Namespace) -> set[Key]:
    """What the file has of this code and at least as finely; UsageError where that would be replaced by less."""
    from gradmark import console

    known = {key for key in wanted if _is_fresh(entries.get(key), key, options.stride)}
    if options.resume:
        return known
    finer = [" ".join(key) for key in wanted if key in known and entries[key]["stride"] < options.stride]
    if finer:
        raise console.UsageError(
            f"--json {options.json}: it has {len(finer)} results of this code with a smaller stride ({finer[0]}, …);"
            " give another file, or --resume, which keeps them"
        )
    return set()


def _absent(operations: Iterable[str], backends: Iterable[str]) -> dict[tuple[str, str], str]:
    """What cannot be checked here, and why."""
    import gradmark

    found = {}
    for backend in backends:
        reason = gradmark.why_unusable(backend)
        for operation in operations:
            if reason is not None:
                found[operation, backend] = reason
                continue
            try:
                getattr(gradmark.backend(backend), operation)
            except AttributeError:
                found[operation, backend] = f"the {backend} backend has no {operation}"
    return found


# --- the sweep --------------------------------------------------------------------------------------------------------


def _subjects(keys: Iterable[tuple[str, str, str, str]], stride: int) -> list[Subject]:
    from gradmark import catalog
    from gradmark.verification import sweep

    grouped: dict[tuple[str, str, str], list[str]] = {}
    for operation, which, backend, dtype in keys:
        grouped.setdefault((operation, which, dtype), []).append(backend)
    return [
        Subject(
            operation,
            which,
            dtype,
            tuple(backends),
            sweep.jobs(catalog.operation(operation), which, dtype, backends, stride=stride),
            {backend: sweep.Tally() for backend in backends},
        )
        for (operation, which, dtype), backends in grouped.items()
    ]


Task = tuple[Subject, float, Callable[..., Any], tuple[Any, ...]]
"""Whose it is, its weight for the progress bar, and what a worker is to call."""


def _tasks(subjects: Iterable[Subject]) -> Iterator[Task]:
    from gradmark.verification import sweep

    for subject in subjects:
        for job in subject.jobs:
            points = CHECKED_POINTS if job.is_usual else _SAMPLE_CHECKED_POINTS
            for start in range(0, points, _CHECKED_AT_ONCE):
                yield subject, 0.2, sweep.reference_error, (job, start, _CHECKED_AT_ONCE)
            weight = {"float32": 1.0, "float64": 4.0}[subject.dtype]
            for piece in sweep.pieces(job):
                yield subject, weight * piece.count / sweep.PIECE[subject.dtype], sweep.judge, (piece,)


def _sweep(subjects: Sequence[Subject]) -> Iterator[Subject]:
    """The subjects, as they are finished."""
    from gradmark import console
    from gradmark.tracking import machine

    total = 0.0
    for subject, weight, _, _ in _tasks(subjects):
        subject.outstanding += 1
        total += weight
    if not subjects:
        return
    cores = _cores()
    os.environ.update(dict.fromkeys(machine.THREAD_VARIABLES, "1"))
    # Not forked: OpenMP's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    with (
        _evidence.terminated_like_interrupted(),
        console.progress("time left") as progress,
        ProcessPoolExecutor(cores, mp_context=context, initializer=_ignore_interrupts) as pool,
    ):
        display = _Display(progress, total)
        pending: dict[Future[Any], Task] = {}
        try:
            for task in _tasks(subjects):
                pending[pool.submit(task[2], *task[3])] = task
                if len(pending) >= 3 * cores:
                    yield from _collect(pending, display)
            while pending:
                yield from _collect(pending, display)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _collect(pending: dict[Future[Any], Task], display: _Display) -> Iterator[Subject]:
    from gradmark.verification import sweep

    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        subject, weight, function, _ = pending.pop(future)
        found = future.result()
        if function is sweep.judge:
            for backend, tally in found.items():
                subject.tallies[backend] += tally
        else:
            subject.reference_error = max(subject.reference_error, found)
        subject.outstanding -= 1
        display.advance(f"{subject.operation} {subject.operation_pass} {subject.dtype}", weight)
        if not subject.outstanding:
            yield subject


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Display:
    _EVERY = 0.25

    def __init__(self, progress: Any, total: float) -> None:
        self._progress = progress
        self._total = total
        self._done = 0.0
        self._began = time.perf_counter()
        self._drawn = 0.0
        self._task = progress.add_task("starting", total=total, left="?")
        progress.refresh()

    def advance(self, name: str, weight: float) -> None:
        self._done += weight
        now = time.perf_counter()
        if now - self._drawn >= self._EVERY:
            self._drawn = now
            minutes, seconds = divmod(round((now - self._began) * (self._total / self._done - 1)), 60)
            self._progress.update(
                self._task, completed=self._done, description=name, left=f"{minutes}:{seconds:02}", refresh=True
            )


# --- results ----------------------------------------------------------------------------------------------------------

Key = tuple[str, str, str, str]


def _key(entry: Mapping[str, Any]) -> Key:
    return entry["operation"], entry["pass"], entry["backend"], entry["dtype"]


def _entry(subject: Subject, backend: str, stride: int, head: Mapping[str, Any]) -> dict[str, Any]:
    from gradmark import catalog
    from gradmark.verification import sweep

    tally = subject.tallies[backend]
    row = catalog.operation(subject.operation)
    allowed = row.ulp[subject.operation_pass]
    resolution = sweep.RESOLUTION[subject.dtype]
    passed = tally.worst <= allowed + resolution and not tally.nan and not tally.sign
    return {
        "operation": subject.operation,
        "pass": subject.operation_pass,
        "backend": backend,
        "dtype": subject.dtype,
        # JSON has no infinity: null, and `disagreements` tells what it was.
        "worst": max(tally.worst, 0.0) if math.isfinite(tally.worst) else None,
        "allowed": allowed,
        "passed": bool(passed and subject.reference_error <= resolution),
        "where": tally.where,
        "points": tally.points,
        "exhaustive": any(job.exhaustive for job in subject.jobs),
        "stride": stride,
        "beyond": {
            str(bound): count / max(tally.points, 1) for bound, count in zip(sweep.BOUNDS, tally.beyond, strict=True)
        },
        "disagreements": {"nan": tally.nan, "inf": tally.inf, "sign": tally.sign},
        "reference_error": subject.reference_error,
        "code": _code(subject.operation, backend),
        "measured": _evidence.measured(head),
    }


_DRAWN = ("philox", "haar", "blas")
"""Modules of `numerics` that make random weights: nothing that is swept stands on them."""


def _code(operation: str, backend: str) -> str:
    """A fingerprint of what an entry is about: the row, the backend's activations, what they stand on, the judge.

    Nothing is swept with a seed (rrelu has one in training only).
    """
    import gradmark
    from gradmark import catalog

    package = Path(gradmark.__file__).parent
    return _evidence.fingerprint(
        catalog.operation(operation),
        package / "activations" / f"{backend}.py",
        *(file for file in sorted((package / "numerics").glob("*.py")) if not file.name.startswith(_DRAWN)),
        package / "verification" / "sweep.py",
        package / "verification" / "wide.py",
    )


def _is_fresh(entry: Mapping[str, Any] | None, key: Key, stride: int) -> bool:
    operation, _, backend, _ = key
    return entry is not None and entry["stride"] <= stride and entry["code"] == _code(operation, backend)


def _record(head: Mapping[str, Any], entries: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
    order = {key: n for n, key in enumerate(_catalog_order())}
    return {**head, "entries": sorted(entries.values(), key=lambda entry: order.get(_key(entry), len(order)))}


def _catalog_order() -> Iterator[Key]:
    from gradmark import catalog

    for row in catalog.ACTIVATIONS:
        for which in catalog.PASSES:
            for backend in BACKENDS:
                for dtype in DTYPES:
                    yield row.name, which, backend, dtype


def _print(finished: Sequence[Mapping[str, Any]], absent: Mapping[tuple[str, str], str]) -> None:
    from gradmark import console

    out = console.stdout()
    for entry in finished:
        out.print(_line(entry), soft_wrap=True, style=None if entry["passed"] else "bold red")
    if finished:
        failed = sum(not entry["passed"] for entry in finished)
        exhaustive = sum(entry["exhaustive"] for entry in finished)
        out.print(f"{len(finished)} entries, {exhaustive} over all inputs, {failed} beyond what is allowed.")
    for reason in dict.fromkeys(absent.values()):
        out.print(f"Not checked: {reason}.")


def _line(entry: Mapping[str, Any]) -> str:
    worst = "not finite" if entry["worst"] is None else f"{entry['worst']:.4g} ULP"
    texts = [f"{' '.join(_key(entry))}: {worst} of {entry['allowed']:g}"]
    place = ", ".join(f"{name} = {value}" for name, value in entry["where"].items() if name not in ("result", "exact"))
    if place:
        texts.append(f"at {place}: {entry['where']['result']} instead of {entry['where']['exact']}")
    beyond = [f"{fraction:.2g} beyond {bound}" for bound, fraction in entry["beyond"].items() if fraction]
    texts.append(f"{entry['points']:.4g} points" + "".join(f", {text}" for text in beyond))
    texts += [f"{count} disagree about {name}" for name, count in entry["disagreements"].items() if count]
    if entry["reference_error"] > 1e-2:
        texts.append(f"the reference errs by {entry['reference_error']:.2g}")
    return "; ".join(texts) + ("" if entry["passed"] else "; FAIL")


if __name__ == "__main__":
    sys.exit(main())
