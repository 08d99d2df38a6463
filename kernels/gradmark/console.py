"""What all commands share: arguments, messages, tables and the progress bar.

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

JSON_HELP = "write the results there as well; - for stdout, in place of the table"


class UsageError(Exception):
    """What was asked for does not exist or cannot be done; the message says what is accepted."""


def names(text: str) -> list[str]:
    """Read an argument of names with commas between them."""
    given = [name.strip() for name in text.split(",") if name.strip()]
    if not given:
        raise argparse.ArgumentTypeError("it is empty; give names, separated by commas")
    return given


def duration(text: str) -> float:
    """Read an argument such as 90s, 2m or 1m30s; gives seconds."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = 60 * float(match[1] or 0) + float(match[2] or 0) if match else 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; give 90s, 2m or 1m30s, up to a day")
    return seconds


def known(kind: str, given: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The names given, without repetition, or all that are known where none is given."""
    accepted = list(known)
    unknown = [name for name in given or () if name not in accepted]
    if unknown:
        raise UsageError(f"unknown {kind} {', '.join(map(repr, unknown))}; accepted: {', '.join(accepted)}")
    return accepted if given is None else list(dict.fromkeys(given))


def check_writable(option: str, file: str | None) -> None:
    """Fail before minutes are spent, and leave what is there."""
    if file in (None, "-"):
        return
    path = Path(str(file))
    if path.is_dir():
        raise UsageError(f"{option} {file}: this is a folder; give a file's name, or -")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {file}: the folder {path.absolute().parent} does not exist")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageError(f"{option} {file}: no permission to write there")
    if not path.exists():
        # Some folders, such as /proc, only say at the first file that they take none.
        try:
            path.open("x").close()
        except OSError as error:
            raise UsageError(f"{option} {file}: no file can be made there ({error.strerror})") from error
        path.unlink()


def write_json(file: str | None, record: dict[str, Any]) -> None:
    """Write a result file for `--json`: to stdout for -, nowhere for None."""
    if file is None:
        return
    write_text("--json", file, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(option: str, file: str, text: str) -> None:
    """Write a file that an option names, - for stdout; raises UsageError where that fails."""
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror}") from error


def complain(message: str) -> None:
    """Say something on stderr."""
    from rich.console import Console

    out = Console(stderr=True, highlight=False, markup=False)
    # A terminal gets whole words in its width, a file or a pipe whole lines.
    out.print(message, soft_wrap=not out.is_terminal)


def stdout() -> Console:
    """Where results go: no markup, so that a name in brackets stays what it is."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            # Rich's own answer is exit code 1, which means a result here.
            raise BrokenPipeError

    return Output(highlight=False, markup=False)


def grid(*columns: str) -> Table:
    """An empty table with these columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        number, short = column in ("worst\nULP", "allowed"), column in ("pass", "backend", "dtype", "result")
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=short)
    return table


@contextmanager
def progress(counted: str) -> Iterator[Progress]:
    """A progress bar on stderr that is drawn when it is told to, and gone at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn(counted + " {task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        yield bar
