"""A report as JSON, and back.

`from_record` is the door through which the results of a pull request's own code come into a job with rights. It takes
nothing on trust: every type, length and range is checked, and its errors repeat nothing of what was given, because a
line of a job's log can be a command to the runner.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gradmark.tracking.check import results
from gradmark.tracking.check.results import (
    Comparison,
    ErrorRates,
    KernelChange,
    Report,
    Revision,
    Sentinel,
    Unavailable,
)

KINDS = (results.SERIAL, results.PARALLEL, results.DEVICE, results.MEMORY, results.PEAK_MEMORY, results.TRACK)
SIDES = ("base", "head", "base and head")

_TEXT = 20_000
"""The longest text. A traceback fits; whoever shows it cuts it."""

_ITEMS = 20_000
"""The longest list: a hundred times the benchmarks of a large suite."""

_COUNT = 10**9
_DEPTH = 8

_T = TypeVar("_T")


def record(report: Report) -> dict[str, Any]:
    """All of a report in types that JSON has.

    Parameters
    ----------
    report : Report
        What the check found.

    Returns
    -------
    dict
        `schema`, `kind` ("check"), `exit_code`, `counts` (benchmarks by verdict), `benchmarks` (a list of `name`,
        `params`, `kind`, `unit`, `verdict`, `ratio`, `low`, `high`, `detectable`, `rounds`, `base`, `head`, `reason`,
        `side`, see `results.Comparison`), and all else of the report under its own names. A number that is not finite
        is None, because JSON has neither NaN nor infinity.
    """
    body = {f.name: getattr(report, f.name) for f in dataclasses.fields(report) if f.name != "comparisons"}
    head = {
        "schema": results.SCHEMA,
        "kind": "check",
        "exit_code": report.exit_code,
        "counts": {verdict: report.count(verdict) for verdict in results.VERDICTS},
        "benchmarks": report.comparisons,
    }
    safe: dict[str, Any] = _json_safe({**head, **body})
    return safe


def from_record(data: object) -> Report:
    """The report that `record` wrote, or ValueError.

    Parameters
    ----------
    data : object
        What `json.loads` gave. Fields that are not known are left out, `counts` and `exit_code` follow from the rest.

    Returns
    -------
    Report
        Of known verdicts, finite numbers and texts of bounded length. The texts are those of whoever wrote the file.

    Raises
    ------
    ValueError
        For anything else. It names the field and what is accepted there.
    """
    whole = _mapping(data, "the record")
    if whole.get("schema") != results.SCHEMA or whole.get("kind") != "check":
        raise ValueError(
            f"schema, kind: {results.SCHEMA} and 'check' are read here; was this written by another version?"
        )
    fields = _Fields(whole, "")
    return Report(
        project=fields.get("project", _text),
        base=fields.get("base", _revision),
        head=fields.get("head", _revision),
        suite=fields.get("suite", _one_of("base", "head")),
        threshold=fields.get("threshold", _number(0.0, 10.0)),
        confidence=fields.get("confidence", _number(0.0, 1.0)),
        comparisons=fields.get("benchmarks", _each(_comparison)),
        unavailable=fields.get("unavailable", _each(_unavailable)),
        only_in_base=fields.get("only_in_base", _each(_text)),
        kernel_changes=fields.get("kernel_changes", _each(_kernel_change)),
        sentinel=fields.get("sentinel", _optional(_sentinel)),
        error_rates=fields.get("error_rates", _optional(_error_rates)),
        notes=fields.get("notes", _each(_text)),
        environment=fields.get("environment", _text),
        seconds=fields.get("seconds", _number(0.0, 1e9)),
        rounds=fields.get("rounds", _count),
        interrupted=fields.get("interrupted", _flag),
        aborted=fields.get("aborted", _text),
        provenance=fields.get("provenance", _facts),
    )


# --- the parts of a report --------------------------------------------------------------------------------------------


def _comparison(value: object, where: str) -> Comparison:
    fields = _Fields(value, where)
    found = Comparison(
        name=fields.get("name", _text),
        params=fields.get("params", _each(_text)),
        kind=fields.get("kind", _one_of(*KINDS)),
        verdict=fields.get("verdict", _one_of(*results.VERDICTS)),
        unit=fields.get("unit", _text),
        ratio=fields.get("ratio", _optional(_number())),
        low=fields.get("low", _optional(_number())),
        high=fields.get("high", _optional(_number())),
        detectable=fields.get("detectable", _optional(_number(0.0))),
        rounds=fields.get("rounds", _count),
        base=fields.get("base", _optional(_number())),
        head=fields.get("head", _optional(_number())),
        reason=fields.get("reason", _optional(_text)),
        side=fields.get("side", _optional(_one_of(*SIDES))),
    )
    if found.low is not None and found.high is not None and found.low > found.high:
        raise ValueError(f"{where}.low: it must not be above high")
    return found


def _revision(value: object, where: str) -> Revision:
    fields = _Fields(value, where)
    return Revision(
        name=fields.get("name", _text),
        commit=fields.get("commit", _commit),
        uncommitted=fields.get("uncommitted", _flag),
    )


def _unavailable(value: object, where: str) -> Unavailable:
    fields = _Fields(value, where)
    return Unavailable(
        name=fields.get("name", _text), params=fields.get("params", _each(_text)), reason=fields.get("reason", _text)
    )


def _kernel_change(value: object, where: str) -> KernelChange:
    fields = _Fields(value, where)
    return KernelChange(
        kernel=fields.get("kernel", _text),
        benchmark=fields.get("benchmark", _text),
        what=fields.get("what", _text),
        base=fields.get("base", _facts),
        head=fields.get("head", _facts),
    )


def _sentinel(value: object, where: str) -> Sentinel:
    fields = _Fields(value, where)
    return Sentinel(comparisons=fields.get("comparisons", _each(_comparison)), biased=fields.get("biased", _flag))


def _error_rates(value: object, where: str) -> ErrorRates:
    fields = _Fields(value, where)
    return ErrorRates(
        false_alarm=fields.get("false_alarm", _number(0.0, 1.0)),
        false_alarm_bound=fields.get("false_alarm_bound", _number(0.0, 1.0)),
        simulations=fields.get("simulations", _count),
        detectable=fields.get("detectable", _optional(_number(0.0))),
    )


# --- what a field may be ----------------------------------------------------------------------------------------------

_Reader = Callable[[object, str], _T]
"""Takes a value and the name of its field; returns the value, checked, or raises ValueError."""


class _Fields:
    """The fields of one JSON object, by name."""

    def __init__(self, value: object, where: str) -> None:
        self._values = _mapping(value, where)
        self._where = where

    def get(self, name: str, read: _Reader[_T]) -> _T:
        where = f"{self._where}.{name}" if self._where else name
        if name not in self._values:
            raise ValueError(f"{where}: it is missing")
        return read(self._values[name], where)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: an object is needed, not {_type(value)}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: a text is needed, not {_type(value)}")
    if len(value) > _TEXT:
        raise ValueError(f"{where}: a text of {len(value)} characters, {_TEXT} are accepted")
    return value


def _commit(value: object, where: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{7,64}", _text(value, where)):
        raise ValueError(f"{where}: 7 to 64 hexadecimal digits are needed")
    return str(value)


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: true or false is needed, not {_type(value)}")
    return value


def _count(value: object, where: str) -> int:
    # True is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: a whole number is needed, not {_type(value)}")
    if not 0 <= value <= _COUNT:
        raise ValueError(f"{where}: 0 to {_COUNT} is accepted")
    return value


def _number(low: float = -1e300, high: float = 1e300) -> _Reader[float]:
    def read(value: object, where: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{where}: a number is needed, not {_type(value)}")
        if not low <= value <= high:  # NaN is in no range
            raise ValueError(f"{where}: a finite number from {low:g} to {high:g} is needed")
        return float(value)

    return read


def _one_of(*accepted: str) -> _Reader[str]:
    def read(value: object, where: str) -> str:
        if value not in accepted:
            raise ValueError(f"{where}: one of {', '.join(accepted)} is needed")
        return str(value)

    return read


def _optional(read: _Reader[_T]) -> _Reader[_T | None]:
    return lambda value, where: None if value is None else read(value, where)


def _each(read: _Reader[_T]) -> _Reader[tuple[_T, ...]]:
    def read_all(value: object, where: str) -> tuple[_T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{where}: a list is needed, not {_type(value)}")
        if len(value) > _ITEMS:
            raise ValueError(f"{where}: a list of {len(value)}, {_ITEMS} are accepted")
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))

    return read_all


def _facts(value: object, where: str) -> dict[str, Any]:
    """An object whose contents nobody relies on: JSON of bounded depth, with finite numbers."""
    return dict(_mapping(_bounded(value, where, _DEPTH), where))


def _bounded(value: object, where: str, depth: int) -> object:
    if depth < 0:
        raise ValueError(f"{where}: it is nested more than {_DEPTH} deep")
    if isinstance(value, dict):
        # Keys are the author's text as well, and stay out of errors.
        return {_text(key, where): _bounded(item, where, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return list(_each(lambda item, at: _bounded(item, at, depth - 1))(value, where))
    if isinstance(value, str):
        return _text(value, where)
    if value is None or isinstance(value, bool):
        return value
    _number()(value, where)
    return value


def _type(value: object) -> str:
    return "null" if value is None else type(value).__name__


# --- writing ----------------------------------------------------------------------------------------------------------


def _json_safe(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        # What git gives for a name that is not UTF-8 has lone surrogates, which no file takes.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if dataclasses.is_dataclass(value):
        return {field.name: _json_safe(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_json_safe(str(key)): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_safe(item) for item in value]
    # A NumPy scalar or array, a path: JSON has no type for it.
    return _json_safe(value.tolist() if hasattr(value, "tolist") else str(value))
