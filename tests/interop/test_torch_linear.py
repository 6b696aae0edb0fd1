"""`AwqLinear` in the place of `torch.nn.Linear`: on the CPU here, and marked `gpu` on one."""

from __future__ import annotations

import copy
import io
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing._internal.two_tensor import TwoTensor

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.interop.torch import AwqLinear, kept
from baracuda_py.interop.torch.calls import readable, workspace_for
from baracuda_py.quantize import quantize_awq

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))
from checkpoint_files import MARLIN_SIZES, NAME, weight, write

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS = list(bp.AwqWeightLayout)
IC, OC = 256, 136


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def filled(layout=bp.AwqWeightLayout.HF_GEMM, *, bias=True, dtype=torch.float16, device="cpu", group_size=128):
    """A module and its weight (out, in) in float64."""
    made = quantize_awq(
        (0.05 * np.random.default_rng(0).standard_normal((OC, IC))).astype(np.float32), group_size=group_size,
        scales_element=bp.ElementKind.F16 if dtype is torch.float16 else bp.ElementKind.BF16,
    )  # fmt: skip
    module = AwqLinear(IC, OC, bias, group_size=group_size, dtype=dtype, device=device)
    scales = torch.from_numpy(made.scales.astype(np.float32)).to(dtype)
    state = {"qweight": torch.from_numpy(made.qweight), "qzeros": torch.from_numpy(made.qzeros), "scales": scales}
    if bias:
        state["bias"] = torch.linspace(-1, 1, OC).to(dtype)
    module.load_state_dict(state)
    return module.repack_(layout), torch.from_numpy(made.dequantize()).double()


def close(y, x, w, bias):
    exact = x.double().cpu() @ w.T + (0 if bias is None else bias.double().cpu())
    limit = 5e-4 if x.dtype is torch.float16 else 4e-3
    assert torch.linalg.norm(y.double().cpu() - exact) <= limit * torch.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_a_linear_layer_for_any_number_of_axes(layout, bias, dtype, device):
    module, w = filled(layout, bias=bias, dtype=dtype, device=device)
    assert (module.layout, module.qzeros is None) == (layout, layout.holds_scales)
    for shape in ((IC,), (3, IC), (2, 5, IC), (1, 1, 70, IC), (0, IC)):
        x = torch.randn(shape).to(dtype).to(device)
        y = module(x)
        assert (y.shape, y.dtype, y.device) == ((*shape[:-1], OC), x.dtype, x.device)
        close(y, x, w, module.bias)


def test_activations_may_have_another_element_than_the_scales(device):
    module, w = filled(dtype=torch.float16, device=device)
    x = torch.randn(4, IC).to(torch.bfloat16).to(device)
    close(module(x), x, w, module.bias)


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_repacking_there_and_back_changes_nothing(first, second, device):
    module, _ = filled(first, device=device, group_size=64)
    before = {name: None if one is None else one.clone() for name, one in module.named_buffers()}
    x = torch.randn(3, IC, device=device).half()
    expected = module(x)
    module.repack_(second)
    torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-3)
    module.repack_(first)
    after = dict(module.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", checkpoints.PackedFormat)
def test_a_layer_of_any_checkpoint_format_becomes_one(format, layout, tmp_path, device):
    symmetric = format is checkpoints.PackedFormat.AWQ_MARLIN
    made = weight(41, *MARLIN_SIZES, 128, symmetric=symmetric, least_zero=1)
    layer = checkpoints.open(write(tmp_path, format.value, made, bias=np.arange(MARLIN_SIZES[1]) / 64))[NAME]
    module = AwqLinear.from_layer(layer, device=device, layout=layout)
    assert module.qweight.device.type == device
    x = torch.randn(5, MARLIN_SIZES[0]).half().to(device)
    close(module(x), x, torch.from_numpy(made.exact.T.copy()), module.bias)


def in_fp8(x):
    """The rows as fp8 with a scale each stands for them: what `QuantizePerToken` says it does, ties included."""
    scales = x.float().abs().amax(-1, keepdim=True) / 448
    return (x.float() * (1 / scales)).to(torch.float8_e4m3fn).double() * scales.double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_many_rows_are_multiplied_in_fp8_where_it_is_asked_for(bias, dtype, device):
    if device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("fp8 runs on Hopper")
    module, w = filled(bp.AwqWeightLayout.TILED, bias=bias, dtype=dtype, device=device)
    other, _ = filled(bp.AwqWeightLayout.TILED, bias=bias, dtype=dtype, device=device)
    few, many = (torch.randn(2, rows, IC).to(dtype).to(device) for rows in (9, 10))
    plain = [[module(x) for _ in range(2)][-1] for x in (few, many)]
    module.fp8_rows = 20
    for _ in range(2):
        assert torch.equal(module(few), plain[0])
        y = module(many)
        assert (y.shape, y.dtype, y.device) == (plain[1].shape, plain[1].dtype, plain[1].device)
        assert not torch.equal(y, plain[1])
        added = 0 if module.bias is None else module.bias.double().cpu()
        exact = in_fp8(many.cpu()) @ w.T + added
        limit = 5e-4 if dtype is torch.float16 else 3e-3
        assert torch.linalg.norm(y.double().cpu() - exact) <= limit * torch.linalg.norm(exact)
        assert torch.equal(other(many), plain[1]), "a module of the same sizes is not asked"
    module.fp8_rows = None
    assert torch.equal(module(many), plain[1])


def test_fp8_from_no_rows_on_is_refused():
    module, _ = filled()
    with pytest.raises(InvalidProblem, match="fp8_rows"):
        module.fp8_rows = 0


def test_fp8_compiles_without_a_graph_break(device):
    if device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("fp8 runs on Hopper")
    module, _ = filled(bp.AwqWeightLayout.TILED, device=device)
    module.fp8_rows = 8
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for rows in (3, 8, 40):
        x = torch.randn(rows, IC, device=device).half()
        with torch.no_grad():
            assert torch.equal(compiled(x), module(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_block_compiles_without_a_graph_break(layout, dynamic, device):
    module, _ = filled(layout, device=device)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = module

        def forward(self, x):
            return torch.nn.functional.silu(self.linear(x)) + 1

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    block = Block()
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend=counter)
        for rows in (4, 2, 9):
            x = torch.randn(2, rows, IC, device=device).half()
            torch.testing.assert_close(compiled(x), block(x))
    assert counter.frame_count == (1 if dynamic else 3)


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_captured_in_a_cuda_graph(layout, overlap):
    module, _ = filled(layout, device="cuda")
    module.overlap = overlap
    x = torch.randn(40, IC, device="cuda").half()
    expected = module(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    held = torch.full_like(x, float("nan"))
    with torch.cuda.graph(graph, stream=stream):
        held.copy_(x)  # no launch, but a copy is ahead of the first call
        first = module(held)
        held.add_(0)  # a launch that knows nothing of the next one
        second, third = module(held), module(held)
    for y in (first, second, third):
        y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    for y in (first, second, third):
        assert torch.equal(y, expected)


def test_copies_and_files_of_it_are_the_same_layer(device):
    module, _ = filled(bp.AwqWeightLayout.TILED, device=device)
    x = torch.randn(3, IC, device=device).half()
    expected = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)
        assert other.qweight.data_ptr() != module.qweight.data_ptr()
    assert "layout=tiled" in repr(module)


def test_a_gradient_is_refused_in_words():
    module, _ = filled()
    with pytest.raises(RuntimeError, match="no_grad"):
        module(torch.randn(2, IC).half().requires_grad_())
    with torch.no_grad():
        module(torch.randn(2, IC).half().requires_grad_())


def test_whoever_records_operators_or_differentiates_them_sees_the_operator():
    from torch.autograd import forward_ad
    from torch.fx.experimental.proxy_tensor import make_fx

    module, _ = filled()
    x, other = torch.randn(2, IC).half(), torch.randn(2, IC).half()
    expected = module(x), module(other)
    recorded = make_fx(module)(x)
    assert "int4_awq_gemm" in recorded.code
    torch.testing.assert_close(recorded(other), expected[1])
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="gradient"):
        module(forward_ad.make_dual(x, torch.ones_like(x)))
    torch.testing.assert_close(module(x), expected[0])


def test_what_does_not_fit_is_refused_by_name():
    module, _ = filled()
    with pytest.raises(InvalidProblem, match=f"must have {IC}"):
        module(torch.randn(2, IC + 8).half())
    with pytest.raises(Unsupported, match="F32"):
        module(torch.randn(2, IC))
    with pytest.raises(Unsupported, match="group_size"):
        AwqLinear(IC, OC, group_size=48)
    with pytest.raises(InvalidProblem, match="oc"):
        AwqLinear(IC, OC + 1)


def test_a_cast_of_the_model_changes_no_weights(device):
    x = torch.randn(3, IC, device=device)
    for layout in LAYOUTS:
        module, w = filled(layout, device=device)
        expected = module(x.half())
        for cast in ("bfloat16", "float", "double", "half"):
            getattr(module, cast)()
            assert module.scales_element is bp.ElementKind.F16
            assert module.bias is None or module.bias.dtype in (torch.float16, torch.bfloat16)
            close(module(x.bfloat16()), x.bfloat16(), w, module.bias)
        torch.testing.assert_close(module(x.half()), expected, rtol=1e-2, atol=1e-2)  # its bias was bf16
        close(module.repack_(bp.AwqWeightLayout.TILED)(x.half()), x.half(), w, module.bias)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_takes_over_the_dtype_of_the_scales(layout, assign, device):
    module, w = filled(layout, dtype=torch.bfloat16, device=device, bias=False)
    other = AwqLinear(IC, OC, False, layout=layout, device="meta" if assign else device)
    x = torch.randn(3, IC).half().to(device)
    if not assign:
        other(x)  # plans of the old dtype are no use any more
    other.load_state_dict(module.state_dict(), assign=assign)
    assert other.scales_element is bp.ElementKind.BF16
    close(other(x), x, w, None)
    close(other.repack_(bp.AwqWeightLayout.TILED)(x), x, w, None)
    close(other.repack_(bp.AwqWeightLayout.HF_GEMM)(x), x, w, None)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_a_state_dict_of_another_layout_is_refused(first, second, strict):
    def square(layout):
        made = AwqLinear(128, 128, False).repack_(layout)
        return torch.nn.Sequential(torch.nn.Identity(), made)

    state = square(first).state_dict()
    if first is second:
        assert not any(square(second).load_state_dict(state, strict=strict))
    else:
        with pytest.raises(RuntimeError, match=f"1.qweight is in the layout {first.value}, .* is {second.value}"):
            square(second).load_state_dict(state, strict=strict)


def test_loading_takes_over_the_dtype_of_the_bias():
    module, _ = filled(dtype=torch.bfloat16)
    module.bias.fill_(1e5)  # which f16 cannot hold
    other = AwqLinear(IC, OC)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.bias, module.bias)


def test_a_form_that_is_none_is_refused():
    module, _ = filled(bp.AwqWeightLayout.TILED)
    form = torch.tensor(list(b"tiled f32"), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="weight_form must say f16 or bf16, not 'tiled f32'"):
        module.load_state_dict({**module.state_dict(), "weight_form": form})


@pytest.mark.parametrize("assign", [False, True])
def test_a_load_that_is_refused_leaves_scales_as_they_were(assign):
    module, w = filled()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(2, IC).half()
    with pytest.raises(RuntimeError, match="size mismatch for scales"):
        module.load_state_dict({**state, "scales": state["scales"].bfloat16()[:, :64]}, assign=assign)
    close(module(x), x, w, module.bias)
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        module.load_state_dict({**state, "bias": state["bias"].bfloat16()[:64]}, assign=assign)
    close(module(x), x, w, module.bias)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int16, torch.uint8])
@pytest.mark.parametrize("part", ["qweight", "qzeros"])
def test_packed_weights_that_are_no_words_are_refused(part, dtype, assign):
    module, w = filled()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"{part} must be int32 or uint32"):
        module.load_state_dict({**state, part: state[part].to(dtype)}, assign=assign)
    module.load_state_dict({**state, part: state[part].view(torch.uint32)}, assign=assign)
    x = torch.randn(2, IC).half()
    close(module(x), x, w, module.bias)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_change_of_type_leaves_the_weights_as_they_are(layout, dtype):
    module, w = filled(layout, bias=False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.type(dtype)
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    x = torch.randn(2, IC).half()
    close(module(x), x, w, None)


def test_models_that_ask_for_a_dense_weight_find_none():
    module, _ = filled()
    assert module.weight is None
    assert "weight" not in module.state_dict()


def test_scales_of_another_dtype_are_refused():
    module, _ = filled()
    with pytest.raises(RuntimeError, match=r"scales must be float16 or bfloat16, not torch\.float32"):
        module.load_state_dict({**module.state_dict(), "scales": module.scales.float()})
    with pytest.raises(InvalidProblem, match="float16 or bfloat16"):
        AwqLinear(IC, OC, dtype=torch.float32)


def strided(x):
    """The same activations, lying otherwise."""
    rows, width = x.shape
    yield x.t().contiguous().t()
    yield torch.stack([x, x], 2).flatten(1)[:, ::2]
    yield torch.cat([x, x], 1)[:, :width]
    shifted = torch.empty(rows * width + 4, dtype=x.dtype, device=x.device)[4:].view(rows, width)
    yield shifted.copy_(x)
    padded = torch.empty(rows, width + 12, dtype=x.dtype, device=x.device)[:, 4 : width + 4]
    yield padded.copy_(x)
    yield torch._neg_view(-x)
    yield torch.complex(x.float(), -x.float()).conj().imag.to(x.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_may_lie_in_memory_as_they_like(layout, device):
    module, _ = filled(layout, device=device)
    x = torch.randn(5, IC).half().to(device)
    expected = module(x)
    options = {"oc": OC, "split_k_iters": None, "weight_layout": layout.value, "epilogue": "bias"}
    parts = (module.qweight, module.scales, module.qzeros, module.bias)
    for other in strided(x):
        assert torch.equal(module(other), expected)
        assert torch.equal(torch.ops.baracuda.int4_awq_gemm(other, *parts, **options), expected)
    row = x[:1].expand(4, -1)
    assert torch.equal(module(row), module(row.contiguous()))


def test_what_a_kernel_can_read_is_not_copied():
    x = torch.zeros(4, 64).half()
    for tensor, strides, alignment in (
        (x, "contiguous", 16), (x[:, :32], "rows", 16), (x[:, 8:40], "rows", 16), (x[:, 1:33], "rows", 2),
        (x.t(), "any", 1), (x[0, 0], "contiguous", 16),
    ):  # fmt: skip
        assert readable(tensor, strides, alignment) is tensor
    for tensor, strides, alignment in ((x[:, :32], "contiguous", 1), (x[:, 1:33], "rows", 16), (x.t(), "rows", 1)):
        copy_ = readable(tensor, strides, alignment)
        assert copy_.is_contiguous()
        assert copy_.data_ptr() % alignment == 0


def test_plans_of_ever_new_numbers_of_rows_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(kept, "_MOST", 3)
    module, _ = filled(group_size=64)
    plans = kept.plans
    plans.clear()
    for rows in range(1, 9):
        module(torch.zeros(rows, IC).half())
        assert 0 < len(plans[module._sort()]) <= 3


def test_modules_of_one_sort_share_plans():
    plans = kept.plans
    plans.clear()
    for bias in (True, True, False):
        module, w = filled(bias=bias)
        x = torch.randn(3, IC).half()
        close(module(x), x, w, module.bias)
    assert [len(found) for found in plans.values()] == [1, 1]


def test_compiled_too_a_wrong_width_is_refused_by_name():
    module, _ = filled()
    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(Exception, match=f"must have {IC}"):
        torch.compile(module, backend="aot_eager")(torch.randn(2, IC + 8).half())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_can_be_mapped_over_a_batch(layout):
    module, w = filled(layout)
    x = torch.randn(2, 3, IC).half()
    for _ in range(2):
        with torch.no_grad():
            close(torch.vmap(module)(x), x, w, module.bias)
            close(torch.vmap(module, in_dims=1, out_dims=1)(x), x, w, module.bias)
            close(module(x), x, w, module.bias)


def test_tensors_that_wrap_others_are_given_to_the_operator():
    module, w = filled()
    x = torch.randn(3, IC).half()
    for _ in range(2):
        y = module(TwoTensor(x, 2 * x))
        close(y.a, x, w, module.bias)
        close(y.b, 2 * x, w, module.bias)
    close(module(torch.nn.Parameter(x, requires_grad=False)), x, w, module.bias)


def test_a_workspace_is_memory_of_torch():
    class Plan:
        def __init__(self, nbytes):
            self.workspace_size = nbytes

    x = torch.empty(1)
    assert workspace_for(Plan(0), x) is bp.Workspace.NONE
    made = workspace_for(Plan(100), x)
    assert (made.nbytes, made.device, made.pointer) == (100, -1, made.owner.data_ptr())
    assert made.owner.nbytes == 100


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_graphs_of_inductor_compute_the_same(layout):
    module, _ = filled(layout, device="cuda")
    torch._dynamo.reset()
    compiled = torch.compile(module, mode="reduce-overhead")
    with torch.no_grad():
        for rows in (1, 48, 1, 48, 48):
            x = torch.randn(rows, IC, device="cuda").half()
            assert torch.equal(compiled(x), module(x))
