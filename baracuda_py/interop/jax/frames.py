"""XLA's foreign function interface, read with ctypes: what a handler is given, and how it answers.

A handler is a C function `XLA_FFI_Error* (XLA_FFI_CallFrame*)`; the structs are those of xla/ffi/api/c_api.h, ABI
version 0.x, which jaxlib ships. Every struct begins with its size and a chain of extensions; what a later minor version
adds lies behind what is read here.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from baracuda_py.errors import BaracudaError, InvalidProblem, MisalignedOperand, Unsupported
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tensors import TensorMut, TensorRef

__all__ = ["Frame", "Traits", "handler", "header_version"]

_MAJOR = 0  # of the ABI that is declared here
_METADATA = 1  # XLA_FFI_Extension_Metadata
_STRING = 4  # XLA_FFI_AttrType_STRING
_P = ctypes.c_void_p
_Handler = ctypes.CFUNCTYPE(_P, _P)
_function = cache(ctypes.PYFUNCTYPE(_P, _P))  # of XLA's, by address; they only look something up: the GIL stays


class Traits(IntEnum):
    """What a handler says of itself."""

    NONE = 0
    COMMAND_BUFFER_COMPATIBLE = 1  # launches the same work each time, so that XLA may capture it in a CUDA graph


class _Code(IntEnum):  # XLA_FFI_Error_Code
    INVALID_ARGUMENT = 3
    UNIMPLEMENTED = 12
    INTERNAL = 13


# XLA_FFI_DataType
_ELEMENTS = {
    1: ElementKind.BOOL, 2: ElementKind.S8, 4: ElementKind.I32, 5: ElementKind.I64, 6: ElementKind.U8,
    8: ElementKind.U32, 10: ElementKind.F16, 11: ElementKind.F32, 12: ElementKind.F64, 15: ElementKind.COMPLEX32,
    16: ElementKind.BF16, 18: ElementKind.COMPLEX64, 19: ElementKind.FP8_E5M2, 20: ElementKind.FP8_E4M3,
}  # fmt: skip


class _Extension(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("kind", ctypes.c_int), ("next", _P))


class _Version(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("extension", _P), ("major", ctypes.c_int), ("minor", ctypes.c_int))


class _Metadata(ctypes.Structure):
    # Behind the traits, newer versions have the type of a handler's state; it is 0, none, when XLA asks.
    _fields_ = (("size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("base", _Extension), ("metadata", ctypes.POINTER(_Metadata)))


class _Api(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", _P), ("version", _Version), ("internal", _P), ("error_create", _P),
        ("error_get_message", _P), ("error_destroy", _P), ("handler_register", _P), ("stream_get", _P),
        ("type_register", _P), ("execution_context_get", _P), ("state_set", _P), ("state_get", _P),
        ("memory_allocate", _P), ("memory_free", _P), ("pool_schedule", _P), ("pool_num_threads", _P),
        ("future_create", _P), ("future_set_available", _P), ("future_set_error", _P), ("run_id_get", _P),
        ("device_ordinal_get", _P),
    )  # fmt: skip


class _ErrorCreate(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("extension", _P), ("message", ctypes.c_char_p), ("code", ctypes.c_int))


class _StreamGet(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("extension", _P), ("context", _P), ("stream", _P))


class _OrdinalGet(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("extension", _P), ("context", _P), ("ordinal", ctypes.c_int32))


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", _P), ("dtype", ctypes.c_int), ("data", _P), ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )  # fmt: skip


class _Values(ctypes.Structure):  # XLA_FFI_Args, XLA_FFI_Rets
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", _P), ("count", ctypes.c_int64), ("types", _P),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )  # fmt: skip


class _Span(ctypes.Structure):
    _fields_ = (("data", _P), ("size", ctypes.c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", _P), ("count", ctypes.c_int64),
        ("types", ctypes.POINTER(ctypes.c_int)), ("names", ctypes.POINTER(ctypes.POINTER(_Span))),
        ("items", ctypes.POINTER(ctypes.POINTER(_Span))),
    )  # fmt: skip


class _CallFrame(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", ctypes.POINTER(_Extension)), ("api", ctypes.POINTER(_Api)),
        ("context", _P), ("stage", ctypes.c_int), ("arguments", _Values), ("results", _Values),
        ("attributes", _Attributes),
    )  # fmt: skip


class Frame:
    """One call: what XLA gives the handler, valid until the handler returns."""

    __slots__ = ("_api", "_raw")

    def __init__(self, raw: _CallFrame) -> None:
        self._raw = raw
        self._api = raw.api.contents

    def only_attribute(self) -> bytes:
        """The call's one attribute, which is a string."""
        attributes = self._raw.attributes
        if attributes.count != 1 or attributes.types[0] != _STRING:
            raise InvalidProblem("XLA call", "it must have one attribute, a string", rule="attributes")
        span = attributes.items[0].contents
        return ctypes.string_at(span.data, span.size)

    def arguments(self, device: int) -> list[TensorRef]:
        """Views of the arguments, on the CUDA ordinal or host memory that `device` is."""
        return _views(self._raw.arguments, TensorRef, device)

    def results(self, device: int) -> list[TensorRef]:
        """Views of the results, which are to be written."""
        return _views(self._raw.results, TensorMut, device)

    def stream(self) -> int:
        """The CUstream that the call is to be enqueued on."""
        asked = _StreamGet(ctypes.sizeof(_StreamGet), None, self._raw.context, None)
        self._ask(self._api.stream_get, asked)
        return asked.stream or 0

    def ordinal(self) -> int:
        """The device that the call is on."""
        asked = _OrdinalGet(ctypes.sizeof(_OrdinalGet), None, self._raw.context, 0)
        self._ask(self._api.device_ordinal_get, asked)
        return int(asked.ordinal)

    def _ask(self, function: int, arguments: ctypes.Structure) -> None:
        error = _function(function)(ctypes.addressof(arguments))
        if error:
            destroyed = (ctypes.c_size_t * 3)(24, 0, error)  # XLA_FFI_Error_Destroy_Args
            _function(self._api.error_destroy)(ctypes.addressof(destroyed))
            raise Unsupported("XLA call", "XLA must tell the stream and device of the call", rule="execution context")


def _views(values: _Values, kind: type[TensorRef], device: int) -> list[TensorRef]:
    views = []
    for index in range(values.count):
        buffer = values.items[index].contents
        element = _ELEMENTS.get(buffer.dtype)
        if element is None:
            raise Unsupported("XLA call", "a dtype must stand for an element", rule="dtype", value=buffer.dtype)
        views.append(kind(buffer.data or 0, tuple(buffer.dims[: buffer.rank]), element, device=device))
    return views


def header_version() -> tuple[int, int]:
    """Version of the interface that the installed jaxlib has, by the header that it ships."""
    import jax

    text = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text("utf-8")
    major, minor = (int(found) for found in re.findall(r"#define XLA_FFI_API_M(?:AJ|IN)OR (\d+)", text))
    if major != _MAJOR:
        raise Unsupported(
            "baracuda_py.interop.jax", f"jaxlib must have version {_MAJOR} of XLA's FFI", rule="jaxlib",
            got=f"{major}.{minor}", fix="Install a newer baracuda_py, or an older jax",
        )  # fmt: skip
    return major, minor


def handler(
    call: Callable[[Frame], None], traits: Traits, version: tuple[int, int], registered: Callable[[], None]
) -> Any:
    """A C function that XLA calls, by whichever thread; it must be kept as long as XLA may call it.

    Args:
        call: what it does. What it raises becomes XLA's error, with the message.
        traits: what XLA is told of it.
        version: what XLA is told where it does not say its own: it refuses any but a few, and then starts no backend.
        registered: called when XLA has a backend that may call it.
    """

    def answer(address: int) -> int | None:
        raw = _CallFrame.from_address(address)
        if raw.extension and raw.extension.contents.kind == _METADATA:
            _describe(raw, traits, version)
            registered()
            return None
        try:
            call(Frame(raw))
        except BaseException as error:  # an exception cannot cross C
            return _error(raw.api.contents, error)
        return None

    return _Handler(answer)


def _describe(raw: _CallFrame, traits: Traits, version: tuple[int, int]) -> None:
    extension = ctypes.cast(raw.extension, ctypes.POINTER(_MetadataExtension)).contents
    metadata = extension.metadata.contents
    if raw.api and raw.api.contents.version.major == _MAJOR:
        version = (_MAJOR, raw.api.contents.version.minor)
    metadata.version.major, metadata.version.minor = version
    metadata.traits = traits


def _error(api: _Api, error: BaseException) -> int | None:
    code = _Code.INTERNAL
    if isinstance(error, (InvalidProblem, MisalignedOperand)):
        code = _Code.INVALID_ARGUMENT
    elif isinstance(error, Unsupported):
        code = _Code.UNIMPLEMENTED
    text = str(error) if isinstance(error, BaracudaError) else f"{type(error).__name__}: {error}"
    asked = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, text.encode(), code)
    made: int | None = _function(api.error_create)(ctypes.addressof(asked))
    return made
