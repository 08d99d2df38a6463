"""The table of `gradmark check`, legible in 80 columns, and the sentences that stand below it.

Text of the measured project (names, parameters, errors, branches) is data of somebody else. Here it is always a
`Foreign` within a sentence, so that whoever shows the sentence knows what to escape: `summary` for the terminal,
`gradmark.tracking.check.markdown` for GitHub.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from gradmark.tracking.check import results
from gradmark.tracking.check.results import Comparison, ErrorRates, Report, Revision, Sentinel

NOTEWORTHY = (results.SLOWER, results.FASTER, results.UNDECIDED, results.FAILED)
"""The verdicts that the table shows unless it is asked for more."""

WIDE = 110
"""Columns of a terminal from which on the values of both sides have room beside a benchmark's name."""

_PROBABLY = "with 90 % probability"
"""What `detectable` stands for, see `results.Comparison`."""

_NAME, _REASON = 200, 300
_LISTED = 8

_OTHERS = 42
"""Columns that a verdict, a ratio with its interval and a detectable slowdown take together."""

_STYLES = {
    results.SLOWER: "bold red",
    results.FASTER: "green",
    results.SAME: "",
    results.UNDECIDED: "yellow",
    results.FAILED: "bold magenta",
}

_INVISIBLE_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\U0001d159")
"""Letters and symbols to Unicode, but drawn as nothing: Hangul fillers, the empty Braille cell, a note without head."""


class Foreign(str):
    """A piece of a sentence that is the measured project's text, to be escaped wherever it is shown."""

    __slots__ = ()


Sentence = tuple[str, ...]
"""Pieces of one sentence. Each is our own text, or `Foreign`."""


def table(report: Report, *, verdicts: Sequence[str] = NOTEWORTHY, width: int = 80) -> Table | None:
    """One line for each benchmark with one of these verdicts, the slower ones first.

    Parameters
    ----------
    report : Report
        What the check found.
    verdicts : sequence of str
        Which verdicts are shown; `results.VERDICTS` shows all benchmarks.
    width : int
        Columns of the terminal. From `WIDE` on the typical value of each side is shown as well.

    Returns
    -------
    rich.table.Table or None
        None where no benchmark has one of these verdicts.
    """
    shown = [comparison for verdict in verdicts for comparison in ranked(report, verdict)]
    if not shown:
        return None
    values = width >= WIDE and any(c.base is not None or c.head is not None for c in shown)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    grid.add_column("verdict", no_wrap=True)
    grid.add_column("benchmark", overflow="fold")
    grid.add_column("head / base", justify="right", no_wrap=True)
    grid.add_column("sees", justify="right", no_wrap=True)
    if values:
        grid.add_column("base", justify="right", no_wrap=True)
        grid.add_column("head", justify="right", no_wrap=True)
    for comparison, why in with_reasons(shown):
        verdict = Text(comparison.verdict, style=_STYLES[comparison.verdict])
        cells = [
            verdict,
            _benchmark(comparison, why, width - _OTHERS),
            Text(interval(comparison)),
            Text(sees(comparison)),
        ]
        if values:
            cells += [Text(_plain(value(side, comparison.unit))) for side in (comparison.base, comparison.head)]
        grid.add_row(*cells)
    return grid


def summary(report: Report) -> list[str]:
    """What has to be said below the table, one paragraph each, with nothing in it that a terminal obeys.

    The strings are plain text: print them without markup, highlighting and emoji codes.
    """
    paragraphs = (
        counts(report),
        parallel(report),
        sentinel(report.sentinel),
        error_rates(report.error_rates),
        kernel_changes(report),
        compared(report),
        unavailable(report),
        notes(report),
        legend(report),
        effort(report),
    )
    return [_plain(sentence) for sentences in paragraphs for sentence in sentences]


def visible(text: str, limit: int = _REASON, *, but: str = "") -> str:
    r"""The text in one line, with everything that a reader would not see as it is written out as an escape.

    Letters, digits, punctuation, symbols and spaces stay. Control characters (ESC, newline), format characters
    (zero-width, bidirectional, tags), lone surrogates, marks that stack on others, and letters written from right to
    left, which move the text around them, become `\x1b`, `\u202e` and the like.

    Parameters
    ----------
    text : str
        Anything.
    limit : int
        The most characters of the result; a longer one ends in "…".
    but : str
        Characters to escape as well, because they mean something where the text goes.

    Examples
    --------
    >>> visible("red\x1b[31m")
    'red\\x1b[31m'
    """
    # Composed, é is one letter. This comes before the escapes because it also makes a backtick of U+1FEF.
    composed = unicodedata.normalize("NFC", text[: limit + 1])
    shown = "".join(_escape(c) if c in but or not _harmless(c) else c for c in composed)
    return shown if len(text) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"


# --- what the table and Markdown share --------------------------------------------------------------------------------


def ranked(report: Report, verdict: str) -> list[Comparison]:
    """The benchmarks with this verdict, the largest changes first, parallel ones after the others."""
    chosen = [comparison for comparison in report.comparisons if comparison.verdict == verdict]
    return sorted(chosen, key=lambda c: (c.kind == results.PARALLEL, -_change(c)))


def interval(comparison: Comparison) -> str:
    """The ratio with its interval, "1.052 (1.041–1.063)"; empty where there is none."""
    if comparison.ratio is None:
        return ""
    if comparison.low is None or comparison.high is None:
        return _ratio(comparison.ratio)
    return f"{_ratio(comparison.ratio)} ({_ratio(comparison.low)}–{_ratio(comparison.high)})"


def sees(comparison: Comparison) -> str:
    """The smallest slowdown that would have been caught, "+3.4 %"; empty where it is not known."""
    return "" if comparison.detectable is None else f"+{_percent(comparison.detectable)}"


def value(number: float | None, unit: str) -> Sentence:
    """A value with its unit, "12.3 µs"; empty where there is none."""
    if number is None:
        return ()
    if unit == "seconds":
        return (_scaled(number, "s", ("n", "µ", "m", ""), 1e-9),)
    if unit == "bytes":
        return (_scaled(number, "B", ("", "k", "M", "G", "T"), 1.0),)
    return (f"{number:.4g} ", Foreign(unit)) if unit else (f"{number:.4g}",)


def kind(comparison: Comparison) -> str:
    """The class of a benchmark where it is not the common one; empty for serial timings."""
    return "" if comparison.kind == results.SERIAL else comparison.kind


def with_reasons(comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, Sentence]]:
    """Each benchmark with its reason, which is not repeated: one import error may fail two hundred of them."""
    before: Sentence = ()
    for comparison in comparisons:
        why = reason(comparison)
        yield comparison, ("as above",) if why and why == before else why
        before = why


def reason(comparison: Comparison) -> Sentence:
    """Why it failed, on which side, with the last line of the error; or what would decide it."""
    text = comparison.reason or ""
    if comparison.verdict != results.FAILED:
        return (Foreign(text),) if text else ()
    # The last line of a traceback names the error; those above it are for --json.
    lines = [line for line in text.splitlines() if line.strip()]
    where = f"on {comparison.side}: " if comparison.side else ""
    return (where, Foreign(lines[-1])) if lines else (f"{where}no error was given",)


def headline(report: Report) -> str:
    """The outcome of the whole check in a few words."""
    total, slower, undecided = len(report.comparisons), report.count(results.SLOWER), report.count(results.UNDECIDED)
    if report.interrupted:
        return "interrupted, the verdicts reached before"
    if report.aborted:
        return "measuring ended early, the verdicts reached before"
    if report.exit_code == results.NOT_MEASURED:
        biased = report.sentinel is not None and report.sentinel.biased
        return "no verdict, the A/A sentinel was biased" if biased else "nothing could be measured"
    failed = report.count(results.FAILED)
    also = f", {failed:,} of {total:,} failed" if failed else ""
    if slower:
        return f"{slower:,} of {total:,} {_benchmarks(total)} slower{also}"
    return "nothing slower" + (f", {undecided:,} of {total:,} undecided" if undecided else "") + also


def counts(report: Report) -> Iterator[Sentence]:
    """All five verdicts; their sum is the number of benchmarks."""
    total = len(report.comparisons)
    yield (f"{total:,} {_benchmarks(total)}: {_tally(report.comparisons)}.",)
    if report.interrupted:
        yield ("Interrupted: these are the verdicts that were reached before.",)
    elif report.aborted:
        yield ("MEASURING ENDED EARLY: ", Foreign(report.aborted), ". These are the verdicts that were reached before.")
    elif not any(comparison.rounds for comparison in report.comparisons):
        yield ("NOTHING COULD BE MEASURED.",)


def parallel(report: Report) -> Iterator[Sentence]:
    """The benchmarks of several threads, which are a class of their own."""
    chosen = [comparison for comparison in report.comparisons if comparison.kind == results.PARALLEL]
    if chosen:
        yield (f"{len(chosen):,} of them parallel (several threads, noisier): {_tally(chosen)}.",)


def sentinel(control: Sentinel | None) -> Iterator[Sentence]:
    """What the A/A control says about the check."""
    if control is None:
        yield ("No A/A sentinel was measured.",)
        return
    total = len(control.comparisons)
    if not control.biased:
        yield (f"A/A sentinel, base against its own copy: {total:,} {_benchmarks(total)}, none slower or faster.",)
        return
    apart = [c for c in control.comparisons if c.verdict in (results.SLOWER, results.FASTER)]
    named = _listed((Foreign(c.label), f" {c.verdict} {interval(c)}") for c in apart)
    yield (
        "THE A/A SENTINEL WAS BIASED: base differed from its own copy (",
        *(named or ("no benchmark is named",)),
        "). No verdict of this check can be trusted: run it again on a quieter machine.",
    )


def error_rates(rates: ErrorRates | None) -> Iterator[Sentence]:
    """How often a check in this noise is wrong, and what it could have seen."""
    if rates is None:
        yield ("Error rates: none could be computed.",)
        return
    red = round(rates.false_alarm * rates.simulations)
    yield (
        f"False alarms: {red:,} of {rates.simulations:,} simulated checks of identical code came out red: below"
        f" {_percent(rates.false_alarm_bound, digits=2)}. That is its noise; a bias is for the sentinel to find.",
    )
    if rates.detectable is None:
        yield (f"No slowdown up to 100 % in one benchmark would have been caught {_PROBABLY}.",)
    else:
        yield (
            f"Power: a slowdown of {_percent(rates.detectable)} in one benchmark would have been caught {_PROBABLY}.",
        )


def kernel_changes(report: Report) -> Iterator[Sentence]:
    """Kernels whose compiled loop lost something, whatever the time says."""
    verdicts = {comparison.label: comparison.verdict for comparison in report.comparisons}
    for change in report.kernel_changes:
        timed = verdicts.get(change.benchmark)
        yield (
            "Kernel ",
            Foreign(change.kernel),
            ": ",
            Foreign(change.what),
            " (called by ",
            Foreign(change.benchmark),
            f", whose time is {timed})." if timed else ").",
        )


def compared(report: Report) -> Iterator[Sentence]:
    """What was compared with what, where."""
    yield (
        "Compared: base ",
        *_revision(report.base),
        " with head ",
        *_revision(report.head),
        " of ",
        Foreign(report.project),
        f"; the benchmarks are those of {report.suite}.",
    )
    if report.environment:
        yield "Environment: ", Foreign(report.environment), "."


def unavailable(report: Report) -> Iterator[Sentence]:
    """What is in no count above, and why."""
    reasons = Counter(item.reason for item in report.unavailable)
    if reasons:
        groups = ((f"{number:,} because ", Foreign(text)) for text, number in reasons.most_common())
        total = len(report.unavailable)
        yield f"Not available here and not counted: {total:,} {_benchmarks(total)}; ", *_listed(groups, "; "), "."
    if report.only_in_base:
        yield (
            f"Only in base, not compared and not counted ({len(report.only_in_base):,}): ",
            *_listed((Foreign(name),) for name in report.only_in_base),
            ".",
        )


def notes(report: Report) -> Iterator[Sentence]:
    """The notes, each as one sentence."""
    for note in report.notes:
        yield "Note: ", Foreign(note)


def legend(report: Report) -> Iterator[Sentence]:
    """What the columns mean."""
    if report.comparisons:
        yield (
            f"Head / base: with its {report.confidence * 100:.4g} % interval. Slower or faster: significantly, and by"
            f" more than {report.threshold * 100:.4g} %. Sees: the smallest slowdown of this benchmark that would have"
            f" been caught {_PROBABLY}.",
        )


def effort(report: Report) -> Iterator[Sentence]:
    """What it cost."""
    yield (f"{report.seconds:,.0f} s in all, {report.rounds:,} rounds.",)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _harmless(character: str) -> bool:
    return (
        character.isprintable()
        and unicodedata.category(character)[0] in "LNPSZ"
        and unicodedata.bidirectional(character) not in ("R", "AL", "AN")
        and character not in _INVISIBLE_LETTERS
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _plain(sentence: Sentence) -> str:
    return "".join(visible(piece) if isinstance(piece, Foreign) else piece for piece in sentence)


def _benchmark(comparison: Comparison, why: Sentence, room: int) -> Text:
    label = visible(comparison.label, _NAME)
    if len(label) > room and comparison.params:
        # Better than in the middle of a parameter.
        name = visible(comparison.name, _NAME)
        label = f"{name}\n{label[len(name) :]}"
    text = Text(label)
    if kind(comparison):
        text.append(f" · {kind(comparison)}", style="cyan")
    if why:
        text.append(f"\n{_plain(why)}", style="dim")
    return text


def _change(comparison: Comparison) -> float:
    if comparison.ratio is None:
        return -1.0
    return abs(math.log(comparison.ratio)) if comparison.ratio > 0 else math.inf


def _ratio(number: float) -> str:
    # A tracked value can be anything: more than six digits would widen the column for all.
    size = abs(number)
    return f"{number:.3f}" if size < 10 else f"{number:.4g}" if size < 1e4 else f"{number:.2e}"


def _percent(fraction: float, *, digits: int = 0) -> str:
    """A fraction in percent, rounded up: what is said to be seen, or not exceeded, must be true."""
    percent = fraction * 100
    if percent > 1000:
        return "1000 % or more"
    places = min(4, max(1, digits - 1 - math.floor(math.log10(percent)))) if percent > 0 else 1
    # 0.03 * 100 is a little above 3, which is no reason to say 3.1.
    return f"{math.ceil(round(percent * 10**places, 6)) / 10**places:.{places}f} %"


def _scaled(number: float, unit: str, prefixes: Sequence[str], smallest: float) -> str:
    scale = smallest
    for prefix in prefixes[:-1]:
        if abs(number) < 999.5 * scale:
            return f"{number / scale:.3g} {prefix}{unit}"
        scale *= 1000
    return f"{number / scale:.4g} {prefixes[-1]}{unit}"


def _benchmarks(number: int) -> str:
    return "benchmark" if number == 1 else "benchmarks"


def _tally(comparisons: Sequence[Comparison]) -> str:
    found = Counter(comparison.verdict for comparison in comparisons)
    return ", ".join(f"{found[verdict]:,} {verdict}" for verdict in results.VERDICTS)


def _revision(revision: Revision) -> Iterator[str]:
    short = revision.commit[:8]
    beside = ", with uncommitted changes" if revision.uncommitted else ""
    if revision.name in (revision.commit, short):
        yield Foreign(short)
        yield f" ({beside[2:]})" if beside else ""
        return
    yield from (Foreign(revision.name), " (", Foreign(short), f"{beside})")


def _listed(items: Iterable[Sentence], between: str = ", ") -> Sentence:
    """The first of them in one sentence, and how many more there are."""
    every = list(items)
    pieces: list[str] = []
    for item in every[:_LISTED]:
        pieces += ([between] if pieces else []) + list(item)
    if len(every) > _LISTED:
        pieces.append(f"{between}and {len(every) - _LISTED:,} more")
    return tuple(pieces)
