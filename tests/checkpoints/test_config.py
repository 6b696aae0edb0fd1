"""Configurations: each writer's spelling, what is refused by name, and names matched by whole components."""

from __future__ import annotations

import json
import time

import pytest
from checkpoint_files import NAME, by_hand, packed, weight, write
from hypothesis import given
from hypothesis import strategies as st

from baracuda_py import checkpoints
from baracuda_py.checkpoints.patterns import matches
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "GEMM"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}


def compressed(**weights):
    settings = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": settings}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


def opened(folder, settings, *, file="config.json", format="awq_gemm"):
    write(folder, format, weight(0, 64, 16, 32))
    (folder / "config.json").unlink()
    content = {"quantization_config": settings} if file == "config.json" else settings
    (folder / file).write_text(json.dumps(content))
    return checkpoints.open(folder)


@pytest.mark.parametrize(
    ("settings", "file", "expected"),
    [
        (AWQ, "config.json", ("awq", "gemm", 32, False)),
        ({**AWQ, "version": "gemv_fast"}, "config.json", ("awq", "gemv_fast", 32, False)),
        ({**AWQ, "backend": "llm-awq"}, "config.json", ("awq", "llm-awq", 32, False)),
        ({"w_bit": 4, "q_group_size": 32, "version": "GEMM"}, "quant_config.json", ("awq", "gemm", 32, None)),
        ({"w_bit": 4, "q_group_size": 32, "zero_point": False}, "quantize_config.json", ("awq", "gemm", 32, True)),
        (GPTQ, "config.json", ("gptq", "gptq", 32, True)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, "config.json", ("gptq", "gptq_v2", 32, True)),
        ({**GPTQ, "format": "gptq_v2"}, "config.json", ("gptq", "gptq_v2", 32, True)),
        ({**GPTQ, "checkpoint_format": None, "format": "GPTQ_V2"}, "config.json", ("gptq", "gptq_v2", 32, True)),
        ({**GPTQ, "checkpoint_format": "gptq", "format": "gptq_v2"}, "config.json", ("gptq", "gptq", 32, True)),
        ({"bits": 4, "group_size": -1, "desc_act": True}, "quantize_config.json", ("gptq", "gptq", -1, None)),
        ({**GPTQ, "dynamic": {"-:.*lm_head": {}}}, "config.json", ("gptq", "gptq", 32, True)),
        ({**GPTQ, "rotation": None, "meta": {"rotation": ""}}, "config.json", ("gptq", "gptq", 32, True)),
        ({**compressed(), "transform_config": {}}, "config.json",
         ("compressed-tensors", "pack-quantized", 32, False)),
        ({**compressed(), "transform_config": {"config_groups": {}}}, "config.json",
         ("compressed-tensors", "pack-quantized", 32, False)),
        (compressed(), "config.json", ("compressed-tensors", "pack-quantized", 32, False)),
        (compressed(strategy="channel", group_size=None), "config.json",
         ("compressed-tensors", "pack-quantized", -1, False)),
    ],
)  # fmt: skip
def test_each_writers_spelling_is_read(tmp_path, settings, file, expected):
    config = opened(tmp_path, settings, file=file).config
    rule = config.rule(NAME)
    assert (config.method, config.version, config.group_size, rule.symmetric) == expected
    assert config.file == tmp_path / file


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({**AWQ, "quant_method": "bitsandbytes"}, "quant_method"),
        ({**AWQ, "bits": 8}, "bits"),
        ({"quant_method": "awq", "group_size": 32}, "bits"),
        ({**AWQ, "version": "exllama9"}, "version"),
        ({**GPTQ, "checkpoint_format": "bitblas"}, "checkpoint_format"),
        ({**GPTQ, "format": "bitblas"}, "checkpoint_format"),
        ({**GPTQ, "dynamic": {"+:.*18.*": {"bits": 8}}}, "dynamic"),
        ({**compressed(), "format": "float-quantized"}, "format"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "quant_method"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(tmp_path, settings, rule):
    with pytest.raises(UnsupportedCheckpoint) as raised:
        opened(tmp_path, settings)
    assert (raised.value.rule, raised.value.file) == (rule, str(tmp_path / "config.json"))


ONLINE = {"R4": {"type": "hadamard", "apply": [{"targets": ["re:.*down_proj$"], "location": "input"}]}}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({**compressed(), "transform_config": {"config_groups": ONLINE}}, "transform_config"),
        ({**compressed(), "transform_config": ONLINE}, "transform_config"),
        ({**GPTQ, "rotation": "hadamard"}, "rotation"),
        ({**GPTQ, "meta": {"rotation": "random"}}, "rotation"),
    ],
)
def test_weights_of_rotated_inputs_are_refused(tmp_path, settings, rule):
    with pytest.raises(UnsupportedCheckpoint, match="nothing here rotates inputs") as raised:
        opened(tmp_path, settings)
    assert (raised.value.rule, raised.value.file) == (rule, str(tmp_path / "config.json"))
    with pytest.raises(UnsupportedCheckpoint, match="nothing here rotates inputs"):
        checkpoints.convert(tmp_path, tmp_path / "made", checkpoints.PackedFormat.AWQ_GEMM)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("key", ["checkpoint_format", "format"])
@pytest.mark.parametrize("version", ["gptq_v1", "gptq_v2"])
def test_either_name_of_gptqs_version_gives_the_zero_points(tmp_path, version, key):
    made = weight(2, 128, 64, 32, least_zero=1)
    said = {"checkpoint_format": None, key: {"gptq_v1": "gptq"}.get(version, version)}
    layer = checkpoints.open(write(tmp_path, version, made, settings=said))[NAME]
    assert (checkpoints.unpack(layer).weights() == made.exact).all()


def test_modelopt_is_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match=r"ModelOpt W4A16_AWQ.*pre_quant_scale"):
        opened(tmp_path, {"quantization": {"quant_algo": "W4A16_AWQ"}}, file="hf_quant_config.json")
    scale = by_hand.Tensor("F16", packed("awq_gemm", weight(0))["scales"].bits)
    write(tmp_path, "awq_gemm", weight(0, 64, 16, 32), more={f"{NAME}.pre_quant_scale": scale})
    with pytest.raises(UnsupportedCheckpoint, match="ModelOpt") as raised:
        checkpoints.open(tmp_path)
    assert raised.value.tensor == f"{NAME}.pre_quant_scale"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ([], "quantization_config"),
        ("awq", "quantization_config"),
        ({**AWQ, "quant_method": 4}, "quant_method"),
        ({**AWQ, "bits": "4"}, "bits"),
        ({**AWQ, "bits": True}, "bits"),
        ({**AWQ, "group_size": None}, "group_size"),
        ({**AWQ, "group_size": 0}, "group_size"),
        ({**AWQ, "group_size": -2}, "group_size"),
        ({**AWQ, "group_size": 32.0}, "group_size"),
        ({**AWQ, "modules_to_not_convert": [1]}, "modules_to_not_convert"),
        ({**AWQ, "version": ["gemm"]}, "version"),
        ({**GPTQ, "desc_act": "yes"}, "desc_act"),
        ({**compressed(), "transform_config": [1]}, "transform_config"),
        ({**compressed(), "config_groups": []}, "config_groups"),
        ({**compressed(), "config_groups": {}}, "config_groups"),
        ({**compressed(), "config_groups": {"group_0": 1}}, "config_groups"),
        ({**compressed(), "config_groups": {"group_0": {"weights": []}}}, "weights"),
        (compressed(group_size="32"), "group_size"),
    ],
)  # fmt: skip
def test_a_configuration_of_the_wrong_type_is_refused(tmp_path, settings, rule):
    with pytest.raises(CheckpointError) as raised:
        opened(tmp_path, settings)
    assert (raised.value.rule, raised.value.file) == (rule, str(tmp_path / "config.json"))


def test_packed_layers_without_a_configuration_are_refused(tmp_path):
    write(tmp_path, "awq_gemm", weight(0, 64, 16, 32))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="group size") as raised:
        checkpoints.open(tmp_path)
    assert raised.value.tensor == NAME


def test_a_model_that_is_not_quantised_has_plain_tensors_only(tmp_path):
    norm = by_hand.Tensor("F16", packed("awq_gemm", weight(0))["scales"].bits)
    by_hand.write_safetensors(tmp_path / "model.safetensors", {"norm.weight": norm})
    (tmp_path / "config.json").write_text("{}")
    checkpoint = checkpoints.open(tmp_path)
    assert (len(checkpoint), checkpoint.config, set(checkpoint.plain)) == (0, None, {"norm.weight"})


def test_several_config_groups_apply_by_name(tmp_path):
    settings = compressed()
    settings["config_groups"] = {
        "a": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 64}},
        "b": {"targets": ["re:.*up_proj"], "weights": {"num_bits": 4, "group_size": 32}},
        "c": {"targets": ["model.down"], "weights": {"num_bits": 8, "group_size": 32}},
    }
    checkpoint = opened(tmp_path, settings, format="compressed_tensors")
    assert checkpoint[NAME].group_size == 32
    assert checkpoint.config.rule("model.o_proj").group_size == 64
    with pytest.raises(UnsupportedCheckpoint, match="8-bit"):
        checkpoint.config.rule("model.down")
    settings["config_groups"]["d"] = settings["config_groups"]["b"]
    with pytest.raises(CheckpointError, match="2 of 4"):
        opened(tmp_path, settings, format="compressed_tensors")[NAME]


def test_a_pattern_of_a_group_that_is_not_matched_takes_no_other_groups_rule(tmp_path):
    settings = compressed()
    settings["config_groups"] = {
        "a": {"targets": ["re:.*model.*up.*proj.*"], "weights": {"num_bits": 4, "group_size": 32}},
        "b": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 64}},
    }
    with pytest.raises(UnsupportedCheckpoint, match=r"matched in a short time.*up\.\*proj") as refused:
        opened(tmp_path, settings, format="compressed_tensors")[NAME]
    assert refused.value.rule == "pattern"


def test_the_headers_decide_over_the_skip_list(tmp_path):
    checkpoint = opened(tmp_path, {**AWQ, "modules_to_not_convert": ["up_proj"]})
    assert set(checkpoint) == {NAME}
    assert checkpoint.config.skipped == ("up_proj",)


@pytest.mark.parametrize(
    ("pattern", "module", "expected"),
    [
        ("kv_proj", "layers.0.kv_proj", True), ("kv_proj", "layers.0.qkv_proj", False),
        ("layers.0", "model.layers.0.mlp", True), ("layers.1", "model.layers.10.mlp", False),
        ("lm_head", "lm_head", True), ("", "lm_head", False), ("re:.*lm_head", "model.lm_head", True),
        ("re:lm_head", "model.lm_head", False), ("re:^(?!.*mlp).*q_proj$", "attn.q_proj", True), ("re:[", "a", False),
        (r"re:.*\.(gate|up)_proj", "mlp.up_proj", True), (r"re:layers\.\d+\.x", "layers.12.x", True),
    ],
)  # fmt: skip
def test_names_match_by_whole_components(pattern, module, expected):
    assert matches(pattern, module) is expected


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a*)*b", "(a|a)*b", "(a|aa)+$", "((a+)){9}$", r"(a+)\1+\1+$", "a*a*a*a*a*a*a*b", "(?:a+){2,}b"],
)
def test_patterns_that_would_take_forever_match_nothing(pattern, slowness):
    start = time.perf_counter()
    assert matches(f"re:{pattern}", "a" * 250 + "c") is False
    assert time.perf_counter() - start < 1 * slowness


@given(st.text("a.*+(){}[]|\\1?,$^", max_size=12))
def test_any_pattern_ends_soon_and_raises_nothing(pattern):
    start = time.perf_counter()
    matches(f"re:{pattern}", "a" * 120)
    assert time.perf_counter() - start < 60  # one that is tried in every way would take years


def test_a_layer_that_is_not_there_is_answered_with_near_names(tmp_path):
    checkpoint = opened(tmp_path, AWQ)
    with pytest.raises(KeyError):
        checkpoint["up_proj"]
    with pytest.raises(CheckpointError, match=f"Near names: {NAME}") as raised:
        checkpoint.layer("model.layers.3.mlp.upproj")
    assert raised.value.tensor == "model.layers.3.mlp.upproj"
