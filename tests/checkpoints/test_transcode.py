"""Between any two formats and the plan's layouts: exact round trips, and what cannot be exact, counted."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_files import MARLIN_SIZES, NAME, packed, weight, write
from hypothesis import given, settings
from hypothesis import strategies as st

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat, transcode, words
from baracuda_py.errors import UnsupportedCheckpoint
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.ops.quantize.awq_reference import dequantize_reference, untiled_reference
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind

F = PackedFormat
WITH_ZEROS = [format for format in F if format is not F.AWQ_MARLIN]
ORDERED = [F.AWQ_GEMM, F.AWQ_GEMV, F.AWQ_GEMV_FAST, F.LLM_AWQ_V2]


def read(tmp_path_factory, format, made, **kwargs):
    return checkpoints.open(write(tmp_path_factory.mktemp("checkpoint"), format.value, made, **kwargs))[NAME]


def assert_same_tensors(layer, tensors):
    assert layer.tensors.keys() == tensors.keys()
    for part, tensor in tensors.items():
        array = layer.tensors[part]
        assert array.shape == tensor.bits.shape
        assert array.tobytes() == tensor.bits.tobytes(), part


@pytest.mark.parametrize("source", WITH_ZEROS)
@pytest.mark.parametrize("target", WITH_ZEROS)
def test_every_format_becomes_the_bytes_of_every_other(source, target, tmp_path_factory):
    """All nibbles random, zero points running through 0..15 (1..15 where GPTQ v1 is in it)."""
    least = 1 if F.GPTQ_V1 in (source, target) else 0

    @settings(max_examples=5)
    @given(seed=st.integers(0, 2**32), group_size=st.sampled_from((32, 64, -1)))
    def check(seed, group_size):
        made = weight(seed, 128, 40, group_size, least_zero=least)
        layer = transcode(read(tmp_path_factory, source, made), target)
        assert_same_tensors(layer, packed(target.value, made))
        assert (layer.format, layer.name, layer.group_size) == (target, NAME, group_size)
        assert not layer.loss
        assert layer.loss.total == 128 * 40
        back = transcode(layer, source)
        assert_same_tensors(back, packed(source.value, made))

    check()


@pytest.mark.parametrize("other", WITH_ZEROS)
@pytest.mark.parametrize("group_size", [128, -1])
def test_symmetric_weights_pass_through_marlin(other, group_size, tmp_path_factory):
    made = weight(11, *MARLIN_SIZES, group_size, symmetric=True)
    layer = read(tmp_path_factory, F.AWQ_MARLIN, made)
    there = transcode(layer, other)
    np.testing.assert_array_equal(checkpoints.unpack(there).weights(), made.exact)
    back = transcode(there, F.AWQ_MARLIN)
    assert_same_tensors(back, packed("awq_marlin", made))


@pytest.mark.parametrize("source", [F.GPTQ_V2, F.COMPRESSED_TENSORS])
@pytest.mark.parametrize("target", [F.GPTQ_V1, F.GPTQ_V2, F.COMPRESSED_TENSORS])
def test_groups_out_of_order_stay_where_they_can(source, target, tmp_path_factory):
    made = weight(12, 96, 16, 32, act_order=True, least_zero=1)
    layer = transcode(read(tmp_path_factory, source, made), target)
    assert layer.act_order
    assert_same_tensors(layer, packed(target.value, made))


@pytest.mark.parametrize("layout", AwqWeightLayout)
@pytest.mark.parametrize("source", F)
def test_operands_are_what_the_reference_dequantises_exactly(source, layout, tmp_path_factory):
    symmetric = source is F.AWQ_MARLIN
    made = weight(13, *MARLIN_SIZES, 128, symmetric=symmetric, least_zero=1)
    layer = read(tmp_path_factory, source, made, bias=np.arange(256) / 8)
    operands = transcode(layer, layout)
    assert operands.layout is layout
    packed_weight, zeros, scales, apart = operands.weight_packed, operands.zeros, operands.scales, layout.value
    if layout is AwqWeightLayout.TILED:
        assert scales is None
        assert zeros is None
        dtype = numpy_dtype(operands.scales_element)
        packed_weight, zeros, scales = untiled_reference(packed_weight, *MARLIN_SIZES, operands.group_size, dtype)
        apart = "oc_major"
    w = dequantize_reference(packed_weight, scales, zeros, layout=apart, group_size=operands.group_size)
    np.testing.assert_array_equal(w, made.exact)
    np.testing.assert_array_equal(operands.bias, (np.arange(256) / 8).astype(np.float16))
    desc = operands.descriptor(3)
    assert (desc.m, desc.ic, desc.oc, desc.group_size, desc.weight_layout) == (3, *MARLIN_SIZES, 128, layout)
    assert desc == layer.descriptor(3, layout=layout)
    for array in (operands.weight_packed, scales, zeros):
        assert array.flags.c_contiguous
        assert array.flags.aligned


def test_hf_gemm_operands_of_an_awq_gemm_layer_are_the_file(tmp_path_factory):
    made = weight(14, 512, 512, 128)
    operands = read(tmp_path_factory, F.AWQ_GEMM, made).gemm_operands(AwqWeightLayout.HF_GEMM)
    assert not operands.weight_packed.flags.owndata
    assert not operands.weight_packed.flags.writeable
    assert operands.weight_packed.tobytes() == packed("awq_gemm", made)["qweight"].bits.tobytes()


def test_a_layout_or_format_by_its_name_alone_is_refused(tmp_path_factory):
    layer = read(tmp_path_factory, F.AWQ_GEMM, weight(14, 512, 512, 128))
    with pytest.raises(TypeError, match="layout must be a member of AwqWeightLayout, not 'tiled'"):
        layer.gemm_operands("tiled")
    with pytest.raises(TypeError, match="format must be a member of PackedFormat, not 'awq_gemm'"):
        checkpoints.save(tmp_path_factory.mktemp("target") / "new", [layer], format="awq_gemm")


@pytest.mark.parametrize(("group_size", "served"), [(32, 32), (64, 64), (128, 128), (256, 128), (96, 32), (-1, -1)])
def test_groups_that_the_op_does_not_know_are_split(group_size, served, tmp_path_factory):
    made = weight(15, 768, 8, group_size)
    layer = read(tmp_path_factory, F.AWQ_GEMM, made)
    operands = layer.gemm_operands()
    assert operands.group_size == layer.descriptor(1).group_size == served
    w = dequantize_reference(
        operands.weight_packed, operands.scales, operands.zeros, layout="oc_major", group_size=served
    )
    np.testing.assert_array_equal(w, made.exact)


def refused(layer, target):
    """The count of weights that a refusal says would change."""
    with pytest.raises(UnsupportedCheckpoint, match="lossy=True") as raised:
        transcode(layer, target)
    assert raised.value.tensor == NAME
    assert f"{raised.value.value} of {layer.ic * layer.oc}" in str(raised.value)
    return raised.value.value


def assert_loss(made, layer, target, expected):
    """Converts with loss; the report is what comparing all weights says, and the refusal says the same."""
    count = refused(layer, target)
    converted = transcode(layer, target, lossy=True)
    difference = np.abs(checkpoints.unpack(converted).weights() - made.exact)
    assert count == converted.loss.changed == np.count_nonzero(difference)
    if expected is not None:
        assert count == expected
    np.testing.assert_allclose(converted.loss.largest, difference.max(), rtol=1e-6)
    return difference


def test_asymmetric_weights_lose_in_marlin_what_leaves_the_range(tmp_path_factory):
    made = weight(16, *MARLIN_SIZES, 128)
    layer = read(tmp_path_factory, F.AWQ_GEMM, made)
    moved = made.q - np.repeat(made.z, 128, axis=0) + 8
    assert_loss(made, layer, F.AWQ_MARLIN, np.count_nonzero((moved < 0) | (moved > 15)))


def test_asymmetric_weights_that_stay_in_range_are_exact_in_marlin(tmp_path_factory):
    made = weight(17, *MARLIN_SIZES, 128)
    np.clip(made.z, 6, 10, out=made.z)
    np.clip(made.q, 2, 13, out=made.q)
    converted = transcode(read(tmp_path_factory, F.GPTQ_V2, made), F.AWQ_MARLIN)
    assert not converted.loss
    np.testing.assert_array_equal(checkpoints.unpack(converted).weights(), made.exact)


def test_a_zero_point_of_0_costs_the_nibble_15_in_gptq_v1(tmp_path_factory):
    made = weight(18, 64, 32, 32, act_order=True)
    layer = read(tmp_path_factory, F.GPTQ_V2, made)
    assert (made.z == 0).any()
    lost = np.count_nonzero((made.q == 15) & (made.z[made.g_idx] == 0))
    assert_loss(made, layer, F.GPTQ_V1, lost)
    made.q[made.q == 15] = 14
    exact = transcode(read(tmp_path_factory, F.GPTQ_V2, made), F.GPTQ_V1)
    np.testing.assert_array_equal(checkpoints.unpack(exact).weights(), made.exact)


@pytest.mark.parametrize("target", ORDERED)
def test_groups_out_of_order_are_rounded_anew(target, tmp_path_factory):
    made = weight(19, 128, 16, 32, act_order=True, bits=4)
    layer = read(tmp_path_factory, F.GPTQ_V2, made)
    difference = assert_loss(made, layer, target, None)
    spread = np.ptp(made.exact.reshape(4, 32, 16), axis=1) / 15
    # Half a step, and as much again for a zero point that is rounded too; scales and -s * z are rounded to f16.
    assert (difference.reshape(4, 32, 16).max(axis=1) <= 1.02 * spread + 1e-6).all()


def test_an_index_that_is_in_order_costs_nothing(tmp_path_factory):
    made = weight(20, 128, 16, 32)
    layer = read(tmp_path_factory, F.GPTQ_V2, made, settings={"desc_act": True})
    assert layer.act_order
    assert_same_tensors(transcode(layer, F.AWQ_GEMM), packed("awq_gemm", made))


def test_small_groups_are_rounded_anew_for_marlin_and_large_ones_split(tmp_path_factory):
    small = weight(21, *MARLIN_SIZES, 64, symmetric=True)
    difference = assert_loss(small, read(tmp_path_factory, F.COMPRESSED_TENSORS, small), F.AWQ_MARLIN, None)
    largest = np.abs(small.exact).reshape(2, 128, -1).max(axis=1)
    assert (difference.reshape(2, 128, -1).max(axis=1) <= 0.51 * largest / 7).all()
    large = weight(22, 512, 256, 256, symmetric=True)
    split = transcode(read(tmp_path_factory, F.COMPRESSED_TENSORS, large), F.AWQ_MARLIN)
    assert split.group_size == 128
    np.testing.assert_array_equal(checkpoints.unpack(split).weights(), large.exact)


def test_bf16_scales_are_kept_where_f16_can_hold_them(tmp_path_factory):
    made = weight(23, 64, 16, 32, dtype="BF16")
    converted = transcode(read(tmp_path_factory, F.AWQ_GEMM, made), F.AWQ_GEMV)
    assert converted.scales_element is ElementKind.F16
    np.testing.assert_array_equal(checkpoints.unpack(converted).weights(), made.exact)
    tiny = weight(23, 64, 16, 32, dtype="BF16")
    tiny.s.values[0, 3] = 2.0**-30
    layer = read(tmp_path_factory, F.AWQ_GEMM, tiny)
    lost = np.count_nonzero(tiny.q[:32, 3] != tiny.z[0, 3])
    assert_loss(tiny, layer, F.AWQ_GEMV, lost)


def test_scaled_zeros_beyond_f16_are_refused_in_any_case(tmp_path_factory):
    made = weight(24, 64, 16, 32)
    made.s.values[1, 5] = 8192.0
    made.z[1, 5] = 15
    layer = read(tmp_path_factory, F.AWQ_GEMM, made)
    for lossy in (False, True):
        with pytest.raises(UnsupportedCheckpoint, match=r"finite.*got 1 that"):
            transcode(layer, F.AWQ_GEMV_FAST, lossy=lossy)


def test_a_scale_of_0_keeps_weights_though_its_zero_point_is_lost(tmp_path_factory):
    made = weight(25, 64, 16, 32)
    made.s.values[0, 2] = 0.0
    made.z[0, 2] = 5
    converted = transcode(read(tmp_path_factory, F.AWQ_GEMM, made), F.AWQ_GEMV_FAST)
    nibbles = checkpoints.unpack(converted)
    assert nibbles.z[0, 2] == 0
    np.testing.assert_array_equal(nibbles.weights(), made.exact)


@pytest.mark.parametrize(
    ("target", "ic", "oc", "rule"),
    [(F.AWQ_MARLIN, 64, 256, "ic"), (F.AWQ_MARLIN, 128, 128, "oc"), (F.AWQ_GEMV_FAST, 96, 8, "ic"),
     (F.LLM_AWQ_V2, 96, 8, "ic")],
)  # fmt: skip
def test_sizes_that_a_format_cannot_have_are_refused_in_any_case(target, ic, oc, rule, tmp_path_factory):
    layer = read(tmp_path_factory, F.COMPRESSED_TENSORS, weight(26, ic, oc, 32, symmetric=True))
    for lossy in (False, True):
        with pytest.raises(UnsupportedCheckpoint, match=f"{rule} must be a multiple") as raised:
            transcode(layer, target, lossy=lossy)
        assert raised.value.rule == rule


def test_twelve_output_channels_fit_only_without_zero_points(tmp_path_factory):
    layer = read(tmp_path_factory, F.COMPRESSED_TENSORS, weight(27, 64, 12, 32, symmetric=True))
    assert checkpoints.unpack(layer).oc == 12
    for target in (F.AWQ_GEMM, F.GPTQ_V2, AwqWeightLayout.OC_MAJOR):
        with pytest.raises(UnsupportedCheckpoint, match="oc must be a multiple of 8"):
            transcode(layer, target)


nibble_orders = st.sampled_from((words.NATURAL, words.HF_COLUMN_OF_NIBBLE))


@given(
    rows=st.integers(1, 40), width=st.integers(1, 600), source=nibble_orders, target=nibble_orders,
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_transposing_words_transposes_their_nibbles(rows, width, source, target, seed):
    """Tiles of 16 x 256 words end anywhere."""
    words_of = np.random.default_rng(seed).integers(-(2**31), 2**31, (8 * rows, width), np.int32)
    transposed = words.transpose_nibbles(words_of, source=source, target=target)
    np.testing.assert_array_equal(words.unpack(transposed, target), words.unpack(words_of, source).T)
    np.testing.assert_array_equal(words.transpose_nibbles(transposed, source=target, target=source), words_of)
