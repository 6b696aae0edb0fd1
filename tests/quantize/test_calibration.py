"""The file of a model's activations: what is read from it, and what is refused by name."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from plain_models import GATE, HIDDEN, LINEARS, O, Q, V, attention, tensors_of, write
from safetensors.numpy import save_file

from baracuda_py.errors import CheckpointError, InvalidProblem, Unsupported
from baracuda_py.quantize import ActivationStatistics, quantize_checkpoint, save_activations
from baracuda_py.quantize.calibration import Calibration
from baracuda_py.quantize.checkpoint import plan_quantize

TOKENS = np.random.default_rng(3).standard_normal((40, HIDDEN)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "activations.safetensors"


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source", tensors_of())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_inputs_come_back_as_they_were(file, dtype):
    samples = TOKENS.astype(dtype)
    save_activations(file, {Q: samples})
    found = Calibration.open(file)
    read = found.read(Q)
    assert read.dtype == dtype
    assert read.tobytes() == samples.tobytes()
    assert found.channels(Q) == HIDDEN


@pytest.mark.parametrize("correlations", [False, True])
def test_statistics_come_back_and_give_the_same_weights(file, source, tmp_path, correlations):
    read = attention(tensors_of(), TOKENS)
    statistics = {
        name: ActivationStatistics.of(read[name].astype(np.float32), correlations=correlations) for name in (Q, O)
    }
    save_activations(file, statistics)
    for name, expected in statistics.items():
        found = Calibration.open(file).read(name)
        assert np.array_equal(found.mean_magnitude, expected.mean_magnitude)
        assert np.array_equal(found.second_moment, expected.second_moment)
    made = quantize_checkpoint(source, tmp_path / "target", activations=file)
    known = [layer for layer in made.layers if layer.output_error is not None]
    assert sorted(layer.name for layer in known) == sorted(name for name in LINEARS if "self_attn" in name)
    assert all(layer.output_error < layer.rtn_error for layer in known)


X = {"x": np.ones((4, HIDDEN), np.float32), "mean": np.ones(HIDDEN, np.float32), "half": np.ones(HIDDEN, np.float16)}


@pytest.mark.parametrize(
    ("tensors", "rule", "tensor"),
    [
        ({f"{Q}.weight": X["x"]}, "activations", f"{Q}.weight"),
        ({f"{Q}.mean_magnitude": X["mean"]}, "activations", Q),
        ({f"{Q}.inputs": X["x"], f"{Q}.mean_magnitude": X["mean"]}, "activations", Q),
        ({f"{Q}.inputs": X["mean"]}, "shape", f"{Q}.inputs"),
        ({f"{Q}.inputs": X["x"].astype(np.int32)}, "shape", f"{Q}.inputs"),
        ({f"{Q}.inputs": X["x"][:0]}, "shape", f"{Q}.inputs"),
        ({f"{Q}.mean_magnitude": X["mean"], f"{Q}.second_moment": X["mean"][:-1]}, "shape", Q),
        ({f"{Q}.mean_magnitude": X["mean"], f"{Q}.second_moment": X["x"]}, "shape", Q),
        ({f"{Q}.mean_magnitude": X["x"], f"{Q}.second_moment": X["mean"]}, "shape", f"{Q}.mean_magnitude"),
        ({"model.layers.0.self_attn.z_proj.inputs": X["x"]}, "activations", "model.layers.0.self_attn.z_proj"),
        ({"model.norm.inputs": X["x"]}, "activations", "model.norm"),
        ({f"{Q}.inputs": X["x"][:, :-32]}, "ic", Q),
        ({"lm_head.inputs": X["x"]}, "activations", ""),
        ({f"{Q}.inputs": X["x"], f"{V}.inputs": 2 * X["x"]}, "activations", V),
    ],
)  # fmt: skip
def test_what_is_no_activation_of_the_model_is_refused_by_name(file, source, tmp_path, tensors, rule, tensor):
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as refused:
        plan_quantize(source, tmp_path / "target", activations=file)
    assert (refused.value.rule, refused.value.tensor, refused.value.file) == (rule, tensor, str(file))


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{GATE}.inputs": np.full((4, HIDDEN), np.inf, np.float32)},
        {f"{GATE}.mean_magnitude": -X["mean"], f"{GATE}.second_moment": X["mean"]},
        {f"{GATE}.mean_magnitude": X["mean"], f"{GATE}.second_moment": np.nan * X["mean"]},
    ],
)
def test_values_that_cannot_be_are_refused_by_name(file, source, tmp_path, tensors):
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as refused:
        quantize_checkpoint(source, tmp_path / "target", activations=file)
    assert refused.value.file == str(file)
    assert GATE in str(refused.value)
    assert not (tmp_path / "target").exists()


def test_activations_of_a_shared_input_may_differ_in_the_order_of_a_sum(file, source, tmp_path):
    save_file({f"{Q}.inputs": TOKENS, f"{V}.inputs": (TOKENS * 1.001).astype(np.float16)}, file)
    assert plan_quantize(source, tmp_path / "target", activations=file).linears


def test_a_file_that_is_not_there_or_damaged(file):
    with pytest.raises(CheckpointError):
        Calibration.open(file)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError):
        Calibration.open(file)


def test_what_is_saved_must_be_activations(file):
    with pytest.raises(Unsupported, match=Q):
        save_activations(file, {Q: TOKENS.astype(np.float64)})
    with pytest.raises(InvalidProblem, match=Q):
        save_activations(file, {Q: TOKENS[0]})
    assert not file.exists()
