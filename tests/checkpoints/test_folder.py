"""Folders: single files, shards, and what an index or a link must not do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from baracuda_py import checkpoints
from baracuda_py.checkpoints.folder import Folder
from baracuda_py.cli.demo import write_checkpoint
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

SHARDS = {
    "model-00001-of-00002.safetensors": {"a": np.arange(4, dtype=np.int32), "b": np.ones(2, np.float16)},
    "model-00002-of-00002.safetensors": {"c": np.arange(6, dtype=np.float32)},
}
FIRST, SECOND = SHARDS
INDEX = "model.safetensors.index.json"


@pytest.fixture
def quantised(tmp_path):
    """A small checkpoint of AWQ layers."""
    write_checkpoint(tmp_path / "quantised")
    return tmp_path / "quantised"


def write(folder, *, shards=SHARDS, **changes):
    """A sharded checkpoint; `changes` are entries of the index, None to leave one away."""
    weight_map = {}
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    weight_map = {tensor: file for tensor, file in (weight_map | changes).items() if file is not None}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def refused(path, rule, kind=CheckpointError):
    with pytest.raises(kind) as raised:
        Folder.open(path)
    assert raised.value.rule == rule
    return raised.value


def test_shards_are_one_mapping(tmp_path):
    folder = Folder.open(write(tmp_path))
    assert list(folder.tensors) == ["a", "b", "c"]
    assert [file.name for file in folder.files] == [FIRST, SECOND]
    assert folder.index == tmp_path / INDEX
    for tensors in SHARDS.values():
        for name, array in tensors.items():
            np.testing.assert_array_equal(folder.read(name), array)


@pytest.mark.parametrize("name", ["model.safetensors", "gptq_model-4bit-128g.safetensors"])
def test_a_single_file_is_found_by_folder_or_by_name(tmp_path, name):
    save_file(SHARDS[FIRST], tmp_path / name)
    for path in (tmp_path, tmp_path / name, str(tmp_path)):
        assert set(Folder.open(path).tensors) == {"a", "b"}


def test_one_shard_of_several_is_no_checkpoint(tmp_path):
    save_file(SHARDS[FIRST], tmp_path / FIRST)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for path in (tmp_path, tmp_path / FIRST):
        error = refused(path, "shards")
        assert error.file == str(tmp_path / FIRST)
        assert "all 2 beside it" in str(error)
        with pytest.raises(CheckpointError, match="got 1 and no such index"):
            checkpoints.inspect(path, "host")
    save_file(SHARDS[SECOND], tmp_path / "model-00002-of-00003.safetensors")
    refused(tmp_path / FIRST, "shards")


@pytest.mark.parametrize(
    "name", ["model-00001-of-00001.safetensors", "part-1-of-2-x.safetensors", "a-of-2.safetensors"]
)
def test_a_file_that_is_not_called_one_of_several_is_whole(tmp_path, name):
    save_file(SHARDS[FIRST], tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        assert set(Folder.open(path).tensors) == {"a", "b"}


def test_a_shard_can_be_read_alone_where_the_others_or_an_index_are_there(tmp_path):
    for name, tensors in SHARDS.items():
        save_file(tensors, tmp_path / name)
    assert set(Folder.open(tmp_path / FIRST).tensors) == {"a", "b"}
    (tmp_path / SECOND).unlink()
    refused(tmp_path / FIRST, "shards")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"c": SECOND}}))
    refused(tmp_path / FIRST, "shards")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": FIRST}}))
    for path in (tmp_path, tmp_path / FIRST):
        assert set(Folder.open(path).tensors) == {"a", "b"}


def test_shards_whose_names_say_that_they_are_all_there_need_no_index(tmp_path):
    for name, tensors in SHARDS.items():
        save_file(tensors, tmp_path / name)
    folder = Folder.open(tmp_path)
    assert (list(folder.tensors), folder.index, folder.unlisted) == (["a", "b", "c"], None, ())
    assert [file.name for file in folder.files] == [FIRST, SECOND]
    for tensors in SHARDS.values():
        for name, array in tensors.items():
            np.testing.assert_array_equal(folder.read(name), array)


def test_shards_without_an_index_that_are_not_one_whole_set_are_refused(tmp_path):
    def folder(name, *files, extra=()):
        made = tmp_path / name
        made.mkdir()
        for number, file in enumerate(files):
            save_file({f"t{number}": np.ones(2, np.float16)}, made / file)
        for file in extra:
            (made / file).write_text("{}")
        return made

    refused(folder("one missing", "m-1-of-3.safetensors", "m-3-of-3.safetensors"), "safetensors")
    refused(folder("from 0", "m-0-of-2.safetensors", "m-1-of-2.safetensors"), "safetensors")
    refused(folder("twice", "m-1-of-2.safetensors", "m-01-of-2.safetensors", "m-2-of-2.safetensors"), "safetensors")
    refused(folder("another", FIRST, SECOND, "adapter.safetensors"), "safetensors")
    refused(folder("two sets", FIRST, SECOND, "m-1-of-2.safetensors", "m-2-of-2.safetensors"), "safetensors")
    indices = ("a.safetensors.index.json", "b.safetensors.index.json")
    refused(folder("two indices", FIRST, SECOND, extra=indices), "safetensors")
    same = folder("same", FIRST)
    save_file({"t0": np.zeros(2, np.float16)}, same / SECOND)
    error = refused(same, "duplicate tensor")
    assert (error.tensor, error.file) == ("t0", str(same / SECOND))


def test_a_checkpoint_of_shards_without_an_index_is_converted_where_it_is(tmp_path, quantised):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text((quantised / "config.json").read_text())
    tensors = load_file(quantised / "model.safetensors")
    for number in (0, 1):
        part = {name: array for at, (name, array) in enumerate(sorted(tensors.items())) if at % 2 == number}
        save_file(part, source / f"model-0000{number + 1}-of-00002.safetensors")
    before = {name: checkpoints.unpack(layer).weights() for name, layer in checkpoints.open(source).items()}
    checkpoints.convert(source, source, checkpoints.PackedFormat.COMPRESSED_TENSORS, overwrite=True)
    assert sorted(file.name for file in source.glob("*.safetensors*")) == ["model.safetensors"]
    after = checkpoints.open(source)
    assert list(after) == list(before)
    for name, weights in before.items():
        np.testing.assert_array_equal(checkpoints.unpack(after[name]).weights(), weights)


def test_a_tensor_that_the_index_leaves_away_is_no_part_but_known(tmp_path):
    folder = Folder.open(write(tmp_path, b=None))
    assert set(folder.tensors) == {"a", "c"}
    assert folder.unlisted == ("b",)


def test_a_tensor_that_a_shard_lacks_is_refused(tmp_path):
    error = refused(write(tmp_path, missing=SECOND), "index")
    assert (error.file, error.tensor) == (str(tmp_path / SECOND), "missing")


def test_a_tensor_that_lies_in_another_shard_is_refused(tmp_path):
    error = refused(write(tmp_path, a=SECOND), "index")
    assert (error.file, error.tensor) == (str(tmp_path / SECOND), "a")
    assert FIRST in str(error)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = {**SHARDS, SECOND: {**SHARDS[SECOND], "a": np.zeros(3, np.int32)}}
    error = refused(write(tmp_path, shards=shards), "duplicate tensor")
    assert (error.file, error.tensor) == (str(tmp_path / SECOND), "a")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", ".", "x\0.safetensors", "config.json",
     "C:\\x.safetensors"],
)  # fmt: skip
def test_an_index_entry_that_is_no_plain_file_name_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(SHARDS[SECOND], tmp_path / "outside.safetensors")
    error = refused(write(folder, c=name), "file name")
    assert (error.file, error.tensor) == (str(folder / INDEX), "c")


def test_an_index_entry_that_points_nowhere_is_refused(tmp_path):
    error = refused(write(tmp_path, c="gone.safetensors"), "missing file")
    assert (error.file, error.tensor) == (str(tmp_path / INDEX), "c")


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": None}, "a"])
def test_an_index_of_the_wrong_type_is_refused(tmp_path, weight_map):
    write(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(tmp_path, "weight_map")
    (tmp_path / INDEX).write_text(json.dumps([weight_map]))
    refused(tmp_path, "json")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder)
    (folder / SECOND).rename(tmp_path / SECOND)
    (folder / SECOND).symlink_to(tmp_path / SECOND)
    error = refused(folder, "symlink")
    assert (error.file, error.tensor) == (str(folder / INDEX), "c")

    single = tmp_path / "single"
    single.mkdir()
    save_file(SHARDS[FIRST], tmp_path / "elsewhere.safetensors")
    (single / "model.safetensors").symlink_to("../elsewhere.safetensors")
    refused(single, "symlink")
    (single / "model.safetensors").unlink()
    save_file(SHARDS[FIRST], single / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (single / "config.json").symlink_to("../config.json")
    with pytest.raises(CheckpointError, match="link"):
        checkpoints.open(single)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    refused(tmp_path, "missing file")


def test_links_within_the_folder_are_followed(tmp_path):
    write(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / SECOND).rename(tmp_path / "blobs" / "5a")
    (tmp_path / SECOND).symlink_to("blobs/5a")
    assert Folder.open(tmp_path).read("c").sum() == 15


def test_the_cache_of_huggingface_hub_is_followed_but_not_to_another_model(tmp_path):
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    write(snapshot)
    for name in (FIRST, SECOND, INDEX):
        (snapshot / name).rename(model / "blobs" / f"hash-{name}")
        (snapshot / name).symlink_to(f"../../blobs/hash-{name}")
    assert Folder.open(snapshot).read("c").sum() == 15

    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (model / "blobs" / f"hash-{SECOND}").rename(other / "hash")
    (snapshot / SECOND).unlink()
    (snapshot / SECOND).symlink_to("../../../models--org--other/blobs/hash")
    refused(snapshot, "symlink")


def test_pickles_are_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    error = refused(tmp_path, "pickle", UnsupportedCheckpoint)
    assert "pytorch_model.bin" in str(error)
    assert "runs code" in str(error)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    refused(tmp_path, "safetensors")
    refused(tmp_path / "nowhere", "missing")
    refused("a\0b", "missing")
    for name in (FIRST, "model-00003-of-00003.safetensors"):
        save_file(SHARDS[FIRST], tmp_path / name)
    assert "2 safetensors files without an index" in str(refused(tmp_path, "safetensors"))


def test_reading_what_is_not_there_names_it(tmp_path):
    with pytest.raises(CheckpointError, match="must be in the checkpoint") as raised:
        Folder.open(write(tmp_path)).read("z")
    assert raised.value.tensor == "z"
