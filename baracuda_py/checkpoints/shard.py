"""One rank's part of a packed layer, for tensor parallelism, in the format that the layer has.

    column = shard(layer, "columns", rank, degree)      # x @ column is a slice of x @ layer
    row = shard(layer, "rows", rank, degree)            # the sum of x_slice @ row over the ranks is x @ layer
    qkv = shard_fused(layer, qkv_parts(32, 8, 128), rank, degree)

No weight changes: nibbles, zero points and scales are those of the whole layer, and where a cut along ic ends within a
group the halves of it have the same ones. Tensors are made as they are touched, as views of the layer's own where the
format allows that. `splitting` says which degrees are legal, and why others are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from baracuda_py.checkpoints import words
from baracuda_py.checkpoints.codecs.gptq import read_g_idx
from baracuda_py.checkpoints.codecs.marlin import permuted_scales
from baracuda_py.checkpoints.formats import Geometry, PackedFormat, zeros_width
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.splitting import (
    FusedPart,
    Split,
    SplitAxis,
    channel_ranges,
    gate_up_parts,
    legal_degrees,
    qkv_parts,
    split_layer,
)

__all__ = ["gate_up_parts", "groups_in_order", "legal_degrees", "qkv_parts", "regrouped", "shard", "shard_fused"]

_F = PackedFormat
_Range = tuple[int, int]
_Tensors = Mapping[str, NDArray[Any]]


@frozen
class _Axis:
    """Where features lie in a tensor: `elements` of axis `axis` hold `features` of them."""

    axis: int
    elements: int = 1
    features: int = 1

    def taken(self, array: NDArray[Any], ranges: Sequence[_Range]) -> NDArray[Any]:
        """Those features: a view if they are one range."""
        cuts = [
            slice(start * self.elements // self.features, stop * self.elements // self.features)
            for start, stop in ranges
        ]
        pieces = [array[cut] if self.axis == 0 else array[:, cut] for cut in cuts]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, self.axis)


_GROUPED = _Axis(1)
_BIAS = {"bias": _Axis(0)}
# Of the output channels in each tensor; a tensor that is not here has none.
_FAST = {"qweight": _Axis(0, 1, 4), "qzeros": _GROUPED, "scaled_zeros": _GROUPED, "scales": _GROUPED, **_BIAS}
_GPTQ = {"qweight": _Axis(1), "qzeros": _Axis(1, 1, 8), "scales": _GROUPED, **_BIAS}
_CHANNELS: Mapping[PackedFormat, Mapping[str, _Axis]] = {
    _F.AWQ_GEMM: {"qweight": _Axis(1, 1, 8), "qzeros": _Axis(1, 1, 8), "scales": _GROUPED, **_BIAS},
    _F.AWQ_GEMV: {"qweight": _Axis(0), "qzeros": _Axis(0), "scales": _Axis(0), **_BIAS},
    _F.AWQ_GEMV_FAST: _FAST,
    _F.LLM_AWQ_V2: _FAST,
    _F.AWQ_MARLIN: {"qweight": _Axis(1, 2, 1), "scales": _GROUPED, **_BIAS},
    _F.GPTQ_V1: _GPTQ,
    _F.GPTQ_V2: _GPTQ,
    _F.COMPRESSED_TENSORS: {
        "weight_packed": _Axis(0), "weight_scale": _Axis(0), "weight_zero_point": _Axis(0, 1, 8), **_BIAS,
    },
}  # fmt: skip
# Of the input channels in the weights. Runs of 64 (GEMV_FAST) and of 16 (Marlin) are in order.
_ROWS: Mapping[PackedFormat, tuple[str, _Axis]] = {
    _F.AWQ_GEMM: ("qweight", _Axis(0)),
    _F.AWQ_GEMV: ("qweight", _Axis(1, 1, 8)),
    _F.AWQ_GEMV_FAST: ("qweight", _Axis(1)),
    _F.LLM_AWQ_V2: ("qweight", _Axis(1)),
    _F.AWQ_MARLIN: ("qweight", _Axis(0, 1, 16)),
    _F.GPTQ_V1: ("qweight", _Axis(0, 1, 8)),
    _F.GPTQ_V2: ("qweight", _Axis(0, 1, 8)),
    _F.COMPRESSED_TENSORS: ("weight_packed", _Axis(1, 1, 8)),
}
_PADDED = (_F.AWQ_GEMV, _F.AWQ_GEMV_FAST, _F.LLM_AWQ_V2)
_INDICES = ("g_idx", "weight_g_idx")


class _Made(Mapping[str, Any]):
    """Tensors made from a layer's at each access, read-only."""

    def __init__(self, tensors: _Tensors, make: Callable[[str, NDArray[Any]], NDArray[Any]], without: str = "") -> None:
        self._tensors, self._make, self._without = tensors, make, without

    def __getitem__(self, part: str) -> NDArray[Any]:
        if part == self._without:
            raise KeyError(part)
        made = self._make(part, self._tensors[part]).view()
        made.flags.writeable = False
        return made

    def __iter__(self) -> Iterator[str]:
        return (part for part in self._tensors if part != self._without)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, part: object) -> bool:
        return part != self._without and part in self._tensors


def shard(layer: PackedLayer, axis: SplitAxis | Literal["columns", "rows"], rank: int, degree: int) -> PackedLayer:
    """What rank `rank` of `degree` holds of `layer`.

    Along columns it has a slice of oc and of the bias. Along rows it has a slice of ic, and of `act_scales`; rank 0
    alone has the bias, which the sum over the ranks must add once. Nothing is read but an index of the groups.

    Args:
        layer: not fused, unless its parts may be cut anywhere; see `shard_fused`.
        axis: along which features.
        rank: 0 .. degree - 1.
        degree: ranks.

    Raises:
        UnsupportedCheckpoint: that degree is not legal; `legal_degrees` lists those that are.
        CheckpointError: a g_idx beyond the groups.
    """
    axis = SplitAxis(axis)
    _check_rank(layer, rank, degree)
    if axis is SplitAxis.COLUMNS or degree == 1:
        return shard_fused(layer, (), rank, degree)
    ordered = groups_in_order(layer)
    split = split_layer(evolve(layer, act_order=not ordered), axis, degree)
    start = rank * split.ic
    make = _row_maker(layer, split, start, ordered)
    scales = layer.act_scales
    return evolve(
        layer, ic=split.ic, group_size=split.group_size, headers={},
        tensors=_Made(layer.tensors, make, without="bias" if rank else ""),
        act_scales=None if scales is None else scales[start : start + split.ic],
    )  # fmt: skip


def shard_fused(layer: PackedLayer, parts: Sequence[FusedPart], rank: int, degree: int) -> PackedLayer:
    """What rank `rank` of `degree` holds of a layer of several projections one behind the other: its share of each.

    Heads of q are divided. Those of k and v are divided too if there are enough of them; if `degree` is a multiple of
    their number, each is held by degree / number neighbouring ranks, those whose heads of q use it.

    Args:
        layer: whole.
        parts: in order, e.g. `qkv_parts(...)`, `gate_up_parts(...)`, or what `splitting.fused_parts` finds.
        rank: 0 .. degree - 1.
        degree: ranks.

    Raises:
        UnsupportedCheckpoint: a part does not divide, or the format cannot be cut there.
    """
    _check_rank(layer, rank, degree)
    split = split_layer(layer, SplitAxis.COLUMNS, degree, parts)
    ranges = channel_ranges(layer, parts, rank, degree)
    if ranges == ((0, layer.oc),):
        return layer
    axes = _CHANNELS[layer.format]

    def make(part: str, array: NDArray[Any]) -> NDArray[Any]:
        if part == "weight_shape":
            return np.array([split.oc, split.ic], array.dtype)
        return axes[part].taken(array, ranges) if part in axes else array

    return evolve(layer, oc=split.oc, headers={}, tensors=_Made(layer.tensors, make))


def regrouped(layer: PackedLayer, group_size: int) -> PackedLayer:
    """`layer` with groups of `group_size`, which divides its own; the weights are shared and none changes."""
    if group_size == layer.group_size:
        return layer
    split = Split(SplitAxis.ROWS, 1, layer.ic, layer.oc, group_size)
    return evolve(
        layer, group_size=group_size, headers={}, tensors=_Made(layer.tensors, _row_maker(layer, split, 0, True))
    )


def _check_rank(layer: PackedLayer, rank: int, degree: int) -> None:
    if degree < 1:
        raise layer.refuse("degree must be positive", "degree", got=str(degree))
    if not 0 <= rank < degree:
        raise layer.refuse("a rank must be in 0 .. degree - 1", "rank", got=f"rank {rank} of {degree}")


def groups_in_order(layer: PackedLayer) -> bool:
    """Whether channel k is in group k // group_size, whatever the configuration says."""
    part = next((name for name in _INDICES if name in layer.tensors), None)
    if part is None:
        return True
    g_idx = read_g_idx(layer, part)
    assert g_idx is not None
    return bool(np.array_equal(g_idx, np.arange(layer.ic) // layer.geometry.group))


def _row_maker(
    layer: PackedLayer, split: Split, start: int, ordered: bool
) -> Callable[[str, NDArray[Any]], NDArray[Any]]:
    """Makes each tensor of the input channels from `start` on."""
    sizes = Geometry(split.ic, split.oc, split.group_size)
    weights, axis = _ROWS[layer.format]
    stop = start + split.ic
    if ordered:
        chosen = (start + sizes.group * np.arange(sizes.groups)) // layer.geometry.group
    else:  # all groups, and the last again to fill what is left
        chosen = np.minimum(np.arange(sizes.groups), layer.groups - 1)
    width = 8 * zeros_width(sizes) if layer.format in _PADDED else sizes.groups

    def make(part: str, array: NDArray[Any]) -> NDArray[Any]:
        if part == weights:
            return axis.taken(array, [(start, stop)])
        if part == "bias":
            return array
        if part == "weight_shape":
            return np.array([split.oc, split.ic], array.dtype)
        if part in _INDICES:
            return np.arange(split.ic, dtype=array.dtype) // sizes.group if ordered else array[start:stop]
        if layer.format is _F.AWQ_GEMV:
            if part == "qzeros":
                return words.pack(_chosen(words.unpack(array), chosen, 1, width))
            return _chosen(array, chosen, 1, width)
        if layer.format is _F.COMPRESSED_TENSORS:
            return _chosen(array, chosen, 1, width)
        taken = _chosen(array, chosen, 0, width)
        if layer.format is _F.AWQ_MARLIN and layer.groups > 1 and sizes.groups == 1:
            # One group has a permutation of its own.
            return permuted_scales(permuted_scales(array)[chosen])
        return taken

    return make


def _chosen(array: NDArray[Any], groups: NDArray[Any], axis: int, width: int) -> NDArray[Any]:
    """These groups along `axis`, a view if they lie side by side; zeros behind them up to `width`."""
    first, count = int(groups[0]), len(groups)
    if width == count and np.array_equal(groups, np.arange(first, first + count)):
        taken = slice(first, first + count)
        return array[taken] if axis == 0 else array[:, taken]
    found = np.take(array, groups, axis)
    if width == count:
        return found
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, width - count)
    return np.pad(found, padding)
