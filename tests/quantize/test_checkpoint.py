"""Whole checkpoints quantised: what is written, where input scales go, and what is left or refused."""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_models import (
    BLOCK,
    DOWN,
    FIRST,
    GATE,
    HIDDEN,
    LINEARS,
    SECOND,
    UP,
    K,
    O,
    Q,
    V,
    attention,
    mlp,
    tensors_of,
    write,
)  # fmt: skip
from safetensors.numpy import load_file

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.checkpoints.write import OVERHEAD_NBYTES
from baracuda_py.errors import CheckpointError, InvalidProblem, Unsupported, UnsupportedCheckpoint
from baracuda_py.quantize import (
    ActivationStatistics,
    fold_into_linear,
    fold_into_norm,
    quantize_awq,
    quantize_awq_group,
    quantize_checkpoint,
    round_to_nearest,
    save_activations,
)
from baracuda_py.quantize.blocks import plan_jobs
from baracuda_py.quantize.chain import arrays_nbytes
from baracuda_py.quantize.checkpoint import plan_quantize
from baracuda_py.quantize.choice import Linear
from baracuda_py.quantize.engines import HOST
from baracuda_py.vocab.enums import ElementKind

TOKENS = np.random.default_rng(7).standard_normal((96, HIDDEN)).astype(np.float32)
F = PackedFormat


@pytest.fixture
def source(tmp_path):
    """Writes a model and returns its folder."""
    return lambda tensors, **config: write(tmp_path / "source", tensors, **config)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


@pytest.fixture
def activations(tmp_path):
    """Writes a file of the activations of a model's linears, or of those that are named."""

    def make(tensors, names=LINEARS):
        read = attention(tensors, TOKENS) | mlp(tensors, TOKENS)
        file = tmp_path / "activations.safetensors"
        save_activations(file, {name: read[name].astype(np.float32) for name in names})
        return file

    return make


def stored(folder):
    """Every tensor of the folder, the layers' weights as (oc, ic) under the names that they had."""
    checkpoint = checkpoints.open(folder)
    tensors = dict(checkpoint.plain)
    for name in checkpoint:
        tensors[f"{name}.weight"] = checkpoints.unpack(checkpoint[name]).weights().T
        if "bias" in checkpoint[name].tensors:
            tensors[f"{name}.bias"] = checkpoint[name].tensors["bias"]
    return tensors


def same_layer(layer, result):
    return all(np.array_equal(layer.tensors[part], getattr(result, part)) for part in ("qweight", "qzeros", "scales"))


def rounded_weight(weight, group_size=128, element=ElementKind.F16):
    return round_to_nearest(weight, group_size=group_size, scales_element=element).dequantize().astype(np.float64)


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_without_activations_weights_are_rounded_and_everything_else_is_copied(source, target, dtype, group_size):
    tensors = tensors_of(dtype=dtype, bias=True)
    folder = source(tensors)
    made = quantize_checkpoint(folder, target, group_size=group_size)
    element = ElementKind.BF16 if dtype is ml_dtypes.bfloat16 else ElementKind.F16
    read = checkpoints.open(target)
    assert sorted(read) == sorted(LINEARS)
    for name in LINEARS:
        rounded = rounded_weight(tensors[f"{name}.weight"], group_size, element)
        layer = read[name]
        assert (layer.format, layer.group_size, layer.scales_element) == (F.AWQ_GEMM, group_size, element)
        assert np.array_equal(checkpoints.unpack(layer).weights().T, rounded)
        bias = tensors[f"{name}.bias"]
        assert np.array_equal(layer.tensors["bias"], bias.astype(np.float16) if dtype is np.float32 else bias)
    assert made.folded == ()
    for name, tensor in read.plain.items():
        assert tensor.dtype == tensors[name].dtype
        assert tensor.tobytes() == tensors[name].tobytes()
    assert len(read.plain) + 2 * len(LINEARS) == len(tensors)
    assert (target / "tokenizer.json").read_text() == "{}"
    config = json.loads((target / "config.json").read_text())
    assert config["hidden_size"] == HIDDEN
    assert config["quantization_config"]["group_size"] == group_size
    assert {one.tensor.name: one.why for one in made.left} == {
        "model.embed_tokens.weight": "an embedding", "lm_head.weight": "a head",
    }  # fmt: skip
    for layer in made.layers:
        weight = tensors[f"{layer.name}.weight"].astype(np.float64)
        exact = error(rounded_weight(tensors[f"{layer.name}.weight"], group_size, element), weight)
        assert layer.weight_error == pytest.approx(exact, rel=1e-3)
        assert (layer.output_error, layer.rtn_error, layer.scaled_by) == (None, None, "")
    assert made.before_nbytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("bias", [False, True])
def test_scales_are_folded_as_by_the_functions_one_by_one(source, target, activations, bias):
    """Bit for bit: the output projection first, since values take up its scale before they are quantised."""
    tensors = tensors_of(bias=bias)
    read = attention(tensors, TOKENS) | mlp(tensors, TOKENS)
    made = quantize_checkpoint(source(tensors), target, activations=activations(tensors))
    weight = {name: tensors[f"{name}.weight"] for name in LINEARS}
    biases = {name: tensors.get(f"{name}.bias") for name in LINEARS}
    expected = {}
    for last, maker, others, norm in ((O, V, (Q, K), FIRST), (DOWN, UP, (GATE,), SECOND)):
        inputs = {name: read[name].astype(np.float32) for name in (last, maker)}
        expected[last] = quantize_awq(weight[last], activations=inputs[last], bias=biases[last])
        assert expected[last].alpha > 0
        weight[maker], biases[maker] = fold_into_linear(weight[maker], biases[maker], expected[last].input_scale)
        group = [*others, maker]
        results = quantize_awq_group(
            [weight[name] for name in group], activations=inputs[maker], biases=[biases[name] for name in group]
        )
        expected |= dict(zip(group, results, strict=True))
        folded = fold_into_norm(tensors[f"{norm}.weight"], results[0].input_scale)
        assert np.array_equal(checkpoints.open(target).plain[f"{norm}.weight"], folded)
    found = checkpoints.open(target)
    for name in LINEARS:
        assert same_layer(found[name], expected[name]), name
        if bias:
            assert np.array_equal(found[name].tensors["bias"], expected[name].bias)
    reports = {layer.name: layer for layer in made.layers}
    for name, result in expected.items():
        report = reports[name]
        assert report.output_error == result.awq_error < result.rtn_error / 1.05
        assert (report.rtn_error, report.alpha, report.unscaled_because) == (result.rtn_error, result.alpha, "")
    assert {name: report.scaled_by for name, report in reports.items()} == {
        Q: FIRST, K: FIRST, V: FIRST, O: V, GATE: SECOND, UP: SECOND, DOWN: UP,
    }  # fmt: skip
    assert sorted(made.folded) == sorted((FIRST, SECOND))


@pytest.mark.parametrize("kv", [HIDDEN, HIDDEN // 2])
@pytest.mark.parametrize("format", [F.AWQ_GEMM, F.COMPRESSED_TENSORS])
def test_a_block_computes_what_it_did_and_better_than_rounded(source, target, activations, format, kv, tmp_path):
    tensors = tensors_of(kv=kv, bias=True, dtype=np.float32)
    folder = source(tensors)
    quantize_checkpoint(folder, target, activations=activations(tensors), format=format)
    quantize_checkpoint(folder, tmp_path / "rounded", format=format)
    aware, rounded = stored(target), stored(tmp_path / "rounded")
    for part in (attention, mlp):
        exact = part(tensors, TOKENS)["y"]
        gain = error(part(rounded, TOKENS)["y"], exact) / error(part(aware, TOKENS)["y"], exact)
        assert gain > 1.5, part.__name__


def test_value_heads_that_several_query_heads_read_take_up_no_scale(source, target, activations):
    tensors = tensors_of(kv=HIDDEN // 2)
    made = quantize_checkpoint(source(tensors), target, activations=activations(tensors))
    report = {layer.name: layer for layer in made.layers}[O]
    assert (report.scaled_by, report.alpha) == ("", 0)
    assert report.unscaled_because == "several query heads read a value head"
    assert report.output_error < report.rtn_error  # it was clipped


def test_linears_that_share_an_input_need_its_activations_once(source, target, activations, tmp_path):
    tensors = tensors_of()
    folder = source(tensors)
    quantize_checkpoint(folder, target, activations=activations(tensors))
    quantize_checkpoint(folder, tmp_path / "few", activations=activations(tensors, (K, O, UP, DOWN)))
    assert (target / "model.safetensors").read_bytes() == (tmp_path / "few" / "model.safetensors").read_bytes()


def test_linears_that_share_an_input_have_scales_of_one_type(source, target, activations):
    tensors = tensors_of()
    tensors[f"{K}.weight"] = tensors[f"{K}.weight"].astype(ml_dtypes.bfloat16)
    quantize_checkpoint(source(tensors), target, activations=activations(tensors, (Q,)))
    made = checkpoints.open(target)
    assert {made[name].scales_element for name in (Q, K, V)} == {ElementKind.BF16}
    for name in (Q, K, V):
        folded = stored(target)[f"{FIRST}.weight"].astype(np.float64) / tensors[f"{FIRST}.weight"].astype(np.float64)
        assert error(checkpoints.unpack(made[name]).weights().T * folded, tensors[f"{name}.weight"]) < 0.2


def test_linears_without_activations_are_rounded(source, target, activations):
    tensors = tensors_of()
    made = quantize_checkpoint(source(tensors), target, activations=activations(tensors, (DOWN,)))
    found = checkpoints.open(target)
    reports = {layer.name: layer for layer in made.layers}
    assert {name for name, report in reports.items() if report.output_error is not None} == {DOWN}
    assert np.array_equal(checkpoints.unpack(found[Q]).weights().T, rounded_weight(tensors[f"{Q}.weight"]))
    assert np.array_equal(found.plain[f"{SECOND}.weight"], tensors[f"{SECOND}.weight"])
    assert reports[DOWN].scaled_by == UP


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"config": {"model_type": "gemma2"}}, "model_type gemma2: where its scales go is not known"),
        ({"config": {"model_type": None}}, "model_type not stated: where its scales go is not known"),
        ({"config": {"model_type": None, "decoder": {"model_type": "llama"}}},
         "model_type not stated: where its scales go is not known"),
        ({"config": {"text_config": {"model_type": "mine"}}},
         "text_config.model_type mine: where its scales go is not known"),
        ({"fold": "none"}, "folding is switched off"),
        ({"more": {f"{BLOCK}pre_feedforward_layernorm.weight": (HIDDEN,)}},
         "the block has pre_feedforward_layernorm too"),
        ({"less": [f"{SECOND}.weight"]}, "the block has no post_attention_layernorm"),
        ({"rename": {"model.": "encoder."}, "config": {"model_type": "t5"}},
         "model_type t5: where its scales go is not known"),
    ],
)  # fmt: skip
def test_what_is_not_known_to_be_such_a_block_is_clipped_only(source, target, activations, change, why):
    tensors = tensors_of()
    file = activations(tensors)
    tensors |= {name: np.ones(shape, np.float16) for name, shape in change.get("more", {}).items()}
    for name in change.get("less", ()):
        del tensors[name]
    for old, new in change.get("rename", {}).items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        save_activations(file, {name.replace(old, new).rpartition(".")[0]: x for name, x in load_file(file).items()})
    made = quantize_checkpoint(
        source(tensors, **change.get("config", {})), target, activations=file, fold=change.get("fold", "auto")
    )
    assert {layer.unscaled_because for layer in made.layers} == {why}
    assert made.folded == ()
    assert all(layer.output_error < layer.rtn_error for layer in made.layers)
    for name, tensor in checkpoints.open(target).plain.items():
        assert np.array_equal(tensor, tensors[name])


def test_a_caller_can_say_that_blocks_are_like_llamas(source, target, activations):
    tensors = tensors_of()
    file, folder = activations(tensors), source(tensors, model_type="mine")
    made = quantize_checkpoint(folder, target, activations=file, fold="llama")
    assert len(made.folded) == 2
    for kind in ("gemma3", "recurrent_gemma", "paligemma", "T5Gemma2", "qwen3_next", "qwen3_5_moe_text", "nemotron"):
        for config in ({"model_type": kind}, {"parts": [{"text_config": {"model_type": kind}}]}):
            with pytest.raises(CheckpointError, match=f"model_type {kind}.*1 \\+ weight"):
                plan_quantize(source(tensors, **config), target, activations=file, fold="llama", overwrite=True)
    plan_quantize(source(tensors, model_type="nemotron_h"), target, activations=file, fold="llama", overwrite=True)


@pytest.mark.parametrize(
    "config", [{"model_type": None, "text_config": {"model_type": "qwen3"}}, {"text_config": {"model_type": "mistral"}}]
)
def test_scales_are_folded_where_the_text_model_is_known(source, target, activations, config):
    tensors = tensors_of()
    made = quantize_checkpoint(source(tensors, **config), target, activations=activations(tensors))
    assert len(made.folded) == 2


@pytest.mark.parametrize("left", LINEARS)
def test_a_linear_that_is_left_reads_what_it_did(source, target, activations, left):
    """So nothing is folded into what makes its input, nor into it; the rest of the block still is."""
    tensors = tensors_of(bias=True)
    made = quantize_checkpoint(source(tensors), target, activations=activations(tensors), skip=[left])
    found = stored(target)
    assert np.array_equal(found[f"{left}.weight"], tensors[f"{left}.weight"])
    read = attention(tensors, TOKENS) | mlp(tensors, TOKENS)
    still = attention(found, TOKENS) | mlp(found, TOKENS)
    expected = read[left] if left in (Q, K, V, GATE, UP) else None
    if expected is not None:
        assert np.array_equal(still[left], expected)
    for part in (attention, mlp):
        exact = part(tensors, TOKENS)["y"]
        assert error(part(found, TOKENS)["y"], exact) < 0.2
    reports = {layer.name: layer for layer in made.layers}
    short = left.rpartition(".")[2]
    blocked = {
        Q: {K, V}, K: {Q, V}, V: {Q, K, O}, O: {O}, GATE: {UP}, UP: {GATE, DOWN}, DOWN: {DOWN},
    }[left] - {left}  # fmt: skip
    assert {name for name, layer in reports.items() if not layer.scaled_by} == blocked
    assert {reports[name].unscaled_because for name in blocked} <= {f"{short} is not quantised"}


def header(name, shape, dtype="F16"):
    return TensorHeader("file", name, dtype, shape, 0, int(np.prod(shape)) * 2)


@given(
    chosen=st.sets(st.sampled_from(LINEARS), min_size=1),
    known=st.sets(st.sampled_from(LINEARS)),
    kv=st.sampled_from([HIDDEN, HIDDEN // 2]),
)
def test_whatever_is_chosen_and_known_the_model_stays_the_same(chosen, known, kv):
    """A scale divides what one module makes: then every reader of it must be scaled, and none may be already made."""
    headers = {name: header(name, tensor.shape) for name, tensor in tensors_of(kv=kv).items()}
    linears = [Linear(name, headers[f"{name}.weight"], None) for name in LINEARS if name in chosen]
    calibration = SimpleNamespace(parts=known, shared=lambda names: next((name for name in names if name in known), ""))
    chains = plan_jobs(linears, headers, calibration, "")
    jobs = [job for chain in chains for job in chain]
    order = [linear.name for job in jobs for linear in job.linears]
    assert sorted(order) == sorted(chosen)
    readers = {FIRST: {Q, K, V}, V: {O}, SECOND: {GATE, UP}, UP: {DOWN}}
    for chain in chains:
        done = []
        for job in chain:
            names = {linear.name for linear in job.linears}
            if job.maker:
                assert names == readers[job.maker]
                assert job.maker not in done
                assert job.maker in (FIRST, SECOND) or job.maker in order
                assert not job.why
                assert job.maker != V or kv == HIDDEN
            assert bool(job.activations) >= bool(job.maker)
            done += names
    makers = [job.maker for job in jobs if job.maker]
    assert len(makers) == len(set(makers))
    if chosen == set(LINEARS) == known and kv == HIDDEN:
        assert len(makers) == 4


def test_what_cannot_be_packed_is_left_and_said(source, target):
    tensors = tensors_of() | {
        "model.layers.0.mlp.narrow.weight": np.ones((64, 96), np.float16),
        "model.layers.0.mlp.odd.weight": np.ones((12, 128), np.float16),
        "model.layers.0.mlp.gate.weight": np.ones((8, HIDDEN), np.float16),
        "model.layers.0.mlp.experts.weight": np.ones((2, 64, 128), np.float16),
        "model.layers.0.mlp.half.weight": np.ones((64, 128), ml_dtypes.float8_e4m3fn),
        "model.layers.0.mlp.positions": np.ones((64, 128), np.float16),
        "model.layers.0.mlp.some_norm.weight": np.ones((64, 128), np.float16),
        "shared.weight": np.ones((64, 128), np.float16),
        "model.layers.0.pos_emb.weight": np.ones((64, 128), np.float16),
        "head.weight": np.ones((64, 128), np.float16),
        "generator_lm_head.weight": np.ones((64, 128), np.float16),
        "lm_head.dense.weight": np.ones((64, 128), np.float16),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": np.ones((32, 128), np.float16),
        "model.layers.0.mixer.dt_proj.weight": np.ones((256, 128), np.float16),
    }
    made = quantize_checkpoint(source(tensors), target, skip=["re:.*k_proj"])
    why = {one.tensor.name.rpartition("model.layers.0.")[2].removesuffix(".weight"): one.why for one in made.left}
    assert why == {
        "mlp.narrow": "ic must be a multiple of group_size (96)", "mlp.odd": why["mlp.odd"],
        "mlp.gate": "a router", "mlp.experts": "3 axes", "mlp.half": "F8_E4M3, not F16, BF16 or F32",
        "mlp.positions": "not called weight", "mlp.some_norm": "a norm", "self_attn.k_proj": "skipped",
        "lm_head": "a head", "model.embed_tokens": "an embedding", "shared": "an embedding",
        "pos_emb": "an embedding", "head": "a head", "generator_lm_head": "a head",
        "lm_head.dense": "a head",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "an embedding",
        "mixer.dt_proj": "a step size, whose weight models of Mamba's kind read directly",
    }  # fmt: skip
    assert "oc must be a multiple of 8" in why["mlp.odd"]
    assert len(checkpoints.open(target)) == 6


def test_only_what_is_asked_for(source, target):
    made = quantize_checkpoint(source(tensors_of()), target, only=["lm_head", "re:.*mlp"], skip=["up_proj"])
    assert sorted(layer.name for layer in made.layers) == sorted(["lm_head", GATE, DOWN])


def test_a_step_size_is_quantised_if_it_is_asked_for(source, target):
    name = "model.layers.0.mixer.dt_proj"
    tensors = tensors_of() | {f"{name}.weight": tensors_of()[f"{Q}.weight"]}
    made = quantize_checkpoint(source(tensors), target, only=["dt_proj"])
    assert [layer.name for layer in made.layers] == [name]


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_pattern_that_names_nothing_is_refused(source, target, option):
    with pytest.raises(CheckpointError, match="a pattern must name a matrix") as refused:
        plan_quantize(source(tensors_of()), target, **{option: ["q_porj"]})
    assert refused.value.value == "q_porj"


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"group_size": 48}, Unsupported, "group_size"), ({"scales_element": ElementKind.F32}, Unsupported, "scales"),
        ({"fold": "gpt"}, InvalidProblem, "auto, llama or none"),
        ({"format": F.GPTQ_V1}, UnsupportedCheckpoint, "format"),
        ({"max_shard_bytes": 0}, CheckpointError, "max_shard_bytes"),
        ({"skip": ["re:.*"]}, CheckpointError, "a linear to"),
    ],
)  # fmt: skip
def test_arguments_are_refused_before_a_weight_is_read(source, target, arguments, kind, match):
    with pytest.raises(kind, match=match):
        plan_quantize(source(tensors_of()), target, **arguments)
    assert not target.exists()


def test_sources_that_hold_no_linears_to_quantise(source, target, tmp_path):
    folder = source(tensors_of())
    quantize_checkpoint(folder, target)
    with pytest.raises(CheckpointError, match="plain weights") as refused:
        plan_quantize(target, tmp_path / "again")
    assert refused.value.rule == "quantised"
    with pytest.raises(UnsupportedCheckpoint, match="Conv1D"):
        plan_quantize(source(tensors_of(), model_type="gpt2"), tmp_path / "again")
    for config in (
        {"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}},
        {"text_config": {"model_type": "gpt2"}}, {"a": [{"b": {"model_type": "decision_transformer"}}]},
    ):  # fmt: skip
        with pytest.raises(UnsupportedCheckpoint, match=r"model_type (gpt2|decision_transformer).*Conv1D"):
            plan_quantize(source(tensors_of(), **config), tmp_path / "again")
    bad = tensors_of() | {f"{Q}.bias": np.ones(3, np.float16)}
    with pytest.raises(CheckpointError, match="bias") as refused:
        plan_quantize(source(bad), tmp_path / "again")
    assert refused.value.tensor == f"{Q}.bias"


def test_one_shard_of_several_is_not_quantised(source, target):
    folder = source(tensors_of())
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="all 3 beside it") as refused:
        quantize_checkpoint(folder, target)
    assert refused.value.rule == "shards"
    assert not target.exists()


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_named_and_nothing_is_written(source, target, activations, part, value):
    tensors = tensors_of(bias=True)
    file = activations(tensors)
    tensors[f"{K}.{part}"][3] = value
    for options in ({}, {"activations": file}):
        with pytest.raises(CheckpointError, match="finite") as refused:
            quantize_checkpoint(source(tensors), target, **options)
        assert refused.value.tensor == f"{K}.{part}"
        assert not target.exists()


def test_a_target_that_holds_something_is_refused_before_any_work(source, target, monkeypatch):
    target.mkdir()
    (target / "mine").write_text("x")
    plan = plan_quantize(source(tensors_of()), target)
    monkeypatch.setattr("baracuda_py.quantize.chain.quantize_awq_group", None)
    with pytest.raises(CheckpointError, match="empty or absent"):
        plan.run()


def test_the_source_and_the_activations_outlive_the_target(source, target, activations, tmp_path):
    tensors = tensors_of()
    folder, file = source(tensors), activations(tensors)
    (tmp_path / "link").symlink_to(folder)
    for model, name in (
        (folder, folder), (folder, tmp_path / "link"), (tmp_path / "link", folder), (folder, tmp_path),
        (folder, folder / "inner"), (folder / "model.safetensors", folder),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="apart from its source") as refused:
            plan_quantize(model, name, overwrite=True)
        assert refused.value.rule == "target"
    assert (folder / "model.safetensors").exists()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="apart from its source"):
        plan_quantize(tmp_path / "linked" / "model.safetensors", folder, overwrite=True)
    plan_quantize(folder / "model.safetensors", folder / "inner")
    quantize_checkpoint(folder, target)
    for name, refuses in (("model-00001-of-00001.safetensors", True), ("acts.safetensors", False)):
        (target / name).write_bytes(file.read_bytes())
        if refuses:
            with pytest.raises(CheckpointError, match="must not hold the activations"):
                plan_quantize(folder, target, activations=target / name, overwrite=True)
        else:
            quantize_checkpoint(folder, target, activations=target / name, overwrite=True)
            assert (target / name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_weights_that_scales_in_f16_would_lose_are_named(source, target, activations, dtype, given):
    tensors = tensors_of(dtype=dtype)
    options = {"activations": activations(tensors)} if given else {}
    tensors[f"{UP}.weight"] = (tensors[f"{UP}.weight"] * 1e-6).astype(dtype)
    folder = source(tensors)
    with pytest.raises(CheckpointError, match=r"vanish in F16.*bf16") as refused:
        quantize_checkpoint(folder, target, scales_element=ElementKind.F16, **options)
    assert f"{UP}.weight" in refused.value.tensor
    assert not target.exists()
    made = quantize_checkpoint(folder, target, scales_element=ElementKind.BF16, **options)
    assert all(layer.weight_error < 0.2 for layer in made.layers)


def whole(read):
    return {name: ActivationStatistics.of(x.astype(np.float32), correlations=True) for name, x in read.items()}


def channels(read):
    return {name: ActivationStatistics.of(x.astype(np.float32)) for name, x in read.items()}


def many_tokens(read):
    return {name: np.tile(x.astype(np.float32), (4, 1)) for name, x in read.items()}


@pytest.mark.parametrize("given_as", [many_tokens, whole, channels])
def test_memory_stays_within_what_the_plan_states_however_many_blocks(target, monkeypatch, tmp_path, given_as):
    monkeypatch.setattr("baracuda_py.quantize.weights.BLOCK_ELEMENTS", 1 << 12)
    read = attention(tensors_of(), TOKENS) | mlp(tensors_of(), TOKENS)
    file, peaks = tmp_path / "activations.safetensors", []
    save_activations(file, given_as({name: read[name] for name in LINEARS}))
    for blocks in (1, 2, 12):  # the first imports and remembers what is
        folder = write(tmp_path / str(blocks), tensors_of(blocks=blocks, dtype=np.float32))
        plan = plan_quantize(folder, target, activations=file, max_shard_bytes=1 << 20, overwrite=True)
        tracemalloc.start()
        plan.run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    stated = plan.save.memory_nbytes - OVERHEAD_NBYTES - arrays_nbytes(HOST) + 16 * 4 * (1 << 12)
    assert stated / 5 < peaks[1] < stated
    assert peaks[2] - peaks[1] < 100_000  # headers and reports; the layers are 80,000 bytes a block
