"""Quantised ops: AWQ 4-bit weights, fp8 activations."""

from __future__ import annotations

from baracuda_py.ops.quantize import awq_dequantize, awq_fp8_gemm, awq_gemm, awq_repack, per_token

OPS = (awq_dequantize.OP, awq_fp8_gemm.OP, awq_gemm.OP, awq_repack.OP, per_token.OP)
