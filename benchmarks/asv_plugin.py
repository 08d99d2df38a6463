"""A plugin of asv: an interrupted run keeps every result that was already measured.

asv 0.6.6 writes a commit's results when all of its benchmarks have run. Ctrl-C leaves that loop with an exception, and
what was measured since the commit began is lost (asv/commands/run.py, asv/runner.py). With this plugin, named in
asv.conf.json, the results are written before the exception goes on, the finished combinations of parameters of the
interrupted benchmark included; and twice a minute while the run lasts, for signals that cannot be caught.

`asv run --skip-existing-successful` then measures what is missing.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

_SAVE_INTERVAL = 30.0
"""Seconds between two writes during a run."""


class _NotMeasured:
    """Stands for the result of a combination of parameters that was not reached."""


_NOT_MEASURED = _NotMeasured()


def setup() -> None:
    """Wrap four functions of asv. Called by asv, once for every plugin."""
    # Not at the top: asv_runner imports this module too, in environments without asv.
    from asv import results, runner
    from asv.commands import run

    if hasattr(runner.run_benchmarks, "__wrapped__"):
        return
    results.Results.load_data = _remember_folder(results.Results.load_data)
    results.Results.add_result = _keep(results.Results.add_result)
    runner._run_benchmark_single_param = _finish_quietly(runner._run_benchmark_single_param)
    runner.run_benchmarks = run.run_benchmarks = _save_before_leaving(runner.run_benchmarks)


def _remember_folder(load_data: Callable[..., Any]) -> Callable[..., Any]:
    # asv calls it for results that will be saved, and for no others (--dry-run).
    @functools.wraps(load_data)
    def wrapper(results: Any, folder: str) -> Any:
        results.keep_in = folder
        results.kept_at = time.monotonic()
        return load_data(results, folder)

    return wrapper


def _finish_quietly(run_one: Callable[..., Any]) -> Callable[..., Any]:
    # An exception would take the finished combinations with it: go on to the end, measuring nothing more.
    from asv.runner import BenchmarkResult
    from asv.util import UserError

    nothing = BenchmarkResult(result=[_NOT_MEASURED], samples=[None], number=[None], errcode=0, stderr="", profile=None)

    @functools.wraps(run_one)
    def wrapper(benchmark: Any, spawner: Any, *args: Any, **kwargs: Any) -> Any:
        if spawner.interrupted:
            return nothing
        try:
            return run_one(benchmark, spawner, *args, **kwargs)
        except UserError:
            if not spawner.interrupted:
                raise
            return nothing

    return wrapper


def _keep(add_result: Callable[..., Any]) -> Callable[..., Any]:
    from asv.util import UserError

    @functools.wraps(add_result)
    def wrapper(results: Any, benchmark: Any, result: Any, *args: Any, **kwargs: Any) -> None:
        measured = [i for i, value in enumerate(result.result) if value is not _NOT_MEASURED]
        if len(measured) == len(result.result):
            add_result(results, benchmark, result, *args, **kwargs)
            _save_if_due(results)
            return
        if measured:
            # None is "failed" to asv, so that --skip-existing-successful measures it; an older value stays.
            values = [None if value is _NOT_MEASURED else value for value in result.result]
            selected = kwargs.get("selected_idx")
            kwargs["selected_idx"] = {i for i in measured if selected is None or i in selected}
            add_result(results, benchmark, result._replace(result=values), *args, **kwargs)
        raise UserError("Interrupted.")

    return wrapper


def _save_if_due(results: Any) -> None:
    if time.monotonic() > getattr(results, "kept_at", math.inf) + _SAVE_INTERVAL:
        results.save(results.keep_in)
        results.kept_at = time.monotonic()


def _save_before_leaving(run_benchmarks: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run_benchmarks)
    def wrapper(benchmarks: Any, env: Any, *args: Any, results: Any = None, **kwargs: Any) -> Any:
        try:
            return run_benchmarks(benchmarks, env, *args, results=results, **kwargs)
        except BaseException:
            if hasattr(results, "keep_in"):
                results.save(results.keep_in)
            raise

    return wrapper
