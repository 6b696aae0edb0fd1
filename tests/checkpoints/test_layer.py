"""A layer's sizes and descriptor, and that every contradiction in its headers names file and tensor."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoint_files import NAME
from safetensors.numpy import save_file

from baracuda_py import checkpoints
from baracuda_py.errors import CheckpointError, InvalidProblem, Unsupported, UnsupportedCheckpoint
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.vocab.enums import ElementKind, EpilogueKind

IC, OC, GROUP = 256, 24, 64
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "GEMM"}


def tensors(**replaced):
    random = np.random.default_rng(5)

    def words(rows):
        return random.integers(-(2**31), 2**31, (rows, OC // 8), np.int32)

    made = {
        "qweight": words(IC),
        "qzeros": words(IC // GROUP),
        "scales": random.uniform(0.01, 0.02, (IC // GROUP, OC)).astype(np.float16),
        "bias": random.normal(size=OC).astype(np.float16),
    } | replaced
    return {f"{NAME}.{part}": array for part, array in made.items() if array is not None}


def opened(folder, saved=None, **changes):
    save_file(tensors() if saved is None else saved, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": CONFIG | changes}))
    return checkpoints.open(folder)


def test_tensors_are_as_safetensors_wrote_them(tmp_path):
    layer = opened(tmp_path)[NAME]
    for name, array in tensors().items():
        read = layer.tensors[name.removeprefix(f"{NAME}.")]
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
    assert (layer.ic, layer.oc, layer.group_size, layer.groups) == (IC, OC, GROUP, IC // GROUP)
    assert layer.nbytes == sum(array.nbytes for array in tensors().values())
    assert layer.file == tmp_path / "model.safetensors"


@pytest.mark.parametrize("layout", AwqWeightLayout)
@pytest.mark.parametrize("element", [None, ElementKind.F16, ElementKind.BF16])
def test_the_descriptor_is_the_gemm_of_the_layer(tmp_path, element, layout):
    desc = opened(tmp_path)[NAME].descriptor(7, element=element, layout=layout)
    assert (desc.m, desc.ic, desc.oc, desc.group_size) == (7, IC, OC, GROUP)
    assert desc.weight_layout is layout
    assert desc.element is (ElementKind.F16 if element is None else element)
    assert desc.scales_kind is ElementKind.F16
    assert desc.epilogue is EpilogueKind.BIAS


def test_a_layer_without_bias_has_the_identity_epilogue(tmp_path):
    layer = opened(tmp_path, tensors(bias=None))[NAME]
    assert layer.bias is None
    assert layer.descriptor(1).epilogue is EpilogueKind.IDENTITY
    with pytest.raises(CheckpointError, match="needs a bias"):
        layer.descriptor(1, epilogue=EpilogueKind.BIAS_RELU)


@pytest.mark.parametrize(
    ("part", "array", "error"),
    [
        ("qweight", np.zeros((IC, OC // 4), np.int32), UnsupportedCheckpoint),
        ("qweight", np.zeros((IC, OC // 8), np.int64), UnsupportedCheckpoint),
        ("qweight", np.zeros((IC, 3, 1), np.int32), CheckpointError),
        ("qweight", np.zeros(IC, np.int32), CheckpointError),
        ("qweight", np.zeros((0, 3), np.int32), CheckpointError),
        ("qzeros", np.zeros((IC // GROUP, OC), np.int32), CheckpointError),
        ("qzeros", np.zeros((IC // GROUP, OC // 8), np.float16), CheckpointError),
        ("qzeros", None, CheckpointError),
        ("scales", np.zeros((IC // GROUP, OC), np.float32), CheckpointError),
        ("scales", np.zeros((IC // GROUP - 1, OC), np.float16), CheckpointError),
        ("scales", np.zeros(OC, np.float16), CheckpointError),
        ("scales", None, CheckpointError),
        ("bias", np.zeros(OC - 1, np.float16), CheckpointError),
        ("bias", np.zeros(OC, np.int32), CheckpointError),
    ],
)
def test_a_header_that_contradicts_the_format_is_named(tmp_path, part, array, error):
    checkpoint = opened(tmp_path, tensors(**{part: array}))
    with pytest.raises(error) as caught:
        checkpoint[NAME]
    assert isinstance(caught.value, (InvalidProblem, Unsupported))
    assert caught.value.file == str(tmp_path / "model.safetensors")
    assert caught.value.tensor == f"{NAME}.{part}"
    assert str(caught.value).startswith(f"{caught.value.file}: {caught.value.tensor}: ")


@pytest.mark.parametrize("group_size", [32, 128, -1, 96])
def test_a_group_size_that_the_headers_contradict_is_refused(tmp_path, group_size):
    checkpoint = opened(tmp_path, group_size=group_size)
    with pytest.raises(CheckpointError, match=f"config.json says group_size = {group_size}"):
        checkpoint[NAME]


def test_one_bad_layer_does_not_hide_the_others(tmp_path):
    bad = {name.replace("up_proj", "down_proj"): array for name, array in tensors(qzeros=None).items()}
    checkpoint = opened(tmp_path, tensors() | bad)
    assert set(checkpoint) == {NAME, NAME.replace("up_proj", "down_proj")}
    assert checkpoint[NAME].oc == OC
    with pytest.raises(CheckpointError, match=r"down_proj\.qzeros"):
        checkpoint[NAME.replace("up_proj", "down_proj")]


def test_a_layer_that_is_missing_lists_near_names(tmp_path):
    other = {name.replace("up_proj", "down_proj"): array for name, array in tensors().items()}
    dense = {"model.embed.weight": np.zeros(3, np.float32)}
    checkpoint = opened(tmp_path, tensors() | other | dense)
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj") as caught:
        checkpoint.layer("model.layers.3.mlp.upproj")
    assert caught.value.rule == "missing layer"
    with pytest.raises(CheckpointError, match=r"down_proj, .*up_proj"):
        checkpoint.layer("model.layers.3.mlp")
    with pytest.raises(CheckpointError, match="a layer that is not quantised"):
        checkpoint.layer("model.embed")
    with pytest.raises(CheckpointError, match="no quantised layer at all"):
        opened(tmp_path, dense).layer(NAME)
