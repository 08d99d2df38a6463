"""What a check found: plain data, the same for the terminal, for JSON, for Markdown and for asv."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SLOWER, FASTER, SAME, UNDECIDED, FAILED = "slower", "faster", "same", "undecided", "failed"
VERDICTS = (SLOWER, FASTER, SAME, UNDECIDED, FAILED)
"""Each benchmark gets exactly one; in the order in which they are shown."""

SERIAL, PARALLEL, DEVICE = "serial", "parallel", "device"
"""Classes of timings: one thread; several threads; a CUDA device."""

MEMORY, PEAK_MEMORY, TRACK = "memory", "peakmemory", "track"
"""Classes of other benchmarks, asv's mem_*, peakmem_* and track_*."""

NOTHING_SLOWER, SOMETHING_SLOWER, USAGE, NOT_MEASURED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""

SCHEMA = 1
"""Of the JSON. Raised when a field changes its meaning or goes; a new field does not raise it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One benchmark with one combination of parameters, head against base.

    Attributes
    ----------
    name : str
        As asv writes it, "activations.Gelu.time_forward".
    params : tuple of str
        The parameters' representations, in asv's order; empty where there are none.
    kind : str
        SERIAL, PARALLEL or DEVICE for timings; MEMORY, PEAK_MEMORY or TRACK.
    verdict : str
        One of VERDICTS. For memory and tracked values "slower" means that head needs more.
    unit : str
        Of `base` and `head`: "seconds", "bytes", or what a track_* benchmark says.
    ratio, low, high : float or None
        Head over base, with its interval (`Report.confidence`). None where there is none.
    detectable : float or None
        The smallest slowdown, as a fraction (0.04 is 4 %), that this run would have caught in this benchmark with
        90 % probability. None where it is not known.
    rounds : int
        Pairs of fresh processes that ratio and interval come from.
    base, head : float or None
        Typical value on each side: the median over those rounds.
    reason : str or None
        Failed: the error. Undecided: what would decide it. Else None or a remark. May hold text of the measured
        project: it is data, to be escaped wherever it is shown.
    side : str or None
        Failed: "base", "head" or "base and head".
    """

    name: str
    params: tuple[str, ...]
    kind: str
    verdict: str
    unit: str = "seconds"
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    rounds: int = 0
    base: float | None = None
    head: float | None = None
    reason: str | None = None
    side: str | None = None

    @property
    def label(self) -> str:
        """Name and parameters as one text: "module.time_x('a', 3)"."""
        return f"{self.name}({', '.join(self.params)})" if self.params else self.name


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A benchmark that neither side can run here (asv's n/a), and why. Not among the comparisons."""

    name: str
    params: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class KernelChange:
    """A Numba kernel whose compiled loop lost something between base and head. No timing is part of it.

    Attributes
    ----------
    kernel : str
        The function's qualified name and its signature.
    benchmark : str
        The label of a benchmark that calls it.
    what : str
        Such as "lost vectorization: 16 lanes → 1", or "calls expf in its loop".
    base, head : mapping
        What was counted in the assembly of each side.
    """

    kernel: str
    benchmark: str
    what: str
    base: dict[str, Any]
    head: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sentinel:
    """The A/A control: base against a second copy of base, measured and judged as everything else is.

    Attributes
    ----------
    comparisons : tuple of Comparison
        `base` is the base, `head` its copy.
    biased : bool
        Whether one of them came out slower or faster. Then no verdict of the check can be trusted.
    """

    comparisons: tuple[Comparison, ...]
    biased: bool


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """What the noise of this very run says about its verdicts; resampled from its own rounds.

    Attributes
    ----------
    false_alarm : float
        Share of simulated checks of identical code that came out with at least one "slower".
    false_alarm_bound : float
        Upper end of the one-sided 95 % interval of that probability (Clopper, Pearson, Biometrika 26, 1934).
    simulations : int
        How many checks were simulated.
    detectable : float or None
        The smallest slowdown, as a fraction, that would have been caught with 90 % probability had it been in one
        benchmark, each being as likely. None where there is none up to 100 %.
    """

    false_alarm: float
    false_alarm_bound: float
    simulations: int
    detectable: float | None


@dataclass(frozen=True, slots=True)
class Revision:
    """One side: what the user called it, its commit, and whether uncommitted changes are in it."""

    name: str
    commit: str
    uncommitted: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """All that a check has to say.

    `notes` are sentences for the reader (what was assumed, what differs between the sides); `unavailable` and
    `only_in_base` list benchmarks that are not among the comparisons; `environment` says what both sides ran on.
    `aborted` is the error of the machine (a full disk) that ended the measurement early, or empty.
    `suite` is "base" or "head". `threshold` is the smallest change that counts, 0.03 being 3 %.
    """

    project: str
    base: Revision
    head: Revision
    suite: str
    threshold: float
    confidence: float
    comparisons: tuple[Comparison, ...]
    unavailable: tuple[Unavailable, ...] = ()
    only_in_base: tuple[str, ...] = ()
    kernel_changes: tuple[KernelChange, ...] = ()
    sentinel: Sentinel | None = None
    error_rates: ErrorRates | None = None
    notes: tuple[str, ...] = ()
    environment: str = ""
    seconds: float = 0.0
    rounds: int = 0
    interrupted: bool = False
    aborted: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def count(self, verdict: str) -> int:
        """How many benchmarks have this verdict; the sum over VERDICTS is the number of comparisons."""
        return sum(comparison.verdict == verdict for comparison in self.comparisons)

    @property
    def exit_code(self) -> int:
        """0 nothing slower, 1 something slower, 3 not or not fully measured or a biased sentinel, 130 Ctrl-C."""
        if self.interrupted:
            return INTERRUPTED
        measured = any(c.verdict != FAILED and c.rounds for c in self.comparisons)
        if self.aborted or not measured or (self.sentinel is not None and self.sentinel.biased):
            return NOT_MEASURED
        return SOMETHING_SLOWER if self.count(SLOWER) else NOTHING_SLOWER
