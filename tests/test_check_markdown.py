"""Hostile text through to the Markdown that GitHub renders, with rights that the text's author does not have.

markdown-it parses it here: CommonMark with GFM's tables. GitHub does more to text outside of code spans (mentions,
references, addresses, emoji codes), so the tests show that no hostile text ever stands there: the tokens of a hostile
report are those of a harmless one, code spans apart.
"""

from __future__ import annotations

import doctest
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gradmark.tracking.check import markdown as module
from gradmark.tracking.check import results
from gradmark.tracking.check.markdown import LIMIT, MARKER, code, markdown
from gradmark.tracking.check.results import (
    Comparison,
    ErrorRates,
    KernelChange,
    Report,
    Revision,
    Sentinel,
    Unavailable,
)

BASE, HEAD = "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d", "0f2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d"
COLUMNS = 7

HOSTILE = [
    "@octocat",
    "@org/team please look",
    "#1 GH-1 org/repo#1 org/repo@1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d",
    "7a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d 7a2b3c4",
    "http://example.com www.example.com ftp://example.com mailto:a@example.com a@example.com",
    "[link](http://example.com) ![image](http://example.com/x.png) <http://example.com> [a]: http://example.com",
    "<script>alert(1)</script><img src=x onerror=alert(1)><b>bold</b>",
    "</details></td></table><h1>x",
    "<!-- gradmark check -->",
    "--> x <!-- <!--> <!doctype html> <![CDATA[x]]>",
    "a | b | c |",
    "\\| \\\\| \\` \\\\` \\",
    "\n\n| a | b |\n|---|---|\n| c | d |\n\n# heading\n\n- list\n\n> [!CAUTION]\n\n```\nfence\n```\n",
    "` `` ``` ```` `",
    "`",
    "``",
    "a`@octocat`b",
    "`@octocat",
    "@octocat`",
    "*a* **b** _c_ __d__ ~~e~~ ~f~",
    ":bomb: :+1:",
    "&#64;octocat &commat;octocat &lt;b&gt; &#96; &#124; &#10;",
    "$x$ $$x$$ $`x`$",
    "$",
    "[^1] [ ] [x] - [ ] task",
    "\u202e\u2066a\u200b\u200d\ufeff\u00ad\u2028\u2029\x00\x07\x1b[31m\x85\xa0",
    "\u1fef@octocat\u1fef",
    "\ud800 \udfff",
    "a\u0301\u0301\u0301\u0301 אבג عربي \U000e0041",
    "\u3164\u115f\u2800",
    "",
    "   ",
    "\n",
    "\t@octocat",
    "    indented",
    "---",
    "===",
    "1. list",
    "Fixes #1",
    "\\",
    "x" * 100_000,
    "`" * 100_000,
    "<!" * 50_000,
    "\U0001f4a3" * 100_000,
]


def comparison(text, verdict, **more):
    return Comparison(text, (text, text), results.SERIAL, verdict, unit=f"{text}u", base=1.0, head=2.0, **more)


def report(text, named="suite.time_x"):
    """A report with this text wherever text of the measured project can stand."""
    ratio = {"ratio": 1.05, "low": 1.04, "high": 1.06, "detectable": 0.03, "rounds": 9}
    # The reasons have to differ, or the second would be "as above".
    reason = f"{text}!"
    return Report(
        project=text,
        base=Revision(text, BASE),
        head=Revision(text, HEAD, uncommitted=True),
        suite="head",
        threshold=0.03,
        confidence=0.99,
        comparisons=(
            comparison(text, "slower", **ratio),
            comparison(text, "faster", **ratio),
            comparison(text, "undecided", reason=reason, **ratio),
            comparison(text, "failed", reason=f"a\n{text} ?", side="head"),
            comparison(text, "same", **ratio),
            comparison(text, "same", **ratio),
        ),
        unavailable=(Unavailable(text, (text,), text),),
        only_in_base=(text, text),
        kernel_changes=(KernelChange(text, text, text, {text: text}, {}),),
        sentinel=Sentinel((comparison(text, "slower", **ratio),), biased=True),
        error_rates=ErrorRates(0.0, 0.003, 1000, 0.04),
        notes=(text, text),
        environment=f"{text}.",
        provenance={text: text},
    )


PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shape(text):
    """All tokens with what is in them, but of code spans only that they are there."""
    found = []
    for token in PARSER.parse(text):
        found.append((token.type, token.tag, "" if token.type == "inline" else token.content))
        children = token.children or ()
        found += [(child.type, child.tag, "" if child.type == "code_inline" else child.content) for child in children]
    return found


OUR_HTML = {MARKER, "<details><summary>2 same</summary>", "</details>"}

HARMLESS = shape(markdown(report("harmless")))


def check(text):
    written = markdown(report(text))
    found = shape(written)
    assert found == HARMLESS
    assert {content.strip() for kind, _, content in found if "html" in kind} == OUR_HTML
    assert not {kind for kind, *_ in found} & {"link_open", "image", "em_open", "s_open", "fence", "code_block", "hr"}
    _check_raw(written)


def _check_raw(written):
    assert written.startswith(MARKER)
    assert written.count("<!") == 1
    assert written.count("`") % 2 == 0
    assert len(written.encode()) <= LIMIT
    allowed = {c for c in written if not c.isprintable() or unicodedata.combining(c)}
    assert allowed <= {"\n"}
    assert not {c for c in written if unicodedata.bidirectional(c) in ("R", "AL", "AN")}
    # A dollar beside a backtick would be math; the others are letters that are drawn as nothing.
    assert not set(written) & set("$\u3164\u115f\u2800")
    for line in written.splitlines():
        if line.startswith("|"):
            assert line.count("|") == COLUMNS + 1, line


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_changes_nothing_but_the_inside_of_code_spans(text):
    check(text)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(st.characters(codec=None), max_size=60),
        st.text("`|\\<>!-@#[]()*_~$&;:\n\r \t/.a1", max_size=40),
        st.lists(st.sampled_from(HOSTILE[:40]), max_size=4).map("".join),
    )
)
def test_any_text_changes_nothing_but_the_inside_of_code_spans(text):
    check(text)


def test_our_own_words_mean_nothing_to_github_either():
    full = replace(report("x"), sentinel=None, error_rates=None, interrupted=True)
    for written in (markdown(report("x")), markdown(full), markdown(replace(full, comparisons=(), interrupted=False))):
        ours = " ".join(content for kind, _, content in shape(written) if kind == "text")
        assert not re.search(r"[@#`$\\<>&~_]|:\w+:|://|www\.|\b[0-9a-f]{7,}\b|GH-", ours), ours


@pytest.mark.parametrize(
    "text", ["@a`b", "[x](http://example.com)", "<b>x</b>", "a | b", "*x*", "a\n\nb", "<!-- x -->", "@octocat", "``"]
)
def test_text_that_were_let_through_would_be_found(text):
    assert shape(markdown(report("harmless")).replace("`harmless`", text)) != HARMLESS


def test_every_table_has_one_row_for_each_benchmark_and_the_same_cells():
    for text in ("a | b", "`|`\n|", "plain"):
        found = shape(markdown(report(text)))
        kinds = [kind for kind, *_ in found]
        # Two heads, four benchmarks that are shown, two that are folded away.
        assert kinds.count("tr_open") == 2 + 4 + 2
        assert kinds.count("td_open") == COLUMNS * 6
        assert kinds.count("th_open") == COLUMNS * 2


@given(st.text(st.characters(codec=None)), st.integers(2, 50))
def test_code_is_always_exactly_one_code_span(text, limit):
    written = code(text, limit)
    (inline,) = (token for token in PARSER.parse(f"x {written} y") if token.type == "inline")
    children = [child.type for child in inline.children]
    assert children == ["text", "code_inline", "text"]
    assert len(written) <= max(2.5 * limit + 2, len("`(empty)`"))


def test_what_is_harmless_is_written_as_it_is():
    assert code("suite.time_x('a', [1, 2], <f>)") == "`suite.time_x('a', [1, 2], <f>)`"
    assert code("µs × ≤ é 基准") == "`µs × ≤ é 基准`"


def test_numbers_have_no_seven_digits_in_a_row():
    huge = {"ratio": 123456789.0, "low": 1e-300, "high": 1e300, "detectable": 1e300, "rounds": 10**9}
    found = replace(
        report("x"),
        comparisons=(replace(comparison("x", "slower", **huge), base=123456789.0, head=-1e300),) * 3,
        error_rates=ErrorRates(0.5, 0.999999999, 10**9, 1e300),
        seconds=1e9,
        rounds=10**9,
        threshold=0.123456789,
        confidence=0.999999999,
    )
    written = re.sub("`[^`]*`", "", markdown(found))
    assert not re.search(r"\d{7}", written)


def test_a_huge_report_stays_within_the_limit_and_says_what_was_left_out():
    for text in ("\U0001f4a3" * 20_000, "<!" * 10_000, "x"):
        many = [replace(c, name=f"{i}{c.name}") for c in report(text).comparisons for i in range(500)]
        found = replace(
            report(text),
            comparisons=tuple(many),
            unavailable=tuple(Unavailable(text, (), f"{i}{text}") for i in range(500)),
            only_in_base=(text,) * 5000,
            kernel_changes=report(text).kernel_changes * 500,
            notes=report(text).notes * 500,
            sentinel=Sentinel(tuple(many), biased=True),
        )
        written = markdown(found)
        _check_raw(written)
        shown = written.count("| **slower** |")
        left_out = re.search(r"^([\d,]+) more have no room in this table", written, re.MULTILINE)
        rows = len(re.findall(r"^\| (\*\*slower|faster|undecided|failed)", written, re.MULTILINE))
        assert 0 < shown <= 500
        assert rows + int(left_out[1].replace(",", "")) == 2000
        assert len(re.findall("more are not shown here", written)) == 2
        # HTML that is opened is closed.
        assert written.count("<details>") == written.count("</details>") == 1


def test_the_verdict_stands_first_and_the_error_rates_beside_it():
    written = markdown(replace(report("x"), sentinel=None))
    assert written.splitlines()[:3] == [MARKER, "", "## gradmark check: 1 of 6 benchmarks slower, 1 of 6 failed"]
    above = written[: written.index("| verdict |")]
    assert "6 benchmarks: 1 slower, 1 faster, 2 same, 1 undecided, 1 failed." in above
    assert "0 of 1,000 simulated checks of identical code came out red: below 0.30 %." in above
    assert "with 90 % probability" in above
    assert "| **slower** | `x(x, x)` | 1.050 (1.040–1.060) | +3.0 % | 1 `xu` | 2 `xu` |  |" in written
    assert "SENTINEL WAS BIASED" in markdown(report("x"))


def test_an_empty_report_has_no_table():
    empty = replace(report("x"), comparisons=(), kernel_changes=(), notes=(), unavailable=(), only_in_base=())
    written = markdown(empty)
    assert "|" not in written
    assert "<details>" not in written


def test_the_examples_run():
    assert doctest.testmod(module).failed == 0
