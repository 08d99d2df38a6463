"""A choice as the body of a result file; see `gradmark.tracking.machine.provenance` for its head."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from gradmark.tracking import curves
from gradmark.tracking import measure as ruler
from gradmark.tracking.choose import Choice, Finding


def record(choice: Choice, *, budget: float) -> dict[str, Any]:
    """What `gradmark choose --json` writes beside the head."""
    compilation = choice.compilation
    return {
        "budget_seconds": budget,
        "seconds": choice.seconds,
        "interrupted": choice.interrupted,
        "others_cores": choice.others_cores,
        "confidence": ruler.CONFIDENCE,
        "effect": ruler.EFFECT,
        "targets": choice.targets,
        "compilation": None
        if compilation is None
        else {
            "seconds": sum(compilation.seconds.values()),
            "elapsed": compilation.elapsed,
            "processes": compilation.processes,
        },
        "crossovers": crossovers(choice),
        "results": [finding_record(finding) for finding in choice.findings],
    }


def crossovers(choice: Choice) -> list[dict[str, Any]]:
    """Every change of the lead, with the two sizes between which it lies."""
    names = ("operation", "variant", "pass", "dtype", "place")
    return [
        {**dict(zip(names, subject, strict=True)), **dataclasses.asdict(crossover)}
        for subject, curve in curves.by_subject(choice.findings).items()
        for crossover in curves.crossovers(curve)
    ]


def finding_record(finding: Finding) -> dict[str, Any]:
    """One result."""
    workload, verdict = finding.workload, finding.verdict
    return {
        "operation": workload.operation,
        "variant": workload.variant,
        "pass": workload.operation_pass,
        "size": workload.size,
        "elements": workload.elements,
        "dtype": workload.dtype,
        "place": finding.place,
        "status": finding.status,
        "fastest": verdict.fastest if verdict else None,
        "leaders": list(verdict.leaders) if verdict else [],
        "runner_up": verdict.runner_up if verdict else None,
        "runner_up_over_first": interval(verdict.ratio if verdict else None),
        "numpy_over_first": interval(finding.over_first.get("numpy")),
        "bytes_moved": finding.bytes_moved,
        "setup_seconds": finding.setup_seconds,
        "compile_seconds": finding.compile_seconds,
        "absent": finding.absent,
        "backends": {
            name: {
                "seconds_per_call": interval(timed.seconds),
                "rounds": timed.rounds,
                "calls_per_round": timed.calls,
                "over_first": interval(finding.over_first.get(name)),
            }
            for name, timed in finding.times.items()
        },
    }


def interval(found: ruler.Interval | None) -> dict[str, float | None] | None:
    """JSON has no infinity; and an interval that says nothing is none."""
    if found is None:
        return None
    known = math.isfinite(found.high)
    return {
        "median": found.median,
        "low": found.low if known else None,
        "high": found.high if known else None,
    }
