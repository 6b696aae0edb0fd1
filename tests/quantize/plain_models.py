"""Small checkpoints of plain weights, with blocks like Llama's; and what such a block computes, in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

HIDDEN, INTER, VOCABULARY = 128, 256, 64
BLOCK = "model.layers.0."
Q, K, V, O = (f"{BLOCK}self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"{BLOCK}mlp.{name}_proj" for name in ("gate", "up", "down"))
FIRST, SECOND = f"{BLOCK}input_layernorm", f"{BLOCK}post_attention_layernorm"
LINEARS = (Q, K, V, O, GATE, UP, DOWN)
Tensors = dict[str, NDArray[Any]]


def tensors_of(
    *, kv: int = HIDDEN, blocks: int = 1, bias: bool = False, dtype: Any = np.float16, seed: int = 0
) -> Tensors:
    """A model; with `kv` below HIDDEN several query heads read a value head. Four channels of each norm are large."""
    rng = np.random.default_rng(seed)
    made: Tensors = {}
    for block in range(blocks):
        part: Tensors = {}
        sizes = {
            Q: (HIDDEN, HIDDEN), K: (kv, HIDDEN), V: (kv, HIDDEN), O: (HIDDEN, HIDDEN), GATE: (INTER, HIDDEN),
            UP: (INTER, HIDDEN), DOWN: (HIDDEN, INTER),
        }  # fmt: skip
        for name, (oc, ic) in sizes.items():
            part[f"{name}.weight"] = rng.standard_normal((oc, ic)) / np.sqrt(ic)
            if bias:
                part[f"{name}.bias"] = 0.1 * rng.standard_normal(oc)
        for norm in (FIRST, SECOND):
            weight = 1 + 0.1 * rng.standard_normal(HIDDEN)
            weight[rng.choice(HIDDEN, 4, replace=False)] *= 40
            part[f"{norm}.weight"] = weight
        made |= {name.replace(".0.", f".{block}."): tensor for name, tensor in part.items()}
    made["model.embed_tokens.weight"] = rng.standard_normal((VOCABULARY, HIDDEN))
    made["model.norm.weight"] = np.ones(HIDDEN)
    made["lm_head.weight"] = rng.standard_normal((VOCABULARY, HIDDEN))
    return {name: tensor.astype(dtype) for name, tensor in made.items()}


def write(folder: Path, tensors: Mapping[str, NDArray[Any]], **config: Any) -> Path:
    """A checkpoint folder, with a tokenizer beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN} | config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def attention(tensors: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """What each linear of the attention reads, and `"y"`; every token attends to itself alone. x: (tokens, HIDDEN)."""
    read = _normalised(x) * _at(tensors, FIRST)
    heads = _linear(tensors, V, read)
    repeats = HIDDEN // heads.shape[1]
    mixed = np.repeat(heads, repeats, axis=1)
    return {Q: read, K: read, V: read, O: mixed, "y": _linear(tensors, O, mixed)}


def mlp(tensors: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """What each linear of the MLP reads, and `"y"`."""
    read = _normalised(x) * _at(tensors, SECOND)
    gate = _linear(tensors, GATE, read)
    product = gate / (1 + np.exp(-gate)) * _linear(tensors, UP, read)
    return {GATE: read, UP: read, DOWN: product, "y": _linear(tensors, DOWN, product)}


def _at(tensors: Mapping[str, NDArray[Any]], module: str) -> NDArray[np.float64]:
    return tensors[f"{module}.weight"].astype(np.float64)


def _linear(tensors: Mapping[str, NDArray[Any]], module: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    y = x @ _at(tensors, module).T
    bias = tensors.get(f"{module}.bias")
    return y if bias is None else y + bias.astype(np.float64)


def _normalised(x: NDArray[Any]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.square(wide).mean(axis=1, keepdims=True))
