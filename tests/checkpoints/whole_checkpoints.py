"""Valid checkpoints in every format and storage, small, for the fuzzers to start from."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
from attrs import frozen

from baracuda_py.checkpoints import codecs
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.nibbles import Nibbles

__all__ = ["BASES", "CONFIG", "INDEX", "Base", "join", "whole"]

IC, OC, GROUP = 256, 256, 128  # the smallest that Marlin has
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
STORAGES = ("single", "sharded", "hub", "old config")
_NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")


@frozen
class Base:
    """What a case starts from: a format (None: a layer of each AWQ format), and how it is stored."""

    format: PackedFormat | None
    storage: str

    def __str__(self) -> str:
        return f"{self.format.value if self.format else 'mixed'}, {self.storage}"


BASES = tuple(Base(format, storage) for format in (*PackedFormat, None) for storage in STORAGES)


def join(header: bytes, data: bytes) -> bytes:
    """A safetensors file of this header and data."""
    return len(header).to_bytes(8, "little") + header + data


@cache
def _layer(format: PackedFormat, seed: int) -> dict[str, np.ndarray]:
    """The tensors of a valid random layer."""
    source = np.random.default_rng(seed)
    groups = IC // GROUP
    symmetric = format is PackedFormat.AWQ_MARLIN or (format is PackedFormat.COMPRESSED_TENSORS and seed % 2 == 0)
    q = source.integers(0, 16, (IC, OC), np.uint8)
    z = None if symmetric else source.integers(1, 16, (groups, OC), np.uint8)
    scales = source.uniform(0.01, 0.02, (groups, OC)).astype(np.float16)
    ordered = format not in (PackedFormat.GPTQ_V1, PackedFormat.GPTQ_V2) or seed % 2 == 0
    g_idx = None if ordered else source.permutation(np.arange(IC, dtype=np.int32) // GROUP)
    tensors = codecs.pack(format, Nibbles.of(q, z, scales, g_idx))
    return {part: np.ascontiguousarray(array) for part, array in tensors.items()}


_DTYPES = {"float16": "F16", "int32": "I32", "int16": "I16", "int64": "I64", "float32": "F32", "bfloat16": "BF16"}


def _file(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, array in tensors.items():
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    return join(json.dumps({"__metadata__": {"format": "pt"}, **header}).encode(), data)


def _settings(format: PackedFormat | None) -> dict[str, Any]:
    common = {"bits": 4, "group_size": GROUP}
    if format in (PackedFormat.GPTQ_V1, PackedFormat.GPTQ_V2):
        version = "gptq" if format is PackedFormat.GPTQ_V1 else "gptq_v2"
        return {"quant_method": "gptq", **common, "desc_act": True, "sym": False, "checkpoint_format": version}
    if format is PackedFormat.COMPRESSED_TENSORS:
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": None}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
        skipped = ["lm_head", "re:.*embed_tokens"]
        return {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, "ignore": skipped
        }  # fmt: skip
    version = "gemm" if format is None else format.value.removeprefix("awq_")
    more = {"backend": "llm-awq"} if format is PackedFormat.LLM_AWQ_V2 else {"version": version}
    return {"quant_method": "awq", **common, "zero_point": True, "modules_to_not_convert": ["lm_head"], **more}


@cache
def whole(base: Base) -> dict[str, bytes]:
    """The files by name."""
    formats = [base.format] * 2 if base.format else [f for f in PackedFormat if "awq" in f.value]
    layers = [_layer(format, seed) for seed, format in enumerate(formats)]
    names = _NAMES if base.format else [f"model.layers.{number}.proj" for number in range(len(formats))]
    shards = [
        {f"{name}.{part}": array for part, array in layer.items()} for name, layer in zip(names, layers, strict=True)
    ]
    shards[0][f"{names[0]}.bias"] = np.linspace(-1, 1, OC, dtype=np.float16)
    shards[0]["model.layers.0.mlp.act.scales"] = np.linspace(0.5, 2, IC, dtype=np.float16)
    shards[-1]["model.norm.weight"] = np.ones(64, np.float32)
    shards[-1]["lm_head.weight"] = np.ones((16, 64), np.float16)
    files = {}
    if base.storage in ("sharded", "hub"):
        where = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            files[file] = _file(shard)
            where |= dict.fromkeys(shard, file)
        files[INDEX] = json.dumps({"metadata": {"total_size": 1}, "weight_map": where}).encode()
    else:
        files["model.safetensors"] = _file({name: array for shard in shards for name, array in shard.items()})
    old = "quantize_config.json" if _settings(base.format)["quant_method"] == "gptq" else "quant_config.json"
    if base.storage == "old config":
        files[old] = json.dumps(_settings(base.format)).encode()
    else:
        model = {"hidden_size": 256, "num_attention_heads": 4, "quantization_config": _settings(base.format)}
        files[CONFIG] = json.dumps(model).encode()
    return files
