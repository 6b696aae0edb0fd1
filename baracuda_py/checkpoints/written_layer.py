"""As what a packed layer is written: its tensors, known before a weight is read, and the conversion that makes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from baracuda_py.checkpoints.formats import Geometry, PackedFormat, check_fits, expected_parts
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import LossReport
from baracuda_py.checkpoints.shard import groups_in_order, regrouped
from baracuda_py.checkpoints.stream import PlannedTensor, Unit
from baracuda_py.checkpoints.transcode import scales_element, transcode
from baracuda_py.checkpoints.written_config import LayerFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WrittenLayer", "common_group_size"]

_F = PackedFormat
_SMALLEST_GROUP = 32  # below it headers are ambiguous
_ITEMSIZE = {"I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8}
# What `transcode` writes where a format allows several types.
_INDICES = {"weight_shape": "I64", "weight_g_idx": "I32"}
# Eight zero points of 8, those of a symmetric layer, as a word.
_ALL_EIGHT = {_F.AWQ_GEMM: 0x88888888, _F.GPTQ_V2: 0x88888888, _F.GPTQ_V1: 0x77777777}


@frozen(eq=False)
class WrittenLayer:
    """A layer, and as what it will be written.

    Attributes:
        layer: in whatever format.
        format, group_size, symmetric: of what is written.
        ordered: the groups are in the order of ic.
    """

    layer: PackedLayer
    format: PackedFormat
    group_size: int
    symmetric: bool
    ordered: bool

    @classmethod
    def of(cls, layer: PackedLayer, format: PackedFormat, group_size: int | None) -> WrittenLayer:
        """`layer` in `format`; with groups of `group_size`, or its own. Zero points and indices of groups are read.

        Raises:
            UnsupportedCheckpoint: the format cannot have the layer's sizes.
        """
        symmetric = format is _F.COMPRESSED_TENSORS and (layer.symmetric or _has_only_eights(layer))
        if symmetric:
            layer = evolve(layer, symmetric=True)
        group_size = layer.group_size if group_size is None else group_size
        written = cls(layer, format, group_size, symmetric, groups_in_order(layer))
        check_fits(layer.file, layer.name, format, written.sizes, symmetric=symmetric)
        return written

    @property
    def sizes(self) -> Geometry:
        """Of what is written."""
        return Geometry(self.layer.ic, self.layer.oc, self.group_size)

    @property
    def facts(self) -> LayerFacts:
        """For the configuration."""
        tensors = self.tensors
        return LayerFacts(self.layer.name, self.group_size, self.symmetric, "weight_g_idx" in tensors, len(tensors))

    @property
    def tensors(self) -> Mapping[str, PlannedTensor]:
        """What is written, by the last part of the names."""
        expected = expected_parts(self.format, self.sizes, symmetric=self.symmetric)
        planned = {}
        for part, must in expected.items():
            dtype = self._dtype(part, must.dtypes)
            if dtype:
                nbytes = math.prod(must.shape) * _ITEMSIZE[dtype]
                name = f"{self.layer.name}.{part}".removeprefix(".")  # a module may have no name
                planned[part] = PlannedTensor(name, dtype, must.shape, nbytes)
        return planned

    def _dtype(self, part: str, allowed: Sequence[str]) -> str:
        """Of a tensor; `""` if there will be none."""
        layer, converted = self.layer, self.layer.format is not self.format
        if part == "bias" or not converted:
            if part not in layer.tensors:
                return ""
            return PlannedTensor.like(part, layer.headers.get(part) or layer.tensors[part]).dtype
        if part == "weight_g_idx" and self.ordered:
            return ""
        if part in ("scales", "weight_scale"):
            return scales_element(layer, self.format).name
        return _INDICES.get(part, allowed[0])

    def unit(self, lossy: bool, losses: dict[str, LossReport]) -> Unit:
        """What a shard will hold; `losses` gets what the conversion changes, if anything."""
        planned = self.tensors

        def make() -> Iterator[TensorHeader | NDArray[Any]]:
            layer = self.layer
            if layer.format is not self.format:
                layer = transcode(layer, self.format, lossy=lossy)
                if layer.loss:
                    losses[layer.name] = layer.loss
            layer = regrouped(layer, self.group_size)
            for part in planned:
                yield layer.headers[part] if part in layer.headers else layer.tensors[part]

        return Unit(self.layer.name, tuple(planned.values()), make)


def common_group_size(layers: Sequence[PackedLayer]) -> int:
    """The group size of all layers, or the largest that divides theirs.

    Raises:
        UnsupportedCheckpoint: that is too small.
    """
    sizes = {layer.group_size for layer in layers}
    if len(sizes) == 1:
        return sizes.pop()
    common = math.gcd(*(layer.geometry.group for layer in layers))
    if common < _SMALLEST_GROUP:
        layer = min(layers, key=lambda layer: layer.geometry.group)
        raise layer.refuse(
            f"groups of all layers must be multiples of {_SMALLEST_GROUP} or more channels", "group_size",
            got=f"group sizes {', '.join(map(str, sorted(sizes)))}", why="an AWQ GEMM checkpoint has one group size",
            fix="Write compressed-tensors, which has several",
        )  # fmt: skip
    return common


def _has_only_eights(layer: PackedLayer) -> bool:
    word = _ALL_EIGHT.get(layer.format)
    return word is not None and bool((layer.tensors["qzeros"].view("<u4") == word).all())
