"""Checkpoints written by the golden vectors' generator: one nibble at a time, and with nothing of the package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
from attrs import frozen

GENERATOR = Path(__file__).resolve().parent.parent / "golden" / "generate.py"


def _load():
    spec = importlib.util.spec_from_file_location("golden_generate", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_hand = _load()

NAME = "model.layers.3.mlp.up_proj"
# Sizes that every format can have: Marlin's are the coarsest.
MARLIN_SIZES = (256, 256)


@frozen(eq=False)
class Weight:
    """A random weight: q (ic, oc), z (groups, oc) or None, scales (groups, oc) as floats, g_idx a list or None."""

    q: np.ndarray
    z: np.ndarray | None
    s: object  # by_hand.Half
    group_size: int
    g_idx: list[int] | None = None

    @property
    def group(self):
        return self.q.shape[0] if self.group_size == -1 else self.group_size

    @property
    def exact(self):
        """(ic, oc), float64."""
        rows = np.arange(self.q.shape[0]) // self.group if self.g_idx is None else np.array(self.g_idx)
        z = np.full(self.s.values.shape, 8) if self.z is None else self.z
        return (self.q - z[rows]) * self.s.values[rows]


def weight(
    seed, ic=64, oc=16, group_size=32, *, symmetric=False, least_zero=0, act_order=False, dtype="F16", bits=None
):
    """A weight with every nibble random; zero points run through all of least_zero..15 if there are enough of them."""
    random = np.random.default_rng(seed)
    groups = 1 if group_size == -1 else ic // group_size
    q = random.integers(0, 16, (ic, oc))
    z = None
    if not symmetric:
        all_of_them = np.resize(np.arange(least_zero, 16), groups * oc)
        z = random.permutation(all_of_them).reshape(groups, oc)
    bits = {"F16": 10, "BF16": 7}[dtype] if bits is None else bits
    fractions = 1 + random.integers(0, 1 << bits, (groups, oc)) / (1 << bits)
    s = by_hand.Half(dtype, fractions * 2.0 ** random.integers(-8, -4, (groups, oc)))
    g_idx = None
    if act_order:
        g_idx = random.permutation(np.repeat(np.arange(groups), ic // groups)).tolist()
    return Weight(q, z, s, group_size, g_idx)


def packed(format, made, bias=None):
    """The tensors of a weight in a format."""
    order = {} if made.g_idx is None else {"g_idx": made.g_idx}
    tensors = by_hand.FORMATS[format](made.q, made.z, made.s, made.group, **order)
    return tensors | ({} if bias is None else {"bias": by_hand.Tensor("F16", bias.astype("<f2").view("<u2"))})


def write(folder, format, made, *, bias=None, name=NAME, settings=None, more=None):
    """A checkpoint folder with that one layer, and `more` tensors by full name."""
    tensors = {f"{name}.{part}": tensor for part, tensor in packed(format, made, bias).items()} | (more or {})
    by_hand.write_safetensors(folder / "model.safetensors", tensors)
    config = by_hand.config(
        format, made.group_size, symmetric=made.z is None, act_order=made.g_idx is not None
    ) | (settings or {})  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def values(tensor):
    """What a by-hand tensor holds, as float64 or integers."""
    if tensor.dtype == "F16":
        return tensor.bits.view("<f2").astype(np.float64)
    if tensor.dtype == "BF16":
        return (tensor.bits.astype("<u4") << 16).view("<f4").astype(np.float64)
    return tensor.bits.view({"I32": "<i4", "I16": "<i2", "I64": "<i8"}[tensor.dtype])
