"""The table of `gradmark choose`, at most 80 columns wide, and what has to be said below it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.table import Table

from gradmark import workloads
from gradmark.tracking import choose
from gradmark.tracking import measure as ruler
from gradmark.tracking.choose import Choice, Finding

BUSY_CORES = 0.1
"""Cores kept busy by others, above which the table warns: one burst in ten, or more, may then be disturbed."""

_NOT_MEASURED = {
    choose.BUDGET: "budget",
    choose.INTERRUPTED: "interrupted",
    choose.UNAVAILABLE: "not available",
}


def table(choice: Choice) -> Table:
    """One line for each operation, pass and size."""
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    grid.add_column("operation", no_wrap=True)
    grid.add_column("pass")
    grid.add_column("size")
    grid.add_column("fastest")
    grid.add_column("times faster\nthan the next", justify="right")
    grid.add_column("than\nnumpy", justify="right")
    for finding in choice.findings:
        workload = finding.workload
        name = "+".join(filter(None, (workload.operation, workload.variant)))
        grid.add_row(name, workload.operation_pass, workload.size, *_answer(finding))
    return grid


def footnotes(choice: Choice, *, budget: float) -> Iterator[str]:
    """What a reader of the table needs to know, one paragraph each."""
    yield (
        f"Times faster: median of the ratios within each round, with its {ruler.CONFIDENCE:.0%} interval. A tie: the"
        f" interval does not exclude a difference below {ruler.EFFECT:.0%}. “~”: more than"
        f" {ruler.HOPELESS:g} times slower than the fastest in the first {ruler.TRIAL_ROUNDS} rounds, so timed in few"
        " others; no interval."
    )
    yield from _sizes(choice)
    yield from _missing(choice, budget)
    setup = _setup_seconds(choice)
    if setup:
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in setup.items())
        yield f"Set-up (imports, inputs, compilation, first calls), which is in no time above: {spent}."
    for name, reason in choice.targets.items():
        if reason is not None:
            yield f"{name} is not usable here: {reason}."
    yield from _absent(choice)
    yield from not_quiet(choice.others_cores)
    yield f"{choice.seconds:.0f} s in all, of a budget of {budget:.0f} s."


def not_quiet(others_cores: float | None) -> Iterator[str]:
    """A warning, where others kept so many cores busy during a measurement; None where that is not known."""
    if others_cores is not None and others_cores > BUSY_CORES:
        yield (
            f"This machine was NOT QUIET: other processes kept {others_cores:.1f} cores busy meanwhile. Kernels"
            " with several threads suffer most from that, some a hundredfold: do not rely on this table, run it again."
        )


def _answer(finding: Finding) -> tuple[str, str, str]:
    verdict = finding.verdict
    if finding.status != choose.MEASURED or verdict is None:
        return "not measured", f"({_NOT_MEASURED[finding.status]})", ""
    numpy = choose.versus(finding, "numpy")
    versus_numpy = "" if numpy is None or verdict.leaders[0] == "numpy" else _times(numpy, short=True)
    if verdict.fastest is None:
        return "tie", ", ".join(verdict.leaders), versus_numpy
    if verdict.ratio is None:
        return verdict.fastest, "(alone)", versus_numpy
    return verdict.fastest, _times(verdict.ratio), versus_numpy


def _times(ratio: ruler.Interval, *, short: bool = False) -> str:
    if not math.isfinite(ratio.high):
        return f"~{_three_digits(ratio.median)}"
    if short:
        return _three_digits(ratio.median)
    return f"{_three_digits(ratio.median)} ({_three_digits(ratio.low)}–{_three_digits(ratio.high)})"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _sizes(choice: Choice) -> Iterator[str]:
    used = {finding.workload.size for finding in choice.findings}
    for name, meaning in workloads.SIZES.items():
        if name in used:
            yield f"{name}: {meaning}."


def _missing(choice: Choice, budget: float) -> Iterator[str]:
    states = [finding.status for finding in choice.findings]
    if choose.BUDGET in states:
        yield (
            f"{states.count(choose.BUDGET)} of {len(states)} were not measured: the budget of {budget:.0f} s did not"
            f" reach that far. A larger one does (--budget {math.ceil(budget / 30)}m), and so may a second run, in"
            " which Numba's kernels are already compiled."
        )
    if choice.interrupted:
        yield f"Interrupted: {states.count(choose.MEASURED)} of {len(states)} were measured before."


def _setup_seconds(choice: Choice) -> dict[str, float]:
    total: dict[str, float] = {}
    for finding in choice.findings:
        for name, seconds in finding.setup_seconds.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _absent(choice: Choice) -> Iterator[str]:
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for finding in choice.findings:
        workload = finding.workload
        for target, reason in finding.absent.items():
            targets, cells = reasons.setdefault(reason, ({}, {}))
            targets[target] = None
            cells[f"{workload.operation} {workload.operation_pass} ({workload.size})"] = None
    for reason, (targets, cells) in reasons.items():
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        yield f"{', '.join(targets)} without {', '.join(list(cells)[:3])}{more}: {reason}."
