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

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.interop.torch import AwqLinear, workspaces
from baracuda_py.interop.torch.workspaces import workspace_for
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
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_captured_in_a_cuda_graph(layout):
    module, _ = filled(layout, device="cuda")
    x = torch.randn(40, IC, device="cuda").half()
    expected = module(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        y = module(x)
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
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


def test_one_workspace_serves_all_plans_of_a_stream_and_outgrown_ones_stay(monkeypatch):
    monkeypatch.setattr(workspaces, "_current", {})
    monkeypatch.setattr(workspaces, "_outgrown", [])

    class Plan:
        def __init__(self, nbytes):
            self.workspace_size = nbytes

    x = torch.empty(1)
    assert workspace_for(Plan(0), x) is bp.Workspace.NONE
    first = workspace_for(Plan(100), x)
    assert first.nbytes >= 100
    assert workspace_for(Plan(150), x) is first
    larger = workspace_for(Plan(1000), x)
    assert larger.nbytes >= 1000
    assert workspaces._outgrown == [first]
    assert workspace_for(Plan(100), x) is larger
