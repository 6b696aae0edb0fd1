"""`baracuda-py quantize`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from baracuda_py import checkpoints
from baracuda_py.quantize import save_activations

FIRST, SECOND = (f"model.layers.{block}.self_attn.o_proj" for block in range(2))
TOKENS = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "source"
    folder.mkdir()
    weights = {f"{name}.weight": rng.standard_normal((64, 128)).astype(np.float16) for name in (FIRST, SECOND)}
    save_file(weights | {"lm_head.weight": np.ones((64, 128), np.float16)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "mine"}))
    return folder


@pytest.fixture
def activations(tmp_path):
    file = tmp_path / "activations.safetensors"
    save_activations(file, {FIRST: TOKENS * np.linspace(0.1, 4, 128, dtype=np.float32)})
    return file


def words(text):
    return " ".join(text.split())


def test_what_was_rounded_and_what_was_left_is_said(run, source, tmp_path):
    target = tmp_path / "target"
    result = run("quantize", source, target, "--group-size", 64)
    assert result.code == 0, result.err
    said = words(result.out)
    assert f"Wrote {target}" in said
    assert "2 in awq-gemm" in said
    assert "Rounded to nearest: --activations FILE" in said
    assert "lm_head.weight F16 [64, 128]: a head" in said
    assert {layer.group_size for layer in checkpoints.open(target).values()} == {64}


def test_activations_and_each_layer_are_said(run, source, activations, tmp_path):
    result = run("quantize", source, tmp_path / "target", "--activations", activations, "--all")
    assert result.code == 0, result.err
    said = words(result.out)
    assert "Rounded, since the file has no activations of them: 1" in said
    assert "Clipped only: 1; model_type mine: where its scales go is not known" in said
    assert "output error" in said
    assert said.count("weight error 0") == 2 + 1


def test_json_has_every_layer(run, source, activations, tmp_path):
    target = tmp_path / "target"
    options = ("--activations", activations, "--to", "compressed-tensors", "--scales", "bf16", "--only", "re:.*o_proj")
    result = run("quantize", source, target, *options, "--json")
    assert result.code == 0, result.err
    said = json.loads(result.out)
    assert said["format"] == "compressed_tensors"
    assert (said["layers"], said["plain"], said["folded"]) == (2, 1, [])
    assert said["left"] == [{"name": "lm_head.weight", "why": "not asked for"}]
    first, second = said["linears"]
    assert (first["name"], second["name"]) == (FIRST, SECOND)
    assert 0 < first["output_error"] < first["rtn_error"]
    assert second["output_error"] is None
    layer = checkpoints.open(target)[FIRST]
    assert layer.format is checkpoints.PackedFormat.COMPRESSED_TENSORS
    assert layer.scales_element.name == "BF16"
    before = said["before_nbytes"]
    assert before == 3 * 64 * 128 * 2
    assert said["nbytes"] < before


def test_a_target_that_holds_something_needs_overwrite(run, source, tmp_path):
    target = tmp_path / "target"
    assert run("quantize", source, target).code == 0
    refused = run("quantize", source, target)
    assert refused.code == 3
    assert "--overwrite" in refused.err
    assert run("quantize", source, target, "--group-size", -1, "--overwrite").code == 0
    assert checkpoints.open(target)[FIRST].group_size == -1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--to", "gguf"), 2), (("--scales", "f17"), 2), (("--max-shard-size", "many"), 2),
        (("--activations", "nowhere.safetensors"), 2), (("--group-size", "48"), 3), (("--scales", "f32"), 3),
        (("--fold", "gpt"), 3), (("--device", "nowhere"), 3), (("--skip", "nothing"), 3), (("--to", "gptq-v1"), 2),
    ],
)  # fmt: skip
def test_wrong_options_leave_nothing_behind(run, source, tmp_path, options, code):
    result = run("quantize", source, tmp_path / "target", *options)
    assert result.code == code, result.err
    assert result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_only_formats_that_are_written_are_offered(run, source, tmp_path):
    said = words(run("quantize", source, tmp_path / "target", "--to", "gptq").err)
    assert "none of awq-gemm, compressed-tensors" in said.replace("│ ", "")
    assert "marlin" not in said


def test_a_folder_that_cannot_be_made_is_no_crash(run, source, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("quantize", source, tmp_path / "file" / "target")
    assert result.code == 3
    assert "unexpected" not in result.err
    assert "must be writable" in words(result.err)


def test_the_current_folder_can_be_the_target(run, source, tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    monkeypatch.chdir(target)
    assert run("quantize", "../source", ".").code == 0
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert target.samefile(".")
    refused = run("quantize", "../source", ".", "--overwrite")
    assert refused.code == 3
    assert "from another folder" in words(refused.err)


def test_a_model_is_not_replaced_by_what_is_made_of_it(run, source):
    before = (source / "model.safetensors").read_bytes()
    assert run("quantize", source, source, "--overwrite").code == 3
    assert (source / "model.safetensors").read_bytes() == before
