"""Mixtures of experts with packed weights: loaded by `load_awq` and `from_pretrained`, dispatched either way."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.errors import CheckpointError, Unsupported
from baracuda_py.interop.torch import AwqLinear
from baracuda_py.interop.transformers import AwqExperts, load_awq
from baracuda_py.quantize import quantize_checkpoint

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
    "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip
QWEN = {**SIZES, "intermediate_size": 256, "num_experts": 4, "moe_intermediate_size": 128}
CONFIGS = {
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, intermediate_size=256, num_local_experts=4),
    # A shared expert beside the others, and a layer without experts.
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=256, mlp_only_layers=[0]),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**QWEN, head_dim=32, norm_topk_prob=True),
    # A router with a bias in f32, and experts in groups.
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **SIZES | {"num_key_value_heads": 4}, intermediate_size=256, moe_intermediate_size=128, n_routed_experts=4,
        n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=64, q_lora_rank=64, qk_rope_head_dim=32,
        qk_nope_head_dim=32, v_head_dim=32,
    ),
}  # fmt: skip
PROMPT = torch.arange(3, 15).reshape(2, 6)  # 0 is padding


def dense(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.08)  # so that the layers count
    model.set_experts_implementation("eager")
    return model.requires_grad_(False).eval()


def write(config, folder, **options):
    """A quantised folder, and the same model with the weights that it stands for."""
    model = dense(config)
    model.save_pretrained(folder / "dense")
    quantize_checkpoint(folder / "dense", folder / "awq", **options)
    read = checkpoints.open(folder / "awq")
    for name in read:
        weight = torch.from_numpy(checkpoints.unpack(read[name]).weights().T.copy())
        head, inside, number = name.partition(".experts.")
        if not inside:
            model.get_submodule(name).weight.data.copy_(weight)
            continue
        experts = model.get_submodule(head.replace("block_sparse_moe", "mlp") + ".experts")
        number, matrix = number.split(".")
        if matrix in ("w2", "down_proj"):
            experts.down_proj.data[int(number)] = weight
        else:
            half = experts.gate_up_proj.data[int(number)].chunk(2)
            half[matrix in ("w3", "up_proj")].copy_(weight)
    return folder / "awq", model


@pytest.fixture(scope="module", params=CONFIGS)
def folders(request, tmp_path_factory):
    return write(CONFIGS[request.param](), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return write(CONFIGS["mixtral"](), tmp_path_factory.mktemp("model"))


def exact_logits(model, prompt=PROMPT):
    """In float64; the router's choice is that of f16."""
    with torch.no_grad():
        return model.double()(prompt).logits


def error(found, exact):
    found, exact = found.double().cpu(), exact.double().cpu()
    return float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact))


def experts_of(model):
    return [module for module in model.modules() if isinstance(module, AwqExperts)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout)
def test_logits_are_those_of_the_dequantised_model(folders, layout, device):
    folder, exact = folders
    model = load_awq(folder, device, layout=layout)
    packed = [name for name, module in model.named_modules() if isinstance(module, AwqLinear)]
    assert len(packed) == len(checkpoints.open(folder))
    assert sum(".experts." in name for name in packed) == 12 * len(experts_of(model)) > 0
    expected = exact_logits(exact)
    with torch.no_grad():
        assert error(model(PROMPT.to(device)).logits, expected) < 2e-3
        for experts in experts_of(model):
            experts.dense_dispatch = True
        assert error(model(PROMPT.to(device)).logits, expected) < 2e-3
    assert not any(parameter.is_meta for parameter in model.parameters())


def routed(tokens, k=2, experts=4):
    torch.manual_seed(1)
    index = torch.rand(tokens, experts).topk(k, dim=-1).indices
    return torch.randn(tokens, SIZES["hidden_size"]).half(), index, torch.rand(tokens, k)


def test_each_way_to_dispatch_computes_what_transformers_does(mixtral):
    folder, exact = mixtral
    experts, eager = experts_of(load_awq(folder))[1], exact.model.layers[1].mlp.experts
    for tokens in (1, 3, 40):
        x, index, weights = routed(tokens)
        if tokens == 3:
            index[1, 0] = experts.num_experts  # none
            index[2, 1] = index[2, 0]  # the same twice
        with torch.no_grad():
            expected = eager.double()(x.double(), index, weights.double())
            for dense_dispatch in (False, True):
                experts.dense_dispatch = dense_dispatch
                found = experts(x, index, weights)
                assert found.dtype == torch.float16
                assert error(found, expected) < 2e-3


def test_experts_without_tokens_do_not_run_unless_dispatch_is_dense(mixtral):
    experts = experts_of(load_awq(mixtral[0]))[0]
    x, index, weights = routed(6)
    index.copy_(torch.tensor([[2, 0]]).expand(6, 2))
    ran = []
    for number in range(4):
        experts.get_submodule(f"{number}.w1").register_forward_hook(
            lambda _module, args, _y, number=number: ran.append((number, args[0].shape[0]))
        )
    with torch.no_grad():
        experts(x, index, weights)
        assert ran == [(0, 6), (2, 6)]
        assert experts(x[:0], index[:0], weights[:0]).shape == (0, 128)
        ran.clear()
        experts.dense_dispatch = True
        experts(x, index, weights)
    assert ran == [(number, 6) for number in range(4)]


def test_dense_dispatch_drops_what_overflows_in_experts_that_were_not_chosen(mixtral):
    experts = experts_of(load_awq(mixtral[0]))[0]
    x, index, weights = routed(4)
    index.copy_(torch.tensor([[2, 0]]).expand(4, 2))
    with torch.no_grad():
        expected = experts(x, index, weights)
        experts.get_submodule("1.w2").scales.fill_(torch.inf)
        experts.dense_dispatch = True
        assert error(experts(x, index, weights), expected) < 2e-3


def test_dense_dispatch_compiles_whole(mixtral):
    experts = experts_of(load_awq(mixtral[0]))[0]
    experts.dense_dispatch = True
    call = torch.compile(experts, backend="aot_eager", fullgraph=True)
    given = routed(5)
    with torch.no_grad():
        torch.testing.assert_close(call(*given), experts(*given), rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
def test_a_graph_takes_dense_dispatch_and_refuses_the_other(mixtral):
    experts = experts_of(load_awq(mixtral[0], "cuda"))[0]
    given = [one.cuda() for one in routed(3)]
    with torch.no_grad():
        expected = experts(*given)
        graph = torch.cuda.CUDAGraph()
        experts.dense_dispatch = True
        experts(*given)
        with torch.cuda.graph(graph):
            found = experts(*given)
        found.fill_(torch.nan)
        graph.replay()
        assert error(found, expected) < 2e-3
        given[1].copy_(given[1].flip(0))  # other experts, the same graph
        graph.replay()
        experts.dense_dispatch = False
        assert error(found, experts(*given)) < 2e-3
        with pytest.raises(Unsupported, match="dense_dispatch = True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            experts(*given)


@pytest.mark.parametrize("skip", [["w1"], ["re:.*experts.2."], ["re:.*layers.1.*experts"]])
def test_experts_that_are_not_packed_stay_as_they_are(skip, tmp_path):
    folder, exact = write(CONFIGS["mixtral"](), tmp_path, skip=skip)
    model = load_awq(folder)
    for name, module in model.named_modules():
        if ".experts." in name and name.count(".") == 6:
            stored = f"{name.replace('mlp', 'block_sparse_moe')}"
            assert isinstance(module, AwqLinear) == (stored in checkpoints.open(folder))
    assert len(experts_of(model)) == (1 if "layers.1" in skip[0] else 2)
    with torch.no_grad():
        assert error(model(PROMPT).logits, exact_logits(exact)) < 2e-3


def changed(folder, target, change):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


PARTS = ("qweight", "qzeros", "scales")
LAYER = "model.layers.1.block_sparse_moe.experts"


def test_an_expert_that_is_missing_is_named(mixtral, tmp_path):
    def drop(tensors):
        for part in PARTS:
            del tensors[f"{LAYER}.2.w3.{part}"]

    with pytest.raises(CheckpointError) as refused:
        load_awq(changed(mixtral[0], tmp_path / "packed", drop))
    assert (refused.value.tensor, refused.value.rule) == ("model.layers.1.mlp.experts.2.w3.weight", "missing")
    folder, _ = write(CONFIGS["mixtral"](), tmp_path, skip=["re:.*experts"])
    with pytest.raises(CheckpointError) as refused:
        load_awq(changed(folder, tmp_path / "plain", lambda tensors: tensors.pop(f"{LAYER}.2.w3.weight")))
    assert (refused.value.tensor, refused.value.rule) == ("model.layers.1.mlp.experts.gate_up_proj", "missing")


def test_an_expert_too_many_and_one_of_another_shape_are_named(mixtral, tmp_path):
    def more(tensors):
        for part in PARTS:
            tensors[f"{LAYER}.4.w1.{part}"] = tensors[f"{LAYER}.3.w1.{part}"].clone()

    with pytest.raises(Unsupported, match="got nothing") as refused:
        load_awq(changed(mixtral[0], tmp_path / "packed", more))
    assert refused.value.where == f"{LAYER}.4.w1"
    folder, _ = write(CONFIGS["mixtral"](), tmp_path, skip=["re:.*experts"])
    for number, name in ((4, "more"), (2, "shape")):
        change = {f"{LAYER}.{number}.w1.weight": torch.ones(256, 64, dtype=torch.float16)}
        with pytest.raises(CheckpointError, match="shape") as refused:
            load_awq(changed(folder, tmp_path / name, lambda tensors, change=change: tensors.update(change)))
        assert refused.value.tensor in change


def test_a_packed_router_is_refused(mixtral, tmp_path):
    old, new = "model.layers.0.self_attn.k_proj", "model.layers.0.block_sparse_moe.gate"

    def rename(tensors):
        for part in PARTS:
            tensors[f"{new}.{part}"] = tensors.pop(f"{old}.{part}")

    with pytest.raises(Unsupported, match="TopKRouter") as refused:
        load_awq(changed(mixtral[0], tmp_path / "router", rename))
    assert refused.value.where == new


@pytest.mark.parametrize(("attribute", "value", "said"), [
    ("has_bias", True, "has_bias = True"), ("is_concatenated", False, "is_concatenated = False"),
    ("_apply_gate", lambda self, y: y, "a gate of its own"),
])  # fmt: skip
def test_experts_that_compute_something_else_are_refused(mixtral, monkeypatch, attribute, value, said):
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    if attribute.startswith("_"):
        monkeypatch.setattr(MixtralExperts, attribute, value)
    else:
        made = MixtralExperts.__init__

        def make(self, config):
            made(self, config)
            setattr(self, attribute, value)

        monkeypatch.setattr(MixtralExperts, "__init__", make)
    with pytest.raises(Unsupported, match=f"MixtralExperts with {said}"):
        load_awq(mixtral[0])


@pytest.fixture
def hooked(monkeypatch):
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from baracuda_py.interop.transformers.quantizer import use_for_awq

    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "awq", None)
    use_for_awq()


def test_from_pretrained_makes_the_same_model_and_saves_the_same_checkpoint(folders, hooked, tmp_path):
    folder, _ = folders
    model, twin = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16), load_awq(folder)
    expected = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in twin.state_dict().items()} == expected  # a router's may be f32
    with torch.no_grad():
        logits = model(PROMPT).logits
        assert torch.equal(logits, twin(PROMPT).logits)
        model.save_pretrained(tmp_path / "again")
        before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "again"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name].to(after[name].dtype), after[name]) for name in after)
        assert error(load_awq(tmp_path / "again")(PROMPT).logits, logits) < 2e-3


def test_from_pretrained_refuses_layers_with_experts_of_both_kinds(tmp_path, hooked):
    folder, _ = write(CONFIGS["mixtral"](), tmp_path, skip=["w1"])
    with pytest.raises(Unsupported, match="8 packed matrices of 12"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
