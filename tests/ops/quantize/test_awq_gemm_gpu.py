"""Numbers of the AWQ GEMM's GPU kernels, at the shapes of real layers, against float64 on the GPU.

The oracle starts from nibbles: the test packs them by the layouts' definition, and multiplies (q - z) * s in float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.ops.quantize import awq_gemm_sm90a_wide as wide
from baracuda_py.ops.quantize.awq_gemm import OP
from baracuda_py.testing.calls import serves
from baracuda_py.vocab.enums import ArchSku, ElementKind, EpilogueKind
from baracuda_py.vocab.tolerance import relative_tolerance

pytestmark = pytest.mark.gpu

ROWS = (1, 2, 3, 8, 9, 16, 17, 64, 127, 128, 129, 1000)
SHAPES = ((256, 64), (896, 896), (4096, 4096), (4096, 14336), (10944, 2048))
ELEMENTS = (ElementKind.F16, ElementKind.BF16)
SPLITS = (8, 7, 6, 4, 3, 2, 1)
RERUNS = 1_000
TILED = bp.AwqWeightLayout.TILED

# Column (or row) of each nibble of a word, low bits first.
ORDERS = {bp.AwqWeightLayout.OC_MAJOR: (0, 1, 2, 3, 4, 5, 6, 7), bp.AwqWeightLayout.HF_GEMM: (0, 2, 4, 6, 1, 3, 5, 7)}


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    # The oracle must not be a product of rounded operands.
    assert not torch.backends.cuda.matmul.allow_tf32
    return torch


def _pack(torch, nibbles, order):
    """Words (rows, columns / 8) of nibbles (rows, columns)."""
    octets = nibbles.to(torch.int64).reshape(nibbles.shape[0], -1, 8)
    words = sum(octets[..., column] << 4 * position for position, column in enumerate(order))
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()


def _tile(torch, q, z, scales, group_size):
    """Words of the layout TILED: blocks of 32 channels by 128, as awq_tiles describes them."""
    (ic, oc), tiles, columns = q.shape, -(-q.shape[1] // 64), -(-len(q) // 128)
    parts = {32: 4, 64: 2}.get(group_size, 1)
    starts = torch.arange(columns * parts, device=q.device) * (128 // parts)
    stored = torch.clamp(starts // (ic // len(z)), max=len(z) - 1)

    def padded(values):  # (groups, oc) -> [tile][column][f][part][r][m][h]
        wide = torch.nn.functional.pad(values[stored], (0, tiles * 64 - oc))
        return wide.reshape(columns, parts, tiles, 2, 2, 2, 8).permute(2, 0, 3, 1, 6, 4, 5).contiguous()

    wide = torch.zeros((columns * 128, tiles * 64), dtype=torch.int64, device=q.device)
    wide[:ic, :oc], wide[ic:, :oc] = q, z[-1]
    places = wide.reshape(columns, 2, 4, 2, 4, 2, tiles, 2, 2, 2, 8)
    words = sum(
        places[:, :, :, d, :, e, :, :, :, h] << 4 * (h + 2 * d + 4 * e) for h in (0, 1) for d in (0, 1) for e in (0, 1)
    ).permute(4, 0, 5, 6, 1, 7, 3, 2)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()
    pairs = padded(z)
    pairs = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
    images = (words, padded(scales.view(torch.int16)), pairs)
    blocks = torch.cat([image.view(torch.uint8).reshape(tiles, columns, 2, -1) for image in images], dim=-1)
    return blocks.contiguous().view(torch.int32).reshape(tiles, -1)


class Layer:
    """Nibbles, scales and their packed forms on the GPU."""

    def __init__(self, torch, ic, oc, group_size, layout, element, *, seed=0, scale=1 / 64):
        self.torch, self.ic, self.oc, self.group_size = torch, ic, oc, group_size
        self.layout, self.element = layout, element
        self.dtype = torch.float16 if element is ElementKind.F16 else torch.bfloat16
        group = ic if group_size == -1 else group_size
        groups = ic // group
        self.random = torch.Generator("cuda").manual_seed(seed)
        self.q = torch.randint(0, 16, (ic, oc), generator=self.random, device="cuda")
        z = torch.randint(0, 16, (groups, oc), generator=self.random, device="cuda")
        z[:, 0::5], z[:, 1::5] = 0, 15
        scales = torch.rand((groups, oc), generator=self.random, device="cuda") + 0.5
        self.set(z, (scales * scale).to(self.dtype), group)

    def set(self, z, scales, group):
        """Take zero points (groups, oc) and scales, and pack everything."""
        torch = self.torch
        if self.layout is TILED:
            self.scales = self.zeros = None
            self.words = _tile(torch, self.q, z, scales, self.group_size)
        else:
            order = ORDERS[self.layout]
            self.scales = scales
            self.zeros = _pack(torch, z, order)
            by_output = self.layout is bp.AwqWeightLayout.OC_MAJOR
            self.words = _pack(torch, self.q.T if by_output else self.q, order)
        difference = self.q.double() - z.double().repeat_interleave(group, 0)
        self.weight = difference * scales.double().repeat_interleave(group, 0)

    def activation(self, m):
        return torch_randn(self.torch, (m, self.ic), self.random).to(self.dtype)

    def descriptor(self, m, **more):
        splits = next(split for split in SPLITS if self.ic % (32 * split) == 0)
        return bp.Int4AwqGemmDescriptor(
            m, self.ic, self.oc, self.group_size, splits, self.layout, self.element, **more
        )  # fmt: skip

    def args(self, x, bias=None):
        output = self.torch.full((len(x), self.oc), math.nan, dtype=self.dtype, device="cuda")
        return bp.Int4AwqGemmArgs(x, self.words, self.scales, self.zeros, output, bias)


def torch_randn(torch, shape, generator):
    return torch.randn(shape, generator=generator, device="cuda")


def _kernels(descriptor):
    """The GPU kernels that serve a descriptor on GPU 0, as far as what they need is installed."""
    registry = bp.default_registry()
    device = registry.device(0)
    return [
        kernel
        for kernel in OP.kernels
        if kernel.sku.arch is not ArchSku.HOST
        and device.loads(kernel.sku.arch)
        and serves(OP, kernel, descriptor)
        and registry.backend(kernel.code.executor).missing(kernel.code, device) is None
    ]


def _plan(kernel, descriptor):
    plan = bp.default_registry().plan(kernel.sku, descriptor, 0)
    return plan, bp.allocate_workspace(plan)


def _run(layer, kernel, x, bias=None, epilogue=EpilogueKind.IDENTITY):
    descriptor = layer.descriptor(len(x), epilogue=epilogue)
    plan, workspace = _plan(kernel, descriptor)
    args = layer.args(x, bias)
    plan.run(None, workspace, args)
    layer.torch.cuda.synchronize()  # the workspace is freed behind this
    return args.output


def _error(torch, result, exact):
    return float(torch.linalg.norm(result.double() - exact) / torch.linalg.norm(exact))


def test_the_oracle_agrees_with_the_ops_reference(torch):
    for layout in bp.AwqWeightLayout:
        layer = Layer(torch, 256, 64, 64, layout, ElementKind.F16)
        x = layer.activation(3)
        arrays = {"activation": x, "weight_packed": layer.words, "scales": layer.scales, "zeros": layer.zeros}
        inputs = {name: None if tensor is None else tensor.cpu().numpy() for name, tensor in arrays.items()}
        reference = OP.reference(layer.descriptor(3), **inputs)
        assert np.allclose(reference, (x.double() @ layer.weight).cpu().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
@pytest.mark.parametrize(("ic", "oc"), SHAPES)
def test_every_kernel_is_within_its_guarantee_at_every_number_of_rows(torch, ic, oc, layout, element, group_size):
    if group_size != -1 and ic % group_size:
        with pytest.raises(bp.errors.InvalidProblem):
            bp.select(bp.Int4AwqGemmDescriptor(1, ic, oc, group_size, None, layout, element), 0)
        return
    layer = Layer(torch, ic, oc, group_size, layout, element)
    rows = layer.activation(max(ROWS))
    exact = rows.double() @ layer.weight
    leading: dict[str, object] = {}
    checked = set()
    for m in reversed(ROWS):
        for kernel in _kernels(layer.descriptor(m)):
            guarantee, token = kernel.sku.precision_guarantee, kernel.sku.token
            result = _run(layer, kernel, rows[:m])
            error = _error(torch, result, exact[:m])
            limit = relative_tolerance(guarantee, element)
            assert error <= limit, f"{token}, m = {m}: {error:.2e} > {limit:.2e}"
            if guarantee.batch_invariant:
                more = leading.setdefault(token, result)
                same = torch.equal(result.view(torch.int16), more[:m].view(torch.int16))
                assert same, f"{token}: rows change with their number, {m} against {len(more)}"
            checked.add(token)
    families = {token.rpartition(".")[2].removesuffix(f"_{layout.value}") for token in checked}
    if layout is TILED:
        assert {"bulk", "warpgroup", "wide", "stream", "tile", "direct"} <= families
        return
    assert {"bulk", "stream", "tile"} <= families
    assert ("small_m" in families) == (layout is bp.AwqWeightLayout.OC_MAJOR)
    assert ("splitk" in families) == (group_size in (64, 128) and oc % 64 == 0)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
@pytest.mark.parametrize("m", [65, 512, 2048])
def test_the_product_that_is_left_to_cublaslt_is_that_of_the_dequantised_weight(torch, layout, element, m):
    layer = Layer(torch, 4096, 1032, 128, layout, element)
    [kernel] = [k for k in _kernels(layer.descriptor(m)) if k.sku.backend is bp.BackendKind.CUBLAS] or [None]
    if kernel is None:
        pytest.skip("cuBLASLt is not installed")
    x = layer.activation(m)
    rounded = layer.weight.to(layer.dtype).double()
    result = _run(layer, kernel, x).double()
    # Nothing but the order of f32 sums and the output's rounding is left.
    near = (x.double() @ rounded).to(layer.dtype).double()
    unit = torch.finfo(layer.dtype).eps
    assert float(((result - near).abs() / (near.abs() + near.abs().mean())).max()) <= 2 * unit
    limit = relative_tolerance(kernel.sku.precision_guarantee, element)
    assert _error(torch, result, x.double() @ layer.weight) <= limit


@pytest.mark.parametrize("epilogue", EpilogueKind, ids=lambda e: e.name)
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
def test_every_epilogue_is_within_the_guarantee(torch, layout, element, epilogue):
    layer = Layer(torch, 896, 896, 128, layout, element)
    functional = torch.nn.functional
    bias = torch_randn(torch, (896,), layer.random).to(layer.dtype) if epilogue is not EpilogueKind.IDENTITY else None
    functions = {
        EpilogueKind.BIAS_RELU: functional.relu,
        EpilogueKind.BIAS_GELU: functional.gelu,  # the exact one, through erf
        EpilogueKind.BIAS_SILU: functional.silu,
    }
    for m in (3, 17, 200):
        x = layer.activation(m)
        exact = x.double() @ layer.weight
        if bias is not None:
            exact = functions.get(epilogue, lambda v: v)(exact + bias.double())
        for kernel in _kernels(layer.descriptor(m, epilogue=epilogue)):
            error = _error(torch, _run(layer, kernel, x, bias, epilogue), exact)
            assert error <= relative_tolerance(kernel.sku.precision_guarantee, element), f"{kernel.sku}, m = {m}"


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
def test_gelu_keeps_its_relative_error_where_it_vanishes(torch, layout, element):
    layer = Layer(torch, 896, 896, 128, layout, element)
    # Phi(-3.75) is 9e-5, which f16 still holds with all of its bits; Phi(-8) is 6e-16.
    centre = -3.75 if element is ElementKind.F16 else -8
    bias = (centre + torch.linspace(-0.125, 0.125, 896, device="cuda")).to(layer.dtype)
    exact = bias.double() * torch.special.erfc(bias.double() * -math.sqrt(0.5)) / 2
    for m in (3, 17, 200):
        x = torch.zeros_like(layer.activation(m))
        for kernel in _kernels(layer.descriptor(m, epilogue=EpilogueKind.BIAS_GELU)):
            found = _run(layer, kernel, x, bias, EpilogueKind.BIAS_GELU)
            error = _error(torch, found, exact.expand(m, -1))
            assert error <= relative_tolerance(kernel.sku.precision_guarantee, element), f"{kernel.sku}, m = {m}"


@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
@pytest.mark.parametrize("m", [1, 8, 9, 64, 200])
def test_partial_sums_beyond_f16_do_not_overflow_the_result(torch, m, layout):
    ic, oc = 4096, 256
    layer = Layer(torch, ic, oc, 128, layout, ElementKind.F16)
    layer.q = layer.q % 8 + 8
    layer.q[ic // 2 :] = layer.q[: ic // 2]
    scales = torch.full((ic // 128, oc), 0.25, dtype=torch.float16, device="cuda")
    layer.set(torch.zeros((ic // 128, oc), dtype=torch.int64, device="cuda"), scales, 128)
    x = torch.full((m, ic), 64.0, device="cuda", dtype=torch.float16)
    x[:, ic // 2 :] = torch.randint(-64, -56, (m, ic // 2), generator=layer.random, device="cuda").to(torch.float16)
    exact = x.double() @ layer.weight
    half = x[:, : ic // 2].double() @ layer.weight[: ic // 2]
    largest = torch.finfo(torch.float16).max
    assert half.min() / 4 > largest, "every quarter of the first half overflows f16"
    assert exact.abs().max() < largest
    for kernel in _kernels(layer.descriptor(m)):
        result = _run(layer, kernel, x)
        assert result.isfinite().all(), kernel.sku
        assert _error(torch, result, exact) <= relative_tolerance(kernel.sku.precision_guarantee, ElementKind.F16)


def _cases_for_reruns():
    return [
        pytest.param(m, *weights, layout, element, id=f"{m}-{layout.name}-{element.name}")
        # The largest stay in L2, from where copies come soonest, and 64 rows read them twice.
        for m, *weights in ((3, 896, 896, 64), (17, 896, 896, 64), (129, 896, 896, 64), (64, 4096, 14336, 32))
        for layout in bp.AwqWeightLayout
        for element in ELEMENTS
    ]


@pytest.mark.parametrize(("m", "ic", "oc", "group_size", "layout", "element"), _cases_for_reruns())
def test_reruns_alone_and_beside_a_busy_stream_give_the_same_bits(torch, m, ic, oc, group_size, layout, element):
    layer = Layer(torch, ic, oc, group_size, layout, element)
    x = layer.activation(m)
    other = torch.cuda.Stream()
    busy = torch.randn((4096, 4096), device="cuda", dtype=torch.float16)
    for kernel in _kernels(layer.descriptor(m)):
        assert kernel.sku.precision_guarantee.deterministic
        plan, workspace = _plan(kernel, layer.descriptor(m))
        args = layer.args(x)
        plan.run(None, workspace, args)
        first = args.output.clone().view(torch.int16)
        differing = torch.zeros((), dtype=torch.int64, device="cuda")
        for rerun in range(RERUNS):
            if rerun == RERUNS // 2:
                torch.cuda.synchronize()
            if rerun >= RERUNS // 2 and rerun % 8 == 0:
                with torch.cuda.stream(other):
                    torch.mm(busy, busy)
            args.output.fill_(math.nan)
            plan.run(None, workspace, args)
            differing += (args.output.view(torch.int16) != first).sum()
        torch.cuda.synchronize()
        assert not differing.item(), f"{kernel.sku}: {differing.item()} elements differed over {RERUNS} reruns"


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("tokens", [64, 96, 128, 160, 192, 224, 256])
def test_wide_tiles_of_every_size_are_right_whole_and_split(torch, monkeypatch, tokens, group_size, element):
    ic, oc = 2176, 264
    device = bp.default_registry().device(0)
    # Three tiles of channels; with them a round of thread blocks, and some tiles more.
    rows = -(-device.sm_count // 3) * tokens + tokens // 2 + 1
    layer = Layer(torch, ic, oc, group_size, TILED, element)
    kernels = [kernel for kernel in _kernels(layer.descriptor(rows)) if kernel.sku.variant == "wide_tiled"]
    if not kernels:
        pytest.skip("sm90a code does not run here")
    monkeypatch.setattr(wide, "_cut", lambda desc, device: wide.WideCut.of(desc, device, tokens, splitting=True))
    x = layer.activation(rows)
    bias = torch_randn(torch, (oc,), layer.random).to(layer.dtype)
    for kernel in kernels:
        plan, _ = _plan(kernel, layer.descriptor(rows))
        assert [f"_t{tokens}_" in launch.entry for launch in plan.launches] == [True, True]
        error = _error(torch, _run(layer, kernel, x), x.double() @ layer.weight)
        assert error <= relative_tolerance(kernel.sku.precision_guarantee, element)
    for epilogue in (EpilogueKind.BIAS, EpilogueKind.BIAS_GELU):
        (kernel,) = (one for one in _kernels(layer.descriptor(rows, epilogue=epilogue))
                     if one.sku.variant == "wide_tiled")  # fmt: skip
        exact = x.double() @ layer.weight + bias.double()
        if epilogue is EpilogueKind.BIAS_GELU:
            exact = torch.nn.functional.gelu(exact)
        error = _error(torch, _run(layer, kernel, x, bias, epilogue), exact)
        assert error <= relative_tolerance(kernel.sku.precision_guarantee, element)


@pytest.mark.parametrize("rows", [1, 9, 40, 300])
@pytest.mark.parametrize("variant", ["bulk_tiled", "bulk_hf_gemm", "bulk_oc_major", "warpgroup_tiled", "wide_tiled"])
def test_a_chain_of_overlapping_launches_makes_the_bits_of_plain_ones(torch, variant, rows):
    # Each layer reads what the launch before it writes, and begins while that one ends.
    width = 4224 if variant == "bulk_hf_gemm" else 1024  # enough for two thread blocks a tile
    depth, replays = 12, 200
    registry = bp.default_registry()
    layout = bp.AwqWeightLayout(variant.partition("_")[2])
    desc = bp.Int4AwqGemmDescriptor(m=rows, ic=width, oc=width, weight_layout=layout)
    (sku,) = registry.skus(op="int4_awq_gemm", element=ElementKind.F16, epilogue=EpilogueKind.IDENTITY, variant=variant)
    if not registry.device(0).loads(sku.arch):
        pytest.skip(f"{sku.arch.name.lower()} code does not run here")
    plan = registry.plan(sku, desc, 0)
    if variant == "bulk_hf_gemm" and 2 * -(-width // 64) <= plan.device.sm_count:
        assert "_p2_" in plan.launches[0].entry
    layers = [Layer(torch, width, width, 128, layout, ElementKind.F16, seed=n, scale=1 / 256) for n in range(depth)]
    lent = bp.Workspace.borrowed(torch.empty(max(plan.workspace_size, 16), dtype=torch.uint8, device="cuda"))
    first = torch.randn(rows, width, device="cuda", dtype=torch.float16)

    def chain(*, overlap):
        states = [first, *(torch.full_like(first, math.nan) for _ in layers)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer, x, y in zip(layers, states, states[1:], strict=False):
                args = bp.Int4AwqGemmArgs(x, layer.words, layer.scales, layer.zeros, y)
                plan.bind(args, lent, overlap=overlap)()
        return graph, states

    plain, expected = chain(overlap=False)
    plain.replay()
    overlapping, found = chain(overlap=True)
    for _ in range(replays):
        for state in found[1:]:
            state.fill_(math.nan)
        overlapping.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.isfinite(found[-1]).all()
