"""Round-to-nearest in 4 bits: its exactness, its bound, its symmetries, and what it refuses."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.quantize import Rounded, round_to_nearest
from baracuda_py.quantize import weights as weights_module
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind

F16, BF16 = ElementKind.F16, ElementKind.BF16
ELEMENTS = st.sampled_from([F16, BF16])
GROUPS = st.sampled_from([32, 64, 128, -1])
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32])


def random_weight(seed: int, oc: int = 16, ic: int = 256, dtype: Any = np.float32) -> np.ndarray:
    """Rows of one sign, of both, far from 0, and with outliers."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((oc, ic)) * rng.lognormal(0, 2, (oc, 1)) + rng.choice([-3, 0, 0, 5], (oc, 1))
    weight[rng.random((oc, ic)) < 0.01] *= 20
    return weight.astype(dtype)


def scale_of_each(rounded: Rounded) -> np.ndarray:
    """Scales (oc, ic) in float64."""
    return np.repeat(rounded.scales.T.astype(np.float64), len(rounded.nibbles) // len(rounded.scales), axis=1)


@given(seed=SEEDS, group_size=GROUPS, element=ELEMENTS, dtype=DTYPES)
def test_no_weight_is_further_off_than_half_a_scale(seed, group_size, element, dtype):
    weight = random_weight(seed, dtype=dtype)
    rounded = round_to_nearest(weight, group_size=group_size, scales_element=element)
    half = scale_of_each(rounded) / 2
    # The nearest level is found in float32, which can take a tie for its neighbour.
    assert (np.abs(rounded.dequantize() - weight.astype(np.float64)) <= half * (1 + 2**-20)).all()


@given(seed=SEEDS, group_size=GROUPS, element=ELEMENTS)
def test_weights_on_a_full_grid_come_back_bit_for_bit(seed, group_size, element):
    rng = np.random.default_rng(seed)
    oc, ic = 8, 256
    group = ic if group_size == -1 else group_size
    nibbles = rng.integers(0, 16, (oc, ic // group, group))
    nibbles[..., 0], nibbles[..., 1] = 0, 15  # the grid is that of the extremes
    nibbles = rng.permuted(nibbles, axis=-1)
    zeros = rng.integers(0, 16, (oc, ic // group, 1))
    scales = np.exp2(rng.uniform(-12, 8, zeros.shape)).astype(numpy_dtype(element))
    weight = ((nibbles - zeros) * scales.astype(np.float32)).astype(np.float32).reshape(oc, ic)

    rounded = round_to_nearest(weight, group_size=group_size, scales_element=element)
    np.testing.assert_array_equal(rounded.nibbles, nibbles.reshape(oc, ic).T)
    np.testing.assert_array_equal(rounded.zeros, zeros[..., 0].T)
    np.testing.assert_array_equal(rounded.scales, scales[..., 0].T)
    np.testing.assert_array_equal(rounded.dequantize(), weight)


@given(seed=SEEDS, group_size=GROUPS, element=ELEMENTS)
def test_shapes_elements_and_ranges_are_those_of_the_format(seed, group_size, element):
    rounded = round_to_nearest(random_weight(seed), group_size=group_size, scales_element=element)
    groups = 1 if group_size == -1 else 256 // group_size
    assert (rounded.nibbles.shape, rounded.nibbles.dtype) == ((256, 16), np.uint8)
    assert (rounded.zeros.shape, rounded.zeros.dtype) == ((groups, 16), np.uint8)
    assert (rounded.scales.shape, rounded.scales.dtype) == ((groups, 16), numpy_dtype(element))
    assert rounded.nibbles.max() <= 15
    assert rounded.zeros.max() <= 15
    scales = rounded.scales.astype(np.float32)
    assert (np.isfinite(scales) & (scales > 0)).all()


@given(seed=SEEDS, group_size=GROUPS)
def test_permuting_output_channels_permutes_the_result(seed, group_size):
    weight = random_weight(seed)
    order = np.random.default_rng(seed).permutation(len(weight))
    plain = round_to_nearest(weight, group_size=group_size)
    permuted = round_to_nearest(weight[order], group_size=group_size)
    np.testing.assert_array_equal(permuted.nibbles, plain.nibbles[:, order])
    np.testing.assert_array_equal(permuted.zeros, plain.zeros[:, order])
    np.testing.assert_array_equal(permuted.scales, plain.scales[:, order])


@given(seed=SEEDS, power=st.integers(-60, 60))
def test_a_power_of_two_on_the_weight_is_the_same_power_on_the_scales(seed, power):
    weight = random_weight(seed)
    plain = round_to_nearest(weight, scales_element=BF16)
    scaled = round_to_nearest(np.ldexp(weight, power), scales_element=BF16)
    np.testing.assert_array_equal(scaled.nibbles, plain.nibbles)
    np.testing.assert_array_equal(scaled.zeros, plain.zeros)
    np.testing.assert_array_equal(scaled.scales.astype(np.float64), np.ldexp(plain.scales.astype(np.float64), power))


@pytest.mark.parametrize("element", [F16, BF16])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.375, -448.0, 2.0**-24, -(2.0**-14)])
def test_a_group_of_equal_weights_is_exact(value, element):
    weight = np.full((8, 64), value, np.float32)
    np.testing.assert_array_equal(round_to_nearest(weight, group_size=32, scales_element=element).dequantize(), weight)


@pytest.mark.parametrize("element", [F16, BF16])
@pytest.mark.parametrize("value", [1e-45, -1e-40, 6e-8, 1e-6, -900_000.0, 3.3e38])
def test_denormal_and_huge_groups_keep_the_bound_or_are_refused(value, element):
    weight = np.zeros((8, 64), np.float32)
    weight[:, ::2] = value
    if element is F16 and abs(value) > 65504 * 15:
        with pytest.raises(InvalidProblem, match=r"fit 15 scales of F16.*BF16") as caught:
            round_to_nearest(weight, group_size=32, scales_element=element)
        assert caught.value.rule == "scale range"
        return
    if element is F16 and abs(value) < 1e-5:
        with pytest.raises(InvalidProblem, match=r"vanish in F16 \(got 16 of 16.*BF16") as caught:
            round_to_nearest(weight, group_size=32, scales_element=element)
        assert caught.value.rule == "scale range"
        return
    rounded = round_to_nearest(weight, group_size=32, scales_element=element)
    assert (np.abs(rounded.dequantize().astype(np.float64) - weight) <= scale_of_each(rounded) / 2).all()


def test_a_few_groups_may_vanish_and_any_number_be_zero():
    weight = np.random.default_rng(0).standard_normal((8, 32 * 100)).astype(np.float32)
    weight[:, 1600:] = 0
    weight.reshape(-1, 32)[:8] *= 1e-8  # 8 of 800
    round_to_nearest(weight, group_size=32)
    weight.reshape(-1, 32)[8] *= 1e-8
    with pytest.raises(InvalidProblem, match="9 of 800"):
        round_to_nearest(weight, group_size=32)


@pytest.mark.parametrize("scale", [4e-5, 1e-7])
def test_small_weights_in_f16_are_no_smaller_than_its_scales(scale):
    weight = (scale * np.random.default_rng(0).standard_normal((8, 64))).astype(np.float16)
    made = round_to_nearest(weight, group_size=32).dequantize()
    assert np.linalg.norm(made - weight.astype(np.float32)) < 0.2 * np.linalg.norm(weight.astype(np.float64))


def test_equal_weights_beyond_the_scales_range_take_a_fifteenth_as_their_scale():
    rounded = round_to_nearest(np.full((8, 32), 80_000, np.float32), group_size=32)
    assert rounded.nibbles.min() == 15
    np.testing.assert_allclose(rounded.dequantize(), 80_000, rtol=2**-10)


def test_groups_are_independent():
    weight = random_weight(1)
    other = weight.copy()
    other[:, 32:64] *= 100
    plain, changed = (round_to_nearest(w, group_size=32) for w in (weight, other))
    kept = np.r_[0:32, 64:256]
    np.testing.assert_array_equal(plain.nibbles[kept], changed.nibbles[kept])
    assert (plain.scales[1].astype(np.float32) < changed.scales[1].astype(np.float32)).all()


def test_the_result_does_not_depend_on_the_blocks(monkeypatch):
    weight = random_weight(2, oc=56, ic=512)
    whole = round_to_nearest(weight, group_size=64)
    monkeypatch.setattr(weights_module, "BLOCK_ELEMENTS", 8 * 512)
    blocked = round_to_nearest(weight, group_size=64)
    np.testing.assert_array_equal(blocked.nibbles, whole.nibbles)
    np.testing.assert_array_equal(blocked.scales, whole.scales)


def test_a_strided_weight_is_read_where_it_lies():
    weight = random_weight(3, oc=32, ic=256)
    strided = np.asfortranarray(weight)[::2]
    np.testing.assert_array_equal(round_to_nearest(strided).nibbles, round_to_nearest(weight[::2].copy()).nibbles)


def _with(value: float) -> np.ndarray:
    weight = random_weight(0)
    weight[5, 77] = value
    return weight


@pytest.mark.parametrize(
    ("weight", "options", "error", "rule"),
    [
        (_with(np.nan), {}, InvalidProblem, "finite"),
        (_with(-np.inf), {}, InvalidProblem, "finite"),
        (np.zeros((8, 32)), {}, Unsupported, "element"),
        (np.zeros((8, 32), np.int8), {}, Unsupported, "element"),
        ([[0.0] * 32] * 8, {}, Unsupported, "element"),
        (np.zeros((8, 4, 32), np.float32), {}, InvalidProblem, "shape"),
        (np.zeros((0, 32), np.float32), {}, InvalidProblem, "shape"),
        (np.zeros((8, 96), np.float32), {"group_size": 64}, InvalidProblem, "ic % group_size"),
        (np.zeros((8, 40), np.float32), {"group_size": -1}, InvalidProblem, "ic % 32"),
        (np.zeros((12, 128), np.float32), {}, InvalidProblem, "oc % 8"),
        (np.zeros((8, 128), np.float32), {"group_size": 16}, Unsupported, "group_size"),
        (np.zeros((8, 128), np.float32), {"scales_element": ElementKind.F32}, Unsupported, "scales_element"),
    ],
)
def test_what_cannot_be_rounded_is_refused_by_name(weight, options, error, rule):
    with pytest.raises(error) as caught:
        round_to_nearest(weight, **options)
    assert type(caught.value) is error
    assert rule in caught.value.rule


def test_inf_is_found_where_it_is():
    with pytest.raises(InvalidProblem, match=r"inf at \[5, 77\]"):
        round_to_nearest(_with(np.inf))
