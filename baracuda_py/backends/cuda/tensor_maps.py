"""Tensor maps: encoded by the driver when an address is met for the first time, and kept.

The driver writes a map to a multiple of 64 bytes only, which the objects of cuda.bindings are not (NVIDIA/cuda-python
pull request 1692): so its function is called through ctypes, on memory of our own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from baracuda_py.backends.cuda.driver import Driver
from baracuda_py.vocab.code import Stride, TensorMap
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tensors import TensorRef

__all__ = ["SLOTS", "encoder"]

SLOTS = 16  # of 8 bytes, in a CUtensorMap
_ALIGNMENT = 64
_CACHE_LIMIT = 256  # maps a parameter keeps; a clear, not an eviction, because engines reuse a few buffers
_NAME = "cuTensorMapEncodeTiled"
_SINCE = 12000  # the CUDA version whose form of the function is called
_Extents, _Box = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint32)
_Encode = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, _Extents, _Extents, _Box, _Box,
    ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int,
)  # fmt: skip


@lru_cache(maxsize=8)
def _function(driver: Driver) -> Any:
    address, _found = driver.call("cuGetProcAddress", _NAME.encode(), _SINCE, 0)
    return _Encode(address)


def encoder(driver: Driver, spec: TensorMap) -> Callable[[int, TensorRef], tuple[int, ...]]:
    """A function of an address and an operand that gives the slots of their map; only its strides are read."""
    api, rank = driver.api, len(spec.extents)
    kind = {
        ElementKind.F16: api.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        ElementKind.BF16: api.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        ElementKind.FP8_E4M3: api.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8,
        ElementKind.U8: api.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT8,
    }[spec.element]
    item = bits_of(spec.element) // 8
    swizzle = {
        0: api.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_NONE,
        32: api.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_32B,
        64: api.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
        128: api.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
    }[spec.box[0] * item if spec.swizzled else 0]
    extents = (ctypes.c_uint64 * rank)(*spec.extents)
    box, steps = (ctypes.c_uint32 * rank)(*spec.box), (ctypes.c_uint32 * rank)(*[1] * rank)
    options = tuple(
        int(option)
        for option in (
            api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            api.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    # An axis of extent 1 may have any stride, which the driver would refuse: it gets one that it takes.
    wanted = tuple(
        spec.extents[0] if extent == 1 else stride
        for extent, stride in zip(spec.extents[1:], spec.strides, strict=True)
    )
    kept: dict[tuple[int, ...], tuple[int, ...]] = {}

    def encode(address: int, operand: TensorRef) -> tuple[int, ...]:
        given = operand.strides
        strides = [given[stride.axis] if isinstance(stride, Stride) else stride for stride in wanted]
        key = (address, *strides)
        slots = kept.get(key)
        if slots is None:
            memory = ctypes.create_string_buffer(8 * SLOTS + _ALIGNMENT)
            target = -(-ctypes.addressof(memory) // _ALIGNMENT) * _ALIGNMENT
            pitches = (ctypes.c_uint64 * len(strides))(*(item * stride for stride in strides))
            status = _function(driver)(target, int(kind), rank, address, extents, pitches, box, steps, *options)
            if status:
                raise driver.error(api.CUresult(status), _NAME)
            slots = tuple((ctypes.c_uint64 * SLOTS).from_address(target))
            if len(kept) >= _CACHE_LIMIT:
                kept.clear()
            kept[key] = slots
        return slots

    return encode
