"""A checkpoint opened: its quantised layers by name, its other tensors, its configuration. Data is read on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property

from baracuda_py.checkpoints.config import QuantizationConfig, WeightRule, read_config
from baracuda_py.checkpoints.folder import Folder
from baracuda_py.checkpoints.formats import (
    WEIGHT_PARTS,
    Geometry,
    PackedFormat,
    detect,
    geometry,
    packed_modules,
)
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.checkpoints.layer import LazyTensors, PackedLayer
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

__all__ = ["Checkpoint", "lost_parts", "open_checkpoint"]

_NEAR_NAMES = 5  # listed when a layer is not found
# Linears behind an activation that AutoAWQ scales, as it knows them.
_BEHIND_ACTIVATIONS = {"c_proj", "dense_4h_to_h", "down_proj", "fc2", "fc_out"}


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint in the folder (or the safetensors file) `path`. Headers and configuration are read, data is not.

    Raises:
        CheckpointError: nothing there, or files that are damaged or contradict each other.
        UnsupportedCheckpoint: pickled weights, or a quantisation that is not read.
    """
    folder = Folder.open(path)
    config = read_config(folder)
    modules = packed_modules(folder.tensors)
    for name, header in folder.tensors.items():
        if name.endswith(".pre_quant_scale"):
            raise UnsupportedCheckpoint(
                header.file, "the format must be one that is known here", tensor=name, rule="format",
                got="ModelOpt, such as its W4A16_AWQ", why="despite its name that is another format",
            )  # fmt: skip
    if modules and config is None:
        raise CheckpointError(
            folder.root / "config.json", "a checkpoint with packed layers must have a quantization_config",
            tensor=next(iter(modules)), rule="quantization_config", got="none",
            why="headers alone cannot tell a layer's group size",
        )  # fmt: skip
    return Checkpoint(folder, config, modules)


class Checkpoint(Mapping[str, PackedLayer]):
    """A mapping of layer name to `PackedLayer`.

    A layer's headers are checked when it is taken, so that one bad layer does not hide the others.

    Attributes:
        folder: the files and every tensor's header.
        config: None if the checkpoint has none, which is then not quantised.
    """

    def __init__(self, folder: Folder, config: QuantizationConfig | None, modules: Mapping[str, list[str]]) -> None:
        self.folder = folder
        self.config = config
        self._modules = modules

    def __getitem__(self, name: str) -> PackedLayer:
        """Layer `name`.

        Raises:
            KeyError: no such layer; `layer` has a message.
            CheckpointError: its headers contradict each other or the configuration, or a tensor is gone that the
                configuration tells of.
            UnsupportedCheckpoint: a format that is not read.
        """
        headers = self.headers_of(name)
        assert self.config is not None
        rule = self.config.rule(name)
        format = detect(name, headers, gptq_v2=self.config.gptq_v2)
        sizes, headers = geometry(name, format, headers, rule.group_size, self.config.file.name)
        for part, says in lost_parts(rule, format, sizes, headers).items():
            raise CheckpointError(
                next(iter(headers.values())).file, f"a layer with {says} must have {part}",
                tensor=_join(name, part), rule="missing tensor", got="none",
                why=f"{self.config.file.name} says {says}, and without {part} the weights are others",
                fix="Get the whole checkpoint, or correct the configuration",
            )  # fmt: skip
        return PackedLayer.from_headers(
            name, format, sizes, headers, act_order=rule.act_order, act_scales=self._act_scales(name, sizes.ic)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder.path)!r}: {len(self)} packed layers, {len(self.plain)} plain tensors)"

    def headers_of(self, name: str) -> dict[str, TensorHeader]:
        """The tensors of layer `name` by the last part of their names, unchecked; KeyError for no such layer."""
        return {part: self.folder.tensors[_join(name, part)] for part in self._modules[name]}

    def layer(self, name: str) -> PackedLayer:
        """Layer `name`; as `checkpoint[name]`, but a layer that is not there is a `CheckpointError` with near names."""
        if name not in self:
            raise self._missing(name)
        return self[name]

    @cached_property
    def plain(self) -> Mapping[str, object]:
        """The tensors of no packed layer, by full name; each access maps the tensor, read-only."""
        return LazyTensors(self.plain_headers)

    @cached_property
    def plain_headers(self) -> Mapping[str, TensorHeader]:
        """The headers of `plain`."""
        return {name: header for name, header in self.folder.tensors.items() if not self._is_packed(name)}

    def _is_packed(self, name: str) -> bool:
        module, _, part = name.rpartition(".")
        found = self._modules.get(module, ())
        if part not in found or _join(module, part) != name:
            return False
        weight = next(each for each in WEIGHT_PARTS if each in found)
        return part in _PARTS_OF[weight]

    @cached_property
    def _activations(self) -> Mapping[str, list[TensorHeader]]:
        """`<act>.scales` of modules that are no packed layers, by the parent's name."""
        found: dict[str, list[TensorHeader]] = {}
        for name, header in self.plain_headers.items():
            module, _, part = name.rpartition(".")
            if part == "scales" and len(header.shape) == 1 and header.dtype in ("F16", "BF16", "F32"):
                found.setdefault(module.rpartition(".")[0], []).append(header)
        return found

    def _act_scales(self, name: str, ic: int) -> TensorHeader | None:
        """What AutoAWQ divides a layer's input by: the scales of an activation beside it, one for each input feature.

        Source: AutoAWQ, awq/modules/act.py.
        """
        parent, _, last = name.rpartition(".")
        beside = self._activations.get(parent, [])
        fitting = [header for header in beside if header.shape == (ic,)]
        if not fitting:
            return None
        # Where both layers of a block have as many inputs, the one behind the activation is told by its name.
        readers = {module.rpartition(".")[2] for module in self._modules if module.rpartition(".")[0] == parent}
        readers &= _BEHIND_ACTIVATIONS
        return fitting[0] if len(fitting) == 1 and (last in readers or not readers) else None

    def _missing(self, name: str) -> CheckpointError:
        known = list(self._modules)
        inside = [layer for layer in known if f".{name}." in f".{layer}."]
        near = inside or get_close_matches(name, known, n=_NEAR_NAMES, cutoff=0.3) or known
        more = f" and {len(near) - _NEAR_NAMES} more" if len(near) > _NEAR_NAMES else ""
        plain = f"{name}.weight" in self.folder.tensors
        return CheckpointError(
            self.folder.path, "the layer must be in the checkpoint", tensor=name, rule="missing layer",
            got="a layer that is not quantised" if plain else "" if known else "no quantised layer at all",
            fix=f"Near names: {', '.join(near[:_NEAR_NAMES])}{more}" if near else "",
        )  # fmt: skip


def lost_parts(
    rule: WeightRule, format: PackedFormat, sizes: Geometry, headers: Mapping[str, TensorHeader]
) -> dict[str, str]:
    """Tensors that may be absent, but not from a layer of this rule; and what the rule says of each."""
    compressed = format is PackedFormat.COMPRESSED_TENSORS
    lost = {}
    index = "weight_g_idx" if compressed else "g_idx"
    if rule.act_order and sizes.groups > 1 and index not in headers:
        lost[index] = "act-order"
    if compressed and rule.symmetric is False and "weight_zero_point" not in headers:
        lost["weight_zero_point"] = "zero points"
    return lost


_PARTS_OF = {
    "qweight": ("qweight", "qzeros", "scales", "scaled_zeros", "g_idx", "bias"),
    "weight_packed": ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "bias"),
    "B": ("B", "s", "bias"),
}


def _join(module: str, part: str) -> str:
    return f"{module}.{part}" if module else part
