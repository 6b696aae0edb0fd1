"""Headers: as the safetensors library reads valid files, and each rule broken alone is refused."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from baracuda_py.checkpoints.folder import Folder, numpy_dtype, read_tensor
from baracuda_py.checkpoints.headers import HEADER_LIMIT, read_header
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

DTYPES = [
    np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32,
    np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
]  # fmt: skip
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def write(path, header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F16", shape=(2, 3), offsets=(0, 12)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(st.dictionaries(st.text("abc.é", min_size=1), st.tuples(st.sampled_from(DTYPES), shapes), max_size=6))
def test_valid_files_are_read_as_safetensors_reads_them(tmp_path_factory, described):
    random = np.random.default_rng(0)
    saved = {
        name: random.integers(0, 2, shape).astype(dtype) if dtype is np.bool_
        else random.integers(0, 100, shape).astype(dtype)
        for name, (dtype, shape) in described.items()
    }  # fmt: skip
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    save_file(saved, path, metadata={"format": "np"})
    header = read_header(path)
    assert header.metadata == {"format": "np"}
    assert header.nbytes == path.stat().st_size
    with safe_open(path, "numpy") as theirs:
        assert header.tensors.keys() == set(theirs.keys())
        for name, tensor in header.tensors.items():
            view = theirs.get_slice(name)
            assert (tensor.dtype, list(tensor.shape)) == (view.get_dtype(), view.get_shape())
            array = read_tensor(tensor)
            # Its NumPy side cannot make fp8 arrays.
            expected = saved[name] if tensor.dtype.startswith("F8") else theirs.get_tensor(name)
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            assert array.tobytes() == expected.tobytes()
            assert not array.flags.writeable


@pytest.mark.parametrize("nbytes", [100, 70_000])  # copied, mapped
@pytest.mark.parametrize("offset", [0, 2, 4096])
def test_tensors_are_read_wherever_they_begin(tmp_path, nbytes, offset):
    data = np.random.default_rng(1).integers(0, 256, offset + nbytes, np.uint8).tobytes()
    tensors = {"t": entry("F16", (nbytes // 2,), (offset, offset + nbytes))}
    if offset:
        tensors["before"] = entry("U8", (offset,), (0, offset))
    path = write(tmp_path / "model.safetensors", tensors, data)
    assert read_tensor(read_header(path).tensors["t"]).tobytes() == data[offset:]


def test_unknown_types_are_kept_by_name_and_not_read(tmp_path):
    path = write(tmp_path / "model.safetensors", {"t": entry("F3_NEW", (5,), (0, 2))}, b"ab")
    tensor = Folder.open(path).tensors["t"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("F3_NEW", (5,), 2)
    with pytest.raises(UnsupportedCheckpoint, match="F3_NEW") as raised:
        numpy_dtype(tensor)
    assert (raised.value.file, raised.value.tensor) == (str(path), "t")


RANK = "shape    "
WRONG_ENTRIES = {
    "entry": [1],
    "dtype": entry(dtype=7),
    "shape": entry(shape=(2, -3)),
    "shape ": entry(shape=(2, 3.0)),
    "shape  ": entry(shape=(True, 6)),
    "shape   ": {**entry(), "shape": "23"},
    RANK: entry(shape=(1,) * 65),
    "shape     ": entry(shape=(1 << 40, 1 << 40), offsets=(0, 12)),
    "shape      ": entry(shape=[10**18] * 100_000),
    "data_offsets": entry(offsets=(0, 13)),
    "data_offsets ": entry(offsets=(0, 11)),
    "data_offsets  ": entry(offsets=(12, 0)),
    "data_offsets   ": entry(offsets=(0, 12, 12)),
    "data_offsets    ": entry(offsets=(0, 1 << 63)),
    "data_offsets     ": {"dtype": "F16", "shape": [2, 3]},
    "hole": entry(offsets=(0, 10), shape=(5,)),
}


@pytest.mark.parametrize("rule", WRONG_ENTRIES)
def test_a_wrong_entry_is_refused_by_name(tmp_path, rule):
    path = write(tmp_path / "model.safetensors", {"t": WRONG_ENTRIES[rule]}, bytes(12))
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert raised.value.file == str(path)
    assert raised.value.tensor == ("" if rule == "hole" else "t")
    assert raised.value.rule == rule.strip()
    if rule != RANK:  # there the library has no limit, but NumPy has
        with pytest.raises(SafetensorError), safe_open(path, "numpy"):
            pass


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [({"a": entry(), "b": entry(offsets=(6, 18))}, "overlap"),
     ({"a": entry(), "b": entry(offsets=(0, 12))}, "overlap"),
     ({"a": entry(), "b": entry(offsets=(13, 25))}, "hole"),
     ({"a": entry(offsets=(1, 13))}, "hole")],
)  # fmt: skip
def test_data_lie_back_to_back(tmp_path, tensors, rule):
    end = max(entry["data_offsets"][1] for entry in tensors.values())
    path = write(tmp_path / "model.safetensors", tensors, bytes(end))
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert (raised.value.rule, raised.value.tensor) == (rule, max(tensors))


@pytest.mark.parametrize(
    ("content", "rule"),
    [(b"", "header length"), (b"1234567", "header length"), (struct.pack("<Q", 9) + b"{}", "header length"),
     (struct.pack("<Q", 2**64 - 1) + b"{}", "header length"), (struct.pack("<Q", 0), "header"),
     (struct.pack("<Q", 2) + b"[]", "header"), (struct.pack("<Q", 3) + b" {}", "header"),
     (struct.pack("<Q", 2) + b"{,", "json"), (struct.pack("<Q", 3) + b"{,}", "json"),
     (struct.pack("<Q", 5) + b'{"\xff"}', "json"),
     (struct.pack("<Q", 20) + b'{"__metadata__":[1]}', "metadata"),
     (struct.pack("<Q", 19) + b'{"__metadata__":[]}', "metadata"),
     (struct.pack("<Q", 22) + b'{"__metadata__":false}', "metadata"),
     (struct.pack("<Q", 11) + b'{"a":1e999}', "entry"),
     (struct.pack("<Q", 2) + b"{}more", "hole")],
)  # fmt: skip
def test_what_is_no_header_is_refused(tmp_path, content, rule):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert (raised.value.file, raised.value.rule) == (str(path), rule)


def test_keys_that_occur_twice_are_refused(tmp_path):
    one = json.dumps(entry())
    for text in (f'{{"t": {one}, "t": {one}}}', '{"t": {"dtype": "F16", "dtype": "F16"}}'):
        path = write(tmp_path / "model.safetensors", text.encode(), bytes(12))
        with pytest.raises(CheckpointError) as raised:
            read_header(path)
        assert raised.value.rule == "duplicate key"
        assert raised.value.tensor in ("t", "dtype")


def test_deeply_nested_json_is_refused(tmp_path):
    path = write(tmp_path / "model.safetensors", b'{"t":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(CheckpointError, match="JSON"):
        read_header(path)


def test_half_a_surrogate_pair_is_no_name(tmp_path):
    path = write(tmp_path / "model.safetensors", b'{"a\\ud800": ' + json.dumps(entry()).encode() + b"}", bytes(12))
    with pytest.raises(CheckpointError, match="text") as raised:
        read_header(path)
    str(raised.value).encode()


def test_a_huge_length_allocates_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # sparse
        file.write(struct.pack("<Q", HEADER_LIMIT + 1) + b"{")
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=str(HEADER_LIMIT)):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_a_pipe_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="regular file"):
        Folder.open(tmp_path)


def test_a_file_that_shrinks_is_refused_when_it_is_read(tmp_path):
    path = write(tmp_path / "model.safetensors", {"t": entry("U8", (100_000,), (0, 100_000))}, bytes(100_000))
    folder = Folder.open(tmp_path)
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="shrink") as raised:
        folder.read("t")
    assert (raised.value.file, raised.value.tensor) == (str(path), "t")


def test_metadata_of_null_is_none_as_in_the_library(tmp_path):
    text = b'{"__metadata__":null}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert read_header(tmp_path / "a.safetensors").metadata == {}
    assert load_file(tmp_path / "a.safetensors") == {}
