"""What is saved or converted holds the same weights, and a folder is replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
from checkpoint_files import NAME, by_hand, packed, weight, write

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat
from baracuda_py.checkpoints.convert import plan_convert
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

F = PackedFormat
TARGETS = (F.AWQ_GEMM, F.COMPRESSED_TENSORS)
SIZES = dict.fromkeys(F, (128, 64)) | {F.AWQ_MARLIN: (256, 256)}
PLAIN = {"model.norm.weight": by_hand.Tensor("F16", np.arange(16, dtype="<f2").view("<u2"))}


def made_for(format, seed=0):
    ic, oc = SIZES[format]
    return weight(seed, ic, oc, 128 if format is F.AWQ_MARLIN else 64, symmetric=format is F.AWQ_MARLIN, least_zero=1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", F)
def test_a_converted_checkpoint_holds_the_same_weights(tmp_path, format, target):
    made = made_for(format)
    bias = np.linspace(-1, 1, made.q.shape[1])
    source = write(tmp_path / _folder(tmp_path, "source"), format.value, made, bias=bias, more=PLAIN)
    checkpoints.convert(source, tmp_path / "target", target)
    found = checkpoints.open(tmp_path / "target")
    layer = found[NAME]
    assert layer.format is target
    assert np.array_equal(checkpoints.unpack(layer).weights(), made.exact)
    assert np.array_equal(np.asarray(layer.bias, np.float64), bias.astype(np.float16).astype(np.float64))
    assert np.array_equal(found.plain["model.norm.weight"], np.arange(16, dtype=np.float16))


@pytest.mark.parametrize("name", ["input_activations", "output_activations"])
def test_that_activations_are_quantised_too_is_lost_only_where_it_may_be(tmp_path, name):
    made = made_for(F.COMPRESSED_TENSORS)
    source = write(tmp_path / _folder(tmp_path, "source"), "compressed_tensors", made)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"][name] = {"num_bits": 8, "type": "float"}
    (source / "config.json").write_text(json.dumps(config))
    for target in TARGETS:
        with pytest.raises(UnsupportedCheckpoint, match=f"8-bit float {name}.*lossy=True") as refused:
            checkpoints.convert(source, tmp_path / "target", target)
        assert (refused.value.rule, refused.value.tensor) == ("activations", NAME)
        assert refused.value.file == str(source / "config.json")
    assert not (tmp_path / "target").exists()
    checkpoints.convert(source, tmp_path / "target", F.AWQ_GEMM, lossy=True)
    assert np.array_equal(checkpoints.unpack(checkpoints.open(tmp_path / "target")[NAME]).weights(), made.exact)


LOST = {
    "g_idx of v1": ("gptq_v1", "g_idx", {"act_order": True}),
    "g_idx of v2": ("gptq_v2", "g_idx", {"act_order": True}),
    "weight_g_idx": ("compressed_tensors", "weight_g_idx", {"act_order": True}),
    "weight_zero_point": ("compressed_tensors", "weight_zero_point", {}),
}


def write_without(folder, part, format, made, **settings):
    """As `write`, but a tensor of the layer is gone."""
    write(folder, format, made, **settings)
    tensors = {f"{NAME}.{name}": tensor for name, tensor in packed(format, made).items() if name != part}
    by_hand.write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("case", LOST)
def test_a_layer_without_a_tensor_that_the_configuration_tells_of_is_not_read(tmp_path, case):
    format, part, options = LOST[case]
    made = weight(3, 128, 64, 32, least_zero=1, **options)
    source = write_without(tmp_path / _folder(tmp_path, "source"), part, format, made)
    for use in (
        lambda: checkpoints.open(source)[NAME],
        lambda: checkpoints.convert(source, tmp_path / "target", F.AWQ_GEMM, lossy=True),
    ):
        with pytest.raises(CheckpointError, match=r"config\.json says.*Get the whole checkpoint") as refused:
            use()
        assert (refused.value.rule, refused.value.tensor) == ("missing tensor", f"{NAME}.{part}")
        assert refused.value.file == str(source / "model.safetensors")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("format", ["gptq_v1", "gptq_v2", "compressed_tensors"])
def test_one_group_needs_no_index_whatever_the_configuration_says(tmp_path, format):
    part = "weight_g_idx" if format == "compressed_tensors" else "g_idx"
    made = weight(3, 128, 64, -1, least_zero=1)
    write_without(tmp_path, part, format, made, settings=by_hand.config(format, -1, act_order=True))
    assert np.array_equal(checkpoints.unpack(checkpoints.open(tmp_path)[NAME]).weights(), made.exact)


def test_weights_in_other_forms_are_left_behind(tmp_path):
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", made_for(F.AWQ_GEMM))
    kept = {"tokenizer.json", "merges.txt", "preprocessor_config.json"}
    weights = {
        "tf_model.h5", "tf_model-00001-of-00002.h5", "tf_model.h5.index.json", "flax_model.msgpack", "model.gguf",
        "flax_model.msgpack.index.json", "model.onnx", "model.onnx_data", "rust_model.ot", "pytorch_model.bin",
        "pytorch_model.bin.index.json", "consolidated.00.pth",
    }  # fmt: skip
    for name in kept | weights:
        (source / name).write_text("{}")
    checkpoints.convert(source, tmp_path / "target", F.COMPRESSED_TENSORS)
    assert {path.name for path in (tmp_path / "target").iterdir()} == kept | {"config.json", "model.safetensors"}


def test_there_and_back_gives_the_same_bytes(tmp_path):
    made = made_for(F.AWQ_GEMM)
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", made, more=PLAIN)
    checkpoints.convert(source, tmp_path / "there", F.COMPRESSED_TENSORS)
    checkpoints.convert(tmp_path / "there", tmp_path / "back", F.AWQ_GEMM)
    for part, tensor in packed("awq_gemm", made).items():
        assert checkpoints.open(tmp_path / "back")[NAME].tensors[part].tobytes() == tensor.bits.tobytes(), part


def test_shards_stay_below_their_limit_and_their_index_finds_every_tensor(tmp_path):
    made = made_for(F.AWQ_GEMM)
    tensors = {
        f"model.layers.{i}.mlp.up_proj.{part}": tensor
        for i in range(5)
        for part, tensor in packed("awq_gemm", made_for(F.AWQ_GEMM, i)).items()
    }
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", made, name="model.head", more=tensors)
    layer_nbytes = sum(tensor.bits.nbytes for tensor in packed("awq_gemm", made).values())
    saved = checkpoints.convert(source, tmp_path / "target", F.AWQ_GEMM, max_shard_bytes=2 * layer_nbytes)
    assert saved.layers == 6
    assert len(saved.files) == 3
    index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
    for file in saved.files:
        with safetensors.safe_open(file, "numpy") as opened:  # the package that everybody reads with
            names = set(opened.keys())
        assert {name for name, where in index["weight_map"].items() if where == file.name} == names
    assert index["metadata"]["total_size"] == saved.nbytes == 6 * layer_nbytes
    for i in range(5):
        layer = checkpoints.open(tmp_path / "target")[f"model.layers.{i}.mlp.up_proj"]
        assert np.array_equal(checkpoints.unpack(layer).weights(), made_for(F.AWQ_GEMM, i).exact)


def test_what_cannot_be_exact_is_refused_with_a_count_and_leaves_nothing(tmp_path):
    made = weight(0, 128, 64, 64, act_order=True, least_zero=1)
    source = write(tmp_path / _folder(tmp_path, "source"), "gptq_v2", made)
    with pytest.raises(UnsupportedCheckpoint) as refused:
        checkpoints.convert(source, tmp_path / "target", F.AWQ_GEMM)
    assert refused.value.tensor.startswith(NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_folder_that_is_not_empty_is_kept_unless_told(tmp_path):
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", made_for(F.AWQ_GEMM))
    old = made_for(F.AWQ_GEMM, 1)
    target = write(tmp_path / _folder(tmp_path, "target"), "awq_gemm", old)
    (target / "mine.txt").write_text("kept")
    with pytest.raises(CheckpointError) as refused:
        checkpoints.convert(source, target, F.AWQ_GEMM)
    assert refused.value.rule == "overwrite"
    assert np.array_equal(checkpoints.unpack(checkpoints.open(target)[NAME]).weights(), old.exact)
    checkpoints.convert(source, target, F.AWQ_GEMM, overwrite=True)
    assert (target / "mine.txt").read_text() == "kept"
    new = checkpoints.unpack(checkpoints.open(target)[NAME]).weights()
    assert np.array_equal(new, made_for(F.AWQ_GEMM).exact)


def test_a_folder_without_a_checkpoint_is_never_overwritten(tmp_path):
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", made_for(F.AWQ_GEMM))
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    with pytest.raises(CheckpointError) as refused:
        checkpoints.convert(source, target, F.AWQ_GEMM, overwrite=True)
    assert refused.value.rule == "overwrite"
    assert [path.name for path in target.iterdir()] == ["mine.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
from baracuda_py.checkpoints import PackedFormat
from baracuda_py.checkpoints.convert import plan_convert
source, target, at = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
plan = plan_convert(source, target, PackedFormat.COMPRESSED_TENSORS, overwrite=True, max_shard_bytes=1 << 20)
done = 0
def progress(nbytes):
    global done
    done += nbytes
    if done >= at * plan.nbytes:
        os.kill(os.getpid(), signal.SIGKILL)
plan.run(progress)
"""


@pytest.mark.parametrize("at", [0.0, 0.4, 1.0])
def test_a_killed_writer_leaves_the_old_checkpoint_and_the_next_one_clears_up(tmp_path, at):
    old, new = made_for(F.AWQ_GEMM, 1), made_for(F.AWQ_GEMM, 2)
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", new)
    target = write(tmp_path / _folder(tmp_path, "target"), "awq_gemm", old)
    command = [sys.executable, "-c", KILLED, source, target, str(at)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert np.array_equal(checkpoints.unpack(checkpoints.open(target)[NAME]).weights(), old.exact)
    assert len(list(tmp_path.iterdir())) == 3, "the killed writer's folder lies beside"
    checkpoints.convert(source, target, F.COMPRESSED_TENSORS, overwrite=True)
    assert np.array_equal(checkpoints.unpack(checkpoints.open(target)[NAME]).weights(), new.exact)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_writer_killed_at_any_moment_leaves_one_whole_checkpoint(tmp_path):
    old, new = made_for(F.AWQ_GEMM, 1), made_for(F.AWQ_GEMM, 2)
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", new)
    target = write(tmp_path / _folder(tmp_path, "target"), "awq_gemm", old)
    loop = "from baracuda_py import checkpoints as c\nimport sys\nprint('ready', flush=True)\nwhile True:\n"
    loop += "    c.convert(sys.argv[1], sys.argv[2], c.PackedFormat.AWQ_GEMM, overwrite=True)\n"
    for moment in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen([sys.executable, "-c", loop, source, target], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(moment)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        found = checkpoints.unpack(checkpoints.open(target)[NAME]).weights()
        assert np.array_equal(found, old.exact) or np.array_equal(found, new.exact)


def test_the_plan_knows_what_will_be_written(tmp_path):
    source = write(tmp_path / _folder(tmp_path, "source"), "awq_gemm", made_for(F.AWQ_GEMM), more=PLAIN)
    plan = plan_convert(source, tmp_path / "target", F.COMPRESSED_TENSORS)
    assert not (tmp_path / "target").exists()
    written = []
    saved = plan.run(written.append)
    assert sum(written) == plan.nbytes == saved.nbytes
    assert (saved.layers, saved.plain) == (plan.layers, plan.plain) == (1, 1)
    assert sum(os.path.getsize(file) for file in saved.files) > plan.nbytes


def _folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return name
