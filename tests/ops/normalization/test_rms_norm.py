"""Laws of RMSNorm beyond those that hold for every op."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.ops.normalization.rms_norm import OP
from baracuda_py.vocab.elements import numpy_dtype

ELEMENTS = (bp.ElementKind.F16, bp.ElementKind.BF16, bp.ElementKind.F32)
ROWS, COLUMNS = 3, 50


def values(element: bp.ElementKind, seed: int = 0, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(element))


def rms_norm(element: bp.ElementKind, x: Any, weight: Any = None, eps: float = 0.0) -> Any:
    """What the host kernel makes of it."""
    desc = bp.RmsNormDescriptor(*x.shape, eps=eps, element=element, has_weight=weight is not None)
    output = np.full_like(x, np.nan)
    bp.select(desc, "host").run(None, bp.Workspace.NONE, bp.RmsNormArgs(x, output, weight))
    return output


def exact(x: Any, weight: Any = None, eps: float = 0.0) -> Any:
    desc = bp.RmsNormDescriptor(*x.shape, eps=eps, has_weight=weight is not None)
    return OP.reference(desc, x, weight)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("factor", [2.0**-7, 2.0**5, -1.0])
def test_without_eps_scaling_a_row_changes_at_most_its_sign(element: bp.ElementKind, factor: float) -> None:
    x, weight = values(element), values(element, 1, (COLUMNS,))
    scaled = x.copy()
    scaled[1] = x[1] * factor
    expected = rms_norm(element, x, weight)
    expected[1] *= np.sign(factor)
    # Powers of two: nothing is rounded on the way.
    np.testing.assert_array_equal(rms_norm(element, scaled, weight), expected)


@pytest.mark.parametrize("element", ELEMENTS)
def test_the_root_mean_square_of_a_row_becomes_1(element: bp.ElementKind) -> None:
    y = rms_norm(element, values(element) * 8).astype(np.float64)
    np.testing.assert_allclose(np.sqrt(np.mean(y * y, axis=1)), 1, rtol=float(np.finfo(np.float16).eps) * 8)


@pytest.mark.parametrize("strange", [np.nan, np.inf, 0.0])
def test_a_row_does_not_see_the_others(strange: float) -> None:
    x, weight = values(bp.ElementKind.F32), values(bp.ElementKind.F32, 1, (COLUMNS,))
    expected = rms_norm(bp.ElementKind.F32, x, weight)
    x[1] = strange
    found = rms_norm(bp.ElementKind.F32, x, weight)
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("element", ELEMENTS)
def test_permuting_columns_and_weight_permutes_the_result(element: bp.ElementKind) -> None:
    # Small integers: squares and sums are exact in every order.
    x = np.random.default_rng(0).integers(-9, 10, (ROWS, COLUMNS)).astype(numpy_dtype(element))
    weight, order = values(element, 1, (COLUMNS,)), np.random.default_rng(2).permutation(COLUMNS)
    permuted = rms_norm(element, np.ascontiguousarray(x[:, order]), weight[order])
    np.testing.assert_array_equal(permuted, rms_norm(element, x, weight)[:, order])


@pytest.mark.parametrize("element", ELEMENTS)
def test_no_weight_is_a_weight_of_ones(element: bp.ElementKind) -> None:
    x = values(element)
    np.testing.assert_array_equal(rms_norm(element, x), rms_norm(element, x, np.ones(COLUMNS, x.dtype)))


@pytest.mark.parametrize("magnitude", [6e4, 300, 1e-4, 2.0**-24])
def test_squares_that_f16_cannot_hold_are_summed_all_the_same(magnitude: float) -> None:
    signs = np.where(np.arange(COLUMNS) % 3, 1, -1) * np.ones((ROWS, 1))
    x = (magnitude * signs).astype(np.float16)
    np.testing.assert_array_equal(rms_norm(bp.ElementKind.F16, x), signs)


@pytest.mark.parametrize("element", [bp.ElementKind.BF16, bp.ElementKind.F32])
def test_a_row_whose_squares_leave_f32_becomes_0(element: bp.ElementKind) -> None:
    x = values(element)
    x[1, 7] = 1e20
    assert not rms_norm(element, x)[1].any()


def test_the_weight_is_applied_before_the_one_rounding() -> None:
    x, weight = values(bp.ElementKind.F16, 3, (20, 333)), values(bp.ElementKind.F16, 4, (333,))
    y, wanted = rms_norm(bp.ElementKind.F16, x, weight), exact(x, weight)
    # Half a unit in the last place, and a little for f32. To round before the weight would cost up to a unit more.
    assert (np.abs(y - wanted) <= 0.51 * np.spacing(np.abs(y)).astype(np.float64)).all()


def test_blocks_of_rows_add_up_to_the_whole() -> None:
    x, weight = values(bp.ElementKind.F32, 5, (1500, 101)), values(bp.ElementKind.F32, 6, (101,))
    np.testing.assert_allclose(rms_norm(bp.ElementKind.F32, x, weight), exact(x, weight), rtol=1e-5)


def test_eps_is_added_to_the_mean_square() -> None:
    ones = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(rms_norm(bp.ElementKind.F32, ones, eps=1.0), ones / np.sqrt(2), rtol=1e-6)
    assert not rms_norm(bp.ElementKind.F32, 0 * ones, eps=1e-6).any()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("columns", [1, 2, 3, 31, 64, 128, 1000, 4096, 5120, 16_384, 100_000])
def test_the_block_depends_on_columns_alone_and_the_grid_covers_the_rows(element: bp.ElementKind, columns: int) -> None:
    blocks = set()
    for rows in (1, 7, 8192, 1 << 40):
        (launch,) = bp.select(bp.RmsNormDescriptor(rows, columns, element=element), "sm_80").launches
        threads, rows_of_a_block, _ = launch.block
        assert threads.bit_count() == 1, "the sum over a row halves the number of threads until one is left"
        assert threads * rows_of_a_block % 32 == 0, "a shuffle needs full warps"
        assert launch.grid[0] == min(-(-rows // rows_of_a_block), (1 << 31) - 1)
        blocks.add(launch.block)
    assert len(blocks) == 1


def test_an_eps_that_f32_rounds_to_0_is_refused_and_the_least_that_it_holds_keeps_a_row_of_zeros_finite() -> None:
    zeros = np.zeros((2, 8), np.float32)
    for eps in (1e-46, 7e-46):
        with pytest.raises(bp.errors.Unsupported) as refused:
            rms_norm(bp.ElementKind.F32, zeros, eps=eps)
        assert refused.value.rule == "eps in f32"
    assert not rms_norm(bp.ElementKind.F32, zeros, eps=1.5e-45).any()
    assert np.isnan(rms_norm(bp.ElementKind.F32, zeros, eps=0.0)).all(), "0 is what it says"


@pytest.mark.parametrize(("eps", "error"), [(-1e-6, bp.errors.InvalidProblem), (2.0, bp.errors.Unsupported)])
def test_an_eps_outside_of_0_to_1_is_refused(eps: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="eps"):
        bp.select(bp.RmsNormDescriptor(2, 8, eps=eps), "host")
