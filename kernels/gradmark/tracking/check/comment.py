"""`python -m gradmark.tracking.check.comment check.json`: the comment on a pull request, to stdout.

It runs in a job that may write to the repository, on a file that the pull request's own code may have written. So the
file is read up to a limit, checked in full, and nothing of it reaches stderr, where a line can be a command to GitHub's
runner. Exit codes: 0 written, 2 the file was refused or the command was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gradmark.tracking.check.markdown import markdown
from gradmark.tracking.check.record import from_record
from gradmark.tracking.check.results import Report

LIMIT = 2 * 1024 * 1024
"""The most bytes of a file that is read: about six thousand benchmarks."""

WRITTEN, REFUSED = 0, 2

_ORIGIN = "Measured in a job that runs the pull request's own code and has no rights: evidence for a reader, no proof."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process by default) and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m gradmark.tracking.check.comment", description=_DESCRIPTION)
    parser.add_argument("file", type=Path, help="what gradmark check --json wrote")
    parser.add_argument("--head", metavar="COMMIT", help="refuse the results of any other commit than this one")
    options = parser.parse_args(arguments)
    try:
        report = read(options.file, options.head)
    except (OSError, ValueError) as error:
        # Of an OSError only the reason: the path is ours, but the message has no need of it.
        reason = error.strerror if isinstance(error, OSError) else error
        sys.stderr.write(f"the results were refused: {reason}\n")
        return REFUSED
    # Bytes, so that no locale decides about the encoding.
    sys.stdout.buffer.write(f"{markdown(report)}\n{_ORIGIN}\n".encode())
    sys.stdout.buffer.flush()
    return WRITTEN


_DESCRIPTION = "Write results as the Markdown of a comment, whoever wrote them."


def read(file: Path, head: str | None = None) -> Report:
    """The report in a file that nobody vouches for.

    Parameters
    ----------
    file : Path
        At most `LIMIT` bytes of JSON.
    head : str, optional
        The commit that must have been measured.

    Returns
    -------
    Report
        See `from_record`.

    Raises
    ------
    ValueError
        Where it is too large, no JSON, no report, or the report of another commit. Nothing of the file is repeated.
    OSError
        Where it cannot be read.
    """
    with file.open("rb") as stream:
        data = stream.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError(f"the file is larger than {LIMIT} bytes")
    try:
        parsed = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("the file is no JSON") from None
    report = from_record(parsed)
    if head is not None and report.head.commit != head:
        raise ValueError("head.commit: another commit was measured than the one asked for")
    return report


if __name__ == "__main__":
    sys.exit(main())
