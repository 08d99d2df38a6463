"""What plugs into PyTorch: `gradmark.nn.init`, in-place initializers."""

from gradmark.backends import why_unusable
from gradmark.errors import BackendUnavailableError

if (_reason := why_unusable("torch")) is not None:
    raise BackendUnavailableError(_reason)

from gradmark.nn import init

__all__ = ["init"]
