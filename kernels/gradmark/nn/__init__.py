"""What plugs into PyTorch: in-place initializers, and one that looks at data."""

from gradmark.backends import why_unusable
from gradmark.errors import BackendUnavailableError

if (_reason := why_unusable("torch")) is not None:
    raise BackendUnavailableError(_reason)

from gradmark.nn import init
from gradmark.nn.lsuv import lsuv_

__all__ = ["init", "lsuv_"]
