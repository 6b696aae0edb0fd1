"""Registered ops as functions of JAX arrays, eager and inside `jax.jit`.

    from baracuda_py.interop import jax as bjax
    y = bjax.ops.softmax(x, axis=-1)
    y = bjax.call(bp.RmsNormDescriptor(*x.shape), input=x, weight=weight)

On CUDA they run in XLA's memory, on XLA's stream. Nothing is compiled for it: see decision 16.
"""

from __future__ import annotations

import baracuda_py as _bp
from baracuda_py.errors import Unsupported

try:
    import jax as _jax
except ImportError:
    raise Unsupported(
        "baracuda_py.interop.jax", "jax must be installed", rule="jax", fix="pip install 'baracuda-py[jax]'"
    ) from None

if not hasattr(_jax, "ffi") or tuple(map(int, _jax.__version__.split(".")[:2])) < (0, 6):
    raise Unsupported(
        "baracuda_py.interop.jax", "jax must be 0.6 or newer", rule="jax",
        got=getattr(_jax, "__version__", "a folder of that name"), fix="pip install --upgrade jax",
    )  # fmt: skip

from baracuda_py.interop.jax.operators import Operators

__all__ = ["Operators", "call", "ops"]

ops = Operators(_bp.default_registry(), "baracuda_py")
"""The ops of the default registry: `ops.softmax(x, axis=-1)`."""

call = ops.call
