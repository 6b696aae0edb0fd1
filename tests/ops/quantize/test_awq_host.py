"""The host kernels of the AWQ ops, against the float64 reference."""

import math
import os
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from baracuda_py.ops import host_epilogue
from baracuda_py.ops.quantize import awq_host, awq_onnxruntime, awq_packing, awq_reference

LAYOUTS = (awq_packing.OC_MAJOR, awq_packing.HF_GEMM)
ELEMENTS = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
EPILOGUES = range(5)
# Relative Frobenius error: one rounding to the element type, and room for float32 sums.
TOLERANCE = {ELEMENTS[0]: 5e-4, ELEMENTS[1]: 4e-3}


@frozen(eq=False)
class Problem:
    activation: np.ndarray
    weight_packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    bias: np.ndarray
    layout: str
    group_size: int
    epilogue: int

    def expected(self) -> np.ndarray:
        return awq_reference.gemm_reference(
            self.activation,
            self.weight_packed,
            self.scales,
            self.zeros,
            self.bias,
            layout=self.layout,
            group_size=self.group_size,
            epilogue=self.epilogue,
        )

    def poisoned_output(self) -> np.ndarray:
        return np.full((len(self.activation), self.scales.shape[1]), np.nan, dtype=self.activation.dtype)


def make_problem(
    m: int,
    ic: int,
    oc: int,
    group_size: int,
    *,
    layout: str = awq_packing.OC_MAJOR,
    element: Any = np.float16,
    epilogue: int = host_epilogue.IDENTITY,
    seed: int = 0,
) -> Problem:
    rng = np.random.default_rng(seed)
    groups = 1 if group_size == -1 else ic // group_size
    zeros = rng.integers(0, 16, (groups, oc), dtype=np.uint8)
    zeros.flat[:2] = 0, 15
    return Problem(
        activation=rng.standard_normal((m, ic)).astype(element),
        weight_packed=awq_packing.pack_weight(rng.integers(0, 16, (ic, oc), dtype=np.uint8), layout),
        scales=(rng.uniform(0.5, 1.5, (groups, oc)) / np.sqrt(50 * ic)).astype(element),
        zeros=awq_packing.pack_zeros(zeros, layout),
        bias=rng.standard_normal(oc).astype(element),
        layout=layout,
        group_size=group_size,
        epilogue=epilogue,
    )


def run_numpy(problem: Problem, output: np.ndarray) -> None:
    awq_host.awq_gemm_host(
        problem.activation,
        problem.weight_packed,
        problem.scales,
        problem.zeros,
        output,
        problem.bias,
        layout=problem.layout,
        group_size=problem.group_size,
        epilogue=problem.epilogue,
    )


def run_onnxruntime(problem: Problem, output: np.ndarray) -> None:
    pytest.importorskip("onnxruntime")
    awq_onnxruntime.awq_gemm_onnxruntime(
        problem.activation,
        problem.weight_packed,
        problem.scales,
        problem.zeros,
        output,
        problem.bias,
        group_size=problem.group_size,
        epilogue=problem.epilogue,
    )


Kernel = Callable[[Problem, np.ndarray], None]
KERNELS = (run_numpy, run_onnxruntime)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Relative Frobenius error; NaN, which compares false, if a poisoned element was left."""
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


def assert_accurate(kernel: Kernel, problem: Problem) -> None:
    output = problem.poisoned_output()
    kernel(problem, output)
    assert relative_error(output, problem.expected()) <= TOLERANCE[output.dtype]


@st.composite
def problems(draw: st.DrawFn, layouts: tuple[str, ...] = LAYOUTS) -> Problem:
    group_size = draw(st.sampled_from([32, 64, 128, -1]))
    unit = 32 if group_size == -1 else group_size
    return make_problem(
        draw(st.integers(1, 40)),
        unit * draw(st.integers(1, 512 // unit)),
        8 * draw(st.integers(1, 24)),
        group_size,
        layout=draw(st.sampled_from(layouts)),
        element=draw(st.sampled_from(ELEMENTS)),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@given(problem=problems())
@settings(max_examples=80, deadline=None)
def test_numpy_kernel_agrees_with_the_reference(problem: Problem) -> None:
    assert_accurate(run_numpy, problem)


@given(problem=problems(layouts=(awq_packing.OC_MAJOR,)))
@settings(max_examples=40, deadline=None)
def test_onnxruntime_kernel_agrees_with_the_reference(problem: Problem) -> None:
    assert_accurate(run_onnxruntime, problem)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize(("ic", "oc", "group_size"), [(4480, 1032, 64), (1120, 4360, 32), (4480, 520, -1)])
def test_numpy_kernel_crosses_its_blocks(layout: str, m: int, ic: int, oc: int, group_size: int) -> None:
    assert_accurate(run_numpy, make_problem(m, ic, oc, group_size, layout=layout))


def test_numpy_kernel_crosses_its_passes_over_the_rows() -> None:
    assert_accurate(run_numpy, make_problem(2500, 64, 24, 32))


@pytest.mark.parametrize("zero", [0, 15])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_extreme_zero_points_are_taken_as_stored(layout: str, zero: int) -> None:
    problem = make_problem(5, 128, 40, 64, layout=layout)
    zeros = awq_packing.pack_zeros(np.full((2, 40), zero, dtype=np.uint8), layout)
    assert_accurate(run_numpy, evolve(problem, zeros=zeros))
    if layout == awq_packing.OC_MAJOR:
        assert_accurate(run_onnxruntime, evolve(problem, zeros=zeros))


@pytest.mark.parametrize("kernel", KERNELS)
def test_partial_sums_beyond_f16_cancel_to_the_finite_result(kernel: Kernel) -> None:
    problem = make_problem(3, 256, 16, 128)
    weight = awq_packing.pack_weight(np.full((256, 16), 15, dtype=np.uint8), problem.layout)
    zeros = awq_packing.pack_zeros(np.zeros((2, 16), dtype=np.uint8), problem.layout)
    activation = np.full((3, 256), 30000.0, dtype=np.float16)
    activation[:, 128:] = -30000.0
    activation[:, 0] = 29984.0  # the next f16 below 30000: the result is 15 * -16, the first half 5.8e7
    problem = evolve(
        problem, activation=activation, weight_packed=weight, zeros=zeros, scales=np.ones((2, 16), np.float16)
    )
    output = problem.poisoned_output()
    kernel(problem, output)
    np.testing.assert_array_equal(output, np.full((3, 16), -240.0, dtype=np.float16))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_result_beyond_the_output_type_is_inf(kernel: Kernel) -> None:
    problem = evolve(make_problem(1, 32, 8, 32), activation=np.full((1, 32), 60000.0, dtype=np.float16))
    problem = evolve(problem, scales=np.ones((1, 8), np.float16), weight_packed=np.full((8, 4), -1, dtype=np.int32))
    problem = evolve(problem, zeros=np.zeros((1, 1), dtype=np.int32))
    output = problem.poisoned_output()
    kernel(problem, output)
    assert np.isposinf(output).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("m", [3, 20])
def test_a_row_with_a_non_finite_activation_is_non_finite_and_alone(kernel: Kernel, value: float, m: int) -> None:
    problem = make_problem(m, 64, 16, 32)
    finite, output = problem.poisoned_output(), problem.poisoned_output()
    kernel(problem, finite)
    problem.activation[1, 7] = value
    kernel(problem, output)
    assert not np.isfinite(output[1]).any()
    np.testing.assert_array_equal(np.delete(output, 1, axis=0), np.delete(finite, 1, axis=0))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("m", [1, 7, 40])
def test_two_runs_give_the_same_bits(kernel: Kernel, m: int) -> None:
    problem = make_problem(m, 1024, 640, 128)
    first, second = problem.poisoned_output(), problem.poisoned_output()
    kernel(problem, first)
    kernel(problem, second)
    np.testing.assert_array_equal(first.view(np.uint16), second.view(np.uint16))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_strided_rows_are_read_and_written_in_place(kernel: Kernel, element: Any) -> None:
    problem = make_problem(6, 96, 40, 32, element=element)
    wide_activation = np.full((12, 128), np.nan, dtype=element)
    wide_activation[::2, 16:112] = problem.activation
    wide_output = np.full((12, 64), 77, dtype=element)
    kernel(evolve(problem, activation=wide_activation[::2, 16:112]), wide_output[::2, 8:48])
    assert relative_error(wide_output[::2, 8:48], problem.expected()) <= TOLERANCE[element]
    wide_output[::2, 8:48] = 77
    assert (wide_output == 77).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_rows_write_nothing(kernel: Kernel) -> None:
    kernel(make_problem(0, 64, 16, 64), np.empty((0, 16), dtype=np.float16))


@pytest.mark.parametrize("kernel", KERNELS)
def test_permuting_rows_of_x_permutes_rows_of_y(kernel: Kernel) -> None:
    problem = make_problem(7, 256, 48, 64)
    order = np.random.default_rng(1).permutation(7)
    output, permuted = problem.poisoned_output(), problem.poisoned_output()
    kernel(problem, output)
    kernel(evolve(problem, activation=problem.activation[order]), permuted)
    assert relative_error(permuted, output[order].astype(np.float64)) <= 2 * TOLERANCE[output.dtype]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tensor", ["weight_packed", "scales", "zeros"])
def test_a_change_in_place_is_seen_by_the_next_call(kernel: Kernel, tensor: str) -> None:
    problem = make_problem(4, 128, 32, 64)
    kernel(problem, problem.poisoned_output())
    changed = getattr(problem, tensor)
    changed[-1, -1] = -changed[-1, -1] if tensor == "scales" else changed[-1, -1] ^ 0x70
    assert_accurate(kernel, problem)
    changed[...] = changed[:, ::-1].copy()
    assert_accurate(kernel, problem)


def test_a_prepared_weight_outlives_the_tensors_it_was_made_from() -> None:
    pytest.importorskip("onnxruntime")
    problem = make_problem(4, 128, 32, 64, epilogue=host_epilogue.BIAS_GELU)
    expected = problem.expected()
    prepared = awq_onnxruntime.PreparedAwqGemm(
        problem.weight_packed, problem.scales, problem.zeros, group_size=64, half=True
    )
    for tensor in (problem.weight_packed, problem.scales, problem.zeros):
        tensor[...] = 0
    output = problem.poisoned_output()
    prepared(problem.activation, output, problem.bias, epilogue=problem.epilogue)
    assert relative_error(output, expected) <= TOLERANCE[output.dtype]


def test_threads_may_share_the_onnxruntime_kernel() -> None:
    many = [make_problem(m, 128, 32, 64, seed=m) for m in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda problem: assert_accurate(run_onnxruntime, problem), many * 4))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system tells no affinity")
@pytest.mark.parametrize(("usable", "asked", "expected"), [(1, 0, 1), (3, 0, 3), (8, 0, 0), (1, 2, 2)])
def test_a_pool_has_no_more_threads_than_there_are_cores_to_run_on(
    monkeypatch: pytest.MonkeyPatch, usable: int, asked: int, expected: int
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    made: list[Any] = []

    class Noted(onnxruntime.SessionOptions):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Noted)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
    problem = make_problem(1, 64, 16, 64)
    prepared = awq_onnxruntime.PreparedAwqGemm(
        problem.weight_packed, problem.scales, problem.zeros, group_size=64, half=True, threads=asked
    )
    [options] = made
    assert options.intra_op_num_threads == expected
    pools = prepared.nbytes // awq_onnxruntime._THREAD_NBYTES
    assert pools == (expected or 8), "a thread's memory is counted; the weight is smaller than one's"


def test_the_cache_forgets_the_least_recently_used_weights() -> None:
    pytest.importorskip("onnxruntime")
    first, second = make_problem(1, 64, 16, 64, seed=1), make_problem(1, 64, 16, 64, seed=2)
    cache = awq_onnxruntime._Cache(limit_nbytes=1)

    def prepared(problem: Problem) -> Any:
        return cache.prepared(problem.weight_packed, problem.scales, problem.zeros, 64, True)

    kept = prepared(first)
    assert prepared(first) is kept
    prepared(second)
    assert prepared(first) is not kept


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("element", [*ELEMENTS, np.dtype(np.float32)])
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_dequantisation_rounds_the_exact_product_once(
    layout: str, transposed: bool, element: Any, data: st.DataObject
) -> None:
    problem = data.draw(problems(layouts=(layout,)))
    exact = awq_reference.dequantize_reference(
        problem.weight_packed, problem.scales, problem.zeros, layout=layout, group_size=problem.group_size
    )
    exact = exact.T if transposed else exact
    output = np.full(exact.shape, np.nan, dtype=element)
    dequantize(problem, output, transposed)
    np.testing.assert_array_equal(output, exact.astype(element))


def dequantize(problem: Problem, output: np.ndarray, transposed: bool) -> None:
    awq_host.awq_dequantize_host(
        problem.weight_packed,
        problem.scales,
        problem.zeros,
        output,
        layout=problem.layout,
        group_size=problem.group_size,
        transposed=transposed,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("group_size", [128, -1])
def test_a_gemm_holds_one_block_of_float_weights(layout: str, m: int, group_size: int) -> None:
    problem = make_problem(m, 4096, 4096, group_size, layout=layout)
    output = problem.poisoned_output()
    # Beside the block, in float32 and in bytes: copies of x, its planes, two sets of products, scales and zero points.
    columns = 4096 if layout == awq_packing.HF_GEMM else 512
    rows_nbytes = 4 * m * (3 * 4096 + (33 + 4) * columns)
    groups_nbytes = 4 * 4 * 32 * columns
    assert peak_nbytes(lambda: run_numpy(problem, output)) <= 5 * awq_host.BLOCK_WEIGHTS + rows_nbytes + groups_nbytes
    assert 4 * awq_host.BLOCK_WEIGHTS <= 4 << 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dequantisation_holds_one_block_of_float_weights(layout: str) -> None:
    problem = make_problem(1, 4096, 4096, 128, layout=layout)
    output = np.empty((4096, 4096), dtype=np.float16)
    peak = peak_nbytes(lambda: dequantize(problem, output, False))
    assert peak <= 5 * awq_host.BLOCK_WEIGHTS + (2 << 20)


def peak_nbytes(call: Callable[[], None]) -> int:
    """Peak of what `call` allocates, NumPy's array memory included."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=64))
@settings(max_examples=100, deadline=None)
def test_gelu_is_exact_to_float32_on_both_tails(points: list[float]) -> None:
    values = np.array([points], dtype=np.float32)
    exact = np.array([[v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in points]])
    host_epilogue.apply_epilogue(values, np.zeros(len(points), np.float32), host_epilogue.BIAS_GELU)
    # exp(-v^2 / 2) turns a relative error of its argument into one v^2 / 2 times as large; below 1e-37 it underflows.
    allowed = 1e-6 * (1 + np.array([points]) ** 2) * np.abs(exact) + 1e-37
    assert (np.abs(values - exact) <= allowed).all()


@pytest.mark.parametrize("epilogue", [host_epilogue.BIAS_GELU, host_epilogue.BIAS_SILU])
def test_activations_far_from_zero_are_zero_or_the_identity(epilogue: int) -> None:
    values = np.array([[-1e30, -1000.0, 1000.0, 1e30]], dtype=np.float32)
    host_epilogue.apply_epilogue(values, np.zeros(4, np.float32), epilogue)
    np.testing.assert_array_equal(values, np.array([[0.0, 0.0, 1000.0, 1e30]], dtype=np.float32))


def test_an_epilogue_without_its_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a bias"):
        host_epilogue.apply_epilogue(np.zeros((1, 1), np.float32), None, host_epilogue.BIAS)
    with pytest.raises(ValueError, match="epilogue must be"):
        host_epilogue.apply_epilogue(np.zeros((1, 1), np.float32), None, 5)


@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_outlier_that_no_weight_sees_costs_no_digits(layout: str, m: int) -> None:
    ic, oc = 1024, 64
    rng = np.random.default_rng(0)
    weight = rng.integers(6, 11, (ic, oc), dtype=np.uint8)
    weight[5] = 8
    problem = evolve(
        make_problem(m, ic, oc, 128, layout=layout),
        weight_packed=awq_packing.pack_weight(weight, layout),
        zeros=awq_packing.pack_zeros(np.full((ic // 128, oc), 8, np.uint8), layout),
    )
    problem.activation[:, 5] = 60000
    output = problem.poisoned_output()
    run_numpy(problem, output)
    exact = problem.expected()
    assert np.linalg.norm(output - exact) / np.linalg.norm(exact) <= TOLERANCE[ELEMENTS[0]]


@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_zero_give_zeros(layout: str, m: int) -> None:
    problem = make_problem(m, 256, 64, 128, layout=layout)
    packed = awq_packing.pack_weight(np.full((256, 64), 8, np.uint8), layout)
    zeros = awq_packing.pack_zeros(np.full((2, 64), 8, np.uint8), layout)
    problem = evolve(problem, weight_packed=packed, zeros=zeros)
    output = problem.poisoned_output()
    run_numpy(problem, output)
    assert not output.any()
