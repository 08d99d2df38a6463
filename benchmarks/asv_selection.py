"""Plugin for asv: what `asv run` measures where no -b is given, to keep a commit near 10 minutes on two cores.

Everything is measured, of every operation and pass, in every backend, at the size that lives in cache: that is where
a kernel's own arithmetic, its vectorization and the cost of a call show. Left to `-b` are the elementwise and row-wise
operations beyond the cache, and their bandwidth, but for one of each kind: there a kernel waits for memory, and those
of a kind wait alike. `asv run -b .` measures all of it, `-b "'memory'"` what lies beyond the cache.

asv gives a benchmark no way to say that it is not run by default. So an empty selection is replaced by this one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

BEYOND_CACHE = ("Relu", "Gelu", "Swish", "Swiglu", "Softmax")
"""One of each kind: a comparison, a transcendental function, a learnable parameter with its sum, two inputs to one
output, reductions along rows."""

DEFAULT = (
    r"^(?!activations\.|gated\.|rowwise\.|large_matrices\.)",
    r"^large_matrices\.Normal\.\w+\(.*'4096x4096'\)$",
    r"^\w+\.\w+\.time_\w+\(.*'cache'\)$",
    rf"^\w+\.({'|'.join(BEYOND_CACHE)})\.",
)
"""Regular expressions, as for -b; the text is `module.Class.method('target', 'size')`."""


def setup() -> None:
    """Wrap the discovery of benchmarks. Called by asv, once for every plugin."""
    # Not at the top: asv_runner imports this module too, in environments without asv.
    from asv.benchmarks import Benchmarks

    discover = Benchmarks.discover.__func__
    if not hasattr(discover, "__wrapped__"):
        Benchmarks.discover = classmethod(_default_where_nothing_is_selected(discover))


def _default_where_nothing_is_selected(discover: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(discover)
    def wrapper(cls: type, *args: Any, regex: Any = None, **kwargs: Any) -> Any:
        return discover(cls, *args, regex=regex or list(DEFAULT), **kwargs)

    return wrapper
