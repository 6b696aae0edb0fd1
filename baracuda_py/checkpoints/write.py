"""Write a checkpoint: packed layers in one format, other tensors as they are, config.json; sharded, and atomically.

    save("models/some-awq", layers, plain=checkpoint.plain, config=config)

Every layer is converted when its turn comes and then dropped: see `SavePlan.memory_nbytes`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from baracuda_py.checkpoints.atomic import new_folder
from baracuda_py.checkpoints.checkpoint import open_checkpoint
from baracuda_py.checkpoints.folder import Folder
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.layer import LazyTensors, PackedLayer
from baracuda_py.checkpoints.nibbles import LossReport
from baracuda_py.checkpoints.stream import PlannedTensor, Unit, plan_shards, shard_names, write_shard
from baracuda_py.checkpoints.written_config import CONFIG_KEYS, LayerFacts, quantization_config
from baracuda_py.checkpoints.written_layer import WrittenLayer, common_group_size
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint
from baracuda_py.vocab.descriptors import check_member

__all__ = [
    "FORMATS",
    "MAX_SHARD_BYTES",
    "OVERHEAD_NBYTES",
    "SavePlan",
    "Saved",
    "check_format",
    "kept_files",
    "old_files",
    "plan_save",
    "plan_units",
    "save",
]

_F = PackedFormat
FORMATS = (_F.AWQ_GEMM, _F.COMPRESSED_TENSORS)  # that are written
MAX_SHARD_BYTES = 5_000_000_000
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_CONFIG = "config.json"
# What is said of an old checkpoint: a new one does not keep it.
_OLD_CONFIGS = (_CONFIG, "quant_config.json", "quantize_config.json", "hf_quant_config.json")
_SUFFIX = ".safetensors"
_WEIGHTS = (_SUFFIX, f"{_SUFFIX}.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Scratch of a lossy conversion, buffers, and the interpreter with its modules; measured below 150 MB.
OVERHEAD_NBYTES = 200_000_000
_DENSE = ("F16", "BF16", "F32")


@frozen
class Saved:
    """What was written.

    Attributes:
        path: the folder.
        files: the safetensors files.
        layers, plain: how many packed layers, and how many other tensors.
        nbytes: of the tensors.
        losses: of the layers in which weights changed, by name.
    """

    path: Path
    files: tuple[Path, ...]
    layers: int
    plain: int
    nbytes: int
    losses: Mapping[str, LossReport] = field(factory=dict)


@frozen(eq=False)
class SavePlan:
    """A checkpoint that is ready to be written: every size is known, no weight has been read.

    Attributes:
        path: the folder.
        format: of the packed layers.
        layers, plain: how many packed layers, and how many other tensors.
        shards: what each safetensors file will hold.
        config: config.json.
        files: other files to copy, by their new names.
        memory_nbytes: what the process needs at most while it writes.
        overwrite: whether a checkpoint in `path` is replaced.
    """

    path: Path
    format: PackedFormat
    layers: int
    plain: int
    shards: tuple[tuple[Unit, ...], ...] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, Path] = field(repr=False)
    memory_nbytes: int
    overwrite: bool
    _losses: dict[str, LossReport] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(unit.nbytes for shard in self.shards for unit in shard)

    def run(self, progress: Callable[[int], None] = lambda _nbytes: None) -> Saved:
        """Write it.

        Args:
            progress: is told of bytes that were written, which add up to `nbytes`.

        Raises:
            CheckpointError: the folder is not empty and may not be replaced, it cannot be written (the disk is full),
                or a source is damaged. Whatever is raised, an old checkpoint in the folder is as it was.
            UnsupportedCheckpoint: weights would change, and the plan was not told that they may.
        """
        self._losses.clear()
        names = shard_names(len(self.shards))
        with new_folder(self.path, overwrite=self.overwrite, replaced=old_files) as made:
            for name, file in self.files.items():
                shutil.copyfile(file, made / name)
            for name, units in zip(names, self.shards, strict=True):
                write_shard(made / name, units, progress)
            if len(names) > 1:
                _write_json(made / _INDEX, self._index(names))
            _write_json(made / _CONFIG, self.config)
            _check_readable(made, self.path, self.layers)
        files = tuple(self.path / name for name in names)
        return Saved(self.path, files, self.layers, self.plain, self.nbytes, dict(self._losses))

    def _index(self, names: list[str]) -> dict[str, Any]:
        where = {
            tensor.name: name
            for name, units in zip(names, self.shards, strict=True) for unit in units for tensor in unit.tensors
        }  # fmt: skip
        return {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(where.items()))}


def save(
    path: str | os.PathLike[str],
    layers: Mapping[str, PackedLayer] | Iterable[PackedLayer],
    *,
    plain: Mapping[str, Any] | None = None,
    format: PackedFormat = PackedFormat.AWQ_GEMM,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    lossy: bool = False,
    progress: Callable[[int], None] = lambda _nbytes: None,
) -> Saved:
    """Write a checkpoint; see `plan_save` for the arguments, and `SavePlan.run` for `progress` and errors."""
    plan = plan_save(
        path, layers, plain=plain, format=format, config=config, files=files, max_shard_bytes=max_shard_bytes,
        overwrite=overwrite, lossy=lossy,
    )  # fmt: skip
    return plan.run(progress)


def plan_save(
    path: str | os.PathLike[str],
    layers: Mapping[str, PackedLayer] | Iterable[PackedLayer],
    *,
    plain: Mapping[str, Any] | None = None,
    format: PackedFormat = PackedFormat.AWQ_GEMM,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    lossy: bool = False,
) -> SavePlan:
    """How a checkpoint will be written. Reads zero points, indices of groups, biases' types; nothing large.

    An AWQ GEMM checkpoint has one group size: where layers differ, those with larger groups are split, which changes no
    weight. Layers for compressed-tensors that have only zero points of 8 are written as symmetric ones.

    Args:
        path: a folder. Written beside it, and put in its place at the end.
        layers: by name, or with the names that they have. They are converted if they are in another format.
        plain: other tensors by full name: arrays, or `TensorHeader`s, whose bytes are copied. `Checkpoint.plain` and
            `Checkpoint.plain_headers` are both fine.
        format: AWQ_GEMM or COMPRESSED_TENSORS.
        config: config.json of the model; its quantization_config is replaced.
        files: other files to copy (a tokenizer), by their new names.
        max_shard_bytes: bytes of the tensors in a file; the tensors of a layer stay together, even if they are more.
        overwrite: whether to replace a checkpoint in `path`; see `old_files`. Other files in the folder are kept.
        lossy: whether weights may change where a conversion cannot be exact.

    Raises:
        CheckpointError: nothing to write, names that occur twice, or an argument out of its range.
        UnsupportedCheckpoint: the format cannot have a layer's sizes, or another format than those two.
    """
    path = Path(path)
    check_format(path, format)
    named = [evolve(one, name=name) for name, one in layers.items()] if isinstance(layers, Mapping) else list(layers)
    if not named:
        raise CheckpointError(path, "a checkpoint must have a packed layer", rule="layers", got="none")
    sources = plain.headers if isinstance(plain, LazyTensors) else plain or {}
    losses: dict[str, LossReport] = {}
    group_size = common_group_size(named) if format is _F.AWQ_GEMM else None
    written = [WrittenLayer.of(layer, format, group_size) for layer in named]
    packed = [layer.unit(lossy, losses) for layer in written]
    _check_activations(named, sources)
    return plan_units(
        path, format, [layer.facts for layer in written], packed, sources, config=config, files=files,
        max_shard_bytes=max_shard_bytes, overwrite=overwrite,
        memory_nbytes=2 * max(unit.nbytes for unit in packed) + OVERHEAD_NBYTES, losses=losses,
    )  # fmt: skip


def plan_units(
    path: Path,
    format: PackedFormat,
    layers: Sequence[LayerFacts],
    packed: Sequence[Unit],
    plain: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None,
    files: Mapping[str, Path] | None,
    max_shard_bytes: int,
    overwrite: bool,
    memory_nbytes: int,
    losses: dict[str, LossReport],
) -> SavePlan:
    """How units that are made when their turn comes will be written; for the other arguments see `plan_save`.

    Args:
        layers: what the configuration says of the packed layers.
        packed: units that hold them, and perhaps other tensors that are made with them.
        plain: tensors that are copied.
        memory_nbytes: what the process needs at most.
        losses: filled while units are made.
    """
    if max_shard_bytes <= 0:
        raise CheckpointError(path, "max_shard_bytes must be positive", rule="max_shard_bytes", value=max_shard_bytes)
    units = list(packed)
    units += [Unit(name, (PlannedTensor.like(name, source),), _just(source)) for name, source in plain.items()]
    _check_names(path, units)
    _check_files(path, files or {})
    dense = [
        tensor.name.removesuffix(".weight") for unit in units for tensor in unit.tensors
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype in _DENSE
    ]  # fmt: skip
    kept = {key: value for key, value in (config or {}).items() if key not in CONFIG_KEYS}
    quantization = quantization_config(format, layers, sorted(dense))
    others = sum(len(unit.tensors) for unit in units) - sum(layer.tensors for layer in layers)
    return SavePlan(
        path, format, len(layers), others, tuple(map(tuple, plan_shards(units, max_shard_bytes))),
        kept | {"quantization_config": quantization}, dict(files or {}), memory_nbytes, overwrite, losses,
    )  # fmt: skip


def check_format(path: Path, format: PackedFormat) -> None:
    """Refuse a format that is not written here with UnsupportedCheckpoint, and what is none with TypeError."""
    check_member("format", format, PackedFormat)
    if format not in FORMATS:
        raise UnsupportedCheckpoint(
            path, f"the format must be {' or '.join(one.name for one in FORMATS)}", rule="format", got=format.name
        )


def _just(source: Any) -> Callable[[], Iterator[Any]]:
    return lambda: iter((source,))


def _check_names(path: Path, units: list[Unit]) -> None:
    seen: set[str] = set()
    for unit in units:
        for tensor in unit.tensors:
            if tensor.name in seen:
                raise CheckpointError(path, "a tensor must be given once", tensor=tensor.name, rule="duplicate tensor")
            seen.add(tensor.name)


def _check_activations(layers: list[PackedLayer], plain: Mapping[str, Any]) -> None:
    """What the input of a layer is divided by is a tensor beside the layer, and without it the layer is another one."""
    beside = {
        (name.removesuffix(".scales").rpartition(".")[0], tuple(source.shape))
        for name, source in plain.items() if name.endswith(".scales")
    }  # fmt: skip
    for layer in layers:
        scales = layer.act_scales
        if scales is not None and (layer.name.rpartition(".")[0], scales.shape) not in beside:
            raise CheckpointError(
                layer.file, "the scales of a layer's input must be written with it", tensor=layer.name,
                rule="act_scales", got="none in plain", fix="Put layer.act_scales into plain, as <activation>.scales",
            )  # fmt: skip


def _check_files(path: Path, files: Mapping[str, Path]) -> None:
    for name in files:
        if Path(name).name != name or not _is_other(name):
            raise CheckpointError(
                path, "a file to copy must have a plain name that is no weight's or configuration's", rule="file name",
                value=name,
            )  # fmt: skip


def old_files(folder: Path) -> set[str]:
    """The names in `folder` that belong to its checkpoint, and that a new one at its place does not keep.

    These are model.safetensors, its index and the shards that it lists, shards that are named as they are here, and
    configurations. Other weights may be another model's, or activations.

    Raises:
        CheckpointError: the folder holds other weights alone.
    """
    names = set(os.listdir(folder))
    old = {name for name in names if name in (_SINGLE, _INDEX, *_OLD_CONFIGS) or _SHARD.fullmatch(name)}
    old |= names & _listed(folder)
    if any(name.endswith(_SUFFIX) for name in old):
        return old
    others = sorted(name for name in names if name.endswith((_SUFFIX, *_PICKLES)))
    found = [name for name in others if name.endswith(_SUFFIX)]
    if len(found) == 1 and not any(name.endswith(f"{_SUFFIX}.index.json") for name in names):
        raise CheckpointError(
            folder, f"the checkpoint in a folder that is overwritten must be called {_SINGLE}", rule="overwrite",
            got=found[0], why=f"beside a new {_SINGLE} it would be a second one, and it may be no checkpoint",
            fix=f"Name another folder, or move {found[0]}",
        )  # fmt: skip
    if others:
        raise CheckpointError(
            folder, f"a folder that is overwritten must hold a checkpoint with {_SINGLE} or {_INDEX}",
            rule="overwrite", got=", ".join(others[:3]), fix="Name another folder, or move these files",
        )  # fmt: skip
    return old if _INDEX in old else set()  # a configuration alone may be anything's


def _listed(folder: Path) -> set[str]:
    """The shards that the index in `folder` lists; none if there is no index, or one that is damaged."""
    try:
        found = Folder(folder, folder, (), {}).json(_INDEX)
    except CheckpointError:
        return set()
    shards = {} if found is None else found[1].get("weight_map")
    if not isinstance(shards, dict):
        return set()
    return {name for name in shards.values() if isinstance(name, str) and name.endswith(_SUFFIX)}


def _is_other(name: str) -> bool:
    """Whether a file of that name is neither weights nor what is said about them."""
    return name not in _OLD_CONFIGS and not name.endswith(_WEIGHTS)


def kept_files(folder: Folder) -> dict[str, Path]:
    """The files of a checkpoint's folder that its copy has too, by name: a tokenizer, a licence."""
    return {name: file for name, file in folder.other_files().items() if _is_other(name)}


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    # In ASCII: a string of JSON may hold half of a surrogate pair, which UTF-8 has no bytes for.
    file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _check_readable(made: Path, path: Path, layers: int) -> None:
    """The reader finds every layer in what was written; only headers are read."""
    try:
        found = open_checkpoint(made)
        for name in found:
            found[name]
    except (CheckpointError, UnsupportedCheckpoint) as error:
        raise CheckpointError(
            path, "what is written must be readable again", tensor=error.tensor, rule="readable", why=str(error)
        ) from None
    if len(found) != layers:
        raise CheckpointError(
            path, "what is written must be readable again", rule="readable", got=f"{len(found)} layers, not {layers}"
        )
