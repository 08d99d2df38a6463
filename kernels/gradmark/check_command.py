"""The command `gradmark check`: arguments, progress, and what is written where."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradmark import console

if TYPE_CHECKING:
    from rich.progress import Progress

    from gradmark.tracking.check.repository import Project
    from gradmark.tracking.check.results import Report, Revision
    from gradmark.tracking.check.state import Check

_EXIT_CODES = (
    "exit codes: 0 nothing slower; 1 something slower; 2 the command was wrong; 3 it could not measure (nothing ran, a"
    " build failed, or base came out different from its own copy); 130 interrupted (the verdicts so far are printed)."
    " Benchmarks that failed or stayed undecided are shown, and do not change the exit code."
)


def add(commands: Any) -> None:
    """Add the command to the parser of `gradmark`."""
    check = commands.add_parser(
        "check",
        help="is this branch slower? any project with an asv suite",
        description="Compare two revisions of the project in the current folder over its asv suite.",
        epilog=_EXIT_CODES,
    )
    check.add_argument("base", nargs="?", metavar="BASE", help="default: where HEAD left the main branch")
    check.add_argument("head", nargs="?", default=None, metavar="HEAD", help="default: the commit that is checked out")
    check.add_argument("--worktree", action="store_true", help="HEAD is the working tree, uncommitted changes included")
    check.add_argument(
        "-b", "--bench", action="append", default=[], type=_regex, metavar="REGEX",
        help="only benchmarks that match; may be repeated",
    )  # fmt: skip
    check.add_argument(
        "--budget", type=console.duration, default=600.0, metavar="TIME",
        help="for measuring; building comes on top (default: 10m)",
    )  # fmt: skip
    check.add_argument(
        "--threshold", type=_threshold, default=None, metavar="PERCENT",
        help="the smallest change that counts (default: 3%%)",
    )  # fmt: skip
    check.add_argument(
        "--suite", choices=("base", "head"), default="head", help="whose benchmarks both sides run (default: head)"
    )
    check.add_argument("--config", metavar="FILE", help="the asv.conf.json (default: found from the current folder up)")
    check.add_argument(
        "-E", "--environment", metavar="SPEC",
        help="as asv's -E: virtualenv:3.12, or existing for the Python that runs gradmark (default: asv.conf.json's)",
    )  # fmt: skip
    check.add_argument("--seed", type=_seed, default=0, help="of the random order (default: 0)")
    check.add_argument("--all", action="store_true", help="show the benchmarks that stayed the same, too")
    check.add_argument("--json", metavar="FILE", help=console.JSON_HELP)
    check.add_argument("--markdown", metavar="FILE", help="write the report as Markdown, safe to post as a comment")
    check.add_argument(
        "--asv-results", action="store_true",
        help="also write both sides into asv's own result files, for asv compare and asv publish",
    )  # fmt: skip
    check.add_argument(
        "--rounds", metavar="FILE", help="also write every burst that was measured, one line of JSON per benchmark"
    )
    check.add_argument(
        "--self-test",
        action="store_true",
        help="measure how often the check errs on this machine: identical code, and real slowdowns in real kernels",
    )
    check.add_argument(
        "--study",
        nargs="*",
        metavar="PART",
        help="the self-test in full, more than an hour, or some of its parts; --json keeps the results",
    )
    check.set_defaults(run=_run)


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give a whole number from 0 on")
    return int(text)


def _threshold(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if match is None or not 0.1 <= float(match[1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no threshold; give percent from 0.1% to 100%, such as 3%")
    return float(match[1]) / 100


def _run(options: argparse.Namespace) -> int:
    for option, file in (("--json", options.json), ("--markdown", options.markdown), ("--rounds", options.rounds)):
        console.check_writable(option, file)
    _check_asv()
    from gradmark.tracking.check import engine
    from gradmark.tracking.check.repository import CheckUsageError, NotMeasurableError
    from gradmark.tracking.check.results import NOT_MEASURED

    try:
        if options.self_test or options.study is not None:
            return _study(options)
        project, base, head = _compared(options)
        with console.progress("") as bar:
            report, check = engine.run(project, base, head, _settings(options), BarDisplay(bar))
    except CheckUsageError as error:
        raise console.UsageError(str(error)) from error
    except NotMeasurableError as error:
        console.complain(f"gradmark check: {error}")
        return NOT_MEASURED
    _write(options, report, check, project)
    return report.exit_code


def _study(options: argparse.Namespace) -> int:
    from gradmark.tracking import machine
    from gradmark.tracking.check import study, study_table
    from gradmark.tracking.check.results import NOT_MEASURED, NOTHING_SLOWER

    unknown = sorted(set(options.study or ()) - set(study.PARTS))
    if unknown:
        raise console.UsageError(f"--study {' '.join(unknown)}: unknown; its parts are {', '.join(study.PARTS)}")
    ignored = {
        "-b": options.bench, "-E": options.environment, "--threshold": options.threshold, "--all": options.all,
        "--markdown": options.markdown, "--rounds": options.rounds, "--asv-results": options.asv_results,
        "--worktree": options.worktree, "--config": options.config,
    }  # fmt: skip
    given = [option for option, value in ignored.items() if value]
    if given:
        raise console.UsageError(f"--self-test and --study measure projects of their own: leave out {', '.join(given)}")
    if options.base is not None:
        raise console.UsageError(f"{options.base}: --self-test and --study measure projects of their own; leave it out")
    head = machine.provenance("check-study", options.given)
    measured = {key: head[key] for key in ("command", "created", "commit", "uncommitted")}
    before = _parts_before(options.json)

    def keep(record: dict[str, Any]) -> None:
        # After each part: a study takes long, and what was measured must not be lost with the rest.
        if options.json not in (None, "-"):
            parts = {name: {"measured": measured, **part} for name, part in record["parts"].items()}
            console.write_json(options.json, {**head, "parts": {**before, **parts}})

    with console.progress("") as bar:
        display = BarDisplay(bar)
        record = study.self_test(display, keep) if options.self_test else study.study(display, keep, options.study)
    if options.json == "-":
        console.write_json("-", {**head, **record})
    else:
        out = console.stdout()
        for line in study_table.lines(record):
            out.print(line)
    return NOT_MEASURED if any("failed" in part for part in record["parts"].values()) else NOTHING_SLOWER


def _parts_before(file: str | None) -> dict[str, Any]:
    """The parts of a study that a file holds already: those that are measured now replace only their own."""
    path = Path(file or "-")
    if file in (None, "-") or not path.is_file():
        return {}
    try:
        parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"]
    except (ValueError, KeyError, TypeError) as error:
        raise console.UsageError(f"--json {file}: it is there, and holds no study; give another name") from error
    return parts


def _check_asv() -> None:
    try:
        import asv  # noqa: F401
        import asv_runner  # noqa: F401
    except ImportError as error:
        raise console.UsageError(f"asv is needed and not installed ({error}): pip install 'gradmark[bench]'") from error


def _compared(options: argparse.Namespace) -> tuple[Project, Revision, Revision]:
    from gradmark.tracking.check import repository

    project = repository.find_project(Path.cwd(), options.config)
    if options.worktree and options.head is not None:
        raise console.UsageError("--worktree and HEAD exclude each other: give one of them")
    if options.worktree:
        head = repository.snapshot(project)
    else:
        head = repository.resolve(project, options.head or "HEAD")
        if options.head is None and repository.uncommitted(project):
            console.complain("gradmark check: uncommitted changes are not measured; --worktree includes them")
    if options.base is not None:
        base = repository.resolve(project, options.base)
    else:
        base = repository.merge_base(project, head, repository.load_config(project.config).branches)
    if base.commit == head.commit:
        console.complain("gradmark check: base and head are the same commit; whatever differs is noise")
    return project, base, head


def _settings(options: argparse.Namespace) -> Any:
    from gradmark.tracking.check import decide, state

    return state.Settings(
        patterns=tuple(options.bench),
        budget=options.budget,
        threshold=decide.THRESHOLD if options.threshold is None else options.threshold,
        suite=options.suite,
        env_spec=options.environment,
        seed=options.seed,
    )


def _write(options: argparse.Namespace, report: Report, check: Check, project: Project) -> None:
    from gradmark.tracking import machine
    from gradmark.tracking.check import markdown, record

    report = dataclasses.replace(report, provenance=machine.provenance("check", options.given))
    # Neither a file that cannot be written nor a pipe that nobody reads any more may cost the rest.
    with contextlib.ExitStack() as last_first:
        if options.asv_results:
            last_first.callback(_export, report, check, project)
        if options.rounds is not None:
            lines = (json.dumps(line) + "\n" for line in check.recorded_rounds())
            last_first.callback(console.write_text, "--rounds", options.rounds, "".join(lines))
        if options.markdown is not None:
            last_first.callback(console.write_text, "--markdown", options.markdown, markdown.markdown(report))
        last_first.callback(console.write_json, options.json, record.record(report))
        if options.json != "-":
            last_first.callback(_print, report, everything=options.all)


def _export(report: Report, check: Check, project: Project) -> None:
    from gradmark.tracking.check import asv_export
    from gradmark.tracking.check.repository import NotMeasurableError

    try:
        for path in asv_export.export(check, report, project):
            console.complain(f"gradmark check: wrote {path}")
    except (OSError, ValueError, NotMeasurableError) as error:
        raise console.UsageError(f"--asv-results: {error}") from error


def _print(report: Report, *, everything: bool) -> None:
    from gradmark.tracking.check import report_table, results

    out = console.stdout()
    verdicts = results.VERDICTS if everything else report_table.NOTEWORTHY
    table = report_table.table(report, verdicts=verdicts, width=out.width)
    if table is not None:
        out.print(table)
        out.print()
    for paragraph in report_table.summary(report):
        out.print(paragraph, markup=False, highlight=False, emoji=False)


class BarDisplay:
    """A progress bar on stderr, drawn between measurements only: a thread that draws would be measured too."""

    _EVERY = 0.25

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None, left="")
        self._drawn = 0.0
        self._began = 0.0
        self._done = 0
        self._total = 0

    def tell(self, text: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=text, refresh=True)
        if not self._bar.console.is_terminal:
            console.complain(text)

    def phase(self, name: str, total: int) -> None:
        """A stretch of `total` steps begins."""
        self._began, self._done, self._total = time.monotonic(), 0, total
        self._name = name
        self._bar.reset(self._task, total=total, description=name, left="")
        if not self._bar.console.is_terminal:
            console.complain(f"{name}: {total} steps")

    def step(self, label: str) -> None:
        """One of them is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._drawn < self._EVERY and self._done < self._total:
            return
        self._drawn = now
        left = (now - self._began) / self._done * max(0, self._total - self._done)
        minutes, seconds = divmod(round(left), 60)
        shown = label if len(label) <= 40 else label[:39] + "…"
        self._bar.update(
            self._task,
            completed=self._done,
            description=f"{self._name}: {shown}",
            left=f"{minutes}:{seconds:02} left in this phase",
            refresh=True,
        )
