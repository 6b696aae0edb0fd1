"""A compiled module: its kernels, and how one is launched."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

__all__ = ["Fault", "Kernel", "Library", "Ranges", "Schedule"]


Ranges = Sequence[tuple[int, int]]


@frozen
class Schedule:
    """The order in which a launch runs what a GPU runs at the same time.

    Attributes:
        seed: from which the order of blocks, of a block's warps and of a warp's lanes is drawn; None: by rising index.
    """

    seed: int | None = None


class Fault(RuntimeError):
    """A kernel did what a GPU would not forgive, or what it would do to no purpose.

    Attributes:
        address: of the access that faulted; 0 for other faults.
    """

    def __init__(self, text: str, address: int = 0) -> None:
        super().__init__(text)
        self.address = address


class _Entry(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.c_int),
        ("parameter_nbytes", ctypes.POINTER(ctypes.c_size_t)),
    )


_Extent = ctypes.c_uint * 3


class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("module", ctypes.c_void_p),
        ("kernel", ctypes.c_longlong),
        ("parameters", ctypes.c_void_p),
        ("grid", _Extent),
        ("block", _Extent),
        ("shared_nbytes", ctypes.c_uint),
        ("in_order", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("unfinished", ctypes.POINTER(_Range)),
        ("unfinished_count", ctypes.c_size_t),
        ("cluster", ctypes.c_int),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        ("block", _Extent),
        ("thread", _Extent),
        ("address", ctypes.c_uint64),
        ("message", ctypes.c_char * 512),
    )


class Library:
    """The kernels of one shared library that `compiler` made, by name."""

    def __init__(self, path: Path, count: int) -> None:
        self._library = ctypes.CDLL(str(path))
        self._launch = self._library.emulator_launch
        entries = (_Entry * count).in_dll(self._library, "emulated_entries")
        self._module = ctypes.addressof(entries)
        self.kernels: dict[str, Kernel] = {}
        for index, entry in enumerate(entries):
            name = entry.name.decode()
            self.kernels[name] = Kernel(self, index, name, tuple(entry.parameter_nbytes[: entry.parameters]))

    def run(
        self, kernel: Kernel, geometry: Sequence[int], parameters: int, schedule: Schedule, unfinished: Ranges,
        cluster: int,
    ) -> None:  # fmt: skip
        """See `Kernel.run`."""
        ranges = (_Range * len(unfinished))(*unfinished)
        grid, block = _Extent(*geometry[:3]), _Extent(*geometry[3:6])
        in_order = schedule.seed is None
        launch = _Launch(
            self._module, kernel.index, parameters, grid, block, geometry[6], in_order, schedule.seed or 0, ranges,
            len(unfinished), cluster,
        )  # fmt: skip
        report = _Report()
        self._launch(ctypes.byref(launch), ctypes.byref(report))
        if report.message:
            where = f"{kernel.name}, block {tuple(report.block)}, thread {tuple(report.thread)}"
            raise Fault(f"{where}: {report.message.decode()}", report.address)


@frozen(eq=False)
class Kernel:
    """One kernel of a library, and the size of each of its parameters in bytes."""

    library: Library
    index: int
    name: str
    parameter_nbytes: tuple[int, ...]

    def run(
        self, geometry: Sequence[int], parameters: int, schedule: Schedule, unfinished: Ranges = (), cluster: int = 1
    ) -> None:
        """Run a launch to its end.

        Args:
            geometry: grid x, y, z, block x, y, z, bytes of dynamic shared memory.
            parameters: address of an array with the address of each parameter.
            schedule: in which order.
            unfinished: address and bytes of memory that the launch before may still use, until it is waited for.
            cluster: blocks that a cluster has along x.

        Raises:
            Fault: the first one; the launch ends there.
        """
        self.library.run(self, geometry, parameters, schedule, unfinished, cluster)
