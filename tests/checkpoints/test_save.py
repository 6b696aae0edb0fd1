"""Checkpoints that are saved: what the reader and the safetensors library find in them, and what a kill leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import attrs
import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import MARLIN_SIZES, NAME, by_hand, packed, weight, write
from safetensors import safe_open

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat, atomic, save
from baracuda_py.checkpoints.atomic import new_folder
from baracuda_py.checkpoints.patterns import matches
from baracuda_py.checkpoints.shard import shard
from baracuda_py.checkpoints.transcode import transcode
from baracuda_py.checkpoints.write import plan_save
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

F = PackedFormat
WRITABLE = (F.AWQ_GEMM, F.COMPRESSED_TENSORS)


@pytest.fixture
def layer_of(tmp_path):
    """Makes a layer on disk."""

    def make(format=F.AWQ_GEMM, made=None, name=NAME, **kwargs):
        folder = tmp_path / f"source-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return checkpoints.open(write(folder, format.value, made or weight(1), name=name, **kwargs))[name]

    return make


def found_by_library(folder):
    """Every tensor by name, as the safetensors library reads them."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as opened:
            for name in opened.keys():  # noqa: SIM118
                assert name not in tensors
                tensors[name] = opened.get_tensor(name)
    return tensors


def assert_holds(folder, expected):
    """The folder's tensors are `expected`: by-hand tensors by full name."""
    found = found_by_library(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.bits.shape, name
        assert found[name].tobytes() == tensor.bits.tobytes(), name


def named(tensors, name=NAME):
    return {f"{name}.{part}": tensor for part, tensor in tensors.items()}


@pytest.mark.parametrize("target", WRITABLE)
@pytest.mark.parametrize("source", F)
def test_any_layer_is_written_as_its_weight_is_packed_by_hand(source, target, layer_of, tmp_path):
    symmetric = source is F.AWQ_MARLIN
    made = weight(2, *MARLIN_SIZES, 128, symmetric=symmetric, least_zero=1)
    bias = np.arange(256) / 8
    saved = save(tmp_path / "made", [layer_of(source, made, bias=bias)], format=target)
    if symmetric and target is F.AWQ_GEMM:
        made = attrs.evolve(made, z=np.full(made.s.values.shape, 8))
    expected = named(packed(target.value, made, bias))
    assert_holds(tmp_path / "made", expected)
    assert saved.nbytes == sum(tensor.bits.nbytes for tensor in expected.values())
    assert (saved.layers, saved.plain, saved.losses) == (1, 0, {})


def test_other_tensors_keep_their_bytes_whatever_their_type(layer_of, tmp_path):
    odd = {
        "a.norm": np.arange(3, dtype=np.float16), "a.mask": np.array([True, False, True]),
        "a.scale": np.float32(2), "a.empty": np.empty((0, 4), np.int64),
        "a.half": np.arange(5).astype(ml_dtypes.bfloat16), "a.eight": np.arange(7).astype(ml_dtypes.float8_e4m3fn),
        "a.strided": np.arange(20, dtype=np.int32).reshape(4, 5)[:, ::2], "embed.weight": np.ones((4, 6), np.float32),
    }  # fmt: skip
    save(tmp_path / "made", [layer_of()], plain=odd)
    plain = checkpoints.open(tmp_path / "made").plain
    assert plain.keys() == odd.keys()
    for name, array in odd.items():
        assert plain[name].dtype == array.dtype
        assert plain[name].shape == array.shape
        assert plain[name].tobytes() == np.ascontiguousarray(array).tobytes()
    headers = checkpoints.open(tmp_path / "made").folder.tensors.values()
    assert all(header.offset % 8 == 0 for header in headers if header.nbytes % 8 == 0), "every one is aligned"


def test_tensors_of_an_unknown_type_are_copied(layer_of, tmp_path):
    more = {"odd.thing": by_hand.Tensor("F3_E1M1", np.arange(9, dtype=np.uint8))}
    source = layer_of(more=more)
    plain = checkpoints.open(source.file.parent).plain_headers
    save(tmp_path / "made", [source], plain=plain)
    header = checkpoints.open(tmp_path / "made").folder.tensors["odd.thing"]
    assert (header.dtype, header.shape, header.nbytes) == ("F3_E1M1", (9,), 9)
    assert header.file.read_bytes()[header.offset :] == bytes(range(9))


@pytest.mark.parametrize("limit", [1, 700, 1500, 10**9])
def test_files_are_no_larger_than_asked_for_unless_a_layer_or_tensor_alone_is(limit, layer_of, tmp_path):
    layers = {f"blocks.{number}.up": layer_of(made=weight(number)) for number in range(5)}
    plain = {f"blocks.{number}.norm": np.arange(300, dtype=np.float16) for number in range(3)}
    saved = save(tmp_path / "made", layers, plain=plain, max_shard_bytes=limit)
    folder = checkpoints.open(tmp_path / "made").folder
    assert folder.files == saved.files
    sizes = [sum(t.nbytes for t in folder.tensors.values() if t.file == file) for file in folder.files]
    assert sum(sizes) == saved.nbytes
    largest = max(layers["blocks.0.up"].nbytes, 600)
    assert all(size <= max(limit, largest) for size in sizes)
    count = len(saved.files)
    assert (count == 1) == (limit == 10**9)
    assert [file.name for file in saved.files] == (
        ["model.safetensors"] if count == 1
        else [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    )  # fmt: skip
    for name in layers:
        files = {t.file for tensor, t in folder.tensors.items() if tensor.startswith(f"{name}.")}
        assert len(files) == 1, "the tensors of a layer stay together"


# What config.json says.


def test_keys_of_the_model_are_kept_and_what_is_dense_is_listed(layer_of, tmp_path):
    config = {"model_type": "x", "hidden_size": 64, "quantization_config": {"quant_method": "gptq"},
              "compression_config": {}}  # fmt: skip
    plain = {"lm_head.weight": np.ones((2, 3), np.float16), "norm.weight": np.ones(3, np.float16),
             "table.weight": np.ones((2, 3), np.int8)}  # fmt: skip
    for format, key in zip(WRITABLE, ("modules_to_not_convert", "ignore"), strict=True):
        save(tmp_path / format.value, [layer_of()], plain=plain, config=config, format=format)
        written = json.loads((tmp_path / format.value / "config.json").read_text())
        assert written.keys() == {"model_type", "hidden_size", "quantization_config"}
        assert written["quantization_config"][key] == ["lm_head"]


def test_ranks_of_a_sharded_layer_make_one_group_size_in_awq_gemm(layer_of, tmp_path):
    """A cut through the groups leaves one layer with smaller groups than the others."""
    cut = shard(layer_of(made=weight(3, 384, 16, 128), name="down"), "rows", 1, 2)
    whole = layer_of(made=weight(4, 384, 16, 128), name="up")
    assert (cut.group_size, whole.group_size) == (64, 128)
    save(tmp_path / "made", [cut, whole])
    for layer in (cut, whole):
        read = checkpoints.open(tmp_path / "made")[layer.name]
        assert read.group_size == 64
        np.testing.assert_array_equal(checkpoints.unpack(read).weights(), checkpoints.unpack(layer).weights())


def test_group_sizes_that_share_no_group_of_32_are_refused_in_awq_gemm_only(layer_of, tmp_path):
    layers = [layer_of(made=weight(3, 192, 16, 96), name="a"), layer_of(made=weight(4, 128, 16, 16), name="b")]
    with pytest.raises(UnsupportedCheckpoint, match=r"group sizes 16, 96.*Write compressed-tensors"):
        save(tmp_path / "made", layers)
    assert not (tmp_path / "made").exists()
    save(tmp_path / "made", layers, format=F.COMPRESSED_TENSORS)
    assert [layer.group_size for layer in checkpoints.open(tmp_path / "made").values()] == [96, 16]


def test_compressed_tensors_says_of_each_kind_of_layer_what_it_is(layer_of, tmp_path):
    """A module that is of one kind in all blocks becomes a pattern; one that differs is named block by block."""
    expected, layers = {}, {}
    for block in range(6):
        expected[f"model.layers.{block}.mlp.down_proj"] = (64, False)
        expected[f"model.layers.{block}.mlp.up_proj"] = (64, False) if block % 2 else (32, True)
    for name, (group_size, symmetric) in expected.items():
        made = weight(1, 64, 8, group_size, symmetric=symmetric)
        layers[name] = layer_of(F.COMPRESSED_TENSORS, made, name=name)
    save(tmp_path / "made", layers, format=F.COMPRESSED_TENSORS)
    found = checkpoints.open(tmp_path / "made")
    groups = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]["config_groups"]
    targets = [group["targets"] for group in groups.values()]
    assert r"re:^model\.layers\.\d+\.mlp\.down_proj$" in targets[0]
    assert sorted(map(len, targets)) == [3, 4]
    for name, (group_size, symmetric) in expected.items():
        assert (found[name].group_size, found[name].symmetric) == (group_size, symmetric)
        assert sum(any(matches(target, name) for target in each) for each in targets) == 1


def test_zero_points_that_are_all_8_are_left_away(layer_of, tmp_path):
    made = weight(5, symmetric=True)
    eights = attrs.evolve(made, z=np.full(made.s.values.shape, 8))
    for source in (F.AWQ_GEMM, F.GPTQ_V1, F.GPTQ_V2):
        save(tmp_path / source.value, [layer_of(source, eights)], format=F.COMPRESSED_TENSORS)
        assert_holds(tmp_path / source.value, named(packed("compressed_tensors", made)))


def test_groups_out_of_order_are_said_to_be(layer_of, tmp_path):
    made = weight(6, 96, 16, 32, act_order=True)
    save(tmp_path / "made", [layer_of(F.GPTQ_V2, made)], format=F.COMPRESSED_TENSORS)
    assert_holds(tmp_path / "made", named(packed("compressed_tensors", made)))
    read = checkpoints.open(tmp_path / "made")
    assert read.config.rule(NAME).act_order
    assert read[NAME].act_order


# What is refused, and how much is held.


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"layers": []}, CheckpointError, "must have a packed layer"),
        ({"format": F.GPTQ_V2}, UnsupportedCheckpoint, "AWQ_GEMM or COMPRESSED_TENSORS (got GPTQ_V2)"),
        ({"max_shard_bytes": 0}, CheckpointError, "max_shard_bytes must be positive"),
        ({"plain": {f"{NAME}.qweight": np.ones(1)}}, CheckpointError, "a tensor must be given once"),
        ({"plain": {"a": np.ones(1, np.complex128)}}, UnsupportedCheckpoint, "complex128"),
        ({"plain": {"stray.qweight": np.ones((2, 2), np.int32)}}, CheckpointError, "must be readable again"),
        ({"files": {"config.json": Path("x")}}, CheckpointError, "a file to copy must have a plain name"),
        ({"files": {"../tokenizer.json": Path("x")}}, CheckpointError, "a file to copy must have a plain name"),
    ],
)
def test_the_reason_is_named_and_nothing_is_written(change, error, text, layer_of, tmp_path):
    arguments = {"layers": [layer_of()]} | change
    with pytest.raises(error) as refused:
        save(tmp_path / "made", **arguments)
    assert text in str(refused.value)
    assert not list(tmp_path.glob("*made*"))
    assert not list(tmp_path.glob(".made*"))


def test_scales_of_the_input_are_not_forgotten(layer_of, tmp_path):
    scales = by_hand.Tensor("F16", np.arange(1, 65).astype("<f2").view("<u2"))
    layer = layer_of(more={"model.layers.3.mlp.act.scales": scales})
    with pytest.raises(CheckpointError, match="scales of a layer's input must be written with it"):
        save(tmp_path / "made", [layer])
    part = shard(layer, "rows", 1, 2)
    save(tmp_path / "made", [part], plain={"model.layers.3.mlp.act.scales": part.act_scales})
    np.testing.assert_array_equal(checkpoints.open(tmp_path / "made")[NAME].act_scales, np.arange(33, 65))


def test_a_loss_is_refused_with_its_count_or_reported(layer_of, tmp_path):
    layer = layer_of(F.GPTQ_V2, weight(7, 96, 16, 32, act_order=True))
    with pytest.raises(UnsupportedCheckpoint, match="must keep every weight") as refused:
        save(tmp_path / "made", [layer])
    saved = save(tmp_path / "made", [layer], lossy=True)
    assert saved.losses[NAME].changed == refused.value.value > 0


class Generated(Mapping):
    """Tensors that are made anew at each access, and belong to whoever asks."""

    def __init__(self, tensors):
        self.like = {part: (array.shape, array.dtype) for part, array in tensors.items()}

    def __getitem__(self, part):
        return np.zeros(*self.like[part])

    def __iter__(self):
        return iter(self.like)

    def __len__(self):
        return len(self.like)


@pytest.mark.parametrize("target", WRITABLE)
def test_a_layer_is_dropped_before_the_next_is_made(target, layer_of, tmp_path):
    like = layer_of(made=weight(8, 64, 64, 32))
    sizes = {"qweight": (1024, 128), "qzeros": (32, 128), "scales": (32, 1024)}
    tensors = {part: np.empty(shape, like.tensors[part].dtype) for part, shape in sizes.items()}
    one = attrs.evolve(like, ic=1024, oc=1024, tensors=Generated(tensors), headers={})
    plan = plan_save(tmp_path / "made", {f"blocks.{n}.up": one for n in range(16)}, format=target)
    tracemalloc.start()
    saved = plan.run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * saved.nbytes / 16, "two copies of a layer, and small things"
    assert plan.memory_nbytes > peak


# Replacing a folder.


def test_an_old_folder_keeps_what_is_no_checkpoint(layer_of, tmp_path):
    layer = layer_of()
    made = tmp_path / "made"
    save(made, [layer, attrs.evolve(layer, name="b")], max_shard_bytes=1)
    (made / "notes").mkdir()
    (made / "notes" / "a.txt").write_text("kept")
    (made / "tokenizer.json").write_text("old")
    (made / "vocab.txt").write_text("kept")
    (made / "quant_config.json").write_text("{}")
    (made / "linked").symlink_to("vocab.txt")
    os.chmod(made, 0o750)
    (tmp_path / "new.json").write_text("new")
    save(made, [layer], overwrite=True, files={"tokenizer.json": tmp_path / "new.json"})
    assert {path.name for path in made.iterdir()} == {
        "model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "notes", "linked",
    }  # fmt: skip
    assert (made / "tokenizer.json").read_text() == "new"
    assert (made / "notes" / "a.txt").read_text() == "kept"
    assert (made / "linked").is_symlink()
    assert (made / "linked").read_text() == "kept"
    assert made.stat().st_mode & 0o777 == 0o750


def test_a_checkpoint_is_replaced_by_one_that_is_read_from_it(layer_of, tmp_path):
    made = weight(9, 512, 512, 128)  # large enough to be mapped, not copied
    layer = layer_of(made=made)
    folder = layer.file.parent
    held = layer.tensors["qweight"]
    save(folder, [transcode(layer, F.COMPRESSED_TENSORS)], format=F.COMPRESSED_TENSORS, overwrite=True)
    assert_holds(folder, named(packed("compressed_tensors", made)))
    assert held.tobytes() == packed("awq_gemm", made)["qweight"].bits.tobytes(), "a mapping keeps the old file"


def test_a_file_is_not_replaced_by_a_folder(layer_of, tmp_path):
    (tmp_path / "made").write_text("a file")
    with pytest.raises(CheckpointError, match="must be written to a folder"):
        save(tmp_path / "made", [layer_of()], overwrite=True)
    assert (tmp_path / "made").read_text() == "a file"


def test_the_link_to_a_folder_stays_one(layer_of, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", [layer_of()])
    assert (tmp_path / "link").is_symlink()
    assert NAME in checkpoints.open(tmp_path / "real")


@pytest.mark.parametrize("exchange", [True, False])
def test_whatever_is_raised_the_old_checkpoint_stays(exchange, layer_of, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    layer = layer_of()
    save(tmp_path / "made", [layer])
    before = (tmp_path / "made" / "model.safetensors").read_bytes()

    def interrupted(nbytes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "made", [attrs.evolve(layer, name="other")], overwrite=True, progress=interrupted)
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".made*"))
    save(tmp_path / "made", [attrs.evolve(layer, name="other")], overwrite=True)
    assert list(checkpoints.open(tmp_path / "made")) == ["other"]
    assert not list(tmp_path.glob(".made*"))


def test_what_somebody_still_writes_is_no_leftover(layer_of, tmp_path):
    (tmp_path / ".made.saving-dead").mkdir()

    def meanwhile():
        with new_folder(tmp_path / "made", overwrite=False, replaced=lambda folder: ()) as first:
            (first / "a.txt").write_text("first")
            save(tmp_path / "made", [layer_of()])
            assert sorted(tmp_path.glob(".made*")) == [first], "the dead one is removed, the living one is not"

    with pytest.raises(CheckpointError, match="must stay empty"):
        meanwhile()
    assert not (tmp_path / "made" / "a.txt").exists(), "who comes second replaces nothing unasked"
    assert (tmp_path / "made" / "model.safetensors").exists()
    assert not list(tmp_path.glob(".made*"))


def test_only_what_belongs_to_the_old_checkpoint_is_replaced(layer_of, tmp_path):
    """Whether the old one or the new one is sharded: what is kept makes neither unreadable."""
    layer, made = layer_of(), tmp_path / "made"
    layers = [layer, attrs.evolve(layer, name="b")]
    others = {
        "plain.acts.safetensors", "other-00001-of-00002.safetensors", "other.safetensors.index.json", "some.bin",
        "model.fp16.safetensors",
    }  # fmt: skip
    save(made, layers, max_shard_bytes=1)
    for name in others:
        (made / name).write_text("mine")
    # As one process or another names its shards.
    (made / "model-00001-of-00002.safetensors").rename(made / "odd.safetensors")
    index = made / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of-00002", "odd"))
    (made / "model-00003-of-00004.safetensors").write_text("of an older one")
    for limit in (10**9, 1, 1):
        saved = save(made, layers, max_shard_bytes=limit, overwrite=True)
        index = {"model.safetensors.index.json"} if limit == 1 else set()
        written = {file.name for file in saved.files} | {"config.json"} | index
        assert {path.name for path in made.iterdir()} == written | others
        assert {(made / name).read_text() for name in others} == {"mine"}
        found = checkpoints.open(made)
        assert found.folder.files == saved.files
        assert list(found) == sorted((NAME, "b"))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["foo.safetensors"], r"must be called model\.safetensors \(got foo\.safetensors\).*or move foo"),
        (["plain.acts.safetensors", "some.bin"], "or move plain"),
        (["a.safetensors", "b.safetensors"], "must hold a checkpoint.*a.safetensors, b.safetensors"),
        (["a-1.safetensors", "a.safetensors.index.json"], "must hold a checkpoint.*a-1"),
        (["a.safetensors", "model.safetensors.index.json"], "must hold a checkpoint"),
        (["pytorch_model.bin"], "must hold a checkpoint"),
    ],
)
def test_weights_of_other_names_alone_are_not_overwritten(names, text, layer_of, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    for name in ("config.json", *names):
        (made / name).write_text("{}")
    with pytest.raises(CheckpointError, match=text) as refused:
        save(made, [layer_of()], overwrite=True)
    assert refused.value.rule == "overwrite"
    assert sorted(path.name for path in made.iterdir()) == sorted(("config.json", *names))


# Folders that cannot be exchanged.


def test_the_current_folder_is_filled_where_it_is_and_never_exchanged(layer_of, tmp_path, monkeypatch):
    layer, made = layer_of(), tmp_path / "made"
    made.mkdir()
    monkeypatch.chdir(made)
    inode = made.stat().st_ino
    renamed, rename = [], os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (renamed.append(Path(new).name), rename(old, new)))
    save(".", [layer, attrs.evolve(layer, name="b")], max_shard_bytes=1)
    assert renamed[-1] == "config.json"
    assert (made.stat().st_ino, len(os.listdir("."))) == (inode, 4), "the folder of whoever is in it"
    assert sorted(checkpoints.open(".")) == sorted((NAME, "b"))
    assert not list(tmp_path.glob(".made*"))
    for folder in (".", made):
        with pytest.raises(CheckpointError, match=r"the current folder.*from another folder"):
            save(folder, [layer], overwrite=True)
    (made / "inner").mkdir()
    monkeypatch.chdir(made / "inner")
    with pytest.raises(CheckpointError, match="the current folder"):
        save(made, [layer], overwrite=True)
    monkeypatch.chdir(tmp_path)
    save(made, [layer], overwrite=True)
    assert list(checkpoints.open(made)) == [NAME]


def test_a_mount_point_is_filled_where_it_is(layer_of, tmp_path, monkeypatch):
    layer, made = layer_of(), tmp_path / "a b"
    made.mkdir()
    mounts = tmp_path / "mountinfo"
    point = str(made).replace(" ", "\\040")
    mounts.write_text(
        f"36 35 98:0 /mnt1 / rw - ext3 /dev/root rw\n37 36 98:0 /x {point} rw shared:1 - ext3 /dev/x rw\n"
    )
    monkeypatch.setattr(atomic, "_MOUNTS", mounts)
    inode = made.stat().st_ino
    save(made, [layer])
    assert made.stat().st_ino == inode
    assert NAME in checkpoints.open(made)
    with pytest.raises(CheckpointError, match="a mount point"):
        save(made, [layer], overwrite=True)


def test_a_folder_that_is_filled_where_it_is_has_all_or_nothing(layer_of, tmp_path, monkeypatch):
    layer, made = layer_of(), tmp_path / "made"
    made.mkdir()
    monkeypatch.chdir(made)
    (made / ".made.saving-dead").mkdir()
    rename = os.rename

    def fails(old, new):
        if Path(new) == made / "config.json":
            raise OSError(28, "No space left on device")
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        with pytest.raises(CheckpointError, match="No space left"):
            save(made, [layer])
    assert not os.listdir(made)
    with pytest.raises(CheckpointError, match="must stay empty"):
        save(made, [layer], progress=lambda nbytes: (made / "mine").write_text("x"))
    assert os.listdir(made) == ["mine"]


@pytest.mark.parametrize("folder", ["file/inner", "file/inner/more"])
def test_a_folder_that_cannot_be_made_is_named(folder, layer_of, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="must be writable") as refused:
        save(tmp_path / folder, [layer_of()])
    assert (refused.value.rule, refused.value.where[: len(str(tmp_path))]) == ("target", str(tmp_path))


def test_a_full_disk_is_said_of_the_folder(layer_of, tmp_path):
    def full(nbytes):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device") as refused:
        save(tmp_path / "made", [layer_of()], progress=full)
    assert refused.value.rule == "target"
    assert not (tmp_path / "made").exists()


# A process that replaces version 0 by version 1 and is killed: at every file-system call it makes, and at random times.
_KILLED = """
import os, random, signal, sys
from pathlib import Path
from baracuda_py import checkpoints
from baracuda_py.checkpoints import atomic
from baracuda_py.errors import CheckpointError

source, made, exchange = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
if not exchange:
    atomic._exchange = lambda first, second: False
versions = [checkpoints.open(source / str(number)) for number in range(2)]
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.listdir", "os.scandir",
          "os.chmod", "ctypes.dlsym", "shutil.rmtree"}

def write(number):
    layers = list(versions[number].values())
    checkpoints.save(made, layers, config={"version": number}, overwrite=True, max_shard_bytes=1)

def killed(prepare):
    child = os.fork()
    if not child:
        prepare()
        write(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

def at_event(count):
    left = [count]
    def hook(event, arguments):
        if event in EVENTS:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    return lambda: sys.addaudithook(hook)

def at_time(seconds):
    return lambda: signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, which nobody handles

def check():
    if not exchange and not made.exists():
        try:  # a writer that is refused has put the old folder back
            checkpoints.save(made, [versions[0][next(iter(versions[0]))]])
        except CheckpointError:
            pass
    found = checkpoints.open(made)
    number = found.folder.json("config.json")[1]["version"]
    assert list(found) == list(versions[number])
    for name, layer in found.items():
        for part, array in layer.tensors.items():
            assert array.tobytes() == versions[number][name].tensors[part].tobytes(), (name, part)
    return number

seen, events = set(), 0
while True:
    write(0)
    events += 1
    if not killed(at_event(events)):
        break
    seen.add(check())
for _ in range(15):
    write(0)
    killed(at_time(random.uniform(0.0005, 0.03)))
    seen.add(check())
write(1)
leftovers = [path.name for path in made.parent.iterdir() if path.name.startswith(".")]
print(events, sorted(seen), leftovers)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_any_call_a_writer_leaves_one_version_or_the_other(exchange, tmp_path):
    for number in range(2):
        folder = tmp_path / "source" / str(number)
        folder.mkdir(parents=True)
        tensors = {}
        for name in ("a", "b", f"only-{number}"):
            tensors |= named(packed("awq_gemm", weight(number, 64, 16, 32)), name)
        by_hand.write_safetensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps({"quantization_config": by_hand.config("awq_gemm", 32)}))
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "source"), str(tmp_path / "work" / "made"), str(exchange)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    events, rest = done.stdout.split(maxsplit=1)
    assert int(events) > 20, "the calls are seen"
    assert rest == "[0, 1] []\n", "both versions are found, and no leftovers"


def test_a_configuration_alone_is_no_checkpoint_to_replace(layer_of, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    (app / "config.json").write_text('{"my": "app"}')
    with pytest.raises(CheckpointError, match="checkpoint") as refused:
        save(app, [layer_of()], overwrite=True)
    assert refused.value.rule == "overwrite"
    assert (app / "config.json").read_text() == '{"my": "app"}'


def test_what_comes_to_the_target_while_it_is_written_is_not_replaced(layer_of, tmp_path):
    made = tmp_path / "made"

    def somebody_else(_nbytes):
        made.mkdir(exist_ok=True)
        (made / "theirs").write_text("weights")

    with pytest.raises(CheckpointError, match="must stay empty"):
        save(made, [layer_of()], progress=somebody_else)
    assert [path.name for path in made.iterdir()] == ["theirs"]
    assert not list(tmp_path.glob(".made*"))


def test_half_of_a_surrogate_pair_in_a_configuration_is_written(layer_of, tmp_path):
    save(tmp_path / "made", [layer_of()], config=json.loads('{"note": "\\ud83d"}'))
    assert json.loads((tmp_path / "made" / "config.json").read_text())["note"] == "\ud83d"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_that_is_kept_is_not_waited_for(layer_of, tmp_path):
    save(tmp_path / "made", [layer_of()])
    os.mkfifo(tmp_path / "made" / "pipe")
    save(tmp_path / "made", [layer_of()], overwrite=True)
    assert (tmp_path / "made" / "pipe").is_fifo()
