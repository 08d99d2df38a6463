"""What `python -m benchmarks.peers` prints: a line a case, who was absent and why, and the bars with every loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import bars, contenders

_HEADING = """\
Time of each contender over that of gradmark numba: the median over the rounds (99 % interval);
~ where one was given up after the trial rounds as more than three times slower than the fastest, and did not come back
in time when it was tried again.
"""


def show(entries: Sequence[Mapping[str, Any]], unmeasured: Sequence[str], why: str) -> None:
    """Print the entries, and the names of the cases that were not measured, and why they were not."""
    from gradmark import console

    out = console.stdout()
    out.print(_HEADING, soft_wrap=True)
    for entry in entries:
        out.print(_line(entry), soft_wrap=True)
    if unmeasured:
        out.print(f"\nNot measured ({why}): {'; '.join(unmeasured)}.", soft_wrap=True)
    absences: dict[str, list[str]] = {}
    for entry in entries:
        for name, reason in entry["absent"].items():
            absences.setdefault(f"{name}: {reason}", []).append(f"{entry['operation']} {entry['pass']}")
    out.print("")
    for reason, where in absences.items():
        out.print(f"{reason} ({', '.join(dict.fromkeys(where))})", soft_wrap=True)
    _print_summary(out, bars.summary(entries))


def _line(entry: Mapping[str, Any]) -> str:
    name = "+".join(filter(None, (entry["operation"], entry["variant"])))
    start = f"{name} {entry['pass']} {entry['size']} {entry['dtype']}: "
    numba = entry["seconds"].get(contenders.NUMBA)
    texts = [f"numba {_duration(numba['median'])}"] if numba else []
    texts += [f"{other} {ratio_text(ratio)}" for other, ratio in entry["over_numba"].items() if ratio]
    return start + "; ".join(texts)


def ratio_text(ratio: Mapping[str, float | None]) -> str:
    """A ratio with its interval."""
    if ratio["low"] is None:
        return f"~{ratio['median']:.3g}"
    return f"{ratio['median']:.3g} ({ratio['low']:.3g}–{ratio['high']:.3g})"


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _print_summary(out: Any, summary: Sequence[Mapping[str, Any]]) -> None:
    from gradmark import console

    grid = console.grid("bar", "asked", "compared", "held", "worst", "mean", "result")
    for bar in summary:
        met = bars.holds(bar)
        grid.add_row(
            bar["bar"],
            f"{bar['least']:.3g}",
            str(bar["compared"]),
            str(bar["held"]),
            "" if bar["worst"] is None else f"{bar['worst']:.3g}",
            "" if bar["geometric_mean"] is None else f"{bar['geometric_mean']:.3g}",
            {True: "met", False: "MISSED", None: "not measured"}[met],
            style="bold red" if met is False else None,
        )
    out.print("")
    out.print(grid)
    for bar in summary:
        if bar["losses"] and not bar.get("mean_only"):
            out.print(f"\nLosses, {bar['bar']}:", soft_wrap=True)
            for loss in bar["losses"]:
                name = "+".join(filter(None, (loss["operation"], loss["variant"])))
                where = f"{name} {loss['pass']} {loss['size']} {loss['dtype']}"
                ratio = ratio_text({**loss, "median": loss["ratio"]})
                out.print(f"  {where}: {loss['against']} takes {ratio} times our time", soft_wrap=True)
