"""Checkpoints of headers: files as long as their tensors, which are holes on disk. Shapes are from the format table."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

__all__ = ["AWQ", "COMPRESSED", "GPTQ", "linear", "write_folder"]

_NBYTES = {"F16": 2, "BF16": 2, "F32": 4, "I32": 4, "I16": 2, "I64": 8, "U8": 1}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
_WEIGHTS = {"num_bits": 4, "type": "int", "group_size": 128, "strategy": "group", "symmetric": True}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS}},
}  # fmt: skip


def linear(format: str, ic: int, oc: int, group: int = 128, *, bias: str = "", scales: str = "F16", bits: int = 4):
    """The tensors of a layer: part -> (dtype, shape)."""
    groups = 1 if group == -1 else ic // group
    each = 32 // bits
    multiple = {64: 2, 32: 4, 16: 4}.get(group, 1)
    width = math.ceil(math.ceil(groups / 8) / multiple) * multiple
    made = {
        "awq_gemm": {"qweight": ("I32", [ic, oc // each]), "qzeros": ("I32", [groups, oc // each]),
                     "scales": (scales, [groups, oc])},
        "awq_gemv": {"qweight": ("I32", [oc, ic // 8]), "qzeros": ("I32", [oc, width]),
                     "scales": (scales, [oc, 8 * width])},
        "awq_gemv_fast": {"qweight": ("I16", [oc // 4, ic]), "qzeros": (scales, [8 * width, oc]),
                          "scales": (scales, [8 * width, oc])},
        "llm_awq_v2": {"qweight": ("I16", [oc // 4, ic]), "scaled_zeros": (scales, [8 * width, oc]),
                       "scales": (scales, [8 * width, oc])},
        "awq_marlin": {"qweight": ("I32", [ic // 16, 2 * oc]), "scales": (scales, [groups, oc])},
        "gptq": {"qweight": ("I32", [ic // each, oc]), "qzeros": ("I32", [groups, oc // each]),
                 "scales": (scales, [groups, oc]), "g_idx": ("I32", [ic])},
        "compressed_tensors": {"weight_packed": ("I32", [oc, ic // 8]), "weight_scale": (scales, [oc, groups]),
                               "weight_shape": ("I64", [2])},
        "asymmetric": {"weight_packed": ("I32", [oc, ic // 8]), "weight_scale": (scales, [oc, groups]),
                       "weight_zero_point": ("I32", [oc // 8, groups])},
    }[format]  # fmt: skip
    return made | ({"bias": (bias, [oc])} if bias else {})


def write_folder(folder: Path, layers: dict, settings: dict | None, plain: dict | None = None, **model) -> Path:
    """A folder of one file: layers by name, further tensors by name -> (dtype, shape), and config.json."""
    tensors = {f"{name}.{part}": header for name, parts in layers.items() for part, header in parts.items()}
    found, offset = {}, 0
    for name, (dtype, shape) in {**tensors, **(plain or {})}.items():
        end = offset + math.prod(shape) * _NBYTES[dtype]
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(found).encode()
    folder.mkdir(exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    config = {} if settings is None else {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps({**model, **config}))
    return folder
