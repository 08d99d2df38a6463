"""Result files that grow: what one command measures is merged with what others have measured before.

Each entry says by which command, at which commit and on which machine it was measured, and of which code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Key = tuple[Any, ...]
Entry = dict[str, Any]


def command(
    module: str,
    arguments: Sequence[str] | None,
    parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[argparse.Namespace, Sequence[str]], int],
    wrong: int,
) -> int:
    """Run `python -m MODULE` with these arguments (those of the process by default) and return its exit code."""
    from gradmark import console

    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    try:
        return run(options, given)
    except console.UsageError as error:
        console.complain(f"{module}: {error}")
        return wrong


def head(kind: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The head of a result file that `python -m MODULE ARGUMENTS` writes."""
    from gradmark.tracking import machine

    return {**machine.provenance(kind, []), "command": shlex.join(["python", "-m", module, *arguments])}


def measured(head: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says of its origin."""
    origin = {name: head[name] for name in ("command", "created", "commit", "uncommitted")}
    return {**origin, "cpu": head["machine"]["cpu"], "cores": head["machine"]["cores"]}


def read(file: str | None, kind: str, key: Callable[[Entry], Key]) -> dict[Key, Entry]:
    """The entries of a file, by key; none where it does not exist yet.

    Raises
    ------
    gradmark.console.UsageError
        The file is something else.
    """
    from gradmark import console
    from gradmark.tracking import machine

    if file in (None, "-") or not Path(str(file)).exists():
        return {}
    try:
        record = json.loads(Path(str(file)).read_text(encoding="utf-8"))
        schema = record["schema"], record["kind"]
        entries = {key(entry): entry for entry in record["entries"]}
    except (ValueError, KeyError, TypeError) as error:
        raise console.UsageError(f"--json {file}: it exists, and is no result of this command ({error!r})") from error
    if schema != (machine.SCHEMA, kind):
        raise console.UsageError(f"--json {file}: it exists, with schema and kind {schema}")
    return entries


def write(file: str | None, record: dict[str, Any]) -> None:
    """Write the whole file, or nothing of it."""
    from gradmark import console

    if file in (None, "-"):
        return
    beside = Path(f"{file}.part")
    console.write_json(str(beside), record)
    beside.replace(str(file))


def fingerprint(*subjects: Any) -> str:
    """A digest of source files (paths; a folder stands for its modules) and of anything else's repr."""
    digest = hashlib.sha256()
    for subject in subjects:
        for part in _parts(subject):
            digest.update(part)
    return digest.hexdigest()[:16]


def _parts(subject: Any) -> Iterable[bytes]:
    if not isinstance(subject, Path):
        return [repr(subject).encode()]
    return [file.read_bytes() for file in (sorted(subject.glob("*.py")) if subject.is_dir() else [subject])]
