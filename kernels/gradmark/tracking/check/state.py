"""The state of a running check: what it compares, and everything that was measured so far."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from gradmark.tracking.check import decide
from gradmark.tracking.check.repository import Project
from gradmark.tracking.check.results import KernelChange, Revision, Unavailable
from gradmark.tracking.check.rounds import Case, Round, Session
from gradmark.tracking.check.sides import HEAD, Side


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user may choose; see `gradmark check --help`.

    `patterns` are asv's `-b`; `budget` is in seconds, for measuring (building comes before); `suite` is BASE or HEAD.
    """

    patterns: tuple[str, ...] = ()
    budget: float = 600.0
    threshold: float = decide.THRESHOLD
    suite: str = HEAD
    env_spec: str | None = None
    seed: int = 0


class Display(Protocol):
    """Shows what is going on; called between measurements only."""

    def tell(self, text: str) -> None:
        """Say what is being done."""

    def phase(self, name: str, total: int) -> None:
        """A stretch of `total` steps begins."""

    def step(self, label: str) -> None:
        """One of them is done."""


@dataclass(slots=True)
class Check:
    """The state of a running check: everything that was measured so far, so that an interruption loses nothing."""

    project: Project
    base: Revision
    head: Revision
    settings: Settings
    display: Display
    sides: dict[str, Side] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What asv_runner says of each benchmark that was chosen, by name."""
    cases: list[Case] = field(default_factory=list)
    sentinels: list[Case] = field(default_factory=list)
    unavailable: list[Unavailable] = field(default_factory=list)
    only_in_base: list[str] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    screening: dict[str, list[Round]] = field(default_factory=dict)
    """The screening of those that were selected; their `Case.rounds` then hold the fresh rounds alone."""
    left_out: dict[str, str] = field(default_factory=dict)
    kernel_changes: list[KernelChange] = field(default_factory=list)
    session: Session | None = None
    interrupted: bool = False
    aborted: str = ""
    selected: int = 0
    began: float = field(default_factory=time.monotonic)
    measuring_since: float = 0.0

    @property
    def deadline(self) -> float:
        """When measuring has to end, on the monotonic clock."""
        return self.measuring_since + self.settings.budget

    def is_open(self, case: Case) -> bool:
        """Whether a case can still get a verdict from its rounds."""
        return (
            case.can_run
            and case.key not in self.verdicts
            and case.key not in self.left_out
            and all(math.isfinite(value) for value in case.log_ratios())
        )

    def judged_rounds(self, case: Case) -> list[Round]:
        """The rounds that its verdict, ratio and interval come from: fresh ones where it was selected and has any."""
        return case.rounds or self.screening.get(case.key, [])

    def recorded_rounds(self) -> Iterator[dict[str, Any]]:
        """Every burst of every case, JSON-able: seconds per call on each side, by round."""
        for case in [*self.cases, *self.sentinels]:
            screening = self.screening.get(case.key)
            yield {
                "name": case.name,
                "params": list(case.params),
                "kind": case.kind,
                "sides": list(case.sides),
                "number": case.number,
                "samples": case.samples,
                "screening": [_bursts(one) for one in (case.rounds if screening is None else screening)],
                "confirming": [_bursts(one) for one in case.rounds] if screening is not None else [],
            }


def _bursts(one: Round) -> list[list[float | None]]:
    """Of both sides; None where a benchmark gave no number, for which JSON has none."""
    return [[value if math.isfinite(value) else None for value in side] for side in (one.first, one.second)]


def duration(seconds: float) -> str:
    """90 -> "1m30s"."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return (f"{minutes}m" if minutes else "") + (f"{rest}s" if rest or not minutes else "")
