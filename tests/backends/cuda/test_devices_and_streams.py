"""Which device a selection means, and which stream a run takes."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import driver as cuda

import baracuda_py as bp
from baracuda_py.backends.cuda.streams import current_stream
from baracuda_py.errors import DriverError, InvalidProblem, Unsupported


def streams_of(calls: list[dict[str, Any]]) -> list[int]:
    return [call["stream"] for call in calls if call["call"] == "cuLaunchKernel"]


@pytest.mark.stub(devices=2, capability="8.6")
def test_a_device_may_be_named_in_every_way(stub: Any) -> None:
    kit = stub.kit
    kit.check((*cuda.cuInit(0), None))
    kit.check((*cuda.cuCtxPushCurrent(stub.primary(1)), None))
    on_one = kit.check(cuda.cuStreamCreate(0))
    kit.check(cuda.cuCtxPopCurrent())
    second = [
        1, "cuda:1", kit.ProtocolStream(int(on_one)), kit.AttributeStream(int(on_one)), kit.TorchStream(int(on_one)),
        kit.TorchStream(0, index=1), kit.TorchDevice("cuda", 1), kit.TorchTensor(16, (8,), (1,), index=1),
        kit.DLPackArray(16, (8,), device=(2, 1)), bp.TensorRef(16, (8,), bp.ElementKind.F16, device=1),
    ]  # fmt: skip
    for spec in second:
        assert stub.plan(spec).device.ordinal == 1, spec
    for spec in (None, 0, "cuda", "cuda:0", kit.TorchDevice("cuda", None), kit.ProtocolStream(0)):
        assert stub.plan(spec).device.ordinal == 0, spec
    device = stub.plan(1).device
    assert (device.capability, device.sm_count, device.name) == ((8, 6), 132, "Stub GPU 1")
    for spec in ("host", "cpu", kit.TorchDevice("cpu", None)):
        assert stub.plan(spec).device.kind == "host", spec
    assert int(kit.check(cuda.cuCtxGetCurrent())) == 0


@pytest.mark.stub(devices=2)
def test_no_device_means_that_of_the_threads_current_context(stub: Any) -> None:
    found = {}

    def work(ordinal: int | None) -> None:
        if ordinal is not None:
            stub.kit.check((*cuda.cuCtxPushCurrent(stub.primary(ordinal)), None))
        found[ordinal] = stub.plan().device.ordinal

    stub.plan()
    for ordinal in (1, 0, None):
        thread = threading.Thread(target=work, args=(ordinal,))
        thread.start()
        thread.join()
    assert found == {0: 0, 1: 1, None: 0}


def test_a_dry_run_touches_no_driver(stub: Any) -> None:
    plan = stub.plan("sm_90a")
    assert plan.device.dry
    assert [launch.entry for launch in plan.launches] == ["tiny", "large"]
    with pytest.raises(Unsupported, match="dry-run"):
        plan.run(None, bp.Workspace.NONE, stub.kit.TinyArgs(None, None))
    with pytest.raises(Unsupported, match="must be a GPU of this machine"):
        bp.allocate_workspace(plan)
    assert not stub.calls()


def test_an_unknown_ordinal_is_refused_with_the_call(stub: Any) -> None:
    with pytest.raises(DriverError, match="no GPU with that ordinal") as caught:
        stub.plan(3)
    assert (caught.value.call, caught.value.name) == ("cuDeviceGet", "CUDA_ERROR_INVALID_DEVICE")


def test_every_kind_of_stream_reaches_the_launch(stub: Any) -> None:
    kit, plan, args = stub.kit, stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    kit.check((*cuda.cuCtxPushCurrent(stub.primary(0)), None))
    handle = int(kit.check(cuda.cuStreamCreate(0)))
    cases = [
        (handle, handle), (kit.ProtocolStream(handle), handle), (kit.AttributeStream(handle), handle),
        (kit.TorchStream(handle), handle), (0, 0), (None, 0), (1, 1), (2, 2),
    ]  # fmt: skip
    for stream, expected in cases:
        with stub.recording() as calls:
            plan.run(stream, workspace, args)
            plan.bind(args, workspace, stream)()
        assert streams_of(calls) == [expected] * 4, stream
    with pytest.raises(InvalidProblem, match="__cuda_stream__") as caught:
        plan.run("fast", workspace, args)
    assert caught.value.rule == "stream"


@pytest.mark.stub(devices=2)
def test_no_stream_means_torchs_current_one_on_the_plans_device_at_each_call(stub: Any) -> None:
    kit, plan, own = stub.kit, stub.plan(1), stub.args(1)
    workspace = bp.allocate_workspace(plan)
    kit.check((*cuda.cuCtxPushCurrent(stub.primary(1)), None))
    one, two = (int(kit.check(cuda.cuStreamCreate(0))) for _ in range(2))
    current = {0: 99, 1: one}
    kit.install_torch(current)

    class Parameter(kit.TorchTensor):
        """Derived from a tensor elsewhere, as users do."""

    for kind in (kit.TorchTensor, Parameter):
        tensors = [kind(array.pointer, (4, 8), (8, 1), index=1) for array in (own.x, own.y)]
        for args in (kit.TinyArgs(*tensors), kit.TinyArgs(*(bp.TensorMut.of(tensor) for tensor in tensors))):
            bound = plan.bind(args, workspace)
            for handle in (one, two):
                current[1] = handle
                with stub.recording() as calls:
                    plan.run(None, workspace, args)
                    bound()
                assert streams_of(calls) == [handle] * 4


def test_no_stream_means_cupys_current_one_on_the_plans_device_whichever_device_is_current() -> None:
    asked = []

    def get_current_stream(device_id: int = -1) -> Any:
        asked.append(device_id)
        return SimpleNamespace(ptr=0x70 + device_id)

    array = type("ndarray", (), {"__module__": "cupy"})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(get_current_stream=get_current_stream)))
        assert current_stream(array, 1) == 0x71
    assert asked == [1]


def test_beside_a_jax_array_no_stream_means_the_next_packages_which_jax_is_told(stub: Any) -> None:
    kit, plan, own = stub.kit, stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    handle = stub.stream(0)
    kit.install_torch({0: handle})
    x = kit.JaxArray(own.x.pointer, (4, 8), flags=0)
    y = kit.TorchTensor(own.y.pointer, (4, 8), (8, 1))
    seen = bp.TensorRef.of(x)  # told of the default stream
    for args in (kit.TinyArgs(x, y), kit.TinyArgs(seen, y), kit.TinyArgs(x, bp.TensorMut.of(y))):
        with stub.recording() as calls:
            plan.run(None, workspace, args)
            plan.bind(args, workspace)()
        assert streams_of(calls) == [handle] * 4
    assert set(x.streams) == {1, handle}
    with stub.recording() as calls:
        plan.run(None, workspace, kit.TinyArgs(x, own.y))  # memory of no framework
    assert streams_of(calls) == [0, 0]


@pytest.mark.stub(devices=2)
def test_dlpack_producers_are_told_the_stream_as_the_protocol_numbers_it(stub: Any) -> None:
    kit, plan, own = stub.kit, stub.plan(), stub.args()
    workspace = bp.allocate_workspace(plan)
    kit.check((*cuda.cuCtxPushCurrent(stub.primary(0)), None))
    handle = int(kit.check(cuda.cuStreamCreate(0)))
    # 0 is not allowed: the legacy default stream is 1 there, the per-thread one 2.
    for stream, told in ((None, 1), (0, 1), (1, 1), (2, 2), (handle, handle)):
        x, y = (kit.DLPackArray(array.pointer, (4, 8)) for array in (own.x, own.y))
        plan.run(stream, workspace, kit.TinyArgs(x, y))
        assert x.streams == y.streams == [told]
    managed = kit.DLPackArray(own.x.pointer, (4, 8), device=(13, 0))
    plan.run(handle, workspace, kit.TinyArgs(managed, own.y))
    assert managed.streams == [handle]
    host = kit.DLPackArray(own.x.pointer, (4, 8), device=(1, 0))
    with pytest.raises(InvalidProblem, match="host memory"):
        plan.run(handle, workspace, kit.TinyArgs(host, own.y))
    assert host.streams == ["not given"]
