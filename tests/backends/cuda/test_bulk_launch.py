"""The AWQ GEMM of bulk copies as a launch: its tensor map, and how it may overlap the launch ahead of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attrs import evolve

import baracuda_py as bp
from baracuda_py.errors import DriverError

M, IC, OC = 5, 256, 64
COUNTS = 14  # the parameters behind those that every AWQ GEMM has: tokens, stages, slots, tiles, whether it overlaps
MAP = 19


def words(call: dict[str, Any]) -> list[int]:
    return np.frombuffer(bytes.fromhex(call["parameters"][MAP]), np.uint64).tolist()


def made(m: int = M, pitch: int = IC, variant: str = "bulk_tiled") -> tuple[Any, Any]:
    """The plan of a kernel, and its arguments, x with rows of `pitch` elements."""
    desc = bp.Int4AwqGemmDescriptor(m, IC, OC, 128, None, bp.AwqWeightLayout.TILED)
    registry = bp.default_registry()
    (sku,) = (one.sku for one in bp.explain(desc, 0).candidates if one.refusal is None and one.sku.variant == variant)
    x = bp.empty((m, pitch), bp.ElementKind.F16, registry.device(0))
    activation = bp.TensorRef(x.pointer, (m, IC), bp.ElementKind.F16, strides=(pitch, 1), device=0, owner=x)
    args = bp.Int4AwqGemmArgs(
        activation=activation,
        weight_packed=bp.empty(desc.weight_shape, bp.ElementKind.I32, registry.device(0)),
        scales=None,
        zeros=None,
        output=bp.empty((m, OC), bp.ElementKind.F16, registry.device(0)),
    )
    return registry.plan(sku, desc, 0), args


@pytest.mark.stub(capability="9.0")
@pytest.mark.parametrize("pitch", [IC, IC + 8])
def test_a_map_has_the_tensor_as_the_kernel_sees_it(stub: Any, pitch: int) -> None:
    plan, args = made(pitch=pitch)
    plan.run(None, bp.Workspace.NONE, args)
    (launch,) = stub.calls("cuLaunchKernel")
    depth = 8  # blocks of 128 input channels in a chunk
    expected = [args.activation.pointer, 64, M, IC // 64, 2 * pitch, 128, 64, M, 2 * depth]
    assert words(launch) == expected + [0] * 7
    (encoded,) = stub.calls("cuTensorMapEncodeTiled")
    assert (encoded["type"], encoded["rank"], encoded["swizzle"]) == (6, 3, 3)  # FLOAT16, SWIZZLE_128B
    assert launch["parameters"][COUNTS] == M.to_bytes(4, "little").hex()


@pytest.mark.stub(capability="9.0")
def test_a_map_is_encoded_once_for_an_address_and_its_strides(stub: Any) -> None:
    plan, args = made()
    for _ in range(3):
        plan.run(None, bp.Workspace.NONE, args)
    plan.bind(args)()
    assert len(stub.calls("cuTensorMapEncodeTiled")) == 1
    other, wider = made()[1], made(pitch=IC + 64)[1]
    for one in (other, wider, other, args):
        plan.run(None, bp.Workspace.NONE, one)
    assert len(stub.calls("cuTensorMapEncodeTiled")) == 3
    found = [words(call)[0] for call in stub.calls("cuLaunchKernel")]
    assert found[-4:] == [one.activation.pointer for one in (other, wider, other, args)]


@pytest.mark.stub(capability="9.0")
def test_a_bound_call_encodes_nothing(stub: Any) -> None:
    plan, args = made()
    call = plan.bind(args)
    with stub.recording() as calls:
        call()
    assert "cuTensorMapEncodeTiled" not in {one["call"] for one in calls}


@pytest.mark.stub(capability="9.0")
def test_the_stride_of_a_single_row_may_be_anything(stub: Any) -> None:
    plan, args = made(m=1, pitch=IC + 1)
    plan.run(None, bp.Workspace.NONE, args)
    (launch,) = stub.calls("cuLaunchKernel")
    assert words(launch)[4] % 16 == 0


@pytest.mark.stub(capability="9.0")
def test_a_map_that_the_driver_refuses_is_an_error(stub: Any) -> None:
    plan, args = made()
    stub.fail("cuTensorMapEncodeTiled", 1)
    with pytest.raises(DriverError, match="cuTensorMapEncodeTiled"):
        plan.run(None, bp.Workspace.NONE, args)
    assert not stub.calls("cuLaunchKernel")


@pytest.mark.stub(capability="9.0")
def test_only_what_is_bound_to_overlap_has_the_attribute(stub: Any) -> None:
    plan, args = made()
    plain, overlapping = plan.bind(args), plan.bind(args, overlap=True)
    with stub.recording() as calls:
        plain()
        overlapping()
        overlapping()
    first, second = (call for call in calls if call["call"] == "cuLaunchKernelEx")
    assert first["attributes"] == second["attributes"] == 1
    assert (first["attribute"], first["value"]) == (6, 1)  # PROGRAMMATIC_STREAM_SERIALIZATION
    one, other, _ = (call for call in calls if call["call"] == "cuLaunchKernel")  # which the stub's other calls
    same = ("entry", "grid", "block", "shared", "stream")
    assert [one[name] for name in same] == [other[name] for name in same]
    both = list(zip(one["parameters"], other["parameters"], strict=True))
    values = [int.from_bytes(bytes.fromhex(text), "little") for text in both.pop(COUNTS + 4)]
    assert values == [0, 1], "whether it overlaps"
    assert all(plain == overlapping for plain, overlapping in both)


@pytest.mark.stub(capability="9.0")
def test_an_overlapping_call_goes_to_the_stream_that_is_current(stub: Any) -> None:
    plan, args = made()
    handle = stub.stream(0)
    streams = {0: handle}
    stub.kit.install_torch(streams)
    x = stub.kit.TorchTensor(args.activation.pointer, (M, IC), (IC, 1))
    call = plan.bind(bp.Int4AwqGemmArgs(x, args.weight_packed, None, None, args.output), overlap=True)
    for streams[0] in (handle, 0, handle):
        call()
    assert [one["stream"] for one in stub.calls("cuLaunchKernel")] == [handle, 0, handle]


def test_a_kernel_that_cannot_overlap_takes_no_notice(stub: Any) -> None:
    plan, args = stub.plan(), stub.args()
    plan.bind(args, bp.allocate_workspace(plan), overlap=True)()
    assert len(stub.calls("cuLaunchKernel")) == 2
    assert not stub.calls("cuLaunchKernelEx")


@pytest.mark.stub(capability="9.0")
def test_an_overlapping_launch_that_fails_is_an_error(stub: Any) -> None:
    plan, args = made()
    call = plan.bind(args, overlap=True)
    stub.fail("cuLaunchKernelEx", 719)
    with pytest.raises(DriverError, match="cuLaunchKernelEx"):
        call()


@pytest.mark.stub(capability="9.0")
def test_the_second_launch_of_a_plan_begins_early_also_where_the_first_may_not(stub: Any) -> None:
    plan, args = made(variant="wide_tiled", m=40)
    assert len(plan.launches) == 1
    desc = evolve(plan.descriptor, ic=2048)
    plan = bp.default_registry().plan(plan.sku, desc, 0)
    assert len(plan.launches) == 2, "ic is cut, and the parts are added by a second launch"
    device = bp.default_registry().device(0)
    args = bp.Int4AwqGemmArgs(
        bp.empty((40, 2048), bp.ElementKind.F16, device), bp.empty(desc.weight_shape, bp.ElementKind.I32, device),
        None, None, args.output,
    )  # fmt: skip
    workspace = bp.allocate_workspace(plan)
    for overlap in (False, True):
        call = plan.bind(args, workspace, overlap=overlap)
        with stub.recording() as calls:
            call()
        assert _early(calls) == [overlap, True]
        entries = [one["entry"] for one in calls if one["call"] == "cuLaunchKernel"]
        assert entries == [one.entry for one in plan.launches]


def _early(calls: list[dict[str, Any]]) -> list[bool]:
    """Whether each launch may begin before the one ahead of it has ended; the stub's two calls of them end in one."""
    names = [one["call"] for one in calls if one["call"].startswith("cuLaunchKernel")]
    return [
        number > 0 and names[number - 1] == "cuLaunchKernelEx"
        for number, name in enumerate(names) if name == "cuLaunchKernel"
    ]  # fmt: skip


@pytest.mark.stub(capability="9.0")
def test_a_second_launch_that_begins_early_leaves_each_sm_its_share(stub: Any) -> None:
    plan, _ = made(variant="wide_tiled", m=40)
    registry = bp.default_registry()
    for ic, oc, m, early in ((2048, 2048, 40, True), (14336, 4096, 64, True), (14336, 4096, 256, False)):
        desc = evolve(plan.descriptor, m=m, ic=ic, oc=oc)
        _, finish = registry.plan(plan.sku, desc, 0).launches
        share = -(-finish.grid[0] // registry.device(0).sm_count)
        assert finish.overlaps == early == (share <= 4)
        assert (finish.shared_bytes + 1024) * (share + 1) > 228 * 1024 or not early
        assert (finish.shared_bytes + 1024) * share <= 228 * 1024


@pytest.mark.stub(capability="9.0")
def test_elsewhere_an_overlapping_call_is_launched_as_a_bound_one(stub: Any) -> None:
    plan, args = made()
    _, other = made()
    launch = plan.relocatable(args, overlap=True)
    assert launch is not None
    addresses = [0 if view is None else view.pointer for view in (getattr(other, one.name) for one in plan.op.specs)]
    with stub.recording() as calls:
        plan.bind(other, overlap=True)()
        launch(None, 0, addresses)
        launch(None, 0, addresses)
    assert [one["call"] for one in calls].count("cuLaunchKernelEx") == 3
    bound, *moved = (one["parameters"] for one in calls if one["call"] == "cuLaunchKernel")
    assert moved == [bound] * 2
    stub.fail("cuLaunchKernelEx", 719)
    with pytest.raises(DriverError, match="cuLaunchKernelEx"):
        launch(None, 0, addresses)


@pytest.mark.stub(capability="9.0")
def test_elsewhere_too_the_second_launch_begins_early(stub: Any) -> None:
    plan, args = made(variant="wide_tiled", m=40)
    plan = bp.default_registry().plan(plan.sku, evolve(plan.descriptor, ic=2048), 0)
    device = bp.default_registry().device(0)
    args = bp.Int4AwqGemmArgs(
        bp.empty((40, 2048), bp.ElementKind.F16, device),
        bp.empty(plan.descriptor.weight_shape, bp.ElementKind.I32, device), None, None, args.output,
    )  # fmt: skip
    workspace = bp.allocate_workspace(plan)
    addresses = [0 if view is None else view.pointer for view in (getattr(args, one.name) for one in plan.op.specs)]
    for overlap in (False, True):
        launch = plan.relocatable(args, workspace, overlap=overlap)
        assert launch is not None
        with stub.recording() as calls:
            launch(None, workspace.pointer, addresses)
        assert _early(calls) == [overlap, True]
    entries = [one["entry"] for one in calls if one["call"] == "cuLaunchKernel"]
    assert entries == [one.entry for one in plan.launches]
