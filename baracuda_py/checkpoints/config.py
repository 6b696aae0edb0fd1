"""What a checkpoint says about its quantisation: `quantization_config` of config.json, or the older files.

    config.json             quantization_config (compressed-tensors once wrote compression_config)
    quant_config.json       AutoAWQ: w_bit, q_group_size, zero_point, version
    quantize_config.json    AutoGPTQ: bits, group_size, desc_act, sym, checkpoint_format; GPTQModel: format
    hf_quant_config.json    ModelOpt, whose W4A16_AWQ is another format: refused by name

The skip lists (modules_to_not_convert, ignore) are kept for a report. They are often wrong: a layer is quantised if it
has packed tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import field, frozen

from baracuda_py.checkpoints.folder import Folder
from baracuda_py.checkpoints.patterns import READ, Patterns
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

__all__ = ["QuantizationConfig", "WeightRule", "read_config"]

_OLD_FILES = ("quant_config.json", "quantize_config.json")
_MODELOPT = "hf_quant_config.json"
_METHODS = ("awq", "gptq", "compressed-tensors")
_AWQ_VERSIONS = ("gemm", "gemv", "gemv_fast", "marlin", "llm-awq")
_GPTQ_FORMATS = ("gptq", "gptq_v2", "marlin")
_PACKED = "pack-quantized"
_REGEX = "re:"


@frozen
class WeightRule:
    """How the weights of some modules are quantised.

    Attributes:
        bits: of a weight.
        group_size: input channels that share a scale; -1: all of them.
        symmetric: no zero points; None when the configuration does not say.
        act_order: the groups are in order of activation size (`desc_act`, `actorder`), listed in g_idx.
        targets: the modules: names, class names, or `re:` patterns; empty: all.
        activations: what else is to be quantised while the model runs, e.g. `"8-bit float input_activations"`, which
            is not done here; `""` if nothing.
        refusal: why such weights are not read; `""` if they are.
    """

    bits: int
    group_size: int
    symmetric: bool | None = None
    act_order: bool = False
    targets: tuple[str, ...] = ()
    activations: str = ""
    refusal: str = ""


@frozen
class QuantizationConfig:
    """What a checkpoint says.

    Attributes:
        method: `"awq"`, `"gptq"` or `"compressed-tensors"`.
        version: AWQ: `"gemm"`, `"gemv"`, `"gemv_fast"`, `"marlin"` or `"llm-awq"`; GPTQ: `"gptq"` (v1), `"gptq_v2"` or
            `"marlin"`; compressed-tensors: its format. The headers decide, but for GPTQ v1 and v2.
        rules: one, or for compressed-tensors one of each of its config_groups.
        skipped: names and `re:` patterns of modules that are said not to be quantised.
        file: where it was read.
    """

    method: str
    version: str
    rules: tuple[WeightRule, ...]
    skipped: tuple[str, ...]
    file: Path
    raw: Mapping[str, Any] = field(repr=False, eq=False, factory=dict)

    @property
    def group_size(self) -> int:
        """Of the first rule."""
        return self.rules[0].group_size

    @property
    def gptq_v2(self) -> bool:
        """Whether GPTQ's zero points are stored as they are, not less one."""
        return self.version == "gptq_v2"

    @cached_property
    def targets(self) -> tuple[Patterns, ...]:
        """The targets of each rule."""
        return tuple(Patterns(rule.targets, self.file) for rule in self.rules)

    @cached_property
    def skips(self) -> Patterns:
        """What `skipped` lists."""
        return Patterns(self.skipped, self.file)

    def rule(self, module: str) -> WeightRule:
        """The rule of `module`.

        Raises:
            CheckpointError: no rule or several rules fit, or patterns of targets take too long.
            UnsupportedCheckpoint: weights that are not read, such as 8-bit ones; patterns that could take forever.
        """
        found = self.rules
        if len(found) > 1:
            for pattern in (pattern for targets in self.targets for pattern in targets.unread):
                raise UnsupportedCheckpoint(
                    self.file, "a pattern of targets must be one that is matched in a short time", tensor=module,
                    rule="pattern", got=f"{pattern[:64]!r}", why=READ,
                )  # fmt: skip
            named = [rule for rule, targets in zip(found, self.targets, strict=True) if targets.match(module)]
            # What is left are class names such as "Linear", and every packed layer is a linear layer.
            found = tuple(named or [rule for rule in found if "Linear" in rule.targets])
        if len(found) != 1:
            raise CheckpointError(
                self.file, "one of config_groups must apply to the layer", tensor=module, rule="config_groups",
                got=f"{len(found)} of {len(self.rules)}",
            )  # fmt: skip
        if found[0].refusal:
            raise UnsupportedCheckpoint(self.file, found[0].refusal, tensor=module, rule="config_groups")
        return found[0]


def read_config(folder: Folder) -> QuantizationConfig | None:
    """The configuration beside the weights; None if there is none, as for a model that is not quantised.

    Raises:
        CheckpointError: a configuration of another type than it must be.
        UnsupportedCheckpoint: another method, version or number of bits; rotations of the input while the model runs.
    """
    found = folder.json("config.json")
    if found is not None:
        file, content = found
        for key in ("quantization_config", "compression_config"):
            if content.get(key) is not None:
                return _parsed(file, content[key])
    for name in _OLD_FILES:
        found = folder.json(name)
        if found is not None:
            return _parsed(*found)
    found = folder.json(_MODELOPT)
    if found is not None:
        raise _modelopt(found[0], found[1].get("quantization"))
    return None


def _modelopt(file: Path, settings: Any) -> UnsupportedCheckpoint:
    algorithm = settings.get("quant_algo") if isinstance(settings, dict) else None
    return UnsupportedCheckpoint(
        file, "the format must be one that is known here", rule="quant_method",
        got=f"ModelOpt {algorithm}" if isinstance(algorithm, str) else "ModelOpt",
        why="despite its name ModelOpt's W4A16_AWQ is another format: pre_quant_scale and no zero points",
    )  # fmt: skip


class _Fields:
    """The entries of an object in a file, each checked as it is taken."""

    def __init__(self, file: Path, found: Any, where: str) -> None:
        if not isinstance(found, dict):
            raise CheckpointError(file, f"{where} must be an object", rule=where, got=type(found).__name__)
        self.file, self.found = file, found

    def get(self, names: Sequence[str] | str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The first of `names` that is there and not null, which must be a `kind`."""
        for name in (names,) if isinstance(names, str) else names:
            value = self.found.get(name)
            if value is None:
                continue
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
                kinds = kind if isinstance(kind, tuple) else (kind,)
                must = " or ".join(each.__name__ for each in kinds)
                raise CheckpointError(self.file, f"{name} must be {must}", rule=name, got=type(value).__name__)
            return value
        return default

    def names(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.get(name, list, [])
        if not all(isinstance(item, str) for item in value):
            raise CheckpointError(self.file, f"{name} must be a list of strings", rule=name)
        return tuple(value)

    def group_size(self, names: Sequence[str], default: int | None) -> int:
        """A positive number, or -1."""
        value = self.get(names, int, default)
        if value is None or (value <= 0 and value != -1):
            raise CheckpointError(
                self.file, f"{names[0]} must be a positive number, or -1", rule=names[0], got=str(value)
            )
        return value

    def refuse(self, rule: str, must: str, value: Any, *, why: str = "") -> UnsupportedCheckpoint:
        """The error that `value` is not served."""
        return UnsupportedCheckpoint(self.file, must, rule=rule, value=value, got=str(value)[:80], why=why)


def _parsed(file: Path, found: Any) -> QuantizationConfig:
    fields = _Fields(file, found, "quantization_config")
    gptq_keys = "desc_act" in fields.found or "damp_percent" in fields.found
    method = fields.get("quant_method", str, "gptq" if gptq_keys else "awq").lower()
    if method == "modelopt":
        raise _modelopt(file, found)
    if method not in _METHODS:
        raise fields.refuse("quant_method", f"quant_method must be {', '.join(_METHODS)}", method)
    _check_rotations(fields)
    if method == "compressed-tensors":
        return _compressed_tensors(fields)
    bits = fields.get(("bits", "w_bit"), int, None)
    if bits != 4:
        raise fields.refuse("bits", "weights must have 4 bits", bits)
    group_size = fields.group_size(("group_size", "q_group_size"), None)
    if method == "awq":
        version = fields.get("version", str, "gemm").lower()
        if fields.get("backend", str, "").lower() == "llm-awq":
            version = "llm-awq"
        if version not in _AWQ_VERSIONS:
            raise fields.refuse("version", f"the version must be {', '.join(_AWQ_VERSIONS)}", version)
        zero_point = fields.get("zero_point", bool, None)
        rule = WeightRule(bits, group_size, None if zero_point is None else not zero_point)
        return QuantizationConfig("awq", version, (rule,), fields.names("modules_to_not_convert"), file, found)
    return _gptq(fields, bits, group_size)


def _check_rotations(fields: _Fields) -> None:
    """Refuse weights that are right for rotated inputs: compressed-tensors' transform_config, GPTQModel's rotation."""
    why = "the stored weights are those of rotated inputs, and nothing here rotates inputs"
    transforms = fields.get("transform_config", dict, {})
    if transforms.get("config_groups", transforms):
        raise fields.refuse("transform_config", "transform_config must be empty", transforms, why=why)
    for settings in (fields.found, fields.found.get("meta")):
        if isinstance(settings, dict) and settings.get("rotation"):
            raise fields.refuse("rotation", "there must be no rotation", settings["rotation"], why=why)


def _gptq(fields: _Fields, bits: int, group_size: int) -> QuantizationConfig:
    version = fields.get(("checkpoint_format", "format"), str, "gptq").lower()
    if fields.get("is_marlin_format", bool, False):
        version = "marlin"
    if version not in _GPTQ_FORMATS:
        raise fields.refuse("checkpoint_format", f"checkpoint_format must be {', '.join(_GPTQ_FORMATS)}", version)
    overrides = fields.get("dynamic", dict, {})
    if any(not name.startswith("-:") for name in overrides):  # "-:" skips modules, anything else changes their bits
        raise fields.refuse("dynamic", "every layer must be quantised alike", "dynamic overrides")
    rule = WeightRule(bits, group_size, fields.get("sym", bool, None), fields.get("desc_act", bool, False))
    skipped = fields.names("modules_to_not_convert") + tuple(f"{_REGEX}{name[2:]}" for name in overrides)
    return QuantizationConfig("gptq", version, (rule,), skipped, fields.file, fields.found)


def _compressed_tensors(fields: _Fields) -> QuantizationConfig:
    format = fields.get("format", str, _PACKED)
    if format not in (_PACKED, "mixed-precision"):
        raise fields.refuse("format", f"the format must be {_PACKED}", format)
    groups = fields.get("config_groups", dict, {})
    if not groups:
        raise CheckpointError(fields.file, "config_groups must have an entry", rule="config_groups", got="none")
    rules = tuple(_weight_rule(_Fields(fields.file, group, "config_groups"), format) for group in groups.values())
    return QuantizationConfig("compressed-tensors", format, rules, fields.names("ignore"), fields.file, fields.found)


def _weight_rule(group: _Fields, format: str) -> WeightRule:
    weights = _Fields(group.file, group.get("weights", dict, {}), "weights")
    bits = weights.get("num_bits", int, 0)
    strategy = weights.get("strategy", str, "group")
    own_format = group.get("format", str, _PACKED if format == "mixed-precision" else format)
    kind = weights.get("type", str, "int")
    refusal = ""
    if (bits, kind, own_format) != (4, "int", _PACKED):
        refusal = f"weights must be 4-bit integers in {_PACKED}, not {bits}-bit {kind} in {own_format}"
    elif strategy not in ("group", "channel"):
        refusal = f"the strategy must be group or channel, not {strategy}"
    group_size = weights.group_size(("group_size",), -1 if refusal or strategy == "channel" else None)
    # "weight" and "static" order the channels only while quantising; the groups on disk are in order.
    act_order = weights.get("actorder", (str, bool), "")
    return WeightRule(
        bits, group_size, weights.get("symmetric", bool, None),
        act_order is True or (isinstance(act_order, str) and act_order.lower() in ("group", "dynamic")),
        group.names("targets"), _activations(group), refusal,
    )  # fmt: skip


def _activations(group: _Fields) -> str:
    found = []
    for name in ("input_activations", "output_activations"):
        settings = group.get(name, dict, {})
        if settings:
            fields = _Fields(group.file, settings, name)
            found.append(f"{fields.get('num_bits', int, 8)}-bit {fields.get('type', str, 'int')} {name}")
    return " and ".join(found)
