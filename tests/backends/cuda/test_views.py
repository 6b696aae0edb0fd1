"""Arrays of other packages in CUDA memory become the right views, and the wrong ones are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem, MisalignedOperand, Unsupported

F16, BF16 = bp.ElementKind.F16, bp.ElementKind.BF16


def facts(view: Any) -> tuple[Any, ...]:
    return view.pointer, view.shape, view.strides, view.element, view.device


def test_views_say_what_the_arrays_say(stub: Any) -> None:
    kit = stub.kit
    at = bp.empty((64,), F16).pointer
    import ml_dtypes
    import numpy as np

    records = kit.InterfaceArray(at, (4, 8), "|V2")
    records.dtype = np.dtype(ml_dtypes.bfloat16)  # so CuPy describes bf16
    cases = [
        (kit.TorchTensor(at, (4, 8), (8, 1)), (at, (4, 8), (8, 1), F16, 0)),
        (kit.TorchTensor(at, (4, 8), (1, 4), kit.torch_bfloat16, 1), (at, (4, 8), (1, 4), BF16, 1)),
        (kit.InterfaceArray(at, (4, 8)), (at, (4, 8), (8, 1), F16, None)),
        (kit.InterfaceArray(at, (4, 8), strides=None), (at, (4, 8), (8, 1), F16, None)),
        (kit.InterfaceArray(at, (4, 8), strides=(-32, 2)), (at, (4, 8), (-16, 1), F16, None)),
        (kit.InterfaceArray(at, (3,), "<f4"), (at, (3,), (1,), bp.ElementKind.F32, None)),
        (records, (at, (4, 8), (8, 1), BF16, None)),
        (kit.DLPackArray(at, (4, 8)), (at, (4, 8), (8, 1), F16, 0)),
        (kit.DLPackArray(at, (4, 8), code=4, device=(2, 1)), (at, (4, 8), (8, 1), BF16, 1)),
        (kit.DLPackArray(at, (4, 8), strides=(16, 1), offset=64), (at + 64, (4, 8), (16, 1), F16, 0)),
        (kit.DLPackArray(at, (4, 8), strides=(-8, 1), flags=0), (at, (4, 8), (-8, 1), F16, 0)),
        (kit.JaxArray(at, (4, 8), code=4, flags=1), (at, (4, 8), (8, 1), BF16, 0)),
    ]  # fmt: skip
    for source, expected in cases:
        assert facts(bp.TensorRef.of(source)) == expected
    device = InterfaceDevice(at)
    assert bp.TensorRef.of(device).device == 1


class InterfaceDevice:
    """CuPy's arrays say which device they are on."""

    class device:
        """As cupy.cuda.Device."""

        id = 1

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (4, 8), "typestr": "<f2", "data": (self._pointer, False), "version": 3}


def test_what_no_view_can_stand_for_is_refused(stub: Any) -> None:
    kit = stub.kit
    at = bp.empty((64,), F16).pointer
    masked = kit.InterfaceArray(at, (4, 8), mask=object())
    for source, rule in (
        (kit.InterfaceArray(at, (4,), "<M8[s]"), "dtype"),
        (kit.InterfaceArray(at, (4,), ">f2"), "dtype"),
        (kit.DLPackArray(at, (4,), code=2, bits=128), "dtype"),
        (kit.DLPackArray(at, (4,), device=(10, 0)), "device"),
        (kit.InterfaceArray(at, (4, 8), strides=(33, 2)), "strides"),
        (masked, "mask"),
        (object(), "array"),
    ):
        with pytest.raises(Unsupported) as caught:
            bp.TensorRef.of(source, "x")
        assert (caught.value.rule, caught.value.where) == (rule, "x")


def test_read_only_memory_is_no_output(stub: Any) -> None:
    at = bp.empty((64,), F16).pointer
    for source in (
        stub.kit.JaxArray(at, (4, 8), flags=1), stub.kit.InterfaceArray(at, (4, 8), data=(at, True)),
    ):  # fmt: skip
        bp.TensorRef.of(source)
        with pytest.raises(InvalidProblem) as caught:
            bp.TensorMut.of(source)
        assert caught.value.rule == "writable"


def test_operands_may_lie_in_the_workspaces_buffer_only_behind_what_the_plan_uses(stub: Any) -> None:
    plan = stub.plan()
    arena = bp.empty((plan.workspace_size + 256,), bp.ElementKind.U8)
    workspace = bp.Workspace.borrowed(arena)
    y = bp.empty((4, 8), F16)
    behind = bp.TensorRef(arena.pointer + plan.workspace_size, (4, 8), F16, device=0)
    plan.run(0, workspace, stub.kit.TinyArgs(behind, y))
    within = bp.TensorRef(behind.pointer - 16, (4, 8), F16, device=0)
    with pytest.raises(InvalidProblem, match="must not share memory with the workspace") as caught:
        plan.run(0, workspace, stub.kit.TinyArgs(within, y))
    assert caught.value.rule == "x overlap"


@pytest.mark.stub(devices=2)
def test_every_package_runs_and_bad_operands_never_launch(stub: Any) -> None:
    kit, plan, own = stub.kit, stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    kit.install_torch({})
    x, y = own.x.pointer, own.y.pointer

    def torch(pointer: int, shape: Any = (4, 8), stride: Any = (8, 1), **more: Any) -> Any:
        return kit.TorchTensor(pointer, shape, stride, **more)

    makers = (torch, lambda at: kit.InterfaceArray(at, (4, 8)), lambda at: kit.DLPackArray(at, (4, 8)))
    for make in makers:
        for _ in range(2):  # the second time, a torch tensor takes the remembered path
            plan.run(0, workspace, kit.TinyArgs(make(x), make(y)))
            launch = [call for call in stub.calls("cuLaunchKernel") if call["entry"] == "tiny"][-1]
            assert (kit.decode(launch).x, kit.decode(launch).y) == (x, y + 2)
    launched = len(stub.calls("cuLaunchKernel"))
    bad = [
        (torch(x), torch(x), InvalidProblem, "y overlap"),
        (torch(x), torch(workspace.pointer), InvalidProblem, "y overlap"),
        (torch(workspace.pointer), torch(y), InvalidProblem, "x overlap"),
        (torch(x + 1), torch(y), MisalignedOperand, "x alignment"),
        (torch(0), torch(y), InvalidProblem, "x address"),
        (torch(x, index=1), torch(y), InvalidProblem, "x device"),
        (torch(x, dtype=kit.torch_bfloat16), torch(y), InvalidProblem, "x element"),
        (torch(x, shape=(5, 8)), torch(y), InvalidProblem, "x shape"),
        (torch(x), torch(y, stride=(1, 4)), InvalidProblem, "y innermost stride"),
        (torch(x), torch(y, stride=(0, 1)), InvalidProblem, "y row stride"),
        (torch(x), None, InvalidProblem, "y presence"),
    ]
    for one, two, error, rule in bad:
        for call in (
            lambda one=one, two=two: plan.run(0, workspace, kit.TinyArgs(one, two)),
            lambda one=one, two=two: plan.bind(kit.TinyArgs(one, two), workspace, 0),
        ):
            with pytest.raises(error) as caught:
                call()
            assert caught.value.rule == rule
    assert len(stub.calls("cuLaunchKernel")) == launched


def test_a_bound_call_keeps_its_tensors_alive_and_a_run_does_not(stub: Any) -> None:
    import gc
    import weakref

    kit, plan, own = stub.kit, stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    x, y = (kit.TorchTensor(array.pointer, (4, 8), (8, 1)) for array in (own.x, own.y))
    alive = weakref.ref(x)
    bound = plan.bind(kit.TinyArgs(x, y), workspace, 0)
    plan.run(0, workspace, kit.TinyArgs(x, y))
    del x, y
    gc.collect()
    assert alive() is not None
    bound()
    del bound
    gc.collect()
    assert alive() is None
