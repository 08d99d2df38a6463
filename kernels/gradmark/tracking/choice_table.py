"""The tables of `gradmark choose`, at most 80 columns wide, and what has to be said below them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from gradmark import workloads
from gradmark.tracking import choose, compile_ahead, curves, sizes
from gradmark.tracking import measure as ruler
from gradmark.tracking.choose import Choice, Finding

BUSY_CORES = 0.1
"""Cores kept busy by others, above which the table warns: one burst in ten, or more, may then be disturbed."""

DISTURBING_CORES = 0.5
"""From here on a choice is not saved: NumPy, on one core, was then seen to win over Numba, on all."""

WIDE = 110
"""Columns from which on the ratios have their intervals."""

_PLACES = {
    "host": "arrays on the host",
    "host-to-device-and-back": "arrays on the host; a device includes the copies there and back",
    "device": "arrays on the device already",
}

_NOT_MEASURED = {
    choose.BUDGET: "budget",
    choose.INTERRUPTED: "interrupted",
    choose.UNAVAILABLE: "not available",
}


def tables(choice: Choice, *, width: int = 80) -> Iterator[Table]:
    """A table for each place and dtype, with one line for each operation and pass.

    Parameters
    ----------
    choice : Choice
    width : int
        Columns of the terminal; from `WIDE` on the ratios have their intervals.
    """
    found = curves.by_subject(choice.findings)
    kinds = list(dict.fromkeys((place, dtype) for _, _, _, dtype, place in found))
    for place, dtype in kinds:
        rows = {subject: curve for subject, curve in found.items() if subject[3:] == (dtype, place)}
        yield _table(rows, f"{dtype}, {_PLACES[place]}" if len(kinds) > 1 else None, width)


def _table(rows: Mapping[curves.Subject, list[Finding]], title: str | None, width: int) -> Table:
    grid = Table(
        title=title, title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold",
    )  # fmt: skip
    grid.add_column("operation", no_wrap=True)
    grid.add_column("pass", no_wrap=True)
    grid.add_column("fastest, at which\nnumbers of elements")
    columns = _columns(rows.values())
    for elements in columns:
        grid.add_column(f"{sizes.shown(elements)}: next\n/ numpy", justify="right", no_wrap=True)
    for (operation, variant, operation_pass, _, _), curve in rows.items():
        name = "+".join(filter(None, (operation, variant)))
        at = {finding.workload.elements: finding for finding in curve}
        leads = (_lead(at.get(elements), intervals=width >= WIDE) for elements in columns)
        grid.add_row(name, operation_pass, _winners(curve), *leads)
    return grid


def _columns(found: Iterable[list[Finding]]) -> list[int]:
    """A middle and a large size: of those at which half of what was measured anywhere was measured."""
    counts: dict[int, int] = {}
    measured = [[f.workload.elements for f in curve if f.status == choose.MEASURED] for curve in found]
    for curve in measured:
        for elements in curve:
            counts[elements] = counts.get(elements, 0) + 1
    common = sorted(n for n, count in counts.items() if 2 * count >= len([curve for curve in measured if curve]))
    return [common[(len(common) - 1) // 2], common[-1]] if len(common) > 1 else common


def _winners(curve: Sequence[Finding]) -> str:
    found = curves.ranges(curve)
    if not found:
        status = next((f.status for f in curve if f.status != choose.BUDGET), choose.BUDGET)
        return f"not measured ({_NOT_MEASURED[status]})"
    without = any(choose.NOT_COMPILED in finding.absent.values() for finding in curve)
    return " | ".join(range_text(one) for one in found) + (" (without numba)" if without else "")


def range_text(one: curves.Range) -> str:
    """Such as "numba 2^10–2^16", or "numba=torch 2^20" for a tie."""
    ends = dict.fromkeys((sizes.shown(one.first), sizes.shown(one.last)))
    return f"{'='.join(one.leaders)} {'–'.join(ends)}"


def _lead(finding: Finding | None, *, intervals: bool) -> str:
    """The lead over the next, and over NumPy."""
    if finding is None or finding.verdict is None:
        return ""
    verdict, numpy = finding.verdict, finding.over_first.get("numpy")
    following = "alone" if verdict.ratio is None else _times(verdict.ratio, short=not intervals)
    if verdict.fastest is None:
        following = "tie"
    return f"{following} / {'' if numpy is None else _times(numpy, short=True)}"


def footnotes(choice: Choice, *, budget: float | None) -> Iterator[str]:
    """What a reader of the table needs to know, one paragraph each. A budget of None: nothing was measured here."""
    yield (
        "Fastest: at the sizes measured, in elements; between two ranges lies a crossover, and “a=b” is a tie. Next,"
        " numpy: how many times the fastest’s time the next one and NumPy take. A winner is named where the"
        f" {ruler.CONFIDENCE:.0%} interval excludes a difference below {ruler.EFFECT:.0%}."
    )
    if budget is None:
        yield (
            "By times that asv has recorded: they are not paired, so the intervals of two backends must not overlap, or"
            f" one must take more than {ruler.HOPELESS:g} times as long."
        )
    else:
        yield (
            "Ratios: medians over the rounds; gradmark choose --explain OPERATION SIZE shows their intervals. “~”: more"
            f" than {ruler.HOPELESS:g} times slower in the first {ruler.TRIAL_ROUNDS} rounds, so timed in few others."
        )
    yield from _sizes(choice)
    if budget is not None:
        yield from _missing(choice, budget)
    yield from _setup(choice)
    for name, reason in choice.targets.items():
        if reason is not None and budget is not None and workloads.TARGETS[name].device != "cpu":
            yield f"{name}: not measured: no CUDA device ({reason})."
        elif reason is not None:
            yield f"{name} is not usable here: {reason}." if budget is not None else f"{name}: {reason}."
    yield from _absent(choice)
    yield from not_quiet(choice.others_cores)
    if budget is not None:
        yield f"{choice.seconds:.0f} s in all, of a budget of {budget:.0f} s."


def not_quiet(others_cores: float | None) -> Iterator[str]:
    """A warning, where others kept so many cores busy during a measurement; None where that is not known."""
    if others_cores is not None and others_cores > BUSY_CORES:
        yield (
            f"This machine was NOT QUIET: other processes kept {others_cores:.1f} cores busy meanwhile. Kernels"
            " with several threads suffer most from that, some a hundredfold: do not rely on this table, run it again."
        )


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
        where: dict[int, int] = {}
        for finding in choice.findings:
            if finding.status == choose.BUDGET:
                where[finding.workload.elements] = where.get(finding.workload.elements, 0) + 1
        counts = ", ".join(f"{count} at {sizes.shown(elements)}" for elements, count in sorted(where.items()))
        unanswered = sum(not curves.ranges(curve) for curve in curves.by_subject(choice.findings).values())
        yield (
            f"{states.count(choose.BUDGET)} of {len(states)} sizes were not measured: the budget of {budget:.0f} s did"
            f" not reach that far ({counts}); {unanswered or 'none'} of the operations and passes got no answer at all."
            f" A larger budget goes further (--budget {math.ceil(budget / 30)}m), and so do fewer operations (--ops),"
            " or a second run, in which Numba's kernels are already compiled."
        )
    if choice.interrupted:
        yield f"Interrupted: {states.count(choose.MEASURED)} of {len(states)} were measured before."


def _setup(choice: Choice) -> Iterator[str]:
    """What came before the measurements, Numba's compilation apart."""
    total: dict[str, float] = {}
    for finding in choice.findings:
        for name, seconds in finding.setup_seconds.items():
            total[name] = total.get(name, 0.0) + seconds
    if total:
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in total.items())
        yield f"Set-up (imports, inputs, first calls), which is in no time above: {spent}."
    of_kernels = {
        compile_ahead.kernel_of(finding.workload): finding.compile_seconds
        for finding in choice.findings
        if finding.compile_seconds is not None
    }
    if of_kernels:
        ahead = choice.compilation
        how = f" (in {ahead.processes} processes, {ahead.elapsed:.0f} s)" if ahead and ahead.processes > 1 else ""
        yield f"Numba's compilation, which is in no time above either: {sum(of_kernels.values()):.1f} s{how}."


def _absent(choice: Choice) -> Iterator[str]:
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for finding in choice.findings:
        workload = finding.workload
        for target, reason in finding.absent.items():
            targets, cells = reasons.setdefault(reason, ({}, {}))
            targets[target] = None
            cells[f"{workload.operation} {workload.operation_pass} ({sizes.shown(workload.elements)})"] = None
    for reason, (targets, cells) in reasons.items():
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        yield f"{', '.join(targets)} without {', '.join(list(cells)[:3])}{more}: {reason}."
