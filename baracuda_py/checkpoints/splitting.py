"""What a packed layer becomes when it is cut over the ranks of a tensor-parallel group; sizes alone, no data.

    COLUMNS   each rank holds oc / degree output channels, all of ic
    ROWS      each rank holds ic / degree input channels, all of oc; the ranks' outputs are added up

A cut along ic that ends within a group makes smaller groups, whose scales and zero points are those of the group they
come from: 128 -> 64 -> 32 changes no weight. Where an index of the groups is stored (act-order), every rank keeps all
scales and zero points instead. A fused projection is cut part by part, q, k and v in whole heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from attrs import frozen

from baracuda_py.checkpoints.formats import Geometry, check_fits
from baracuda_py.checkpoints.layer import PackedLayer

__all__ = ["FusedPart", "Split", "SplitAxis", "fused_parts", "split_layer"]


class SplitAxis(Enum):
    """Along which features a layer is cut."""

    COLUMNS = "columns"  # output features
    ROWS = "rows"  # input features


@frozen
class FusedPart:
    """One projection of a fused layer: its width in output channels, and how many of them stay together (a head)."""

    name: str
    width: int
    unit: int = 1


@frozen
class Split:
    """A layer cut for `degree` ranks.

    Attributes:
        axis: along which features.
        degree: ranks.
        ic, oc: of one rank's part.
        group_size: of one rank's part; smaller than the layer's where groups are cut.
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
        return None if oc % 2 else (FusedPart("gate", oc // 2), FusedPart("up", oc // 2))
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
    return FusedPart("q", heads * unit, unit), FusedPart("k", shared * unit, unit), FusedPart("v", shared * unit, unit)


def split_layer(
    layer: PackedLayer, axis: SplitAxis, degree: int, parts: tuple[FusedPart, ...] | None = ()
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
    if axis is SplitAxis.COLUMNS:
        if degree > 1:
            _check_parts(layer, degree, parts)
        _check_divides(layer, "oc", layer.oc, degree)
        sizes = Geometry(layer.ic, layer.oc // degree, layer.group_size)
        _check_fits(layer, sizes, degree)
        return Split(axis, degree, sizes.ic, sizes.oc, sizes.group_size)
    _check_divides(layer, "ic", layer.ic, degree)
    ic = layer.ic // degree
    if degree == 1 or layer.group_size == -1:
        group_size = layer.group_size
    elif layer.act_order:
        _check_fits(layer, Geometry(ic, layer.oc, -1), degree)
        return Split(axis, degree, ic, layer.oc, layer.group_size, keeps_all_groups=True)
    else:
        group_size = math.gcd(ic, layer.group_size)
    _check_fits(layer, Geometry(ic, layer.oc, group_size), degree)
    return Split(axis, degree, ic, layer.oc, group_size)


def _check_divides(layer: PackedLayer, what: str, features: int, degree: int) -> None:
    if features % degree:
        raise layer.refuse(f"{what} must be a multiple of {degree}", f"{what} % {degree}", got=str(features))


def _check_parts(layer: PackedLayer, degree: int, parts: tuple[FusedPart, ...] | None) -> None:
    if parts is None:
        raise layer.refuse(
            "the parts of a fused layer must be known", "fused parts", got="none",
            why="config.json does not say how many heads q, k and v have, or they do not add up to oc",
        )  # fmt: skip
    for part in parts:
        if part.width % (degree * part.unit):
            must = f"the {'heads' if part.unit > 1 else 'channels'} of {part.name} must be a multiple of {degree}"
            raise layer.refuse(must, f"{part.name} % {degree}", got=str(part.width // part.unit))
        _check_fits(layer, Geometry(layer.ic, part.width // degree, layer.group_size), degree)


def _check_fits(layer: PackedLayer, sizes: Geometry, degree: int) -> None:
    if degree > 1:
        check_fits(layer.file, layer.name, layer.format, sizes, symmetric=layer.symmetric)
