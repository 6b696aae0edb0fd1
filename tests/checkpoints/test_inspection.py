"""`inspect`: what it says of each format, which kernels and splits, and where configuration and headers disagree."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest
from attrs import evolve
from sparse_files import AWQ, COMPRESSED, GPTQ, linear, write_folder

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat
from baracuda_py.errors import CheckpointError, Unsupported, UnsupportedCheckpoint
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout

NAME = "model.layers.0.mlp.up_proj"
F = PackedFormat
FORMATS = {
    "awq_gemm": (F.AWQ_GEMM, AWQ), "awq_gemv": (F.AWQ_GEMV, AWQ | {"version": "gemv"}),
    "awq_gemv_fast": (F.AWQ_GEMV_FAST, AWQ | {"version": "gemv_fast"}),
    "llm_awq_v2": (F.LLM_AWQ_V2, AWQ | {"backend": "llm-awq"}),
    "awq_marlin": (F.AWQ_MARLIN, AWQ | {"version": "marlin", "zero_point": False}), "gptq": (F.GPTQ_V1, GPTQ),
    "compressed_tensors": (F.COMPRESSED_TENSORS, COMPRESSED),
}  # fmt: skip


def inspected(folder, layers, settings=AWQ, plain=None, device="sm_90", **options):
    model = options.pop("model", {})
    return checkpoints.inspect(write_folder(folder, layers, settings, plain, **model), device, **options)


def one(folder, parts, settings=AWQ, **options):
    found = inspected(folder, {options.pop("name", NAME): parts}, settings, **options)
    assert not found.refused
    return found.layers[0]


def legal(verdicts):
    return [verdict.degree for verdict in verdicts if verdict.part is not None]


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_described(tmp_path, format):
    expected, settings = FORMATS[format]
    found = inspected(tmp_path, {NAME: linear(format, 1024, 512, bias="F32")}, settings)
    (layer,) = found.layers
    assert (layer.name, layer.format, layer.ic, layer.oc, layer.group_size) == (NAME, expected, 1024, 512, 128)
    assert layer.symmetric == (format in ("awq_marlin", "compressed_tensors"))
    assert layer.dtypes == {part: dtype for part, (dtype, _) in linear(format, 1024, 512, bias="F32").items()}
    assert layer.parameters == 1024 * 512 + 512
    assert not layer.act_order
    assert found.contradictions == found.refused == found.plain == ()
    assert (found.method, found.config_file) == (settings["quant_method"], tmp_path / "config.json")


@pytest.mark.parametrize("device", ["sm_80", "sm_90", "host"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_kernel_is_the_one_that_select_takes(tmp_path, format, device):
    _, settings = FORMATS[format]
    layer = one(tmp_path, linear(format, 1024, 512, bias="F16"), settings, device=device, m=(1, 16, 1024))
    assert [serving.m for serving in layer.servings] == [1, 16, 1024]
    assert len({serving.layout for serving in layer.servings}) == 1
    stored = checkpoints.open(tmp_path)[NAME]
    for serving in layer.servings:
        plan = bp.select(stored.descriptor(serving.m, layout=serving.layout), device)
        assert (serving.sku, serving.workspace_nbytes, serving.refusal) == (plan.sku, plan.workspace_size, "")


def test_weights_are_taken_as_they_lie_where_that_is_as_fast(tmp_path):
    layer = one(tmp_path, linear("awq_gemm", 1024, 512))
    stored_first = (AwqWeightLayout.HF_GEMM, AwqWeightLayout.OC_MAJOR)
    estimates = {
        layout: sum(
            bp.explain(checkpoints.open(tmp_path)[NAME].descriptor(m, layout=layout), "sm_90").candidates[0].cost_us
            for m in (1, 1024)
        )
        for layout in stored_first
    }
    stored, other = stored_first
    expected = other if estimates[other] < 0.95 * estimates[stored] else stored
    assert {serving.layout for serving in layer.servings} == {expected}


def test_a_layer_that_no_kernel_serves_says_why(tmp_path):
    layer = one(tmp_path, linear("gptq", 1024, 512), GPTQ | {"desc_act": True})
    assert layer.act_order
    for serving in layer.servings:
        assert serving.sku is None
        assert "g_idx" in serving.refusal
    small = one(tmp_path / "small", linear("gptq", 48, 512, 16), GPTQ | {"group_size": 16})
    assert all(serving.sku is None and "32" in serving.refusal for serving in small.servings)


def test_groups_that_the_op_has_not_are_served_in_parts(tmp_path):
    layer = one(tmp_path, linear("awq_gemm", 1024, 512, 256), AWQ | {"group_size": 256})
    assert all(serving.sku is not None for serving in layer.servings)


@pytest.mark.parametrize(
    ("parts", "columns", "rows"),
    [
        (linear("awq_gemm", 4096, 4096), [1, 2, 4, 8], [1, 2, 4, 8]),
        (linear("awq_gemm", 4096, 24), [1], [1, 2, 4, 8]),
        (linear("awq_gemm", 4864, 896), [1, 2, 4, 8], [1, 2, 4, 8]),  # 4864 / 8 = 19 * 32
        (linear("awq_gemm", 896, 4864), [1, 2, 4, 8], [1, 2, 4]),  # 896 / 8 = 7 * 16
        (linear("awq_marlin", 1024, 512), [1, 2], [1, 2, 4, 8]),  # 256 output channels together
    ],
)
def test_degrees_are_legal_or_say_why_not(tmp_path, parts, columns, rows):
    layer = one(tmp_path, parts)
    assert legal(layer.columns) == columns
    assert legal(layer.rows) == rows
    for verdict in (*layer.columns, *layer.rows):
        assert (verdict.part is None) == bool(verdict.refusal)


def test_a_row_split_that_cuts_groups_has_smaller_ones(tmp_path):
    layer = one(tmp_path, linear("awq_gemm", 11008, 2048), tp_degrees=(2, 4, 8))  # 86 groups
    assert [verdict.part.group_size for verdict in layer.rows] == [128, 64, 32]
    assert [verdict.part.ic for verdict in layer.rows] == [5504, 2752, 1376]


def test_a_part_that_no_kernel_could_take_is_not_legal(tmp_path):
    layer = one(tmp_path, linear("compressed_tensors", 64, 512, -1), compressed(group_size=-1, strategy="channel"))
    assert legal(layer.rows) == [1, 2]
    assert "ic must be a multiple of 32" in layer.rows[2].refusal


def compressed(**weights):
    group = COMPRESSED["config_groups"]["group_0"]
    return COMPRESSED | {"config_groups": {"group_0": group | {"weights": group["weights"] | weights}}}


def test_fused_projections_are_split_part_by_part(tmp_path):
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4}
    fused = one(tmp_path, linear("awq_gemm", 1536, 20 * 128), name="a.qkv_proj", model=heads)
    assert legal(fused.columns) == [1, 2, 4]
    assert "heads of q" in fused.columns[3].refusal
    unknown = one(tmp_path, linear("awq_gemm", 1536, 20 * 128), name="a.qkv_proj")
    assert legal(unknown.columns) == [1]
    assert legal(one(tmp_path, linear("awq_gemm", 1536, 48), name="a.gate_up_proj").columns) == [1]
    assert legal(one(tmp_path, linear("awq_gemm", 1536, 48), name="a.up_proj").columns) == [1, 2]


def test_totals_add_up_to_the_files(tmp_path):
    layers = {f"model.layers.{n}.x": linear("awq_gemm", 256, 128) for n in (10, 9)}
    plain = {"lm_head.weight": ("F16", [1000, 64]), "norm.weight": ("F32", [64])}
    found = inspected(tmp_path, layers | {"bad": {"qweight": ("I32", [8, 8])}}, plain=plain)
    totals = found.totals
    assert [layer.name for layer in found.layers] == ["model.layers.9.x", "model.layers.10.x"]
    assert [tensor.name for tensor in found.plain] == list(plain)
    assert (totals.packed_parameters, totals.dense_nbytes) == (2 * 256 * 128, 2 * 256 * 128 * 2)
    assert (totals.plain_parameters, totals.plain_nbytes) == (64064, 64064 * 2 + 64 * 2)
    assert totals.refused_nbytes == 8 * 8 * 4
    data = (tmp_path / "model.safetensors").stat().st_size - 8
    data -= int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert totals.packed_nbytes + totals.plain_nbytes + totals.refused_nbytes == data


def test_a_bad_layer_hides_no_other(tmp_path):
    bad = linear("awq_gemm", 256, 128) | {"scales": ("F16", [3, 128])}
    found = inspected(tmp_path, {"a": bad, "b": linear("awq_gemm", 256, 128)})
    assert [layer.name for layer in found.layers] == ["b"]
    (refused,) = found.refused
    assert (refused.name, refused.tensor, refused.rule) == ("a", "a.scales", "scales")
    assert refused.file == str(tmp_path / "model.safetensors")
    assert refused.file not in refused.refusal


FLOAT_INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
DISAGREEMENTS = {
    "group size": (
        linear("awq_gemm", 1024, 512, 64), AWQ, ("group_size", "groups of 128", "groups of 64"), {}
    ),
    "4 bits said, 8 held": (linear("awq_gemm", 1024, 512, bits=8), AWQ, ("bits", "4 bits", "8 bits"), {}),
    "4 bits said, 8 held in GPTQ": (linear("gptq", 1024, 512, bits=8), GPTQ, ("bits", "4 bits", "8 bits"), {}),
    "gemm said, gemv held": (linear("awq_gemv", 1024, 512), AWQ, ("format", "awq gemm", "AWQ_GEMV"), {}),
    "gemv_fast said, v2 held": (
        linear("llm_awq_v2", 1024, 512), AWQ | {"version": "gemv_fast"},
        ("format", "awq gemv_fast", "LLM_AWQ_V2"), {},
    ),
    "awq said, gptq held": (linear("gptq", 1024, 512), AWQ, ("format", "awq gemm", "GPTQ"), {}),
    "skipped, but packed": (
        linear("awq_gemm", 1024, 512), AWQ | {"modules_to_not_convert": ["up_proj"]},
        ("skip list", "not quantised", "packed"), {},
    ),
    "zero points said, none held": (
        linear("compressed_tensors", 1024, 512), compressed(symmetric=False),
        ("symmetric", "zero points", "none are stored"), {},
    ),
    "no zero points said, some held": (
        linear("asymmetric", 1024, 512), COMPRESSED, ("symmetric", "no zero points", "zero points"), {}
    ),
    "act-order said, no index held": (
        {part: header for part, header in linear("gptq", 1024, 512).items() if part != "g_idx"},
        GPTQ | {"desc_act": True}, ("act_order", "act-order", "no index of the groups (g_idx)"), {},
    ),
    "an index held, no act-order said": (
        linear("compressed_tensors", 1024, 512) | {"weight_g_idx": ("I32", [1024])}, COMPRESSED,
        ("act_order", "no act-order", "an index of the groups (g_idx)"), {},
    ),
    "inputs in 8 bits said": (
        linear("compressed_tensors", 1024, 512),
        COMPRESSED | {"config_groups": {"g": COMPRESSED["config_groups"]["group_0"] | {
            "input_activations": FLOAT_INPUTS}}},
        ("activations", "8-bit float input_activations",
         "4-bit weights alone, which are read for inputs in 16 bits"), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_each_contradiction_is_named(tmp_path, case):
    parts, settings, expected, plain = DISAGREEMENTS[case]
    found = inspected(tmp_path, {NAME: parts, "other.up": parts}, settings, plain)
    every = {(one.rule, one.config, one.headers): one.layers for one in found.contradictions}
    assert expected in every
    assert NAME in every[expected]
    if case in ("zero points said, none held", "act-order said, no index held"):
        assert {one.name for one in found.refused} == {NAME, "other.up"}, "without that tensor weights are others"
    if expected[0] != "skip list":
        assert every[expected] == (NAME, "other.up")


def test_a_plain_projection_among_packed_ones_contradicts_the_skip_list(tmp_path):
    plain = {
        "model.layers.1.mlp.up_proj.weight": ("F16", [512, 1024]), "lm_head.weight": ("F16", [512, 1024]),
        "model.layers.1.norm.weight": ("F16", [1024]), "model.layers.2.mlp.up_proj.weight": ("F16", [512, 1024]),
    }  # fmt: skip
    settings = AWQ | {"modules_to_not_convert": ["layers.2"]}
    (found,) = inspected(tmp_path, {NAME: linear("awq_gemm", 1024, 512)}, settings, plain).contradictions
    assert (found.rule, found.config) == ("skip list", "quantised")
    assert found.headers == "a plain F16 weight"
    assert found.layers == ("model.layers.1.mlp.up_proj",)


def test_a_number_of_bits_that_the_headers_contradict_is_told(tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match=rf"got 8.*contradicts the headers.*{NAME}") as caught:
        inspected(tmp_path, {NAME: linear("awq_gemm", 1024, 512)}, AWQ | {"bits": 8})
    assert caught.value.file == str(tmp_path / "config.json")
    with pytest.raises(UnsupportedCheckpoint) as caught:
        inspected(tmp_path, {NAME: linear("awq_gemm", 1024, 512, bits=8)}, AWQ | {"bits": 8})
    assert "contradicts" not in str(caught.value)


def test_what_is_not_read_is_refused_by_name_and_reason(tmp_path):
    folder = tmp_path / "pickle"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedCheckpoint, match=r"pytorch_model\.bin.*unpickling runs code"):
        checkpoints.inspect(folder, "host")
    parts = {NAME: linear("awq_gemm", 256, 128)}
    folder = write_folder(tmp_path / "modelopt", parts, None)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A16_AWQ"}}))
    with pytest.raises(UnsupportedCheckpoint, match="ModelOpt W4A16_AWQ"):
        checkpoints.inspect(folder, "host")
    with pytest.raises(UnsupportedCheckpoint, match="bitsandbytes"):
        inspected(tmp_path / "other", parts, {"quant_method": "bitsandbytes"})
    with pytest.raises(CheckpointError, match="quantization_config"):
        inspected(tmp_path / "none", parts, None)
    unknown = {"x": linear("awq_gemm", 256, 128) | {"qweight": ("I32", [7, 7])}}
    (refused,) = inspected(tmp_path / "unknown", unknown).refused
    assert refused.rule == "format"
    assert "4-bit format" in refused.refusal


def test_a_model_that_is_not_quantised_has_no_layers(tmp_path):
    found = inspected(tmp_path, {}, None, {"lm_head.weight": ("F16", [8, 8])})
    assert (found.layers, found.method, found.config_file, len(found.plain)) == ((), "", None, 1)


def test_no_data_is_read(tmp_path):
    """The file of a terabyte that is a hole: reading any of its tensors would show."""
    found = inspected(tmp_path, {f"{n}.x": linear("awq_gemm", 1 << 20, 1 << 16) for n in range(30)})
    assert found.totals.packed_nbytes > 10**12
    assert len(found.layers) == 30


def test_what_is_returned_is_plain_json_and_the_same_each_time(tmp_path):
    layers = {"a.up_proj": linear("awq_gemm", 1024, 512, bias="F16"), "bad": {"qweight": ("I32", [8, 8])}}
    first = inspected(tmp_path, layers, plain={"a.act.scales": ("F16", [1024]), "lm_head.weight": ("F16", [8, 8])})
    made = first.to_dict()
    assert json.loads(json.dumps(made)) == made
    assert json.dumps(made) == json.dumps(checkpoints.inspect(tmp_path, "sm_90").to_dict())
    (layer,) = made["layers"]
    assert (layer["format"], layer["file"]) == ("awq_gemm", str(tmp_path / "model.safetensors"))
    assert layer["act_scales"] == "a.act.scales"
    assert layer["servings"][0]["sku"] == first.layers[0].servings[0].sku.token
    assert layer["rows"][1]["part"] == {
        "axis": "rows", "degree": 2, "ic": 512, "oc": 512, "group_size": 128, "keeps_all_groups": False
    }  # fmt: skip
    assert made["device"] == "sm_90 (dry run)"
    with pytest.raises(AttributeError):
        first.layers = ()
    assert evolve(first) == first


def test_an_unknown_device_and_degree_are_refused(tmp_path):
    parts = linear("awq_gemm", 256, 128)
    with pytest.raises(Unsupported, match="sm_75"):
        inspected(tmp_path, {NAME: parts}, device="sm_75")
    layer = one(tmp_path, parts, tp_degrees=(0, 1))
    assert legal(layer.rows) == [1]
    assert "positive" in layer.rows[0].refusal


def test_shards_and_what_the_index_does_not_list_are_counted(tmp_path):
    write_folder(tmp_path, {NAME: linear("awq_gemm", 256, 128)}, AWQ, {"extra": ("F16", [4])})
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    where = {f"{NAME}.{part}": "model-1.safetensors" for part in ("qweight", "qzeros", "scales")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    found = checkpoints.inspect(tmp_path, "host")
    assert found.files == (tmp_path / "model-1.safetensors",)
    assert found.index == tmp_path / "model.safetensors.index.json"
    assert found.unlisted == ("extra",)
    assert found.plain == ()


def test_the_work_grows_with_the_number_of_layers_and_no_faster(tmp_path):
    """In calls of functions; what a 70B model takes is in benchmarks/checkpoints_inspect.py."""
    calls = {}
    for blocks in (4, 40):
        names = [f"model.layers.{n}.{part}" for n in range(blocks) for part in "abcdefg"]
        folder = write_folder(tmp_path / str(blocks), {name: linear("awq_gemm", 8192, 8192) for name in names}, AWQ)
        checkpoints.inspect(folder, "sm_90")  # what is remembered is
        counts = Counter()
        sys.setprofile(lambda _frame, event, _what, counts=counts: counts.update((event,)))
        try:
            checkpoints.inspect(folder, "sm_90")
        finally:
            sys.setprofile(None)
        calls[blocks] = counts["call"] + counts["c_call"]
    assert calls[40] < 11 * calls[4]
