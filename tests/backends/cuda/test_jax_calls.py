"""The handler for XLA's CUDA platform, called with frames as XLA makes them: where, on which stream, with which memory.

XLA itself is not there: this process has no GPU for it.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import baracuda_py as bp
from baracuda_py.interop.jax import frames
from baracuda_py.interop.jax.handlers import Problem, on_cuda, on_the_host

F16_OF_XLA, F32_OF_XLA, U8_OF_XLA = 10, 11, 6
LAUNCHING = {"cuCtxGetCurrent", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuLaunchKernel"}
Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Xla:
    """Makes frames, and remembers the errors that handlers answer with.

    Attributes:
        errors: (code, message) of each.
        refuses: whether it knows no stream.
    """

    def __init__(self, stream: int, ordinal: int) -> None:
        self.errors: list[tuple[int, str]] = []
        self.destroyed = 0
        self.refuses = False

        def error_create(address: int) -> int:
            asked = frames._ErrorCreate.from_address(address)
            self.errors.append((asked.code, asked.message.decode()))
            return 0xE0 + len(self.errors)

        def error_destroy(_address: int) -> None:
            self.destroyed += 1

        def stream_get(address: int) -> int | None:
            frames._StreamGet.from_address(address).stream = stream
            return 0xBAD if self.refuses else None

        def ordinal_get(address: int) -> None:
            frames._OrdinalGet.from_address(address).ordinal = ordinal

        self._kept: list[Any] = [Handler(one) for one in (error_create, error_destroy, stream_get, ordinal_get)]
        created, destroyed, got, numbered = (ctypes.cast(one, ctypes.c_void_p).value for one in self._kept)
        self._api = frames._Api(
            error_create=created, error_destroy=destroyed, stream_get=got, device_ordinal_get=numbered
        )

    def keep(self, value: Any) -> Any:
        self._kept.append(value)
        return value

    def _values(self, buffers: list[tuple[int, tuple[int, ...], int]]) -> Any:
        made = [
            self.keep(frames._Buffer(dtype=dtype, data=at, rank=len(shape), dims=(ctypes.c_int64 * len(shape))(*shape)))
            for at, shape, dtype in buffers
        ]
        pointers = (ctypes.POINTER(frames._Buffer) * len(made))(*map(ctypes.pointer, made))
        return frames._Values(count=len(made), items=pointers)

    def frame(self, text: str, arguments: list[Any], results: list[Any]) -> int:
        """The address of a frame with one attribute."""
        data = self.keep(ctypes.create_string_buffer(text.encode(), len(text)))
        span = self.keep(frames._Span(ctypes.addressof(data), len(text)))
        attributes = frames._Attributes(
            count=1, types=(ctypes.c_int * 1)(4), items=(ctypes.POINTER(frames._Span) * 1)(ctypes.pointer(span))
        )
        made = self.keep(frames._CallFrame(
            size=ctypes.sizeof(frames._CallFrame), api=ctypes.pointer(self._api), stage=3,
            arguments=self._values(arguments), results=self._values(results), attributes=attributes,
        ))  # fmt: skip
        return ctypes.addressof(made)


def handler(stub: Any) -> Any:
    return frames.handler(on_cuda(stub.registry), frames.Traits.COMMAND_BUFFER_COMPATIBLE, (0, 3), lambda: None)


def call_of(stub: Any, xla: Xla, *, bias: bool = False, short: int = 0, shape: tuple[int, int] = (4, 8)) -> Any:
    """A frame of the tiny op for (4, 8), and the addresses in it: x, bias, y, workspace."""
    plan = stub.plan(biased=int(bias))
    at = [bp.empty((4096,), bp.ElementKind.U8).pointer + 256 * number for number in range(4)]
    inputs = [(at[0], shape, F16_OF_XLA), *([(at[1], (8,), F16_OF_XLA)] if bias else [])]
    lent = (at[3], (plan.workspace_size - short,), U8_OF_XLA)
    text = Problem(stub.registry.op("tiny"), plan.descriptor).text_for(plan)
    return xla.frame(text, inputs, [(at[2], (4, 8), F16_OF_XLA), lent]), at


@pytest.mark.stub(devices=2)
def test_a_call_is_launched_on_xlas_device_and_stream_in_xlas_memory(stub: Any) -> None:
    for ordinal in (0, 1):
        stream = stub.stream(ordinal)
        xla, call = Xla(stream, ordinal), handler(stub)
        for bias in (False, True):
            frame, (x, b, y, lent) = call_of(stub, xla, bias=bias)
            with stub.recording() as calls:
                assert call(frame) is None, xla.errors
            launches = [one for one in calls if one["call"] == "cuLaunchKernel"]
            assert [(one["stream"], one["context"]) for one in launches] == [(stream, ordinal)] * 2
            tiny = stub.kit.decode(launches[0])
            assert (tiny.x, tiny.bias, tiny.y) == (x, b if bias else 0, y + 2)
            assert tiny.scratch == lent + stub.kit.WORKSPACE_OFFSET


def test_a_second_call_allocates_nothing_and_waits_for_nothing(stub: Any) -> None:
    xla, call = Xla(stub.stream(0), 0), handler(stub)
    frame, _ = call_of(stub, xla)
    call(frame)
    with stub.recording() as calls:
        call(frame)
    assert {one["call"] for one in calls} <= LAUNCHING


def test_what_cannot_run_is_an_error_of_xla_with_the_message_and_launches_nothing(stub: Any) -> None:
    xla, call = Xla(stub.stream(0), 0), handler(stub)
    text = Problem(stub.registry.op("tiny"), stub.plan().descriptor).text_for(stub.plan())
    frames_of = [
        (call_of(stub, xla, short=1)[0], 13, "workspace must hold at least 1024 bytes (got 1023 bytes)"),
        (call_of(stub, xla, shape=(8, 4))[0], 3, "tiny: x: must have shape (4, 8)"),
        (xla.frame('{"op": "gone", "descriptor": {}}', [], []), 12, "an op must be registered (got 'gone')"),
        (xla.frame("no problem", [], []), 13, "JSONDecodeError"),
        (xla.frame(text, [(64, (4, 8), 99)], []), 12, "a dtype must stand for an element (got 99)"),
        (xla.frame(text, [], []), 13, "ValueError"),
    ]
    for frame, code, said in frames_of:
        assert call(frame)
        assert xla.errors[-1][0] == code
        assert said in xla.errors[-1][1]
    frame, _ = call_of(stub, xla)
    xla.refuses = True
    assert call(frame)
    assert "stream" in xla.errors[-1][1]
    assert xla.destroyed == 1
    assert not stub.calls("cuLaunchKernel")


def test_an_argument_that_is_a_result_too_must_be_one_buffer() -> None:
    op = bp.default_registry().op("dense_gemm")
    descriptor = bp.DenseGemmDescriptor(1, 1, 2, element=bp.ElementKind.F32, beta=1)
    a, b, before, after = (np.array(values, np.float32) for values in ([[2, 3]], [[5], [7]], [[1]], [[0]]))
    xla = Xla(0, 0)
    call = frames.handler(on_the_host(bp.default_registry()), frames.Traits.NONE, (0, 3), lambda: None)
    text = Problem(op, descriptor).text_for(bp.select(descriptor, "host"))

    def frame(result: Any) -> int:
        buffers = [(one.ctypes.data, one.shape, F32_OF_XLA) for one in (a, b, before, result)]
        return xla.frame(text, buffers[:3], buffers[3:])

    assert call(frame(after))
    assert "dense_gemm: output: XLA must give the argument and the result one buffer" in xla.errors[-1][1]
    assert after.item() == 0
    assert call(frame(before)) is None
    assert before.item() == 32


def test_a_driver_that_fails_is_an_error_of_xla(stub: Any) -> None:
    xla, call = Xla(stub.stream(0), 0), handler(stub)
    frame, _ = call_of(stub, xla)
    stub.fail("cuLaunchKernel", 719)
    assert call(frame)
    assert "cuLaunchKernel" in xla.errors[-1][1]
    stub.heal()
    assert call(frame) is None


def test_a_pinned_kernel_is_the_one_that_runs(stub: Any) -> None:
    op = stub.registry.op("tiny")
    plan = stub.plan()
    text = Problem(op, plan.descriptor, bp.PlanPreference(require=plan.precision_guarantee)).text_for(plan)
    problem = Problem.read(stub.registry, text.encode())
    assert problem.preference == bp.PlanPreference(sku=plan.sku)
    assert problem.descriptor == plan.descriptor
    host = Problem(op, plan.descriptor, bp.PlanPreference()).text_for(stub.plan("host"))
    xla = Xla(stub.stream(0), 0)
    _, at = call_of(stub, xla)
    buffers = [(at[0], (4, 8), F16_OF_XLA)], [(at[2], (4, 8), F16_OF_XLA)]
    assert handler(stub)(xla.frame(host, *buffers))
    assert "a kernel for host must run on such a device" in xla.errors[-1][1]


def test_xla_is_told_its_own_version_and_the_traits(stub: Any) -> None:
    for major, minor, told in ((0, 7, (0, 7)), (1, 0, (0, 3)), (None, None, (0, 3))):
        asked: list[Any] = []
        registered = partial(asked.append, 1)
        call = frames.handler(lambda frame: None, frames.Traits.COMMAND_BUFFER_COMPATIBLE, (0, 3), registered)
        metadata = frames._Metadata()
        extension = frames._MetadataExtension(frames._Extension(kind=1), ctypes.pointer(metadata))
        frame = frames._CallFrame(extension=ctypes.cast(ctypes.pointer(extension), ctypes.POINTER(frames._Extension)))
        if major is not None:
            api = frames._Api(version=frames._Version(major=major, minor=minor))
            frame.api = ctypes.pointer(api)
        assert call(ctypes.addressof(frame)) is None
        assert (metadata.version.major, metadata.version.minor) == told
        assert metadata.traits == 1
        assert asked == [1]
