"""Safetensors files written as a stream: the header first, then one tensor after the other, and none of them kept.

A shard's tensors lie in the order in which they come, but those that take no whole 8 bytes come last, so that every
other one is aligned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from baracuda_py.checkpoints.folder import dtype_name
from baracuda_py.checkpoints.headers import TensorHeader, open_regular
from baracuda_py.errors import CheckpointError

__all__ = ["PlannedTensor", "Unit", "plan_shards", "shard_names", "write_shard"]

_ALIGNMENT = 8  # bytes
_CHUNK = 8 << 20  # bytes that are copied at once
_METADATA = {"format": "pt"}  # what transformers asks for

Source = Any  # a TensorHeader, whose bytes are copied, or an array


@frozen
class PlannedTensor:
    """A tensor that will be written: its dtype as safetensors spells it, its shape, and the bytes of its data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def like(cls, name: str, source: Source) -> PlannedTensor:
        """As `source` has it.

        Raises:
            UnsupportedCheckpoint: an array of an element type that safetensors has not.
        """
        if isinstance(source, TensorHeader):
            return cls(name, source.dtype, source.shape, source.nbytes)
        return cls(name, dtype_name(name, source.dtype), source.shape, source.nbytes)


@frozen(eq=False)
class Unit:
    """Tensors that are made together and lie in one shard.

    Attributes:
        name: of the layer or the tensor.
        tensors: that it has.
        make: gives each of them, by its place in `tensors`; called once, when their turn comes.
    """

    name: str
    tensors: tuple[PlannedTensor, ...]
    make: Callable[[], Iterator[Source]] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Of the data."""
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_shards(units: Sequence[Unit], max_shard_bytes: int) -> list[list[Unit]]:
    """The units of each file, in order; a file has at most that many bytes of data, or a single unit."""
    shards: list[list[Unit]] = []
    room = 0
    for unit in units:
        if not shards or unit.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(unit)
        room -= unit.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """File names as transformers gives them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_shard(file: Path, units: Sequence[Unit], progress: Callable[[int], None]) -> None:
    """Write `file`, which must not exist yet; holds one tensor of one unit at a time, beside what a unit keeps itself.

    Args:
        file: to be written.
        units: as `plan_shards` gives them.
        progress: is told of bytes that were written.
    """
    tensors = [tensor for unit in units for tensor in unit.tensors]
    offsets, end = {}, 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.nbytes % _ALIGNMENT != 0):
        offsets[tensor.name] = end
        end += tensor.nbytes
    header = _header(tensors, offsets)
    with open(file, "xb") as opened:
        opened.write(header)
        for unit in units:
            for tensor, source in zip(unit.tensors, unit.make(), strict=True):
                if (found := PlannedTensor.like(tensor.name, source)) != tensor:
                    raise AssertionError(f"{tensor} was planned, and {found} made")  # also under python -O
                opened.seek(len(header) + offsets[tensor.name])
                for chunk in _chunks(source):
                    opened.write(chunk)
                    progress(len(chunk))


def _header(tensors: Sequence[PlannedTensor], offsets: dict[str, int]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": _METADATA}
    for tensor in sorted(tensors, key=lambda tensor: offsets[tensor.name]):
        begin = offsets[tensor.name]
        entries[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.nbytes],
        }  # fmt: skip
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _chunks(source: Source) -> Iterator[bytes | memoryview]:
    """The data as bytes, some MiB at a time; a file is read, not mapped, so that none of it stays in memory."""
    import numpy as np

    if isinstance(source, TensorHeader):
        left = source.nbytes
        with open_regular(source.file) as opened:
            opened.seek(source.offset)
            while left:
                chunk = opened.read(min(left, _CHUNK))
                if not chunk:
                    raise CheckpointError(
                        source.file, "the file must not shrink while it is open", tensor=source.name, rule="file"
                    )
                left -= len(chunk)
                yield chunk
        return
    flat = np.ascontiguousarray(source).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK):
        yield flat.data[start : start + _CHUNK]
