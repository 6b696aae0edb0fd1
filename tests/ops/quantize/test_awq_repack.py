"""Laws of AWQ repacking beyond those that hold for every op."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py.sys import module

HF_GEMM, OC_MAJOR = bp.AwqWeightLayout.HF_GEMM, bp.AwqWeightLayout.OC_MAJOR
PAIRS = [(HF_GEMM, OC_MAJOR), (OC_MAJOR, HF_GEMM)]


def random_words(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**31), 2**31, shape, np.int32)


def repacked(desc: bp.Int4AwqRepackDescriptor, weight: np.ndarray, zeros: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outputs = np.empty(desc.target_shape, weight.dtype), np.empty_like(zeros)
    plan = bp.select(desc, device="host")
    plan.run(None, bp.Workspace.NONE, bp.Int4AwqRepackArgs(weight, zeros, *outputs))
    return outputs


def backwards(desc: bp.Int4AwqRepackDescriptor) -> bp.Int4AwqRepackDescriptor:
    return desc.with_source(desc.target).with_target(desc.source)


@given(
    groups=st.integers(1, 5), octets=st.integers(1, 40), group_size=st.sampled_from((32, 64, 128, -1)),
    pair=st.sampled_from(PAIRS), seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_there_and_back_is_the_identity(groups, octets, group_size, pair, seed):
    ic = 32 * groups if group_size == -1 else group_size * groups
    desc = bp.Int4AwqRepackDescriptor(ic, 8 * octets, group_size, *pair)
    weight, zeros = random_words(seed, *desc.source_shape), random_words(seed + 1, desc.groups, octets)
    back = repacked(backwards(desc), *repacked(desc, weight, zeros))
    np.testing.assert_array_equal(back[0], weight)
    np.testing.assert_array_equal(back[1], zeros)


def test_every_zero_point_comes_back_from_every_place_of_a_word():
    places, values = np.arange(8, dtype=np.uint32), np.arange(16, dtype=np.uint32)
    zeros = (values[:, None] << (4 * places)).reshape(1, 128)
    desc = bp.Int4AwqRepackDescriptor(32, 1024, 32)
    weight = random_words(0, *desc.source_shape).view(np.uint32)
    there = repacked(desc, weight, zeros)
    np.testing.assert_array_equal(repacked(backwards(desc), *there)[1], zeros)
    # Nibble 1 of an interleaved word is column 2: the value stays, its place becomes that of its column.
    column_of_place = (0, 2, 4, 6, 1, 3, 5, 7)
    expected = values[:, None] << (4 * np.array(column_of_place, np.uint32))
    np.testing.assert_array_equal(there[1], expected.reshape(1, 128))


def test_words_of_known_columns_become_rows_of_them():
    """Each row of the weight holds 0 .. 7 in its eight columns, so row n of the result holds n eight times a word."""
    desc = bp.Int4AwqRepackDescriptor(64, 8, 32)
    weight, zeros = np.full((64, 1), 0x75316420, np.uint32), np.full((2, 1), 0x75316420, np.uint32)
    turned, ordered = repacked(desc, weight, zeros)
    np.testing.assert_array_equal(turned, np.repeat(np.arange(8, dtype=np.uint32)[:, None] * 0x11111111, 8, axis=1))
    np.testing.assert_array_equal(ordered, np.full((2, 1), 0x76543210))


def dequantized(layout: bp.AwqWeightLayout, group_size: int, weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray):
    ic, oc = (weight.shape[1] * 8, weight.shape[0]) if layout is OC_MAJOR else (weight.shape[0], weight.shape[1] * 8)
    desc = bp.Int4AwqDequantizeDescriptor(ic, oc, group_size, layout, bp.ElementKind.F32)
    output = np.full((ic, oc), np.nan, np.float32)
    plan = bp.select(desc, device="host")
    plan.run(None, bp.Workspace.NONE, bp.Int4AwqDequantizeArgs(weight, scales, zeros, output))
    return output


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].value}_to_{pair[1].value}")
def test_repacked_weights_are_the_same_weights_with_the_same_scales(pair, group_size):
    desc = bp.Int4AwqRepackDescriptor(384, 72, group_size, *pair)
    weight, zeros = random_words(1, *desc.source_shape), random_words(2, desc.groups, 9)
    scales = np.random.default_rng(3).uniform(0.5, 2, (desc.groups, 72)).astype(np.float16)
    before = dequantized(desc.source, group_size, weight, scales, zeros)
    turned, ordered = repacked(desc, weight, zeros)
    np.testing.assert_array_equal(dequantized(desc.target, group_size, turned, scales, ordered), before)


def test_a_shard_of_columns_is_repacked_where_it_lies():
    whole = bp.Int4AwqRepackDescriptor(64, 96, 32)
    weight, zeros = random_words(4, *whole.source_shape), random_words(5, 2, 12)
    all_rows, all_zeros = repacked(whole, weight, zeros)
    shard = bp.Int4AwqRepackDescriptor(64, 40, 32)
    rows, ordered = repacked(shard, weight[:, 3:8], zeros[:, 3:8])
    np.testing.assert_array_equal(rows, all_rows[24:64])
    np.testing.assert_array_equal(ordered, all_zeros[:, 3:8])


@pytest.mark.parametrize("layout", list(bp.AwqWeightLayout))
def test_a_layout_is_not_repacked_into_itself(layout):
    desc = bp.Int4AwqRepackDescriptor(64, 64, 32, layout, layout)
    with pytest.raises(bp.errors.InvalidProblem, match="there is nothing to repack") as refused:
        bp.select(desc, device="host")
    assert "layouts_differ" in refused.value.rule


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].value}_to_{pair[1].value}")
def test_one_launch_takes_weights_and_zero_points(pair):
    desc = bp.Int4AwqRepackDescriptor(4096, 14336, 128, *pair)
    plan = bp.select(desc, device="sm_90")
    (launch,) = plan.launches
    assert launch.entry == f"awq_repack_sm80_u4_{pair[0].value}_to_{pair[1].value}"
    code = module("quantize.awq_repack", "sm80")
    assert launch.block == (code.constant("kThreads"), 1, 1)
    tiles = desc.weights // code.constant("kTile") ** 2
    assert launch.grid == (tiles + desc.groups * (desc.oc // 8 // code.constant("kThreads")), 1, 1)
    assert plan.workspace_size == 0


def test_a_grid_holds_the_largest_weights_that_the_kernel_takes_and_no_larger_ones_are_taken():
    for ic, oc in [(1 << 19, 1 << 19), (32, 1 << 33), (1 << 35, 8), (1 << 33, 32)]:
        (launch,) = bp.select(bp.Int4AwqRepackDescriptor(ic, oc, 32), device="sm_80").launches
        assert launch.grid[0] < 1 << 31
    with pytest.raises(bp.errors.NoKernel, match="a grid has at most"):
        bp.select(bp.Int4AwqRepackDescriptor(1 << 19, (1 << 19) + 8, 32), device="sm_80")
