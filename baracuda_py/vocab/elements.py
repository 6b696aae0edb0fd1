"""Element kinds: width in bits, and their names in NumPy, DLPack and torch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from baracuda_py.vocab.enums import ElementKind

if TYPE_CHECKING:
    import numpy as np

__all__ = ["bits_of", "element_of_dlpack", "element_of_dtype", "element_of_torch", "numpy_dtype"]

_E = ElementKind
# kind -> (bits, NumPy or ml_dtypes name, DLPack (code, bits), torch name). Sub-byte kinds have no dtype of their own:
# they live packed inside integer words.
_TABLE: dict[ElementKind, tuple[int, str | None, tuple[int, int] | None, str | None]] = {
    _E.F16: (16, "float16", (2, 16), "float16"),
    _E.BF16: (16, "bfloat16", (4, 16), "bfloat16"),
    _E.F32: (32, "float32", (2, 32), "float32"),
    _E.F32_STRICT: (32, "float32", None, None),
    _E.F64: (64, "float64", (2, 64), "float64"),
    _E.S8: (8, "int8", (0, 8), "int8"),
    _E.U8: (8, "uint8", (1, 8), "uint8"),
    _E.I32: (32, "int32", (0, 32), "int32"),
    _E.I64: (64, "int64", (0, 64), "int64"),
    _E.BOOL: (8, "bool", (6, 8), "bool"),
    _E.FP8_E4M3: (8, "float8_e4m3fn", (10, 8), "float8_e4m3fn"),
    _E.FP8_E5M2: (8, "float8_e5m2", (12, 8), "float8_e5m2"),
    _E.S4: (4, None, None, None),
    _E.U4: (4, None, None, None),
    _E.BIN: (1, None, None, None),
    _E.COMPLEX32: (64, "complex64", (5, 64), "complex64"),  # baracuda counts the bits of one part
    _E.COMPLEX64: (128, "complex128", (5, 128), "complex128"),
    _E.U32: (32, "uint32", (1, 32), "uint32"),
}


def bits_of(element: ElementKind) -> int:
    """Width of one element in bits."""
    return _TABLE[element][0]


@cache
def numpy_dtype(element: ElementKind) -> np.dtype[Any]:
    """The NumPy dtype (ml_dtypes for bf16 and fp8); TypeError for the sub-byte kinds."""
    import numpy as np

    name = _TABLE[element][1]
    if name is None:
        raise TypeError(f"{element.name} is a sub-byte kind: it has no NumPy dtype, it is packed in integer words")
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


_BY_NAME = {row[1]: kind for kind, row in _TABLE.items() if row[1] and kind is not _E.F32_STRICT}
_BY_DLPACK = {row[2]: kind for kind, row in _TABLE.items() if row[2]}
_BY_TORCH = {f"torch.{row[3]}": kind for kind, row in _TABLE.items() if row[3]}


def element_of_dtype(dtype: Any) -> ElementKind | None:
    """Kind of a NumPy (or ml_dtypes) dtype; None when no kind stands for it or its byte order is foreign."""
    if getattr(dtype, "byteorder", "=") == ">":
        return None
    return _BY_NAME.get(dtype.name)


def element_of_dlpack(code: int, bits: int) -> ElementKind | None:
    """Kind of a DLPack (type code, bits) pair with one lane."""
    return _BY_DLPACK.get((code, bits))


def element_of_torch(dtype: Any) -> ElementKind | None:
    """Kind of a torch dtype, by its name, so that torch need not be imported."""
    return _BY_TORCH.get(str(dtype))
