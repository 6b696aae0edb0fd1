"""Laws of the quantisation to fp8 with a scale a token, beyond those that hold for every op."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.vocab.elements import numpy_dtype

ELEMENTS = (bp.ElementKind.F16, bp.ElementKind.BF16, bp.ElementKind.F32)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
CODES = np.arange(256, dtype=np.uint8)
VALUES = np.sort(np.unique(CODES.view(E4M3).astype(np.float64)[~np.isnan(CODES.view(E4M3).astype(np.float64))]))


def quantized(x: np.ndarray, element: bp.ElementKind = bp.ElementKind.F32) -> tuple[np.ndarray, np.ndarray]:
    """What the host makes of it: values as float64, and scales."""
    output, scales = np.zeros(x.shape, E4M3), np.full(len(x), np.nan, np.float32)
    plan = bp.select(bp.QuantizePerTokenDescriptor(*x.shape, element), "host")
    plan.run(None, bp.Workspace.NONE, bp.QuantizePerTokenArgs(x, output, scales))
    return output.astype(np.float64), scales


def nearest(x: float) -> float:
    """The e4m3 value nearest to x; of two the one whose code is even."""
    distance = np.abs(VALUES - x)
    found = VALUES[distance == distance.min()]
    return float(next((v for v in found if int(np.array(v, E4M3).view(np.uint8)) % 2 == 0), found[0]))


def test_what_fp8_holds_stays_and_all_else_becomes_the_nearest_of_it_ties_to_even():
    ties = (VALUES[1:] + VALUES[:-1]) / 2
    around = [np.nextafter(ties.astype(np.float32), np.float32(end)) for end in (1e9, -1e9)]
    given = np.concatenate([[448.0], VALUES, ties, *around])
    found, scales = quantized(given.astype(np.float32)[None])
    assert scales.tolist() == [1.0]
    np.testing.assert_array_equal(found[0], [nearest(float(np.float32(x))) for x in given])


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_the_largest_of_a_row_becomes_448_and_nothing_is_larger(element):
    x = np.random.default_rng(0).standard_normal((300, 40)).astype(numpy_dtype(element))
    found, scales = quantized(x, element)
    np.testing.assert_array_equal(np.abs(found).max(axis=1), 448)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(np.abs(wide).max(axis=1), 448 * scales.astype(np.float64), rtol=2.0**-23)
    np.testing.assert_allclose(found * scales[:, None], wide, rtol=2.0**-4, atol=2.0**-9 * scales.max())


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("power", [-3, 4])
def test_scaling_a_row_by_a_power_of_two_scales_its_scale(element, power):
    x = np.random.default_rng(1).standard_normal((3, 50)).astype(numpy_dtype(element))
    scaled = x.copy()
    scaled[1] = x[1] * 2.0**power
    (found, scales), (expected, before) = quantized(scaled, element), quantized(x, element)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scales, before * np.array([1, 2.0**power, 1], np.float32))


def test_rows_of_zeros_and_of_what_is_too_small_for_a_scale_become_zeros_with_the_scale_1():
    x = np.zeros((3, 8), np.float32)
    x[1], x[2] = 448 * 2.0**-128, 448 * 2.0**-126
    found, scales = quantized(x)
    np.testing.assert_array_equal(scales, np.array([1, 1, 2.0**-126], np.float32))
    np.testing.assert_array_equal(found, [[0] * 8, [0] * 8, [448] * 8])


def test_nan_stays_and_does_not_count_and_an_infinity_leaves_zeros():
    x = np.array([[1, np.nan, -4, 2], [1, -np.inf, 2, 3], [np.nan] * 4], np.float32)
    found, scales = quantized(x)
    np.testing.assert_array_equal(scales, np.array([4 / 448, np.inf, 1], np.float32))
    np.testing.assert_array_equal(found, [[112, np.nan, -448, 224], [0, np.nan, 0, 0], [np.nan] * 4])


@pytest.mark.parametrize(("columns", "threads"), [(1, 32), (1024, 32), (1025, 64), (8192, 256), (28672, 256)])
def test_a_row_gets_the_warps_that_hold_it_in_registers(columns, threads):
    (launch,) = bp.select(bp.QuantizePerTokenDescriptor(7, columns), "sm_80").launches
    assert launch.entry == "quantize_per_token_sm80_f16"
    assert (launch.grid, launch.block) == ((7, 1, 1), (threads, 1, 1))
