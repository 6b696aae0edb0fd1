"""Activation-aware weights: how much they gain, what they never lose, and that their parts fit together."""

from __future__ import annotations

import tracemalloc
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.ops.quantize.awq_packing import HF_GEMM, unpack_weight, unpack_zeros
from baracuda_py.ops.quantize.awq_reference import gemm_reference
from baracuda_py.quantize import (
    ActivationStatistics,
    AwqResult,
    fold_into_linear,
    fold_into_norm,
    quantize_awq,
    quantize_awq_group,
    round_to_nearest,
)
from baracuda_py.quantize import weights as weights_module

BF16 = bp.ElementKind.BF16
SEEDS = st.integers(0, 2**32 - 1)


def layer(seed: int, oc: int = 64, ic: int = 256) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_normal((oc, ic))).astype(np.float32)


def inputs(seed: int, tokens: int = 96, ic: int = 256, outliers: int = 0) -> np.ndarray:
    """Tokens, some channels of which are 20 to 100 times as large as the rest; the same ones for a seed."""
    rng = np.random.default_rng(seed)
    size = np.ones(ic)
    size[rng.choice(ic, outliers, replace=False)] = rng.uniform(20, 100, outliers)
    return (rng.standard_normal((tokens, ic)) * size).astype(np.float32)


def relative_error(outputs: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(outputs - expected) / np.linalg.norm(expected))


def outputs_of(result: AwqResult, x: np.ndarray, group_size: int) -> np.ndarray:
    """What the packed layer computes, in float64, by the AWQ GEMM's reference."""
    return gemm_reference(
        x / result.input_scale.astype(np.float64), result.qweight, result.scales, result.qzeros,
        layout=HF_GEMM, group_size=group_size,
    )  # fmt: skip


# Output error of plain rounding over that of AWQ, at least, by group size. A channel rounded finely widens the steps
# of its whole group, and one group of all channels holds every outlier.
LEAST_GAIN = {32: 2.0, 64: 2.0, 128: 2.0, -1: 1.7}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("group_size", LEAST_GAIN)
def test_with_planted_outliers_the_error_on_other_tokens_is_well_below_plain_rounding(seed, group_size):
    weight, every = layer(seed, 128, 512), inputs(seed, 128, 512, outliers=4)
    seen, unseen = every[:96], every[96:]
    result = quantize_awq(weight, group_size=group_size, activations=seen)
    expected = unseen @ weight.T.astype(np.float64)
    awq = relative_error(outputs_of(result, unseen, group_size), expected)
    plain = unseen @ round_to_nearest(weight, group_size=group_size).dequantize().T.astype(np.float64)
    assert awq * LEAST_GAIN[group_size] < relative_error(plain, expected)
    assert result.alpha > 0


@settings(max_examples=40)
@given(
    seed=SEEDS,
    tokens=st.sampled_from([1, 40, 300]),
    outliers=st.integers(0, 3),
    group_size=st.sampled_from([32, 128, -1]),
    clip=st.booleans(),
    form=st.sampled_from(["tokens", "diagonal", "correlations", "none"]),
    element=st.sampled_from([bp.ElementKind.F16, BF16]),
)
def test_it_is_never_worse_than_plain_rounding(seed, tokens, outliers, group_size, clip, form, element):
    x = inputs(seed, tokens, outliers=outliers)
    activations = {
        "tokens": x,
        "diagonal": ActivationStatistics.of(x),
        "correlations": ActivationStatistics.of(x, correlations=True),
        "none": None,
    }[form]
    result = quantize_awq(
        layer(seed, 16), group_size=group_size, activations=activations, clip=clip, alphas=(0.25, 0.5, 1.0),
        scales_element=element,
    )  # fmt: skip
    assert 0 < result.awq_error <= result.rtn_error * (1 + 1e-6)  # errors are summed in float32


@pytest.mark.parametrize("tokens", [96, 600])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("correlations", [False, True])
def test_the_errors_it_states_are_those_of_its_tensors(tokens, group_size, correlations):
    weight, x = layer(1), inputs(1, tokens, outliers=3)
    activations = ActivationStatistics.of(x, correlations=True) if correlations else x
    result = quantize_awq(weight, group_size=group_size, activations=activations)
    expected = x @ weight.T.astype(np.float64)
    awq = relative_error(outputs_of(result, x, group_size), expected)
    np.testing.assert_allclose(result.awq_error, awq, rtol=1e-3)
    plain = x @ round_to_nearest(weight, group_size=group_size).dequantize().T.astype(np.float64)
    np.testing.assert_allclose(result.rtn_error, relative_error(plain, expected), rtol=1e-3)


def test_without_correlations_the_error_is_the_weighted_sum_of_squares():
    weight, x = layer(2), inputs(2, outliers=3)
    result = quantize_awq(weight, activations=ActivationStatistics.of(x))
    squares = np.square(x.astype(np.float64)).mean(axis=0)
    change = result.dequantize() / result.input_scale.astype(np.float64) - weight
    error = np.sqrt((np.square(change) @ squares).sum() / (np.square(weight.astype(np.float64)) @ squares).sum())
    np.testing.assert_allclose(result.awq_error, error, rtol=1e-4)


@given(seed=SEEDS, group_size=st.sampled_from([32, 128, -1]))
def test_without_activations_and_clipping_it_is_plain_rounding(seed, group_size):
    weight = layer(seed, 16)
    result, rounded = (
        quantize_awq(weight, group_size=group_size, clip=False),
        round_to_nearest(weight, group_size=group_size),
    )
    np.testing.assert_array_equal(unpack_weight(result.qweight, HF_GEMM), rounded.nibbles)
    np.testing.assert_array_equal(unpack_zeros(result.qzeros, HF_GEMM), rounded.zeros)
    np.testing.assert_array_equal(result.scales, rounded.scales)
    assert (result.alpha, result.awq_error) == (0, result.rtn_error)
    assert (result.input_scale == 1).all()


def test_an_exact_weight_stays_exact_whatever_the_activations():
    rng = np.random.default_rng(3)
    nibbles = rng.permuted(np.tile(np.arange(32) % 16, (16, 8)).reshape(16, 8, 32), axis=-1)
    weight = ((nibbles - 7) * 0.0078125).astype(np.float32).reshape(16, 256)
    result = quantize_awq(weight, group_size=32, activations=inputs(3, outliers=3))
    assert (result.alpha, result.rtn_error, result.awq_error) == (0, 0, 0)
    np.testing.assert_array_equal(result.dequantize(), weight)


@pytest.mark.parametrize(
    "form", [np.asarray, ActivationStatistics.of, partial(ActivationStatistics.of, correlations=True)]
)
def test_clipping_gives_up_outliers_that_hardly_show_in_the_output(form):
    weight, x = layer(4), inputs(4)
    silent = 33 * np.arange(8)  # another one in each group
    weight[:, silent] *= 30
    x[:, silent] *= 0.001
    clipped, plain = (
        quantize_awq(weight, group_size=32, activations=form(x), clip=clip, alphas=()) for clip in (True, False)
    )
    assert clipped.awq_error < 0.75 * plain.awq_error


def test_clipping_raises_the_error_of_no_output_channel():
    weight, x = layer(4), np.abs(inputs(4, 96))  # of one sign, so that the errors of groups add up or cancel
    clipped, plain = (
        quantize_awq(weight, group_size=32, activations=x, clip=clip, alphas=()) for clip in (True, False)
    )
    exact = x @ weight.T.astype(np.float64)
    error, unclipped = (np.linalg.norm(outputs_of(r, x, 32) - exact, axis=0) for r in (clipped, plain))
    assert (error <= unclipped * (1 + 1e-4)).all()
    assert (error < 0.9 * unclipped).any()


def test_every_scale_is_a_value_of_the_stored_element():
    for element, dtype in ((bp.ElementKind.F16, np.float16), (BF16, ml_dtypes.bfloat16)):
        result = quantize_awq(layer(5), activations=inputs(5, outliers=3), scales_element=element)
        assert result.scales.dtype == dtype
        np.testing.assert_array_equal(result.input_scale.astype(dtype).astype(np.float32), result.input_scale)
        assert result.input_scale.min() > 0
        assert len(set(result.input_scale)) > 1


def test_permuting_output_channels_permutes_the_result():
    weight, x = layer(6), inputs(6, outliers=3)
    order = np.random.default_rng(6).permutation(len(weight))
    plain, permuted = quantize_awq(weight, activations=x), quantize_awq(weight[order], activations=x)
    assert plain.alpha == permuted.alpha
    np.testing.assert_array_equal(permuted.dequantize(), plain.dequantize()[order])


@pytest.mark.parametrize(("on_weight", "on_inputs"), [(-100, 0), (100, 0), (0, -80), (0, 80), (31, -7)])
def test_powers_of_two_on_weight_or_inputs_change_no_nibble(on_weight, on_inputs):
    weight, x = layer(7), inputs(7, outliers=3)
    plain = quantize_awq(weight, activations=x, scales_element=BF16)
    scaled = quantize_awq(
        np.ldexp(weight, on_weight), activations=np.ldexp(x, on_inputs), scales_element=BF16
    )  # fmt: skip
    np.testing.assert_array_equal(scaled.qweight, plain.qweight)
    np.testing.assert_array_equal(scaled.qzeros, plain.qzeros)
    np.testing.assert_array_equal(scaled.dequantize(), np.ldexp(plain.dequantize(), on_weight))
    np.testing.assert_array_equal(scaled.input_scale, plain.input_scale)
    assert (scaled.alpha, scaled.awq_error) == (plain.alpha, plain.awq_error)


def test_linears_of_one_input_are_quantised_as_if_stacked():
    x = inputs(8, outliers=3)
    query, key, value = layer(8, 64), 3 * layer(9, 16), layer(10, 24)
    bias = np.linspace(-1, 1, 16, dtype=np.float32)
    parts = quantize_awq_group([query, key, value], activations=x, biases=[None, bias, None])
    stacked = quantize_awq(np.concatenate([query, key, value]), activations=x)
    np.testing.assert_array_equal(np.concatenate([part.dequantize() for part in parts]), stacked.dequantize())
    for part, weight in zip(parts, (query, key, value), strict=True):
        np.testing.assert_allclose(part.rtn_error, quantize_awq(weight, activations=x, alphas=()).rtn_error, rtol=1e-5)
        np.testing.assert_array_equal(part.input_scale, stacked.input_scale)
        assert part.alpha == stacked.alpha
    assert [part.bias is None for part in parts] == [True, False, True]
    np.testing.assert_array_equal(parts[1].bias, bias.astype(np.float16))


def test_a_registered_kernel_computes_the_layer():
    weight, x = layer(11), inputs(11, 5, outliers=3)
    bias = np.linspace(-1, 1, 64).astype(np.float16)
    result = quantize_awq(weight, group_size=64, activations=x, bias=bias)
    desc = bp.Int4AwqGemmDescriptor(5, 256, 64, 64, None, bp.AwqWeightLayout.HF_GEMM, epilogue=bp.EpilogueKind.BIAS)
    output = np.empty((5, 64), np.float16)
    args = bp.Int4AwqGemmArgs(
        activation=(x / result.input_scale).astype(np.float16), weight_packed=result.qweight,
        scales=result.scales, zeros=result.qzeros, output=output, bias=result.bias,
    )  # fmt: skip
    bp.select(desc, "host").run(None, bp.Workspace.NONE, args)
    assert relative_error(output.astype(np.float64), x @ weight.T + bias) < result.awq_error + 2**-9


@pytest.mark.parametrize("x", [inputs(12, 40, outliers=4), inputs(12, 300, outliers=4)])
def test_silent_channels_and_inputs_and_weights_of_zero_do_no_harm(x):
    silent = x.copy()
    silent[:, np.abs(x).mean(axis=0) < 0.8] = 0
    result = quantize_awq(layer(12), activations=silent)
    assert np.isfinite(result.dequantize()).all()
    assert result.alpha > 0
    assert 0 < 2 * result.awq_error < result.rtn_error
    for weight, activations in ((layer(12), np.zeros_like(x)), (np.zeros_like(layer(12)), x)):
        result = quantize_awq(weight, activations=activations)
        assert (result.alpha, result.rtn_error, result.awq_error) == (0, 0, 0)


def test_an_alpha_that_overflows_the_scales_is_passed_over():
    weight, x = layer(13), inputs(13, outliers=3)
    weight *= 400_000 / np.abs(weight).max()
    result = quantize_awq(weight, activations=x)
    assert np.isfinite(result.scales.astype(np.float32)).all()
    assert result.awq_error <= result.rtn_error
    with pytest.raises(InvalidProblem, match="scales of F16"):
        quantize_awq(4 * weight, activations=x)


@pytest.mark.parametrize("tokens", [64, 900])
def test_memory_beside_arguments_and_result_is_what_is_stated(monkeypatch, tokens):
    oc, ic, group = 1024, 512, 64
    weight, x = layer(14, oc, ic).astype(np.float16), inputs(14, tokens, ic).astype(np.float16)
    quantize_awq(weight[:8], group_size=group, activations=x)  # what is imported and cached on first use
    monkeypatch.setattr(weights_module, "BLOCK_ELEMENTS", 1 << 14)
    tracemalloc.start()
    result = quantize_awq(weight, group_size=group, activations=x, alphas=(0.5,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = sum(array.nbytes for array in (result.qweight, result.qzeros, result.scales, result.input_scale))
    activations = 4 * tokens * ic if tokens < ic else 8 * ic * ic
    assert peak < held + 12 * 4 * (1 << 14) + activations + 4 * ic * group
    assert peak - held - activations < 4 * oc * ic  # less than one float32 copy of the weight


def test_the_result_does_not_depend_on_the_blocks(monkeypatch):
    weight, x = layer(15, 72), inputs(15, outliers=3)
    whole = quantize_awq(weight, activations=x)
    monkeypatch.setattr(weights_module, "BLOCK_ELEMENTS", 8 * 256)
    blocked = quantize_awq(weight, activations=x)
    np.testing.assert_array_equal(blocked.dequantize(), whole.dequantize())


def test_progress_counts_every_step_up_to_the_last(monkeypatch):
    monkeypatch.setattr(weights_module, "BLOCK_ELEMENTS", 8 * 256)
    seen: list[tuple[int, int]] = []
    quantize_awq_group(
        [layer(16, 16), layer(17, 32)], activations=inputs(16), alphas=(0.5, 1),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(step, 24) for step in range(1, 25)]  # 6 blocks, each of 3 alphas and of one writing


def test_statistics_of_batches_merge_to_those_of_the_whole():
    x = inputs(18, 90, outliers=3)
    for correlations in (False, True):
        whole = ActivationStatistics.of(x, correlations=correlations)
        first, second = (ActivationStatistics.of(part, correlations=correlations) for part in (x[:20], x[20:]))
        merged = first.merged(second)
        assert merged.tokens == whole.tokens == 90
        np.testing.assert_allclose(merged.mean_magnitude, whole.mean_magnitude, rtol=1e-5)
        np.testing.assert_allclose(merged.second_moment, whole.second_moment, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(whole.mean_magnitude, np.abs(x).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(whole.second_moment, x.T.astype(np.float64) @ x / 90, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_scale_folded_into_a_norm_or_a_linear_leaves_the_product_alone(dtype):
    rng = np.random.default_rng(19)
    scale = np.exp2(rng.integers(-3, 4, 48)).astype(np.float32)  # powers of two: no rounding
    norm, bias = rng.standard_normal((2, 48)).astype(dtype)
    before = rng.standard_normal((48, 32)).astype(dtype)
    folded_norm = fold_into_norm(norm, scale)
    folded_before, folded_bias = fold_into_linear(before, bias, scale)
    for folded, plain in ((folded_norm, norm), (folded_bias, bias), (folded_before.T, before.T)):
        assert folded.dtype == dtype
        np.testing.assert_array_equal(folded.astype(np.float32) * scale, plain.astype(np.float32))
    assert fold_into_linear(before, None, scale)[1] is None


def test_folding_and_a_quantised_layer_make_the_whole():
    rng = np.random.default_rng(20)
    norm = rng.lognormal(0, 1.5, 256).astype(np.float32)
    normalised, weight = inputs(20), layer(20)
    result = quantize_awq(weight, activations=normalised * norm)
    assert result.alpha > 0
    output = (normalised * fold_into_norm(norm, result.input_scale)) @ result.dequantize().T
    error = relative_error(output, (normalised * norm) @ weight.T)
    np.testing.assert_allclose(error, result.awq_error, rtol=1e-3)


X, W = inputs(0), layer(0)
STATISTICS = ActivationStatistics.of(X)


@pytest.mark.parametrize(
    ("call", "error", "rule"),
    [
        (lambda: quantize_awq_group([]), InvalidProblem, "weights"),
        (lambda: quantize_awq_group([W, layer(0, 8, 512)]), InvalidProblem, "ic"),
        (lambda: quantize_awq_group([W], biases=[]), InvalidProblem, "biases"),
        (lambda: quantize_awq(W, bias=np.zeros(8, np.float32)), InvalidProblem, "shape"),
        (lambda: quantize_awq(W, bias=np.full(64, 1e6, np.float32)), InvalidProblem, "finite"),
        (lambda: quantize_awq(W, activations=X[:, :128]), InvalidProblem, "ic"),
        (lambda: quantize_awq(W[:, :128].copy(), activations=STATISTICS), InvalidProblem, "ic"),
        (lambda: quantize_awq(W, activations=X[0]), InvalidProblem, "shape"),
        (lambda: quantize_awq(W, activations=X.astype(np.int32)), Unsupported, "element"),
        (lambda: quantize_awq(W, activations=X * np.float32(np.inf)), InvalidProblem, "finite"),
        (lambda: quantize_awq(W, alphas=(0.5, 1.5)), InvalidProblem, "alphas"),
        (lambda: quantize_awq(W, group_size=96), Unsupported, "group_size"),
        (lambda: quantize_awq(W[:12]), InvalidProblem, "oc % 8"),
        (lambda: ActivationStatistics(np.ones(8), np.ones(9)), InvalidProblem, "shape"),
        (lambda: ActivationStatistics(np.ones(8), -np.ones(8)), InvalidProblem, "sign"),
        (lambda: ActivationStatistics(np.ones(8), np.full(8, 1e300)), InvalidProblem, "finite"),
        (lambda: ActivationStatistics(np.ones(8), np.ones(8), 0), InvalidProblem, "tokens"),
        (lambda: STATISTICS.merged(ActivationStatistics.of(X, correlations=True)), InvalidProblem, "shape"),
        (lambda: fold_into_norm(np.ones(8, np.float32), np.ones(9, np.float32)), InvalidProblem, "shape"),
        (lambda: fold_into_norm(np.ones(8, np.float32), np.zeros(8, np.float32)), InvalidProblem, "sign"),
        (lambda: fold_into_norm(np.ones(8), np.ones(8, np.float32)), Unsupported, "element"),
        (
            lambda: fold_into_linear(np.full((8, 8), 6e4, np.float16), None, np.full(8, 0.5, np.float32)),
            InvalidProblem,
            "finite",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call: Any, error: type[Exception], rule: str):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert caught.value.rule.startswith(rule)  # type: ignore[attr-defined]
