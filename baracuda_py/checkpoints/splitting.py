"""What a packed layer becomes when it is cut over the ranks of a tensor-parallel group; sizes alone, no data.

    COLUMNS   each rank holds oc / degree output channels, all of ic
    ROWS      each rank holds ic / degree input channels, all of oc; the ranks' outputs are added up

A cut along ic that ends within a group makes smaller groups, whose scales and zero points are those of the group they
come from: 128 -> 64 -> 32 changes no weight. Where the groups are out of order (act-order), every rank keeps all
scales and zero points instead, in as many smaller groups of its own. A fused projection is cut part by part, q, k and v
in whole heads. Where k and v have fewer heads than there are ranks, neighbouring ranks hold the same one, that which
their heads of q use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from attrs import frozen

from baracuda_py.checkpoints.formats import Geometry, channels_together, check_fits
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.errors import UnsupportedCheckpoint

__all__ = [
    "FusedPart",
    "Split",
    "SplitAxis",
    "channel_ranges",
    "fused_parts",
    "gate_up_parts",
    "legal_degrees",
    "qkv_parts",
    "split_layer",
]

# Cut groups are no smaller: no plan takes smaller ones, and headers of smaller ones would fit several formats.
_SMALLEST_CUT = 32


class SplitAxis(Enum):
    """Along which features a layer is cut."""

    COLUMNS = "columns"  # output features
    ROWS = "rows"  # input features


@frozen
class FusedPart:
    """One projection of a fused layer.

    Attributes:
        name: for messages, e.g. `"q"`.
        width: output channels.
        unit: channels that stay together, e.g. those of a head.
        shared: several ranks may hold the same unit, as they may for heads of k and v.
    """

    name: str
    width: int
    unit: int = 1
    shared: bool = False

    def range(self, rank: int, degree: int) -> tuple[int, int] | None:
        """First channel of a rank, and one past its last, counted from the part's first; None if it does not divide."""
        units, rest = divmod(self.width, self.unit)
        if rest or not units:
            return None
        if units % degree == 0:
            share = units // degree * self.unit
            return rank * share, (rank + 1) * share
        if self.shared and degree % units == 0:
            first = rank // (degree // units) * self.unit
            return first, first + self.unit
        return None


@frozen
class Split:
    """A layer cut for `degree` ranks.

    Attributes:
        axis: along which features.
        degree: ranks.
        ic, oc: of one rank's part.
        group_size: of one rank's part; smaller than the layer's where groups are cut, or all are kept.
        keeps_all_groups: every rank has the scales and zero points of all groups (act-order along ROWS).
    """

    axis: SplitAxis
    degree: int
    ic: int
    oc: int
    group_size: int
    keeps_all_groups: bool = False


_GATE_UP = ("gate_up_proj", "w13", "gate_up")
_QKV = ("qkv_proj", "Wqkv", "W_pack", "c_attn", "qkv")


def fused_parts(name: str, oc: int, model: Mapping[str, Any]) -> tuple[FusedPart, ...] | None:
    """The projections that layer `name` holds one behind the other, told by its name and the model's configuration.

    Args:
        name: of the layer.
        oc: its output channels.
        model: config.json.

    Returns:
        `()` for a layer that is not fused; None if it is fused and its parts cannot be told.
    """
    last = name.rpartition(".")[2]
    if last in _GATE_UP:
        return None if oc % 2 else gate_up_parts(oc)
    if last not in _QKV:
        return ()
    text = model.get("text_config")
    settings = text if isinstance(text, dict) else model

    def number(key: str) -> int:
        value = settings.get(key)
        return value if type(value) is int and value > 0 else 0

    heads = number("num_attention_heads")
    shared = number("num_key_value_heads") or heads
    if not heads or oc % (heads + 2 * shared):
        return None
    unit = oc // (heads + 2 * shared)
    if number("head_dim") not in (0, unit):
        return None
    return qkv_parts(heads, shared, unit)


def gate_up_parts(oc: int) -> tuple[FusedPart, ...]:
    """Of a fused gate and up projection with `oc` output channels in all."""
    return FusedPart("gate", oc // 2), FusedPart("up", oc // 2)


def qkv_parts(heads: int, shared_heads: int, head_dim: int) -> tuple[FusedPart, ...]:
    """Of a fused q, k and v projection: `heads` of q, `shared_heads` of k and v, `head_dim` channels each."""
    shared = shared_heads * head_dim
    return (
        FusedPart("q", heads * head_dim, head_dim),
        FusedPart("k", shared, head_dim, shared=True),
        FusedPart("v", shared, head_dim, shared=True),
    )


def split_layer(
    layer: PackedLayer, axis: SplitAxis, degree: int, parts: Sequence[FusedPart] | None = ()
) -> Split:
    """What one of `degree` ranks holds of `layer`; reads nothing.

    Args:
        layer: whole.
        axis: along which features it is cut.
        degree: ranks.
        parts: as `fused_parts` says.

    Raises:
        UnsupportedCheckpoint: the features, or a fused part's, do not divide, or the format cannot hold what comes out.
    """
    if degree < 1:
        raise layer.refuse("a tensor-parallel degree must be positive", "degree", got=str(degree))
    if degree == 1:
        return Split(axis, 1, layer.ic, layer.oc, layer.group_size)
    if axis is SplitAxis.COLUMNS:
        if parts is None:
            raise layer.refuse(
                "the parts of a fused layer must be known", "fused parts", got="none",
                why="config.json does not say how many heads q, k and v have, or they do not add up to oc",
            )  # fmt: skip
        oc = sum(stop - start for start, stop in channel_ranges(layer, parts, 0, degree))
        _check_fits(layer, Geometry(layer.ic, oc, layer.group_size))
        return Split(axis, degree, layer.ic, oc, layer.group_size)
    _check_divides(layer, "ic", layer.ic, degree)
    ic = layer.ic // degree
    group_size = layer.group_size
    if layer.act_order and layer.groups > 1:
        _check_fits(layer, Geometry(ic, layer.oc, -1))
        return Split(axis, degree, ic, layer.oc, _group_for(layer, ic), keeps_all_groups=True)
    if group_size != -1 and ic % group_size:
        group_size = math.gcd(ic, group_size)
        if group_size < _SMALLEST_CUT:
            raise layer.refuse(
                f"groups must not be cut into less than {_SMALLEST_CUT} channels", "group_size",
                got=f"{group_size}, what {ic} channels a rank and groups of {layer.group_size} have in common",
                why="no plan takes smaller groups",
            )  # fmt: skip
    _check_fits(layer, Geometry(ic, layer.oc, group_size))
    return Split(axis, degree, ic, layer.oc, group_size)


def legal_degrees(
    layer: PackedLayer, axis: SplitAxis, parts: Sequence[FusedPart] | None = (), *, limit: int = 64
) -> tuple[int, ...]:
    """The degrees up to `limit` that `split_layer` does not refuse; reads nothing."""

    def legal(degree: int) -> bool:
        try:
            split_layer(layer, axis, degree, parts)
        except UnsupportedCheckpoint:
            return False
        return True

    return tuple(degree for degree in range(1, limit + 1) if legal(degree))


def channel_ranges(
    layer: PackedLayer, parts: Sequence[FusedPart], rank: int, degree: int
) -> tuple[tuple[int, int], ...]:
    """The output channels of a rank: first, and one past the last, for each part; for `()`, of the whole layer.

    Raises:
        UnsupportedCheckpoint: a part does not divide, or not where the format can be cut.
    """
    if not parts:
        _check_divides(layer, "oc", layer.oc, degree)
    width = sum(part.width for part in parts)
    if parts and width != layer.oc:
        raise layer.refuse("the parts must add up to oc", "fused parts", got=f"{width}, not {layer.oc}")
    together = channels_together(layer.format, symmetric=layer.symmetric)
    found, offset = [], 0
    for part in parts or (FusedPart("oc", layer.oc),):
        taken = part.range(rank, degree)
        if taken is None:
            must = f"the {'heads' if part.unit > 1 else 'channels'} of {part.name} must be a multiple of {degree}"
            raise layer.refuse(
                f"{must}, or divide it" if part.shared else must, f"{part.name} % {degree}",
                got=str(part.width // part.unit),
            )  # fmt: skip
        start, stop = offset + taken[0], offset + taken[1]
        if parts and (offset % together or (stop - start) % together):
            raise layer.refuse(
                f"each part of a rank must be whole runs of {together} channels", f"{part.name} % {together}",
                got=f"{stop - start} channels of {part.name}", why=f"{layer.format.name} stores them together",
            )  # fmt: skip
        found.append((start, stop))
        offset += part.width
    return tuple(found)


def _group_for(layer: PackedLayer, ic: int) -> int:
    """The largest group size with which `ic` channels have as many groups as the whole layer, at least."""
    return next(size for size in range(layer.group_size, 0, -1) if ic % size == 0 and ic // size >= layer.groups)


def _check_divides(layer: PackedLayer, what: str, features: int, degree: int) -> None:
    if features % degree:
        raise layer.refuse(f"{what} must be a multiple of {degree}", f"{what} % {degree}", got=str(features))


def _check_fits(layer: PackedLayer, sizes: Geometry) -> None:
    check_fits(layer.file, layer.name, layer.format, sizes, symmetric=layer.symmetric)
