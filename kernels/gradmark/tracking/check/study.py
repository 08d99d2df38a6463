"""How often the check errs on this machine: identical code, real slowdowns in real kernels, a busy neighbour.

Each part runs real checks on the project of `study_project` and keeps every round. Beyond what can be run, checks are
simulated from the recorded rounds by the very procedure that judges real ones; results say which is which.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradmark.tracking.check import decide, engine, error_rates, repository, study_foreign, study_project
from gradmark.tracking.check.decide import Array
from gradmark.tracking.check.repository import NotMeasurableError
from gradmark.tracking.check.results import FAILED, PARALLEL, SERIAL, SLOWER, VERDICTS, Report
from gradmark.tracking.check.state import Check, Display, Settings

SIMULATIONS = 3000
_RESAMPLED = 1000

Progress = Callable[[dict[str, Any]], None]
"""Is given the results so far after each part, to be kept."""


def self_test(display: Display, keep: Progress, *, repeats: int = 1) -> dict[str, Any]:
    """The short study: identical code, and 5 % and 10 % more work in every kernel."""
    with _project(study_project.create) as (folder, commits):
        record: dict[str, Any] = {"parts": {}}
        record["parts"]["identical"] = identical(folder, commits, display, repeats)
        keep(record)
        for variant in ("plus5", "plus10"):
            record["parts"][variant] = slowed(folder, commits, variant, display)
            keep(record)
    return record


def study(display: Display, keep: Progress, parts: Sequence[str] = ()) -> dict[str, Any]:
    """The long study: all of `PARTS`, or those given."""
    with _project(study_project.create) as (folder, commits), _project(study_project.create_many) as (many, few):
        record: dict[str, Any] = {"parts": {}}
        for name in parts or PARTS:
            try:
                record["parts"][name] = PARTS[name](_Projects(folder, commits, many, few), display)
            except (NotMeasurableError, OSError) as error:
                # The parts before and after it are no less true.
                record["parts"][name] = {"failed": str(error)}
            keep(record)
    return record


@dataclass(frozen=True, slots=True)
class _Projects:
    """Two scratch repositories with their commits by name."""

    folder: Path
    commits: Mapping[str, str]
    many: Path
    few: Mapping[str, str]


PARTS: dict[str, Callable[[_Projects, Display], dict[str, Any]]] = {
    "identical": lambda p, display: identical(p.folder, p.commits, display, 3),
    "busy": lambda p, display: identical(p.folder, p.commits, display, 1, busy=True),
    "plus5": lambda p, display: slowed(p.folder, p.commits, "plus5", display),
    "plus10": lambda p, display: slowed(p.folder, p.commits, "plus10", display),
    "lost": lambda p, display: lost(p.folder, p.commits, display),
    "many_identical": lambda p, display: whole(p.many, p.few["base"], p.few["same"], display),
    "many_planted": lambda p, display: {
        "planted": study_project.PLANTED_OF_MANY,
        **whole(p.many, p.few["base"], p.few["planted"], display),
    },
    "asv": lambda p, display: asv_continuous(p.folder, p.commits, display),
    "foreign": lambda p, display: foreign(display),
}


# --- parts ------------------------------------------------------------------------------------------------------------


def identical(
    folder: Path, commits: Mapping[str, str], display: Display, repeats: int, *, busy: bool = False
) -> dict[str, Any]:
    """Checks of identical code, real and simulated; with `busy` beside a process that keeps one core busy."""
    checks, recorded, pools = [], [], _Pools()
    for seed in range(repeats):
        display.tell(f"identical code, check {seed + 1} of {repeats}" + (", beside a busy process" if busy else ""))
        with _busy_process() if busy else contextlib.nullcontext():
            report, check = run_check(folder, commits["base"], commits["same"], display, seed=seed)
        checks.append(_outcome(report))
        pools.add(check)
        recorded.append(_Pools())
        recorded[-1].add(check)
    rng = np.random.default_rng(0)
    # Each simulated check draws from one recorded check: a bias that a pair of builds keeps must not average out.
    simulations = SIMULATIONS // repeats
    red = 0
    for own in recorded:
        draws = [own.draw(key) for key in own.labels()]
        red += int(error_rates.simulate(draws, decide.THRESHOLD, rng, simulations).any(axis=1).sum())
    total = simulations * repeats
    return {
        "checks": checks,
        "real": {"checks": len(checks), "red": sum(one["slower"] > 0 for one in checks)},
        "simulated": {"checks": total, "red": red, "red_at_most": error_rates.upper_bound(red, total)},
        "benchmarks": pools.describe(),
    }


def slowed(folder: Path, commits: Mapping[str, str], variant: str, display: Display) -> dict[str, Any]:
    """A check in which every kernel does more work: what was found, and how often each would be found."""
    display.tell(f"every kernel slower: {variant}")
    report, check = run_check(folder, commits["base"], commits[variant], display, seed=1)
    pools = _Pools()
    pools.add(check)
    rng = np.random.default_rng(0)
    rates = {key: _found_alone(pools.draw(key), rng) for key in pools.labels()}
    timings = [c for c in report.comparisons if c.kind in (SERIAL, PARALLEL)]
    return {
        "check": _outcome(report),
        "found": {
            kind: {
                "benchmarks": sum(c.kind == kind for c in timings),
                "slower": sum(c.kind == kind and c.verdict == SLOWER for c in timings),
            }
            for kind in (SERIAL, PARALLEL)
        },
        "benchmarks": [
            {
                "benchmark": c.label,
                "kind": c.kind,
                "verdict": c.verdict,
                "ratio": c.ratio,
                "low": c.low,
                "high": c.high,
                "detectable": c.detectable,
                "simulated_power": rates.get(f"head:{c.label}"),
            }
            for c in timings
        ],
    }


def lost(folder: Path, commits: Mapping[str, str], display: Display) -> dict[str, Any]:
    """A dtype upcast, a lost fusion, a lost vectorization: by time, and by what was compiled."""
    found = {}
    for variant in ("upcast", "unfused", "scalar"):
        display.tell(f"real losses: {variant}")
        report, _ = run_check(folder, commits["base"], commits[variant], display, patterns=("fused",))
        changes = [{"kernel": c.kernel, "benchmark": c.benchmark, "what": c.what} for c in report.kernel_changes]
        found[variant] = {"check": _outcome(report), "kernel_changes": changes}
    return found


def whole(folder: Path, base: str, head: str, display: Display) -> dict[str, Any]:
    """One check of everything, with what it took."""
    report, _ = run_check(folder, base, head, display)
    slower = [{"benchmark": c.label, "ratio": c.ratio} for c in report.comparisons if c.verdict == SLOWER]
    return {"check": _outcome(report), "slower": slower}


def foreign(display: Display) -> dict[str, Any]:
    """Suites that are not ours, built from their source distributions in the environments that asv makes for them."""
    found: dict[str, Any] = {}
    for name in _FOREIGN:
        suite = study_foreign.SUITES[name]
        with tempfile.TemporaryDirectory(prefix="gradmark-study-") as parent:
            display.tell(f"{name} {suite.version}: fetching its source distribution")
            folder = Path(parent) / "project"
            commits = study_foreign.create(name, _fetch(name, suite.version, Path(parent)), folder)
            found[name] = {"version": suite.version}
            for head in ("same", "slow"):
                display.tell(f"{name}: base against {head}")
                both = commits["base"], commits[head]
                report, _ = run_check(folder, *both, display, patterns=(suite.measured,), env_spec=None)
                slower = [{"benchmark": c.label, "ratio": c.ratio} for c in report.comparisons if c.verdict == SLOWER]
                found[name][head] = {"check": _outcome(report), "slower": slower}
    return found


_FOREIGN = ("flox", "xbatcher")


def _fetch(name: str, version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", name, "--dest", str(folder), f"{name}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.glob("*.tar.gz"))
    if len(found) != 1:
        raise NotMeasurableError(f"pip cannot download {name} {version}: {done.stderr.strip()[-300:]}")
    return found[0]


def asv_continuous(folder: Path, commits: Mapping[str, str], display: Display) -> dict[str, Any]:
    """Stock `asv continuous --factor 1.05` on the very same commits."""
    found = {}
    for name, head in (("identical", "same"), ("plus5", "plus5"), ("plus10", "plus10")):
        display.tell(f"asv continuous: {name}")
        began = time.monotonic()
        both = (commits["base"], commits[head])
        done = _asv(folder, "continuous", "--factor", "1.05", "-b", "time_", "-e", *both)
        marks = [row[1].strip() for row in _rows(done.stdout)]
        found[name] = {
            "slower": marks.count("+"),
            "faster": marks.count("-"),
            # Only what changed stands in the table above; this one has all of them.
            "benchmarks": len(_rows(_asv(folder, "compare", "--factor", "1.05", *both).stdout)),
            "seconds": round(time.monotonic() - began, 1),
            "exit_code": done.returncode,
            "last_line": (done.stdout.strip().splitlines() or [""])[-1],
        }
    return found


def _asv(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asv", *arguments]
    with (folder.parent / "asv.log").open("a") as log:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, env=_own_home(folder))
    return done


def _own_home(folder: Path) -> dict[str, str]:
    """asv writes a file that names the machine into the home folder: not into the user's."""
    home = folder.parent / "home"
    if not home.exists():
        home.mkdir()
        (home / ".asv-machine.json").write_text(json.dumps(_MACHINE), encoding="utf-8")
    return {**os.environ, "HOME": str(home)}


_MACHINE = {
    "here": {"machine": "here", "os": "", "arch": "", "cpu": "", "num_cpu": "", "ram": ""},
    "version": 1,
}


def _rows(output: str) -> list[list[str]]:
    """Rows of asv's tables of results, without head and rule."""
    rows = [line.split("|") for line in output.splitlines() if line.startswith("|")]
    return [
        row
        for row in rows
        if len(row) > 4 and "Ratio" not in row[4] and not set(row[1].strip()) & {":"} and "---" not in row[1]
    ]


# --- what the parts share ---------------------------------------------------------------------------------------------


def run_check(
    folder: Path,
    base: str,
    head: str,
    display: Display,
    *,
    seed: int = 0,
    patterns: Sequence[str] = (),
    env_spec: str | None = "existing",
    budget: float = 1200.0,
) -> tuple[Report, Check]:
    """One check, in the environment that runs gradmark."""
    project = repository.find_project(folder)
    settings = Settings(patterns=tuple(patterns), env_spec=env_spec, seed=seed, budget=budget)
    sides = repository.resolve(project, base), repository.resolve(project, head)
    report, check = engine.run(project, *sides, settings, display)
    if report.interrupted:
        # A check that was cut short says nothing about errors, and Ctrl-C means the study.
        raise KeyboardInterrupt
    if report.aborted:
        raise NotMeasurableError(report.aborted)
    return report, check


class _Pools:
    """Recorded log ratios by benchmark, of one or several checks of the same two commits."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._kinds: dict[str, str] = {}

    def add(self, check: Check) -> None:
        for case in check.cases:
            rounds = [*check.screening.get(case.key, []), *case.rounds]
            if case.kind not in (SERIAL, PARALLEL) or case.failure is not None or not rounds:
                continue
            self._values.setdefault(case.key, []).extend(one.log_ratio for one in rounds)
            self._kinds[case.key] = case.kind

    def labels(self) -> list[str]:
        return list(self._values)

    def draw(self, key: str) -> error_rates.Draw:
        values = np.array(self._values[key])

        def drawn(rng: np.random.Generator, rows: int, rounds: int) -> Array:
            resampled: Array = rng.choice(values, size=(rows, rounds))
            return resampled

        return drawn

    def describe(self) -> list[dict[str, Any]]:
        return [
            {
                "benchmark": key.partition(":")[2],
                "kind": self._kinds[key],
                "rounds": len(values),
                "median": float(np.median(values)),
                "standard_deviation": float(np.std(values)),
            }
            for key, values in self._values.items()
        ]


_FAMILY = 10
"""Benchmarks that noise selects beside the slow one, in a simulated check: about what identical code gave."""


def _found_alone(draw: error_rates.Draw, rng: np.random.Generator) -> float:
    """How often a benchmark with these rounds is found, being the only slow one among those that were selected."""
    limit = np.log1p(decide.THRESHOLD)
    _, low, high, _, _ = decide.estimates(draw(rng, _RESAMPLED, decide.SCREEN_ROUNDS))
    rows = int(np.count_nonzero((low < -limit) | (high > limit)))
    courses = draw(rng, rows, decide.LOOKS[-1])
    found = sum(error_rates.run_looks({0: course}, decide.THRESHOLD, _FAMILY)[0] == SLOWER for course in courses)
    return found / _RESAMPLED


def _outcome(report: Report) -> dict[str, Any]:
    rates = report.error_rates
    return {
        **{verdict: report.count(verdict) for verdict in VERDICTS},
        "benchmarks": len(report.comparisons),
        "failures": [f"{c.label}: {c.reason}" for c in report.comparisons if c.verdict == FAILED],
        "exit_code": report.exit_code,
        "seconds": round(report.seconds, 1),
        "rounds": report.rounds,
        "sentinel_biased": report.sentinel.biased if report.sentinel else None,
        "own_false_alarm_bound": rates.false_alarm_bound if rates else None,
        "own_detectable": rates.detectable if rates else None,
    }


@contextlib.contextmanager
def _project(create: Callable[[Path], dict[str, str]]) -> Iterator[tuple[Path, dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="gradmark-study-") as parent:
        folder = Path(parent) / "project"
        yield folder, create(folder)


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()
