"""What tests against the stub of libcuda are given: a small op, doubles of framework arrays, and the stub's log."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from cuda.bindings import driver as cuda

import baracuda_py
from baracuda_py.plan import Plan, new_registry
from baracuda_py.registry import Kernel, Op, Registry
from baracuda_py.vocab.code import WORKSPACE, HostCode, Launch, Pointer, PtxCode, Stride, f32
from baracuda_py.vocab.descriptors import arguments, descriptor, int_field, tensor
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
    SoftmaxKind,
)
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

WORKSPACE_BYTES = 1024
WORKSPACE_OFFSET = 256
SCALE = 0.5
SHIFT = -3

# The first launch takes every sort of parameter, the second one none; `large` has 8 KiB of static shared memory.
PTX = """
.version {version}
.target {target}
.address_size 64
.visible .entry tiny(
    .param .u64 x, .param .u64 bias, .param .u64 x_stride, .param .u64 bias_stride, .param .u32 shift,
    .param .f32 scale, .param .align 8 .b8 sizes[24], .param .u64 scratch, .param .u64 y
) {{ ret; }}
.visible .entry large() {{
    .shared .align 16 .b8 tile[8192];
    ret;
}}
{tail}
"""
MODULES = {
    "good": PTX.format(version="9.0", target="sm_80", tail=""),
    "corrupt": PTX.format(version="9.0", target="sm_80", tail="CORRUPT"),
    "newer": PTX.format(version="99.0", target="sm_80", tail=""),
    "other_arch": PTX.format(version="9.0", target="sm_100a", tail=""),
    "no_ptx": "<!DOCTYPE html>",
}
MODULE_NAMES = (*MODULES, "absent", "no_entry")  # absent: not to be read; no_entry: good, asked for another entry


@descriptor
class TinyDescriptor:
    """y = scale * x + bias, over (rows, columns).

    Attributes:
        rows, columns: extents; no rows, no launch.
        biased: 1 if there is a bias.
        shared: dynamic shared memory of the second launch, in bytes.
        module: index into MODULE_NAMES.
    """

    rows: int = int_field()
    columns: int = int_field()
    biased: int = int_field(default=0)
    shared: int = int_field(default=0)
    module: int = int_field(default=0)


@arguments
class TinyArgs:
    """Tensors of one call."""

    x: Any = tensor(ElementKind.F16, ("rows", "columns"), strides="any")
    y: Any = tensor(ElementKind.F16, ("rows", "columns"), strides="rows", role="out")
    bias: Any = tensor(ElementKind.F16, ("columns",), needed="biased")


class Tiny(NamedTuple):
    """One launch of `tiny` as the log has it, decoded."""

    x: int
    bias: int
    x_stride: int
    bias_stride: int
    shift: int
    scale: float
    sizes: tuple[int, int, int]
    scratch: int
    y: int


def decode(call: dict[str, Any]) -> Tiny:
    """The parameters of a recorded launch of `tiny`."""
    raw = [bytes.fromhex(text) for text in call["parameters"]]
    formats = ("u8", "u8", "i8", "i8", "i4", "f4", "3i8", "u8", "u8")
    assert [len(value) for value in raw] == [8, 8, 8, 8, 4, 4, 24, 8, 8]
    values = []
    for value, text in zip(raw, formats, strict=True):
        array = np.frombuffer(value, f"<{text[-2:]}")
        values.append(tuple(array.tolist()) if text[0] == "3" else array[0].item())
    return Tiny(*values)


def _launches(desc: TinyDescriptor, device: Device) -> tuple[Launch, ...]:
    module = MODULE_NAMES[desc.module]
    first = Launch(
        "nowhere" if module == "no_entry" else "tiny",
        (device.sm_count, 2, 3),
        (32, 4, 1),
        (
            Pointer("x"), Pointer("bias"), Stride("x", 0), Stride("bias", 0), SHIFT, f32(SCALE),
            (desc.rows, Stride("y", 0), -1), Pointer(WORKSPACE, WORKSPACE_OFFSET), Pointer("y", 2),
        ),
        module=module,
    )  # fmt: skip
    return first, Launch("large", (1, 1, 1), (64, 1, 1), (), desc.shared, module)


reads: list[str] = []


def _read(module: str, arch: str) -> bytes:
    reads.append(module)
    if module == "absent":
        raise FileNotFoundError(f"{module}.ptx")
    return MODULES["good" if module == "no_entry" else module].encode()


def _host(desc: TinyDescriptor, x: Any, y: Any, bias: Any) -> None:
    y[...] = SCALE * x + (0 if bias is None else bias)


def _reference(desc: TinyDescriptor, x: Any, bias: Any) -> Any:
    return SCALE * x.astype(np.float64) + (0 if bias is None else bias)


def tiny_op() -> Op:
    """The op, with a CUDA kernel and a host kernel."""
    guarantee = PrecisionGuarantee(MathPrecision.F16, ElementKind.F32, ElementKind.F32, True, True, True)

    def sku(arch: ArchSku, backend: BackendKind) -> KernelSku:
        return KernelSku(
            OpCategory.SOFTMAX, SoftmaxKind.SOFTMAX, ElementKind.F16, ElementKind.F16, LayoutSku.RRR,
            EpilogueKind.IDENTITY, arch, backend, guarantee, "tiny",
        )  # fmt: skip

    def workspace(desc: TinyDescriptor, device: Device) -> int:
        return WORKSPACE_BYTES

    return Op(
        name="tiny",
        category=OpCategory.SOFTMAX,
        kinds=(SoftmaxKind.SOFTMAX,),
        descriptor=TinyDescriptor,
        args=TinyArgs,
        rules=(),
        reference=_reference,
        kernels=(
            Kernel(
                sku(ArchSku.SM80, BackendKind.BESPOKE), PtxCode("tiny", ArchSku.SM80, _launches, _read),
                cost=lambda desc, device: 1.0, workspace=workspace,
            ),
            Kernel(sku(ArchSku.HOST, BackendKind.HOST), HostCode(_host), cost=lambda desc, device: 9.0),
        ),
        examples=(TinyDescriptor(4, 8), TinyDescriptor(4, 8, biased=1)),
    )  # fmt: skip


# ---- doubles of other packages' objects -----------------------------------------------------------------------------


class TorchDevice(NamedTuple):
    """As torch.device."""

    type: str
    index: int | None


class _TorchDtype:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"torch.{self._name}"


torch_float16, torch_bfloat16, torch_int32 = (_TorchDtype(name) for name in ("float16", "bfloat16", "int32"))


class TorchTensor:
    """As a torch.Tensor in CUDA memory."""

    __module__ = "torch"
    layout = "torch.strided"
    is_nested = False

    def __init__(
        self, pointer: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: Any = torch_float16, index: int = 0
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = TorchDevice("cuda", index)
        self._pointer = pointer
        self._stride = stride

    def data_ptr(self) -> int:
        """Address of the first element."""
        return self._pointer

    def stride(self) -> tuple[int, ...]:
        """Strides in elements."""
        return self._stride

    def is_contiguous(self) -> bool:
        """Whether rows follow one another."""
        packed = 1
        for extent, stride in zip(reversed(self.shape), reversed(self._stride), strict=True):
            if extent > 1 and stride != packed:
                return False
            packed *= extent
        return True

    def is_neg(self) -> bool:
        """Whether a negation is pending."""
        return False

    is_conj = is_neg


def fake_torch(streams: dict[int, int]) -> ModuleType:
    """A module that answers for the current streams, by ordinal; put it into sys.modules as torch is."""
    module = ModuleType("torch")
    module._C = SimpleNamespace(_cuda_getCurrentRawStream=lambda ordinal: streams.get(ordinal, 0))  # type: ignore[attr-defined]
    return module


class InterfaceArray:
    """An array with `__cuda_array_interface__`, a property of its class as in CuPy and Numba."""

    def __init__(self, pointer: int, shape: tuple[int, ...], typestr: str = "<f2", **more: Any) -> None:
        self._interface = {"shape": shape, "typestr": typestr, "data": (pointer, False), "version": 3, **more}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._interface


class _Tensor(ctypes.Structure):  # DLTensor
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


class _Versioned(ctypes.Structure):  # DLManagedTensorVersioned, DLPack 1.0
    _fields_ = (
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor),
    )  # fmt: skip


class DLPackArray:
    """An array with nothing but `__dlpack__`; remembers the streams it was asked to be ready for.

    `flags` makes it speak DLPack 1.0 (1: read-only); None: the version before, which knows no `max_version`.
    """

    def __init__(
        self, pointer: int, shape: tuple[int, ...], *, code: int = 2, bits: int = 16, device: tuple[int, int] = (2, 0),
        strides: tuple[int, ...] | None = None, offset: int = 0, flags: int | None = None,
    ) -> None:  # fmt: skip
        extents = (ctypes.c_int64 * len(shape))(*shape)
        steps = (ctypes.c_int64 * len(shape))(*strides) if strides else None
        self._kept = (extents, steps)
        self._tensor = _Tensor(
            pointer, *device, len(shape), code, bits, 1, ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64)),
            ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64)) if steps else None, offset,
        )  # fmt: skip
        self._versioned = None if flags is None else _Versioned(1, 0, None, None, flags, self._tensor)
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._tensor.device_type, self._tensor.device_id

    def __dlpack__(self, *, stream: Any = "not given", **keywords: Any) -> Any:
        if keywords and self._versioned is None:
            raise TypeError("unexpected keyword")
        self.streams.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        if self._versioned is not None:
            assert keywords == {"max_version": (1, 0)}
            return new(ctypes.addressof(self._versioned), b"dltensor_versioned", None)
        return new(ctypes.addressof(self._tensor), b"dltensor", None)


class JaxArray(DLPackArray):
    """JAX's arrays have `__cuda_array_interface__` too, which raises for bf16."""

    __module__ = "jaxlib._jax"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("bfloat16 has no __cuda_array_interface__")


class ProtocolStream:
    """A stream with `__cuda_stream__` as a method, as the protocol has it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


class AttributeStream:
    """A stream whose `__cuda_stream__` is an attribute, as early adopters had it."""

    def __init__(self, handle: int) -> None:
        self.__cuda_stream__ = (0, handle)


class TorchStream:
    """As torch.cuda.Stream before it had `__cuda_stream__`."""

    def __init__(self, handle: int, index: int = 0) -> None:
        self.cuda_stream = handle
        self.device_index = index


def check(answer: tuple[Any, ...]) -> Any:
    """The result of a driver call that a test makes itself."""
    assert int(answer[0]) == 0, answer
    return answer[1] if len(answer) == 2 else answer[1:]


class Stub:
    """The stub of this process.

    Attributes:
        kit: this module.
        registry: holds the tiny op, and the backends of `baracuda_py.default_registry()`.
        backend: the CUDA one.
    """

    def __init__(self, library: ctypes.CDLL, log: Path) -> None:
        self.kit = sys.modules[__name__]
        self._library = library
        self._log = log
        self.registry: Registry[Plan] = new_registry()
        for name in ("host", "cuda"):
            self.registry.register_backend(baracuda_py.default_registry().backend(name))
        self.registry.register(tiny_op())
        self.backend: Any = self.registry.backend("cuda")

    def calls(self, name: str = "") -> list[dict[str, Any]]:
        """What was called so far, in order; with `name`, only that function."""
        if not self._log.exists():
            return []
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [line for line in lines if name in ("", line["call"])]

    @contextmanager
    def recording(self) -> Iterator[list[dict[str, Any]]]:
        """A block; the list holds its calls afterwards."""
        before = len(self.calls())
        found: list[dict[str, Any]] = []
        yield found
        found += self.calls()[before:]

    def fail(self, call: str, result: int, nth: int = 1) -> None:
        """Let the n-th call of a function from now on fail."""
        self._library.stub_fail(f"{call}:{result}:{nth}".encode())

    def heal(self) -> None:
        """Let nothing fail any more."""
        self._library.stub_fail(None)

    def stream(self, ordinal: int) -> int:
        """A stream in a device's primary context, made without the driver."""
        make = self._library.stub_stream
        make.restype = ctypes.c_void_p
        return int(make(ordinal))

    def plan(self, device: Any = None, **fields: int) -> Plan:
        """A plan of the tiny op for (4, 8)."""
        return self.registry.select(TinyDescriptor(**{"rows": 4, "columns": 8, **fields}), device)

    def args(self, ordinal: int = 0, *, bias: bool = False) -> TinyArgs:
        """DeviceArrays for that plan."""
        device = self.registry.device(ordinal)
        made = [baracuda_py.empty((4, 8), ElementKind.F16, device) for _ in range(2)]
        return TinyArgs(*made, baracuda_py.empty((8,), ElementKind.F16, device) if bias else None)

    def primary(self, ordinal: int) -> Any:
        """The primary context of a device, as another package retains it."""
        return check(cuda.cuDevicePrimaryCtxRetain(ordinal))


def install_torch(streams: dict[int, int]) -> None:
    """Let the double of torch be the torch of this process."""
    sys.modules["torch"] = fake_torch(streams)
