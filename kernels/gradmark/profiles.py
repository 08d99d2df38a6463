"""Profiles: what `gradmark choose` found out about one machine, and where it is kept.

A profile is a small JSON file in the folder of `folder()`, one for each key: processor, GPU, number of threads and
the versions of the libraries. What was measured under another key is not used; `stale` tells what there is of it.
Nothing but the standard library and platformdirs is imported, so that a call may look for its profile at no cost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import platformdirs

import gradmark
from gradmark import processor
from gradmark.errors import ProfileError

SCHEMA = 1
"""Of the files. Raise it when a field changes its meaning or goes; a new field does not."""

KIND = "gradmark profile"

Place = Literal["host", "host-to-device-and-back", "device"]

PLACES: tuple[Place, ...] = ("host", "host-to-device-and-back", "device")
"""Where the arrays are: in the host's memory, there but computed on the device, or on the device before and after."""

_NVIDIA = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver lists its GPUs."""

_LIBRARIES = ("numpy", "numba", "torch")
_AGAIN = "`gradmark choose` measures again"


@dataclass(frozen=True)
class Key:
    """What the speed of a kernel depends on; measurements are valid for one key.

    Attributes
    ----------
    cpu : str
        The processor's model and its widest vector extension.
    gpu : str or None
        The models of the GPUs that torch may use; None without any.
    threads : int
        How many threads the kernels may use.
    versions : mapping of str to (str or None)
        Of gradmark, numpy, numba and torch; None for one that is not installed.
    """

    cpu: str
    gpu: str | None
    threads: int
    versions: Mapping[str, str | None] = field(hash=False)

    @classmethod
    def here(cls, *, threads: int | None = None) -> Key:
        """The key of this machine and environment.

        Parameters
        ----------
        threads : int, optional
            The number of threads; without it $NUMBA_NUM_THREADS, else $OMP_NUM_THREADS, and never more than the
            logical processors that this process may use.
        """
        cores = processor.usable_cores()
        width = processor.vectors()
        versions = {"gradmark": gradmark.__version__, **{name: _version(name) for name in _LIBRARIES}}
        return cls(
            cpu=processor.model() if width is None else f"{processor.model()}, {width}",
            gpu=_gpu(versions["torch"]),
            threads=min(cores, _threads_of_environment() or cores) if threads is None else threads,
            versions=versions,
        )

    def differences(self, here: Key) -> str:
        """How this key differs from the one of `here`, in words; "" where it does not."""
        found = [
            f"{name} {self.versions.get(name) or 'none'} (here {version or 'none'})"
            for name, version in here.versions.items()
            if self.versions.get(name) != version
        ]
        if self.threads != here.threads:
            found.append(f"{self.threads} threads (here {here.threads})")
        if self.gpu != here.gpu:
            found.append(f"GPU {self.gpu or 'none'} (here {here.gpu or 'none'})")
        if self.cpu != here.cpu:
            found.append(f"processor {self.cpu} (here {here.cpu})")
        return ", ".join(found)


@dataclass(frozen=True)
class Point:
    """What was measured at one size.

    Attributes
    ----------
    elements : int
        Elements of the first array that the operation takes (of all arrays in a list); of an initializer's weights.
    fastest : str or None
        None: a tie.
    leaders : tuple of str
        The one of the smallest median, then those that could not be told from it.
    runner_up : str or None
    ratio, low, high : float or None
        Time of the runner-up over time of the first, and the interval; None where it is not known or not bounded.
    numpy_ratio : float or None
        Time of NumPy over time of the first.
    seconds : mapping of str to float
        Median seconds per call, by backend.
    """

    elements: int
    fastest: str | None
    leaders: tuple[str, ...]
    runner_up: str | None
    ratio: float | None
    low: float | None
    high: float | None
    numpy_ratio: float | None
    seconds: Mapping[str, float] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.leaders:
            raise ValueError(f"a point needs at least one leader, got leaders={self.leaders!r}")
        if self.elements < 0:
            raise ValueError(f"elements must be >= 0, got {self.elements!r}")

    @property
    def ranking(self) -> tuple[str, ...]:
        """All that were measured: the leaders in their order, then the others by time."""
        others = sorted(set(self.seconds) - set(self.leaders), key=self.seconds.__getitem__)
        return (*self.leaders, *others)


@dataclass(frozen=True)
class Decision:
    """What was measured of one operation, pass and dtype.

    Attributes
    ----------
    operation, variant, operation_pass, dtype : str
        As of `gradmark.workloads.Workload`.
    place : str
        One of `PLACES`.
    points : tuple of Point
        In the order of elements, each number of elements once.
    """

    operation: str
    variant: str
    operation_pass: str
    dtype: str
    place: Place
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place must be one of {', '.join(PLACES)}, got {self.place!r}")
        elements = [point.elements for point in self.points]
        if elements != sorted(set(elements)):
            raise ValueError(f"points must be in the order of elements, each once, got {elements}")

    @property
    def subject(self) -> tuple[str, str, str, str, str]:
        """What the decision is about: two of one subject are merged."""
        return self.operation, self.variant, self.operation_pass, self.dtype, self.place

    def at(self, elements: int) -> Point | None:
        """The measured point that is nearest to `elements` on a log scale; None without any."""
        wanted = math.log(max(elements, 1))
        return min(self.points, key=lambda point: abs(math.log(max(point.elements, 1)) - wanted), default=None)


@dataclass(frozen=True)
class Profile:
    """All decisions of one key.

    Attributes
    ----------
    key : Key
    created : str
        When it was measured, ISO 8601.
    decisions : tuple of Decision
    """

    key: Key
    created: str
    decisions: tuple[Decision, ...]

    def backend(
        self,
        operation: str,
        operation_pass: str,
        dtype: str,
        elements: int,
        place: Place = "host",
        *,
        variant: str = "",
    ) -> str | None:
        """The fastest at the nearest measured size; None where nothing is known.

        Parameters
        ----------
        operation, operation_pass, dtype, variant : str
            As of `gradmark.workloads.Workload`. A variant that was not measured is served as the operation's first one.
        elements : int
            See `Point`.
        place : str
            One of `PLACES`.
        """
        point = self.point(operation, operation_pass, dtype, elements, place, variant=variant)
        return None if point is None else point.leaders[0]

    def point(
        self,
        operation: str,
        operation_pass: str,
        dtype: str,
        elements: int,
        place: Place = "host",
        *,
        variant: str = "",
    ) -> Point | None:
        """The evidence for what `backend` answers: the measured point nearest on a log scale, or None."""
        found = [
            decision
            for decision in self.decisions
            if (decision.operation, decision.operation_pass, decision.dtype, decision.place)
            == (operation, operation_pass, dtype, place)
            and decision.points
        ]
        found.sort(key=lambda decision: (decision.variant != variant, decision.variant))
        return found[0].at(elements) if found else None


def folder() -> Path:
    """Where profiles are kept: $GRADMARK_CACHE_DIR/profiles, by default in the user's cache folder."""
    base = os.environ.get("GRADMARK_CACHE_DIR") or platformdirs.user_cache_dir("gradmark", appauthor=False)
    return Path(base) / "profiles"


def path_of(key: Key) -> Path:
    """The file of the profile of this key, whether it exists or not."""
    readable = re.sub(r"[^a-z0-9]+", "-", key.cpu.lower()).strip("-")[:40]
    digest = hashlib.sha256(json.dumps(_record_key(key), sort_keys=True).encode()).hexdigest()[:16]
    return folder() / f"{readable}-{key.threads}-threads-{digest}.json"


def save(profile: Profile) -> Path:
    """Write the profile, merged with what the file of the same key holds.

    Where both know a size of a decision, the profile given wins; what only the file knows is kept. Of several
    processes that save at once, none loses what another has saved. A file that cannot be read is kept beside the new
    one, under its name with ".corrupt" behind it.

    Parameters
    ----------
    profile : Profile

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ProfileError
        The folder cannot be written to, or the file comes from a newer gradmark. Nothing was changed.
    """
    path = path_of(profile.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / ".lock"):
            replace_file(path, _text(_merged(_kept(path), profile)))
    except OSError as error:
        raise ProfileError(
            f"the profile cannot be written to {path}: {error.strerror or error}; set GRADMARK_CACHE_DIR to a folder"
            " that can be written to"
        ) from error
    return path


def load(key: Key | None = None) -> Profile | None:
    """The profile of this key (of `Key.here()` if none is given), or None where nothing was measured under it.

    Raises
    ------
    ProfileError
        There is a file, but it cannot be used; the message says why.
    """
    key = Key.here() if key is None else key
    path = path_of(key)
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise ProfileError(f"the profile {path} cannot be read: {error}") from error
    profile = read(path)
    if profile.key != key:
        raise ProfileError(
            f"{path} holds a profile of another machine or other versions:"
            f" {profile.key.differences(key)}; delete it, {_AGAIN}"
        )
    return profile


def read(path: Path) -> Profile:
    """The profile in a file.

    Raises
    ------
    ProfileError
        The file cannot be read, is no JSON, no profile, damaged, or of a newer schema; the message says which.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"the profile {path} cannot be read: {error}") from error
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"the profile {path} is corrupt, no JSON: {error}; delete it, {_AGAIN}") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ProfileError(f'{path} is no profile: it does not say "kind": "{KIND}"; delete it, {_AGAIN}')
    schema = content.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise _NewerProfileError(
            f"the profile {path} comes from a newer gradmark (schema {schema}, this one reads {SCHEMA}):"
            f" update gradmark, or delete it and {_AGAIN}"
        )
    try:
        if schema != SCHEMA:
            raise ValueError(f"schema is {schema!r}, expected {SCHEMA}")
        return _profile(content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ProfileError(f"the profile {path} is damaged: {what}; delete it, {_AGAIN}") from error


def stale() -> list[tuple[Path, str]]:
    """The profiles of this processor that are not used here, and why not.

    Returns
    -------
    list of (pathlib.Path, str)
        Those of other versions, another number of threads or another GPU; and the files that cannot be read.
    """
    here, found = Key.here(), []
    try:
        paths = sorted(folder().glob("*.json"))
    except OSError:
        return []
    for path in paths:
        try:
            key = read(path).key
        except ProfileError as error:
            found.append((path, str(error)))
            continue
        if key.cpu == here.cpu and key != here:
            found.append((path, f"measured with {key.differences(here)}"))
    return found


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file. The system releases it when a process ends, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, text: str) -> None:
    """Write the file in one step: a reader sees the old one or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class _NewerProfileError(ProfileError):
    """Of a schema that this gradmark does not know; its measurements may not be lost."""


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _threads_of_environment() -> int | None:
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        # OMP_NUM_THREADS may be a list, one number for each level of nesting.
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdigit() and int(first) > 0:
            return int(first)
    return None


def _gpu(torch_version: str | None) -> str | None:
    """The models of the GPUs, as NVIDIA's driver lists them; asking torch would import it."""
    if torch_version is None or torch_version.endswith("+cpu") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    models = []
    for information in sorted(_NVIDIA.glob("*/information")):
        with contextlib.suppress(OSError):
            models += re.findall(r"^Model:\s*(.+?)\s*$", information.read_text(errors="replace"), re.MULTILINE)
    return " + ".join(sorted(models)) or None


def _kept(path: Path) -> tuple[Decision, ...]:
    """What the file holds; nothing where there is none, or one that cannot be read, which is put aside."""
    if not path.exists():
        return ()
    try:
        return read(path).decisions
    except _NewerProfileError:
        raise
    except ProfileError:
        path.replace(path.with_name(f"{path.name}.corrupt"))
        return ()


def _merged(kept: Iterable[Decision], profile: Profile) -> Profile:
    decisions = {decision.subject: decision for decision in kept}
    for decision in profile.decisions:
        old = decisions.get(decision.subject)
        points = {point.elements: point for point in (*(old.points if old else ()), *decision.points)}
        in_order = tuple(points[elements] for elements in sorted(points))
        decisions[decision.subject] = dataclasses.replace(decision, points=in_order)
    return dataclasses.replace(profile, decisions=tuple(decisions.values()))


def _text(profile: Profile) -> str:
    content = {
        "kind": KIND,
        "schema": SCHEMA,
        "created": profile.created,
        "key": _record_key(profile.key),
        "decisions": [_record_decision(decision) for decision in profile.decisions],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _record_key(key: Key) -> dict[str, Any]:
    return {**vars(key), "versions": dict(key.versions)}


def _record_decision(decision: Decision) -> dict[str, Any]:
    # A keyword of Python is no name of a field there, and is one in the result files.
    return {
        "operation": decision.operation,
        "variant": decision.variant,
        "pass": decision.operation_pass,
        "dtype": decision.dtype,
        "place": decision.place,
        "points": [_record_point(point) for point in decision.points],
    }


def _record_point(point: Point) -> dict[str, Any]:
    # JSON has no infinity; and a bound that says nothing is none.
    unbounded = {
        name: None
        for name in ("ratio", "low", "high", "numpy_ratio")
        if (value := getattr(point, name)) is not None and not math.isfinite(value)
    }
    return {**vars(point), "seconds": dict(point.seconds), **unbounded}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _profile(content: Mapping[str, Any]) -> Profile:
    """The profile that was written so; KeyError, TypeError or ValueError where something is not as it should be."""
    key = content["key"]
    return Profile(
        Key(
            cpu=_value(key, "cpu", str),
            gpu=_optional(key, "gpu", str),
            threads=_value(key, "threads", int),
            versions={name: _optional(key["versions"], name, str) for name in _value(key, "versions", dict)},
        ),
        _value(content, "created", str),
        tuple(map(_read_decision, _value(content, "decisions", list))),
    )


def _read_decision(content: Any) -> Decision:
    operation, variant, operation_pass, dtype, place = (
        _value(content, name, str) for name in ("operation", "variant", "pass", "dtype", "place")
    )
    points = tuple(map(_read_point, _value(content, "points", list)))
    return Decision(operation, variant, operation_pass, dtype, place, points)


def _read_point(content: Any) -> Point:
    return Point(
        elements=_value(content, "elements", int),
        fastest=_optional(content, "fastest", str),
        leaders=tuple(_value({"leader": name}, "leader", str) for name in _value(content, "leaders", list)),
        runner_up=_optional(content, "runner_up", str),
        ratio=_optional(content, "ratio", float),
        low=_optional(content, "low", float),
        high=_optional(content, "high", float),
        numpy_ratio=_optional(content, "numpy_ratio", float),
        seconds={name: _value(content["seconds"], name, float) for name in _value(content, "seconds", dict)},
    )


def _optional(content: Any, name: str, kind: type) -> Any:
    return None if content[name] is None else _value(content, name, kind)


def _value(content: Any, name: str, kind: type) -> Any:
    value = content[name]
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted:
        raise TypeError(f"{name} is {value!r}, expected {kind.__name__}")
    return float(value) if kind is float else value
