"""Quantised ops: AWQ 4-bit weights."""

from __future__ import annotations

from baracuda_py.ops.quantize import awq_dequantize, awq_gemm, awq_repack

OPS = (awq_dequantize.OP, awq_gemm.OP, awq_repack.OP)
