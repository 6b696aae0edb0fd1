"""The cuBLASLt backend's housekeeping: what is missing, what fails, what is made, kept and freed."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from baracuda_py.backends.cublaslt import CublasLtBackend
from baracuda_py.backends.cuda import CudaBackend
from baracuda_py.errors import KernelInternal, NoKernel, Unsupported
from baracuda_py.ops.gemm.dense_gemm import OP, DenseGemmArgs, DenseGemmDescriptor
from baracuda_py.plan import new_registry
from baracuda_py.vocab.enums import BackendKind, ElementKind, EpilogueKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorMut, TensorRef

DESC = DenseGemmDescriptor(3, 4, 5, element=ElementKind.F32)
BIASED = DESC.with_epilogue(EpilogueKind.BIAS)
EXECUTION_FAILED = 13  # cublasStatus_t


def arguments(seed: int = 0, *, bias: bool = False) -> tuple[DenseGemmArgs, Any, Any]:
    """Args over host memory that does not say so, their output, and what it should hold."""
    random = np.random.default_rng(seed)
    a, b, c = (random.integers(-8, 9, shape).astype(np.float32) for shape in ((3, 5), (5, 4), (4,)))
    output = np.zeros((3, 4), np.float32)

    def view(array: Any, kind: type[TensorRef] = TensorRef) -> Any:
        return kind(array.ctypes.data, array.shape, ElementKind.F32, owner=array)

    args = DenseGemmArgs(view(a), view(b), view(output, TensorMut), view(c) if bias else None)
    return args, output, a @ b + (c if bias else 0)


def lent(plan: Any) -> Workspace:
    """A workspace that the double never touches."""
    return Workspace.borrowed(1 << 20, plan.workspace_size)


@pytest.mark.parametrize("absent", ["nvmath-python", "libcublasLt"])
def test_what_is_missing_is_named_with_what_to_install(absent: str) -> None:
    def load() -> Any:
        raise AssertionError("an absent library must not be loaded")

    registry = new_registry()
    registry.register_backend(CublasLtBackend(CudaBackend(), lambda: absent, load))
    registry.register(OP)
    with pytest.raises(NoKernel) as caught:
        registry.select(DESC, "sm_90")
    own = [r.refusal for r in caught.value.refusals if r.refusal.rule == absent]
    assert len(own) == 1
    assert isinstance(own[0], Unsupported)
    assert "pip install 'baracuda-py[nvidia]'" in own[0].fix
    assert str(own[0]) in str(registry.explain(DESC, "sm_90"))


def test_a_dry_run_selects_the_library_without_loading_it(setting: Any) -> None:
    plan = setting.registry.select(DESC, "sm_80")
    assert plan.sku.backend is BackendKind.CUBLAS
    assert plan.workspace_size > 0
    assert not setting.api.calls


def test_an_empty_problem_asks_nothing_of_the_library(setting: Any) -> None:
    plan = setting.registry.select(DenseGemmDescriptor(0, 4, 5), setting.device)
    assert plan.workspace_size == 0
    assert not setting.api.calls


def test_plans_share_a_handle_and_a_run_only_multiplies(setting: Any) -> None:
    plans = [setting.registry.select(desc, setting.device) for desc in (DESC, DenseGemmDescriptor(8, 8, 8))]
    assert setting.api.calls.count("create") == 1
    setting.api.calls.clear()
    args, output, exact = arguments()
    for _ in range(3):
        output[...] = 0
        plans[0].run(0, lent(plans[0]), args)
        np.testing.assert_array_equal(output, exact)
    assert setting.api.calls == ["matmul"] * 3


def test_a_bound_run_keeps_its_arguments_and_only_multiplies(setting: Any) -> None:
    plan = setting.registry.select(BIASED, setting.device)
    args, output, exact = arguments(bias=True)
    launch = plan.bind(args, lent(plan), 0)
    del args
    gc.collect()
    launch()  # the first sets the bias's address
    setting.api.calls.clear()
    output[...] = 0
    launch()
    np.testing.assert_array_equal(output, exact)
    assert setting.api.calls == ["matmul"]
    assert not setting.context.is_current


def live(setting: Any) -> list[str]:
    """What the library holds for us."""
    gc.collect()
    return sorted(one.what for one in setting.api.live.values())


def test_what_an_executable_made_goes_with_it(setting: Any) -> None:
    kernel = next(k for k in OP.kernels if k.sku.backend is BackendKind.CUBLAS)
    names = tuple(spec.name for spec in OP.specs)
    executable = setting.backend.prepare(kernel.code, DESC, setting.device, names, "dense_gemm")
    assert live(setting) == ["handle", "matmul_desc", "matrix_layout", "matrix_layout", "matrix_layout"]
    del executable
    assert live(setting) == ["handle"]


PREPARING = ("create", "matmul_desc_create", "matrix_layout_create", "matmul_algo_get_heuristic")


@pytest.mark.parametrize("failing", PREPARING)
def test_a_failure_while_preparing_is_reported_and_leaves_nothing_behind(setting: Any, failing: str) -> None:
    setting.api.failing[failing] = 15
    with pytest.raises(KernelInternal, match=rf"cublasLt\.{failing}.*not supported") as caught:
        setting.registry.select(DESC, setting.device)
    assert caught.value.status == 15
    assert not setting.context.is_current
    setting.api.failing.clear()
    del caught
    assert live(setting) in ([], ["handle"])
    setting.registry.select(DESC, setting.device)


def test_a_failed_run_is_reported_and_leaves_the_context(setting: Any) -> None:
    plan = setting.registry.select(DESC, setting.device)
    args, _, _ = arguments()
    setting.api.failing["matmul"] = EXECUTION_FAILED
    for attempt in (lambda: plan.run(0, lent(plan), args), plan.bind(args, lent(plan), 0)):
        with pytest.raises(KernelInternal) as caught:
            attempt()
        assert caught.value.status == EXECUTION_FAILED
        assert not setting.context.is_current


def test_threads_that_share_a_plan_keep_their_own_bias(setting: Any) -> None:
    plan = setting.registry.select(BIASED, setting.device)
    plan_args = [arguments(seed, bias=True) for seed in range(4)]
    wrong: list[int] = []

    def work(index: int) -> None:
        args, output, exact = plan_args[index]
        for _ in range(50):
            output[...] = 0
            plan.run(0, lent(plan), args)
            if not np.array_equal(output, exact):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_double_numbers_things_as_the_library_does(setting: Any) -> None:
    bindings = pytest.importorskip("nvmath.bindings", reason="nvmath-python is not installed")
    for double in setting.api.enums:
        real = getattr(bindings.cublasLt, double.__name__)
        assert {member.name: int(member) for member in double} == {m.name: int(real[m.name]) for m in double}
    assert setting.api.matmul_heuristic_result_dtype == bindings.cublasLt.matmul_heuristic_result_dtype
    assert (bindings.cublas.ComputeType.COMPUTE_32F, bindings.cublas.ComputeType.COMPUTE_64F) == (68, 70)
    assert bindings.cublas.Operation.T == 1
