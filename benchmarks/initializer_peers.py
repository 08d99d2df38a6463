"""Initializers beside PyTorch, NumPy and the limits of the machine: python -m benchmarks.initializer_peers.

All contenders of a case take turns, in one process, and each ratio is the median of those of the rounds, with its
interval. Random weights are filled in place; orthogonal ones are made anew by whoever makes them anew. The limits are a
parallel fill of the same memory, and the operations of `householder` at the rate of a square matrix product.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _evidence

Contenders = dict[str, Callable[[], Any]]
SIZES = (1 << 22, 1 << 24)
"""Elements of random fills: 16 MiB, which a large cache holds, and a matrix of 4096 x 4096."""
SHAPES = ((1024, 1024), (2048, 2048), (4096, 4096), (16384, 1024), (1024, 16384))
OURS = "gradmark"
_LIMIT = 10.0
"""Times the seconds that were given, for the rounds that an interval needs at least."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each ratio, and write the file; 0, or 2 for a wrong call."""
    return _evidence.command("benchmarks.initializer_peers", arguments, _parser, _run, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.initializer_peers", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for each case (default: 20; ten times that where rounds are long)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all ratios into this file")
    return parser


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    from gradmark import console
    from gradmark.tracking.measure import compare, measure

    if not (options.seconds > 0 and math.isfinite(options.seconds)):
        raise console.UsageError(f"--seconds must be a positive number, got {options.seconds}")
    console.check_writable("--json", options.json)
    entries = []
    for name, contenders, work in _cases():
        for call in contenders.values():
            call()
        # Here each ratio counts, also that of who is much slower.
        found = measure(contenders, budget=options.seconds, limit=_LIMIT * options.seconds, hopeless=math.inf)
        if found.rounds == 0:
            sys.stdout.write(f"{name:24} not measured: too few rounds fit into {_LIMIT * options.seconds:g} s\n")
            continue
        for other in contenders:
            if other == OURS:
                continue
            ratio = compare(found, other, OURS)
            share = work.get(other, 1.0) * ratio.median
            entries.append(
                {"case": name, "peer": other, "rounds": found.rounds, "ratio": ratio.median, "low": ratio.low}
                | {"high": ratio.high if math.isfinite(ratio.high) else None, "share": share}
            )
            what = f"{share:.2f} of its rate" if other in work else f"{ratio.median:.2f} times as fast"
            sys.stdout.write(
                f"{name:24} {other:28} {what:24} ratio of times {ratio.low:.2f} to {ratio.high:.2f},"
                f" {found.rounds} rounds\n"
            )
            sys.stdout.flush()
    if options.json:
        head = _evidence.head("initializer-peers", "benchmarks.initializer_peers", given)
        text = json.dumps({**head, "entries": entries}, indent=2, ensure_ascii=False, allow_nan=False)
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 0


def _cases() -> Iterator[tuple[str, Contenders, dict[str, float]]]:
    """Name, contenders, and of those that are limits, the work of ours in units of theirs."""
    for size in SIZES:
        yield from _random(size)
    yield from map(_orthogonal, SHAPES)


def _random(size: int) -> Iterator[tuple[str, Contenders, dict[str, float]]]:
    import numpy as np
    import torch

    from gradmark.numerics import philox_numba, philox_numpy

    out = np.empty(size, np.float32)
    tensor, generator = torch.from_numpy(out), np.random.default_rng(0)
    fill = {"a parallel fill": lambda: tensor.fill_(1.0)}
    limit = {"a parallel fill": 1.0}
    uniform = {
        OURS: lambda: philox_numba.fill_uniform(out, 0, 0, -1.0, 1.0),
        "torch uniform_": lambda: tensor.uniform_(-1.0, 1.0),
    }
    yield f"uniform {size}", {**uniform, **fill}, limit
    normal = {
        OURS: lambda: philox_numba.fill_normal(out, 0, 0, 0.0, 1.0),
        "torch normal_": lambda: tensor.normal_(),
        "numpy standard_normal": lambda: generator.standard_normal(out=out, dtype=np.float32),
    }
    yield f"normal {size}", {**normal, **fill}, limit
    truncated = {
        OURS: lambda: philox_numba.fill_truncated_normal(out, 0, 0, 0.0, 1.0, -2.0, 2.0),
        "torch trunc_normal_": lambda: torch.nn.init.trunc_normal_(tensor),
    }
    yield f"trunc_normal {size}", {**truncated, **fill}, limit
    in_numpy = {
        OURS: lambda: philox_numpy.fill_normal(out, 0, 0, 0.0, 1.0),
        "numpy standard_normal": lambda: generator.standard_normal(out=out, dtype=np.float32),
    }
    yield f"normal in NumPy {size}", in_numpy, {}


def _orthogonal(shape: tuple[int, int]) -> tuple[str, Contenders, dict[str, float]]:
    import numpy as np
    import torch

    import gradmark
    from gradmark.numerics import haar

    orthogonal = gradmark.backend("numba").orthogonal
    long, short = max(shape), min(shape)
    tensor, square = torch.empty(shape), np.random.default_rng(0).normal(size=(short, short)).astype(np.float32)
    tall = np.random.default_rng(0).normal(size=(long, short)).astype(np.float32)
    contenders = {
        OURS: lambda: orthogonal(shape, seed=0),
        **{
            f"gradmark, {method}": functools.partial(orthogonal, shape, seed=0, method=method)
            for method in ("qr", "cholesky_qr2")
            if haar.refusal(method, long, short) is None
        },
        "torch orthogonal_": lambda: torch.nn.init.orthogonal_(tensor),
        "numpy.linalg.qr": lambda: np.linalg.qr(tall),
        f"a product {short} x {short}": lambda: square @ square,
    }
    # Stewart's reflectors: 4 (m n² / 2 - n³ / 6) operations, of which a product has 2 n³.
    work = (long * short**2 / 2 - short**3 / 6) * 4 / (2 * short**3)
    return f"orthogonal {shape[0]}x{shape[1]}", contenders, {f"a product {short} x {short}": work}


if __name__ == "__main__":
    sys.exit(main())
