"""How a kernel runs, as data: launches of PTX, a NumPy function, or a library call; and who executes that.

A kernel holds one `PtxCode`, `HostCode` or `LibraryCode`. A `Backend` turns it, for one descriptor and device, into an
`Executable`. Neither knows the registry; a plan connects them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attrs import field, frozen

from baracuda_py.errors import BaracudaError
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import ArchSku, ElementKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorRef

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
    "Stride",
    "TensorMap",
    "WhenOverlapping",
    "f32",
]

WORKSPACE = "workspace"


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

    Rows of a box are 128 bytes, swizzled over as many; what lies beyond the extents reads as 0.

    Attributes:
        argument: of 2-byte elements, whose address is a multiple of 16.
        element: F16 or BF16.
        extents: of the tensor as the map sees it, innermost axis first.
        strides: of all axes but the innermost, in elements; multiples of 8.
        box: extents of what one copy takes; at most 256, the innermost 64.

    Source: CUDA driver API, cuTensorMapEncodeTiled.
    """

    argument: str
    element: ElementKind
    extents: tuple[int, ...]
    strides: tuple[int | Stride, ...]
    box: tuple[int, ...]


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
        overlaps: whether it may begin before the launch ahead of it has ended, because it waits for that itself before
            it reads anything but the op's constant arguments, and before it writes (programmatic dependent launch).
    """

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: tuple[Parameter, ...]
    shared_bytes: int = 0
    module: str = ""
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


Code = PtxCode | HostCode | LibraryCode


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
