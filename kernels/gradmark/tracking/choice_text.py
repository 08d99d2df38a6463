"""What `gradmark choose --show` and `--explain` print of what was saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from gradmark.profiles import Decision, Profile
from gradmark.tracking import choice_profile, choice_table, sizes
from gradmark.tracking.curves import Range

_UNITS = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns"))


def profile_table(profile: Profile, operations: Sequence[str]) -> Table:
    """One line for each decision on these operations: who leads at which sizes."""
    grid = _grid()
    for column in ("operation", "pass", "dtype", "fastest, at which numbers of elements"):
        grid.add_column(column, no_wrap=column != "fastest, at which numbers of elements")
    for decision in profile.decisions:
        if decision.operation not in operations:
            continue
        name = "+".join(filter(None, (decision.operation, decision.variant)))
        where = "" if decision.place == "host" else f"{decision.place}: "
        grid.add_row(name, decision.operation_pass, decision.dtype, where + " | ".join(_ranges(decision)))
    return grid


def _ranges(decision: Decision) -> list[str]:
    found: list[Range] = []
    for point in decision.points:
        leaders = (point.fastest,) if point.fastest else tuple(sorted(point.leaders))
        if found and found[-1].leaders == leaders:
            found[-1] = Range(leaders, found[-1].first, point.elements)
        else:
            found.append(Range(leaders, point.elements, point.elements))
    return [choice_table.range_text(one) for one in found]


def nearest(results: Sequence[Mapping[str, Any]], elements: int) -> Mapping[str, Any]:
    """The result that decides for a call of so many elements, as `gradmark.dispatch` and profiles do.

    The size that is nearest, on a log scale, to the power of two that is not above it.
    """
    served_as = math.log(1 << (max(elements, 1).bit_length() - 1))
    return min(results, key=lambda one: abs(math.log(one["elements"]) - served_as))


def explanation(results: Sequence[Mapping[str, Any]], elements: int) -> Iterator[str | Table]:
    """The evidence for one decision, in paragraphs and tables.

    Parameters
    ----------
    results : sequence of mapping
        Of one operation, variant, pass, dtype and place; see `gradmark.tracking.choice_profile.evidence`.
    elements : int
        The size that was asked for.
    """
    one = nearest(results, elements)
    name = "+".join(filter(None, (one["operation"], one["variant"])))
    size = sizes.shown(one["elements"])
    near = "" if one["elements"] == elements else f", the nearest measured to {sizes.shown(elements)}"
    place = "" if one["place"] == "host" else f", {one['place']}"
    yield f"{name} {one['pass']}, {one['dtype']}{place}, {size} elements{near}: {_verdict(one)}"
    yield _times(one)
    beside = choice_profile.crossovers_beside(results, one["elements"])
    for change in beside:
        yield (
            f"Crossover between {sizes.shown(change.below)} ({change.winner_below}) and"
            f" {sizes.shown(change.above)} elements ({change.winner_above})."
        )
    if not beside:
        measured = ", ".join(sizes.shown(n) for n in sorted(result["elements"] for result in results))
        yield f"No crossover between the sizes measured: {measured}."
    if one["compile_seconds"] is not None:
        spent = one["compile_seconds"]
        yield f"Numba's compilation, in no time above: {f'{spent:.2f} s' if spent else 'none, it was in the cache'}."


def _verdict(one: Mapping[str, Any]) -> str:
    if one["fastest"] is None:
        return f"a tie of {', '.join(one['leaders'])}."
    if one["runner_up"] is None:
        return f"{one['fastest']}, alone."
    ratio = one["runner_up_over_first"]
    return f"{one['fastest']}; {one['runner_up']} takes {_ratio(ratio)} times as long."


def _ratio(ratio: Mapping[str, float | None] | None) -> str:
    if ratio is None or ratio["median"] is None:
        return ""
    bounds = f" ({ratio['low']:.3g}–{ratio['high']:.3g})" if ratio["low"] and ratio["high"] else ""
    return f"{'' if bounds else '~'}{ratio['median']:.3g}{bounds}"


def _times(one: Mapping[str, Any]) -> Table:
    grid = _grid()
    for column in ("backend", "time per call (99 %)", "rounds x calls", "times the first's"):
        grid.add_column(column, justify="left" if column == "backend" else "right")
    for name, timed in sorted(one["backends"].items(), key=lambda item: item[1]["seconds_per_call"]["median"]):
        seconds = timed["seconds_per_call"]
        first = name == one["leaders"][0]
        calls = f"{timed['rounds']} x {timed['calls_per_round']}"
        grid.add_row(name, _seconds(seconds), calls, "1" if first else _ratio(timed["over_first"]))
    return grid


def _seconds(seconds: Mapping[str, float | None]) -> str:
    """The median with its interval, in the unit that suits the median."""
    median = seconds["median"] or 0.0
    scale, unit = next(((s, u) for s, u in _UNITS if median >= 1 / s), _UNITS[-1])
    low, high = seconds["low"], seconds["high"]
    bounds = "" if low is None or high is None else f" ({low * scale:.4g}–{high * scale:.4g})"
    return f"{median * scale:.4g}{bounds} {unit}"


def origin(measured: Mapping[str, Any]) -> str:
    """When, on what and by which command it was measured."""
    machine, versions = measured["machine"], measured["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    busy = measured["others_cores"]
    quiet = "" if busy is None else f" Other processes kept {busy:.2f} cores busy meanwhile."
    return (
        f"Measured {measured['created']} on {machine['cpu']}, {measured['threads']} threads, {machine['system']};"
        f" {libraries}; by `{measured['command']}`.{quiet}"
    )


def _grid() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
