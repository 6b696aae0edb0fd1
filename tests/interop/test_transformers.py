"""`load_awq`: whole models of transformers with AWQ weights, on the CPU here, and marked `gpu` on one."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.errors import CheckpointError, Unsupported
from baracuda_py.interop.torch import AwqLinear
from baracuda_py.interop.transformers import load_awq
from baracuda_py.interop.transformers.linears import check_called
from baracuda_py.quantize import quantize_checkpoint

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2, biases": lambda: transformers.Qwen2Config(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=16),
}
PROMPT = torch.arange(3, 15).reshape(2, 6)  # 0 is padding


def dense(config, seed=0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.08)  # so that the layers count
    return model.requires_grad_(False).eval()


@pytest.fixture(params=CONFIGS)
def folders(request, tmp_path):
    """A quantised folder, and the same model with the weights that it stands for."""
    model = dense(CONFIGS[request.param]())
    source, target = tmp_path / "dense", tmp_path / "awq"
    model.save_pretrained(source)
    quantize_checkpoint(source, target)
    read = checkpoints.open(target)
    for name in read:
        weight = torch.from_numpy(checkpoints.unpack(read[name]).weights().T.copy())
        model.get_submodule(name).weight.data.copy_(weight)
    return target, model


def error(found, exact):
    found, exact = found.double().cpu(), exact.double().cpu()
    return float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout)
def test_logits_and_tokens_are_those_of_the_dequantised_model(folders, layout, device):
    folder, exact = folders
    model = load_awq(folder, device, layout=layout)
    packed = {name: module for name, module in model.named_modules() if isinstance(module, AwqLinear)}
    assert packed.keys() == set(checkpoints.open(folder))
    assert {module.layout for module in packed.values()} == {layout}
    with torch.no_grad():
        assert error(model(PROMPT.to(device)).logits, exact.double()(PROMPT).logits) < 2e-3
        options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        tokens = model.generate(PROMPT.to(device), **options).cpu()
        assert tokens.shape == (2, 18)
        # Each is the exact model's choice after those before it, or one that it likes as much but for rounding.
        logits = exact(tokens).logits[:, 5:-1]
        chosen = logits.gather(-1, tokens[:, 6:, None])[..., 0]
        special = [token for token in (exact.generation_config.eos_token_id,) if isinstance(token, int)]
        logits[..., special] = -torch.inf  # min_new_tokens forbids the end
        assert (logits.amax(-1) - chosen <= 1e-2 * logits[logits.isfinite()].std()).all()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_bfloat16_activations_over_f16_scales(folders):
    folder, exact = folders
    model = load_awq(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        assert error(model(PROMPT).logits, exact.double()(PROMPT).logits) < 3e-2


def test_any_format_and_shards_are_read(folders, tmp_path):
    folder, exact = folders
    other = tmp_path / "other"
    checkpoints.convert(folder, other, checkpoints.PackedFormat.COMPRESSED_TENSORS, max_shard_bytes=100_000)
    assert len(list(other.glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert error(load_awq(other)(PROMPT).logits, exact.double()(PROMPT).logits) < 2e-3


@pytest.fixture
def folder(tmp_path):
    dense(CONFIGS["llama"]()).save_pretrained(tmp_path / "dense")
    quantize_checkpoint(tmp_path / "dense", tmp_path / "awq", skip=["k_proj"])
    return tmp_path / "awq"


def changed(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_what_the_headers_say_decides_what_is_packed(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["q_proj"]  # and not k_proj, which is dense
    (folder / "config.json").write_text(json.dumps(config))
    layer = load_awq(folder).model.layers[0].self_attn
    assert type(layer.k_proj) is torch.nn.Linear
    assert isinstance(layer.q_proj, AwqLinear)


def test_a_tensor_that_is_missing_or_has_no_place_is_named(folder):
    norm = "model.layers.1.input_layernorm.weight"
    with pytest.raises(CheckpointError) as refused:
        load_awq(changed(folder, lambda tensors: tensors.pop(norm)))
    assert (refused.value.tensor, refused.value.rule) == (norm, "missing")
    with pytest.raises(CheckpointError) as refused:
        load_awq(changed(folder, lambda tensors: tensors.update({"model.extra.weight": torch.ones(3)})))
    assert (refused.value.tensor, refused.value.rule) == ("model.extra.weight", "unexpected")


def test_a_tensor_of_another_shape_is_named(folder):
    norm = "model.norm.weight"
    with pytest.raises(CheckpointError) as refused:
        load_awq(changed(folder, lambda tensors: tensors.update({norm: torch.ones(64)})))
    assert (refused.value.tensor, refused.value.rule) == (norm, "shape")


def test_a_packed_layer_that_is_no_linear_of_the_model_is_refused(folder):
    old, new = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.experts.0.up_proj"

    def rename(tensors):
        for part in ("qweight", "qzeros", "scales"):
            tensors[f"{new}.{part}"] = tensors.pop(f"{old}.{part}")

    with pytest.raises(Unsupported, match=r"must be a torch\.nn\.Linear.*got nothing.*experts") as refused:
        load_awq(changed(folder, rename))
    assert refused.value.where == new


def test_without_transformers_what_to_install_is_said():
    code = "import sys; sys.modules['transformers'] = None; import baracuda_py.interop.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'baracuda-py[transformers]'" in done.stderr.splitlines()[-1]


@pytest.fixture
def hooked(monkeypatch):
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from baracuda_py.interop.transformers.quantizer import use_for_awq

    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "awq", None)
    use_for_awq()


@pytest.mark.parametrize("device", DEVICES)
def test_from_pretrained_makes_the_same_model(folders, hooked, device):
    folder, _ = folders
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).to(device)
    expected = load_awq(folder, device)
    assert sum(isinstance(one, AwqLinear) for one in model.modules()) == 14
    prompt = PROMPT.to(device)
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, expected(prompt).logits)


def test_what_it_saves_is_the_same_checkpoint(folders, hooked, tmp_path):
    folder, _ = folders
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "again"))
    assert before.keys() - {"lm_head.weight"} == after.keys() - {"lm_head.weight"}
    assert all(torch.equal(before[name], after[name]) for name in after if name in before)
    with torch.no_grad():
        assert torch.equal(load_awq(tmp_path / "again")(PROMPT).logits, model(PROMPT).logits)


def test_a_base_model_is_made_too(folders, hooked):
    folder, _ = folders
    base = transformers.AutoModel.from_pretrained(folder, dtype=torch.float16)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    with torch.no_grad():
        assert torch.equal(base(PROMPT).last_hidden_state, whole.model(PROMPT).last_hidden_state)


def test_from_pretrained_refuses_what_it_would_change(folders, hooked):
    folder, _ = folders
    with pytest.raises(Unsupported, match="dtype"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] = "gemv"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="gemm"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)


def test_a_module_that_makes_its_own_buffers_keeps_the_weights_of_the_folder(tmp_path):
    config = transformers.Gemma3TextConfig(**SIZES, head_dim=32, tie_word_embeddings=True)  # its embedding has a scale
    model = dense(config)
    model.generation_config.eos_token_id, model.generation_config.max_new_tokens = [7, 9], 5
    model.save_pretrained(tmp_path / "dense")
    quantize_checkpoint(tmp_path / "dense", tmp_path / "awq")
    loaded = load_awq(tmp_path / "awq")
    torch.testing.assert_close(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight, rtol=0, atol=0)
    assert float(loaded.model.embed_tokens.embed_scale) == float(model.model.embed_tokens.embed_scale)
    read = checkpoints.open(tmp_path / "awq")
    for name in read:
        weight = torch.from_numpy(checkpoints.unpack(read[name]).weights().T.copy())
        model.get_submodule(name).weight.data.copy_(weight)
    assert error(loaded(PROMPT).logits, model(PROMPT).logits) < 5e-3
    assert loaded.generation_config.eos_token_id == [7, 9]
    assert loaded.generation_config.max_new_tokens == 5


def test_a_buffer_that_the_folder_lacks_is_named(tmp_path):
    dense(CONFIGS["llama"]()).save_pretrained(tmp_path / "dense")
    quantize_checkpoint(tmp_path / "dense", tmp_path / "awq")

    class Shifted(transformers.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("shift", torch.full((96,), 3.0))

    with pytest.raises(CheckpointError, match="shift"):
        load_awq(tmp_path / "awq", model_class=Shifted)


def packed_folder(config, folder, maker=transformers.AutoModelForCausalLM, **options):
    """A quantised folder of small random weights."""
    torch.manual_seed(0)
    model = maker.from_config(config, dtype=torch.float16)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder / "dense")
    quantize_checkpoint(folder / "dense", folder / "awq", group_size=32, **options)
    return folder / "awq"


VISION = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
COMPOSED = {
    "a layer's buffer set by the whole": lambda: transformers.FalconH1Config(
        **SIZES, mamba_d_ssm=128, mamba_n_heads=4, mamba_d_head=32, mamba_n_groups=1, mamba_d_state=16
    ),
    "CLIP's own": lambda: transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SIZES), vision_config=transformers.CLIPVisionConfig(**VISION)
    ),
    "SigLIP's own": lambda: transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SIZES), vision_config=transformers.SiglipVisionConfig(**VISION)
    ),
    "gemma3n": lambda: transformers.Gemma3nTextConfig(
        **SIZES | {"num_hidden_layers": 1}, head_dim=32, vocab_size_per_layer_input=96, hidden_size_per_layer_input=32,
        num_kv_shared_layers=0, layer_types=["full_attention"], laurel_rank=32, altup_num_inputs=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("composed", COMPOSED)
def test_buffers_that_another_module_or_a_sub_model_sets_are_those_of_the_dense_model(composed, tmp_path, monkeypatch):
    config = COMPOSED[composed]()
    auto = transformers.AutoModelForCausalLM
    maker = transformers.AutoModelForImageTextToText if hasattr(config, "vision_config") else auto
    folder = packed_folder(config, tmp_path, maker)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *given, **options: empty_like(*given, **options).fill_(77))
    found = dict(load_awq(folder, model_class=maker).named_buffers())
    expected = dict(maker.from_pretrained(tmp_path / "dense", dtype=torch.float16).named_buffers())
    assert expected
    for name, buffer in expected.items():
        torch.testing.assert_close(found[name], buffer, rtol=0, atol=0)


def say(folder, **entries):
    """Change the configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder


def from_pretrained(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)


LOADERS = pytest.mark.parametrize("load", [load_awq, from_pretrained])


@LOADERS
@pytest.mark.parametrize("only", [["re:.*layers"], ["re:.*"]], ids=["dense head", "packed head"])
def test_a_folder_with_a_head_of_its_own_keeps_it_whatever_the_configuration_says_of_ties(load, only, hooked, tmp_path):
    folder = packed_folder(CONFIGS["llama"](), tmp_path, only=only)
    assert ("lm_head" in checkpoints.open(folder)) == (only == ["re:.*"])
    with torch.no_grad():
        expected = load(folder)(PROMPT).logits
        model = load(say(folder, tie_word_embeddings=True))
        assert torch.equal(model(PROMPT).logits, expected)
        packed = isinstance(model.lm_head, AwqLinear)
        assert ("lm_head.weight" in dict(model.named_parameters(remove_duplicate=False))) is not packed
        if load is from_pretrained:
            model.save_pretrained(tmp_path / "again")
            assert torch.equal(load(tmp_path / "again")(PROMPT).logits, expected)


@LOADERS
def test_a_tied_model_takes_the_head_where_the_folder_has_no_embedding(load, hooked, tmp_path):
    folder = say(packed_folder(CONFIGS["llama"](), tmp_path), tie_word_embeddings=True)
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    changed(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    model = load(folder)
    assert model.model.embed_tokens.weight is model.lm_head.weight
    assert torch.equal(model.lm_head.weight, head)


def test_a_packed_head_is_no_embedding(tmp_path):
    folder = say(packed_folder(CONFIGS["llama"](), tmp_path, only=["re:.*"]), tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight"):
        load_awq(changed(folder, lambda tensors: tensors.pop("model.embed_tokens.weight")))


@LOADERS
def test_a_bias_must_be_where_the_model_has_one_and_zeros_elsewhere(load, hooked, tmp_path):
    folder = packed_folder(CONFIGS["qwen2, biases"](), tmp_path)
    with torch.no_grad():
        expected = load(folder)(PROMPT).logits
    old, new = "model.layers.1.self_attn.q_proj.bias", "model.layers.1.self_attn.o_proj.bias"
    bias = torch.zeros(SIZES["hidden_size"], dtype=torch.float16)
    changed(folder, lambda tensors: tensors.update({new: bias}))
    with torch.no_grad():
        assert torch.equal(load(folder)(PROMPT).logits, expected)
    bias[3] = 1
    with pytest.raises(CheckpointError, match="must be zeros") as refused:
        load(changed(folder, lambda tensors: tensors.update({new: bias})))
    assert (refused.value.tensor, refused.value.rule) == (new, "unexpected")
    changed(folder, lambda tensors: tensors.pop(new))
    with pytest.raises(CheckpointError, match="must have a bias") as refused:
        load(changed(folder, lambda tensors: tensors.pop(old)))
    assert (refused.value.tensor, refused.value.rule) == (old, "missing")


def nothing_lost(load, folder, change):
    """The logits are what they were before the change."""
    with torch.no_grad():
        expected = load(folder)(PROMPT).logits
        assert torch.equal(load(changed(folder, change))(PROMPT).logits, expected)


@LOADERS
def test_a_layer_that_the_model_does_without_is_left_out(load, hooked, tmp_path):
    config = transformers.Glm4MoeConfig(
        **SIZES, head_dim=32, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, n_group=1,
        first_k_dense_replace=1, topk_group=1, pad_token_id=0,
    )  # fmt: skip
    folder = packed_folder(config, tmp_path)

    def add(tensors):  # 92 is the one for speculation in GLM-4.5
        here = [name for name in tensors if name.startswith("model.layers.1.")]
        tensors.update({name.replace("layers.1.", "layers.92."): tensors[name].clone() for name in here})
        tensors["model.layers.92.eh_proj.weight"] = torch.ones(128, 256, dtype=torch.float16)
        assert "model.layers.92.mlp.experts.3.up_proj.qweight" in tensors

    nothing_lost(load, folder, add)
    layer = {f"model.layers.91.o_proj.{part}": torch.ones(8, 8).int() for part in ("qweight", "qzeros", "scales")}
    with pytest.raises((CheckpointError, Unsupported), match=r"layers\.91\.o_proj"):
        load(changed(folder, lambda tensors: tensors.update(layer)))


@LOADERS
def test_masks_of_old_checkpoints_are_left_out(load, hooked, tmp_path):
    config = transformers.GPTNeoXConfig(**{name: size for name, size in SIZES.items() if "key_value" not in name})
    attention = "gpt_neox.layers.0.attention"
    old = {
        f"{attention}.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
        f"{attention}.masked_bias": torch.tensor(-1e9),
        f"{attention}.rotary_emb.inv_freq": torch.ones(4),
    }
    nothing_lost(load, packed_folder(config, tmp_path), lambda tensors: tensors.update(old))


@LOADERS
def test_scales_of_an_activation_are_refused(load, hooked, tmp_path):
    folder = packed_folder(transformers.Starcoder2Config(**SIZES), tmp_path)
    name = "model.layers.0.mlp.act.scales"
    scales = torch.full((SIZES["intermediate_size"],), 4, dtype=torch.float16)
    with pytest.raises(CheckpointError, match="a place for every") as refused:
        load(changed(folder, lambda tensors: tensors.update({name: scales})))
    assert (refused.value.tensor, refused.value.rule) == (name, "unexpected")


@LOADERS
def test_a_packed_step_size_that_its_model_does_not_call_is_refused(load, hooked, tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 96}
    config = transformers.MambaConfig(**sizes, state_size=16, time_step_rank=32)
    folder = packed_folder(config, tmp_path, only=["dt_proj", "re:.*in_proj"])
    with pytest.raises(Unsupported, match="dt_proj of a MambaMixer must not be packed") as refused:
        load(folder)
    assert (refused.value.where, refused.value.rule) == ("backbone.layers.0.mixer.dt_proj", "called")
    whole = packed_folder(config, tmp_path / "whole")
    with torch.no_grad():
        assert torch.isfinite(load(whole)(PROMPT).logits).all(), "quantised as it is by default, it runs"


def test_packed_projections_that_attention_does_not_call_are_refused(hooked, tmp_path):
    config = transformers.WavLMConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, conv_dim=(32,),
        conv_stride=(5,), conv_kernel=(10,), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    folder = packed_folder(config, tmp_path, transformers.AutoModel, only=["re:.*attention.q_proj"])
    with pytest.raises(Unsupported, match="q_proj of a WavLMAttention must not be packed"):
        load_awq(folder, model_class=transformers.AutoModel)
    with pytest.raises(Unsupported, match="out_proj of a MultiheadAttention must not be packed"):
        check_called(torch.nn.MultiheadAttention(8, 2), "out_proj", "head.attention.out_proj")


AWKWARD = {  # models that touch the weight of a linear, when they are made or when they run
    "a mask beside the packed layers": lambda: transformers.GPTNeoConfig(
        hidden_size=128, num_layers=2, num_heads=4, vocab_size=96, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
    ),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(
        n_embd=128, n_layer=1, n_head=4, vocab_size=96, n_positions=64
    ),
    "jamba": lambda: transformers.JambaConfig(
        **SIZES, num_experts=2, use_mamba_kernels=False, mamba_dt_rank=32, attn_layer_period=2, attn_layer_offset=1
    ),
    "t5": lambda: transformers.T5Config(
        d_model=128, d_ff=256, num_layers=1, num_heads=4, d_kv=32, vocab_size=96, feed_forward_proj="gated-gelu"
    ),
    "SigLIP": COMPOSED["SigLIP's own"],
}  # fmt: skip


@pytest.mark.parametrize("awkward", AWKWARD)
def test_models_that_touch_the_weight_of_a_linear_load_and_run(awkward, hooked, tmp_path):
    maker, given = transformers.AutoModelForCausalLM, {"input_ids": PROMPT}
    if awkward == "t5":
        maker, given = transformers.AutoModelForSeq2SeqLM, {"input_ids": PROMPT, "decoder_input_ids": PROMPT[:, :4]}
    elif awkward == "SigLIP":
        maker = transformers.AutoModelForImageTextToText
    folder = packed_folder(AWKWARD[awkward](), tmp_path, maker)
    read = checkpoints.open(folder)
    weights = {f"{name}.weight": torch.from_numpy(checkpoints.unpack(read[name]).weights().T.copy()) for name in read}
    changed(tmp_path / "dense", lambda tensors: tensors.update({n: w.half() for n, w in weights.items()}))
    with torch.no_grad():
        expected = maker.from_pretrained(tmp_path / "dense", dtype=torch.float16)(**given).logits
        for model in (load_awq(folder, model_class=maker), maker.from_pretrained(folder, dtype=torch.float16)):
            packed = [one for one in model.modules() if isinstance(one, AwqLinear)]
            assert len(packed) == len(read)
            assert {one.scales.dtype for one in packed} == {torch.float16}
            assert error(model(**given).logits, expected) < 5e-3


def unpickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, unpickled])
def test_a_loaded_model_and_its_copies_refuse_to_be_saved_as_a_folder_that_nothing_reads(copied, folder, tmp_path):
    model = load_awq(folder)
    with torch.no_grad():
        expected = model(PROMPT).logits
        model = copied(model)
        assert torch.equal(model(PROMPT).logits, expected)
    for part in (model, model.model):
        with pytest.raises(Unsupported, match="Copy the folder") as refused:
            part.save_pretrained(tmp_path / "again")
        assert str(folder) in str(refused.value)
    assert not (tmp_path / "again").exists()


def test_a_loaded_model_without_packed_layers_is_saved(folder, tmp_path):
    model = load_awq(folder.parent / "dense")
    model.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load_awq(tmp_path / "again")(PROMPT).logits, model(PROMPT).logits)
