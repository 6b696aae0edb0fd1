"""What is in a checkpoint, from its headers and configuration alone: no tensor is read.

    inspection = checkpoints.inspect("models/some-awq", "sm_90")
    inspection.layers[0].servings          # the kernel and SKU for each m
    inspection.layers[0].rows              # which tensor-parallel degrees are legal, and why others are not
    inspection.contradictions              # where configuration and headers disagree
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from baracuda_py.checkpoints.checkpoint import Checkpoint, open_checkpoint
from baracuda_py.checkpoints.contradictions import Contradiction, bits_refusal, find_contradictions
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.serving import LayerJudge, Serving, SplitVerdict, reason
from baracuda_py.checkpoints.splitting import fused_parts
from baracuda_py.errors import BaracudaError, UnsupportedCheckpoint
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.sku import KernelSku

__all__ = ["Inspection", "LayerInspection", "PlainTensor", "RefusedLayer", "Totals", "inspect"]


_DENSE_BYTES = 2  # of a weight in f16 or bf16


@frozen
class LayerInspection:
    """One packed layer; sizes as in `PackedLayer`.

    Attributes:
        dtypes: of its tensors, by the last part of their names.
        act_scales: name of the tensor that the layer's input has to be divided by; `""` if there is none.
        act_order: groups may be out of order: the configuration says so, and an index (g_idx) is stored.
        nbytes: of its tensors.
        servings: one for each m.
        columns, rows: one for each tensor-parallel degree.
    """

    name: str
    file: Path
    format: PackedFormat
    ic: int
    oc: int
    group_size: int
    symmetric: bool
    act_order: bool
    dtypes: Mapping[str, str]
    act_scales: str
    nbytes: int
    servings: tuple[Serving, ...]
    columns: tuple[SplitVerdict, ...]
    rows: tuple[SplitVerdict, ...]

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.ic * self.oc + (self.oc if "bias" in self.dtypes else 0)


@frozen
class RefusedLayer:
    """A module with packed tensors that cannot be read as a layer; `refusal` is the message without the place."""

    name: str
    file: str
    tensor: str
    rule: str
    refusal: str
    nbytes: int


@frozen
class PlainTensor:
    """A tensor of no packed layer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def parameters(self) -> int:
        """Elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@frozen
class Totals:
    """Sums over a checkpoint.

    Attributes:
        packed_nbytes, packed_parameters: of the layers that can be read.
        refused_nbytes: of those that cannot.
        plain_nbytes, plain_parameters: of the tensors that are not quantised.
        dense_nbytes: what the packed layers would take in 16 bits.
    """

    packed_nbytes: int
    packed_parameters: int
    refused_nbytes: int
    plain_nbytes: int
    plain_parameters: int
    dense_nbytes: int


@frozen
class Inspection:
    """A checkpoint.

    Attributes:
        path: the folder or file.
        device: that the servings are for.
        method, version, config_file: what the configuration says and where; `""` and None without one.
        files: the safetensors files; index: that of a sharded checkpoint.
        layers: packed layers, in natural order of their names.
        refused: modules with packed tensors that cannot be read.
        plain: tensors that are not quantised.
        contradictions: where configuration and headers disagree.
        unlisted: tensors that the shards hold and the index does not list.
    """

    path: Path
    device: Device
    method: str
    version: str
    config_file: Path | None
    files: tuple[Path, ...]
    index: Path | None
    layers: tuple[LayerInspection, ...]
    refused: tuple[RefusedLayer, ...]
    plain: tuple[PlainTensor, ...]
    contradictions: tuple[Contradiction, ...]
    unlisted: tuple[str, ...]
    totals: Totals

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and text, in the order of the attributes: ready for JSON."""
        return attrs.asdict(self, value_serializer=_plain_value)


def inspect(
    path: str | os.PathLike[str],
    device: Any = None,
    tp_degrees: Sequence[int] = (1, 2, 4, 8),
    *,
    m: Sequence[int] = (1, 1024),
) -> Inspection:
    """What is in the checkpoint `path`, and what would run it.

    Args:
        path: folder, or safetensors file.
        device: as `bp.select` takes it, e.g. `"sm_90"` for a dry run; None: the GPU if there is one, else the host.
        tp_degrees: tensor-parallel degrees to judge.
        m: rows of activations to select kernels for.

    Raises:
        CheckpointError: nothing there, or files that are damaged or contradict each other.
        UnsupportedCheckpoint: pickled weights, or a quantisation that is not read.
        Unsupported: no such device.
    """
    from baracuda_py import default_registry

    registry = default_registry()
    resolved = registry.device(device)
    try:
        checkpoint = open_checkpoint(path)
    except UnsupportedCheckpoint as error:
        raise bits_refusal(path, error) from None
    layers, refused = _read_layers(checkpoint)
    judge = LayerJudge(registry, resolved, tuple(m), tuple(tp_degrees))
    model = _model_config(checkpoint)
    described = tuple(_describe(layer, judge, model) for layer in layers)
    plain = tuple(
        PlainTensor(header.name, header.dtype, header.shape, header.nbytes)
        for header in sorted(checkpoint.plain_headers.values(), key=lambda header: _natural(header.name))
    )
    config, folder = checkpoint.config, checkpoint.folder
    return Inspection(
        folder.path, resolved,
        config.method if config else "", config.version if config else "", config.file if config else None,
        folder.files, folder.index, described, refused, plain,
        find_contradictions(checkpoint, layers, [one.name for one in refused]), folder.unlisted,
        _totals(described, refused, plain),
    )  # fmt: skip


def _read_layers(checkpoint: Checkpoint) -> tuple[list[PackedLayer], tuple[RefusedLayer, ...]]:
    layers, refused = [], []
    for name in sorted(checkpoint, key=_natural):
        try:
            layers.append(checkpoint[name])
        except BaracudaError as error:
            tensor = getattr(error, "tensor", "")
            nbytes = sum(header.nbytes for header in checkpoint.headers_of(name).values())
            refused.append(RefusedLayer(name, getattr(error, "file", ""), tensor, error.rule, reason(error), nbytes))
    return layers, tuple(refused)


def _model_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    found = checkpoint.folder.json("config.json")
    return {} if found is None else found[1]


def _describe(layer: PackedLayer, judge: LayerJudge, model: Mapping[str, Any]) -> LayerInspection:
    return LayerInspection(
        layer.name, layer.file, layer.format, layer.ic, layer.oc, layer.group_size, layer.symmetric, layer.act_order,
        {part: header.dtype for part, header in layer.headers.items()}, layer.act_scales_name, layer.nbytes,
        *judge(layer, fused_parts(layer.name, layer.oc, model)),
    )  # fmt: skip


def _totals(
    layers: Iterable[LayerInspection], refused: Iterable[RefusedLayer], plain: Iterable[PlainTensor]
) -> Totals:
    layers, plain = tuple(layers), tuple(plain)
    parameters = sum(layer.parameters for layer in layers)
    return Totals(
        sum(layer.nbytes for layer in layers), parameters, sum(one.nbytes for one in refused),
        sum(tensor.nbytes for tensor in plain), sum(tensor.parameters for tensor in plain), parameters * _DENSE_BYTES,
    )  # fmt: skip


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Orders `layers.2` before `layers.10`."""
    return [
        (0, int(part), "") if part.isdecimal() and part.isascii() and len(part) < 20 else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def _plain_value(_owner: Any, _attribute: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, (Path, Device)):
        return str(value)
    if isinstance(value, KernelSku):
        return value.token
    return value.name.lower() if isinstance(value, Enum) else value
