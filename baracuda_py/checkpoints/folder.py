"""A checkpoint as files: one safetensors file, or shards with an index; every tensor's header, and its data on demand.

Only plain file names inside the folder are followed. A symlink must stay inside it too, with one exception, the cache
of huggingface_hub: `models--<name>/snapshots/<revision>/<file>` may point into `models--<name>/blobs/`.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from baracuda_py.checkpoints.headers import SafetensorsHeader, TensorHeader, open_regular, parse_json, read_header
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Folder", "dtype_name", "numpy_dtype", "read_tensor"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_SHARD = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)\.safetensors", re.DOTALL)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Of TensorFlow, Flax, llama.cpp, ONNX and Rust.
_OTHER_WEIGHTS = (".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot")
_JSON_LIMIT = 256 << 20  # bytes of an index or a configuration
# Smaller tensors are copied: a mapping takes whole pages, and a process may have some 65,000 mappings.
_MAPPED_NBYTES = 64 << 10


@frozen(eq=False)
class Folder:
    """The files of a checkpoint, their headers read, their data not.

    Attributes:
        path: the folder, or the one file that was asked for.
        root: the folder.
        files: the safetensors files, sorted.
        tensors: every tensor by name, sorted.
        index: the index of a sharded checkpoint; None where there is none: of one file, or of shards whose names say
            that they are all there.
        unlisted: names that shards hold and the index does not list; they are not part of the checkpoint.
        metadata: of each file.
    """

    path: Path
    root: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorHeader] = field(repr=False)
    index: Path | None = None
    unlisted: tuple[str, ...] = ()
    metadata: Mapping[Path, Mapping[str, str]] = field(factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Folder:
        """The checkpoint `path`: a folder, or a safetensors file.

        Raises:
            CheckpointError: nothing there, one shard of several, or files that are damaged or contradict each other.
            UnsupportedCheckpoint: only pickled weights.
        """
        given = Path(path)
        if _is(given, "file"):
            _check_whole(given)
            return cls._single(given, given.parent, given)
        if not _is(given, "dir"):
            raise CheckpointError(given, "a checkpoint must be a folder or a file", rule="missing", got="neither")
        names = _names(given)
        single = _chosen(given, names, _SINGLE, _SUFFIX)
        index = _chosen(given, names, _INDEX, f"{_SUFFIX}.index.json")
        if single is not None and (index is None or single == _SINGLE):
            _check_whole(given / single)
            return cls._single(given, given, _inside(given, single))
        if index is not None:
            return cls._sharded(given, _inside(given, index))
        if shards := _whole_set(names):
            files = {name: _inside(given, name) for name in shards}
            return cls._joined(given, files, {name: read_header(file) for name, file in files.items()})
        raise _no_weights(given, names)

    @classmethod
    def _single(cls, path: Path, root: Path, file: Path) -> Folder:
        header = read_header(file)
        tensors = dict(sorted(header.tensors.items()))
        return cls(path, root, (file,), tensors, metadata={file: header.metadata})

    @classmethod
    def _sharded(cls, root: Path, index: Path) -> Folder:
        found = _json_object(index).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
            raise CheckpointError(index, "weight_map must map tensors to file names", rule="weight_map")
        files = {name: _shard(root, index, name, found) for name in sorted(set(found.values()))}
        headers = {name: read_header(file) for name, file in files.items()}
        where = _where(files, headers)
        for tensor, shard in found.items():
            if where.get(tensor) != shard:
                raise CheckpointError(
                    files[shard], f"{index.name} says that the tensor is here, and it must be", tensor=tensor,
                    rule="index", got=f"one in {where[tensor]}" if tensor in where else "none in any shard",
                )  # fmt: skip
        tensors = {tensor: headers[found[tensor]].tensors[tensor] for tensor in sorted(found)}
        return cls(
            root, root, tuple(files.values()), tensors, index, tuple(sorted(where.keys() - found.keys())),
            {files[name]: header.metadata for name, header in headers.items()},
        )  # fmt: skip

    @classmethod
    def _joined(cls, root: Path, files: Mapping[str, Path], headers: Mapping[str, SafetensorsHeader]) -> Folder:
        where = _where(files, headers)
        tensors = {tensor: headers[where[tensor]].tensors[tensor] for tensor in sorted(where)}
        metadata = {files[name]: header.metadata for name, header in headers.items()}
        return cls(root, root, tuple(files.values()), tensors, metadata=metadata)

    def read(self, name: str) -> NDArray[Any]:
        """Tensor `name` as a read-only array, mapped from the file if it is large; see `read_tensor`.

        Raises:
            CheckpointError: no such tensor, or it cannot be mapped.
            UnsupportedCheckpoint: an element type that NumPy has not.
        """
        if name not in self.tensors:
            raise CheckpointError(self.path, "the tensor must be in the checkpoint", tensor=name, rule="missing tensor")
        return read_tensor(self.tensors[name])

    def json(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """The file `name` beside the weights and the JSON object in it; None if there is no such file.

        Raises:
            CheckpointError: it leads out of the folder, or holds no JSON object.
        """
        if not os.path.lexists(self.root / name):
            return None
        file = _inside(self.root, name)
        return file, _json_object(file)


    def other_files(self) -> dict[str, Path]:
        """The files of the folder by name, but for weights in any form; no hidden ones, and no folders.

        Raises:
            CheckpointError: one leads out of the folder.
        """
        suffixes = (_SUFFIX, *_PICKLES, *_OTHER_WEIGHTS)
        weights = (*suffixes, *(f"{suffix}.index.json" for suffix in suffixes))
        names = [name for name in _names(self.root) if not name.startswith(".") and not name.endswith(weights)]
        return {name: _inside(self.root, name) for name in names if _is(self.root / name, "file")}


def read_tensor(header: TensorHeader) -> NDArray[Any]:
    """The tensor as a read-only array, which reads the file where it is touched.

    Each call makes a mapping of its own, which ends with the last array on it, so that a loop over a large checkpoint
    holds one tensor at a time. Tensors of less than 64 KiB are copied.

    Raises:
        CheckpointError: the file cannot be mapped any more.
        UnsupportedCheckpoint: an element type that NumPy has not.
    """
    import numpy as np

    dtype = numpy_dtype(header)
    if not header.nbytes:
        array = np.empty(header.shape, dtype)
        array.flags.writeable = False
        return array
    with open_regular(header.file) as opened:
        if os.fstat(opened.fileno()).st_size < header.offset + header.nbytes:
            raise CheckpointError(
                header.file, "the file must not shrink while it is open", tensor=header.name, rule="file"
            )
        try:
            if header.nbytes < _MAPPED_NBYTES:
                opened.seek(header.offset)
                data, start = opened.read(header.nbytes), 0
                array = np.frombuffer(data, dtype, header.nbytes // dtype.itemsize)
            else:
                start = header.offset % mmap.ALLOCATIONGRANULARITY
                mapped = mmap.mmap(
                    opened.fileno(), header.nbytes + start, access=mmap.ACCESS_READ, offset=header.offset - start
                )
                array = np.frombuffer(mapped, dtype, header.nbytes // dtype.itemsize, start)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                header.file, "the tensor must be readable", tensor=header.name, rule="file", why=str(error)
            ) from None
    return array.reshape(header.shape)


def numpy_dtype(header: TensorHeader) -> np.dtype[Any]:
    """The NumPy or ml_dtypes dtype of a tensor.

    Raises:
        UnsupportedCheckpoint: it has none.
    """
    dtype = _numpy_dtypes().get(header.dtype)
    if dtype is None:
        raise UnsupportedCheckpoint(
            header.file, "the element type must be one that NumPy has", tensor=header.name, rule="dtype",
            got=header.dtype,
        )  # fmt: skip
    return dtype


def dtype_name(tensor: str, dtype: np.dtype[Any]) -> str:
    """How safetensors spells a NumPy or ml_dtypes dtype.

    Raises:
        UnsupportedCheckpoint: not at all.
    """
    for name, known in _numpy_dtypes().items():
        if known == dtype:
            return name
    raise UnsupportedCheckpoint(
        "safetensors", "the element type must be one that safetensors has", tensor=tensor, rule="dtype", got=str(dtype)
    )


@cache
def _numpy_dtypes() -> Mapping[str, np.dtype[Any]]:
    import ml_dtypes
    import numpy as np

    names = {
        "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
        "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
    }  # fmt: skip
    extended = {
        "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu, "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    }  # fmt: skip
    return {name: np.dtype(dtype) for name, dtype in {**names, **extended}.items()}


def _is(path: Path, kind: str) -> bool:
    """Whether `path` is a file or a dir; False for what no path can be, such as text with a zero byte in it."""
    try:
        return path.is_file() if kind == "file" else path.is_dir()
    except (OSError, ValueError):
        return False


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(folder, "the folder must be readable", rule="file", why=str(error)) from None


def _chosen(folder: Path, names: list[str], usual: str, suffix: str) -> str | None:
    """The file of the usual name, or else the only one that ends like it."""
    if usual in names:
        return usual
    fitting = [name for name in names if name.endswith(suffix)]
    return fitting[0] if len(fitting) == 1 else None


def _where(files: Mapping[str, Path], headers: Mapping[str, SafetensorsHeader]) -> dict[str, str]:
    """The shard of each tensor; CheckpointError for a tensor in two of them."""
    where: dict[str, str] = {}
    for shard, header in headers.items():
        for tensor in header.tensors:
            if tensor in where:
                raise CheckpointError(
                    files[shard], "a tensor must be in one shard", tensor=tensor, rule="duplicate tensor",
                    got=f"one in {where[tensor]} too",
                )  # fmt: skip
            where[tensor] = shard
    return where


def _whole_set(names: list[str]) -> list[str]:
    """The shards of a folder without an index, where its weights are one set whose names say that none is missing."""
    found = [name for name in names if name.endswith(_SUFFIX)]
    shards = [shard for shard in map(_SHARD.fullmatch, found) if shard]
    whole = len({shard.group(1, 3) for shard in shards}) == 1 and len(shards) == len(found)
    if not whole or any(name.endswith(f"{_SUFFIX}.index.json") for name in names):
        return []
    return found if sorted(int(shard[2]) for shard in shards) == list(range(1, int(shards[0][3]) + 1)) else []


def _check_whole(file: Path) -> None:
    """Refuse a file that is called as one shard of several, unless the others are there or an index lists it."""
    shard = _SHARD.fullmatch(file.name)
    if shard is None or int(shard[3]) <= 1:
        return
    names = _names(file.parent)
    others = [other for other in map(_SHARD.fullmatch, names) if other and other.group(1, 3) == shard.group(1, 3)]
    numbers = {int(other[2]) for other in others}
    index = _chosen(file.parent, names, _INDEX, f"{_SUFFIX}.index.json")
    if len(numbers) >= int(shard[3]) or (index is not None and file.name in _listed(file.parent, index)):
        return
    raise CheckpointError(
        file, f"a shard must have all {int(shard[3])} beside it, or an index that lists it", rule="shards",
        got=f"{len(numbers)} and no such index", why="its name says that it is a part of a model",
        fix=f"Get the other shards and {_INDEX}",
    )  # fmt: skip


def _listed(root: Path, index: str) -> list[Any]:
    weight_map = _json_object(_inside(root, index)).get("weight_map")
    return list(weight_map.values()) if isinstance(weight_map, dict) else []


def _inside(root: Path, name: str) -> Path:
    """File `name` of the folder `root`.

    Raises:
        CheckpointError: it is no plain name, leads out of the folder, or is not there.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\\0") or Path(name).name != name:
        raise CheckpointError(
            root, "a file must be named by a plain name in the same folder", rule="file name", value=name[:200]
        )
    file = root / name
    try:
        real, real_root = Path(os.path.realpath(file, strict=True)), Path(os.path.realpath(root))
    except (OSError, ValueError) as error:
        raise CheckpointError(file, "the file must exist", rule="missing file", why=str(error)) from None
    if real.is_relative_to(real_root) or any(real.is_relative_to(blobs) for blobs in _hub_blobs(real_root)):
        return file
    raise CheckpointError(
        file, "a file must stay inside the folder", rule="symlink", got=f"a link to {real}",
        why="only a huggingface_hub cache may hold its blobs elsewhere", fix="Copy the file into the folder",
    )  # fmt: skip


def _hub_blobs(root: Path) -> list[Path]:
    """Where the cache of huggingface_hub keeps the data of the snapshot that `root` is in."""
    lineage = (root, *root.parents)
    return [
        model / "blobs" for below, model in pairwise(lineage)
        if below.name == "snapshots" and model.name.startswith("models--")
    ]  # fmt: skip


def _shard(root: Path, index: Path, name: str, weight_map: Mapping[str, str]) -> Path:
    try:
        if not name.endswith(_SUFFIX):
            raise CheckpointError(index, f"a shard must be a {_SUFFIX} file", rule="file name", value=name[:200])
        return _inside(root, name)
    except CheckpointError as error:
        tensor = next(tensor for tensor, file in weight_map.items() if file == name)
        raise CheckpointError(
            index, error.must, tensor=tensor, rule=error.rule, got=f"file {name[:200]!r}", why=error.why, fix=error.fix
        ) from None


def _json_object(file: Path) -> dict[str, Any]:
    with open_regular(file) as opened:
        # Not the limit itself: a read allocates what it is asked for.
        text = opened.read(min(os.fstat(opened.fileno()).st_size, _JSON_LIMIT) + 1)
    if len(text) > _JSON_LIMIT:
        raise CheckpointError(file, f"the file must have at most {_JSON_LIMIT} bytes", rule="file size")
    found = parse_json(file, text)
    if not isinstance(found, dict):
        raise CheckpointError(file, "this must be a JSON object", rule="json", got=type(found).__name__)
    return found


def _no_weights(folder: Path, names: list[str]) -> CheckpointError | UnsupportedCheckpoint:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    several = [name for name in names if name.endswith(_SUFFIX)]
    if pickles and not several:
        return UnsupportedCheckpoint(
            folder, "weights must be safetensors", rule="pickle", got=", ".join(pickles[:3]),
            why="unpickling runs code", fix="Save the model with safe_serialization=True",
        )  # fmt: skip
    return CheckpointError(
        folder, f"a checkpoint must have {_SINGLE}, {_INDEX}, or all shards of one set", rule="safetensors",
        got=f"{len(several)} safetensors files without an index" if several else "none of these",
    )  # fmt: skip
