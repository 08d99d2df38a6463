"""Who competes, and what each of them calls: a function without arguments, or the reason why there is none.

A contender's maker takes a `Data` and gives the call. It is made once, with all that a user makes once (a compiled
function, tensors), and the call is all that is timed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from . import array_peers, initializing, jax_peers, ours, torch_peers
from .cases import ELEMENTWISE, IN_PLACE, INITIALIZERS, STABILIZERS, Data

Call = Callable[[], Any]
Maker = Callable[[Data], Call]

NUMPY, NUMBA, TORCH = "gradmark numpy", "gradmark numba", "gradmark torch"
NUMBA_OUT, YARDSTICK = "gradmark numba, out=", "yardstick"
NAIVE, EAGER, COMPILED, NUMEXPR, JAX, SCIPY = "naive NumPy", "torch eager", "torch.compile", "numexpr", "JAX", "SciPy"
KERAS = "Keras"

OURS = (NUMPY, NUMBA, TORCH)
PEERS = (NAIVE, EAGER, COMPILED, NUMEXPR, JAX, SCIPY, KERAS)

_NEEDS = {NUMBA: "numba", NUMBA_OUT: "numba", YARDSTICK: "numba", TORCH: "torch", EAGER: "torch"}
_NEEDS |= {COMPILED: "torch", NUMEXPR: "numexpr", JAX: "jax", SCIPY: "scipy", KERAS: "keras"}


def missing_libraries() -> dict[str, str]:
    """Contenders whose library is not installed, and how to get it."""
    return {
        name: f"{module} is not installed: pip install 'gradmark[peers]'"
        for name, module in _NEEDS.items()
        if importlib.util.find_spec(module) is None
    }


def versions() -> dict[str, str]:
    """The versions of the libraries of all contenders that are installed."""
    found = {}
    for module in ("numpy", "scipy", "numba", "torch", "numexpr", "jax", "jaxlib", "keras"):
        try:
            found[module] = importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "keras" in found:
        found["keras"] += f" on {initializing.keras_backend()}"
    return found


def give_threads() -> dict[str, int]:
    """Give every library as many threads as the process may use cores, and say what each has got."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    missing = missing_libraries()
    threads = {"cores": cores}
    if TORCH not in missing:
        import torch

        torch.set_num_threads(cores)
        threads["torch"] = torch.get_num_threads()
    if NUMBA not in missing:
        import numba

        numba.set_num_threads(cores)
        threads["numba"] = numba.get_num_threads()
    if NUMEXPR not in missing:
        import numexpr

        numexpr.set_num_threads(cores)
        threads["numexpr"] = numexpr.get_num_threads() if hasattr(numexpr, "get_num_threads") else cores
    return threads


def makers(data: Data) -> dict[str, Maker]:
    """The makers of all contenders that may have the case, ours first."""
    case = data.case
    if case.group == INITIALIZERS:
        return _initializing(data)
    found: dict[str, Maker] = {
        NUMPY: functools.partial(ours.allocating, "numpy"),
        NUMBA: functools.partial(ours.allocating, "numba"),
        TORCH: functools.partial(ours.allocating, "torch"),
    }
    plain = case.group == ELEMENTWISE and not case.variant
    if plain:
        found[NAIVE] = array_peers.naive
    found |= {EAGER: torch_peers.eager, COMPILED: torch_peers.compiled}
    if plain:
        found[NUMEXPR] = array_peers.numexpr
    if case.group != STABILIZERS:
        found[JAX] = jax_peers.jitted
    if plain and not case.backward and case.operation in array_peers.SCIPY:
        found[SCIPY] = array_peers.scipy
    if case.group == ELEMENTWISE and data.beyond_cache:
        found |= {NUMBA_OUT: ours.numba_out, YARDSTICK: ours.yardstick}
    return found


def _initializing(data: Data) -> dict[str, Maker]:
    found: dict[str, Maker] = {
        NUMPY: functools.partial(initializing.ours, "numpy"),
        NUMBA: functools.partial(initializing.ours, "numba"),
        TORCH: functools.partial(initializing.ours, "torch"),
        NAIVE: initializing.in_numpy,
        EAGER: initializing.in_torch,
    }
    # JAX and Keras have nothing in place.
    return found if data.case.variant == IN_PLACE else found | {JAX: initializing.in_jax, KERAS: initializing.in_keras}


# --- values -----------------------------------------------------------------------------------------------------------

_CHECKED = 2**12
_TOLERANCE = 1e-3
"""Of a difference, relative to what is compared or to 1: this tells another function, not another rounding."""


def same_values(data: Data, result: Any, expected: Any) -> bool:
    """Whether two results agree in their first array's first elements; of random weights, in their distribution.

    Not compared: clip_grad_norm, whose results are not of one kind, and noise.
    """
    if data.case.group == INITIALIZERS:
        return initializing.same_distribution(data, result)
    if data.case.operation == "clip_grad_norm" or data.case.noisy:
        return True
    a, b = (_head(value) for value in (result, expected))
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= _TOLERANCE * np.maximum(1.0, np.abs(b))))


def is_an_input(data: Data, result: Any) -> bool:
    """Whether a result is an input that was given back: torch.compile sees that identity has nothing to do."""
    if data.case.operation == "clip_grad_norm" or data.case.group == INITIALIZERS:
        return False
    inputs = [data.x, data.grad] if data.case.backward else [data.x]
    return any(np.may_share_memory(_first(result), array) for array in inputs)


def _head(result: Any) -> np.ndarray:
    return _first(result).reshape(-1)[:_CHECKED].astype(np.float64)


def _first(result: Any) -> np.ndarray:
    """The first array of a result, as NumPy sees its memory."""
    while isinstance(result, list | tuple):
        result = result[0]
    if type(result).__module__.startswith("torch"):
        result = result.detach().numpy()
    return np.asarray(result)
