"""Searches on a torch device choose what NumPy's do; torch's CPU stands for a GPU where there is none."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.quantize import ActivationStatistics, quantize_awq, quantize_awq_group
from baracuda_py.quantize.engines import HOST, engine_on
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind

ELEMENTS = (ElementKind.F16, ElementKind.BF16)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    pytest.importorskip("torch")
    return request.param


def data(seed, oc, ic, tokens, dtype):
    rng = np.random.default_rng(seed)
    size = np.ones(ic)
    size[rng.choice(ic, 3, replace=False)] = 40
    weight = (0.02 * rng.standard_normal((oc, ic))).astype(dtype)
    return weight, (rng.standard_normal((tokens, ic)) * size).astype(np.float32)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_device_finds_what_numpy_finds(device, dtype, group_size):
    weight, tokens = data(1, 48, 256, 300, dtype)
    element = ElementKind.BF16 if dtype is ml_dtypes.bfloat16 else ElementKind.F16
    for activations in (tokens, tokens[:100], ActivationStatistics.of(tokens), None):
        options = {"group_size": group_size, "activations": activations, "scales_element": element}
        expected, found = quantize_awq(weight, **options), quantize_awq(weight, **options, device=device)
        assert found.alpha == expected.alpha
        assert np.array_equal(found.input_scale, expected.input_scale)
        assert found.scales.dtype == expected.scales.dtype
        assert found.rtn_error == pytest.approx(expected.rtn_error, rel=1e-4)
        assert found.awq_error == pytest.approx(expected.awq_error, rel=1e-3)
        # Clippings that err alike may be chosen otherwise, and with them a group's weights.
        assert (found.scales == expected.scales).mean() > 0.98
        assert (found.qweight == expected.qweight).mean() > 0.98


def test_blocks_of_a_device_and_their_progress(device, monkeypatch):
    monkeypatch.setattr("baracuda_py.quantize.engines._DEVICE_BLOCK_ELEMENTS", 16 * 256)
    weight, tokens = data(2, 56, 256, 64, np.float32)
    weights, steps = [weight, weight[:24]], []
    small = quantize_awq_group(
        weights, activations=tokens, device=device, progress=lambda *progress: steps.append(progress)
    )
    monkeypatch.undo()
    large = quantize_awq_group(weights, activations=tokens, device=device)
    assert steps == [(step, (4 + 2) * 22) for step in range(1, (4 + 2) * 22 + 1)]
    for one, other in zip(small, large, strict=True):
        assert one.alpha == other.alpha
        assert (one.qweight == other.qweight).mean() > 0.98


def test_a_scale_that_overflows_is_refused_on_a_device_too(device):
    weight = np.full((8, 32), 1e6, np.float32)
    weight[:, 0] = -1e6
    with pytest.raises(InvalidProblem) as refused:
        quantize_awq(weight, group_size=32, device=device)
    assert refused.value.rule == "scale range"


def test_a_device_that_is_not_there_is_refused():
    pytest.importorskip("torch")
    for name in ("nowhere", "cuda:99"):
        with pytest.raises(Unsupported) as refused:
            engine_on(name)
        assert refused.value.rule == "device"
        assert name in str(refused.value)


def test_without_torch_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(Unsupported, match="pip install torch") as refused:
        engine_on("cuda")
    assert refused.value.rule == "torch"
    assert engine_on(None) is HOST


@cache
def all_values(element):
    """Every positive finite value of the element, in order."""
    values = np.arange(1, 1 << 15, dtype=np.uint16).view(numpy_dtype(element))
    return np.sort(values[np.isfinite(values)].astype(np.float64))


def smallest(span, steps, element):
    """By trying every value of the element, in exact arithmetic."""
    patterns = all_values(element)
    index = np.searchsorted(patterns * steps, span)  # products of 11 bits and 4 are exact
    return patterns[index] if index < len(patterns) else np.inf


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("where", [None, *DEVICES])
def test_scales_are_the_smallest_that_reach(element, where):
    if where is not None:
        pytest.importorskip("torch")
    engine = engine_on(where)

    @given(
        st.lists(st.floats(1e-9, 1e6) | st.integers(1, 3000).map(lambda n: n / 1024), min_size=1),
        st.sampled_from([1, 15]),
    )
    def check(spans, steps):
        given_spans = engine.xp.asarray(spans, dtype=engine.xp.float64)
        found = engine.numpy(engine.rounded_up(given_spans, steps, element))
        assert list(found) == [smallest(span, steps, element) for span in spans]

    check()


@pytest.mark.parametrize("element", ELEMENTS)
def test_a_span_that_a_scale_reaches_exactly_takes_it(element):
    values = all_values(element)
    assert np.array_equal(HOST.rounded_up(values * 15, 15, element), values.astype(np.float32))
    between = np.nextafter(values[:-1] * 15, np.inf)
    assert np.array_equal(HOST.rounded_up(between, 15, element), values[1:].astype(np.float32))
