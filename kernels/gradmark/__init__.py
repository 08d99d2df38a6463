"""gradmark: activations and weight initializers, verified in three backends and timed across commits.

`import gradmark` loads neither NumPy, Numba nor PyTorch; they come with the first use of a backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradmark import drop_in, nn
    from gradmark.backends import BACKENDS, Backend, backend, why_unusable
    from gradmark.dispatch import using
    from gradmark.errors import BackendUnavailableError, NonFiniteError, ProfileError, ProfileWarning
    from gradmark.initializers.public import fans

__version__ = "0.1.0"

_HOME = {
    "BACKENDS": "gradmark.backends",
    "Backend": "gradmark.backends",
    "BackendUnavailableError": "gradmark.errors",
    "NonFiniteError": "gradmark.errors",
    "ProfileError": "gradmark.errors",
    "ProfileWarning": "gradmark.errors",
    "backend": "gradmark.backends",
    "drop_in": "gradmark.drop_in",
    "fans": "gradmark.initializers.public",
    "nn": "gradmark.nn",
    "using": "gradmark.dispatch",
    "why_unusable": "gradmark.backends",
}

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendUnavailableError",
    "NonFiniteError",
    "ProfileError",
    "ProfileWarning",
    "__version__",
    "backend",
    "drop_in",
    "fans",
    "nn",
    "using",
    "why_unusable",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        home = importlib.import_module(_HOME[name])
        return home if home.__name__ == f"gradmark.{name}" else getattr(home, name)
    if name in _functions():
        # In the module from now on: the next call comes here no more.
        return globals().setdefault(name, importlib.import_module("gradmark.dispatch").function(name))
    raise AttributeError(
        f"module 'gradmark' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}, and the operations of"
        f" gradmark.catalog: {', '.join(_functions())}"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_functions()})


def _functions() -> list[str]:
    """The names of the functions that `gradmark.dispatch` gives, from the catalog, which is light."""
    catalog = importlib.import_module("gradmark.catalog")
    rows = catalog.OPERATIONS.values()
    return [*catalog.OPERATIONS, *(catalog.backward_of(row.name) for row in rows if row.family != "initializers")]
