"""What plugs into PyTorch: modules, in-place initializers, and one that looks at data.

`gradmark.nn.GELU`, `PReLU`, `Swish`, `SwiGLU`, `Softmax`, …: `dir(gradmark.nn)` lists the modules. Those that torch.nn
has too are called as there, and are subclasses of its own; `replace_activations` makes them of a model's.
"""

from typing import Any

from gradmark.backends import why_unusable
from gradmark.errors import BackendUnavailableError

if (_reason := why_unusable("torch")) is not None:
    raise BackendUnavailableError(_reason)

from gradmark.nn import init
from gradmark.nn.lsuv import lsuv_

__all__ = ["init", "lsuv_", "replace_activations"]


def __getattr__(name: str) -> Any:
    # The modules are made, and their operators registered, when the first of them is asked for.
    if name.startswith("_"):
        raise AttributeError(f"module 'gradmark.nn' has no attribute {name!r}")
    from gradmark.nn._modules import CLASSES
    from gradmark.nn._replace import replace_activations

    found = {**CLASSES, "replace_activations": replace_activations}
    if name not in found:
        raise AttributeError(f"module 'gradmark.nn' has no attribute {name!r}; it has {', '.join(__dir__())}")
    globals().update(found)
    return found[name]


def __dir__() -> list[str]:
    from gradmark.nn._modules import CLASSES

    return sorted({*__all__, *CLASSES})
