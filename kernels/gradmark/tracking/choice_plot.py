"""`gradmark choose --plot`: time per element against size, one panel for each operation and pass.

matplotlib is imported only here. Colours are those of Okabe and Ito (Color Universal Design, 2008), which people with
any kind of colour vision can tell apart; every line has a marker of its own besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradmark.tracking import choose, curves
from gradmark.tracking.choose import Choice, Finding
from gradmark.workloads import TARGETS

ENDINGS = (".png", ".svg")

MOST_COLUMNS = 6

_PANEL_INCHES = (2.6, 2.0)

_STYLES = dict(
    zip(TARGETS, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")), strict=True)
)  # fmt: skip
"""Okabe and Ito's blue, vermilion, bluish green and reddish purple."""

_LIMIT = "#000000"
_BAND: dict[str, Any] = {"facecolor": "#F0E442", "edgecolor": "#8A8000", "alpha": 0.35}


class NoPlotError(RuntimeError):
    """No plot can be drawn; the message says why and what would help."""


def check_possible(file: str) -> None:
    """Raise NoPlotError before anything is measured, where the file's ending or matplotlib is missing."""
    if Path(file).suffix.lower() not in ENDINGS:
        raise NoPlotError(f"--plot {file}: the name must end in {' or '.join(ENDINGS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise NoPlotError("--plot needs matplotlib: pip install 'gradmark[plot]'") from error


def plot(choice: Choice, file: str, *, title: str, copy_bytes_per_second: float | None) -> None:
    """Draw what was measured.

    Parameters
    ----------
    choice : Choice
    file : str
        Its ending says the format, see `ENDINGS`.
    title : str
        On what it was measured.
    copy_bytes_per_second : float or None
        The memory limit of the host.

    Raises
    ------
    NoPlotError
        Nothing was measured, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        subject: measured
        for subject, curve in curves.by_subject(choice.findings).items()
        if (measured := [finding for finding in curve if finding.status == choose.MEASURED])
    }
    if not panels:
        raise NoPlotError(f"--plot {file}: nothing was measured that could be drawn")
    columns = min(MOST_COLUMNS, math.ceil(math.sqrt(len(panels) * 1.5)))
    rows = math.ceil(len(panels) / columns)
    width, height = _PANEL_INCHES[0] * max(columns, 2), _PANEL_INCHES[1] * rows + 1.5
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # Not matplotlib's constrained layout: of a hundred panels it takes a quarter of a minute.
    figure.subplots_adjust(
        left=0.55 / width, right=1 - 0.1 / width, bottom=0.5 / height, top=1 - 1.0 / height, wspace=0.28, hspace=0.32
    )
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    several = len({subject[3:] for subject in panels}) > 1
    for ax, (subject, curve) in zip(axes, panels.items(), strict=False):
        _panel(ax, subject, curve, copy_bytes_per_second, several=several)
    elements = [finding.workload.elements for curve in panels.values() for finding in curve]
    for ax in axes[: len(panels)]:
        ax.set_xlim(min(elements) / 2, max(elements) * 2)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    _legend(figure, panels.values(), copy_bytes_per_second, title)
    try:
        figure.savefig(file, dpi=130)
    except OSError as error:
        raise NoPlotError(f"--plot {file}: {error.strerror or error}") from error


def _panel(
    ax: Any, subject: curves.Subject, curve: Sequence[Finding], bandwidth: float | None, *, several: bool
) -> None:
    operation, variant, operation_pass, dtype, place = subject
    name = "+".join(filter(None, (operation, variant)))
    more = f"\n{dtype}, {place}" if several else ""
    ax.set_title(f"{name} {operation_pass}{more}", fontsize=7, pad=3)
    for crossover in curves.crossovers(curve):
        ax.axvspan(crossover.below, crossover.above, **_BAND, linewidth=0.8)
    for target, (colour, marker) in _STYLES.items():
        there = [finding for finding in curve if target in finding.times]
        if there:
            _line(ax, there, target, colour, marker)
    if bandwidth is not None and place == "host":
        elements = [f.workload.elements for f in curve]
        limit = [(f.bytes_moved or math.nan) / f.workload.elements / bandwidth * 1e9 for f in curve]
        ax.plot(elements, limit, color=_LIMIT, linestyle=":", linewidth=1.0, zorder=1)
        if len(elements) == 1:
            ax.axhline(limit[0], color=_LIMIT, linestyle=":", linewidth=1.0, zorder=1)
    _scale(ax)


def _line(ax: Any, there: Sequence[Finding], target: str, colour: str, marker: str) -> None:
    elements = [finding.workload.elements for finding in there]
    seconds = [finding.times[target].seconds for finding in there]
    per_element = [1e9 * s.median / n for s, n in zip(seconds, elements, strict=True)]
    ax.plot(elements, per_element, color=colour, marker=marker, markersize=3.2, linewidth=1.1, zorder=3)
    known = [(n, 1e9 * s.low / n, 1e9 * s.high / n) for s, n in zip(seconds, elements, strict=True) if s.low > 0]
    if known:
        ax.vlines(*zip(*known, strict=True), color=colour, linewidth=2.4, alpha=0.45, zorder=2)


def _scale(ax: Any) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator([2**power for power in range(4, 49, 4)]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$2^{{{round(math.log2(value))}}}$"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=6, length=2, pad=1, labelbottom=True)
    ax.grid(visible=True, which="major", linewidth=0.3, alpha=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _power_of_ten(value: float) -> str:
    return f"{value:g}" if 0.01 <= value <= 1000 else f"$10^{{{round(math.log10(value))}}}$"


def _legend(figure: Any, curves_drawn: Any, bandwidth: float | None, title: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    drawn = {name for curve in curves_drawn for finding in curve for name in finding.times}
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, markersize=5, label=target)
        for target, (colour, marker) in _STYLES.items()
        if target in drawn
    ]
    if bandwidth is not None:
        text = f"memory limit: a copy's {bandwidth / 1e9:.3g} GB/s"
        handles.append(Line2D([], [], color=_LIMIT, linestyle=":", label=text))
    handles.append(Patch(**_BAND, label="the winner changes in between"))
    figure.legend(
        handles=handles, title=title, title_fontsize=8, alignment="left",
        loc="upper left", ncols=3, fontsize=7, frameon=False,
    )  # fmt: skip
    figure.supylabel("ns per element (bars: 99 % interval)", fontsize=7, x=0.004)
    figure.supxlabel("elements", fontsize=7, y=0.05 / figure.get_figheight())
