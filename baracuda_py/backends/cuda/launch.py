"""Packs kernel parameters and launches.

Every parameter takes a slot of 8 bytes (a by-value struct, or a tensor map, several in a row), so that one
struct.pack_into fills them all; `void**` arrays over the slots are made once. cuLaunchKernel copies the parameters
before it returns, so one buffer a thread serves every plan.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

from attrs import frozen

from baracuda_py.backends.cuda.context import Context
from baracuda_py.backends.cuda.driver import Driver
from baracuda_py.backends.cuda.streams import current_stream, stream_handle
from baracuda_py.backends.cuda.tensor_maps import SLOTS, encoder
from baracuda_py.vocab.code import WORKSPACE, Launch, Parameter, Pointer, Stride, TensorMap, WhenOverlapping
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorRef, addresses_of, stream_owner

__all__ = ["CudaExecutable"]

_MASK = (1 << 64) - 1
_CONFIGURATIONS = 64  # of one launch, by stream and thread


@frozen(eq=False)
class _Layout:
    """The first slot of each parameter, and the number of slots. `_layout` makes one of a kind; identity compares."""

    offsets: tuple[int, ...]
    slots: int


_layout = cache(_Layout)


class _Frame:
    """Memory for one launch's parameters: the slots, and the pointers to each parameter's first slot."""

    __slots__ = ("address", "buffer", "pointers")

    def __init__(self, layout: _Layout) -> None:
        self.buffer = (ctypes.c_uint64 * max(layout.slots, 1))()
        base = ctypes.addressof(self.buffer)
        addresses = [base + 8 * offset for offset in layout.offsets]
        self.pointers = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
        self.address = ctypes.addressof(self.pointers)


class _Frames(threading.local):
    """This thread's frames, by layout; layouts are as few as kernel signatures."""

    def __init__(self) -> None:
        self.by_layout: dict[_Layout, _Frame] = {}


_frames = _Frames()


_Part = int | Pointer | Stride | TensorMap


def _source(part: _Part, number: int, names: tuple[str, ...]) -> str:
    """Python source of a part's slots, over `p` (addresses), `o` (operands), `w` (workspace address) and `t` (encoders,
    by the number of the part)."""
    if isinstance(part, Pointer):
        if part.argument == WORKSPACE:
            return f"w + {part.offset}" if part.offset else "w"
        address = f"p[{names.index(part.argument)}]"
        return f"({address} and {address} + {part.offset})" if part.offset else address
    if isinstance(part, Stride):
        operand = f"o[{names.index(part.argument)}]"
        return f"({operand}.strides[{part.axis}] & {_MASK} if {operand} is not None else 0)"
    if isinstance(part, TensorMap):
        index = names.index(part.argument)
        return f"*t[{number}](p[{index}], o[{index}])"
    return str(part & _MASK)


@lru_cache(maxsize=1024)  # sizes are compiled in, so that every descriptor has its own: not to be kept for ever
def _packer(driver: Driver, parts: tuple[_Part, ...], names: tuple[str, ...]) -> Callable[..., None]:
    """A function `(buffer, addresses, operands, workspace)` that fills the slots, compiled."""
    values = ", ".join(_source(part, number, names) for number, part in enumerate(parts))
    pack = struct.Struct(f"<{sum(map(_slots, parts))}Q").pack_into
    maps = {number: encoder(driver, part) for number, part in enumerate(parts) if isinstance(part, TensorMap)}
    scope = {"pack": pack, "t": maps}
    function: Callable[..., None] = eval(f"lambda b, p, o, w: pack(b, 0, {values})", scope)
    return function


def _slots(part: _Part) -> int:
    return SLOTS if isinstance(part, TensorMap) else 1


def _flatten(
    parameters: tuple[Parameter, ...], overlapping: bool
) -> tuple[tuple[_Part, ...], tuple[int, ...], int]:
    """All parts in order, the first slot of each parameter, and the number of slots."""
    parts: list[_Part] = []
    offsets, slots = [], 0
    for parameter in parameters:
        offsets.append(slots)
        if isinstance(parameter, WhenOverlapping):
            parameter = parameter.overlapping if overlapping else parameter.plain
        own = parameter if isinstance(parameter, tuple) else (parameter,)
        parts += own
        slots += sum(map(_slots, own))
    return tuple(parts), tuple(offsets), slots


_Start = Callable[[int, int], None]  # launches on a stream, given the address of the pointers to the parameters


class _Step:
    """One launch, resolved: how it is launched, and how its slots are filled."""

    __slots__ = ("layout", "pack", "start")

    def __init__(
        self, driver: Driver, function: Any, launch: Launch, names: tuple[str, ...], *, overlapping: bool
    ) -> None:
        parts, offsets, slots = _flatten(launch.parameters, overlapping)
        geometry = (*launch.grid, *launch.block, launch.shared_bytes)
        self.layout = _layout(offsets, slots)
        self.pack = _packer(driver, parts, names)
        self.start: _Start = (_overlapping_start if overlapping else _plain_start)(driver, function, geometry)


class CudaExecutable:
    """The launches of one plan on one device."""

    def __init__(
        self,
        driver: Driver,
        context: Context,
        names: tuple[str, ...],
        launches: tuple[Launch, ...],
        functions: list[Any],
    ) -> None:
        self.launches = launches
        self.device: Device = context.device
        self._driver = driver
        self._names = names
        self._functions = functions
        self._context = context
        self._steps = self._resolved(overlapping=False)
        assert context.device.ordinal is not None
        self._ordinal: int = context.device.ordinal
        self._overlapping: list[_Step] | None = None

    def stream_handle(self, stream: Any, owner: Any) -> int:
        """See `Executable`."""
        return current_stream(owner, self._ordinal) if stream is None else stream_handle(stream)

    def run(self, stream: int, workspace: int, operands: Sequence[TensorRef | None]) -> None:
        """Launch everything, in order, on `stream`."""
        self.run_at(stream, workspace, addresses_of(operands), operands)

    def run_at(
        self, stream: int, workspace: int, addresses: Sequence[int], operands: Sequence[TensorRef | None]
    ) -> None:
        """See `RelocatableExecutable`."""
        self._run_steps(self._steps, stream, workspace, addresses, operands)

    def run_at_overlapping(
        self, stream: int, workspace: int, addresses: Sequence[int], operands: Sequence[TensorRef | None]
    ) -> None:
        """See `OverlappingExecutable`."""
        self._run_steps(self._overlapping_steps(), stream, workspace, addresses, operands)

    def _run_steps(
        self, steps: Sequence[_Step], stream: int, workspace: int, addresses: Sequence[int],
        operands: Sequence[TensorRef | None],
    ) -> None:  # fmt: skip
        context = self._context
        pushed = context.enter()
        try:
            for step in steps:
                frame = _frame_of(step)
                step.pack(frame.buffer, addresses, operands, workspace)
                step.start(stream, frame.address)
        finally:
            if pushed:
                context.leave()

    def bind(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        """A callable with frames of its own, filled once."""
        held = workspace, tuple(operands)
        return _bound(self, stream, [self._bound_step(step, *held) for step in self._steps], held)

    def bind_overlapping(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        """See `OverlappingExecutable`."""
        held = workspace, tuple(operands)
        return _bound(self, stream, [self._bound_step(step, *held) for step in self._overlapping_steps()], held)

    def _overlapping_steps(self) -> list[_Step]:
        if self._overlapping is None:
            self._overlapping = self._resolved(overlapping=True)
        return self._overlapping

    def _resolved(self, *, overlapping: bool) -> list[_Step]:
        """The steps; `overlapping` says whether the first may overlap what is ahead of it."""
        launches = zip(self._functions, self.launches, strict=True)
        return [
            _Step(
                self._driver, function, launch, self._names,
                overlapping=launch.overlaps and (number > 0 or overlapping),
            )
            for number, (function, launch) in enumerate(launches)
        ]  # fmt: skip

    def _bound_step(
        self, step: _Step, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> tuple[_Start, _Frame]:
        """How the step is launched, and a frame, filled."""
        frame = _Frame(step.layout)
        step.pack(frame.buffer, addresses_of(operands), operands, workspace.pointer)
        return step.start, frame


def _plain_start(driver: Driver, function: Any, geometry: tuple[int, ...]) -> _Start:
    """One that begins when what is ahead of it has ended."""
    launch = driver.api.cuLaunchKernel

    def start(stream: int, address: int) -> None:
        if status := launch(function, *geometry, stream, address, 0)[0]:
            raise driver.error(status, "cuLaunchKernel")

    return start


def _overlapping_start(driver: Driver, function: Any, geometry: tuple[int, ...]) -> _Start:
    """One that may begin before what is ahead of it has ended."""
    api, configurations = driver.api, dict[tuple[int, int], Any]()  # by stream and thread

    def start(stream: int, address: int) -> None:
        key = stream, threading.get_ident()
        configuration = configurations.get(key)
        if configuration is None:
            if len(configurations) >= _CONFIGURATIONS:
                configurations.clear()
            configuration = configurations[key] = made_for(stream)
        if status := api.cuLaunchKernelEx(configuration, function, address, 0)[0]:
            raise driver.error(status, "cuLaunchKernelEx")

    def made_for(stream: int) -> Any:
        made = api.CUlaunchConfig()
        made.gridDimX, made.gridDimY, made.gridDimZ, made.blockDimX, made.blockDimY, made.blockDimZ = geometry[:6]
        made.sharedMemBytes, made.hStream = geometry[6], api.CUstream(stream)
        attribute = api.CUlaunchAttribute()
        attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        made.attrs, made.numAttrs = [attribute], 1
        return made

    return start


def _frame_of(step: _Step) -> _Frame:
    """This thread's frame for the step."""
    frame = _frames.by_layout.get(step.layout)
    if frame is None:
        frame = _frames.by_layout[step.layout] = _Frame(step.layout)
    return frame


def _bound(
    executable: CudaExecutable, stream: int | None, calls: Sequence[tuple[_Start, _Frame]], held: Any
) -> Callable[[], None]:
    context, ordinal = executable._context, executable._ordinal
    owner = stream_owner(held[1])

    def bound(_held: Any = held) -> None:
        handle = current_stream(owner, ordinal) if stream is None else stream
        pushed = context.enter()
        try:
            for start, frame in calls:
                start(handle, frame.address)
        finally:
            if pushed:
                context.leave()

    return bound
