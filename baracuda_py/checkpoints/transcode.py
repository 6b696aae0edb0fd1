"""From any format to any other, or to what a plan takes: exactly, or with a count of the weights that change.

Exact means that every weight (q - z) * s stays what it was; where nothing has to move, q, z and s stay too. A target
may lack something, and only then are nibbles touched:

    no zero points (AWQ_MARLIN)             q moves to q - z + 8; where that leaves 0..15 the weight changes
    no zero point 0 (GPTQ_V1)               q and z move up by one; where q was 15 the weight changes
    no groups out of order (all but         rounded to nearest in groups that are in order
        GPTQ and COMPRESSED_TENSORS)
    groups of 128 or one group (AWQ_MARLIN) larger groups are split, exactly; smaller ones are rounded to nearest anew
    no scales of that type                  scales are rounded
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from baracuda_py.checkpoints import codecs, words
from baracuda_py.checkpoints.codecs.gemv_fast import scaled_zeros
from baracuda_py.checkpoints.formats import Geometry, PackedFormat, check_fits
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import SYMMETRIC_ZERO, LossReport, Nibbles, compared, requantized, shifted
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmArgs, Int4AwqGemmDescriptor
from baracuda_py.ops.quantize.awq_tiles import TILE_ROWS, Tiling, pack_tiles
from baracuda_py.vocab.descriptors import check_member
from baracuda_py.vocab.elements import element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind, EpilogueKind

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GemmOperands", "gemm_operands", "plan_group_size", "scales_element", "transcode"]

_F = PackedFormat
_E = ElementKind
_ANY = (_E.F16, _E.BF16, _E.F32)
_MARLIN_GROUP = 128


@frozen
class _Target:
    """What a format or layout can hold.

    Attributes:
        elements: of the scales; the first is what others are rounded to.
        zeros: whether it stores zero points, may leave them away (None), or must (False).
        least_zero: the smallest zero point.
        act_order: whether groups may be out of order.
        scaled_zeros: whether it stores -s * z.
    """

    elements: Sequence[ElementKind]
    zeros: bool | None = True
    least_zero: int = 0
    act_order: bool = False
    scaled_zeros: bool = False


_TARGETS = {
    _F.AWQ_GEMM: _Target((_E.F16, _E.BF16)),
    _F.AWQ_GEMV: _Target((_E.F16,)),
    _F.AWQ_GEMV_FAST: _Target((_E.F16,), scaled_zeros=True),
    _F.LLM_AWQ_V2: _Target((_E.F16, _E.BF16), scaled_zeros=True),
    _F.AWQ_MARLIN: _Target((_E.F16,), zeros=False),
    _F.GPTQ_V1: _Target((_E.F16, _E.BF16), least_zero=1, act_order=True),
    _F.GPTQ_V2: _Target((_E.F16, _E.BF16), act_order=True),
    _F.COMPRESSED_TENSORS: _Target(_ANY, zeros=None, act_order=True),
}
_PLAN = _Target((_E.F16, _E.BF16))
# The op's group sizes, and the largest that divides another one.
_PLAN_GROUPS = (128, 64, 32)


@frozen(eq=False)
class GemmOperands:
    """A layer as `Int4AwqGemmArgs` takes it.

    Attributes:
        layout: of weight_packed and zeros.
        ic, oc: of the layer.
        group_size: of the scales: that of the layer, or a part of it that the op knows.
        scales_element: F16 or BF16.
        weight_packed: int32, of the shape that `AwqWeightLayout.weight_shape` says.
        scales: (groups, oc); None for TILED, whose weights hold them.
        zeros: (groups, oc / 8), int32; None for TILED.
        bias: (oc,), as the checkpoint has it, or None.
        loss: what the conversion changed.
    """

    layout: AwqWeightLayout
    ic: int
    oc: int
    group_size: int
    scales_element: ElementKind
    weight_packed: NDArray[np.int32] = field(repr=False)
    scales: NDArray[Any] | None = field(repr=False)
    zeros: NDArray[np.int32] | None = field(repr=False)
    bias: NDArray[Any] | None = field(repr=False)
    loss: LossReport

    def descriptor(
        self, m: int, *, element: ElementKind | None = None, epilogue: EpilogueKind | None = None
    ) -> Int4AwqGemmDescriptor:
        """The GEMM of `m` rows; element None: as the scales; epilogue None: BIAS if there is a bias."""
        if epilogue is None:
            epilogue = EpilogueKind.IDENTITY if self.bias is None else EpilogueKind.BIAS
        return Int4AwqGemmDescriptor(
            m, self.ic, self.oc, self.group_size, split_k_iters=None, weight_layout=self.layout,
            element=self.scales_element if element is None else element, epilogue=epilogue,
            scales_element=self.scales_element,
        )  # fmt: skip

    def args(self, activation: Any, output: Any) -> Int4AwqGemmArgs:
        """The arguments of one call on the host; the bias, if any, is rounded to the activation's type."""
        bias = None if self.bias is None else np.asarray(self.bias).astype(activation.dtype, copy=False)
        return Int4AwqGemmArgs(
            activation=activation, weight_packed=self.weight_packed, scales=self.scales, zeros=self.zeros,
            output=output, bias=bias,
        )  # fmt: skip


@overload
def transcode(layer: PackedLayer, target: PackedFormat, *, lossy: bool = False) -> PackedLayer: ...
@overload
def transcode(layer: PackedLayer, target: AwqWeightLayout, *, lossy: bool = False) -> GemmOperands: ...
def transcode(
    layer: PackedLayer, target: PackedFormat | AwqWeightLayout, *, lossy: bool = False
) -> PackedLayer | GemmOperands:
    """`layer` in another format, in memory; or, for a layout, as `layer.gemm_operands`.

    The result's `loss` says what changed. Bias and act_scales are the layer's own.

    Raises:
        UnsupportedCheckpoint: weights would change and `lossy` is False; the count is the error's `value`. Or the
            target cannot have these sizes at all, lossy or not.
        CheckpointError: the layer's data contradict its format.
    """
    if isinstance(target, AwqWeightLayout):
        return gemm_operands(layer, target, lossy=lossy)
    can = _TARGETS[target]
    group_size = layer.group_size
    if target is _F.AWQ_MARLIN and layer.groups > 1:
        group_size = _MARLIN_GROUP
    symmetric = can.zeros is False or (can.zeros is None and layer.symmetric)
    sizes = Geometry(layer.ic, layer.oc, group_size)
    check_fits(layer.file, layer.name, target, sizes, symmetric=symmetric)
    made, loss = _fitted(layer, can, sizes, symmetric=symmetric, lossy=lossy, name=target.name)
    tensors = {part: array.view() for part, array in codecs.pack(target, made).items()}
    for array in tensors.values():
        array.flags.writeable = False
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    element = element_of_dtype(made.scales.dtype)
    assert element is not None
    return evolve(
        layer, format=target, group_size=group_size, symmetric=symmetric, act_order=made.g_idx is not None,
        scales_element=element, tensors=tensors, headers={}, loss=loss,
    )  # fmt: skip


def gemm_operands(layer: PackedLayer, layout: AwqWeightLayout, *, lossy: bool = False) -> GemmOperands:
    """See `PackedLayer.gemm_operands`. An AWQ_GEMM layer in HF_GEMM, as in many checkpoints, is not copied."""
    check_member("layout", layout, AwqWeightLayout)
    sizes = Geometry(layer.ic, layer.oc, plan_group_size(layer))
    check_fits(layer.file, layer.name, _F.AWQ_GEMM, sizes)
    if layer.format is _F.AWQ_GEMM and layout is AwqWeightLayout.HF_GEMM and sizes.group_size == layer.group_size:
        parts = [layer.tensors[part] for part in ("qweight", "scales", "qzeros")]
        weight, scales, zeros = (
            np.require(part, requirements=["C", "A"]) for part in parts
        )  # offsets in a file may be odd
        return _operands(layout, sizes, weight, scales, scales, zeros, layer.bias, _nothing(layer))
    made, loss = _fitted(layer, _PLAN, sizes, symmetric=False, lossy=lossy, name="the plan")
    if layout is AwqWeightLayout.TILED:
        return _operands(layout, sizes, _tiled(made, sizes), made.scales, None, None, layer.bias, loss)
    if layout is AwqWeightLayout.HF_GEMM:
        packed = codecs.pack(_F.AWQ_GEMM, made)
        weight, zeros = packed["qweight"], packed["qzeros"]
    else:
        weight, zeros = np.require(made.words, requirements=["C", "A"]), words.pack(made.zeros)
    scales = np.require(made.scales, requirements=["C", "A"])
    return _operands(layout, sizes, weight, scales, scales, zeros, layer.bias, loss)


def _operands(
    layout: AwqWeightLayout, sizes: Geometry, weight: NDArray[Any], of_scales: NDArray[Any], *parts: Any
) -> GemmOperands:
    element = element_of_dtype(of_scales.dtype)
    assert element is not None
    return GemmOperands(layout, sizes.ic, sizes.oc, sizes.group_size, element, weight, *parts)


_PIECE = 1 << 20  # weights that are worked on at a time, so that they stay in a cache


def _tiled(made: Nibbles, sizes: Geometry) -> NDArray[np.int32]:
    """The weights as TILED has them."""
    packed = np.empty(Tiling(sizes.ic, sizes.oc, sizes.group_size).shape, np.int32)
    tiles = max(1, _PIECE // (sizes.ic * TILE_ROWS))
    for start in range(0, len(packed), tiles):
        channels = slice(start * TILE_ROWS, (start + tiles) * TILE_ROWS)
        pack_tiles(
            made.words[channels], made.zeros[:, channels], made.scales[:, channels], sizes.group_size,
            packed[start : start + tiles],
        )  # fmt: skip
    return packed


def scales_element(layer: PackedLayer, target: PackedFormat) -> ElementKind:
    """Of the scales that `transcode` makes."""
    can = _TARGETS[target].elements
    return layer.scales_element if layer.scales_element in can else can[0]


def plan_group_size(layer: PackedLayer) -> int:
    """The layer's group size, or the largest part of it that the AWQ GEMM knows.

    Raises:
        UnsupportedCheckpoint: there is none.
    """
    if layer.group_size == -1 or layer.group_size in _PLAN_GROUPS:
        return layer.group_size
    for group in _PLAN_GROUPS:
        if layer.group_size % group == 0:
            return group
    raise layer.refuse("groups must be of whole 32 channels for the AWQ GEMM", "group_size", got=str(layer.group_size))


def _fitted(
    layer: PackedLayer, can: _Target, sizes: Geometry, *, symmetric: bool, lossy: bool, name: str
) -> tuple[Nibbles, LossReport]:
    """The layer's nibbles, made such that `can` holds them."""
    made = codecs.unpack(layer)
    loss = _nothing(layer)
    if made.groups != sizes.groups or (made.g_idx is not None and not can.act_order):
        if made.g_idx is None and sizes.groups % made.groups == 0:
            made = made.split(sizes.groups)
        else:
            what = "groups out of order" if made.g_idx is not None else f"groups of {layer.group_size}"
            made, loss = requantized(made, sizes.groups, symmetric=symmetric, why=f"{name} has no {what}")
            _check(layer, loss, lossy)
    made, loss = _with_zeros(layer, made, loss, can, symmetric=symmetric, lossy=lossy, name=name)
    return _with_scales(layer, made, loss, can, lossy=lossy, name=name)


def _with_zeros(
    layer: PackedLayer, made: Nibbles, loss: LossReport, can: _Target, *, symmetric: bool, lossy: bool, name: str
) -> tuple[Nibbles, LossReport]:
    if symmetric:
        if made.z is None or (made.z == SYMMETRIC_ZERO).all():
            return evolve(made, z=None), loss
        made, more = shifted(made, None, f"{name} has no zero points")
    else:
        made = evolve(made, z=made.zeros)
        if (made.zeros >= can.least_zero).all():
            return made, loss
        made, more = shifted(made, np.maximum(made.zeros, np.uint8(can.least_zero)), f"{name} has no zero point 0")
    _check(layer, more, lossy)
    return made, _both(loss, more)


def _with_scales(
    layer: PackedLayer, made: Nibbles, loss: LossReport, can: _Target, *, lossy: bool, name: str
) -> tuple[Nibbles, LossReport]:
    dtypes = [numpy_dtype(element) for element in can.elements]
    if made.scales.dtype not in dtypes:
        with np.errstate(over="ignore"):
            scales = made.scales.astype(dtypes[0])
        if not np.array_equal(scales.astype(np.float64), made.scales.astype(np.float64)):
            more = compared(made, evolve(made, scales=scales), f"{name} has no {made.scales.dtype} scales")
            _check(layer, more, lossy)
            loss = _both(loss, more)
        made = evolve(made, scales=scales)
    if can.scaled_zeros:
        overflown = np.count_nonzero(~np.isfinite(scaled_zeros(made.scales, made.zeros)))
        if overflown:
            raise layer.refuse(
                f"-s * z must be finite in {made.scales.dtype} for {name}", "scaled zeros",
                got=f"{overflown} that are not",
            )  # fmt: skip
    return made, loss


def _nothing(layer: PackedLayer) -> LossReport:
    return LossReport(0, layer.ic * layer.oc)


def _both(first: LossReport, second: LossReport) -> LossReport:
    """Of two steps one after the other: an upper bound of what changed."""
    if not (first and second):
        return first or second
    return LossReport(
        min(first.changed + second.changed, first.total), first.total, first.largest + second.largest,
        f"{first.why}; {second.why}",
    )  # fmt: skip


def _check(layer: PackedLayer, loss: LossReport, lossy: bool) -> None:
    if loss and not lossy:
        error = layer.refuse(
            "a conversion must keep every weight", "exact", got=f"{loss.changed} of {loss.total} that change",
            why=loss.why, fix="Pass lossy=True to accept that",
        )  # fmt: skip
        error.value = loss.changed
        raise error
