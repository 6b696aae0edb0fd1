"""Layers that share their input as one: what their parts give, when it is computed, and what cannot be joined."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem
from baracuda_py.interop.torch import AwqLinear, AwqPart, fuse, fuse_projections

IC, SIZES = 128, (128, 64, 32)
NAMES = ("q_proj", "k_proj", "v_proj")
LAYOUTS = list(bp.AwqWeightLayout)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet():
    torch._dynamo.reset()  # the blocks of all tests share their code, and its graphs are limited in number


def filled(oc, *, layout=bp.AwqWeightLayout.HF_GEMM, bias=True, dtype=torch.float16, group_size=32, device="cpu"):
    made = AwqLinear(IC, oc, bias, group_size=group_size, dtype=dtype)
    made.qweight.random_(-(1 << 31), (1 << 31) - 1)
    made.qzeros.random_(-(1 << 31), (1 << 31) - 1)
    made.scales.uniform_(0.01, 0.02)
    if bias:
        made.bias.normal_()
    return made.to(device).repack_(layout)


class Block(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        for name, oc in zip(NAMES, SIZES, strict=True):
            setattr(self, name, filled(oc, **options))

    def forward(self, x):
        return [getattr(self, name)(x) for name in NAMES]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_give_what_their_layers_gave(layout, bias, device):
    block = Block(layout=layout, bias=bias, device=device)
    x = torch.randn(2, 3, IC, device=device).half()
    expected = block(x)
    whole = fuse(block, NAMES)
    assert (whole.in_features, whole.out_features, whole.layout) == (IC, sum(SIZES), layout)
    for found, wanted in zip(block(x), expected, strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
    assert [module for module in block.modules() if isinstance(module, AwqLinear)] == [whole]
    assert "in_features=128, out_features=64, part 1" in repr(block)


def test_all_are_computed_once_for_a_tensor_and_again_for_the_next(monkeypatch):
    block = Block()
    whole = fuse(block, NAMES)
    calls = []
    forward = AwqLinear.forward
    monkeypatch.setattr(AwqLinear, "forward", lambda self, x: calls.append(self) or forward(self, x))
    x = torch.randn(2, IC).half()
    first = block(x)
    assert calls == [whole]
    second = block(x.mul_(2))  # the same tensor, changed since: nothing is left of what it gave before
    assert calls == [whole] * 2
    assert not torch.equal(first[0], second[0])
    block.k_proj(x)
    block.k_proj(x)  # twice the same part: its tensor may have changed
    assert len(calls) == 4
    other = torch.randn(2, IC).half()
    torch.testing.assert_close(block.q_proj(other), whole(other)[:, : SIZES[0]])


def test_nothing_is_held_once_every_part_is_taken():
    block = Block()
    fuse(block, NAMES)
    block(torch.randn(2, IC).half())
    assert block.q_proj._results.own.parts == []


def test_a_call_of_another_thread_in_between_changes_nothing():
    block = Block()
    fuse(block, NAMES)
    x, other = torch.randn(2, IC).half(), torch.randn(2, IC).half()
    expected, theirs = block(x), block(other)
    with ThreadPoolExecutor(1) as pool:
        first = block.q_proj(x)
        between = [pool.submit(block.q_proj, other).result(), pool.submit(block.k_proj, other).result()]
        found = [first, block.k_proj(x), block.v_proj(x)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(between, theirs, strict=False))
    assert block.q_proj._results.own.parts == []


def test_copies_share_their_weights_among_themselves_alone():
    block = Block()
    whole = fuse(block, NAMES)
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    for twin in (copy.deepcopy(block), torch.load(file, weights_only=False)):
        assert twin.q_proj.whole is twin.v_proj.whole is not whole
        assert twin.q_proj._results is twin.v_proj._results is not block.q_proj._results
        x = torch.randn(2, IC).half()
        for found, wanted in zip(twin(x), block(x), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_compiled_it_is_one_graph_with_the_same_result(monkeypatch, backend, dynamic, layout):
    device = "cuda" if backend == "inductor" else "cpu"  # for the CPU it wants a compiler
    block = Block(device=device, layout=layout)
    fuse(block, NAMES)
    products = []
    run = bp.Plan.run
    note = lambda plan, *given: (products.append(given[-1].output.shape[-1]), run(plan, *given))[1]  # noqa: E731
    monkeypatch.setattr(bp.Plan, "run", note)
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=dynamic)
    with torch.inference_mode():
        for rows in (2, 2, 3):
            x = torch.randn(rows, IC, device=device).half()
            products.clear()
            made = compiled(x)
            assert products == (list(SIZES) if layout is bp.AwqWeightLayout.TILED else [sum(SIZES)] * 3)
            for found, wanted in zip(made, block(x), strict=True):
                torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


class Changing(Block):
    def forward(self, x):
        x = x.clone()
        first = self.q_proj(x)
        return first, self.k_proj(x.mul_(2)), self.v_proj(x.add_(1))


def apart_and_fused(kind=Block, **options):
    apart = kind(**options)
    fused = copy.deepcopy(apart)
    fuse(fused, NAMES)
    return apart, fused


def equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("record", ["eager", "aot_eager", "export", "strict export"])
@torch.no_grad()
def test_what_changes_in_a_recorded_graph_is_computed_anew(record, layout):
    apart, fused = apart_and_fused(Changing, layout=layout)
    x = torch.randn(2, IC).half()
    if "export" in record:
        recorded = torch.export.export(fused, (x,), strict="strict" in record).module()
    else:
        recorded = torch.compile(fused, backend=record, fullgraph=True)
    for given in (x, x, torch.randn(2, IC).half()):
        equal(recorded(given), apart(given))


@torch.no_grad()
def test_graphs_of_two_parts_share_no_product():
    apart, fused = apart_and_fused()
    parts = fused.q_proj, fused.k_proj
    first, second = (torch.compile(lambda x, part=part: part(x), backend="eager") for part in parts)
    x = torch.randn(2, IC).half()
    for _ in range(3):
        equal([first(x)], [apart.q_proj(x)])
        x.copy_(torch.randn(2, IC))
        equal([second(x)], [apart.k_proj(x)])


@torch.no_grad()
def test_compiled_hooks_of_the_whole_are_called():
    _, fused = apart_and_fused(layout=bp.AwqWeightLayout.TILED)
    fused.q_proj.whole.register_forward_hook(lambda module, given, made: made + 1)
    x = torch.randn(2, IC).half()
    equal(torch.compile(fused, backend="eager")(x), fused(x))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bias": False}, "bias"),
        ({"group_size": 64}, "group_size"),
        ({"layout": bp.AwqWeightLayout.OC_MAJOR}, "layout"),
        ({"dtype": torch.bfloat16}, "scales_element"),
    ],
)
def test_layers_that_differ_are_refused_and_left_alone(changed, words):
    block = Block()
    block.v_proj = filled(SIZES[2], **changed)
    with pytest.raises(InvalidProblem, match=words):
        fuse(block, NAMES)
    assert fuse_projections(block) == 0
    assert type(block.v_proj) is AwqLinear
    block.v_proj = torch.nn.Linear(IC, 8)
    with pytest.raises(InvalidProblem, match="AwqLinear"):
        fuse(block, NAMES)


def test_the_whole_multiplies_in_fp8_where_its_parts_did():
    block = torch.nn.Module()
    block.a, block.b = (filled(64, layout=bp.AwqWeightLayout.TILED) for _ in range(2))
    block.a.fp8_rows = 4
    with pytest.raises(InvalidProblem, match="fp8_rows"):
        fuse(block, ("a", "b"))
    block.b.fp8_rows = 4
    assert fuse(block, ("a", "b")).fp8_rows == 4


def test_tiles_are_not_cut_by_a_join():
    block = Block(layout=bp.AwqWeightLayout.TILED)
    block.k_proj, block.v_proj = block.v_proj, block.k_proj  # 32 channels before 64
    with pytest.raises(InvalidProblem, match="64"):
        fuse(block, NAMES)


def test_projections_are_found_wherever_they_are():
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
    for layer in model.layers:
        layer.attention, layer.mlp = Block(), torch.nn.Module()
        layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj = filled(64), filled(64), filled(32)
    assert fuse_projections(model) == 4
    assert fuse_projections(model) == 0
    kinds = {type(layer.mlp.up_proj) for layer in model.layers} | {type(model.layers[0].attention.v_proj)}
    assert kinds == {AwqPart}
    assert type(model.layers[1].mlp.down_proj) is AwqLinear


def test_what_changes_in_between_is_computed_anew():
    block = Block()
    expected = block.k_proj(torch.ones(2, IC).half())
    fuse(block, NAMES)
    x = torch.zeros(2, IC).half()
    block.q_proj(x)
    x += 1
    torch.testing.assert_close(block.k_proj(x), expected, rtol=2e-3, atol=2e-3)
    with torch.inference_mode():
        block.q_proj(x)
    assert not block.v_proj(x).is_inference()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_the_inference_mode_share_no_product(layout):
    apart, fused = apart_and_fused(Changing, layout=layout)
    with torch.inference_mode():
        x = torch.randn(2, IC).half()
        for _ in range(2):
            equal(fused(x), apart(x))
        weights_of_the_mode = copy.deepcopy(fused)
    x = torch.randn(2, IC).half()
    equal(weights_of_the_mode(x), apart(x))


def test_weights_that_change_in_between_are_read_anew():
    apart, fused = apart_and_fused()
    other, fused_other = apart_and_fused()
    whole = fused.q_proj.whole
    x = torch.randn(2, IC).half()

    def loaded(**options):
        fused.load_state_dict(fused_other.state_dict(), **options)
        return other

    def replaced():
        whole.qweight = fused_other.q_proj.whole.qweight.clone()
        whole.qzeros.data = fused_other.q_proj.whole.qzeros.clone()
        whole.scales, whole.bias = fused_other.q_proj.whole.scales.clone(), fused_other.q_proj.whole.bias.clone()
        return other

    start = {name: tensor.clone() for name, tensor in fused.state_dict().items()}
    for change in (loaded, lambda: loaded(assign=True), replaced):
        fused.load_state_dict(copy.deepcopy(start), assign=True)
        equal([fused.q_proj(x)], [apart.q_proj(x)])
        changed = change()
        equal([fused.k_proj(x)], [changed.k_proj(x)])


def test_data_that_moves_is_another_input():
    apart, fused = apart_and_fused()
    x = torch.randn(2, IC).half()
    fused.q_proj(x)
    x.data = torch.randn(2, IC).half()
    equal([fused.k_proj(x)], [apart.k_proj(x)])


def test_a_gradient_is_refused_behind_a_part_that_had_none():
    block = Block()
    fuse(block, NAMES)
    x = torch.randn(2, IC).half().requires_grad_()
    with torch.no_grad():
        block.q_proj(x)
    with pytest.raises(RuntimeError, match="no gradient"):
        block.k_proj(x)


def test_parts_that_nobody_takes_go_with_their_input():
    block = Block()
    fuse(block, NAMES)
    x = torch.randn(2, IC).half()
    block.q_proj(x)
    result = block.q_proj._results.own
    held = weakref.ref(x)
    assert len(result.parts) == len(SIZES)
    del x
    gc.collect()
    assert held() is None
    assert not result.parts
    equal([block.k_proj(torch.ones(2, IC).half())], [block.q_proj.whole(torch.ones(2, IC).half())[:, 128:192]])


@pytest.mark.parametrize(
    "hook",
    [
        lambda layer: layer.register_forward_hook(lambda module, given, made: made + 1),
        lambda layer: layer.register_forward_pre_hook(lambda module, given: None),
        lambda layer: setattr(layer, "forward", lambda x: x),
    ],
)
def test_layers_with_hooks_are_left_alone(hook):
    block = Block()
    hook(block.k_proj)
    with pytest.raises(InvalidProblem, match="hooks"):
        fuse(block, NAMES)
    assert fuse_projections(block) == 0
    assert type(block.k_proj) is AwqLinear
