"""Registered ops as torch operators, and AWQ layers as torch modules.

    import baracuda_py.interop.torch
    y = torch.ops.baracuda.int4_awq_gemm(x, weight, scales, zeros, None, oc=4096)

Importing it defines `torch.ops.baracuda.<op>` for every op of the default registry; they work under `torch.compile` and
in CUDA graphs. `AwqLinear` is a `torch.nn.Linear` with 4-bit weights.
"""

from __future__ import annotations

from baracuda_py.errors import Unsupported

try:
    import torch as _torch
except ImportError:
    raise Unsupported(
        "baracuda_py.interop.torch", "torch must be installed", rule="torch", fix="pip install 'baracuda-py[torch]'"
    ) from None

if not hasattr(getattr(_torch, "library", None), "register_fake"):
    raise Unsupported(
        "baracuda_py.interop.torch", "torch must be 2.4 or newer", rule="torch",
        got=getattr(_torch, "__version__", "a folder of that name"),
        fix="pip install --upgrade torch",
    )  # fmt: skip

from baracuda_py.interop.torch.calls import as_tensor
from baracuda_py.interop.torch.fused import AwqPart, fuse, fuse_projections
from baracuda_py.interop.torch.linear import AwqLinear
from baracuda_py.interop.torch.operators import TorchOperator, define

__all__ = [
    "AwqLinear", "AwqPart", "TorchOperator", "as_tensor", "define", "fuse", "fuse_projections", "operators",
]  # fmt: skip

operators = define()
"""The operators that importing this defined, by op name."""
