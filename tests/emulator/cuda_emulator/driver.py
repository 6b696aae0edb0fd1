"""The functions of `cuda.bindings.driver` that `baracuda_py.backends.cuda` calls, over emulated kernels.

They check what the driver checks: contexts, sizes of blocks and grids, shared memory that was not asked for, pointers
of copies. A launch runs at once, unless its stream is being captured.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import define, field, frozen
from cuda.bindings import driver as bindings

from baracuda_py.sys import PtxModule

from .library import Fault, Kernel, Library, Ranges, Schedule
from .memory import Memory

__all__ = ["LOOPING", "EmulatedDriver", "Gpu", "LoadedModule"]

_SUCCESS = bindings.CUresult.CUDA_SUCCESS
_INVALID_VALUE = bindings.CUresult.CUDA_ERROR_INVALID_VALUE
_DEFAULT_SHARED = 48 * 1024
_GRID_LIMITS = ((1 << 31) - 1, 65_535, 65_535)
_BLOCK_LIMITS = (1024, 1024, 64)
_MAX_THREADS = 1024
# Beginnings of the names of kernels whose blocks loop over what the grid leaves, so that any grid is right.
LOOPING = ("softmax_", "awq_gemm_reduce_", "rms_norm_", "quantize_per_token_")


@frozen
class Gpu:
    """The GPU that is pretended: capability, multiprocessors, shared memory that a block may ask for in bytes."""

    capability: tuple[int, int]
    sm_count: int
    shared_limit: int
    name: str


@frozen(eq=False)
class LoadedModule:
    """An image that was loaded: the kernels, and the manifest of the module that they stand for."""

    library: Library
    module: PtxModule

    def function(self, name: str) -> _Function | None:
        """The function of one kernel; None if there is none."""
        kernel = self.library.kernels.get(name)
        if kernel is None:
            return None
        entry = self.module.entry(name)
        static = max(resources.shared_nbytes for resources in entry.resources.values())
        return _Function(kernel, entry.max_threads or _MAX_THREADS, static, _DEFAULT_SHARED - static, entry.cluster)


@define(eq=False)
class _Function:
    kernel: Kernel
    max_threads: int
    static_shared: int
    dynamic_limit: int
    cluster: int


@frozen(eq=False)
class _Recorded:
    """A launch in a graph, with a copy of its parameters: what they were when it was captured."""

    function: _Function
    geometry: tuple[int, ...]
    values: tuple[bytes, ...]
    unfinished: Ranges

    def replay(self, driver: EmulatedDriver) -> Any:
        buffers = [ctypes.create_string_buffer(value, len(value)) for value in self.values]
        pointers = (ctypes.c_void_p * max(len(buffers), 1))(*map(ctypes.addressof, buffers))
        return driver.run(self.function, self.geometry, ctypes.addressof(pointers), self.unfinished)


@frozen(eq=False)
class _Foreign:
    """Work of a library in a graph."""

    work: Callable[[], None]

    def replay(self, driver: EmulatedDriver) -> Any:
        self.work()
        return (_SUCCESS,)


@define(eq=False)
class EmulatedDriver:
    """Stands in for the module `cuda.bindings.driver`; its enumerations are the module's own.

    Attributes:
        gpu: what is pretended.
        load: finds the module that an image, PTX without the closing zero, stands for.
        schedule: in which order launches run.
        launches: kernels launched so far, by name, in order.
        looping_grid: the most blocks that a kernel of `LOOPING` gets; None: as many as are launched.
        unfinished: address and bytes of memory that the launch before one that may overlap it still uses.
        fault: of the last launch that failed.
    """

    gpu: Gpu
    load: Callable[[bytes], LoadedModule]
    schedule: Schedule = field(factory=Schedule)
    memory: Memory = field(factory=Memory)
    launches: list[str] = field(factory=list)
    looping_grid: int | None = None
    unfinished: Ranges = ()
    fault: Fault | None = None
    _contexts: list[int] = field(factory=list)
    _handles: Any = field(factory=lambda: itertools.count(0x1000))
    _streams: dict[int, list[Any] | None] = field(factory=dict)
    _graphs: dict[int, list[Any]] = field(factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("CU"):
            return getattr(bindings, name)
        raise AttributeError(f"the emulated driver has no {name}")

    # -- devices and contexts: one GPU, whose primary context has the handle 1 -----------------------------------

    def cuDeviceGetCount(self) -> Any:
        return _SUCCESS, 1

    def cuDeviceGet(self, ordinal: int) -> Any:
        return (_SUCCESS, 0) if ordinal == 0 else (bindings.CUresult.CUDA_ERROR_INVALID_DEVICE, None)

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> Any:
        values = {
            "COMPUTE_CAPABILITY_MAJOR": self.gpu.capability[0],
            "COMPUTE_CAPABILITY_MINOR": self.gpu.capability[1],
            "MULTIPROCESSOR_COUNT": self.gpu.sm_count,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": self.gpu.shared_limit,
        }
        return _SUCCESS, values[attribute.name.removeprefix("CU_DEVICE_ATTRIBUTE_")]

    def cuDeviceGetName(self, length: int, device: int) -> Any:
        return _SUCCESS, self.gpu.name.encode().ljust(length, b"\0")

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return _SUCCESS, 1

    def cuCtxGetCurrent(self) -> Any:
        return _SUCCESS, self._contexts[-1] if self._contexts else 0

    def cuCtxGetDevice(self) -> Any:
        return (_SUCCESS, 0) if self._contexts else (bindings.CUresult.CUDA_ERROR_INVALID_CONTEXT, None)

    def cuCtxPushCurrent(self, context: int) -> Any:
        self._contexts.append(context)
        return (_SUCCESS,)

    def cuCtxPopCurrent(self) -> Any:
        return _SUCCESS, self._contexts.pop()

    @property
    def is_current(self) -> bool:
        """Whether the context is current."""
        return bool(self._contexts)

    def cuCtxSynchronize(self) -> Any:
        return (_SUCCESS,)

    # -- memory --------------------------------------------------------------------------------------------------

    def cuMemAlloc(self, nbytes: int) -> Any:
        return _SUCCESS, self.memory.allocate(nbytes).pointer

    def cuMemFree(self, pointer: int) -> Any:
        self.memory.free(pointer)
        return (_SUCCESS,)

    def cuMemcpyHtoD(self, target: int, source: int, nbytes: int) -> Any:
        return self._copy(target, source, nbytes, target)

    def cuMemcpyDtoH(self, target: int, source: int, nbytes: int) -> Any:
        return self._copy(target, source, nbytes, source)

    def _copy(self, target: int, source: int, nbytes: int, on_device: int) -> Any:
        if not self.memory.holds(on_device, nbytes):
            return (_INVALID_VALUE,)
        ctypes.memmove(target, source, nbytes)
        return (_SUCCESS,)

    # -- modules -------------------------------------------------------------------------------------------------

    def cuLibraryLoadData(self, image: bytes, *_options: Any) -> Any:
        return _SUCCESS, self.load(image.removesuffix(b"\0"))

    def cuLibraryGetKernel(self, module: LoadedModule, name: bytes) -> Any:
        function = module.function(name.decode())
        return (bindings.CUresult.CUDA_ERROR_NOT_FOUND, None) if function is None else (_SUCCESS, function)

    def cuKernelGetFunction(self, function: _Function) -> Any:
        return _SUCCESS, function

    def cuFuncGetAttribute(self, attribute: Any, function: _Function) -> Any:
        assert attribute is bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
        return _SUCCESS, function.static_shared

    def cuFuncSetAttribute(self, function: _Function, attribute: Any, value: int) -> Any:
        assert attribute is bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if value + function.static_shared > self.gpu.shared_limit:
            return (_INVALID_VALUE,)
        function.dynamic_limit = value
        return (_SUCCESS,)

    # -- functions by name ---------------------------------------------------------------------------------------

    def cuGetProcAddress(self, symbol: bytes, version: int, flags: int) -> Any:
        if symbol != b"cuTensorMapEncodeTiled":
            return bindings.CUresult.CUDA_ERROR_NOT_FOUND, None, None
        return _SUCCESS, ctypes.cast(_ENCODE, ctypes.c_void_p).value, None

    # -- launches, streams and graphs ----------------------------------------------------------------------------

    def cuLaunchKernel(self, function: _Function, *arguments: int, unfinished: Ranges = ()) -> Any:
        *geometry, stream, parameters, _extra = arguments
        if not self._contexts:
            return (bindings.CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        if not _fits(geometry, function):
            return (_INVALID_VALUE,)
        recording = self._streams.get(stream)
        if recording is not None:
            recording.append(_Recorded(function, tuple(geometry), _values(function.kernel, parameters), unfinished))
            return (_SUCCESS,)
        return self.run(function, geometry, parameters, unfinished)

    def cuLaunchKernelEx(self, configuration: Any, function: _Function, parameters: int, _extra: int) -> Any:
        (attribute,) = configuration.attrs
        serialization = bindings.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        assert attribute.id == serialization
        assert attribute.value.programmaticStreamSerializationAllowed == 1
        names = ("gridDimX", "gridDimY", "gridDimZ", "blockDimX", "blockDimY", "blockDimZ", "sharedMemBytes")
        geometry = [getattr(configuration, name) for name in names]
        stream = int(configuration.hStream)
        return self.cuLaunchKernel(function, *geometry, stream, parameters, 0, unfinished=self.unfinished)

    def captures(self, stream: int, work: Callable[[], None]) -> bool:
        """Whether the stream is being captured; `work`, a library's, is then part of the graph."""
        recording = self._streams.get(stream)
        if recording is not None:
            recording.append(_Foreign(work))
        return recording is not None

    def run(self, function: _Function, geometry: Sequence[int], parameters: int, unfinished: Ranges = ()) -> Any:
        """Run a launch to its end; a fault becomes the CUresult that a GPU would give, and stays in `fault`."""
        name = function.kernel.name
        self.launches.append(name)
        if self.looping_grid is not None and name.startswith(LOOPING):
            geometry = (min(geometry[0], self.looping_grid), *geometry[1:])
        try:
            function.kernel.run(geometry, parameters, self.schedule, unfinished, function.cluster)
        except Fault as fault:
            self.fault = fault
            if not fault.address:
                return (bindings.CUresult.CUDA_ERROR_LAUNCH_FAILED,)
            self.fault = Fault(f"{fault}, {self.memory.describe(fault.address)}", fault.address)
            return (bindings.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
        return (_SUCCESS,)

    def cuStreamCreate(self, flags: Any) -> Any:
        handle = next(self._handles)
        self._streams[handle] = None
        return _SUCCESS, handle

    def cuStreamDestroy(self, stream: int) -> Any:
        del self._streams[stream]
        return (_SUCCESS,)

    def cuStreamSynchronize(self, stream: int) -> Any:
        return (_SUCCESS,)

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> Any:
        return _SUCCESS, mode

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        self._streams[stream] = []
        return (_SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        handle = next(self._handles)
        recorded = self._streams[stream]
        assert recorded is not None
        self._graphs[handle], self._streams[stream] = recorded, None
        return _SUCCESS, handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> Any:
        handle = next(self._handles)
        self._graphs[handle] = self._graphs[graph]
        return _SUCCESS, handle

    def cuGraphLaunch(self, executable: int, stream: int) -> Any:
        for recorded in self._graphs[executable]:
            (status,) = recorded.replay(self)
            if status:
                return (status,)
        return (_SUCCESS,)

    def cuGraphDestroy(self, graph: int) -> Any:
        del self._graphs[graph]
        return (_SUCCESS,)

    cuGraphExecDestroy = cuGraphDestroy


def _fits(geometry: Sequence[int], function: _Function) -> bool:
    grid, block, shared = geometry[:3], geometry[3:6], geometry[6]
    return (
        all(0 < extent <= limit for extent, limit in zip(grid, _GRID_LIMITS, strict=True))
        and all(0 < extent <= limit for extent, limit in zip(block, _BLOCK_LIMITS, strict=True))
        and int(np.prod(block)) <= min(function.max_threads, _MAX_THREADS)
        and grid[0] % function.cluster == 0
        and 0 <= shared <= function.dynamic_limit
    )


def _encode_tensor_map(
    target: int, kind: int, rank: int, address: int, extents: Any, strides: Any, box: Any, steps: Any, *options: int
) -> int:
    """What `copy_box` of the shim reads: address, extents, strides in bytes, box, bytes of an item, what is swizzled.

    Of three axes.
    """
    item = 1 if kind == int(bindings.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8) else 2
    plain = bindings.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE
    modes = bindings.CUtensorMapSwizzle
    swizzles = {
        int(modes.CU_TENSOR_MAP_SWIZZLE_NONE): 16,
        int(modes.CU_TENSOR_MAP_SWIZZLE_32B): 32,
        int(modes.CU_TENSOR_MAP_SWIZZLE_64B): 64,
        int(modes.CU_TENSOR_MAP_SWIZZLE_128B): 128,
    }
    swizzled = swizzles.get(options[1], 0)
    fits = (
        target % 64 == 0
        and address % 16 == 0
        and rank == 3
        and options[0] == int(plain)
        and swizzled > 0
        and steps[:3] == [1, 1, 1]
        and all(0 < extent <= 1 << 32 for extent in extents[:3])
        and all(0 < stride < 1 << 40 and stride % 16 == 0 for stride in strides[:2])
        and all(0 < extent <= 256 for extent in box[:3])
        and box[0] * item % 16 == 0
        and (swizzled == 16 or box[0] * item <= swizzled)
    )
    if fits:
        numbers = [address, *extents[:3], *strides[:2], *box[:3], item, swizzled - 16]
        (ctypes.c_uint64 * 16).from_address(target)[:] = numbers + [0] * (16 - len(numbers))
    return int(_SUCCESS if fits else _INVALID_VALUE)


_WORDS, _HALF_WORDS = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint32)
_ENCODE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, _WORDS, _WORDS, _HALF_WORDS,
    _HALF_WORDS, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int,
)(_encode_tensor_map)  # fmt: skip


def _values(kernel: Kernel, parameters: int) -> tuple[bytes, ...]:
    pointers = (ctypes.c_void_p * len(kernel.parameter_nbytes)).from_address(parameters)
    return tuple(
        ctypes.string_at(pointer or 0, nbytes)
        for pointer, nbytes in zip(pointers, kernel.parameter_nbytes, strict=True)
    )
