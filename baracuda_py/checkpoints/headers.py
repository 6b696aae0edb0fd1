"""Headers of safetensors files: what is in a file, and where, without reading a tensor.

    8 bytes    length of the header, little-endian
    header     JSON: {"<tensor>": {"dtype": "F16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
    data       the tensors, back to back and in any order; offsets count from here

Everything is checked against the size of the file before anything of that size is allocated, as strictly as the
safetensors library does: no overlap, no hole, no duplicate key, nothing past the end.
Source: https://huggingface.co/docs/safetensors, section Format.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from attrs import field, frozen

from baracuda_py.errors import CheckpointError

__all__ = ["HEADER_LIMIT", "SafetensorsHeader", "TensorHeader", "open_regular", "parse_json", "read_header"]

HEADER_LIMIT = 100_000_000  # bytes; the library's own limit
_LENGTH_BYTES = 8
_RANK_LIMIT = 64  # NumPy's
_ELEMENTS_LIMIT = 1 << 62

# Bits of an element. Other names are kept, but their tensors cannot be checked against the shape, nor read.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@frozen
class TensorHeader:
    """One tensor of a file.

    Attributes:
        name: e.g. `"model.layers.0.mlp.up_proj.qweight"`.
        file: that holds it.
        dtype: as safetensors spells it: `"I32"`, `"F16"`, `"BF16"` ...
        shape: in elements.
        offset: of its first byte, from the start of the file.
        nbytes: of its data.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@frozen
class SafetensorsHeader:
    """The header of a file.

    Attributes:
        file: the file.
        tensors: by name, in the order in which their data lies.
        metadata: of the file, e.g. `{"format": "pt"}`.
        nbytes: of the whole file.
    """

    file: Path
    tensors: Mapping[str, TensorHeader] = field(repr=False)
    metadata: Mapping[str, str]
    nbytes: int


def open_regular(file: Path) -> BinaryIO:
    """`file` opened for reading.

    Raises:
        CheckpointError: it cannot be opened, or is no regular file (a pipe would block whoever reads it).
    """
    try:
        # A pipe without a writer blocks open itself, unless it is opened like this.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise CheckpointError(file, "the file must be readable", rule="file", why=_reason(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(file, "this must be a regular file", rule="file")
    return os.fdopen(descriptor, "rb")


def parse_json(file: Path, text: bytes) -> Any:
    """`text`, which `file` holds, as JSON; a key that occurs twice in an object is an error.

    Raises:
        CheckpointError: no JSON in UTF-8.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(file, "a key must occur once", rule="duplicate key", tensor=_printable(twice))
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file, "this must be JSON in UTF-8", rule="json", why=_reason(error)) from None


def read_header(file: Path) -> SafetensorsHeader:
    """The header of `file`.

    Raises:
        CheckpointError: the file is no safetensors file, is cut short, or its header contradicts itself.
    """
    with open_regular(file) as opened:
        nbytes = os.fstat(opened.fileno()).st_size
        prefix = opened.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        room = nbytes - _LENGTH_BYTES
        if len(prefix) < _LENGTH_BYTES or length > room:
            raise _invalid(
                file, "the header must end within the file", "header length",
                got=f"{nbytes} bytes" if room < 0 else f"{length} bytes of a header, {room} left in the file",
            )  # fmt: skip
        if length > HEADER_LIMIT:
            raise _invalid(file, f"a header must have at most {HEADER_LIMIT} bytes", "header length", got=str(length))
        text = opened.read(length)
    if len(text) < length:
        raise _invalid(file, "the header must end within the file", "header length", got=f"{len(text)} bytes of it")
    if text[:1] != b"{":
        raise _invalid(file, "the header must be a JSON object", "header", got=repr(bytes(text[:8])))
    # Decoding takes several times the text's size; a sparse file's hundred megabytes of zeros end here.
    if text[-1:] not in b"} \t\r\n":
        raise _invalid(file, "the header must be a JSON object, padded with spaces", "json", got=repr(bytes(text[-8:])))
    found = parse_json(file, text)
    metadata = found.pop("__metadata__", None)
    if metadata is None:  # null is none, as in the safetensors library
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(file, "__metadata__ must map strings to strings", "metadata")
    data_start = _LENGTH_BYTES + length
    tensors = sorted(
        (_tensor(file, name, entry, data_start, nbytes) for name, entry in found.items()),
        key=lambda tensor: (tensor.offset, tensor.nbytes),
    )
    _check_contiguous(file, tensors, data_start, nbytes)
    return SafetensorsHeader(file, {tensor.name: tensor for tensor in tensors}, metadata, nbytes)


def _tensor(file: Path, name: str, entry: Any, data_start: int, file_nbytes: int) -> TensorHeader:
    def check(allowed: bool, must: str, rule: str, got: Any) -> None:
        if not allowed:
            raise _invalid(file, must, rule, tensor=_printable(name), got=_shortened(got))

    check(name == _printable(name), "the name must be text", "name", "half of a surrogate pair")
    check(isinstance(entry, dict), "an entry must be an object", "entry", entry)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    check(isinstance(dtype, str) and dtype.isascii() and dtype.isprintable(), "dtype must be a name", "dtype", dtype)
    check(_naturals(shape) and len(shape) <= _RANK_LIMIT, "shape must be a list of sizes", "shape", shape)
    check(_naturals(offsets) and len(offsets) == 2, "data_offsets must be two offsets", "data_offsets", offsets)
    begin, end = offsets
    check(
        begin <= end <= file_nbytes - data_start,
        f"data_offsets must lie within the {file_nbytes - data_start} bytes of data", "data_offsets", offsets,
    )  # fmt: skip
    if dtype in _BITS:
        elements = _product(size for size in shape if size)
        check(elements < _ELEMENTS_LIMIT, "the shape must fit in the file", "shape", shape)
        bits = elements * _BITS[dtype] if 0 not in shape else 0
        check(
            bits == (end - begin) * 8,
            f"{dtype} {_shortened(shape)} takes {(bits + 7) // 8} bytes and must have as many", "data_offsets", offsets,
        )  # fmt: skip
    return TensorHeader(name, file, dtype, tuple(shape), data_start + begin, end - begin)


def _check_contiguous(file: Path, tensors: list[TensorHeader], data_start: int, file_nbytes: int) -> None:
    """Each byte of the data belongs to one tensor: no two tensors overlap, and no hole hides anything."""
    reached = data_start
    for tensor in tensors:
        if tensor.offset != reached:
            kind = "overlap" if tensor.offset < reached else "hole"
            raise _invalid(
                file, "the data must begin where that of the tensor before it ends", kind, tensor=tensor.name,
                got=f"offset {tensor.offset - data_start}, not {reached - data_start}",
            )  # fmt: skip
        reached += tensor.nbytes
    if reached != file_nbytes:
        raise _invalid(
            file, "the data must end with the last tensor", "hole", got=f"{file_nbytes - reached} more bytes"
        )


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _product(sizes: Iterable[int]) -> int:
    """Of the sizes, or `_ELEMENTS_LIMIT` if it is at least that: a long list of large sizes takes no time."""
    product = 1
    for size in sizes:
        product *= size
        if product >= _ELEMENTS_LIMIT:
            return _ELEMENTS_LIMIT
    return product


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def _shortened(value: Any, limit: int = 80) -> str:
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value)):
        return "something nested"  # perhaps deeper than repr can follow
    text = str(value[:limit] if isinstance(value, (list, str)) else value)
    return _printable(text if len(text) <= limit else f"{text[:limit]}...")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _invalid(file: Path, must: str, rule: str, *, tensor: str = "", got: str = "") -> CheckpointError:
    return CheckpointError(file, must, tensor=tensor, rule=rule, got=got)
