"""A choice as the profile that `gradmark.gelu(x)` looks at, and beside it the evidence for each of its decisions.

The evidence are the results of `gradmark choose --json`, of all runs under one key: the profile itself holds no more
than a call needs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradmark import profiles
from gradmark.errors import ProfileError
from gradmark.profiles import Decision, Key, Point, Profile
from gradmark.tracking import choose, curves
from gradmark.tracking.choice_record import finding_record
from gradmark.tracking.choose import Choice, Finding

SCHEMA = 1
"""Of the files of evidence."""

KIND = "gradmark evidence"


def save(choice: Choice, head: Mapping[str, Any], key: Key) -> Path:
    """Save what was measured: the profile, merged with what it held, and its evidence.

    Parameters
    ----------
    choice : Choice
    head : mapping
        See `gradmark.tracking.machine.provenance`.
    key : Key
        What the measurements are valid for.

    Returns
    -------
    pathlib.Path
        The profile.

    Raises
    ------
    ProfileError
        It cannot be written; the message says why.
    """
    path = profiles.save(profile(choice, head["created"], key))
    try:
        _save_evidence(choice, head, key)
    except OSError as error:
        raise ProfileError(
            f"the profile is saved in {path}, but the evidence for it cannot be: {error.strerror or error}"
        ) from error
    return path


def profile(choice: Choice, created: str, key: Key) -> Profile:
    """The profile of what was measured; sizes and operations that were not are left out."""
    decisions = []
    for (operation, variant, operation_pass, dtype, place), curve in curves.by_subject(choice.findings).items():
        # Two names of a size may have as many elements: the last one counts.
        points = {f.workload.elements: _point(f) for f in curve if _is_complete(f)}
        if points:
            decision = Decision(
                operation, variant, operation_pass, dtype, _place(place), tuple(points[n] for n in sorted(points))
            )
            decisions.append(decision)
    return Profile(key, created, tuple(decisions))


def _is_complete(finding: Finding) -> bool:
    """Whether it is an answer for a call: one without Numba, for lack of time to compile, is none."""
    return finding.status == choose.MEASURED and choose.NOT_COMPILED not in finding.absent.values()


def _place(name: str) -> profiles.Place:
    return next(place for place in profiles.PLACES if place == name)


def _point(finding: Finding) -> Point:
    record = finding_record(finding)
    ratio, numpy = record["runner_up_over_first"] or {}, record["numpy_over_first"] or {}
    return Point(
        elements=record["elements"],
        fastest=record["fastest"],
        leaders=tuple(record["leaders"]),
        runner_up=record["runner_up"],
        ratio=ratio.get("median"),
        low=ratio.get("low"),
        high=ratio.get("high"),
        numpy_ratio=numpy.get("median"),
        seconds={name: timed.seconds.median for name, timed in finding.times.items()},
    )


def evidence_path(key: Key) -> Path:
    """Where the evidence of this key is kept, whether there is any or not."""
    return profiles.folder().parent / "evidence" / profiles.path_of(key).name


def evidence(key: Key) -> list[dict[str, Any]]:
    """What was measured under this key, as results of `gradmark choose --json`, each with its origin under "measured".

    Raises
    ------
    ProfileError
        The file is damaged, or of a newer gradmark.
    """
    path = evidence_path(key)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} cannot be read: {error}; delete it, `gradmark choose` measures again") from error
    schema = content.get("schema") if isinstance(content, dict) and content.get("kind") == KIND else None
    if type(schema) is int and schema > SCHEMA:
        raise _NewerEvidenceError(f"{path} comes from a newer gradmark: update gradmark, or delete it")
    found = content.get("results") if schema == SCHEMA else None
    if not isinstance(found, list) or not all(isinstance(one, dict) and one.keys() >= _FIELDS for one in found):
        raise ProfileError(f"{path} is damaged, or no evidence; delete it, `gradmark choose` measures again")
    return found


class _NewerEvidenceError(ProfileError):
    """Of a schema that this gradmark does not know; what it holds may not be lost."""


_IDENTITY = ("operation", "variant", "pass", "dtype", "place", "elements")
_FIELDS = frozenset(_IDENTITY) | {"measured", "backends", "fastest", "leaders", "runner_up", "compile_seconds"}
"""Of a result, what is read of it."""


def _save_evidence(choice: Choice, head: Mapping[str, Any], key: Key) -> None:
    path = evidence_path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = {name: head[name] for name in ("created", "command", "commit", "machine", "versions")}
    measured["threads"] = key.threads
    measured["others_cores"] = choice.others_cores
    new = [{**finding_record(f), "measured": measured} for f in choice.findings if _is_complete(f)]
    with profiles.locked(path.parent / ".lock"):
        try:
            old = evidence(key)
        except _NewerEvidenceError:
            raise
        except ProfileError:
            # Nothing that can be read is lost by writing over it, and the next `--explain` shall work.
            path.replace(path.with_name(f"{path.name}.corrupt"))
            old = []
        merged = {tuple(one[name] for name in _IDENTITY): one for one in (*old, *new)}
        content = {"schema": SCHEMA, "kind": KIND, "results": list(merged.values())}
        profiles.replace_file(path, json.dumps(content, ensure_ascii=False, allow_nan=False))


def crossovers_beside(results: Iterable[Mapping[str, Any]], elements: int) -> list[curves.Crossover]:
    """The changes of the lead next below and next above a size, of the results of one curve."""
    decided = sorted(((one["elements"], one["fastest"]) for one in results if one["fastest"]), key=lambda one: one[0])
    found = [
        curves.Crossover(below, first, above, second)
        for (below, first), (above, second) in itertools.pairwise(decided)
        if first != second
    ]
    under = [one for one in found if one.above <= elements]
    over = [one for one in found if one.above > elements]
    return [*under[-1:], *over[:1]]
