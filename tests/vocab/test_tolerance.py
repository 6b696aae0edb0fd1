"""The tolerance that a guarantee gives: as small as its roundings allow, and not smaller."""

from __future__ import annotations

import numpy as np
import pytest

from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind, MathPrecision
from baracuda_py.vocab.sku import PrecisionGuarantee
from baracuda_py.vocab.tolerance import relative_tolerance

F16, BF16, F32, F64 = ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.F64


def guarantee(math=MathPrecision.F32, accumulator=F32, partial_sums=F32):
    return PrecisionGuarantee(math, accumulator, partial_sums, True, True, True)


@pytest.mark.parametrize(("output", "limit"), [(F16, 5e-4), (BF16, 4e-3)])
def test_half_precision_outputs_are_held_to_the_published_limits(output, limit):
    precision = MathPrecision[output.name]
    tolerance = relative_tolerance(guarantee(precision), output)
    assert 0.9 * limit < tolerance <= limit
    assert relative_tolerance(guarantee(), output) == tolerance


@pytest.mark.parametrize("output", [F16, BF16])
def test_three_independent_roundings_stay_within_it(output):
    exact = np.random.default_rng(4).standard_normal(100_000)
    rounded = exact
    for factor in (1.0, 1.37, 0.77):  # a new mantissa each time, so that a second rounding is not for nothing
        rounded = (rounded * factor).astype(numpy_dtype(output)).astype(np.float64)
    error = np.linalg.norm(rounded - exact * 1.37 * 0.77) / np.linalg.norm(exact * 1.37 * 0.77)
    tolerance = relative_tolerance(guarantee(MathPrecision[output.name], F32, output), output)
    assert 0.3 * tolerance < error <= tolerance


@pytest.mark.parametrize("elements", [1, 4, 32, 256])
def test_few_elements_depart_from_the_mean_but_no_further_than_it_says(elements):
    # Products of f16 numbers, rounded three times, as an operand, a partial sum and an output are.
    random = np.random.default_rng(elements)
    exact = random.uniform(1, 2, (20_000, elements))
    rounded = exact
    for factor in (1.0, 1.37, 0.77):
        rounded = (rounded * factor).astype(np.float16).astype(np.float64)
    exact = exact * 1.37 * 0.77
    errors = np.linalg.norm(rounded - exact, axis=1) / np.linalg.norm(exact, axis=1)
    promised = guarantee(MathPrecision.F16, F32, F16)
    most = relative_tolerance(promised, F16, elements)
    assert errors.max() <= most
    assert most == pytest.approx((1 + 2 / elements**0.5) * relative_tolerance(promised, F16))
    if elements == 1:
        assert errors.max() > relative_tolerance(promised, F16), "of one element, the mean says too little"


def test_the_coarsest_rounding_decides():
    fine = relative_tolerance(guarantee(), F32)
    assert relative_tolerance(guarantee(MathPrecision.TF32), F32) == relative_tolerance(guarantee(), F16) > fine
    assert relative_tolerance(guarantee(partial_sums=BF16), F16) == relative_tolerance(guarantee(), BF16)
    assert relative_tolerance(guarantee(MathPrecision.F64, F64, F64), F64) < fine < 1e-4


def test_fp8_operands_are_given_and_lose_nothing_but_bits_of_their_sums():
    for precision in (MathPrecision.FP8_E4M3, MathPrecision.FP8_E5M2):
        assert relative_tolerance(guarantee(precision), F16) == 2.0**-9
        assert relative_tolerance(guarantee(precision), BF16) == relative_tolerance(guarantee(), BF16)
    assert relative_tolerance(guarantee(), ElementKind.FP8_E4M3) == 2.0**-4


def test_a_long_sum_in_float32_stays_within_it():
    terms = np.random.default_rng(8).standard_normal((65_536, 64)).astype(np.float32)
    total = np.zeros(64, np.float32)
    for row in terms:
        total += row
    exact = terms.astype(np.float64).sum(axis=0)
    assert np.linalg.norm(total - exact) <= relative_tolerance(guarantee(), F32) * np.linalg.norm(exact)
