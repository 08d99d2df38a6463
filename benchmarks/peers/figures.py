"""One figure an operation: time per element against size, a line a contender, and the memory's own speed.

A hollow marker is of a contender that was given up after a few rounds, as more than three times slower.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import contenders
from .cases import ELEMENTWISE

# Okabe, Ito, Color Universal Design, 2008 (the orange darker, so that its name can be read), and for one contender more
# a dark red of Paul Tol's. Ours are thick.
_STYLES: Mapping[str, dict[str, Any]] = {
    contenders.NUMBA: {"color": "#D55E00", "linewidth": 2.6, "marker": "o"},
    contenders.NUMPY: {"color": "#0072B2", "linewidth": 2.6, "marker": "o"},
    contenders.TORCH: {"color": "#009E73", "linewidth": 2.6, "marker": "o"},
    contenders.NAIVE: {"color": "#56B4E9", "linewidth": 1.3, "marker": "s"},
    contenders.EAGER: {"color": "#C98500", "linewidth": 1.3, "marker": "^"},
    contenders.COMPILED: {"color": "#CC79A7", "linewidth": 1.3, "marker": "v"},
    contenders.NUMEXPR: {"color": "#777777", "linewidth": 1.3, "marker": "D"},
    contenders.JAX: {"color": "#000000", "linewidth": 1.3, "marker": "P"},
    contenders.SCIPY: {"color": "#882255", "linewidth": 1.3, "marker": "X"},
}

Entry = Mapping[str, Any]


def draw(entries: Sequence[Entry], folder: Path, suffix: str = "svg") -> list[Path]:
    """Draw every elementwise operation that was measured, into `folder`; gives the files."""
    import matplotlib

    matplotlib.use("Agg")
    # The same numbers give the same file.
    matplotlib.rcParams |= {"svg.hashsalt": "gradmark", "svg.fonttype": "none"}
    known = [entry for entry in entries if entry["group"] == ELEMENTWISE]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in dict.fromkeys(map(_name, known)):
        files.append(folder / f"{name}.{suffix}")
        _figure(name, [entry for entry in known if _name(entry) == name], files[-1])
    return files


def _name(entry: Entry) -> str:
    return "+".join(filter(None, (entry["operation"], entry["variant"])))


def _figure(name: str, entries: Sequence[Entry], file: Path) -> None:
    from matplotlib import pyplot as plt

    passes = list(dict.fromkeys(entry["pass"] for entry in entries))
    dtypes = list(dict.fromkeys(entry["dtype"] for entry in entries))
    size = (6.4 * len(passes), 4.2 * len(dtypes))
    figure, grid = plt.subplots(len(dtypes), len(passes), figsize=size, squeeze=False, sharey="row")
    for axes_row, dtype in zip(grid, dtypes, strict=True):
        for axes, which in zip(axes_row, passes, strict=True):
            chosen = [entry for entry in entries if (entry["pass"], entry["dtype"]) == (which, dtype)]
            _panel(axes, f"{name}, {which}, {dtype}", sorted(chosen, key=lambda entry: entry["elements"]))
        axes_row[0].set_ylabel("ns per element")
    for axes_row in grid:
        for axes in axes_row:
            _label_lines(axes)
    figure.subplots_adjust(left=0.06, right=0.87, top=0.93, bottom=0.12, wspace=0.45, hspace=0.32)
    figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _panel(axes: Any, title: str, entries: Sequence[Entry]) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("elements")
    axes.tick_params(labelleft=True)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for name, style in _STYLES.items():
        timed = [entry for entry in entries if name in entry["seconds"]]
        points = [(entry["elements"], 1e9 * entry["seconds"][name]["median"] / entry["elements"]) for entry in timed]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style)
        # Without an interval: given up after a few rounds.
        few = [point for point, entry in zip(points, timed, strict=True) if entry["seconds"][name]["low"] is None]
        if few:
            hollow = {"marker": style["marker"], "markerfacecolor": "white", "markeredgecolor": style["color"]}
            axes.plot(*zip(*few, strict=True), label="_given up", linestyle="", markersize=4, **hollow)
    limit = _memory_limit(entries)
    if limit is not None:
        axes.axhline(limit, color="#444444", linestyle=(0, (5, 3)), linewidth=1.2, label="memory limit", zorder=1)


def _memory_limit(entries: Sequence[Entry]) -> float | None:
    """Nanoseconds per element of the copy or the triad at the largest size that was timed beyond the cache."""
    for entry in reversed(entries):
        if contenders.YARDSTICK in entry["seconds"]:
            return float(1e9 * entry["seconds"][contenders.YARDSTICK]["median"] / entry["elements"])
    return None


_LABEL_HEIGHT = 0.052
"""Of the panel: labels are kept that far apart."""


def _label_lines(axes: Any) -> None:
    """Names beside the last points, moved apart where they would overlap, with a line from each to its point."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) and not line.get_label().startswith("_")]
    ends = [(math.log(float(line.get_ydata()[-1])) - low) / (high - low) for line in lines]
    order = sorted(range(len(lines)), key=ends.__getitem__)
    places = _apart([ends[i] for i in order])
    left, right = axes.get_xlim()
    for i, place in zip(order, places, strict=True):
        line = lines[i]
        is_limit = line.get_label() == "memory limit"
        last = 1.0 if is_limit else math.log(float(line.get_xdata()[-1]) / left) / math.log(right / left)
        axes.annotate(
            line.get_label(),
            xy=(last, ends[i]),
            xytext=(1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=line.get_color(),
            fontsize=8,
            fontweight="bold" if line.get_label() in contenders.OURS else "normal",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.5, "relpos": (0.0, 0.5)},
        )


def _apart(places: Sequence[float]) -> list[float]:
    """The ascending places moved as little as need be: at least a label's height apart, and within the panel.

    The least squares of the moves are an isotonic regression of places less their rank's height (pool adjacent
    violators).
    """
    pools: list[list[float]] = []
    for rank, place in enumerate(places):
        pools.append([place - rank * _LABEL_HEIGHT])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    highest = 1.0 - (len(places) - 1) * _LABEL_HEIGHT
    fitted = [min(max(statistics.fmean(pool), 0.0), highest) for pool in pools for _ in pool]
    return [value + rank * _LABEL_HEIGHT for rank, value in enumerate(fitted)]
