"""What plugs into PyTorch: `gradmark.nn.init`, in-place initializers."""

from gradmark.nn import init

__all__ = ["init"]
