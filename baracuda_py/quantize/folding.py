"""Where the scales of input channels go: into the layer before.

    y = W x = Q(W s) (x / s)

Whatever makes x has to make x / s. When x is a norm's output, its weight absorbs 1 / s; when it is a linear's output,
that linear's rows do. An elementwise product lets them through: x = act(gate) * up takes them in up alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.errors import InvalidProblem
from baracuda_py.quantize.weights import blocks, check_floats

__all__ = ["fold_into_linear", "fold_into_norm"]


def fold_into_norm(norm_weight: NDArray[Any], input_scale: NDArray[np.float32]) -> NDArray[Any]:
    """`norm_weight` (ic,) / `input_scale` (ic,), rounded to the weight's own element.

    A LayerNorm's bias is folded the same way, by a second call. A norm that multiplies by 1 + weight (Gemma's) has to
    be folded as 1 + weight, with 1 taken off again.

    Raises:
        Unsupported: an element other than f16, bf16 and f32.
        InvalidProblem: other shapes, inf or nan, a scale that is not positive, a result that overflows.
    """
    check_floats(norm_weight, "norm_weight", "(ic,)", rank=1)
    return _divided(norm_weight, input_scale, "norm_weight")


def fold_into_linear(
    weight: NDArray[Any], bias: NDArray[Any] | None, input_scale: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The preceding linear, of which every output is divided by its scale; each rounded to its own element.

    Do it before that linear is quantised itself.

    Args:
        weight: (oc, ic) of the preceding linear, whose oc are the ic of the quantised one.
        bias: its bias (oc,), or None.
        input_scale: (oc,), the quantised linear's.

    Raises: as `fold_into_norm`. Under grouped-query attention one value head feeds several slices of the output
    projection, so that their scales disagree: there is no linear to fold into, and the shapes are refused.
    """
    check_floats(weight, "weight", "(oc, ic)", rank=2)
    if bias is not None:
        check_floats(bias, "bias", "(oc,)", rank=1)
        bias = _divided(bias, input_scale, "bias")
    return _divided(weight, input_scale, "weight"), bias


def _divided(values: NDArray[Any], input_scale: NDArray[np.float32], name: str) -> NDArray[Any]:
    """`values` (channels, ...) / `input_scale` (channels,), rounded once, in blocks."""
    check_floats(input_scale, "input_scale", "(ic,)", rank=1)
    if len(input_scale) != len(values):
        raise InvalidProblem(
            name, f"it must have as many rows as input_scale, {len(input_scale)}", rule="shape", value=values.shape,
            why="row n makes input channel n",
        )  # fmt: skip
    if input_scale.min() <= 0:
        raise InvalidProblem("input_scale", "it must be positive", rule="sign", value=float(input_scale.min()))
    matrix = values.reshape(len(values), -1)
    folded = np.empty_like(matrix)
    for rows in blocks(*matrix.shape):
        with np.errstate(over="ignore"):
            folded[rows] = matrix[rows].astype(np.float32) / input_scale[rows, None].astype(np.float32)
    check_floats(folded, f"{name} / input_scale", "as before", rank=2)
    return folded.reshape(values.shape)
