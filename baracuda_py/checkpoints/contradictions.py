"""Where a checkpoint's configuration and its headers disagree. The headers decide; a report names the difference."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from baracuda_py.checkpoints.checkpoint import Checkpoint, lost_parts
from baracuda_py.checkpoints.config import QuantizationConfig, WeightRule
from baracuda_py.checkpoints.folder import Folder
from baracuda_py.checkpoints.formats import PackedFormat, detect, geometry, packed_modules
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.errors import BaracudaError, UnsupportedCheckpoint

__all__ = ["Contradiction", "bits_refusal", "find_contradictions", "stored_bits"]

_F = PackedFormat
# (method, version) of a configuration -> the format that it names.
_LABELS = {
    ("awq", "gemm"): _F.AWQ_GEMM, ("awq", "gemv"): _F.AWQ_GEMV, ("awq", "gemv_fast"): _F.AWQ_GEMV_FAST,
    ("awq", "marlin"): _F.AWQ_MARLIN, ("awq", "llm-awq"): _F.LLM_AWQ_V2,
    ("gptq", "gptq"): _F.GPTQ_V1, ("gptq", "gptq_v2"): _F.GPTQ_V2, ("gptq", "marlin"): _F.AWQ_MARLIN,
}  # fmt: skip
_GPTQ = (_F.GPTQ_V1, _F.GPTQ_V2)
_GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)
_FLOATS = ("F16", "BF16", "F32")
_WORD_BITS = 32
_NO_ZEROS = ("symmetric", "zero points", "none are stored")
_NO_INDEX = ("act_order", "act-order", "no index of the groups (g_idx)")


@frozen
class Contradiction:
    """One thing that configuration and headers say differently.

    Attributes:
        rule: what it is about: `"format"`, `"bits"`, `"group_size"`, `"symmetric"`, `"act_order"`, `"skip list"`,
            `"activations"`.
        config: what the configuration says.
        headers: what the headers say.
        layers: that it is about.
    """

    rule: str
    config: str
    headers: str
    layers: tuple[str, ...]


def find_contradictions(
    checkpoint: Checkpoint, layers: Sequence[PackedLayer], refused: Sequence[str]
) -> tuple[Contradiction, ...]:
    """Every contradiction, those of one kind together.

    Args:
        checkpoint: opened.
        layers: that can be read.
        refused: names of those that cannot.
    """
    config = checkpoint.config
    if config is None:
        return ()
    found: dict[tuple[str, str, str], list[str]] = {}

    def note(layer: str, rule: str, config_says: str, headers_say: str) -> None:
        found.setdefault((rule, config_says, headers_say), []).append(layer)

    for layer in layers:
        for difference in _of_layer(config, config.rule(layer.name), layer):
            note(layer.name, *difference)
        if config.skips.match(layer.name):
            note(layer.name, "skip list", "not quantised", "packed")
    for name in refused:
        for difference in _of_refused(config, name, checkpoint.headers_of(name)):
            note(name, *difference)
    packed = {name.rpartition(".")[2] for name in checkpoint}
    for name, header in checkpoint.plain_headers.items():
        module, _, part = name.rpartition(".")
        dense = part == "weight" and len(header.shape) == 2 and header.dtype in _FLOATS
        # Projections of the same name are packed elsewhere; embeddings, heads and norms are never listed.
        named = dense and module.rpartition(".")[2] in packed
        if named and _applies(config, module) and not config.skips.match(module):
            note(module, "skip list", "quantised", f"a plain {header.dtype} weight")
    return tuple(Contradiction(*key, tuple(names)) for key, names in found.items())


def bits_refusal(path: str | os.PathLike[str], error: UnsupportedCheckpoint) -> UnsupportedCheckpoint:
    """`error`, or, if it refuses a number of bits that the headers contradict, one that says so."""
    if error.rule != "bits":
        return error
    folder = Folder.open(path)
    stored: dict[int, list[str]] = {}
    for module, parts in packed_modules(folder.tensors).items():
        bits = stored_bits(_headers(folder, module, parts))
        if bits is not None:
            stored.setdefault(bits, []).append(module)
    if set(stored) != {4}:
        return error
    count = len(stored[4])
    return UnsupportedCheckpoint(
        error.file, error.must, rule=error.rule, value=error.value,
        why=f"it contradicts the headers: {count} layer{'s' * (count != 1)} in 4 bits, such as {stored[4][0]}",
        fix="Correct the number of bits in the configuration",
    )  # fmt: skip


def stored_bits(parts: Mapping[str, TensorHeader]) -> int | None:
    """Bits of a zero point, and so of a weight, where the headers tell it without the group size."""
    for zeros_name, scales_name, axis in (("qzeros", "scales", 1), ("weight_zero_point", "weight_scale", 0)):
        zeros, scales = parts.get(zeros_name), parts.get(scales_name)
        if zeros is None or scales is None or zeros.dtype != "I32":
            continue
        if len(zeros.shape) != 2 or len(scales.shape) != 2 or zeros.shape[1 - axis] != scales.shape[1 - axis]:
            continue
        bits = _WORD_BITS * zeros.shape[axis]
        channels = scales.shape[axis]
        if channels and bits % channels == 0 and bits // channels in (2, 3, 4, 8):
            return bits // channels
    return None


def _headers(folder: Folder, module: str, parts: Iterable[str]) -> dict[str, TensorHeader]:
    return {part: folder.tensors[f"{module}.{part}" if module else part] for part in parts}


def _of_layer(config: QuantizationConfig, rule: WeightRule, layer: PackedLayer) -> Iterable[tuple[str, str, str]]:
    label = _LABELS.get((config.method, config.version), _F.COMPRESSED_TENSORS)
    if layer.format is not label:
        stored = "GPTQ" if layer.format in _GPTQ else layer.format.name
        yield "format", f"{config.method} {config.version}", stored
    if rule.symmetric is False and layer.symmetric:
        yield _NO_ZEROS
    # GPTQ stores zero points whatever the configuration says.
    if rule.symmetric and not layer.symmetric and layer.format not in _GPTQ:
        yield "symmetric", "no zero points", "zero points"
    if rule.act_order and not layer.act_order:
        yield _NO_INDEX
    if layer.act_order and not rule.act_order and layer.format not in _GPTQ:
        yield "act_order", "no act-order", "an index of the groups (g_idx)"
    if rule.activations:
        yield "activations", rule.activations, "4-bit weights alone, which are read for inputs in 16 bits"


def _of_refused(
    config: QuantizationConfig, name: str, headers: Mapping[str, TensorHeader]
) -> Iterable[tuple[str, str, str]]:
    try:
        rule = config.rule(name)
    except BaracudaError:
        rule = None
    bits = stored_bits(headers)
    configured = rule.bits if rule is not None else 4
    if bits is not None and bits != configured:
        yield "bits", f"{configured} bits", f"{bits} bits"
        return
    if rule is None:
        return
    sizes = _fitting_group_sizes(name, headers)
    if sizes and rule.group_size not in sizes:
        yield "group_size", f"groups of {rule.group_size}", f"groups of {' or '.join(map(str, sizes))}"
    try:
        format = detect(name, headers)
        found = geometry(name, format, headers, rule.group_size, "")
    except BaracudaError:
        return
    for part in lost_parts(rule, format, *found):
        yield _NO_ZEROS if part == "weight_zero_point" else _NO_INDEX


def _fitting_group_sizes(name: str, headers: Mapping[str, TensorHeader]) -> list[int]:
    """The usual group sizes with which the headers would make a layer."""
    fitting = []
    for size in _GROUP_SIZES:
        try:
            geometry(name, detect(name, headers), headers, size, "")
        except BaracudaError:
            continue
        fitting.append(size)
    return fitting


def _applies(config: QuantizationConfig, module: str) -> bool:
    """Whether a rule says that `module` is quantised."""
    return any(
        not rule.targets or "Linear" in rule.targets or targets.match(module)
        for rule, targets in zip(config.rules, config.targets, strict=True)
    )
