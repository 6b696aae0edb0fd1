"""The host kernel of the dense GEMM: NumPy's BLAS on blocks, so that no operand is widened as a whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.ops.host_epilogue import apply_epilogue as apply_f32_epilogue
from baracuda_py.vocab.enums import EpilogueKind

__all__ = ["dense_gemm_host"]

_BLOCK = 1024  # rows, columns and inner extent of a block: 4 MiB of f32, which caches hold and BLAS runs well on


def dense_gemm_host(
    a: NDArray[Any],
    b: NDArray[Any],
    output: NDArray[Any],
    bias: NDArray[Any] | None,
    *,
    a_transposed: bool,
    b_transposed: bool,
    alpha: float,
    beta: float,
    epilogue: EpilogueKind,
    tanh_gelu: bool,
) -> None:
    """output = activation(alpha * a @ b + beta * output + bias), in f64 for f64 elements, else in f32.

    a: ([batch,] m, k), or (k, m) if `a_transposed`. b: ([batch,] k, n), or (n, k) if `b_transposed`. output: ([batch,]
    m, n); not read when beta is 0. bias: (n,); for every epilogue but IDENTITY. All are f16, bf16, f32 or f64.
    """
    if output.ndim == 2:
        a, b, output = a[None], b[None], output[None]
    a = a.swapaxes(1, 2) if a_transposed else a
    b = b.swapaxes(1, 2) if b_transposed else b
    wide = np.dtype(np.float64 if output.dtype == np.float64 else np.float32)
    # Infinities, NaNs and zeros are results like others.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # Small matrices together, as many as one block holds.
        shapes = (matrices.shape[1:] for matrices in (a, b, output))
        largest = max(1, *(min(_BLOCK, rows) * min(_BLOCK, columns) for rows, columns in shapes))
        for some in _slices(len(output), max(1, _BLOCK * _BLOCK // largest)):
            x, y, target = a[some], b[some], output[some]
            for rows in _slices(target.shape[1]):
                for columns in _slices(target.shape[2]):
                    values = _product(x[:, rows], y[:, :, columns], wide)
                    values *= wide.type(alpha)
                    if beta:
                        values += wide.type(beta) * target[:, rows, columns].astype(wide)
                    if epilogue is not EpilogueKind.IDENTITY:
                        assert bias is not None
                        _apply_epilogue(values.reshape(-1, values.shape[2]), bias[columns], epilogue, tanh_gelu)
                    target[:, rows, columns] = values


def _slices(length: int, step: int = _BLOCK) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _product(x: NDArray[Any], y: NDArray[Any], wide: np.dtype[Any]) -> NDArray[Any]:
    """x (batch, m, k) @ y (batch, k, n) in `wide`, k a block at a time; zeros when k is 0."""
    total: NDArray[Any] = np.zeros((*x.shape[:2], y.shape[2]), wide)
    for inner in _slices(x.shape[2]):
        total += x[:, :, inner].astype(wide, copy=False) @ y[:, inner].astype(wide, copy=False)
    return total


def _apply_epilogue(values: NDArray[Any], bias: NDArray[Any], epilogue: EpilogueKind, tanh_gelu: bool) -> None:
    """Add `bias` (n,) to `values` (m, n), f32 or f64, and apply the activation, in place."""
    if values.dtype == np.float32 and not tanh_gelu:
        apply_f32_epilogue(values, bias, epilogue)
        return
    values += bias.astype(values.dtype)
    if epilogue is EpilogueKind.BIAS_RELU:
        np.maximum(values, 0, out=values)
    elif epilogue is EpilogueKind.BIAS_SILU:
        values /= 1 + np.exp(-values)
    elif epilogue is EpilogueKind.BIAS_GELU and tanh_gelu:
        # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), which does not cancel where u is negative.
        cubic = values + values.dtype.type(0.044715) * values**3
        values /= 1 + np.exp(values.dtype.type(-2 * math.sqrt(2 / math.pi)) * cubic)
    elif epilogue is EpilogueKind.BIAS_GELU:
        values *= np.vectorize(math.erfc, otypes=[np.float64])(values * -math.sqrt(0.5)) / 2
