"""Results in asv's own files, so that `asv compare` and `asv publish` read them beside those of `asv run`.

The files are read and written by asv's own classes. What is there already stays: other benchmarks, other combinations
of parameters, other commits.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from asv import util
from asv.benchmarks import Benchmarks
from asv.machine import Machine
from asv.results import Results
from asv.runner import BenchmarkResult

from gradmark.tracking.check import results
from gradmark.tracking.check.results import Comparison, Report

Side = Literal["base", "head"]


def write_asv_results(
    results_dir: Path,
    *,
    machine: str,
    machine_facts: Mapping[str, str],
    python: str,
    env_name: str,
    requirements: Mapping[str, str],
    report: Report,
    side: Side,
    commit_date_ms: int,
    benchmarks: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write the values of one side into asv's folder of results.

    asv keeps one value for each combination of parameters: here the median over the rounds, without samples, because
    asv's statistics are those of one process. A combination that failed is null, one that is not available NaN, as
    `asv run` writes them. Where asv knows the machine already, its facts stay: asv tells graphs apart by them.

    Parameters
    ----------
    results_dir : Path
        As asv.conf.json says. It is made where it is not there.
    machine : str
        asv's name of this machine.
    machine_facts : mapping of str to str
        `os`, `arch`, `cpu`, `num_cpu`, `ram`, as `asv.machine.Machine.get_defaults` names them.
    python, env_name, requirements : str, str, mapping of str to str
        Of the environment, as `asv.environment.Environment` has them.
    report : Report
        What the check found.
    side : str
        "base" or "head".
    commit_date_ms : int
        When that side's commit was made, in milliseconds since 1970.
    benchmarks : mapping of str to mapping
        For every name in the report what asv_runner's discovery says: `name`, `params`, `version`, `type`, `unit` and
        the rest.

    Returns
    -------
    Path
        The file with the results.

    Raises
    ------
    ValueError
        For a side with uncommitted changes, which asv has no name for; for a benchmark that is in the report and not in
        `benchmarks`; and where a file that is there already cannot be read.
    OSError
        Where nothing can be written. The files that were there are still there.
    """
    revision = report.base if side == "base" else report.head
    if revision.uncommitted:
        raise ValueError(f"{side} has uncommitted changes: asv keeps results by commit; commit them first")
    cases = _by_benchmark(report, side)
    unknown = sorted(set(cases) - set(benchmarks))
    if unknown:
        raise ValueError(f"{', '.join(map(repr, unknown))}: in the report, but discovery did not find it")
    results_dir.mkdir(parents=True, exist_ok=True)
    try:
        facts = _merge_machine(results_dir, machine, machine_facts)
        _merge_benchmarks(results_dir, [benchmarks[name] for name in cases])
        stored = Results(
            {**facts, "python": python, **requirements},
            dict(requirements),
            revision.commit,
            commit_date_ms,
            python,
            env_name,
            {},
        )
        stored.load_data(str(results_dir))
    except util.UserError as error:
        raise ValueError(str(error)) from error
    for name, values in cases.items():
        _add(stored, benchmarks[name], values)
    return _save(stored, results_dir)


_Cases = dict[str, dict[tuple[str, ...], float | None]]
"""Values by benchmark and combination of parameters; None for what failed, NaN for what is not available."""


def _by_benchmark(report: Report, side: Side) -> _Cases:
    cases: _Cases = {}
    for comparison in report.comparisons:
        cases.setdefault(comparison.name, {})[comparison.params] = _value(comparison, side)
    for item in report.unavailable:
        cases.setdefault(item.name, {})[item.params] = math.nan
    return cases


def _value(comparison: Comparison, side: Side) -> float | None:
    value = comparison.base if side == "base" else comparison.head
    if value is not None:
        return value
    # A benchmark that failed on the other side only was not timed here: that is no failure of this side.
    failed = comparison.verdict == results.FAILED and comparison.side in (side, "base and head", None)
    return None if failed else math.nan


def _add(stored: Results, benchmark: Mapping[str, Any], values: Mapping[tuple[str, ...], float | None]) -> None:
    every = list(itertools.product(*benchmark["params"]))
    measured = {index for index, params in enumerate(every) if params in values}
    if not measured:
        return
    # NaN is "not run" to asv; what it has already for such a combination is kept.
    row = [values.get(params, math.nan) for params in every]
    nothing = [None] * len(row)
    result = BenchmarkResult(result=row, samples=nothing, number=nothing, errcode=0, stderr="", profile=None)
    # record_samples keeps those of the other combinations; of ours there are none.
    stored.add_result(benchmark, result, record_samples=True, selected_idx=measured)


def _merge_machine(results_dir: Path, machine: str, facts: Mapping[str, str]) -> dict[str, str]:
    path = results_dir / machine / "machine.json"
    if path.is_file():
        known: dict[str, str] = util.load_json(str(path), Machine.api_version)
        return {**known, "machine": machine}
    new = Machine()
    new.__dict__.update({**facts, "machine": machine})
    new.save(str(results_dir))
    return dict(new.__dict__)


def _merge_benchmarks(results_dir: Path, found: list[Mapping[str, Any]]) -> None:
    path = Path(Benchmarks.get_benchmark_file_path(str(results_dir)))
    known = util.load_json(str(path), Benchmarks.api_version) if path.is_file() else {}
    merged = {**known, **{benchmark["name"]: dict(benchmark) for benchmark in found}}
    with tempfile.TemporaryDirectory(dir=results_dir, prefix=".new-") as folder:
        new = Path(folder) / path.name
        util.write_json(str(new), merged, Benchmarks.api_version)
        new.replace(path)


def _save(stored: Results, results_dir: Path) -> Path:
    """Write beside and move: a disk that is full must not cost the results that were there."""
    with tempfile.TemporaryDirectory(dir=results_dir, prefix=".new-") as folder:
        stored.save(folder)
        (new,) = (path for path in Path(folder).rglob("*.json"))
        target = results_dir / new.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        new.replace(target)
    return target
