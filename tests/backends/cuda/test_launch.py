"""What the CUDA backend asks of the driver: which calls, how often, with which bytes, in which context."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as cuda

import baracuda_py as bp
from baracuda_py.errors import DriverError, InvalidProblem, Unsupported, WorkspaceTooSmall

SEQUENCE = {"cuCtxGetCurrent", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuLaunchKernel"}


def names(calls: list[dict[str, Any]]) -> list[str]:
    return [call["call"] for call in calls]


def test_a_library_is_loaded_once_a_process_and_a_function_once_a_context(stub: Any) -> None:
    for columns in (8, 16, 24):
        stub.plan(columns=columns)
    assert names(stub.calls()).count("cuLibraryLoadData") == 1
    assert [call["entry"] for call in stub.calls("cuKernelGetFunction")] == ["tiny", "large"]
    assert stub.kit.reads == ["good"]


@pytest.mark.stub(devices=2)
def test_a_second_device_gets_functions_of_its_own_from_the_same_library(stub: Any) -> None:
    stub.plan(0), stub.plan(1)
    assert len(stub.calls("cuLibraryLoadData")) == 1
    functions = stub.calls("cuKernelGetFunction")
    assert [(call["entry"], call["context"]) for call in functions] == [
        ("tiny", 0), ("large", 0), ("tiny", 1), ("large", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shared", "asked"), [(0, []), (40 * 1024, []), (40 * 1024 + 16, [40 * 1024 + 16]), (219 * 1024, [219 * 1024])]
)
def test_shared_memory_is_asked_for_only_beyond_48_kib_of_static_and_dynamic(
    stub: Any, shared: int, asked: list[int]
) -> None:
    workspace = bp.allocate_workspace(stub.plan(shared=shared))
    for _ in range(2):
        stub.plan(shared=shared, columns=8).run(None, workspace, stub.args())
    stub.plan(shared=shared, rows=5)
    assert [call["value"] for call in stub.calls("cuFuncSetAttribute")] == asked


def test_a_launch_beyond_the_shared_memory_of_the_device_is_refused_by_name(stub: Any) -> None:
    with pytest.raises(Unsupported, match="shared memory") as caught:
        stub.plan(shared=219 * 1024 + 1)
    assert caught.value.value == 227 * 1024 + 1
    assert not stub.calls("cuFuncSetAttribute")


@pytest.mark.parametrize("bound", [False, True])
def test_a_run_launches_and_calls_nothing_else(stub: Any, bound: bool) -> None:
    plan, args = stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    if bound:
        call = plan.bind(args, workspace)
    else:
        plan.run(None, workspace, args)

        def call() -> None:
            plan.run(None, workspace, args)

    with stub.recording() as calls:
        call()
    # The thread has no context of its own, so one is pushed and popped.
    expected = ["cuCtxGetCurrent", "cuCtxPushCurrent", "cuLaunchKernel", "cuLaunchKernel", "cuCtxPopCurrent"]
    assert names(calls) == expected
    assert [one["context"] for one in calls] == [-1, -1, 0, 0, 0]
    stub.kit.check((*cuda.cuCtxPushCurrent(stub.primary(0)), None))
    with stub.recording() as calls:
        call()
    assert names(calls) == ["cuCtxGetCurrent", "cuLaunchKernel", "cuLaunchKernel"]


def test_an_empty_problem_launches_nothing(stub: Any) -> None:
    plan = stub.plan(rows=0)
    assert plan.workspace_size == 0
    args = stub.kit.TinyArgs(*(bp.empty((0, 8), bp.ElementKind.F16) for _ in range(2)))
    with stub.recording() as calls:
        plan.run(None, bp.Workspace.NONE, args)
        plan.bind(args)()
    assert not calls


def test_runs_and_bound_calls_can_be_captured(stub: Any) -> None:
    plan, args = stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    stub.kit.check((*cuda.cuCtxPushCurrent(stub.primary(0)), None))
    stream = stub.kit.check(cuda.cuStreamCreate(0))
    stub.kit.check((*cuda.cuStreamBeginCapture(stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL), None))
    plan.run(int(stream), workspace, args)
    plan.bind(args, workspace, int(stream))()
    assert [call["captured"] for call in stub.calls("cuLaunchKernel")] == [1] * 4
    # A capture forbids allocation and synchronisation: the stub would have failed them.
    assert int(cuda.cuMemAlloc(16)[0]) == 900
    stub.kit.check(cuda.cuStreamEndCapture(stream))


def test_what_is_loaded_allocated_or_freed_during_a_capture_does_not_end_it(stub: Any) -> None:
    args = stub.args()
    garbage = bp.empty((4,), bp.ElementKind.F32)
    stub.kit.check((*cuda.cuCtxPushCurrent(stub.primary(0)), None))
    stream = stub.kit.check(cuda.cuStreamCreate(0))
    stub.kit.check((*cuda.cuStreamBeginCapture(stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL), None))
    del garbage
    gc.collect()
    plan = stub.plan()
    workspace = bp.allocate_workspace(plan)
    plan.run(int(stream), workspace, args)
    assert [call["captured"] for call in stub.calls("cuLaunchKernel")] == [1] * 2
    assert len(stub.calls("cuMemFree")) == 1
    assert int(cuda.cuMemAlloc(16)[0]) == 900, "the thread's own mode is back"
    stub.kit.check(cuda.cuStreamEndCapture(stream))


def test_every_sort_of_parameter_arrives(stub: Any) -> None:
    kit = stub.kit
    x, y = (bp.empty((4, 16), bp.ElementKind.F16) for _ in range(2))
    bias = bp.empty((8,), bp.ElementKind.F16)
    for columns, given in ((8, bias), (8, None)):
        plan = stub.plan(columns=columns, biased=int(given is not None))
        workspace = bp.allocate_workspace(plan)
        # Rows of x from the last to the first, every second row of y.
        upside_down = bp.TensorRef(x.pointer + 3 * 32, (4, 8), bp.ElementKind.F16, strides=(-16, 1), device=0)
        spread = bp.TensorMut(y.pointer, (4, 8), bp.ElementKind.F16, strides=(16, 1), device=0)
        args = kit.TinyArgs(upside_down, spread, given)
        plan.run(None, workspace, args)
        plan.bind(args, workspace)()
        first, second = (call for call in stub.calls("cuLaunchKernel")[-4:] if call["entry"] == "tiny")
        assert first["parameters"] == second["parameters"]
        assert (first["grid"], first["block"], first["shared"]) == ([132, 2, 3], [32, 4, 1], 0)
        assert kit.decode(first) == kit.Tiny(
            x=x.pointer + 96,
            bias=given.pointer if given is not None else 0,
            x_stride=-16,
            bias_stride=1 if given is not None else 0,
            shift=kit.SHIFT,
            scale=kit.SCALE,
            sizes=(4, 16, -1),
            scratch=workspace.pointer + kit.WORKSPACE_OFFSET,
            y=y.pointer + 2,
        )


def test_bound_calls_keep_their_parameters_while_others_run(stub: Any) -> None:
    plan, one, two = stub.plan(), stub.args(), stub.args()
    workspace = bp.allocate_workspace(plan)
    first, second = plan.bind(one, workspace), plan.bind(two, workspace)
    plan.run(None, workspace, two)
    first(), second()
    decoded = [stub.kit.decode(call) for call in stub.calls("cuLaunchKernel") if call["entry"] == "tiny"]
    assert [call.x for call in decoded] == [two.x.pointer, one.x.pointer, two.x.pointer]


@pytest.mark.stub(devices=2)
def test_each_device_runs_in_its_own_context_and_the_threads_own_one_stays(stub: Any) -> None:
    plans = [stub.plan(ordinal) for ordinal in (0, 1)]
    args = [stub.args(ordinal) for ordinal in (0, 1)]
    workspaces = [bp.allocate_workspace(plan) for plan in plans]
    # None, either device's primary context, and one that another package made for itself.
    foreign = stub.kit.check(cuda.cuCtxCreate(None, 0, 0))
    stub.kit.check(cuda.cuCtxPopCurrent())
    for current in (None, stub.primary(0), stub.primary(1), foreign):
        if current is not None:
            stub.kit.check((*cuda.cuCtxPushCurrent(current), None))
        before = int(stub.kit.check(cuda.cuCtxGetCurrent()))
        for plan, arg, workspace in zip(plans, args, workspaces, strict=True):
            with stub.recording() as calls:
                plan.run(None, workspace, arg)
                plan.bind(arg, workspace)()
            launches = [call for call in calls if call["call"] == "cuLaunchKernel"]
            assert {call["context"] for call in launches} == {plan.device.ordinal}
            assert len(launches) == 4
            assert set(names(calls)) <= SEQUENCE
            assert int(stub.kit.check(cuda.cuCtxGetCurrent())) == before
        if current is not None:
            stub.kit.check(cuda.cuCtxPopCurrent())


@pytest.mark.parametrize("bound", [False, True])
def test_a_failed_launch_is_named_and_leaves_the_context_stack_as_it_was(stub: Any, bound: bool) -> None:
    plan, args = stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    call = plan.bind(args, workspace) if bound else lambda: plan.run(None, workspace, args)
    stub.fail("cuLaunchKernel", 700, nth=2)
    with pytest.raises(DriverError) as caught:
        call()
    assert (caught.value.call, caught.value.result) == ("cuLaunchKernel", 700)
    assert caught.value.name == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert int(stub.kit.check(cuda.cuCtxGetCurrent())) == 0
    call()
    assert len(stub.calls("cuLaunchKernel")) == 4


@pytest.mark.stub(devices=2)
def test_a_stream_of_another_device_is_refused_with_the_reason(stub: Any) -> None:
    plan, args = stub.plan(0), stub.args(0)
    stub.kit.check((*cuda.cuCtxPushCurrent(stub.primary(1)), None))
    stream = stub.kit.check(cuda.cuStreamCreate(0))
    with pytest.raises(DriverError, match="belongs to another context") as caught:
        plan.run(int(stream), bp.allocate_workspace(plan), args)
    assert caught.value.name == "CUDA_ERROR_INVALID_HANDLE"


def test_a_relocatable_run_takes_the_addresses_it_is_given(stub: Any) -> None:
    kit, plan = stub.kit, stub.plan(0, biased=1)
    args = stub.args(bias=True)
    launch = plan.relocatable(args, bp.allocate_workspace(plan))
    assert launch is not None
    assert not stub.calls("cuLaunchKernel")
    stream = stub.stream(0)
    kit.install_torch({0: stream})
    owner = kit.TorchTensor(1 << 40, (4, 8), (8, 1))
    launch(owner, 3 << 40, (1 << 40, 2 << 40, 4 << 40))  # x, y, bias
    launch(owner, 3 << 40, (1 << 41, 2 << 40, 4 << 40))
    calls = [call for call in stub.calls("cuLaunchKernel") if call["entry"] == "tiny"]
    assert [call["stream"] for call in calls] == [stream] * 2
    for call, x in zip(calls, (1 << 40, 1 << 41), strict=True):
        tiny = kit.decode(call)
        assert (tiny.x, tiny.y, tiny.bias) == (x, (2 << 40) + 2, 4 << 40)
        assert (tiny.x_stride, tiny.scratch) == (8, (3 << 40) + kit.WORKSPACE_OFFSET)


def test_a_relocatable_run_checks_like_a_run(stub: Any) -> None:
    plan = stub.plan(0)
    with pytest.raises(InvalidProblem, match="bias"):
        plan.relocatable(stub.args(bias=True), bp.allocate_workspace(plan))
    with pytest.raises(WorkspaceTooSmall):
        plan.relocatable(stub.args())
    assert stub.plan("host").relocatable(stub.kit.TinyArgs(*(np.zeros((4, 8), np.float16) for _ in range(2)))) is None
    assert stub.plan(0, rows=0).relocatable(
        stub.kit.TinyArgs(*(bp.empty((0, 8), bp.ElementKind.F16, plan.device) for _ in range(2))),
        bp.allocate_workspace(plan),
    ) is None  # fmt: skip


@pytest.mark.stub(devices=2)
def test_eight_threads_never_mix_their_parameters(stub: Any) -> None:
    kit, runs = stub.kit, 1000
    plans = [stub.plan(ordinal, columns=8, rows=rows) for ordinal in (0, 1) for rows in (4, 5)]
    sizes = {}
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            plan = plans[index % len(plans)]
            rows = plan.descriptor.rows
            pitch = 8 * (index + 1)
            base = (index + 1) << 40
            device = plan.device.ordinal
            y = bp.TensorMut(base + (1 << 30), (rows, 8), bp.ElementKind.F16, strides=(pitch, 1), device=device)
            for run in range(runs):
                x = bp.TensorRef(base + 16 * run, (rows, 8), bp.ElementKind.F16, strides=(pitch, 1), device=device)
                workspace = bp.Workspace.borrowed(base + (1 << 35) + 16 * run, kit.WORKSPACE_BYTES)
                if run % 2:
                    plan.run(0, workspace, kit.TinyArgs(x, y))
                else:
                    plan.bind(kit.TinyArgs(x, y), workspace, 0)()
            sizes[index] = (rows, pitch, device)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    seen = set()
    for call in stub.calls("cuLaunchKernel"):
        if call["entry"] != "tiny":
            continue
        tiny = kit.decode(call)
        index, run = (tiny.x >> 40) - 1, (tiny.x & ((1 << 30) - 1)) // 16
        rows, pitch, device = sizes[index]
        base = (index + 1) << 40
        assert call["context"] == device
        assert tiny.x_stride == pitch
        assert tiny.sizes == (rows, pitch, -1)
        assert tiny.scratch == base + (1 << 35) + 16 * run + kit.WORKSPACE_OFFSET
        assert tiny.y == base + (1 << 30) + 2
        seen.add((index, run))
    assert len(seen) == 8 * runs


def test_threads_that_select_at_once_load_once(stub: Any) -> None:
    start = threading.Barrier(8)
    plans = []

    def work() -> None:
        start.wait()
        plans.append(stub.plan(0))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 8
    for call in ("cuInit", "cuDevicePrimaryCtxRetain", "cuLibraryLoadData"):
        assert len(stub.calls(call)) == 1
    assert len(stub.calls("cuKernelGetFunction")) == 2
