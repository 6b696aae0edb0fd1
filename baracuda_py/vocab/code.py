"""How a kernel runs, as data: PTX launches, a NumPy function, a library call, or steps of these; and who executes it.

A kernel holds one `PtxCode`, `HostCode`, `LibraryCode` or `SequenceCode`. A `Backend` turns it, for one descriptor and
device, into an `Executable`. Neither knows the registry; a plan connects them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from attrs import evolve, field, frozen

from baracuda_py.errors import BaracudaError
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import ArchSku, ElementKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorRef, row_major_strides

__all__ = [
    "WORKSPACE",
    "Backend",
    "Code",
    "Executable",
    "HostCode",
    "Launch",
    "LibraryCode",
    "OverlappingExecutable",
    "Pointer",
    "PtxCode",
    "RelocatableExecutable",
    "Scratch",
    "SequenceCode",
    "Step",
    "Stride",
    "TensorMap",
    "WhenOverlapping",
    "f32",
    "launches_of",
]

WORKSPACE = "workspace"
_PART_ALIGNMENT = 256  # bytes from the start of a workspace, to multiples of which its parts lie


@frozen
class Pointer:
    """Kernel parameter: address of an argument (0 when it is absent), or of the workspace, plus `offset` bytes."""

    argument: str
    offset: int = 0


@frozen
class Stride:
    """Kernel parameter: an argument's stride along `axis`, in elements."""

    argument: str
    axis: int


@frozen
class TensorMap:
    """Kernel parameter: a CUtensorMap (128 bytes), by which a kernel copies boxes of an argument to shared memory.

    What lies beyond the extents reads as 0.

    Attributes:
        argument: whose address is a multiple of 16.
        element: F16, BF16, FP8_E4M3 or U8.
        extents: of the tensor as the map sees it, innermost axis first.
        strides: of all axes but the innermost, in elements; multiples of 16 bytes.
        box: extents of what one copy takes; at most 256, the innermost a multiple of 16 bytes.
        swizzled: whether the 16 bytes of a box that would lie at an address a lie at a ^ (a >> 3 & (r - 16)), r being
            the bytes of the innermost extent: 32, 64 or 128.

    Source: CUDA driver API, cuTensorMapEncodeTiled.
    """

    argument: str
    element: ElementKind
    extents: tuple[int, ...]
    strides: tuple[int | Stride, ...]
    box: tuple[int, ...]
    swizzled: bool = True


@frozen
class WhenOverlapping:
    """Kernel parameter: a number that is another one in a launch that may overlap the one before it."""

    plain: int
    overlapping: int


def f32(value: float) -> int:
    """A float32 kernel parameter, as the bits of its slot."""
    return int.from_bytes(struct.pack("<f", value), "little")


Parameter = int | Pointer | Stride | TensorMap | WhenOverlapping | tuple[int | Stride, ...]


@frozen
class Launch:
    """One kernel launch.

    Attributes:
        entry: symbol in the PTX.
        grid, block: extents.
        parameters: in the kernel's order; a tuple is a by-value struct of 64-bit fields.
        shared_bytes: dynamic shared memory.
        module: the PTX module that holds the entry; empty: the one of the `PtxCode`.
        arch: what that module is compiled for; None: what the `PtxCode` says.
        overlaps: whether it may begin before the launch ahead of it has ended, because it waits for that itself before
            it reads anything but the op's constant arguments, and before it writes (programmatic dependent launch).
            A plan's first launch does so where its caller asks for that (`Plan.bind`), a later one always.
    """

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: tuple[Parameter, ...]
    shared_bytes: int = 0
    module: str = ""
    arch: ArchSku | None = None
    overlaps: bool = False


@frozen
class PtxCode:
    """PTX of `baracuda_py.sys` (or of a plug-in, through `load`).

    Attributes:
        module: module name, e.g. `"quantize.awq_gemm.splitk"`.
        arch: what it is compiled for.
        launches: the launches for a descriptor on a device; none when there is nothing to do. Pure.
        load: returns the PTX bytes of (module, arch); None: `baracuda_py.sys`.
    """

    module: str
    arch: ArchSku
    launches: Callable[[Any, Device], tuple[Launch, ...]]
    load: Callable[[str, str], bytes] | None = None
    executor: str = field(default="cuda", init=False)


@frozen
class HostCode:
    """A function of NumPy arrays.

    Attributes:
        function: called with the descriptor and the arguments by keyword; writes its outputs in place.
        prepare: called like `function` when a run is bound; returns what the bound run calls. It may read the
            arguments whose role is "constant" then, and must read the others at each call. None: `function` is bound.
        requires: name of a module that must be importable, e.g. `"onnxruntime"`; empty: none.
        install: what to run when it is missing.
    """

    function: Callable[..., None]
    prepare: Callable[..., Callable[[], None]] | None = None
    requires: str = ""
    install: str = ""
    executor: str = field(default="host", init=False)


@frozen
class LibraryCode:
    """A call into a library that a backend wraps.

    Attributes:
        executor: name of the backend.
        problem: what that backend needs to know, as plain values, for a descriptor.
    """

    executor: str
    problem: Callable[[Any], Mapping[str, Any]]


@frozen
class Scratch:
    """A tensor in the workspace, row-major and packed, that a step of a sequence leaves to a later one."""

    name: str
    shape: tuple[int, ...]
    element: ElementKind

    @property
    def nbytes(self) -> int:
        """Bytes that it takes up, up to the next part of the workspace."""
        return _aligned(math.prod(self.shape) * bits_of(self.element) // 8)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _PART_ALIGNMENT) * _PART_ALIGNMENT


def _no_workspace(_descriptor: Any, _device: Device) -> int:
    return 0


@frozen(eq=False)
class Step:
    """A kernel of this or another op, as one step of a sequence.

    Attributes:
        code: the kernel's.
        descriptor: the kernel's descriptor for one of the whole op.
        operands: for each argument that the kernel is given, which argument of the whole op or which scratch tensor
            it is.
        workspace: the kernel's: bytes for its descriptor on a device.
    """

    code: PtxCode | LibraryCode
    descriptor: Callable[[Any], Any]
    operands: Mapping[str, str]
    workspace: Callable[[Any, Device], int] = _no_workspace


@frozen(eq=False)
class SequenceCode:
    """Kernels that run one after the other on one stream and hand on tensors in the workspace.

    The workspace holds the scratch tensors, in their order, and behind them what any one step needs for itself; all
    parts start at multiples of 256 bytes.

    Attributes:
        steps: what runs.
        scratch: the tensors that are handed on, for a descriptor.
    """

    steps: tuple[Step, ...]
    scratch: Callable[[Any], tuple[Scratch, ...]]
    executor: str = field(default="sequence", init=False)

    def placed(self, descriptor: Any) -> tuple[Mapping[str, tuple[int, Scratch]], int]:
        """Each scratch tensor with its offset in the workspace, by name, and the offset of what steps need."""
        scratch = self.scratch(descriptor)
        offsets = tuple(accumulate((one.nbytes for one in scratch), initial=0))
        return {one.name: (offset, one) for offset, one in zip(offsets, scratch, strict=False)}, offsets[-1]

    def workspace(self, descriptor: Any, device: Device) -> int:
        """Bytes of the workspace: what a kernel with this code states."""
        _, offset = self.placed(descriptor)
        return offset + max(step.workspace(step.descriptor(descriptor), device) for step in self.steps)

    def launches(self, descriptor: Any, device: Device) -> tuple[Launch, ...]:
        """The launches of the steps that are PTX, with pointers to the whole op's arguments and workspace."""
        placed, offset = self.placed(descriptor)
        return tuple(
            evolve(
                launch,
                parameters=tuple(_renamed(p, step.operands, placed, offset) for p in launch.parameters),
                module=launch.module or step.code.module,
                arch=launch.arch or step.code.arch,
            )
            for step in self.steps
            if isinstance(step.code, PtxCode)
            for launch in step.code.launches(step.descriptor(descriptor), device)
        )


def _renamed(
    parameter: Any, operands: Mapping[str, str], placed: Mapping[str, tuple[int, Scratch]], offset: int
) -> Any:
    """A parameter of a step, as one of the whole."""
    if isinstance(parameter, tuple):
        return tuple(_renamed(part, operands, placed, offset) for part in parameter)
    if isinstance(parameter, int | WhenOverlapping):
        return parameter
    if parameter.argument == WORKSPACE:
        return Pointer(WORKSPACE, offset + parameter.offset)
    name = operands[parameter.argument]
    if name not in placed:
        if isinstance(parameter, TensorMap):
            strides = tuple(_renamed(stride, operands, placed, offset) for stride in parameter.strides)
            return evolve(parameter, argument=name, strides=strides)
        return evolve(parameter, argument=name)
    start, scratch = placed[name]
    if isinstance(parameter, Pointer):
        return Pointer(WORKSPACE, start + parameter.offset)
    assert isinstance(parameter, Stride), "no kernel takes a scratch tensor by a map"
    return row_major_strides(scratch.shape)[parameter.axis]


Code = PtxCode | HostCode | LibraryCode | SequenceCode


def launches_of(code: Code, descriptor: Any, device: Device) -> tuple[Launch, ...]:
    """The CUDA launches of ours that a run makes; those of a library are not known."""
    return code.launches(descriptor, device) if isinstance(code, PtxCode | SequenceCode) else ()


class Executable(Protocol):
    """A kernel made ready for one descriptor and device."""

    launches: tuple[Launch, ...]
    device: Device

    def stream_handle(self, stream: Any, owner: Any) -> int:
        """The raw stream of an int or `__cuda_stream__` object; None: the current one of `owner`'s framework."""

    def run(self, stream: int, workspace: int, operands: Sequence[TensorRef | None]) -> None:
        """Enqueue on `stream`. Never allocates device memory, never synchronises."""

    def bind(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        """A callable that enqueues just this run, packed beforehand; stream None: the current one at each call."""


@runtime_checkable
class RelocatableExecutable(Executable, Protocol):
    """One that needs no view of an operand that differs from an earlier one in its address alone."""

    def run_at(
        self, stream: int, workspace: int, addresses: Sequence[int], operands: Sequence[TensorRef | None]
    ) -> None:
        """As `run` with `operands`, of which only `addresses` (0 for absent ones) says where they lie."""


@runtime_checkable
class OverlappingExecutable(Executable, Protocol):
    """One whose first launch may begin before what is ahead of it on the stream has ended, where `Launch.overlaps`."""

    def bind_overlapping(
        self, stream: int | None, workspace: Workspace, operands: Sequence[TensorRef | None]
    ) -> Callable[[], None]:
        """As `bind`."""

    def run_at_overlapping(
        self, stream: int, workspace: int, addresses: Sequence[int], operands: Sequence[TensorRef | None]
    ) -> None:
        """As `RelocatableExecutable.run_at`."""


@runtime_checkable
class Backend(Protocol):
    """Runs kernels whose code names it as `executor`."""

    name: str

    def missing(self, code: Any, device: Device) -> BaracudaError | None:
        """Why this machine cannot run `code` on `device`, with what to install; None when it can. Cheap."""

    def prepare(
        self, code: Any, descriptor: Any, device: Device, names: tuple[str, ...], where: str
    ) -> Executable:
        """Make `code` ready; `names` is the order of the operands."""
