"""Numbers of the AWQ GEMM of fp8 activations on the GPU, at the shapes of real layers, against float64 on the GPU."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.ops.quantize import awq_fp8_gemm_sm90a as fp8
from baracuda_py.vocab.enums import ArchSku, ElementKind, EpilogueKind

sys.path.insert(0, str(Path(__file__).parent))
from test_awq_gemm_gpu import ELEMENTS, TILED, Layer, torch_randn

pytestmark = pytest.mark.gpu

# Given its fp8 operands: what is lost to the tensor cores' sums of a group, of some 13 bits, and to the output's type.
LIMITS = {ElementKind.F16: 2.0**-9, ElementKind.BF16: 2.0**-8}
PAIR_LIMIT = 2.0**-4 / 3**0.5  # of quantising and multiplying: independent roundings to e4m3
RERUNS = 500


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    assert not torch.backends.cuda.matmul.allow_tf32
    return torch


def _descriptor(layer, m, epilogue=EpilogueKind.IDENTITY):
    return bp.Int4AwqFp8GemmDescriptor(m, layer.ic, layer.oc, layer.group_size, TILED, layer.element, epilogue)


def _quantized(torch, x):
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device="cuda")
    scales = torch.full((len(x),), math.nan, device="cuda")
    element = ElementKind.F16 if x.dtype is torch.float16 else ElementKind.BF16
    bp.select(bp.QuantizePerTokenDescriptor(*x.shape, element), 0).run(
        None, bp.Workspace.NONE, bp.QuantizePerTokenArgs(x, values, scales)
    )
    return values, scales


def _plan(layer, m, epilogue=EpilogueKind.IDENTITY):
    plan = bp.select(_descriptor(layer, m, epilogue), 0)
    if plan.sku.arch is not ArchSku.SM90A:
        pytest.skip("sm90a code does not run here")
    return plan


def _run(torch, layer, rows, bias=None, epilogue=EpilogueKind.IDENTITY):
    values, scales = rows
    plan = _plan(layer, len(values), epilogue)
    output = torch.full((len(values), layer.oc), math.nan, dtype=layer.dtype, device="cuda")
    workspace = bp.allocate_workspace(plan)
    plan.run(None, workspace, bp.Int4AwqFp8GemmArgs(values, scales, layer.words, None, None, output, bias))
    torch.cuda.synchronize()  # the workspace is freed behind this
    return output


def _error(torch, result, exact):
    return float(torch.linalg.norm(result.double() - exact) / torch.linalg.norm(exact))


def _gpu_or_skip():
    if not bp.default_registry().device(0).loads(ArchSku.SM90A):
        pytest.skip("sm90a code does not run here")


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize(("ic", "oc"), [(256, 64), (896, 896), (4096, 4096), (4096, 14336), (10944, 2048)])
def test_it_is_within_its_limit_at_every_number_of_rows(torch, ic, oc, element, group_size):
    _gpu_or_skip()
    if group_size != -1 and ic % group_size:
        pytest.skip("groups do not end in the middle")
    layer = Layer(torch, ic, oc, group_size, TILED, element)
    x = layer.activation(1000)
    values, scales = _quantized(torch, x)
    exact = (values.double() * scales.double()[:, None]) @ layer.weight
    unquantized = x.double() @ layer.weight
    for m in (1, 2, 8, 17, 63, 64, 65, 127, 128, 129, 300, 1000):
        result = _run(torch, layer, (values[:m], scales[:m]))
        error = _error(torch, result, exact[:m])
        assert error <= LIMITS[element], f"m = {m}: {error:.2e}"
        assert _error(torch, result, unquantized[:m]) <= PAIR_LIMIT


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_rows_of_the_identity_give_every_weight(torch, group_size):
    _gpu_or_skip()
    layer = Layer(torch, 1024, 1032, group_size, TILED, ElementKind.F16)
    for exponent in (0, -9, 8):  # 2^-9 is the least subnormal
        values = (torch.eye(1024, device="cuda") * 2.0**exponent).to(torch.float8_e4m3fn)
        result = _run(torch, layer, (values, torch.full((1024,), 2.0**-exponent, device="cuda")))
        assert torch.equal(result, layer.weight.to(torch.float16)), exponent


@pytest.mark.parametrize("group_size", [32, 128])
def test_nan_stays_in_its_row(torch, group_size):
    _gpu_or_skip()
    layer = Layer(torch, 512, 264, group_size, TILED, ElementKind.F16)
    values, scales = _quantized(torch, layer.activation(70))
    plain = _run(torch, layer, (values, scales))
    codes = values.view(torch.uint8)
    codes[2, 37], codes[65, 300], scales[4] = 0x7F, 0xFF, math.nan
    found = _run(torch, layer, (values, scales))
    spoilt = [2, 4, 65]
    assert found[spoilt].isnan().all()
    others = [row for row in range(70) if row not in spoilt]
    assert torch.equal(found[others], plain[others])


def test_groups_whose_products_cancel_lose_bits_of_the_largest_alone(torch):
    _gpu_or_skip()
    layer = Layer(torch, 1024, 128, 128, TILED, ElementKind.F16)
    x = torch_randn(torch, (64, 1024), layer.random)
    x[:, ::2] = x[:, 1::2].flip(1)
    weight = layer.weight.clone()
    values, scales = _quantized(torch, (100 * x).half())
    exact = (values.double() * scales.double()[:, None]) @ weight
    largest = (values.double() * scales.double()[:, None]).abs() @ weight.abs()
    error = (_run(torch, layer, (values, scales)).double() - exact).abs()
    assert (error <= 2.0**-10 * largest + 2.0**-10 * exact.abs()).all()


def test_rows_may_be_strided_and_outputs_lie_anywhere(torch):
    _gpu_or_skip()
    layer = Layer(torch, 512, 264, 128, TILED, ElementKind.F16)
    values, scales = _quantized(torch, layer.activation(100))
    plain = _run(torch, layer, (values, scales))
    room = torch.full((100, 528 + 16), 0x7F, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    room[:, 16:528] = values
    output = torch.full((100 * 267 + 1,), math.nan, dtype=torch.float16, device="cuda")
    y = output[1:].view(100, 267)[:, :264]
    plan = _plan(layer, 100)
    workspace = bp.allocate_workspace(plan)
    plan.run(None, workspace, bp.Int4AwqFp8GemmArgs(room[:, 16:528], scales, layer.words, None, None, y, None))
    torch.cuda.synchronize()
    assert torch.equal(y, plain)
    assert output[0].isnan()
    assert output[1:].view(100, 267)[:, 264:].isnan().all()


@pytest.mark.parametrize("rows", [9, 300])
def test_a_chain_of_overlapping_launches_makes_the_bits_of_plain_ones(torch, rows):
    """Quantise and multiply, layer behind layer over the same buffers, in a graph that is replayed."""
    _gpu_or_skip()
    layers = [Layer(torch, 2048, 2048, 128, TILED, ElementKind.F16, seed=seed, scale=1 / 256) for seed in range(3)]
    x = layers[0].activation(rows)
    values = torch.empty((rows, 2048), dtype=torch.float8_e4m3fn, device="cuda")
    scales = torch.empty(rows, device="cuda")
    quantize, gemm = bp.select(bp.QuantizePerTokenDescriptor(rows, 2048, ElementKind.F16), 0), _plan(layers[0], rows)
    workspace = bp.allocate_workspace(gemm)

    def chain(overlap):
        outputs = [torch.empty((rows, 2048), dtype=torch.float16, device="cuda") for _ in range(6)]
        graph, before = torch.cuda.CUDAGraph(), x
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for number, output in enumerate(outputs):
                args = bp.Int4AwqFp8GemmArgs(values, scales, layers[number % 3].words, None, None, output, None)
                quantize.run(None, bp.Workspace.NONE, bp.QuantizePerTokenArgs(before, values, scales))
                gemm.bind(args, workspace, overlap=overlap)()
                before = output
        return graph, outputs

    plain, expected = chain(False)
    overlapping, found = chain(True)
    for _ in range(50):
        x.copy_(layers[0].activation(rows))
        plain.replay()
        for output in found:
            output.fill_(math.nan)
        overlapping.replay()
        torch.cuda.synchronize()
        for here, there in zip(expected, found, strict=True):
            assert torch.equal(here, there)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("tokens", [64, 128, 256])
def test_tiles_of_every_size_are_right_whole_and_split(torch, monkeypatch, tokens, group_size, element):
    _gpu_or_skip()
    device = bp.default_registry().device(0)
    # Three tiles of channels; with them a round of thread blocks, and some tiles more.
    rows = -(-device.sm_count // 3) * tokens + tokens // 2 + 1
    layer = Layer(torch, 2176, 264, group_size, TILED, element)
    monkeypatch.setattr(fp8, "_cut", lambda desc, device: fp8.WideCut.of(desc, device, tokens, splitting=True))
    values, scales = _quantized(torch, layer.activation(rows))
    exact = (values.double() * scales.double()[:, None]) @ layer.weight
    bias = torch_randn(torch, (264,), layer.random).to(layer.dtype)
    for epilogue in (EpilogueKind.IDENTITY, EpilogueKind.BIAS, EpilogueKind.BIAS_GELU):
        plan = _plan(layer, rows, epilogue)
        assert [f"_t{tokens}_" in launch.entry for launch in plan.launches] == [True, True]
        wanted = exact if epilogue is EpilogueKind.IDENTITY else exact + bias.double()
        if epilogue is EpilogueKind.BIAS_GELU:
            wanted = torch.nn.functional.gelu(wanted)
        given = None if epilogue is EpilogueKind.IDENTITY else bias
        assert _error(torch, _run(torch, layer, (values, scales), given, epilogue), wanted) <= LIMITS[element]


def test_reruns_beside_a_busy_stream_have_the_same_bits(torch):
    _gpu_or_skip()
    layer = Layer(torch, 4096, 4096, 128, TILED, ElementKind.F16)
    values, scales = _quantized(torch, layer.activation(300))
    plan = _plan(layer, 300)
    output = torch.empty((300, 4096), dtype=torch.float16, device="cuda")
    workspace = bp.allocate_workspace(plan)
    args = bp.Int4AwqFp8GemmArgs(values, scales, layer.words, None, None, output, None)
    plan.run(None, workspace, args)
    first = output.view(torch.int16).clone()
    busy, other = torch.randn((2048, 2048), device="cuda").half(), torch.cuda.Stream()
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for rerun in range(RERUNS):
        if rerun % 8 == 0:
            with torch.cuda.stream(other):
                torch.mm(busy, busy)
        output.fill_(math.nan)
        plan.run(None, workspace, args)
        differing += (output.view(torch.int16) != first).sum()
    torch.cuda.synchronize()
    assert not differing.item()


def test_a_graph_replays_the_pair(torch):
    _gpu_or_skip()
    layer = Layer(torch, 2048, 2048, 128, TILED, ElementKind.F16)
    x = layer.activation(200)
    expected = _run(torch, layer, _quantized(torch, x))
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device="cuda")
    scales, output = torch.empty(200, device="cuda"), torch.empty((200, 2048), dtype=torch.float16, device="cuda")
    quantize, gemm = bp.select(bp.QuantizePerTokenDescriptor(200, 2048, ElementKind.F16), 0), _plan(layer, 200)
    workspace = bp.allocate_workspace(gemm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quantize.run(None, bp.Workspace.NONE, bp.QuantizePerTokenArgs(x, values, scales))
        gemm.run(None, workspace, bp.Int4AwqFp8GemmArgs(values, scales, layer.words, None, None, output, None))
    for tensor in (values.view(torch.uint8), scales, output):
        tensor.fill_(0)
    graph.replay()
    torch.cuda.synchronize()
    assert np.array_equal(output.cpu().numpy(), expected.cpu().numpy())
