"""A whole checkpoint of f16, bf16 or f32 weights quantised: layer by layer, everything else as it is.

    quantize_checkpoint("models/some", "models/some-awq", activations="models/some.activations.safetensors")

With activations, linears in blocks that are known (`quantize.blocks`) are scaled, and the scales folded into the norm
or linear before them, whose tensors change with it; others are clipped only. Without, weights are rounded to nearest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from baracuda_py.checkpoints.checkpoint import open_checkpoint
from baracuda_py.checkpoints.folder import Folder
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.checkpoints.write import (
    MAX_SHARD_BYTES,
    OVERHEAD_NBYTES,
    Saved,
    SavePlan,
    check_format,
    kept_files,
    old_files,
    plan_units,
)
from baracuda_py.errors import CheckpointError
from baracuda_py.quantize.blocks import folds_in, plan_jobs
from baracuda_py.quantize.calibration import Calibration
from baracuda_py.quantize.chain import Chain, LayerReport, arrays_nbytes
from baracuda_py.quantize.choice import Left, Linear, choose, model_types
from baracuda_py.quantize.engines import engine_on
from baracuda_py.vocab.enums import ElementKind

__all__ = ["QuantizePlan", "Quantized", "plan_quantize", "quantize_checkpoint"]


@frozen
class Quantized:
    """What was written.

    Attributes:
        saved: the files.
        layers: a report of each.
        left: matrices that were not quantised, and why.
        before_nbytes: of all tensors of the source.
    """

    saved: Saved
    layers: tuple[LayerReport, ...] = field(repr=False)
    left: tuple[Left, ...] = field(repr=False)
    before_nbytes: int

    @property
    def folded(self) -> tuple[str, ...]:
        """Modules that were not quantised, and whose weights took up input scales: norms."""
        names = {layer.name for layer in self.layers}
        makers = (layer.scaled_by for layer in self.layers if layer.scaled_by and layer.alpha)
        return tuple(dict.fromkeys(maker for maker in makers if maker not in names))


@frozen(eq=False)
class QuantizePlan:
    """A checkpoint that is ready to be quantised: every size is known, no weight has been read.

    Attributes:
        save: how it will be written.
        linears: that will be quantised.
        left: matrices that will not be, and why.
        before_nbytes: of all tensors of the source.
    """

    save: SavePlan
    linears: tuple[Linear, ...] = field(repr=False)
    left: tuple[Left, ...] = field(repr=False)
    before_nbytes: int
    _reports: dict[str, LayerReport] = field(repr=False)

    def run(self, progress: Callable[[int], None] = lambda _nbytes: None) -> Quantized:
        """Quantise and write; see `SavePlan.run`.

        Raises:
            CheckpointError, UnsupportedCheckpoint: besides, weights or activations that are not finite or too large.
        """
        self._reports.clear()
        saved = self.save.run(progress)
        return Quantized(
            saved, tuple(self._reports[linear.name] for linear in self.linears), self.left, self.before_nbytes
        )


def quantize_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: PackedFormat = PackedFormat.AWQ_GEMM,
    group_size: int = 128,
    activations: str | os.PathLike[str] | None = None,
    fold: str = "auto",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    scales_element: ElementKind | None = None,
    device: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _nbytes: None,
) -> Quantized:
    """Quantise the checkpoint `source` into the folder `target`; see `plan_quantize`, and `QuantizePlan.run`."""
    plan = plan_quantize(
        source, target, format=format, group_size=group_size, activations=activations, fold=fold, only=only, skip=skip,
        scales_element=scales_element, device=device, max_shard_bytes=max_shard_bytes, overwrite=overwrite,
    )  # fmt: skip
    return plan.run(progress)


def plan_quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: PackedFormat = PackedFormat.AWQ_GEMM,
    group_size: int = 128,
    activations: str | os.PathLike[str] | None = None,
    fold: str = "auto",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    scales_element: ElementKind | None = None,
    device: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> QuantizePlan:
    """How `source` will be quantised; headers are read, and activations that are there several times.

    Args:
        source: folder, or safetensors file; of plain weights.
        target: a folder as for `plan_save`, neither the source's nor above or in it: what quantising loses would be
            gone.
        format, max_shard_bytes, overwrite: as for `plan_save`.
        group_size: input channels that share a scale and a zero point: 32, 64, 128, or -1 for all of them.
        activations: a file as `quantize.calibration` describes it. None: round to nearest.
        fold: `"auto"`: fold input scales where the model_type of config.json is one of `blocks.MODEL_TYPES`;
            `"llama"`: in any model whose blocks have Llama's names; `"none"`: scale nothing.
        only, skip: names and `re:` patterns of modules, as in a configuration's lists; see `choose`.
        scales_element: F16 or BF16; None: BF16 for BF16 weights, else F16.
        device: of torch, on which to search, e.g. `"cuda"`; None: NumPy.

    Raises:
        CheckpointError, UnsupportedCheckpoint: as `choose`, `folds_in` and `Calibration.open` say; activations of a
            module that the checkpoint has not, or of other sizes; a target that would take the place of the source or
            the activations; or a source that is damaged.
    """
    target = Path(target)
    check_format(target, format)
    engine = engine_on(device)
    checkpoint = open_checkpoint(source)
    _check_target(target, checkpoint.folder, activations, overwrite)
    tensors = checkpoint.folder.tensors
    found = checkpoint.folder.json("config.json")
    config = None if found is None else found[1]
    types = model_types(config)
    linears, left = choose(checkpoint, group_size, scales_element, only, skip, types)
    calibration = None if activations is None else Calibration.open(activations)
    refusal = folds_in(types, fold)
    if calibration is not None:
        _check_activations(calibration, linears, tensors)
    reports: dict[str, LayerReport] = {}
    chains = [
        Chain.of(jobs, tensors, calibration, format, group_size, scales_element, device, reports)
        for jobs in plan_jobs(linears, tensors, calibration, refusal)
    ]
    made = {name for chain in chains for name in chain.sources}
    save = plan_units(
        target, format, [facts for chain in chains for facts in chain.facts], [chain.unit() for chain in chains],
        {name: header for name, header in tensors.items() if name not in made},
        config=config, files=kept_files(checkpoint.folder), max_shard_bytes=max_shard_bytes, overwrite=overwrite,
        memory_nbytes=max(chain.memory_nbytes for chain in chains) + arrays_nbytes(engine) + OVERHEAD_NBYTES, losses={},
    )  # fmt: skip
    before = sum(header.nbytes for header in tensors.values())
    return QuantizePlan(save, linears, left, before, reports)


def _check_target(target: Path, source: Folder, activations: str | os.PathLike[str] | None, overwrite: bool) -> None:
    """What is read must still be there when `target` is written."""
    there, root = Path(os.path.realpath(target)), Path(os.path.realpath(source.root))
    # In the folder of a source that is one file there may be anything.
    folders = [root, *(Path(os.path.realpath(file)).parent for file in source.files)]  # a file may be a link
    if any(one.is_relative_to(there) for one in folders) or (source.path.is_dir() and there.is_relative_to(root)):
        raise CheckpointError(
            target, "a quantised checkpoint must be written apart from its source", rule="target",
            got=f"the source {source.path}", why="the weights cannot be had back from it",
            fix="Name a folder beside the source",
        )  # fmt: skip
    if activations is None or not overwrite:
        return
    for file in (Path(activations), Path(os.path.realpath(activations))):
        if Path(os.path.realpath(file.parent)) == there and file.name in old_files(there):
            raise CheckpointError(
                target, "a folder that is overwritten must not hold the activations under a name of its checkpoint",
                rule="target", got=file.name, fix="Name another folder, or move the activations",
            )  # fmt: skip


def _check_activations(
    calibration: Calibration, linears: Sequence[Linear], tensors: Mapping[str, TensorHeader]
) -> None:
    """Every entry is of a module that is there; some are of linears that are quantised, with as many channels."""
    for name in calibration.parts:
        weight = tensors.get(f"{name}.weight")
        if weight is None or len(weight.shape) != 2:
            raise CheckpointError(
                calibration.file, "it must be called as a linear of the checkpoint", tensor=name, rule="activations"
            )
        if calibration.channels(name) != weight.shape[1]:
            raise CheckpointError(
                calibration.file, f"its activations must have the weight's {weight.shape[1]} input channels",
                tensor=name, rule="ic", value=calibration.channels(name),
            )  # fmt: skip
    if not any(linear.name in calibration.parts for linear in linears):
        raise CheckpointError(
            calibration.file, "it must have activations of a linear that is quantised", rule="activations", got="none"
        )
