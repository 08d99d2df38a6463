"""The command `gradmark choose`: arguments, progress, and what is written where."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradmark import catalog, console

if TYPE_CHECKING:
    from rich.progress import Progress

    from gradmark.profiles import Key
    from gradmark.tracking.choose import Choice
    from gradmark.workloads import Workload

DONE, WRONG, COULD_NOT, INTERRUPTED = 0, 2, 3, 130

COMPILE_SHARE = 0.4
"""Of the budget, which compiling ahead may take even where the measurements at the first size need more."""

_EXIT_CODES = (
    "exit codes: 0 done; 2 the command was wrong, or nothing could be measured or is saved; 3 another `gradmark choose`"
    " is running; 130 interrupted (what was measured is printed and saved)"
)
_DEVICES = ("cpu", "cuda")


def add(commands: Any) -> None:
    """Add the command to the parser of `gradmark`."""
    choose = commands.add_parser(
        "choose",
        help="the fastest backend of each operation on this machine",
        description="Time every operation over all usable backends, at sizes from small to large, and name the fastest"
        " at each, or a tie. What is found is saved as the profile by which gradmark.gelu(x) and the others choose.",
        epilog=_EXIT_CODES,
    )
    choose.add_argument("--ops", type=console.names, metavar="OP,…", help="only these operations (default: all)")
    choose.add_argument(
        "--sizes", type=console.names, metavar="S,…",
        help="numbers of elements such as 1e6 or 2^20, or cache or memory, the suite's own (default: from 2^6 to 2^24"
        " as far as the budget goes, then between those at which the winner changes)",
    )  # fmt: skip
    choose.add_argument(
        "--dtype", type=console.names, default=["float32"], metavar="D,…",
        help="float32 (default), float64, float16, bfloat16, or several",
    )  # fmt: skip
    choose.add_argument(
        "--threads", type=_threads, metavar="N", help="how many threads the kernels may use (default: all)"
    )
    choose.add_argument(
        "--device", choices=_DEVICES, help="cpu alone, or cuda beside it (default: cuda if there is one)"
    )
    choose.add_argument(
        "--budget", type=console.duration, default=120.0, metavar="TIME", help="all included: 90s, 2m (default), 1m30s"
    )
    choose.add_argument("--json", metavar="FILE", help=console.JSON_HELP)
    choose.add_argument(
        "--plot", metavar="FILE", help="draw time per element against size, as PNG or SVG by the file's ending"
    )
    choose.add_argument("--no-save", action="store_true", help="keep the profile that is saved as it is")
    _add_without_measuring(choose)
    choose.set_defaults(run=run)


def _add_without_measuring(choose: argparse.ArgumentParser) -> None:
    instead = choose.add_argument_group("instead of measuring")
    instead.add_argument("--show", action="store_true", help="print the profile that is saved for this machine")
    instead.add_argument(
        "--explain", nargs=2, metavar=("OP", "SIZE"), help="the evidence for one decision: --explain gelu 1e6"
    )
    instead.add_argument(
        "--from-asv", nargs="?", const="", metavar="FOLDER",
        help="choose by what asv has recorded (default: the folder that asv.conf.json names); saves no profile",
    )  # fmt: skip
    instead.add_argument(
        "--machine", metavar="NAME", help="with --from-asv: asv's name of it (default: the newest results)"
    )
    instead.add_argument(
        "--commit", metavar="HASH", help="with --from-asv: of this commit (default: the newest results)"
    )


def run(options: argparse.Namespace) -> int:
    """Do what the arguments say; gives the exit code."""
    began = time.perf_counter()
    options.ops = console.known("operation", options.ops, catalog.OPERATIONS)
    console.check_writable("--json", options.json)
    if options.show + (options.explain is not None) + (options.from_asv is not None) > 1:
        raise console.UsageError("give one of --show, --explain and --from-asv")
    if (options.machine or options.commit) and options.from_asv is None:
        raise console.UsageError("--machine and --commit belong to --from-asv")
    if options.plot is not None:
        _check_plot(options.plot)
    if options.threads is not None:
        _limit_threads(options.threads)
    if options.show:
        return _show(options)
    if options.explain is not None:
        return _explain(options)
    if options.from_asv is not None:
        return _from_asv(options)
    return _measure(options, began)


def _threads(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; give 1 or more")
    return int(text)


def _check_plot(file: str) -> None:
    from gradmark.tracking import choice_plot

    console.check_writable("--plot", file)
    try:
        choice_plot.check_possible(file)
    except choice_plot.NoPlotError as error:
        raise console.UsageError(str(error)) from error


def _limit_threads(threads: int) -> None:
    """For libraries that are yet to be loaded by their variables, and for those that are loaded by their functions."""
    from gradmark import processor
    from gradmark.tracking import machine

    cores = processor.usable_cores()
    if threads > cores:
        raise console.UsageError(
            f"--threads {threads}: this process may use {cores} cores; more threads would wait in turn"
        )
    for name in machine.THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if "numba" in sys.modules:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace, began: float) -> int:
    from gradmark.tracking import one_choose

    try:
        with one_choose.only_one():
            return _measure_alone(options, began)
    except one_choose.AnotherRunsError as error:
        console.complain(f"gradmark choose: {error}")
        return COULD_NOT


def _measure_alone(options: argparse.Namespace, began: float) -> int:
    with console.progress("time left") as progress:
        from gradmark.tracking import choose, compile_ahead, machine

        dtypes = console.known("dtype", options.dtype, _known_dtypes())
        devices = _DEVICES if options.device is None else tuple(dict.fromkeys(("cpu", options.device)))
        targets = choose.usable_targets(dtypes, devices)
        _check_usable(options.device, targets)
        planned = _planned(options, dtypes, targets)
        head = machine.provenance("choose", options.given)
        display = _Countdown(progress, total=len(planned), ends=began + options.budget)
        compilation = None
        if targets.get("numba") is None:
            compilation = compile_ahead.compile_ahead(
                [workload for workload in planned if workload.dtype in _takes("numba")],
                deadline=began + _time_to_compile(options.budget, planned),
                processes=_cores(options.threads),
                before=display.compiling,
                tick=display.tick,
            )
            # What there was no time to compile comes last of its size.
            planned.sort(key=_stage_and_compiled(planned, compilation.seconds))
        choice = choose.choose(
            planned, targets, budget=options.budget, began=began, compilation=compilation,
            refine=options.sizes is None or len(options.sizes) > 1, before=display.before, tick=display.tick,
        )  # fmt: skip
    # Before anything is printed: who reads may leave.
    if not options.no_save and any(finding.status == choose.MEASURED for finding in choice.findings):
        _save_if_quiet(choice, head, options)
    bandwidth = _copy_bandwidth(options, choice)
    return _report(options, choice, head, bandwidth)


def _time_to_compile(budget: float, planned: Sequence[Workload]) -> float:
    """Seconds for compiling ahead: what the fewest rounds of all that is planned at the first size leave."""
    from gradmark.tracking import choose

    first = sum(workload.size == planned[0].size for workload in planned)
    return max(COMPILE_SHARE * budget, budget - choose.RESERVE_SECONDS - choose.CELL_SECONDS * first)


def _known_dtypes() -> list[str]:
    from gradmark import backends

    return list(dict.fromkeys(name for names in backends.DTYPES.values() for name in names))


def _takes(backend: str) -> tuple[str, ...]:
    from gradmark import backends

    return backends.DTYPES[backend]


def _cores(threads: int | None) -> int:
    from gradmark import processor

    return threads or processor.usable_cores()


def _check_usable(device: str | None, targets: Mapping[str, str | None]) -> None:
    from gradmark import workloads

    reasons = "; ".join(f"{name}: {reason}" for name, reason in targets.items() if reason is not None)
    if device == "cuda" and all(targets[name] for name in targets if workloads.TARGETS[name].device == "cuda"):
        raise console.UsageError(f"--device cuda: not measured: no CUDA device ({reasons})")
    if all(targets.values()):
        raise console.UsageError(f"no backend can be used: {reasons}")


def _planned(options: argparse.Namespace, dtypes: Sequence[str], targets: Mapping[str, str | None]) -> list[Workload]:
    from gradmark.tracking import choose, sizes

    try:
        wanted = list(sizes.SWEEP) if options.sizes is None else [sizes.parse(text) for text in options.sizes]
    except ValueError as error:
        raise console.UsageError(str(error)) from error
    planned = choose.plan(options.ops, list(dict.fromkeys(wanted)), dtypes)
    usable = sum(reason is None for reason in targets.values())
    too_large = sizes.too_large(planned, usable, sizes.free_memory())
    if too_large and options.sizes is not None:
        raise console.UsageError(f"--sizes: {next(iter(too_large.values()))}")
    for reason in dict.fromkeys(too_large.values()):
        console.complain(f"left out: {reason}")
    return [workload for workload in planned if workload not in too_large]


def _stage_and_compiled(planned: Sequence[Workload], compiled: Mapping[Workload, float]) -> Any:
    from gradmark.tracking import compile_ahead

    stages = {size: stage for stage, size in enumerate(dict.fromkeys(workload.size for workload in planned))}
    return lambda workload: (stages[workload.size], compile_ahead.kernel_of(workload) not in compiled)


def _copy_bandwidth(options: argparse.Namespace, choice: Choice) -> float | None:
    """Measured in the same run, for the plot's line; not where nothing was measured or memory is too small."""
    from gradmark import workloads
    from gradmark.tracking import copy_bandwidth, sizes

    cache = workloads.last_level_cache() or workloads.ASSUMED_LAST_LEVEL_CACHE
    wanted, free = 4 * cache, sizes.free_memory()
    if options.plot is None or choice.interrupted or (free is not None and free < 2 * wanted):
        return None
    return copy_bandwidth.bytes_per_second(wanted, _cores(options.threads))


def _report(options: argparse.Namespace, choice: Choice, head: dict[str, Any], bandwidth: float | None) -> int:
    """Write, print and draw, in the order in which least is lost."""
    from gradmark.tracking import choice_record, choose

    measured = any(finding.status == choose.MEASURED for finding in choice.findings)
    body = choice_record.record(choice, budget=options.budget)
    try:
        console.write_json(options.json, {**head, **body, "copy_bytes_per_second": bandwidth})
    finally:
        if options.json != "-":
            _print(choice, options.budget, f"{head['machine']['cpu']}, {_cores(options.threads)} threads")
    if options.plot is not None and measured:
        _plot(choice, options.plot, head, _cores(options.threads), bandwidth)
    if choice.interrupted:
        return INTERRUPTED
    return DONE if measured else WRONG


def _print(choice: Choice, budget: float | None, title: str) -> None:
    from gradmark.tracking import choice_table

    out = console.stdout()
    out.print(title)
    for table in choice_table.tables(choice, width=out.width):
        out.print(table)
    for note in choice_table.footnotes(choice, budget=budget):
        out.print(note)


def _save_if_quiet(choice: Choice, head: Mapping[str, Any], options: argparse.Namespace) -> None:
    from gradmark.tracking import choice_table

    if (choice.others_cores or 0.0) < choice_table.DISTURBING_CORES:
        _save(choice, head, options)
        return
    console.complain(
        f"gradmark choose: not saved: other processes kept {choice.others_cores:.1f} cores busy meanwhile, and calls"
        " would be served by what is fastest beside them; run it again when they rest"
    )


def _save(choice: Choice, head: Mapping[str, Any], options: argparse.Namespace) -> None:
    from gradmark.errors import ProfileError
    from gradmark.tracking import choice_profile

    try:
        path = choice_profile.save(choice, head, _key(options))
    except ProfileError as error:
        console.complain(f"gradmark choose: not saved: {error}")
        return
    console.complain(f"saved in {path}; gradmark choose --show prints it")


def _key(options: argparse.Namespace) -> Key:
    from gradmark.profiles import Key

    return Key.here(threads=options.threads)


def _plot(choice: Choice, file: str, head: Mapping[str, Any], threads: int, bandwidth: float | None) -> None:
    from gradmark.tracking import choice_plot

    versions = ", ".join(
        f"{name} {head['versions'][name]}" for name in ("numpy", "numba", "torch") if head["versions"][name]
    )
    title = f"{head['machine']['cpu']}, {threads} threads; {versions}; {head['created'][:10]}"
    try:
        choice_plot.plot(choice, file, title=title, copy_bytes_per_second=bandwidth)
    except choice_plot.NoPlotError as error:
        raise console.UsageError(str(error)) from error


class _Countdown:
    """Shows what is compiled or measured, and how much of the budget is left.

    It is drawn between the rounds only: a thread that draws while a kernel is timed would slow it.
    """

    _EVERY = 0.25

    def __init__(self, progress: Progress, total: int, ends: float) -> None:
        self._progress = progress
        self._ends = ends
        self._task = progress.add_task("starting", total=total, left=self._left())
        self._done = -1
        self._drawn = 0.0

    def compiling(self, workload: Workload) -> None:
        self._progress.update(self._task, description=f"compiled {workload.operation} {workload.operation_pass}")
        self.tick()

    def before(self, workload: Workload) -> None:
        from gradmark.tracking import sizes

        self._done += 1
        name = f"{workload.operation} {workload.operation_pass}, {sizes.shown(workload.elements)}"
        self._progress.update(self._task, completed=self._done, description=name)
        self.tick()

    def tick(self) -> None:
        if time.perf_counter() - self._drawn >= self._EVERY:
            self._drawn = time.perf_counter()
            self._progress.update(self._task, left=self._left(), refresh=True)

    def _left(self) -> str:
        minutes, seconds = divmod(max(0, round(self._ends - time.perf_counter())), 60)
        return f"{minutes}:{seconds:02}"


# --- what is saved ----------------------------------------------------------------------------------------------------


def _show(options: argparse.Namespace) -> int:
    from gradmark import profiles
    from gradmark.errors import ProfileError
    from gradmark.tracking import choice_text

    key = _key(options)
    try:
        profile = profiles.load(key)
    except ProfileError as error:
        raise console.UsageError(str(error)) from error
    out = console.stdout()
    if profile is not None:
        out.print(f"{key.cpu}, {key.threads} threads; {profile.created}")
        out.print(choice_text.profile_table(profile, options.ops))
        out.print(str(profiles.path_of(key)), soft_wrap=True)
    for path, why in profiles.stale():
        out.print(f"not used: {path}: {why}", soft_wrap=True)
    if profile is None:
        raise console.UsageError(
            f"no profile is saved for this machine with {key.threads} threads; run: gradmark choose"
        )
    return DONE


def _explain(options: argparse.Namespace) -> int:
    from gradmark.errors import ProfileError
    from gradmark.tracking import choice_profile, choice_text, choose, sizes

    (operation,) = console.known("operation", options.explain[:1], catalog.OPERATIONS)
    try:
        size = sizes.parse(options.explain[1])
        found = choice_profile.evidence(_key(options))
    except (ValueError, ProfileError) as error:
        raise console.UsageError(str(error)) from error
    elements = int(size) if size.isdigit() else choose.plan([operation], [size], ["float32"])[0].elements
    dtypes = console.known("dtype", options.dtype, _known_dtypes())
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        if one["operation"] == operation and one["dtype"] in dtypes:
            groups.setdefault((one["place"], one["dtype"], one["variant"], one["pass"]), []).append(one)
    if not groups:
        raise console.UsageError(
            f"nothing is saved of {operation} in {', '.join(dtypes)} on this machine; run:"
            f" gradmark choose --ops {operation} --dtype {','.join(dtypes)}"
        )
    if options.json is not None:
        chosen = [choice_text.nearest(group, elements) for group in groups.values()]
        console.write_text("--json", options.json, json.dumps(chosen, indent=2, ensure_ascii=False) + "\n")
    if options.json != "-":
        out = console.stdout()
        origins: dict[str, None] = {}
        for group in groups.values():
            for part in choice_text.explanation(group, elements):
                out.print(part)
            origins[choice_text.origin(choice_text.nearest(group, elements)["measured"])] = None
        for origin in origins:
            out.print(origin)
    return DONE


# --- from asv ---------------------------------------------------------------------------------------------------------


def _from_asv(options: argparse.Namespace) -> int:
    from gradmark.tracking import choice_from_asv, choice_record, machine

    try:
        recorded = choice_from_asv.recorded(Path(options.from_asv or _results_dir()))
        source = choice_from_asv.select(recorded, options.machine, options.commit)
        choice = choice_from_asv.choice(source, options.ops)
    except choice_from_asv.NoResultsError as error:
        raise console.UsageError(str(error)) from error
    origin = {"machine": source.machine, "commit": source.commit, "file": source.path.name}
    head = machine.provenance("choose", options.given)
    body = choice_record.record(choice, budget=0.0)
    console.write_json(options.json, {**head, **body, "budget_seconds": None, "from_asv": origin})
    if options.json != "-":
        _print(choice, None, f"asv's results of commit {source.commit[:8]} on {source.machine}")
    if options.plot is not None:
        from gradmark.tracking import choice_plot

        try:
            title = f"asv: commit {source.commit[:8]} on {source.machine}"
            choice_plot.plot(choice, options.plot, title=title, copy_bytes_per_second=None)
        except choice_plot.NoPlotError as error:
            raise console.UsageError(str(error)) from error
    return DONE


def _results_dir() -> str:
    """As asv.conf.json in this folder or above it says."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        conf = folder / "asv.conf.json"
        if conf.is_file():
            from asv.util import load_json

            return str(folder / str(load_json(str(conf), js_comments=True).get("results_dir", "results")))
    raise console.UsageError("--from-asv: there is no asv.conf.json here or above; give the folder of asv's results")
