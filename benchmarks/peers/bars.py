"""The bars that gradmark has set itself, judged from the entries of a result file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .._worktree import catalog
from .cases import FILLS, GATED, IN_PLACE, INITIALIZERS, STABILIZERS
from .contenders import EAGER, NAIVE, PEERS

TIE = 0.98
"""A ratio above this is no loss: nobody should switch for 2 %, and the layout of memory alone moves a kernel so far."""

OVERHEAD_EXPONENT = 12
"""Below 2^12 elements one call's overhead is what is timed."""

_TRANSCENDENTAL = re.compile(r"\b(exp|expm1|log1p|tanh|sech|erfc)\(")

_GEOMETRIC_MEAN = "numba, from 2^12 elements: 1.5 times as fast as torch eager, geometric mean"

Entry = Mapping[str, Any]
Ratio = Mapping[str, float | None]
Judged = tuple[Entry, str, Ratio]
"""An entry, whom it is compared with, and how many times our time that one takes."""


def summary(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One record a bar.

    Returns
    -------
    list of dict
        `bar`: what is asked for. `least`: the smallest ratio that is none of its losses. `compared`, `held`: how many
        comparisons there are, and how many hold. `worst`: the smallest ratio. `losses`: the comparisons that do not
        hold, worst first, each with `operation`, `variant`, `pass`, `size`, `dtype`, `against`, `ratio`, `low`, `high`.
        `geometric_mean`: of all ratios.
    """
    sized = [e for e in entries if e["group"] not in (STABILIZERS, INITIALIZERS)]
    large = [e for e in sized if _exponent(e) >= OVERHEAD_EXPONENT]
    small = [e for e in sized if _exponent(e) < OVERHEAD_EXPONENT]
    learnable = [e for e in large if getattr(catalog.operation(e["operation"]), "learnable", ())]
    gated = [e for e in entries if e["group"] == GATED]
    layers = [e for e in entries if e["group"] == STABILIZERS and e["operation"] != "clip_grad_norm"]
    clips = [e for e in entries if e["operation"] == "clip_grad_norm"]
    eager = _against(EAGER)
    return [
        _bar("numba, from 2^12 elements: as fast as the fastest peer", TIE, _judged(large, _fastest_peer)),
        {**_bar(_GEOMETRIC_MEAN, 1.5, _judged(large, eager)), "mean_only": True},
        _bar("numba, below 2^12 elements: at most 1.3 times torch eager's time", 1 / 1.3, _judged(small, eager)),
        _bar("numba, beyond the cache: 90 % of a copy's or triad's bandwidth", 0.9, _judged(entries, _yardstick)),
        _bar(
            "numpy: twice as fast as the naive expression, with a transcendental function",
            2.0,
            _judged([e for e in entries if _is_transcendental(e)], _naive),
        ),
        _bar("learnable and gated: twice as fast as torch eager", 2.0, _judged([*learnable, *gated], eager)),
        _bar("batch_norm, residual_add: as fast as torch eager", TIE, _judged(layers, eager)),
        _bar("clip_grad_norm: twice as fast as torch's", 2.0, _judged(clips, eager)),
        *_of_initializers([e for e in entries if e["group"] == INITIALIZERS]),
    ]


def _of_initializers(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Fills are judged in place, where nothing but the drawing takes time."""
    judged = {
        name: [e for e in entries if e["operation"] == name and e["variant"] == (IN_PLACE if name in FILLS else "")]
        for name in (*FILLS, "orthogonal")
    }
    eager, numpy = _against(EAGER), _against(NAIVE)
    normal, matrices = judged["normal"], judged["orthogonal"]
    return [
        _bar("uniform in place: 4 times as fast as torch's", 4.0, _judged(judged["uniform"], eager)),
        _bar("normal in place: 4 times as fast as torch's", 4.0, _judged(normal, eager)),
        _bar("normal in place: 8 times as fast as NumPy's", 8.0, _judged(normal, numpy)),
        _bar("trunc_normal in place: 15 times as fast as torch's", 15.0, _judged(judged["trunc_normal"], eager)),
        _bar("orthogonal: twice as fast as torch's", 2.0, _judged(matrices, eager)),
        _bar("orthogonal: 4 times as fast as numpy.linalg.qr", 4.0, _judged(matrices, numpy)),
        _bar("normal in place: gradmark numpy half as fast as NumPy's Generator", 0.5, _judged(normal, _naive)),
    ]


def holds(bar: Mapping[str, Any]) -> bool | None:
    """Whether a bar of the summary is met; None where nothing was compared."""
    if not bar["compared"]:
        return None
    return bool(bar["geometric_mean"] >= bar["least"] if bar.get("mean_only") else not bar["losses"])


def _bar(text: str, least: float, judged: Sequence[Judged]) -> dict[str, Any]:
    ratios = [ratio["median"] or 0.0 for _, _, ratio in judged]
    losses = [one for one, value in zip(judged, ratios, strict=True) if value < least]
    losses.sort(key=lambda one: one[2]["median"] or 0.0)
    return {
        "bar": text,
        "least": least,
        "compared": len(judged),
        "held": len(judged) - len(losses),
        "worst": min(ratios, default=None),
        "geometric_mean": math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None,
        "losses": [
            {
                **{name: entry[name] for name in ("operation", "variant", "pass", "size", "dtype")},
                "against": against,
                "ratio": ratio["median"],
                "low": ratio["low"],
                "high": ratio["high"],
            }
            for entry, against, ratio in losses
        ],
    }


Comparison = Callable[[Entry], tuple[str, Ratio] | None]


def _judged(entries: Iterable[Entry], compare: Comparison) -> list[Judged]:
    return [(entry, *found) for entry in entries if (found := compare(entry)) is not None]


def _against(name: str) -> Comparison:
    def compare(entry: Entry) -> tuple[str, Ratio] | None:
        ratio = entry["over_numba"].get(name)
        return None if ratio is None else (name, ratio)

    return compare


def _fastest_peer(entry: Entry) -> tuple[str, Ratio] | None:
    found = [(name, entry["over_numba"][name]) for name in PEERS if entry["over_numba"].get(name)]
    return min(found, key=lambda one: one[1]["median"], default=None)


def _yardstick(entry: Entry) -> tuple[str, Ratio] | None:
    ratio = entry["yardstick_over_numba"]
    return None if ratio is None else ("triad" if entry["pass"] == catalog.BACKWARD else "copy", ratio)


def _naive(entry: Entry) -> tuple[str, Ratio] | None:
    ratio = entry["naive_over_numpy"]
    return None if ratio is None else ("naive NumPy", ratio)


def _is_transcendental(entry: Entry) -> bool:
    row = catalog.operation(entry["operation"])
    if row.family != "activations":
        return False
    return bool(_TRANSCENDENTAL.search(row.derivative if entry["pass"] == catalog.BACKWARD else row.formula))


def _exponent(entry: Entry) -> int:
    return int(math.log2(entry["elements"]))
