"""`python -m benchmarks.same_weights`: the same seed, the same bits, over 10⁹ elements of each distribution.

Each stream of weights is drawn by every backend that is here, by Numba on all threads in one piece, by NumPy and
PyTorch in pieces of odd lengths, on a GPU where there is one, and compared bit by bit. The elements lie on both sides
of the block 2³², where the upper half of Philox's counter begins to count. The digests are for other machines: what
two runs with the same --elements print for one stream must be the same.

Exit codes: 0 all bits are equal, 1 some are not, 2 the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _evidence

DONE, DIFFERENT, WRONG, INTERRUPTED = 0, 1, 2, 130
SEED = 20_261_128
ELEMENTS = 10**9
PIECE = 1 << 22
"""Elements that all backends draw before they are compared."""
DISTRIBUTIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "uniform": ("fill_uniform", (-0.3, 0.7)),
    "normal": ("fill_normal", (0.1, 1.7)),
    "truncated normal": ("fill_truncated_normal", (0.0, 1.0, -2.0, 2.0)),
    "truncated normal, far tail": ("fill_truncated_normal", (0.0, 1.0, 7.0, 8.0)),
}
"""The name of the function that fills, and its parameters."""
CUTS = {"numpy": 1_000_003, "torch": 777_781, "cuda": 2_000_003}
"""Elements that a backend draws at a time; those that are not here draw a whole piece."""
_PER_BLOCK = {"float32": 4, "float64": 2}


class Stream(NamedTuple):
    """A distribution in a dtype."""

    distribution: str
    dtype: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, compare, print a line for each stream, and write the file; return the exit code."""
    return _evidence.command("benchmarks.same_weights", arguments, _parser, _run, WRONG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_weights", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="of each stream (default: 10⁹)")
    parser.add_argument("--json", metavar="FILE", help="merge the results into this file")
    return parser


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    from gradmark import console

    if not 1 <= options.elements <= 2**40:
        raise console.UsageError(f"--elements {options.elements}: give 1 to 2⁴⁰")
    fills = _fills()
    if len(fills) < 2:
        raise console.UsageError("there is nothing to compare NumPy's weights with: install Numba or PyTorch")
    file = _evidence.Growing(options.json, "same-weights", _key)
    head = _evidence.head("same-weights", "benchmarks.same_weights", given)
    found = []
    streams = [Stream(name, dtype) for name in DISTRIBUTIONS for dtype in _PER_BLOCK]
    try:
        with _evidence.terminated_like_interrupted(), console.progress("time left") as bar:
            task = bar.add_task("", total=len(streams) * options.elements, left="?")
            for stream in streams:
                entry = _compared(stream, options.elements, fills, functools.partial(_show, bar, task, stream))
                found.append(entry | {"measured": _evidence.measured(head)})
                file.add(found[-1:], lambda entries: {**head, "entries": list(entries.values())})
                sys.stdout.write(_line(entry) + "\n")
                sys.stdout.flush()
    except KeyboardInterrupt:
        console.complain("interrupted: what was finished is kept" if options.json else "interrupted")
        return INTERRUPTED
    if any(entry["different"] for entry in found):
        return DIFFERENT
    if file.problem is not None:
        raise console.UsageError(file.problem)
    return DONE


def _show(bar: Any, task: Any, stream: Stream, elements: int) -> None:
    bar.update(task, advance=elements, description=f"{stream.distribution} {stream.dtype}")
    now = bar.tasks[0]
    left = now.elapsed * (now.total / now.completed - 1)
    bar.update(task, left=f"{left:.0f} s", refresh=True)


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["distribution"], entry["dtype"], entry["elements"], tuple(entry["backends"])


def _line(entry: dict[str, Any]) -> str:
    differences = [f"{count} elements of {name} differ" for name, count in entry["different"].items()]
    return (
        f"{entry['distribution'] + ', ' + entry['dtype']:36} {entry['elements']:>14,} elements of"
        f" {', '.join(entry['backends'])}: {'; '.join(differences) or 'equal bits'}, {entry['digest']}"
    )


def _fills() -> dict[str, Callable[..., Any]]:
    """By backend, a function (name, parameters, dtype, first, size) -> an array of weights."""
    import importlib.util

    from gradmark.numerics import philox_numpy

    found: dict[str, Callable[..., Any]] = {"numpy": _of_arrays(philox_numpy)}
    if importlib.util.find_spec("numba"):
        from gradmark.numerics import philox_numba

        found["numba"] = _of_arrays(philox_numba)
    if importlib.util.find_spec("torch"):
        import torch

        found["torch"] = _of_tensors("cpu")
        if torch.cuda.is_available():
            found["cuda"] = _of_tensors("cuda")
    return found


def _of_arrays(module: Any) -> Callable[..., Any]:
    def fill(function: str, parameters: tuple[float, ...], dtype: str, first: int, size: int) -> Any:
        out = np.empty(size, dtype)
        getattr(module, function)(out, first, SEED, *parameters)
        return out

    return fill


def _of_tensors(device: str) -> Callable[..., Any]:
    import torch

    from gradmark.numerics import philox_torch

    def fill(function: str, parameters: tuple[float, ...], dtype: str, first: int, size: int) -> Any:
        out = torch.empty(size, dtype=getattr(torch, dtype), device=device)
        getattr(philox_torch, function)(out, first, SEED, *parameters)
        return out.cpu().numpy()

    return fill


def _compared(
    stream: Stream, elements: int, fills: dict[str, Callable[..., Any]], advance: Callable[[int], None]
) -> dict[str, Any]:
    """One stream: how many elements of each backend differ from NumPy's, and the digest of NumPy's."""
    function, parameters = DISTRIBUTIONS[stream.distribution]
    start = max(0, _PER_BLOCK[stream.dtype] * 2**32 - elements // 2)
    digest = hashlib.blake2b(digest_size=16)
    different = dict.fromkeys([name for name in fills if name != "numpy"], 0)
    for first, size in _pieces(start, elements, PIECE):
        bits = {}
        for name, fill in fills.items():
            parts = _pieces(first, size, CUTS.get(name, size))
            cut = [fill(function, parameters, stream.dtype, *part) for part in parts]
            bits[name] = np.concatenate(cut).view(f"u{np.dtype(stream.dtype).itemsize}")
        digest.update(bits["numpy"])
        for name in different:
            different[name] += int(np.count_nonzero(bits[name] != bits["numpy"]))
        advance(size)
    return {
        "distribution": stream.distribution,
        "parameters": parameters,
        "dtype": stream.dtype,
        "seed": SEED,
        "first": start,
        "elements": elements,
        "backends": list(fills),
        "different": {name: count for name, count in different.items() if count},
        "digest": digest.hexdigest(),
    }


def _pieces(first: int, size: int, length: int) -> Iterator[tuple[int, int]]:
    """(first, size) of the parts of an interval."""
    for begin in range(first, first + size, length):
        yield begin, min(length, first + size - begin)


if __name__ == "__main__":
    sys.exit(main())
