"""A small network trained with torch.nn's modules and with ours: python -m benchmarks.training.

scikit-learn's digits (1797 images of 8 x 8 pixels), a multilayer perceptron, the same weights, the same batches.
Compared are the loss of every step, which may differ by rounding alone, in float64 and in float32, and the time of a
training step (forward, backward, optimizer), interleaved in one process. Exit codes: 0 the curves are equal, 1 they
are not, 2 the command was wrong or scikit-learn is not installed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import _evidence

if TYPE_CHECKING:
    import torch

OURS, THEIRS = "gradmark.nn", "torch.nn"
BOUNDS = {"float64": 1e-12, "float32": 1e-4}
"""Largest difference of the loss in any step, in units of the first step's loss.

A wrong gradient is seen in float64, where nothing else comes near the bound.
"""


INEXACT = {"Hardsigmoid": "torch 2.13.0 differentiates it in float64 with the 1/6 of float32"}
"""Modules of which torch.nn's gradient has less than the digits of float64: there the bound of float32 holds."""

_RATE, _MOMENTUM = 0.01, 0.9
"""Small enough that rounding does not grow. At a rate of 0.05 it did with SELU, from 10^-16 to 10^-1 in 20 epochs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, measure, print; the exit code."""
    try:
        return _evidence.command("benchmarks.training", arguments, _parser, _run, 2)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    from gradmark import console

    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=summary, epilog=details)
    parser.add_argument("--activation", default="GELU", metavar="NAME", help="a module of torch.nn (default: GELU)")
    parser.add_argument("--depth", type=int, default=4, help="hidden layers (default: 4)")
    parser.add_argument("--width", type=int, default=128, help="units of each (default: 128)")
    parser.add_argument("--batch", type=int, default=64, help="images of a step (default: 64)")
    parser.add_argument("--epochs", type=int, default=20, help="how often each image is seen (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: 0)")
    parser.add_argument(
        "--budget", type=console.duration, default=30.0, help="for the times, such as 30s or 1m (default: 30s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the loss curves and times into this file; - for stdout")
    return parser


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    import torch

    from gradmark import console
    from gradmark.tracking.measure import compare, measure

    task = _task(options)
    console.check_writable("--json", options.json)
    total = 2 * len(BOUNDS) * options.epochs * len(task.batches(0))
    with console.progress("steps left") as bar:
        shown = bar.add_task("training", total=total, left=total)

        def tick() -> None:
            bar.advance(shown)
            left = int(bar.tasks[0].total - bar.tasks[0].completed)
            if left % 50 == 0:
                bar.update(shown, left=left, refresh=True)

        curves = {
            dtype: {who: _curve(task, who, getattr(torch, dtype), tick) for who in (THEIRS, OURS)} for dtype in BOUNDS
        }
    differences = {dtype: _difference(found[OURS], found[THEIRS]) for dtype, found in curves.items()}
    sys.stderr.write(f"timing a step, for {options.budget:g} s\n")
    found = measure(
        {who: _step(task, who) for who in (THEIRS, OURS)},
        budget=options.budget,
        limit=4 * options.budget,
        hopeless=math.inf,
    )
    ratio = compare(found, OURS, THEIRS) if found.rounds else None
    bounds = BOUNDS | ({"float64": BOUNDS["float32"]} if task.name in INEXACT else {})
    equal = all(differences[dtype] <= bound for dtype, bound in bounds.items())
    if options.json != "-":
        _print(task, curves, differences, bounds, found, ratio)
    record = {
        **_evidence.head("training", "benchmarks.training", given),
        "model": task.described(),
        "threads": torch.get_num_threads(),
        "loss": curves,
        "difference": differences,
        "bound": bounds,
        "equal": equal,
        "seconds": {who: list(values) for who, values in found.seconds.items()},
        "ratio": None if ratio is None else _interval(ratio),
    }
    console.write_json(options.json, record)
    return 0 if equal else 1


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, on what."""

    images: torch.Tensor
    labels: torch.Tensor
    make: Callable[[], torch.nn.Module]
    name: str
    depth: int
    width: int
    batch: int
    epochs: int
    seed: int

    def batches(self, epoch: int) -> tuple[Any, ...]:
        """Indices of the images of each step, in an order that depends on the seed and the epoch alone."""
        import torch

        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        return torch.randperm(len(self.images), generator=generator).split(self.batch)

    def model(self, who: str, dtype: torch.dtype) -> torch.nn.Module:
        """The network, with the same weights whoever's activations it has."""
        import torch

        from gradmark.nn import replace_activations

        torch.manual_seed(self.seed)
        layers: list[torch.nn.Module] = []
        for inputs in (self.images.shape[1], *[self.width] * (self.depth - 1)):
            layers += [torch.nn.Linear(inputs, self.width), self.make()]
        for layer in layers[::2]:
            # From the weights that torch.nn.Linear has, four layers learn next to nothing at this rate.
            torch.nn.init.kaiming_normal_(layer.weight)
        network = torch.nn.Sequential(*layers, torch.nn.Linear(self.width, 10)).to(dtype)
        if who == OURS:
            swapped = replace_activations(network).swapped
            if len(swapped) != self.depth:
                raise RuntimeError(f"{len(swapped)} of {self.depth} activations were replaced: {dict(swapped)}")
        return network

    def described(self) -> dict[str, Any]:
        """For the result file."""
        names = ("depth", "width", "batch", "epochs", "seed")
        return {
            "activation": self.name,
            "data": "sklearn.datasets.load_digits",
            "optimizer": "SGD(0.05, momentum=0.9)",
        } | {name: getattr(self, name) for name in names}


def _task(options: argparse.Namespace) -> Task:
    """What the options ask for, checked."""
    from gradmark import console

    for name in ("depth", "width", "batch", "epochs"):
        if getattr(options, name) < 1:
            raise console.UsageError(f"--{name} must be 1 or more, got {getattr(options, name)}")
    if not 0 <= options.seed < 2**53:
        raise console.UsageError(f"--seed must be from 0 to 2**53 - 1, got {options.seed}")
    console.known("activation", [options.activation], _activations())
    images, labels = _digits()
    import torch

    make = getattr(torch.nn, options.activation)
    given = {name: getattr(options, name) for name in ("depth", "width", "batch", "epochs", "seed")}
    return Task(images, labels, make, options.activation, **given)


def _activations() -> list[str]:
    """Elementwise modules of torch.nn that gradmark.nn has, that need no arguments and draw no random numbers."""
    import torch

    import gradmark

    found = []
    for name in torch.nn.modules.activation.__all__:
        parameters = inspect.signature(getattr(torch.nn, name)).parameters.values()
        needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        along_an_axis = name == "Softmax2d" or any(p.name == "dim" for p in parameters)
        if name in dir(gradmark.nn) and not (needed or along_an_axis or name == "RReLU"):
            found.append(name)
    return found


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels from 0 to 1, and labels."""
    import torch

    from gradmark import console

    try:
        from sklearn import datasets
    except ImportError as error:
        raise console.UsageError(
            f"scikit-learn cannot be imported ({error}); the digits come with it: pip install 'gradmark[peers]'"
        ) from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(pixels / 16.0), torch.from_numpy(labels).long()


def _trainer(task: Task, who: str, dtype: torch.dtype) -> Callable[[Any, Any], Any]:
    """A function that trains one step on images and labels, and gives the loss before it."""
    import torch

    network = task.model(who, dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=_MOMENTUM)

    def step(images: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _curve(task: Task, who: str, dtype: torch.dtype, tick: Callable[[], None]) -> list[float]:
    """The loss of every step."""
    step, images, losses = _trainer(task, who, dtype), task.images.to(dtype), []
    for epoch in range(task.epochs):
        for batch in task.batches(epoch):
            losses.append(float(step(images[batch], task.labels[batch])))
            tick()
    return losses


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest over the steps, relative to the first loss; NaN counts as infinite."""
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / theirs[0]
    return largest if all(map(math.isfinite, ours)) else math.inf


def _step(task: Task, who: str) -> Callable[[], Any]:
    """One training step in float32, always on the same batch."""
    import torch

    step, batch = _trainer(task, who, torch.float32), task.batches(0)[0]
    images, labels = task.images[batch].float(), task.labels[batch]
    # What is compiled at the first call is not a step's time.
    step(images, labels)
    return lambda: step(images, labels)


def _print(task: Task, curves: Any, differences: Any, bounds: Any, found: Any, ratio: Any) -> None:
    from gradmark.tracking.measure import median_interval

    out = sys.stdout
    out.write(f"{task.name}, {task.depth} layers of {task.width}, batches of {task.batch}, {task.epochs} epochs\n")
    if task.name in INEXACT:
        out.write(f"{INEXACT[task.name]}\n")
    for dtype, bound in bounds.items():
        first, last = curves[dtype][OURS][0], curves[dtype][OURS][-1]
        verdict = "equal" if differences[dtype] <= bound else "NOT EQUAL"
        out.write(
            f"loss in {dtype}: {first:.4f} to {last:.6f}; the curves differ by at most {differences[dtype]:.1e}"
            f" of the first loss (bound {bound:.0e}): {verdict}\n"
        )
    if ratio is None:
        out.write("time of a step: not measured, too few rounds fit into the budget; give a larger --budget\n")
        return
    for who, seconds in found.seconds.items():
        out.write(f"{who:12} {1e6 * median_interval(seconds).median:9.1f} µs a step\n")
    out.write(
        f"ratio of times, gradmark.nn to torch.nn: {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f},"
        f" {100 * ratio.coverage:.1f} %, {found.rounds} rounds)\n"
    )


def _interval(ratio: Any) -> dict[str, Any]:
    return {
        "median": ratio.median,
        "low": ratio.low,
        "high": ratio.high if math.isfinite(ratio.high) else None,
        "coverage": ratio.coverage,
    }


if __name__ == "__main__":
    sys.exit(main())
