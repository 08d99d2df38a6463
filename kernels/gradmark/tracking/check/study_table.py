"""A study in sentences, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradmark.tracking.check.results import PARALLEL, SERIAL


def lines(record: dict[str, Any]) -> Iterator[str]:
    """One or two sentences for each part that was run."""
    for name, part in record["parts"].items():
        if "failed" in part:
            yield f"{name}: could not be measured: {part['failed']}"
        elif name in ("identical", "busy"):
            yield from _identical(name, part)
        elif name in ("plus5", "plus10"):
            yield from _slowed(name, part)
        elif name == "lost":
            yield from _lost(part)
        elif name == "foreign":
            for project, found in part.items():
                for head in ("same", "slow"):
                    yield f"{project} {found['version']}, base against {head}: {_counts(found[head]['check'])}"
        elif name == "asv":
            for what, found in part.items():
                yield f"asv continuous, factor 1.05, {what}: {found['slower']} slower, {found['faster']} faster"
        else:
            yield f"{name}: {_counts(part['check'])}, {part['check']['seconds']:.0f} s"


def _identical(name: str, part: dict[str, Any]) -> Iterator[str]:
    real, simulated = part["real"], part["simulated"]
    beside = "" if name == "identical" else ", beside a process that keeps one core busy"
    yield f"identical code{beside}: {real['red']} of {real['checks']} real checks red"
    yield (
        f"  simulated from their rounds: {simulated['red']} of {simulated['checks']} red"
        f" (below {simulated['red_at_most']:.2%})"
    )
    for check in part["checks"]:
        yield f"  {_counts(check)}, {check['seconds']:.0f} s"


def _slowed(name: str, part: dict[str, Any]) -> Iterator[str]:
    for kind in (SERIAL, PARALLEL):
        found = part["found"][kind]
        powers = [
            b["simulated_power"] for b in part["benchmarks"] if b["kind"] == kind and b["simulated_power"] is not None
        ]
        power = f"; mean power, simulated: {sum(powers) / len(powers):.1%}" if powers else ""
        yield f"{name.replace('plus', '+')} %, {kind}: found in {found['slower']} of {found['benchmarks']}{power}"


def _lost(part: dict[str, Any]) -> Iterator[str]:
    for variant, found in part.items():
        yield f"{variant}: {_counts(found['check'])}"
        for change in found["kernel_changes"]:
            yield f"  {change['what']}: {change['kernel']}"


def _counts(check: dict[str, Any]) -> str:
    return ", ".join(f"{check[verdict]} {verdict}" for verdict in ("slower", "faster", "same", "undecided", "failed"))
