"""`baracuda-py convert`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from baracuda_py import checkpoints


@pytest.fixture
def source(run, tmp_path):
    assert run("demo", "--output", str(tmp_path / "source")).code == 0
    return tmp_path / "source"


def test_convert_writes_the_other_format_and_says_what(run, source, tmp_path):
    target = tmp_path / "target"
    result = run("convert", str(source), str(target), "--to", "compressed-tensors", "--json")
    assert result.code == 0, result.err
    said = json.loads(result.out)
    old, new = checkpoints.open(source), checkpoints.open(target)
    assert said["layers"] == len(old) == len(new) > 0
    for name in old:
        assert new[name].format is checkpoints.PackedFormat.COMPRESSED_TENSORS
        assert np.array_equal(checkpoints.unpack(old[name]).weights(), checkpoints.unpack(new[name]).weights())


def test_convert_to_a_folder_that_is_not_empty_is_refused(run, source):
    result = run("convert", str(source), str(source), "--to", "awq-gemm")
    assert result.code == 3
    assert "--overwrite" in result.err


@pytest.mark.parametrize("options", [("--to", "gguf"), ("--to", "awq-gemm", "--max-shard-size", "many")])
def test_convert_with_wrong_options_is_a_usage_error(run, source, tmp_path, options):
    assert run("convert", str(source), str(tmp_path / "target"), *options).code == 2
    assert not (tmp_path / "target").exists()


def test_only_formats_that_are_written_are_offered(run, source, tmp_path):
    said = " ".join(run("convert", str(source), str(tmp_path / "target"), "--to", "gptq-v1").err.split())
    assert "none of awq-gemm, compressed-tensors" in said.replace("│ ", "")


def test_a_checkpoint_can_be_converted_where_it_is_and_other_files_stay(run, source):
    (source / "plain.acts.safetensors").write_text("mine")
    result = run("convert", str(source), str(source), "--to", "compressed-tensors", "--overwrite")
    assert result.code == 0, result.err
    assert (source / "plain.acts.safetensors").read_text() == "mine"
    formats = {layer.format for layer in checkpoints.open(source).values()}
    assert formats == {checkpoints.PackedFormat.COMPRESSED_TENSORS}


def test_a_folder_that_is_not_quantised_is_named_and_what_quantises_it(run, tmp_path):
    source = tmp_path / "plain"
    source.mkdir()
    save_file({"lm_head.weight": np.ones((64, 128), np.float16)}, source / "model.safetensors")
    result = run("convert", str(source), str(tmp_path / "target"), "--to", "awq-gemm")
    assert result.code == 3
    assert result.err.startswith(f"error: {source}: ")
    assert "must have a packed layer (got none)" in result.err
    assert "baracuda-py quantize" in result.err
    assert not (tmp_path / "target").exists()
