"""JAX, jitted, on the CPU; it has as many threads as there are cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .arguments import learnable
from .cases import ELEMENTWISE, AbsentError, Data

Call = Callable[[], Any]


def jitted(data: Data) -> Call:
    """jit of the forward pass, or of a function of (grad, x) that `vjp` makes of it."""
    import jax
    import jax.numpy as jnp

    if data.case.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    forward, parameters = _forward(data)

    def backward(g: Any, *inputs: Any) -> Any:
        return jax.vjp(forward, *inputs)[1](g)

    inputs = [jnp.asarray(array) for array in (data.x, *parameters)]
    if not data.case.backward:
        function = jax.jit(forward)
        return lambda: function(*inputs).block_until_ready()
    grad, function = jnp.asarray(data.grad), jax.jit(backward)
    return lambda: jax.block_until_ready(function(grad, *inputs))


def _forward(data: Data) -> tuple[Callable[..., Any], list[Any]]:
    """The forward pass, of x and the learnable parameters, and these."""
    import jax
    import jax.numpy as jnp

    name, row = data.case.operation, data.case.row
    if name == "identity":
        raise AbsentError("jit gives the input back, which is no copy")
    if name not in _JAX or data.case.variant:
        raise AbsentError("jax.nn has no such function")
    if data.case.group != ELEMENTWISE:
        return (lambda x: _JAX[name](jax.nn, jnp, x)), []
    fixed = [p.usual for p in row.parameters if not p.learnable]

    def forward(x: Any, *parameters: Any) -> Any:
        return _JAX[name](jax.nn, jnp, x, *parameters, *fixed)

    return forward, [learnable(p, data)[0] for p in row.learnable]


_JAX: Mapping[str, Callable[..., Any]] = {
    "sigmoid": lambda nn, jnp, x: nn.sigmoid(x),
    "tanh": lambda nn, jnp, x: jnp.tanh(x),
    "relu": lambda nn, jnp, x: nn.relu(x),
    "leaky_relu": lambda nn, jnp, x, slope: nn.leaky_relu(x, slope),
    "prelu": lambda nn, jnp, x, alpha: nn.leaky_relu(x, alpha),
    "elu": lambda nn, jnp, x, alpha: nn.elu(x, alpha),
    "gelu": lambda nn, jnp, x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda nn, jnp, x: nn.gelu(x, approximate=True),
    "swish": lambda nn, jnp, x, beta: x * nn.sigmoid(beta * x),
    "silu": lambda nn, jnp, x: nn.silu(x),
    "relu6": lambda nn, jnp, x: nn.relu6(x),
    "celu": lambda nn, jnp, x, alpha: nn.celu(x, alpha),
    "selu": lambda nn, jnp, x: nn.selu(x),
    "hard_sigmoid": lambda nn, jnp, x: nn.hard_sigmoid(x),
    "hard_tanh": lambda nn, jnp, x, low, high: nn.hard_tanh(x),
    "hard_swish": lambda nn, jnp, x: nn.hard_silu(x),
    "softsign": lambda nn, jnp, x: nn.soft_sign(x),
    "softplus": lambda nn, jnp, x, beta, threshold: nn.softplus(x),
    "log_sigmoid": lambda nn, jnp, x: nn.log_sigmoid(x),
    "mish": lambda nn, jnp, x: nn.mish(x),
    "squareplus": lambda nn, jnp, x, b: nn.squareplus(x, b),
    "sparse_plus": lambda nn, jnp, x: nn.sparse_plus(x),
    "sparse_sigmoid": lambda nn, jnp, x: nn.sparse_sigmoid(x),
    "exponential": lambda nn, jnp, x: jnp.exp(x),
    "glu": lambda nn, jnp, x: nn.glu(x),
    "softmax": lambda nn, jnp, x: nn.softmax(x),
    "log_softmax": lambda nn, jnp, x: nn.log_softmax(x),
}
"""jax.nn's function at the usual parameters (1 for softplus's beta); with one more line where it has no parameter."""
