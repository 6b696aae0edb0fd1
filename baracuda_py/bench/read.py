"""A kernel that only reads: what every kernel that needs these bytes takes at least, launch and ramp included."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
from attrs import field, frozen
from attrs.validators import gt

from baracuda_py.arrays import empty, to_device
from baracuda_py.registry import Registry
from baracuda_py.sys import module
from baracuda_py.tuning.arguments import copies_of
from baracuda_py.tuning.timing import Calls
from baracuda_py.vocab.code import Launch, Pointer, PtxCode
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import ArchSku, ElementKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import TensorRef

__all__ = ["READS", "MemoryRead", "Reader", "read_calls"]

READS = ("streaming", "evict_first")
"""How the kernel loads: past L1, or also as what L2 is to give up first."""

_MODULE, _ARCH = "memory.read", ArchSku.SM80
_DRAWN_NBYTES = 16 << 20  # random bytes; larger buffers repeat them
_SHARED_NBYTES = 1 << 20  # what cores share: to hand over less takes longer than it saves


@frozen
class MemoryRead:
    """Bytes to read from an address that is a multiple of 16; a last piece of less than 16 bytes is left out."""

    nbytes: int = field(validator=gt(0))

    @property
    def pieces(self) -> int:
        """Loads of 16 bytes."""
        return self.nbytes // _constant("kReadPieceBytes")

    def blocks(self, device: Device) -> int:
        """Thread blocks: as many as the GPU holds, or as have something to read."""
        full = device.sm_count * _constant("kReadBlocks")
        return max(1, min(full, -(-self.pieces // _constant("kReadThreads"))))

    def parts(self, device: Device) -> int:
        """Length of `parts`: an xor of each warp."""
        return self.blocks(device) * _constant("kReadThreads") // 32


def _constant(name: str) -> int:
    return module(_MODULE, _ARCH.name.lower()).constant(name)


def _launches(how: str, problem: MemoryRead, device: Device) -> tuple[Launch, ...]:
    parameters = (Pointer("data"), problem.pieces, Pointer("parts"))
    block = (_constant("kReadThreads"), 1, 1)
    return (Launch(f"memory_read_sm80_{how}", (problem.blocks(device), 1, 1), block, parameters),)


@cache
def _code(how: str) -> PtxCode:
    return PtxCode(_MODULE, _ARCH, partial(_launches, how))


def read_calls(
    registry: Registry[Any], device: Device, problem: MemoryRead, buffers: list[TensorRef], stream: int, how: str
) -> tuple[Calls, Any]:
    """A launch a buffer, and where each of them leaves the xor of what every warp read.

    Args:
        registry: whose CUDA backend launches.
        device: a GPU of this machine.
        problem: how much of a buffer is read.
        buffers: memory of the GPU.
        stream: handle.
        how: one of `READS`.

    Returns:
        The calls, and `parts`: (problem.parts(device),), u32, of the call that ran last.
    """
    backend: Any = registry.backend("cuda")
    executable = backend.prepare(_code(how), problem, device, ("data", "parts"), "memory_read")
    parts = empty((problem.parts(device),), ElementKind.U32, device)
    return [executable.bind(stream, Workspace.NONE, (buffer, parts)) for buffer in buffers], parts


@frozen(eq=False)
class Reader:
    """Reads of buffers of one size, enough of them to outsize every cache.

    Attributes:
        registry: whose CUDA backend launches.
        device: the host, or a GPU of this machine.
        rotated_nbytes: of all buffers together.
    """

    registry: Registry[Any]
    device: Device
    rotated_nbytes: int
    _kept: dict[int, list[Any]] = field(factory=dict, init=False, repr=False)

    def calls(self, nbytes: int, stream: int, how: str) -> Calls:
        """A read of each buffer; on the host `how` says nothing."""
        buffers = self._buffers(nbytes)
        if self.device.kind == "host":
            return [_host_read(buffer) for buffer in buffers]
        return read_calls(self.registry, self.device, MemoryRead(nbytes), buffers, stream, how)[0]

    def _buffers(self, nbytes: int) -> list[Any]:
        if nbytes not in self._kept:
            self._kept.clear()
            drawn = np.random.default_rng(0).integers(0, 256, min(nbytes, _DRAWN_NBYTES), np.uint8)
            values = np.resize(drawn, nbytes)
            host = self.device.kind == "host"
            self._kept[nbytes] = [
                values.copy() if host else to_device(values, self.device)
                for _ in range(copies_of(nbytes, self.rotated_nbytes))
            ]
        return self._kept[nbytes]


@cache
def _threads() -> tuple[ThreadPoolExecutor, int]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(count), count


def _host_read(buffer: Any) -> Callable[[], None]:
    """A maximum by all cores: NumPy gives up its lock meanwhile, and computes it faster than memory delivers."""
    pool, count = _threads()
    words = buffer[: buffer.nbytes // 8 * 8].view(np.uint64)
    if count < 2 or buffer.nbytes < _SHARED_NBYTES:

        def read() -> None:
            words.max(initial=0)

        return read
    pieces = np.array_split(words, count)

    def read_together() -> None:
        for _ in pool.map(np.max, pieces):
            pass

    return read_together
