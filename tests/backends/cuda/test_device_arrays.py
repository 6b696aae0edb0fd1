"""Device arrays and workspaces: every byte that is allocated is freed once, and copies are whole."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as cuda

import baracuda_py as bp
from baracuda_py.errors import DriverError, InvalidProblem


def freed(stub: Any) -> list[int]:
    return [call["pointer"] for call in stub.calls("cuMemFree")]


def test_arrays_come_back_as_they_went(stub: Any) -> None:
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int32, np.uint8, ml_dtypes.float8_e4m3fn):
        for shape in ((), (1,), (3, 5), (2, 3, 4)):
            array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
            moved = bp.to_device(array)
            assert (moved.shape, moved.nbytes) == (array.shape, array.nbytes)
            back = moved.numpy()
            assert back.dtype == array.dtype
            assert back.tobytes() == array.tobytes()
    turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert (bp.to_device(turned).numpy() == turned).all()
    copied, allocated = ([call["nbytes"] for call in stub.calls(name)] for name in ("cuMemcpyHtoD", "cuMemAlloc"))
    assert copied == allocated
    with pytest.raises(TypeError, match="no ElementKind"):
        bp.to_device(np.zeros(3, "datetime64[s]"))


def test_an_upload_is_complete_for_every_stream_when_it_returns(stub: Any) -> None:
    bp.to_device(np.zeros(4, np.float32))
    names = [call["call"] for call in stub.calls()]
    assert names.index("cuStreamSynchronize") == names.index("cuMemcpyHtoD") + 1


def test_only_whole_contiguous_arrays_are_copied_in(stub: Any) -> None:
    array = bp.empty((4, 4), bp.ElementKind.F32)
    for wrong in (np.zeros((4, 3), np.float32), np.zeros((4, 5), np.float32), np.zeros((4, 4), np.float64)):
        with pytest.raises(ValueError, match="64"):
            array.copy_from(wrong)
    with pytest.raises(ValueError, match="C-contiguous"):
        array.copy_from(np.asfortranarray(np.zeros((4, 4), np.float32)))
    assert not stub.calls("cuMemcpyHtoD")


def test_nothing_is_allocated_for_no_elements(stub: Any) -> None:
    array = bp.empty((0, 8), bp.ElementKind.F16)
    array.copy_from(np.zeros((0, 8), np.float16))
    assert array.numpy().shape == (0, 8)
    del array
    gc.collect()
    assert bp.allocate_workspace(stub.plan(rows=0)) is bp.Workspace.NONE
    assert not stub.calls("cuMemAlloc")
    assert not stub.calls("cuMemFree")


@pytest.mark.stub(devices=2)
def test_memory_is_freed_once_in_its_own_context(stub: Any) -> None:
    stub.kit.check((*cuda.cuInit(0), None))
    stub.kit.check((*cuda.cuCtxPushCurrent(stub.primary(0)), None))
    arrays = [bp.empty((4,), bp.ElementKind.F32, ordinal) for ordinal in (0, 1)]
    pointers = [array.pointer for array in arrays]
    arrays[0].free()
    arrays[0].free()
    del arrays[:]
    gc.collect()
    assert freed(stub) == pointers
    assert [call["context"] for call in stub.calls("cuMemFree")] == [0, 1]
    assert [call["context"] for call in stub.calls("cuMemAlloc")] == [0, 1]


def test_a_view_of_a_device_array_keeps_it_alive(stub: Any) -> None:
    plan, args = stub.plan(), stub.args()
    bound = plan.bind(args, bp.allocate_workspace(plan))
    del args
    gc.collect()
    assert not freed(stub)
    bound()
    del bound
    gc.collect()
    assert len(freed(stub)) == 3


def test_a_free_that_fails_is_reported_and_not_tried_again(stub: Any) -> None:
    array = bp.empty((4,), bp.ElementKind.F32)
    stub.fail("cuMemFree", 700)
    with pytest.raises(DriverError) as caught:
        array.free()
    assert caught.value.call == "cuMemFree"
    del array
    gc.collect()
    assert len(freed(stub)) == 1


def test_a_freed_array_is_refused_as_an_operand(stub: Any) -> None:
    plan, args = stub.plan(), stub.args()
    args.y.free()
    with pytest.raises(InvalidProblem, match="null pointer") as caught:
        plan.run(None, bp.allocate_workspace(plan), args)
    assert caught.value.rule == "y address"
    assert not stub.calls("cuLaunchKernel")


def test_two_owners_are_refused(stub: Any) -> None:
    array = bp.empty((4,), bp.ElementKind.F32)
    attempts: tuple[Callable[[Any], Any], ...] = (copy.copy, copy.deepcopy, pickle.dumps)
    for attempt in attempts:
        with pytest.raises(TypeError, match="two owners"):
            attempt(array)


def test_memory_that_runs_out_is_named_and_frees_nothing(stub: Any) -> None:
    with pytest.raises(DriverError, match="the GPU's memory is full") as caught:
        bp.empty((1 << 40,), bp.ElementKind.F32)
    assert (caught.value.call, caught.value.name) == ("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY")
    gc.collect()
    assert not stub.calls("cuMemFree")


def test_a_workspace_has_exactly_the_plans_bytes(stub: Any) -> None:
    plan = stub.plan()
    workspace = bp.allocate_workspace(plan)
    assert (workspace.nbytes, workspace.device) == (plan.workspace_size, 0)
    assert [call["nbytes"] for call in stub.calls("cuMemAlloc")] == [plan.workspace_size]
    host = bp.allocate_workspace(stub.plan("host"))
    assert host is bp.Workspace.NONE


def test_an_interpreter_that_ends_with_live_arrays_says_nothing(stub: Any) -> None:
    code = "import sys, baracuda_py as bp; sys.modules['kept to the end'] = bp.empty((4,), bp.ElementKind.F32)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
