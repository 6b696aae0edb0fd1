"""Reads a DLPack capsule (DLPack 1.x ABI, dlpack.h) with ctypes, so that no framework and no driver is imported."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

__all__ = ["DLPackTensor", "read_dlpack"]


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):  # DLManagedTensorVersioned
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


class DLPackTensor(NamedTuple):
    """What a capsule says. `capsule` must live as long as the memory is used; its destructor releases it."""

    pointer: int
    device_type: int
    device_id: int
    code: int
    bits: int
    lanes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    read_only: bool
    capsule: Any


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = (ctypes.py_object, ctypes.c_char_p)

_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def read_dlpack(source: Any, stream: int) -> DLPackTensor:
    """Ask `source` for a capsule ordered before work on `stream` (a CUDA handle) and read it.

    The capsule is never marked as consumed: its own destructor frees what the producer holds.
    """
    device_type = int(source.__dlpack_device__()[0])
    # DLPack numbers CUDA's legacy default stream 1; 0 is not allowed.
    keywords: dict[str, Any] = {"stream": stream or 1} if device_type in _CUDA else {}
    try:
        capsule = source.__dlpack__(max_version=(1, 0), **keywords)
    except TypeError:  # producers older than DLPack 1.0 take no max_version
        capsule = source.__dlpack__(**keywords)
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        if managed.major != 1:  # what follows the version may lie elsewhere
            raise BufferError(f"DLPack {managed.major}.{managed.minor} was exported, not 1.x")
        tensor, read_only = managed.tensor, bool(managed.flags & 1)
    else:
        tensor, read_only = _DLTensor.from_address(_get_pointer(capsule, b"dltensor")), False
    rank = tensor.ndim
    return DLPackTensor(
        (tensor.data or 0) + tensor.byte_offset,
        tensor.device_type,
        tensor.device_id,
        tensor.code,
        tensor.bits,
        tensor.lanes,
        tuple(tensor.shape[:rank]),
        tuple(tensor.strides[:rank]) if tensor.strides else None,
        read_only,
        capsule,
    )
