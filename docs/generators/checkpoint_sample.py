"""What `baracuda-py inspect` prints, for the guide to checkpoints: of a folder made here, by the command's own code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from baracuda_py.checkpoints.formats import Geometry, PackedFormat, expected_parts
from baracuda_py.checkpoints.inspection import inspect
from baracuda_py.cli.inspect import show
from generators.measured import replaced

__all__ = ["with_inspection"]

_DEVICE = "sm_90"
_HIDDEN, _WIDTH, _LAYERS = 3584, 18944, 28
_GROUP = 128
_COLUMNS = "100"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NBYTES = {"I32": 4, "F16": 2, "BF16": 2}
_LINEARS = {
    "self_attn.qkv_proj": (_HIDDEN, _HIDDEN + 2 * 512), "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_HIDDEN, _WIDTH), "mlp.up_proj": (_HIDDEN, _WIDTH), "mlp.down_proj": (_WIDTH, _HIDDEN),
}  # fmt: skip
_CONFIG = {
    "num_attention_heads": 28, "num_key_value_heads": 4,
    "quantization_config": {
        "quant_method": "awq", "bits": 4, "group_size": _GROUP, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    },
}  # fmt: skip


def with_inspection(guide: str) -> str:
    """The guide with the section `inspection` made anew."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "some-awq")
        folder.mkdir()
        _write(folder)
        screen = _Screen()
        with contextlib.redirect_stdout(screen), mock.patch.dict(os.environ, COLUMNS=_COLUMNS, TERM="xterm"):
            show(inspect(folder, _DEVICE, m=(1, 512)))
    return replaced(guide, "inspection", f"```text\n{_ANSI.sub('', screen.getvalue())}```\n")


class _Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def _tensors() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """A mixed model: name, dtype and shape. One layer is GPTQ, one projection plain, and one tensor is too short."""
    for layer in range(_LAYERS):
        for module, (ic, oc) in _LINEARS.items():
            name = f"model.layers.{layer}.{module}"
            if (layer, module) == (0, "self_attn.o_proj"):
                yield f"{name}.weight", "F16", (oc, ic)
                continue
            format = PackedFormat.GPTQ_V1 if (layer, module) == (3, "mlp.down_proj") else PackedFormat.AWQ_GEMM
            for part, must in expected_parts(format, Geometry(ic, oc, _GROUP)).items():
                rows = must.shape[0] - ((layer, module, part) == (5, "mlp.up_proj", "scales"))
                if must.needed or (part == "bias" and module == "self_attn.qkv_proj"):
                    yield f"{name}.{part}", must.dtypes[0], (rows, *must.shape[1:])
        yield f"model.layers.{layer}.input_layernorm.weight", "F16", (_HIDDEN,)
    yield "model.embed_tokens.weight", "F16", (152064, _HIDDEN)


def _write(folder: Path) -> None:
    """The folder; its data are a hole."""
    header, offset = {}, 0
    for name, dtype, shape in _tensors():
        size = _NBYTES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
