"""Round-to-nearest in 4 bits: groups of input channels share a scale and a zero point.

    w[n, k] ~ (q[k, n] - z[k // group, n]) * scales[k // group, n]        q, z in 0..15

    scale = (high - low) / 15, rounded up to the stored element      low, high: extremes of the group and 0
    z     = round(-low / scale)
    q     = round(w / scale) + z, clamped to 0..15

Scale and zero point are AWQ's asymmetric ones (arXiv 2306.00978), with two differences. The interval always holds 0,
so that z needs no clamp and a group of one sign does not saturate. The scale is rounded before the nibbles are chosen
and never down, so that no weight lies further from its value than scale / 2. A group of equal weights takes their
magnitude as its scale, and is exact when the stored element holds it.

A weight is (oc, ic), as torch's Linear holds it; nibbles, zero points and scales are (ic, oc) and (groups, oc), as
checkpoints and kernels hold them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from baracuda_py.errors import InvalidProblem
from baracuda_py.quantize.engines import HOST, Engine
from baracuda_py.quantize.weights import blocks, check_weight
from baracuda_py.vocab.elements import element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind

__all__ = ["Grid", "Rounded", "can_vanish", "check_vanishing", "round_to_nearest"]

LARGEST_NIBBLE = 15
_LEAST_NORMAL = 2.0**-14  # of F16
_COARSE = 0.01  # more than this, a rounded scale is not the one that was wanted
_FEW = 0.01  # of a layer's groups, that may vanish: too little to be seen in its output


@frozen(eq=False)
class Rounded:
    """A weight in 4 bits.

    Attributes:
        nibbles: (ic, oc), uint8 in 0..15.
        zeros: (groups, oc), uint8 in 0..15.
        scales: (groups, oc), float16 or bfloat16; finite and positive.
    """

    nibbles: NDArray[np.uint8]
    zeros: NDArray[np.uint8]
    scales: NDArray[Any]

    def dequantize(self) -> NDArray[np.float32]:
        """The weight that the nibbles stand for: (oc, ic), float32, exact."""
        group = len(self.nibbles) // len(self.zeros)
        levels = self.nibbles.T.astype(np.float32)
        levels -= np.repeat(self.zeros.T, group, axis=1)
        levels *= np.repeat(self.scales.T.astype(np.float32), group, axis=1)
        return levels


@frozen(eq=False)
class Grid:
    """The 16 values that each group can take, for groups in the last axis of an array.

    Attributes:
        scales: (..., 1), float32, each exactly a value of the stored element; inf where that overflows.
        zeros: (..., 1), float32, whole numbers in 0..15.
        engine: whose arrays these are.
    """

    scales: Any
    zeros: Any
    engine: Engine

    @classmethod
    def of(cls, groups: Any, element: ElementKind, engine: Engine) -> Grid:
        """The grid that reaches the extremes of each group (..., group)."""
        low, high, steps = _extremes(groups, element, engine)
        return cls.between(low, high, element, engine, steps)

    @classmethod
    def between(cls, low: Any, high: Any, element: ElementKind, engine: Engine, steps: Any = LARGEST_NIBBLE) -> Grid:
        """The grid from `low` <= 0 to `high` >= 0 in `steps` steps; of scale 1 where both are 0."""
        xp = engine.xp
        span = engine.double(high) - low
        with np.errstate(invalid="ignore"):
            scales = engine.rounded_up(xp.where(span == 0, 1, span), xp.where(span == 0, 1, steps), element)
            return cls(scales, xp.round(-low / scales), engine)

    def check(self, element: ElementKind) -> None:
        """Raise InvalidProblem when a scale overflows `element`."""
        if not self.engine.xp.isfinite(self.scales).all():
            raise InvalidProblem(
                "weight", f"the range of a group must fit {LARGEST_NIBBLE} scales of {element.name}",
                rule="scale range", why=f"the largest scale is {float(_largest(numpy_dtype(element))):g}",
                fix="Store the scales as BF16, or scale the layer down",
            )  # fmt: skip

    def vanishing(self, groups: Any, element: ElementKind) -> int:
        """How many groups, of those whose grid this is, have a scale too small for `element`: F16 has steps of 2^-24
        there, which exceed it or are coarse beside it."""
        if element is not ElementKind.F16:
            return 0
        low, high, steps = _extremes(groups, element, self.engine)
        span, scales = self.engine.double(high) - low, self.engine.double(self.scales)
        return int(((span > 0) & (scales < _LEAST_NORMAL) & (scales * steps > (1 + _COARSE) * span)).sum())

    def levels(self, groups: Any) -> Any:
        """The nibbles nearest to `groups` (..., group), as float32."""
        xp = self.engine.xp
        levels = groups / self.scales
        xp.round(levels, out=levels)
        levels += self.zeros
        return xp.clip(levels, 0, LARGEST_NIBBLE, out=levels)

    def nearest(self, groups: Any) -> Any:
        """The values of the grid nearest to `groups` (..., group); nan where the scale overflows."""
        levels = self.levels(groups)
        levels -= self.zeros
        with np.errstate(invalid="ignore"):
            levels *= self.scales
        return levels


def check_vanishing(vanishing: int, groups: int, name: str = "weight") -> None:
    """Raise InvalidProblem when scales of more of a layer's groups than a few are too small for F16."""
    if vanishing > _FEW * groups:
        raise InvalidProblem(
            name, "the scales of its groups must not vanish in F16", rule="scale range",
            got=f"{vanishing} of {groups} that do", why=f"below {_LEAST_NORMAL:g} it has fewer and fewer digits",
            fix="Store the scales as BF16 (--scales bf16), or scale the layer up",
        )  # fmt: skip


def can_vanish(weight: NDArray[Any]) -> bool:
    """Whether weights may be smaller than scales in F16: their own steps in F16 are no finer."""
    return element_of_dtype(weight.dtype) is not ElementKind.F16


def round_to_nearest(
    weight: NDArray[Any], *, group_size: int = 128, scales_element: ElementKind = ElementKind.F16
) -> Rounded:
    """`weight` in 4 bits, each value at most half a scale away.

    Args:
        weight: (oc, ic), as torch's Linear holds it; float16, bfloat16 or float32, finite.
        group_size: input channels that share a scale and a zero point: 32, 64, 128, or -1 for all of them.
        scales_element: what the scales are stored as, F16 or BF16.

    Raises:
        Unsupported: another element, another group size.
        InvalidProblem: not a matrix, oc % 8, ic % 32, groups that end in the middle, inf or nan, a scale too large
            for its element; weights in another element than F16 that are so small that scales vanish in F16.
    """
    group = check_weight(weight, group_size, scales_element)
    oc, ic = weight.shape
    nibbles = np.empty((oc, ic), np.uint8)
    zeros = np.empty((oc, ic // group), np.uint8)
    scales = np.empty((oc, ic // group), numpy_dtype(scales_element))
    vanishing = 0
    for rows in blocks(oc, ic):
        groups = weight[rows].astype(np.float32).reshape(-1, ic // group, group)
        grid = Grid.of(groups, scales_element, HOST)
        grid.check(scales_element)
        vanishing += grid.vanishing(groups, scales_element) if can_vanish(weight) else 0
        nibbles[rows] = grid.levels(groups).reshape(-1, ic)
        zeros[rows] = grid.zeros[..., 0]
        scales[rows] = grid.scales[..., 0]
    check_vanishing(vanishing, scales.size)
    return Rounded(nibbles.T, zeros.T, scales.T)


def _extremes(groups: Any, element: ElementKind, engine: Engine) -> tuple[Any, Any, Any]:
    """The interval with 0 that holds each group, and the steps in it: 1 where all are equal, and that is a scale."""
    xp = engine.xp
    least, most = xp.amin(groups, axis=-1, keepdims=True), xp.amax(groups, axis=-1, keepdims=True)
    low, high = xp.clip(least, None, 0), xp.clip(most, 0, None)
    largest = float(_largest(numpy_dtype(element)))
    equal = (least == most) & (-low <= largest) & (high <= largest)
    return low, high, xp.where(equal, 1, LARGEST_NIBBLE)


def _largest(dtype: np.dtype[Any]) -> Any:
    from ml_dtypes import finfo

    return finfo(dtype).max
