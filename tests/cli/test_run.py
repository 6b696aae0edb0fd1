"""`demo` and `run awq-gemm`: the same computation, on the host and on a GPU made of host memory."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import baracuda_py as bp
from baracuda_py.cli import files, status
from baracuda_py.cli.demo import GROUP_SIZE, LAYERS, quantise

GATE, BIASED = LAYERS[1].name, LAYERS[0].name


def command(checkpoint, layer, *more):
    return ("run", "awq-gemm", "--checkpoint", checkpoint, "--layer", layer, *more)


def test_quantisation_is_within_half_a_step_of_the_weight():
    weight = np.random.default_rng(1).normal(0.01, 0.02, (256, 24))
    weight[:, 3] = 0.0
    nibbles, zeros, scales = quantise(weight, 64)
    assert nibbles.dtype == zeros.dtype == np.uint8
    assert nibbles.max() <= 15
    assert zeros.max() <= 15
    step = np.repeat(scales.astype(np.float64), 64, axis=0)
    again = (nibbles.astype(int) - np.repeat(zeros.astype(int), 64, axis=0)) * step
    # Half a step, and half again where the rounded zero point or the f16 scale pushes an extreme past 0 or 15.
    assert np.all(np.abs(again - weight) <= 1.02 * step)
    assert np.linalg.norm(again - weight) < 0.12 * np.linalg.norm(weight)
    assert np.all(again[:, 3] == 0)


def test_demo_runs_every_layer_and_says_how_well(run, no_gpu):
    result = run("demo")
    assert result.code == 0
    for layer in LAYERS:
        assert layer.name in result.out
    assert result.out.count(": ok") == len(LAYERS)
    assert "the host" in result.out
    assert "epilogue bias" in result.out
    assert "All layers agree" in result.out
    assert result.err == ""


def test_demo_does_what_run_does(run, no_gpu, tmp_path):
    demo = json.loads(run("demo", "--output", tmp_path / "kept", "--m", 3, "--json").out)
    assert [entry["layer"] for entry in demo] == [layer.name for layer in LAYERS]
    for entry in demo:
        again = json.loads(run(*command(tmp_path / "kept", entry["layer"], "--m", 3, "--json")).out)
        for timing in ("median_us",):
            assert entry.pop(timing) > 0
            again.pop(timing)
        assert entry == again


def test_the_demo_checkpoint_looks_like_one_of_the_hub(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
    assert config == {
        "quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True, "version": "gemm",
    }  # fmt: skip
    tensors = load_file(checkpoint / "model.safetensors")
    for layer in LAYERS:
        groups = layer.ic // GROUP_SIZE
        assert tensors[f"{layer.name}.qweight"].shape == (layer.ic, layer.oc // 8)
        assert tensors[f"{layer.name}.qzeros"].shape == (groups, layer.oc // 8)
        assert tensors[f"{layer.name}.scales"].shape == (groups, layer.oc)
        assert (f"{layer.name}.bias" in tensors) == layer.bias


@pytest.mark.parametrize("wrong", [("--device", "sm_90a"), ("--m", -5)], ids=str)
def test_demo_leaves_nothing_where_it_cannot_run(run, no_gpu, tmp_path, wrong):
    assert run("demo", *wrong, "--output", tmp_path / "kept").code != 0
    assert not (tmp_path / "kept").exists()


def test_the_command_line_runs_as_a_module():
    command = [sys.executable, "-m", "baracuda_py", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0
    assert bp.__version__ in found.stdout


def test_demo_refuses_to_fill_a_folder_that_holds_something(run, tmp_path):
    (tmp_path / "mine").write_text("x")
    result = run("demo", "--output", tmp_path)
    assert result.code == 2
    assert "is not empty" in " ".join(re.sub("[│\\s]+", " ", result.err).split())
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("element", ["f16", "bf16"])
@pytest.mark.parametrize("m", [0, 1, 17])
def test_run_holds_the_tolerance_of_the_guarantee(run, no_gpu, checkpoint, element, m):
    result = run(*command(checkpoint, BIASED, "--m", m, "--element", element, "--repeat", 1, "--json"))
    facts = json.loads(result.out)
    assert result.code == 0
    assert facts["passed"] is True
    assert facts["relative_error"] <= facts["tolerance"] <= {"f16": 5e-4, "bf16": 4e-3}[element]
    assert (facts["relative_error"] > 0) == (m > 0)
    assert facts["descriptor"]["element"] == element
    assert facts["descriptor"]["scales_element"] == "f16"
    assert facts["descriptor"]["epilogue"] == "bias"
    assert facts["clock"] == "host clock"


@pytest.mark.parametrize("epilogue", ["identity", "bias_relu", "bias-gelu", "BIAS_SILU"])
def test_run_takes_any_epilogue(run, no_gpu, checkpoint, epilogue):
    result = run(*command(checkpoint, BIASED, "--epilogue", epilogue, "--repeat", 1))
    assert result.code == 0
    assert ("the bias is left out" in result.out) == (epilogue == "identity")


def test_run_refuses_an_epilogue_that_needs_a_bias_which_is_not_there(run, no_gpu, checkpoint):
    result = run(*command(checkpoint, GATE, "--epilogue", "bias"))
    assert result.code == 3
    assert GATE in result.err
    assert "needs a bias" in result.err


def test_run_on_a_gpu_moves_the_tensors_and_times_with_events(run, gpu, checkpoint):
    result = run(*command(checkpoint, BIASED, "--m", 5, "--repeat", 3, "--json"))
    facts = json.loads(result.out)
    assert result.code == 0
    assert facts["device"] == "cuda:0 (Fake 90, sm_90)"
    assert ".sm90a.bespoke." in facts["sku"]
    assert facts["descriptor"]["weight_layout"] == "hf_gemm"
    assert facts["clock"] == "CUDA events"
    assert facts["median_us"] == pytest.approx(4.0)
    log = gpu.driver.log
    assert log.count("launch") == 1 + 3
    first = log.index("cuEventRecord")
    assert log[first : first + 9] == ["cuEventRecord", "launch", "cuEventRecord"] * 3
    assert log[first + 9] == "cuEventSynchronize"
    assert log.index("launch") < log.index("cuMemcpyDtoH") < first, "the result is read before the timed runs"
    assert not gpu.driver.live_events


def test_a_kernel_that_writes_nothing_fails_the_check(run, gpu, checkpoint):
    gpu.computes = False
    result = run(*command(checkpoint, GATE))
    assert result.code == 1
    assert "TOO LARGE" in result.out
    facts = json.loads(run(*command(checkpoint, GATE, "--json")).out)
    assert facts["passed"] is False
    assert facts["relative_error"] is None, "NaN is no JSON"
    demo = run("demo")
    assert demo.code == 1
    assert "further from the reference" in demo.out


def test_a_dry_run_device_is_refused(run, checkpoint):
    result = run(*command(checkpoint, GATE, "--device", "sm_90"))
    assert result.code == 3
    assert "explain" in result.err


def test_a_negative_m_is_refused_by_the_op(run, checkpoint):
    result = run(*command(checkpoint, GATE, "--m", -1))
    assert result.code == 3
    assert "m >= 0" in result.err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--element", "f12"), "--element"),
        (("--device", "gpu"), "--device"),
        (("--repeat", "0"), "--repeat"),
        (("--epilogue", "relu"), "bias_relu"),
    ],
)
def test_a_wrong_option_is_wrong_usage(run, checkpoint, more, named):
    result = run(*command(checkpoint, GATE, *more))
    assert result.code == 2
    assert named in result.err
    assert result.out == ""


def test_a_folder_that_is_not_there_is_wrong_usage(run, tmp_path):
    assert run(*command(tmp_path / "none", GATE)).code == 2


def test_a_layer_that_is_not_there_names_its_neighbours(run, checkpoint):
    result = run(*command(checkpoint, "model.layers.0.mlp"))
    assert result.code == 3
    assert GATE in result.err
    assert LAYERS[2].name in result.err
    assert BIASED not in result.err
    assert "Traceback" not in result.err


def test_the_reference_in_blocks_is_the_reference(run, no_gpu, checkpoint, monkeypatch):
    from baracuda_py.cli import run as module

    whole = json.loads(run(*command(checkpoint, BIASED, "--repeat", 1, "--json")).out)
    monkeypatch.setattr(module, "_REFERENCE_ELEMENTS", 24 * LAYERS[0].ic)  # 512 columns are no multiple of 24
    blocks = json.loads(run(*command(checkpoint, BIASED, "--repeat", 1, "--json")).out)
    assert blocks["relative_error"] == pytest.approx(whole["relative_error"], rel=1e-9)


def test_bf16_scales_are_read_without_torch(run, no_gpu, checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    for name in [name for name in tensors if name.endswith((".scales", ".bias"))]:
        tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    facts = json.loads(run(*command(tmp_path, BIASED, "--json")).out)
    assert facts["passed"] is True
    assert facts["descriptor"]["element"] == facts["descriptor"]["scales_element"] == "bf16"
    mixed = json.loads(run(*command(tmp_path, BIASED, "--element", "f16", "--json")).out)
    assert mixed["passed"] is True
    assert (mixed["descriptor"]["element"], mixed["descriptor"]["scales_element"]) == ("f16", "bf16")


def test_a_demo_that_cannot_be_written_is_told_in_one_line(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    result = run("demo", "--output", tmp_path / "file" / "demo")
    assert result.code == 3
    [told] = result.err.splitlines()
    assert told.startswith(f"error: {tmp_path / 'file' / 'demo'}: a folder to write to must be writable: ")
    assert told.endswith("Name another with --output, or make this one writable.")

    def refused(dir):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), dir)

    monkeypatch.setattr(files, "TemporaryFile", refused)  # whoever runs the tests may write everywhere
    result = run("demo", "--output", tmp_path / "demo")
    assert result.code == 3
    assert result.err.splitlines() == [
        f"error: {tmp_path / 'demo'}: a folder to write to must be writable: Permission denied. "
        "Name another with --output, or make this one writable."
    ]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EACCES, "Name another path"), (errno.EROFS, "Name another path"), (errno.ENOSPC, "Make room"),
     (errno.ENOTDIR, "Check this path")],
)  # fmt: skip
def test_what_the_system_refuses_is_told_with_its_path_and_what_to_do(number, advice):
    told = status.message(OSError(number, os.strerror(number), "models/out"))
    assert told.startswith(f"models/out: {os.strerror(number)}. {advice}")
    assert told.endswith(".")
    assert "\n" not in told
    assert "unexpected" not in told
