"""Reading a layer: where tensors are found, what is refused, and that every message names file and tensor."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from baracuda_py.checkpoints import read_config, read_layer
from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.vocab.enums import ElementKind, EpilogueKind

NAME = "model.layers.3.mlp.up_proj"
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


def write(folder, saved=None, config=CONFIG, **root):
    save_file(tensors() if saved is None else saved, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config, **root}))
    return folder


def test_a_layer_is_read_as_it_lies(tmp_path):
    layer = read_layer(write(tmp_path), NAME)
    for part, array in tensors().items():
        read = getattr(layer, part.removeprefix(f"{NAME}."))
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
    assert (layer.ic, layer.oc, layer.group_size, layer.name) == (IC, OC, GROUP, NAME)
    assert layer.file == tmp_path / "model.safetensors"
    assert (layer.config.bits, layer.config.version, layer.config.file) == (4, "gemm", tmp_path / "config.json")


@pytest.mark.parametrize("element", [None, ElementKind.F16, ElementKind.BF16])
def test_the_descriptor_is_the_gemm_of_the_layer(tmp_path, element):
    desc = read_layer(write(tmp_path), NAME).descriptor(7, element=element)
    assert (desc.m, desc.ic, desc.oc, desc.group_size) == (7, IC, OC, GROUP)
    assert desc.weight_layout is AwqWeightLayout.HF_GEMM
    assert desc.element is (ElementKind.F16 if element is None else element)
    assert desc.scales_kind is ElementKind.F16
    assert desc.epilogue is EpilogueKind.BIAS


def test_a_layer_without_bias_has_the_identity_epilogue(tmp_path):
    layer = read_layer(write(tmp_path, tensors(bias=None)), NAME)
    assert layer.bias is None
    assert layer.descriptor(1).epilogue is EpilogueKind.IDENTITY
    with pytest.raises(InvalidProblem, match="needs a bias"):
        layer.descriptor(1, epilogue=EpilogueKind.BIAS_RELU)


def test_one_group_of_all_channels(tmp_path):
    saved = tensors(qzeros=np.zeros((1, OC // 8), np.int32), scales=np.ones((1, OC), np.float16))
    layer = read_layer(write(tmp_path, saved, CONFIG | {"group_size": -1}), NAME)
    assert layer.group_size == -1
    assert layer.descriptor(1).groups == 1


def shard(folder):
    saved = tensors()
    names = {name: f"model-0000{1 + name.endswith('scales')}-of-00002.safetensors" for name in saved}
    for file in set(names.values()):
        save_file({name: array for name, array in saved.items() if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps({"quantization_config": CONFIG}))
    return names


def test_shards_are_found_through_the_index(tmp_path):
    shard(tmp_path)
    layer = read_layer(tmp_path, NAME)
    np.testing.assert_array_equal(layer.scales, tensors()[f"{NAME}.scales"])
    np.testing.assert_array_equal(layer.qweight, tensors()[f"{NAME}.qweight"])


def test_a_shard_that_is_missing_is_named(tmp_path):
    file = shard(tmp_path)[f"{NAME}.scales"]
    (tmp_path / file).unlink()
    with pytest.raises(InvalidProblem, match=file) as caught:
        read_layer(tmp_path, NAME)
    assert caught.value.rule == "missing file"


def test_an_index_that_lies_about_a_tensor_is_told(tmp_path):
    names = shard(tmp_path)
    names[f"{NAME}.scales"] = names[f"{NAME}.qweight"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InvalidProblem, match=r"scales.*in the file that the index names"):
        read_layer(tmp_path, NAME)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/x.safetensors", 3])
def test_an_index_does_not_lead_out_of_the_folder(tmp_path, file):
    shard(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"{NAME}.qweight": file}}))
    with pytest.raises(InvalidProblem, match="files of this folder"):
        read_layer(tmp_path, NAME)


@pytest.mark.parametrize("name", ["quant_config.json", "quantize_config.json"])
def test_older_configurations_are_read(tmp_path, name):
    write(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps({"w_bit": 4, "q_group_size": GROUP, "zero_point": True}))
    assert read_config(tmp_path).group_size == GROUP
    assert read_layer(tmp_path, NAME).ic == IC


@pytest.mark.parametrize(
    ("change", "rule", "got"),
    [
        ({"quant_method": "gptq"}, "quant_method", "gptq"),
        ({"bits": 8}, "bits", "8"),
        ({"version": "gemv"}, "version", "gemv"),
        ({"version": "Marlin"}, "version", "marlin"),
        ({"backend": "llm-awq"}, "version", "llm-awq"),
    ],
)
def test_another_format_is_refused_by_name(tmp_path, change, rule, got):
    with pytest.raises(Unsupported, match=got) as caught:
        read_layer(write(tmp_path, config=CONFIG | change), NAME)
    assert caught.value.rule == rule
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("group_size", [None, 0, -2, 64.0, "64"])
def test_a_group_size_that_is_none_is_refused(tmp_path, group_size):
    with pytest.raises(InvalidProblem, match="group_size"):
        read_config(write(tmp_path, config=CONFIG | {"group_size": group_size}))


def test_modelopt_is_refused_by_name(tmp_path):
    write(tmp_path, config=None)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A16_AWQ"}}))
    with pytest.raises(Unsupported, match="ModelOpt W4A16_AWQ"):
        read_config(tmp_path)


def test_a_model_that_is_not_quantised_is_refused(tmp_path):
    with pytest.raises(InvalidProblem, match=re.escape(str(tmp_path / "config.json"))):
        read_config(write(tmp_path, config=None))
    (tmp_path / "config.json").unlink()
    with pytest.raises(InvalidProblem, match="no such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidProblem, match="readable JSON"):
        read_config(tmp_path)


def test_pickles_are_refused_with_the_reason(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidProblem, match=r"pytorch_model\.bin.*unpickling runs code"):
        read_layer(tmp_path, NAME)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(InvalidProblem, match="neither"):
        read_layer(tmp_path, NAME)


def test_a_file_that_is_cut_is_refused(tmp_path):
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidProblem, match=re.escape(str(file))):
        read_layer(tmp_path, NAME)


@pytest.mark.parametrize(
    ("part", "array", "error"),
    [
        ("qweight", np.zeros((IC, OC // 8), np.int16), Unsupported),
        ("qweight", np.zeros((OC, IC // 8), np.int32), Unsupported),
        ("qweight", np.zeros(IC, np.int32), Unsupported),
        ("qzeros", np.zeros((IC // GROUP, OC), np.int32), InvalidProblem),
        ("qzeros", np.zeros((IC // GROUP, OC // 8), np.float16), InvalidProblem),
        ("scales", np.zeros((IC // GROUP, OC), np.float32), InvalidProblem),
        ("scales", np.zeros((IC // GROUP - 1, OC), np.float16), InvalidProblem),
        ("scales", np.zeros(OC, np.float16), InvalidProblem),
        ("bias", np.zeros(OC - 1, np.float16), InvalidProblem),
        ("bias", np.zeros(OC, np.int32), InvalidProblem),
    ],
)
def test_a_header_that_contradicts_the_format_is_named(tmp_path, part, array, error):
    with pytest.raises(error) as caught:
        read_layer(write(tmp_path, tensors(**{part: array})), NAME)
    assert f"{tmp_path / 'model.safetensors'}: {NAME}.{part}: " in str(caught.value)


@pytest.mark.parametrize("group_size", [32, 128, -1, 96])
def test_a_group_size_that_the_headers_contradict_is_refused(tmp_path, group_size):
    with pytest.raises(InvalidProblem, match=f"group_size = {group_size}") as caught:
        read_layer(write(tmp_path, config=CONFIG | {"group_size": group_size}), NAME)
    assert caught.value.rule == "group_size"


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_tensor_that_is_missing_is_named(tmp_path, part):
    with pytest.raises(InvalidProblem, match=f"{re.escape(NAME)}.{part}"):
        read_layer(write(tmp_path, tensors(**{part: None})), NAME)


def test_a_layer_that_is_missing_lists_near_names(tmp_path):
    other = {name.replace("up_proj", "down_proj"): array for name, array in tensors().items()}
    dense = {"model.embed.weight": np.zeros(3, np.float32)}
    write(tmp_path, tensors() | other | dense)
    with pytest.raises(InvalidProblem, match=r"mlp\.up_proj") as caught:
        read_layer(tmp_path, "model.layers.3.mlp.upproj")
    assert caught.value.rule == "missing layer"
    with pytest.raises(InvalidProblem, match=r"down_proj, .*up_proj"):
        read_layer(tmp_path, "model.layers.3.mlp")
    with pytest.raises(InvalidProblem, match="a layer that is not quantised"):
        read_layer(tmp_path, "model.embed")
    write(tmp_path, dense)
    with pytest.raises(InvalidProblem, match="no quantised layer at all"):
        read_layer(tmp_path, NAME)
