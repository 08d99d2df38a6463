r"""A report as GitHub's Markdown, for the step summary and for the comment on a pull request.

Names, parameters, branches, units, errors and notes come from the author of the pull request, and the comment is
written with rights that the author does not have. One function, `code`, lets such text in, always as a code span of
one backtick on either side. That is safe, in whatever the text says, for these reasons:

- A code span begins with a run of backticks and ends with the next run of the same length (CommonMark 0.31, 6.1).
  `code` leaves no backtick in the text, and our own words around it have none: the span ends where we end it. Within
  it nothing is parsed: no emphasis, link, image, HTML, comment, entity, backslash escape or math.
- Two things are parsed before code spans: lines, and the cells of a table (GFM 4.10). `code` leaves neither a line
  break nor a pipe, and every line begins with our own words or with the backtick, so that no block can begin.
- What GitHub adds to the finished HTML (mentions, issue and commit references, emoji codes, bare addresses) leaves
  the text of `code` elements alone, as the filters of html-pipeline do (IGNORE_PARENTS: pre, code, a, style, script).
- `visible` leaves no control, format or invisible character, and no letter that is written from right to left.

Character references (`&#64;`) would not do: they are text again when the mentions are looked for, and GFM's own
autolinks for e-mail addresses find them as well (cmark-gfm issue 278), even between the tags of an HTML `<code>`.

Numbers are formatted by us. They have no seven digits in a row, which could be the beginning of a commit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from gradmark.tracking.check import report_table, results
from gradmark.tracking.check.report_table import Foreign, Sentence, visible
from gradmark.tracking.check.results import Comparison, Report

MARKER = "<!-- gradmark check -->"
"""The first line. A comment of ours is known by it, and is updated rather than written anew."""

LIMIT = 60_000
"""The most bytes of the whole. GitHub takes 65,536 characters in a comment."""

_TABLE, _SAME, _KERNELS, _NOTES = 30_000, 8_000, 6_000, 6_000
"""Bytes of each part that can grow. What is left of LIMIT is more than the other parts can take."""

_NAME, _REASON, _WORD = 160, 240, 80

_COLUMNS = ("verdict", "benchmark", "head / base", "sees", "base", "head", "remark")
_RULE = "|---|---|---:|---:|---:|---:|---|"


def markdown(report: Report) -> str:
    """The report as Markdown, with a table of what is slower, faster, undecided or failed.

    Parameters
    ----------
    report : Report
        What the check found. It may hold hostile text, see above.

    Returns
    -------
    str
        At most `LIMIT` bytes of UTF-8, beginning with `MARKER`. What had to be left out is counted.
    """
    parts = (
        [MARKER, f"## gradmark check: {report_table.headline(report)}"],
        _paragraphs(report_table.compared(report)),
        _paragraphs(report_table.counts(report)),
        _paragraphs(report_table.parallel(report)),
        _paragraphs(report_table.sentinel(report.sentinel)),
        _paragraphs(report_table.error_rates(report.error_rates)),
        _table(report, report_table.NOTEWORTHY, _TABLE),
        _bullets(report_table.kernel_changes(report), _KERNELS),
        _folded_table(report),
        _bullets((*report_table.unavailable(report), *report_table.notes(report)), _NOTES),
        _paragraphs((*report_table.legend(report), *report_table.effort(report))),
    )
    return "\n\n".join(block for part in parts for block in part) + "\n"


def code(text: str, limit: int = _REASON) -> str:
    """Text of somebody else as one code span: nothing in it means anything to GitHub, see above.

    Parameters
    ----------
    text : str
        Anything.
    limit : int
        The most characters between the backticks.

    Returns
    -------
    str
        One line. Whatever is not shown as it is has become an escape such as `\\x60`.

    Examples
    --------
    >>> code("@octocat | `#1`")
    '`@octocat \\\\x7c \\\\x60#1\\\\x60`'
    """
    # A dollar beside a backtick delimits math (GitHub Docs, "Writing mathematical expressions").
    shown = visible(text.strip(), limit, but="`|$").strip()
    # Whoever looks for a comment of ours looks for text, and does not parse it.
    unmarked = shown.replace("<!", r"\x3c!")
    # Nothing between two backticks would be a run of two.
    return f"`{unmarked or '(empty)'}`"


# --- the parts --------------------------------------------------------------------------------------------------------


def _inline(sentence: Sentence, limit: int) -> str:
    return "".join(code(piece, limit) if isinstance(piece, Foreign) else piece for piece in sentence)


def _paragraphs(sentences: Iterable[Sentence]) -> list[str]:
    return [_inline(sentence, _WORD) for sentence in sentences]


def _bullets(sentences: Iterable[Sentence], budget: int) -> list[str]:
    # A sentence of few pieces has room for long ones, an enumeration has not.
    lines = [f"- {_inline(sentence, _REASON if len(sentence) < 8 else _WORD)}" for sentence in sentences]
    kept = _within(lines, budget)
    if len(kept) < len(lines):
        kept.append(f"- {len(lines) - len(kept):,} more are not shown here.")
    return ["\n".join(kept)] if kept else []


def _table(report: Report, verdicts: Sequence[str], budget: int) -> list[str]:
    shown = [comparison for verdict in verdicts for comparison in report_table.ranked(report, verdict)]
    if not shown:
        return []
    rows = [_row(comparison, why) for comparison, why in report_table.with_reasons(shown)]
    kept = _within(rows, budget)
    blocks = ["\n".join((f"| {' | '.join(_COLUMNS)} |", _RULE, *kept))]
    if len(kept) < len(rows):
        blocks.append(f"{len(rows) - len(kept):,} more have no room in this table; all are in the JSON of the check.")
    return blocks


def _folded_table(report: Report) -> list[str]:
    table = _table(report, (results.SAME,), _SAME)
    if not table:
        return []
    # A blank line ends the HTML, so that what follows is Markdown again.
    return [f"<details><summary>{report.count(results.SAME):,} same</summary>", *table, "</details>"]


def _row(comparison: Comparison, why: Sentence) -> str:
    verdict = comparison.verdict
    remark = [report_table.kind(comparison), _inline(why, _REASON)]
    cells = (
        f"**{verdict}**" if verdict == results.SLOWER else verdict,
        code(comparison.label, _NAME),
        report_table.interval(comparison),
        report_table.sees(comparison),
        _inline(report_table.value(comparison.base, comparison.unit), _WORD),
        _inline(report_table.value(comparison.head, comparison.unit), _WORD),
        "; ".join(filter(None, remark)),
    )
    return f"| {' | '.join(cells)} |"


def _within(lines: Sequence[str], budget: int) -> list[str]:
    """As many of the first lines as have room."""
    sizes = itertools.accumulate(len(line.encode()) + 1 for line in lines)
    return [line for line, size in zip(lines, sizes, strict=True) if size <= budget]
