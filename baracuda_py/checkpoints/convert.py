"""A checkpoint in another format: layer by layer, everything else as it is.

    convert("models/some-awq", "models/some-ct", PackedFormat.COMPRESSED_TENSORS)

Exact conversions there and back give the same bytes. What is read is the checkpoint: files that an index does not list,
weights in other forms (pickles, GGUF, ONNX) and older quantisation files are left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from baracuda_py.checkpoints.checkpoint import Checkpoint, open_checkpoint
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.write import MAX_SHARD_BYTES, Saved, SavePlan, kept_files, plan_save
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

__all__ = ["convert", "plan_convert"]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: PackedFormat,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    lossy: bool = False,
    progress: Callable[[int], None] = lambda _nbytes: None,
) -> Saved:
    """Write the checkpoint `source` to the folder `target`; see `plan_convert`, and `SavePlan.run` for the rest."""
    plan = plan_convert(source, target, format, max_shard_bytes=max_shard_bytes, overwrite=overwrite, lossy=lossy)
    return plan.run(progress)


def plan_convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: PackedFormat,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    lossy: bool = False,
) -> SavePlan:
    """How `source` will be written in another format; no weight is read.

    Packed layers are converted. Other tensors keep their bytes, config.json all but its quantization_config, and the
    other files of the folder (a tokenizer) are copied; subfolders and hidden files are not.

    Args:
        source: folder, or safetensors file.
        target: a folder that is empty or absent; with `overwrite` one that holds a checkpoint, even `source` itself.
        format, max_shard_bytes, overwrite: as for `plan_save`.
        lossy: as for `plan_save`; and whether the configuration may lose that activations are quantised too.

    Raises:
        CheckpointError, UnsupportedCheckpoint: `source` is damaged or has no packed layer, or cannot be read or written
            in that format.
    """
    checkpoint = open_checkpoint(source)
    if not len(checkpoint):
        raise CheckpointError(
            checkpoint.folder.path, "a checkpoint that is converted must have a packed layer", rule="layers",
            got="none", fix="Pack plain weights with `baracuda-py quantize`",
        )  # fmt: skip
    if not lossy:
        _check_activations(checkpoint)
    config = checkpoint.folder.json("config.json")
    return plan_save(
        target, [checkpoint[name] for name in checkpoint], plain=checkpoint.plain_headers, format=format,
        config=None if config is None else config[1], files=kept_files(checkpoint.folder),
        max_shard_bytes=max_shard_bytes, overwrite=overwrite, lossy=lossy,
    )  # fmt: skip


def _check_activations(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if config is None:
        return
    for name in checkpoint:
        rule = config.rule(name)
        if rule.activations:
            raise UnsupportedCheckpoint(
                config.file, "a layer that is converted must have quantised weights alone", tensor=name,
                rule="activations", got=rule.activations, why="what is written says nothing of activations",
                fix="Pass lossy=True (--lossy) for 4-bit weights and activations that are not quantised",
            )  # fmt: skip
