"""The layout TILED: every nibble, scale and zero point where its definition says, and nothing lost on the way back."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py.ops.quantize import awq_tiles
from baracuda_py.ops.quantize.awq_gemm_sm90a import BOX_CHANNELS
from baracuda_py.ops.quantize.awq_packing import pack_weight, unpack_weight
from baracuda_py.ops.quantize.awq_tiles import Tiling
from baracuda_py.sys import module

HF_GEMM, OC_MAJOR, TILED = bp.AwqWeightLayout.HF_GEMM, bp.AwqWeightLayout.OC_MAJOR, bp.AwqWeightLayout.TILED
GROUPS = (32, 64, 128, -1)


def parts_of(seed, ic, oc, group_size, dtype=np.float16):
    rng = np.random.default_rng(seed)
    groups = 1 if group_size == -1 else ic // group_size
    bits = rng.integers(0, 1 << 16, (groups, oc)).astype(np.uint16)  # NaN and infinities too: scales are moved as bits
    nibbles, zeros = (rng.integers(0, 16, (rows, oc)).astype(np.uint8) for rows in (ic, groups))
    return nibbles, zeros, bits.view(dtype)


def pack_tiles(nibbles, *rest):
    return awq_tiles.pack_tiles(pack_weight(nibbles, "oc_major"), *rest)


def unpack_tiles(*arguments):
    words, zeros, scales = awq_tiles.unpack_tiles(*arguments)
    return unpack_weight(words, "oc_major"), zeros, scales


def sizes(group_size, groups, octets):
    return (32 * groups if group_size == -1 else group_size * groups), 8 * octets


@settings(max_examples=60)
@given(
    st.integers(0, 2**32), st.sampled_from(GROUPS), st.integers(1, 9), st.integers(1, 20),
    st.sampled_from((np.float16, ml_dtypes.bfloat16)),
)  # fmt: skip
def test_there_and_back_is_the_identity_and_padding_is_a_weight_of_0(seed, group_size, groups, octets, dtype):
    ic, oc = sizes(group_size, groups, octets)
    nibbles, zeros, scales = parts_of(seed, ic, oc, group_size, dtype)
    words = pack_tiles(nibbles, zeros, scales, group_size)
    assert words.shape == Tiling(ic, oc, group_size).shape == TILED.weight_shape(ic, oc, group_size)
    found = unpack_tiles(words, ic, oc, group_size, dtype)
    for one, other in zip(found, (nibbles, zeros, scales), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
    # The same words, read as those of the padded sizes.
    deep, wide = -(-ic // 128) * 128, -(-oc // 64) * 64
    stored = Tiling(ic, oc, group_size).group
    q, z, s = unpack_tiles(words, deep, wide, stored, np.uint16)
    difference = q.astype(int) - np.repeat(z, stored, axis=0)
    assert not difference[ic:].any()
    assert not s[:, oc:].any()


def test_a_block_has_each_nibble_where_the_fragments_of_mma_have_it():
    """By the PTX ISA's own words for the A fragment of mma.m16n8k16: of row and column, the lane and the register."""
    ic, oc = 256, 128
    nibbles, zeros, scales = parts_of(1, ic, oc, 128)
    blocks = pack_tiles(nibbles, zeros, scales, 128).view(np.uint8).reshape(2, 2, 2, 2128)
    for n in range(0, oc, 7):
        for k in range(0, ic, 3):
            row, column = n % 16, k % 16
            lane = row % 8 * 4 + column % 8 // 2
            register = row // 8 + 2 * (column // 8)
            tile, step = n % 32 // 16, k % 128 // 16
            words = blocks[n // 64, k // 128, n % 64 // 32, :2048].view(np.uint32).reshape(2, 2, 32, 4)
            word = int(words[tile, step // 4, lane, step % 4])
            assert word >> 4 * (register + 4 * (column % 2)) & 15 == nibbles[k, n], (n, k)


@pytest.mark.parametrize("group_size", GROUPS)
def test_scales_and_zero_points_are_where_the_definition_says(group_size):
    ic, oc = 384, 72
    nibbles, zeros, scales = parts_of(2, ic, oc, group_size)
    tiling = Tiling(ic, oc, group_size)
    parts = {32: 4, 64: 2}.get(group_size, 1)
    assert tiling.block_nbytes == 2048 + 80 * parts
    blocks = pack_tiles(nibbles, zeros, scales, group_size).view(np.uint8).reshape(2, 3, 2, -1)
    for n in range(oc):
        m, h, r = n % 32 // 16, n % 16 // 8, n % 8
        for k in range(0, ic, 32):
            block, part = blocks[n // 64, k // 128, n % 64 // 32], k % 128 * parts // 128
            group = 0 if group_size == -1 else k // group_size
            at = 2048 + 64 * part + r * 8 + m * 4 + h * 2
            assert block[at : at + 2].tobytes() == scales[group, n].tobytes()
            pair = int(block[2048 + 64 * parts + 16 * part + r * 2 + m])
            assert pair >> 4 * h & 15 == zeros[group, n]


def test_what_is_stored_beside_the_nibbles_is_four_percent():
    ic, oc = 4096, 14336
    rows, words = TILED.weight_shape(ic, oc, 128)
    assert rows * words * 4 == ic * oc // 2 + ic // 128 * oc * 5 // 2


def repack(source, target, ic, oc, group_size, tensors):
    """A call on the host; tensors and results by their names."""
    desc = bp.Int4AwqRepackDescriptor(ic, oc, group_size, source, target)
    plan = bp.select(desc, "host")
    outputs = {
        spec.name: np.full(spec.shape_on(desc), 0, np.int32 if "scales" not in spec.name else tensors["dtype"])
        for spec in plan.op.specs if spec.written and spec.needed_on(desc)
    }  # fmt: skip
    inputs = {
        spec.name: tensors[spec.name] for spec in plan.op.specs if not spec.written and spec.needed_on(desc)
    }  # fmt: skip
    absent = {"zeros": None, "zeros_repacked": None}
    plan.run(None, bp.Workspace.NONE, bp.Int4AwqRepackArgs(**(absent | inputs | outputs)))
    return {name.replace("_repacked", "_packed" if "weight" in name else ""): value for name, value in outputs.items()}


@settings(max_examples=40)
@given(
    st.integers(0, 2**32), st.sampled_from(GROUPS), st.integers(1, 9), st.integers(1, 20),
    st.sampled_from((OC_MAJOR, HF_GEMM)), st.sampled_from((np.float16, ml_dtypes.bfloat16)),
)  # fmt: skip
def test_a_layer_goes_through_every_layout_and_is_what_it_was(seed, group_size, groups, octets, first, dtype):
    ic, oc = sizes(group_size, groups, octets)
    rng = np.random.default_rng(seed)
    words = {
        "weight_packed": rng.integers(-(2**31), 2**31, first.weight_shape(ic, oc, group_size), np.int32),
        "zeros": rng.integers(-(2**31), 2**31, (1 if group_size == -1 else ic // group_size, octets), np.int32),
    }
    scales = rng.integers(0, 1 << 16, (len(words["zeros"]), oc)).astype(np.uint16).view(dtype)
    start = words | {"scales": scales, "dtype": dtype}
    tiled = repack(first, TILED, ic, oc, group_size, start)
    assert tiled.keys() == {"weight_packed"}
    other = HF_GEMM if first is OC_MAJOR else OC_MAJOR
    moved = repack(TILED, other, ic, oc, group_size, tiled | {"dtype": dtype})
    back = repack(other, first, ic, oc, group_size, moved | {"dtype": dtype})
    for name, expected in words.items():
        np.testing.assert_array_equal(back[name], expected)
    assert moved["scales"].tobytes() == scales.tobytes()
    direct = repack(TILED, first, ic, oc, group_size, tiled | {"dtype": dtype})
    for name, expected in words.items():
        np.testing.assert_array_equal(direct[name], expected)


@pytest.mark.parametrize("element", [bp.ElementKind.F16, bp.ElementKind.BF16])
@pytest.mark.parametrize("m", [1, 7, 40])
def test_the_gemm_of_tiled_weights_is_that_of_the_plain_ones(m, element):
    ic, oc = 416, 200
    nibbles, zeros, scales = parts_of(5, ic, oc, 32)
    scales = (1 + scales.view(np.uint16) % 128 / 128).astype(np.float16)
    desc = bp.Int4AwqGemmDescriptor(
        m, ic, oc, 32, None, TILED, element, scales_element=bp.ElementKind.F16, epilogue=bp.EpilogueKind.BIAS_SILU
    )
    dtype = np.float16 if element is bp.ElementKind.F16 else ml_dtypes.bfloat16
    rng = np.random.default_rng(6)
    x, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((m, ic), (oc,)))
    y = np.full((m, oc), np.nan, dtype)
    args = bp.Int4AwqGemmArgs(x, pack_tiles(nibbles, zeros, scales, 32), None, None, y, bias)
    bp.select(desc, "host").run(None, bp.Workspace.NONE, args)
    w = (nibbles.astype(float) - np.repeat(zeros, 32, axis=0)) * np.repeat(scales.astype(float), 32, axis=0)
    v = x.astype(float) @ w + bias.astype(float)
    exact = v / (1 + np.exp(np.minimum(-v, 700)))
    assert np.linalg.norm(y.astype(float) - exact) < (5e-4 if dtype is np.float16 else 4e-3) * np.linalg.norm(exact)


def test_scales_beside_tiled_weights_are_refused_by_name():
    nibbles, zeros, scales = parts_of(7, 128, 64, 128)
    desc = bp.Int4AwqGemmDescriptor(2, 128, 64, weight_layout=TILED)
    x, y = np.zeros((2, 128), np.float16), np.zeros((2, 64), np.float16)
    args = bp.Int4AwqGemmArgs(x, pack_tiles(nibbles, zeros, scales, 128), scales, None, y)
    with pytest.raises(bp.errors.InvalidProblem, match="scales"):
        bp.select(desc, "host").run(None, bp.Workspace.NONE, args)


@pytest.mark.parametrize("m", [1, 8, 9, 16, 17, 4096])
@pytest.mark.parametrize("device", ["sm_80", "sm_86", "sm_90", "sm_120"])
def test_one_launch_without_a_workspace_whose_warps_do_not_depend_on_m(m, device):
    warps = set()
    for count in (1, m):
        desc = bp.Int4AwqGemmDescriptor(count, 8192, 28672, split_k_iters=None, weight_layout=TILED)
        serving = [one.sku for one in bp.explain(desc, device).candidates if one.refusal is None]
        (stream,) = (sku for sku in serving if sku.variant == "stream_tiled")
        plan = bp.default_registry().plan(stream, desc, device)
        (launch,) = plan.launches
        assert plan.workspace_size == 0
        assert plan.precision_guarantee.batch_invariant
        warps.add(launch.block)
    assert len(warps) == 1


SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192), (28672, 8192), (8192, 28672), (896, 896), (64, 64)]


def _launch(variant: str, m: int, ic: int, oc: int, group_size: int, layout: bp.AwqWeightLayout):
    """The one launch of a batch-invariant kernel, on an H100."""
    desc = bp.Int4AwqGemmDescriptor(m, ic, oc, group_size, split_k_iters=None, weight_layout=layout)
    (sku,) = (one.sku for one in bp.explain(desc, "sm_90a").candidates
              if one.refusal is None and one.sku.variant == f"{variant}_{layout.value}")  # fmt: skip
    plan = bp.default_registry().plan(sku, desc, "sm_90a")
    (launch,) = plan.launches
    assert plan.workspace_size == 0
    assert plan.precision_guarantee.batch_invariant
    return launch


def _bulk(m: int, ic: int, oc: int, group_size: int = 128, layout: bp.AwqWeightLayout = TILED):
    return _launch("bulk", m, ic, oc, group_size, layout)


def _channels(launch) -> int:
    """Of a tile."""
    return int(re.search(r"_c(\d+)_", launch.entry)[1])


@pytest.mark.parametrize("layout", [TILED, bp.AwqWeightLayout.HF_GEMM], ids=lambda layout: layout.value)
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize(("oc", "ic"), SHAPES)
def test_the_tiles_and_warps_of_bulk_copies_do_not_depend_on_m(oc, ic, group_size, layout):
    rows = (1, 7, 8, 9, 16, 17, 32, 33, 300)
    launches = [_bulk(m, ic, oc, group_size, layout) for m in rows]
    assert len({(one.grid[0], one.parameters[17], _channels(one)) for one in launches}) == 1
    assert [one.grid[1] for one in launches] == [1, 1, 1, 1, 1, 1, 1, 2, 10]
    # Eight warps multiply at any m. One copies x, of a warpgroup where those take more registers, or others add sums.
    several = launches[0].parameters[17] > 1
    assert [one.block[0] // 32 - 8 for one in launches] == [4 if several else 1] * 3 + [4] * 6
    for launch in launches:
        tokens, stages, slots, tiles, overlaps = launch.parameters[14:19]
        assert launch.grid[0] <= 132, "one wave"
        assert launch.grid[0] * tiles * _channels(launch) - oc >= 0
        assert 227 * 1024 // 2 < launch.shared_bytes <= 227 * 1024, "an SM takes one thread block"
        assert (overlaps.plain, overlaps.overlapping) == (0, 1)
        assert stages >= 1
        assert slots >= 1
        assert tokens <= int(re.search(r"_t(\d+)_", launch.entry)[1])


@pytest.mark.parametrize(
    ("layout", "oc", "ic", "tile", "blocks"),
    [
        (bp.AwqWeightLayout.HF_GEMM, 896, 896, "c32", 28),
        (bp.AwqWeightLayout.HF_GEMM, 896, 4864, "c32", 28),  # few SMs
        (bp.AwqWeightLayout.HF_GEMM, 4224, 4096, "c32", 132),  # short
        (bp.AwqWeightLayout.HF_GEMM, 4224, 4224, "c64_p2", 132),
        (bp.AwqWeightLayout.HF_GEMM, 4256, 4224, "c64", 67),
        (bp.AwqWeightLayout.HF_GEMM, 28672, 8192, "c128", 112),
        (TILED, 4096, 14336, "c32", 128),
        (TILED, 28672, 8192, "c64", 112),
    ],
)
def test_two_thread_blocks_share_a_tile_of_long_hf_gemm_weights_where_one_each_would_leave_half_of_the_sms_idle(
    layout, oc, ic, tile, blocks
):
    for m in (1, 16):
        launch = _bulk(m, ic, oc, layout=layout)
        assert (re.search(r"_(c\d+(?:_p2)?)_t", launch.entry)[1], launch.grid[0]) == (tile, blocks)


@pytest.mark.parametrize(
    ("layout", "oc", "ic", "m", "stages"),
    [
        (TILED, 4096, 14336, 1, 2),
        (TILED, 8192, 8192, 16, 1),
        (TILED, 28672, 8192, 16, 2),  # two tiles a thread block
        (bp.AwqWeightLayout.HF_GEMM, 4096, 14336, 8, 2),
        (bp.AwqWeightLayout.HF_GEMM, 4096, 14336, 9, 1),
        (bp.AwqWeightLayout.HF_GEMM, 28672, 8192, 16, 2),
    ],
)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_a_warp_keeps_as_many_units_in_flight(layout, oc, ic, m, stages, group_size):
    assert _bulk(m, ic, oc, group_size, layout).parameters[15] == stages


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("element", ["f16", "bf16"])
@pytest.mark.parametrize("layout", ["tiled", "bulk_hf_gemm"])
def test_kernels_of_bulk_copies_read_nothing_through_the_read_only_cache(layout, element, groups):
    """Whose loads a wait for the launch before does not hold back; that launch may write the bias."""
    text = module(f"quantize.awq_gemm.{layout}_{element}_g{groups}", "sm90a").ptx.decode()
    assert "griddepcontrol.wait" in text
    assert re.search(r"\tld\.(global\.)?u16", text), "the bias"
    assert "ld.global.nc" not in text


def _warpgroup(m: int, ic: int, oc: int, group_size: int = 128):
    return _launch("warpgroup", m, ic, oc, group_size, TILED)


@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize(("oc", "ic"), SHAPES)
def test_the_tiles_of_two_warpgroups_do_not_depend_on_m(oc, ic, group_size):
    rows = (1, 16, 17, 32, 33, 64, 65, 130, 300)
    launches = [_warpgroup(m, ic, oc, group_size) for m in rows]
    assert len({(re.sub(r"_t\d+", "", one.entry), one.grid[0], one.parameters[16]) for one in launches}) == 1
    assert [one.grid[1] for one in launches] == [1] * 6 + [2, 3, 5]
    for m, launch in zip(rows, launches, strict=True):
        tokens, stages, tiles, overlaps, boxes = launch.parameters[14:]
        entry = int(re.search(r"_t(\d+)_", launch.entry)[1])
        assert entry // 2 < tokens <= entry or entry == 16
        assert tokens % 8 == 0
        assert m <= tokens * launch.grid[1]
        assert launch.block == (384, 1, 1)
        assert launch.grid[0] <= 132, "one wave"
        blocks = (1 if "_c128_" in launch.entry else 2) * (2 if "_p2_" in launch.entry else 1)
        assert stages >= 2 or -(-ic // 128) <= 2 * blocks, "a warpgroup takes the next item before it lets go of one"
        assert tiles == 1 or "_p2_" not in launch.entry
        assert boxes.box == (64, tokens, 2 if "_c128_" in launch.entry else 4)
        assert 227 * 1024 // 2 < launch.shared_bytes <= 227 * 1024, "an SM takes one thread block"
        assert (overlaps.plain, overlaps.overlapping) == (0, 1)


@pytest.mark.parametrize(
    ("oc", "ic", "tile", "blocks"),
    [
        (4096, 14336, "c64_p2", 128),
        (4096, 128, "c64", 64),  # nothing to share out
        (5120, 4096, "c64", 80),
        (8192, 8192, "c64", 128),
        (14336, 4096, "c128", 112),
        (28672, 8192, "c128", 112),
    ],
)
def test_two_warpgroups_take_the_largest_tile_that_leaves_the_busiest_sm_the_least(oc, ic, tile, blocks):
    launch = _warpgroup(16, ic, oc)
    assert (re.search(r"_(c\d+(?:_p2)?)_t", launch.entry)[1], launch.grid[0]) == (tile, blocks)


def _wide(m, ic, oc, group_size=32):
    desc = bp.Int4AwqGemmDescriptor(m, ic, oc, group_size, split_k_iters=None, weight_layout=TILED)
    (wide,) = (one.sku for one in bp.explain(desc, "sm_90a").candidates
               if one.refusal is None and one.sku.variant == "wide_tiled")  # fmt: skip
    return bp.default_registry().plan(wide, desc, "sm_90a")


@pytest.mark.parametrize("group_size", [128, 64, 32])
@pytest.mark.parametrize("m", [1, 32, 33, 64, 65, 200, 512, 4096])
@pytest.mark.parametrize(("oc", "ic"), SHAPES)
def test_warpgroups_take_every_tile_whole_or_in_parts(oc, ic, m, group_size):
    group_size = min(group_size, ic)
    plan = _wide(m, ic, oc, group_size)
    main, *rest = plan.launches
    *_, boxes, stages, whole, split, splits, panel, token_tiles, even = main.parameters
    tokens = int(re.search(r"_t(\d+)_", main.entry)[1])
    groups = -(-128 // group_size)  # of a block
    assert whole + split == token_tiles * -(-oc // 128)
    assert even % 8 == 0
    assert m <= token_tiles * even <= m + 8 * token_tiles
    assert even <= tokens
    assert boxes.box == (64, even, 1)
    assert main.grid == (min(132, max(whole, split * splits)), 1, 1) or main.grid[0] == 132
    assert main.block[0] == (384 if tokens > 160 else 288)
    assert split * splits <= main.grid[0]
    assert (splits > 1) == (split > 0) == (len(rest) == 1)
    assert plan.workspace_size == split * splits * 128 * tokens * 4
    assert main.shared_bytes <= 227 * 1024
    stored = 2 * (2048 if tokens > 224 and groups == 4 else 4096)
    assert main.shared_bytes == stages * (256 * tokens + 4 * (2048 + 80 * groups) + 24) + stored
    assert stages >= 3
    assert panel >= 1
    assert main.overlaps
    for finish in rest:
        assert finish.grid == (split * tokens // 8, 1, 1)


@pytest.mark.parametrize(
    ("oc", "ic", "m", "tokens", "whole", "split", "splits"),
    [
        (4096, 4096, 128, 128, 0, 32, 4),  # few tiles
        (8192, 8192, 256, 128, 128, 0, 1),  # nearly one round
        (8192, 8192, 4096, 256, 1024, 0, 1),
        (14336, 4096, 256, 256, 112, 0, 1),  # a round that leaves 20 multiprocessors idle
        (14336, 4096, 512, 128, 396, 52, 2),
        (14336, 4096, 1024, 256, 396, 52, 2),
    ],
)
def test_an_h100_has_these_tiles(oc, ic, m, tokens, whole, split, splits):
    main = _wide(m, ic, oc, 128).launches[0]
    assert f"_t{tokens}_" in main.entry
    assert main.parameters[-6:-3] == (whole, split, splits)


def test_bf16_scales_are_not_multiplied_in_f16():
    desc = bp.Int4AwqGemmDescriptor(64, 256, 64, 128, None, TILED, scales_element=bp.ElementKind.BF16)
    for element, serves in ((bp.ElementKind.F16, False), (bp.ElementKind.BF16, True)):
        explanation = bp.explain(desc.with_element(element), "sm_90a")
        names = {one.sku.variant for one in explanation.candidates if one.refusal is None}
        assert ("wide_tiled" in names) == serves


def test_boxes_are_as_wide_as_the_kernels_take_them():
    for name in ("tiled_f16_g1", "tiled_bf16_g4"):
        assert module(f"quantize.awq_gemm.{name}", "sm90a").constant("kBoxChannels") == BOX_CHANNELS


def test_bulk_copies_want_whole_boxes_of_input_channels():
    desc = bp.Int4AwqGemmDescriptor(1, 1056, 64, 32, split_k_iters=None, weight_layout=TILED)
    refused = [one.refusal for one in bp.explain(desc, "sm_90a").candidates if one.sku.variant == "bulk_tiled"]
    assert all(refusal is not None for refusal in refused)
    assert "64" in str(next(refusal for refusal in refused if refusal.rule == "ic % 64"))


@pytest.mark.parametrize(("device", "resident"), [("sm_80", 2), ("sm_86", 1), ("sm_90", 2)])
def test_splits_are_as_many_as_the_gpu_holds_at_once(device, resident):
    desc = bp.Int4AwqGemmDescriptor(16, 4096, 4096, split_k_iters=None, weight_layout=TILED)
    (tile,) = (one.sku for one in bp.explain(desc, device).candidates
               if one.refusal is None and one.sku.variant == "tile_tiled")  # fmt: skip
    plan = bp.default_registry().plan(tile, desc, device)
    across, _, splits = plan.launches[0].grid
    slots = resident * plan.device.sm_count
    assert slots - across < across * splits <= slots
