"""Winners along the sizes: where each backend leads, and between which sizes the lead changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradmark.tracking import sizes

if TYPE_CHECKING:
    from gradmark.tracking.choose import Finding

FINEST = 2.0
"""Two sizes at which the winners differ are refined until they differ by no more than this factor."""

Subject = tuple[str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Range:
    """Neighbouring measured sizes with the same answer: one leader, or those that could not be told apart."""

    leaders: tuple[str, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Crossover:
    """The lead changes between these two measured sizes, in elements. What lies between them was a tie, if measured."""

    below: int
    winner_below: str
    above: int
    winner_above: str


def subject(finding: Finding) -> Subject:
    """What has one curve: operation, variant, pass, dtype and place."""
    workload = finding.workload
    return workload.operation, workload.variant, workload.operation_pass, workload.dtype, finding.place


def by_subject(findings: Iterable[Finding]) -> dict[Subject, list[Finding]]:
    """The findings of each curve, in the order of elements."""
    found: dict[Subject, list[Finding]] = {}
    for finding in findings:
        found.setdefault(subject(finding), []).append(finding)
    return {key: sorted(curve, key=lambda finding: finding.workload.elements) for key, curve in found.items()}


def ranges(curve: Iterable[Finding]) -> list[Range]:
    """Who leads where; sizes that were not measured are passed over."""
    found: list[Range] = []
    for finding in curve:
        if finding.verdict is None:
            continue
        fastest, elements = finding.verdict.fastest, finding.workload.elements
        leaders = tuple(sorted(finding.verdict.leaders)) if fastest is None else (fastest,)
        if found and found[-1].leaders == leaders:
            found[-1] = Range(leaders, found[-1].first, elements)
        else:
            found.append(Range(leaders, elements, elements))
    return found


def crossovers(curve: Iterable[Finding]) -> list[Crossover]:
    """Between which sizes the winner changes. A tie is no winner: it lies within a crossover, or in none."""
    found: list[Crossover] = []
    before: Range | None = None
    for one in ranges(curve):
        if len(one.leaders) > 1:
            continue
        if before is not None and before.leaders != one.leaders:
            found.append(Crossover(before.last, before.leaders[0], one.first, one.leaders[0]))
        before = one
    return found


def to_refine(findings: Iterable[Finding]) -> Iterator[tuple[Finding, int]]:
    """A finding of each curve that has a crossover to be narrowed, and the size that halves it; the widest first."""
    wanted = []
    for curve in by_subject(findings).values():
        measured = {finding.workload.elements for finding in curve}
        for crossover in crossovers(curve):
            middle = sizes.middle(crossover.below, crossover.above)
            # Shapes of some operations have fewer elements than were asked for.
            workload = dataclasses.replace(curve[0].workload, size=str(middle))
            if crossover.above > FINEST * crossover.below and workload.elements not in measured:
                wanted.append((crossover.above / crossover.below, curve[0], middle))
    for _, finding, middle in sorted(wanted, key=lambda one: -one[0]):
        yield finding, middle
