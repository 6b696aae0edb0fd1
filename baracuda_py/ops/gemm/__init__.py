"""Matrix products of dense operands."""

from __future__ import annotations

from baracuda_py.ops.gemm import dense_gemm

OPS = (dense_gemm.OP,)
