"""From the state of a check to its report."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradmark.tracking.check import decide, error_rates
from gradmark.tracking.check.results import FAILED, FASTER, SLOWER, UNDECIDED, Comparison, Report, Sentinel
from gradmark.tracking.check.rounds import Case, typical
from gradmark.tracking.check.sides import HEAD
from gradmark.tracking.check.state import Check, duration


def report(check: Check) -> Report:
    """What was found so far."""
    rng = np.random.default_rng(check.settings.seed)
    timings = {case.key for case in check.cases if case.is_timing}
    noise = {case.key: _noise(check, case) for case in check.cases}
    # A value that never varies has no noise: it is compared exactly.
    known = {key: one for key, one in noise.items() if one is not None and (key in timings or one.residuals.any())}
    shifts = {
        # Had it been slow, the screening would have selected it as well.
        case.key: error_rates.needed_shifts(
            known[case.key],
            check.settings.threshold,
            check.selected + (case.key not in check.screening),
            rng,
            _looks(check, case),
        )
        for case in check.cases
        if case.key in known
    }
    rates = None
    if known:
        red, simulations = error_rates.false_alarm(list(known.values()), check.settings.threshold, rng)
        # The power is that of the timings. One that was hardly measured, or not at all, would not have been found.
        unseen = sum(case.is_timing and case.can_run and case.key not in known for case in check.cases)
        timed = [needed for key, needed in shifts.items() if key in timings]
        rates = error_rates.summarize(red, simulations, [*timed, *[error_rates.NEVER] * unseen])
    comparisons = tuple(_comparison(check, case, shifts.get(case.key)) for case in check.cases)
    return Report(
        project=str(check.sides[HEAD].conf.project),
        base=check.base,
        head=check.head,
        suite=check.settings.suite,
        threshold=check.settings.threshold,
        confidence=decide.CONFIDENCE,
        comparisons=comparisons,
        unavailable=tuple(check.unavailable),
        only_in_base=tuple(check.only_in_base),
        kernel_changes=tuple(check.kernel_changes),
        sentinel=_sentinel(check),
        error_rates=rates,
        notes=tuple(check.notes),
        environment=check.sides[HEAD].environment,
        seconds=time.monotonic() - check.began,
        rounds=check.session.completed if check.session else 0,
        interrupted=check.interrupted,
        aborted=check.aborted,
    )


def _noise(check: Check, case: Case) -> error_rates.Noise | None:
    return error_rates.Noise.of(case.worsening(check.judged_rounds(case)))


def _looks(check: Check, case: Case) -> Sequence[int]:
    """The fresh rounds after which it was judged, or would have been had it been selected, in this run."""
    if case.key not in check.screening and len(case.rounds) < decide.SCREEN_ROUNDS:
        return ()
    unsettled = {
        one.key: len(one.rounds)
        for one in check.cases
        if one.key in check.screening
        and check.verdicts.get(one.key, UNDECIDED) == UNDECIDED
        and one.can_run
        and all(math.isfinite(value) for value in one.log_ratios())
    }
    # Where budget or Ctrl-C ended the confirming, what was still open had fewer rounds than the last look takes.
    rounds = unsettled.get(case.key, max(unsettled.values(), default=decide.LOOKS[-1]))
    return [*(look for look in decide.LOOKS if look < rounds), rounds] if rounds else ()


def _comparison(check: Check, case: Case, shifts: Any) -> Comparison:
    verdict, reason, side = check.verdicts.get(case.key, UNDECIDED), None, None
    if case.failure is not None:
        side, reason = case.failure
        verdict = FAILED
    judged = check.judged_rounds(case)
    values = [one.log_ratio for one in judged]
    found = Comparison(
        name=case.name,
        params=case.params,
        kind=case.kind,
        verdict=verdict,
        unit="seconds" if case.is_timing else str(case.facts.get("unit") or "unit"),
        reason=reason,
        side=side,
        rounds=len(values),
        detectable=error_rates.detectable(shifts) if shifts is not None else None,
    )
    if judged:
        found = replace(
            found,
            base=_finite(statistics.median(typical(one.first) for one in judged)),
            head=_finite(statistics.median(typical(one.second) for one in judged)),
        )
    if values and all(math.isfinite(value) for value in values):
        one = decide.estimate(values)
        finite = math.isfinite(one.low) and math.isfinite(one.high)
        found = replace(
            found,
            ratio=math.exp(one.log_ratio),
            low=math.exp(one.low) if finite else None,
            high=math.exp(one.high) if finite else None,
        )
    if found.verdict == UNDECIDED:
        found = replace(found, reason=_what_would_decide(check, case, found))
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _what_would_decide(check: Check, case: Case, found: Comparison) -> str:
    if case.key in check.left_out:
        return check.left_out[case.key]
    if check.interrupted or check.aborted:
        return "interrupted before it was settled" if check.interrupted else f"not settled before {check.aborted}"
    if found.ratio is None:
        return (
            "its values are not positive numbers, so that there is no ratio"
            if case.rounds
            else "no round was completed"
        )
    if case not in check.sentinels and len(case.rounds) < decide.LOOKS[-1]:
        return f"the budget of {duration(check.settings.budget)} ended after {found.rounds} rounds (--budget)"
    seen = (
        f"a change of {found.detectable:+.1%} or more would have been seen"
        if found.detectable
        else "it varies too much"
    )
    return f"its interval reaches over the threshold; {seen}"


def _sentinel(check: Check) -> Sentinel | None:
    """Judge the control by the rule that judges the others, on all of its rounds."""
    measured = [case for case in check.sentinels if case.failure is None and len(case.rounds) >= decide.SCREEN_ROUNDS]
    if not measured:
        return None
    found = {case.key: decide.estimate(case.log_ratios()) for case in measured}
    verdicts = decide.look(found, check.settings.threshold, decide.SENTINEL_ALPHA, len(found), final=True)
    for key, verdict in verdicts.items():
        check.verdicts[key] = verdict
    comparisons = tuple(_comparison(check, case, None) for case in measured)
    return Sentinel(comparisons, any(c.verdict in (SLOWER, FASTER) for c in comparisons))
