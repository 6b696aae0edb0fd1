"""The oracle of the dense GEMM, written from its formula and sharing no code with any kernel.

It computes in float64, and for float64 tensors in NumPy's longdouble (64 bits of mantissa on x86), so that it is more
precise than what it judges.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dense_gemm_reference"]


def dense_gemm_reference(
    a: NDArray[Any],
    b: NDArray[Any],
    output: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    *,
    a_transposed: bool,
    b_transposed: bool,
    alpha: float,
    beta: float,
    epilogue: str,
    tanh_gelu: bool,
) -> NDArray[np.float64]:
    """activation(alpha * a @ b + beta * output + bias), ([batch,] m, n), in float64.

    a: ([batch,] m, k), or (k, m) if `a_transposed`. b: ([batch,] k, n), or (n, k) if `b_transposed`. output: what lies
    in the output before the call; ignored when beta is 0. bias: (n,). epilogue: an `EpilogueKind` in lower case.
    """
    exact: Any = np.longdouble if a.dtype == np.float64 else np.float64
    left = np.moveaxis(a, -1, -2) if a_transposed else a
    right = np.moveaxis(b, -1, -2) if b_transposed else b
    v: NDArray[Any] = np.matmul(left.astype(exact), right.astype(exact)) * exact(alpha)
    if beta != 0:
        if output is None:
            raise ValueError("beta is not 0: the output's previous content is needed")
        v = v + exact(beta) * output.astype(exact)
    if epilogue != "identity":
        if bias is None:
            raise ValueError(f"epilogue {epilogue} needs a bias")
        v = v + bias.astype(exact)
    return np.asarray(_activation(v, epilogue, tanh_gelu), dtype=np.float64)


def _activation(v: NDArray[Any], epilogue: str, tanh_gelu: bool) -> NDArray[Any]:
    if epilogue in ("identity", "bias"):
        return v
    if epilogue == "bias_relu":
        return np.where(v < 0, 0, v)
    if epilogue == "bias_silu":
        with np.errstate(over="ignore", invalid="ignore"):
            return v / (1 + np.exp(-v))
    if epilogue == "bias_gelu" and tanh_gelu:
        with np.errstate(over="ignore"):
            return v / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    if epilogue == "bias_gelu":
        return v * np.vectorize(math.erfc, otypes=[np.float64])(-v / math.sqrt(2)) / 2
    raise ValueError(f"epilogue must be an EpilogueKind in lower case (got {epilogue!r})")
