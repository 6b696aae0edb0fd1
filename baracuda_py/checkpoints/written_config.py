"""The quantization_config of a checkpoint that is written, for AWQ GEMM and for compressed-tensors.

Sources: AutoAWQ, awq/models/_config.py; compressed-tensors, quantization/quant_config.py and quant_args.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from baracuda_py.checkpoints.formats import PackedFormat

__all__ = ["CONFIG_KEYS", "LayerFacts", "quantization_config"]

# What a config.json may hold about quantisation.
CONFIG_KEYS = ("quantization_config", "compression_config")
# Repetitions in a pattern; readers that guard against slow patterns allow a few.
_NUMBERS_LIMIT = 3


@frozen
class LayerFacts:
    """What a configuration has to say of a layer, see `PackedLayer`; and how many tensors it has."""

    name: str
    group_size: int
    symmetric: bool
    act_order: bool
    tensors: int = 0


def quantization_config(
    format: PackedFormat, layers: Sequence[LayerFacts], dense: Iterable[str]
) -> dict[str, Any]:
    """What config.json says about `layers`.

    Args:
        format: AWQ_GEMM, whose layers have one group size, or COMPRESSED_TENSORS.
        layers: at least one.
        dense: modules that are not quantised and have a weight of two dimensions.
    """
    if format is PackedFormat.AWQ_GEMM:
        (group_size,) = {layer.group_size for layer in layers}
        return {
            "quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": list(dense) or None,
        }  # fmt: skip
    kinds: dict[LayerFacts, list[str]] = {}
    kinds_of_pattern: dict[str, set[LayerFacts]] = {}
    for layer in layers:
        kind = LayerFacts("", layer.group_size, layer.symmetric, layer.act_order)
        kinds.setdefault(kind, []).append(layer.name)
        kinds_of_pattern.setdefault(_pattern(layer.name), set()).add(kind)
    groups: dict[str, Any] = {}
    for kind, names in kinds.items():
        patterns = [_pattern(name) if len(kinds_of_pattern[_pattern(name)]) == 1 else _exactly(name) for name in names]
        targets = ["Linear"] if len(kinds) == 1 else list(dict.fromkeys(patterns))
        groups[f"group_{len(groups)}"] = _group(kind, targets)
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": list(dense), "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def _group(kind: LayerFacts, targets: list[str]) -> Mapping[str, Any]:
    one_group = kind.group_size == -1
    weights = {
        "num_bits": 4, "type": "int", "symmetric": kind.symmetric, "strategy": "channel" if one_group else "group",
        "group_size": None if one_group else kind.group_size, "actorder": "group" if kind.act_order else None,
        "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "block_structure": None,
    }  # fmt: skip
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def _exactly(name: str) -> str:
    """A pattern for this name alone; a plain name would match a longer one that it is a part of."""
    return f"re:^{re.escape(name)}$"


def _pattern(name: str) -> str:
    """A pattern for the same module of every block and expert."""
    parts = name.split(".")
    if sum(part.isdecimal() for part in parts) > _NUMBERS_LIMIT:
        return _exactly(name)
    return "re:^" + r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in parts) + "$"
