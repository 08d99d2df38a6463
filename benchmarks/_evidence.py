"""Result files that grow: what one command measures is merged with what others have measured before.

Each entry says by which command, at which commit and on which machine it was measured, and of which code.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import hashlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    return {**origin, **{name: head["machine"][name] for name in ("cpu", "vectors", "cores")}}


def read(file: str | None, kind: str, key: Callable[[Entry], Key], fields: Collection[str] = ()) -> dict[Key, Entry]:
    """The entries of a file, by key; none where it does not exist yet.

    Parameters
    ----------
    file : str or None
        None, and - for stdout, have no entries.
    kind : str
        What the file must be.
    key : callable
        Gives an entry's key.
    fields : collection of str
        What each entry must have.

    Raises
    ------
    gradmark.console.UsageError
        The file is something else, or damaged.
    """
    from gradmark import console
    from gradmark.tracking import machine

    if file in (None, "-") or not Path(str(file)).exists():
        return {}
    if not Path(str(file)).is_file():
        # Reading a device or a pipe may never end.
        raise console.UsageError(f"--json {file}: this is no regular file; give a file's name, or - for stdout")
    try:
        record = json.loads(Path(str(file)).read_text(encoding="utf-8"))
        schema = record["schema"], record["kind"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise console.UsageError(f"--json {file}: it exists, and is no result of this command ({error!r})") from error
    if schema != (machine.SCHEMA, kind):
        raise console.UsageError(f"--json {file}: it exists, with schema and kind {schema}; give another file")
    try:
        entries = {key(entry): entry for entry in record["entries"]}
        lacking = sorted({field for entry in entries.values() for field in fields if field not in entry})
    except (KeyError, TypeError) as error:
        raise console.UsageError(f"--json {file}: it is damaged ({error!r}); give another file") from error
    if lacking:
        raise console.UsageError(f"--json {file}: it is damaged, entries lack {', '.join(lacking)}; give another file")
    return entries


class Growing:
    """A result file that a command adds to, entry by entry; another process may add to it meanwhile.

    Parameters
    ----------
    file : str or None
        None or -: nothing is written.
    kind, key, fields
        As for `read`, which the constructor calls: `entries` is what it has found, and what was added.
    """

    def __init__(self, file: str | None, kind: str, key: Callable[[Entry], Key], fields: Collection[str] = ()) -> None:
        from gradmark import console

        self._file = file
        self._read = functools.partial(read, file, kind, key, fields)
        self._key = key
        self._added: dict[Key, Entry] = {}
        console.check_writable("--json", file)
        self.entries = self._read()
        self.problem: str | None = None
        if file not in (None, "-"):
            # It is replaced by a new file each time: a folder may refuse that where the old one can be written.
            self._replace("")

    def add(self, entries: Iterable[Entry], record: Callable[[dict[Key, Entry]], dict[str, Any]]) -> None:
        """Add entries and write the file: what it has by now, and all that was added; `problem` says why not."""
        from gradmark import console

        self._added |= {self._key(entry): entry for entry in entries}
        self.entries |= self._added
        if self._file in (None, "-"):
            return
        try:
            self.entries = self._read() | self._added
            self._replace(json.dumps(record(self.entries), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        except console.UsageError as error:
            if self.problem is None:
                console.complain(f"{error}; what is measured from here on is only printed")
            self.problem = str(error)

    def _replace(self, text: str) -> None:
        """Write the whole file, or nothing of it; without a text, only try whether that would work."""
        from gradmark import console

        beside = Path(f"{self._file}.part-{os.getpid()}")
        try:
            beside.write_text(text, encoding="utf-8")
            if text:
                beside.replace(str(self._file))
        except OSError as error:
            raise console.UsageError(f"--json {self._file}: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt; by default it would end this process without a word."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fingerprint(*subjects: Any) -> str:
    """A digest of Python files (paths; a folder stands for its modules) and of anything else's repr.

    Of a file counts what runs: not its comments, docstrings and layout.
    """
    digest = hashlib.sha256()
    for subject in subjects:
        for part in _parts(subject):
            digest.update(part)
    return digest.hexdigest()[:16]


def _parts(subject: Any) -> Iterable[bytes]:
    if not isinstance(subject, Path):
        return [repr(subject).encode()]
    return [_program(file).encode() for file in (sorted(subject.glob("*.py")) if subject.is_dir() else [subject])]


def _program(file: Path) -> str:
    return _dumped(ast.parse(file.read_bytes()))


def _dumped(node: Any) -> str:
    """A syntax tree as text, the same for every version of Python: without the fields that hold nothing."""
    if isinstance(node, list):
        return "[" + ", ".join(_dumped(item) for item in node if not _is_text(item)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(f'{name}={_dumped(value)}' for name, value in fields)})"


def _is_text(statement: Any) -> bool:
    """A docstring, or a text in the place of one: below an attribute, say."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
