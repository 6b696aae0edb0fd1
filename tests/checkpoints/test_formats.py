"""Every format, written by hand, is told apart by its headers and read back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_files import MARLIN_SIZES, NAME, by_hand, packed, values, weight, write
from hypothesis import given, settings
from hypothesis import strategies as st

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat
from baracuda_py.checkpoints.codecs import pack
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint
from baracuda_py.vocab.enums import ElementKind

FORMATS = [format.value for format in PackedFormat]
# Multiples that ic and oc have.
STEPS = {"awq_gemm": (32, 8), "awq_gemv": (32, 1), "awq_gemv_fast": (64, 4), "llm_awq_v2": (64, 4),
         "awq_marlin": (128, 256), "gptq_v1": (32, 8), "gptq_v2": (32, 8), "compressed_tensors": (32, 8)}  # fmt: skip


@st.composite
def weights(draw, format):
    ic_step, oc_step = STEPS[format]
    marlin = format == "awq_marlin"
    group_size = draw(st.sampled_from((128, -1) if marlin else (32, 64, 128, -1)))
    ic = draw(st.integers(1, 2 if marlin else 3)) * max(ic_step, group_size)
    oc = draw(st.integers(1, 1 if marlin else 4)) * oc_step
    ordered = format.startswith("gptq") or format == "compressed_tensors"
    dtype = draw(st.sampled_from(("F16", "BF16")))
    symmetric = marlin or (format == "compressed_tensors" and draw(st.booleans()))
    return weight(
        draw(st.integers(0, 2**32)), ic, oc, group_size, symmetric=symmetric,
        least_zero=1 if format == "gptq_v1" else 0, act_order=ordered and draw(st.booleans()), dtype=dtype,
    )  # fmt: skip


def read(tmp_path_factory, format, made, **kwargs):
    return checkpoints.open(write(tmp_path_factory.mktemp("checkpoint"), format, made, **kwargs))[NAME]


@pytest.mark.parametrize("format", FORMATS)
def test_a_layer_is_read_exactly_and_packed_into_the_same_bytes(format, tmp_path_factory):
    @settings(max_examples=10 if format == "awq_marlin" else 50)  # Marlin's sizes are the largest
    @given(weights(format))
    def check(made):
        layer = read(tmp_path_factory, format, made)
        assert layer.format.value == format
        assert (layer.ic, layer.oc, layer.group_size) == (*made.q.shape, made.group_size)
        assert layer.symmetric == (made.z is None)
        assert layer.scales_element is ElementKind[made.s.dtype]
        nibbles = checkpoints.unpack(layer)
        np.testing.assert_array_equal(nibbles.q, made.q)
        np.testing.assert_array_equal(nibbles.scales.astype(np.float64), made.s.values)
        np.testing.assert_array_equal(nibbles.weights(), made.exact)
        if made.z is not None:
            np.testing.assert_array_equal(nibbles.z, made.z)
        repacked = pack(layer.format, nibbles)
        written = packed(format, made)
        in_order = made.g_idx == sorted(made.g_idx or [])  # such an index is left away where it may be
        assert repacked.keys() == written.keys() - ({"weight_g_idx"} if in_order else set())
        for part, array in repacked.items():
            assert array.dtype == layer.tensors[part].dtype
            assert array.tobytes() == written[part].bits.tobytes(), part

    check()


def test_nothing_is_read_before_it_is_touched(tmp_path):
    made = weight(0, 512, 512, 128)
    layer = checkpoints.open(write(tmp_path, "awq_gemm", made))[NAME]
    (tmp_path / "model.safetensors").unlink()
    assert (layer.ic, layer.oc, set(layer.tensors)) == (512, 512, {"qweight", "qzeros", "scales"})
    with pytest.raises(CheckpointError, match="readable"):
        layer.tensors["qweight"]


def test_mapped_tensors_are_the_file_and_read_only(tmp_path):
    made = weight(0, 512, 512, 128)
    layer = checkpoints.open(write(tmp_path, "awq_gemm", made))[NAME]
    for part, tensor in packed("awq_gemm", made).items():
        array = layer.tensors[part]
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0
        np.testing.assert_array_equal(array.astype(np.float64), values(tensor).astype(np.float64))


@pytest.mark.parametrize(
    ("format", "group_size"),
    [(format, group_size) for format in FORMATS for group_size in (32, 64, 128, -1)
     if format != "awq_marlin" or group_size in (128, -1)],
)  # fmt: skip
def test_square_layers_are_told_apart(format, group_size, tmp_path):
    size = 256
    layer = checkpoints.open(write(tmp_path, format, weight(1, size, size, group_size, symmetric=format == "awq_marlin",
                                                           least_zero=1)))[NAME]  # fmt: skip
    assert layer.format.value == format


@settings(max_examples=40)
@given(ic=st.integers(1, 4), oc=st.integers(1, 20), group_size=st.sampled_from((32, -1)))
def test_gemv_is_told_apart_where_its_padding_makes_it_look_like_gemm(ic, oc, group_size, tmp_path_factory):
    made = weight(2, 32 * ic, 8 * oc, group_size)
    for format in ("awq_gemv", "awq_gemm", "gptq_v2"):
        assert read(tmp_path_factory, format, made).format.value == format


def test_marlins_own_tensor_names_are_read_too(tmp_path):
    made = weight(3, *MARLIN_SIZES, 128, symmetric=True)
    tensors = packed("awq_marlin", made)
    renamed = {f"{NAME}.B": tensors["qweight"], f"{NAME}.s": tensors["scales"]}
    write(tmp_path, "gptq_v2", made=weight(3), name="other")
    by_hand.write_safetensors(tmp_path / "model.safetensors", renamed)
    (tmp_path / "config.json").write_text(
        '{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}}'
    )
    layer = checkpoints.open(tmp_path)[NAME]
    assert layer.format is PackedFormat.AWQ_MARLIN
    np.testing.assert_array_equal(checkpoints.unpack(layer).weights(), made.exact)
    assert not checkpoints.open(tmp_path).plain


def test_bias_act_scales_and_plain_tensors_are_found(tmp_path):
    made = weight(4, 64, 16, 32)
    divisor = by_hand.Tensor("F16", np.arange(1, 65, dtype="<f2").view("<u2"))
    norm = by_hand.Tensor("F16", np.ones(8, "<f2").view("<u2"))
    bias = np.arange(16) / 4
    checkpoint = checkpoints.open(
        write(tmp_path, "awq_gemm", made, bias=bias, name="m.0.mlp.down",
              more={"m.0.mlp.act.scales": divisor, "m.0.norm.weight": norm, "m.0.mlp.down.extra": norm})
    )  # fmt: skip
    layer = checkpoint["m.0.mlp.down"]
    np.testing.assert_array_equal(layer.bias, bias.astype(np.float16))
    np.testing.assert_array_equal(layer.act_scales, np.arange(1, 65, dtype=np.float16))
    assert layer.act_scales_name == "m.0.mlp.act.scales"
    assert set(checkpoint.plain) == {"m.0.mlp.act.scales", "m.0.norm.weight", "m.0.mlp.down.extra"}
    np.testing.assert_array_equal(checkpoint.plain["m.0.norm.weight"], np.ones(8))


@pytest.mark.parametrize(
    ("format", "part"),
    [(format, part) for format in FORMATS
     for part in packed(format, weight(0, *MARLIN_SIZES, 128, symmetric=format == "awq_marlin", least_zero=1))
     if part not in ("g_idx", "weight_shape", "weight_zero_point")],
)  # fmt: skip
def test_a_missing_tensor_is_named(format, part, tmp_path):
    made = weight(0, *MARLIN_SIZES, 128, symmetric=format == "awq_marlin", least_zero=1)
    write(tmp_path, format, made)
    tensors = {f"{NAME}.{name}": tensor for name, tensor in packed(format, made).items() if name != part}
    by_hand.write_safetensors(tmp_path / "model.safetensors", tensors)
    checkpoint = checkpoints.open(tmp_path)
    if part in ("qweight", "weight_packed"):
        assert NAME not in checkpoint
        return
    # Without scaled_zeros the layer looks like the format that has qzeros instead.
    named = "qzeros" if part == "scaled_zeros" else part
    with pytest.raises(CheckpointError, match="got none") as raised:
        checkpoint[NAME]
    assert raised.value.tensor == f"{NAME}.{named}"
    assert raised.value.file == str(tmp_path / "model.safetensors")


# The GEMV formats pad two groups and one to the same shape: only the configuration knows.
@pytest.mark.parametrize("format", [format for format in FORMATS if "gemv" not in format and format != "llm_awq_v2"])
def test_a_group_size_that_is_not_the_headers_is_refused(format, tmp_path):
    made = weight(5, 256, 256, 128, symmetric=format == "awq_marlin", least_zero=1)
    wrong = by_hand.config(format, -1, symmetric=made.z is None)
    write(tmp_path, format, made, settings=wrong)
    checkpoint = checkpoints.open(tmp_path)
    with pytest.raises(CheckpointError, match="group_size = -1") as raised:
        checkpoint[NAME]
    assert raised.value.tensor.startswith(f"{NAME}.")


@pytest.mark.parametrize("group", [-1, 2])
def test_groups_beyond_the_scales_are_refused(group, tmp_path):
    made = weight(6, 64, 16, 32, act_order=True)
    made.g_idx[5] = group
    tensors = packed("gptq_v2", made)
    write(tmp_path, "gptq_v2", made)
    layer = checkpoints.open(tmp_path)[NAME]
    assert tensors["g_idx"].bits[5] == group
    with pytest.raises(CheckpointError, match=r"0\.\.1") as raised:
        checkpoints.unpack(layer)
    assert raised.value.tensor == f"{NAME}.g_idx"


def test_a_zero_point_of_15_in_gptq_v1_is_refused_with_its_count(tmp_path):
    made = weight(7, 64, 16, 32, least_zero=0)
    write(tmp_path, "gptq_v2", made, settings={"checkpoint_format": "gptq"})
    layer = checkpoints.open(tmp_path)[NAME]
    assert layer.format is PackedFormat.GPTQ_V1
    count = np.count_nonzero(made.z == 15)
    with pytest.raises(UnsupportedCheckpoint, match=f"got {count} of {made.z.size}.*readers disagree"):
        checkpoints.unpack(layer)


def test_scaled_zeros_that_are_no_multiples_of_the_scales_are_refused(tmp_path):
    made = weight(8, 64, 16, 32, dtype="F16")
    write(tmp_path, "awq_gemv_fast", made)
    tensors = packed("awq_gemv_fast", made)
    tensors["qzeros"].bits.view("<f2")[1, 3] = made.s.values[1, 3] * -2.5
    by_hand.write_safetensors(tmp_path / "model.safetensors", {f"{NAME}.{p}": t for p, t in tensors.items()})
    with pytest.raises(CheckpointError, match=r"group 1, channel 3; 1 like it") as raised:
        checkpoints.unpack(checkpoints.open(tmp_path)[NAME])
    assert raised.value.tensor == f"{NAME}.qzeros"


def test_a_weight_shape_that_is_not_the_headers_is_refused(tmp_path):
    made = weight(9, 64, 16, 32)
    write(tmp_path, "compressed_tensors", made)
    tensors = packed("compressed_tensors", made)
    tensors["weight_shape"].bits[1] = 63
    by_hand.write_safetensors(tmp_path / "model.safetensors", {f"{NAME}.{p}": t for p, t in tensors.items()})
    with pytest.raises(CheckpointError, match=r"\[16, 63\]"):
        checkpoints.unpack(checkpoints.open(tmp_path)[NAME])


def test_eight_bit_weights_are_refused_by_their_shape(tmp_path):
    words = by_hand.Tensor("I32", np.zeros((64, 16 // 4), "<u4"))  # four 8-bit weights a word
    made = packed("awq_gemm", weight(0, 64, 16, 32)) | {"qweight": words}
    write(tmp_path, "awq_gemm", weight(0, 64, 16, 32))
    by_hand.write_safetensors(tmp_path / "model.safetensors", {f"{NAME}.{p}": t for p, t in made.items()})
    with pytest.raises(UnsupportedCheckpoint, match="4-bit format"):
        checkpoints.open(tmp_path)[NAME]


@pytest.mark.parametrize(
    ("beside", "found"),
    [({"act": 64}, True), ({"act": 32}, False), ({"act": 64, "other": 64}, False), ({"act": 64, "other": 32}, True)],
)
def test_act_scales_belong_to_the_layer_beside_them_whose_inputs_they_fit(beside, found, tmp_path):
    def scales(count):
        return by_hand.Tensor("F16", np.ones(count, "<f2").view("<u2"))

    more = {f"m.0.mlp.{act}.scales": scales(count) for act, count in beside.items()}
    layer = checkpoints.open(
        write(
            tmp_path, "awq_gemm", weight(4, 64, 16, 32), name="m.0.mlp.down", more=more | {"m.0.act.scales": scales(64)}
        )
    )["m.0.mlp.down"]
    assert (layer.act_scales is not None) is found
    assert layer.act_scales_name == ("m.0.mlp.act.scales" if found else "")


def test_of_two_layers_that_fit_the_one_behind_the_activation_has_its_scales(tmp_path):
    made = {}
    for name in ("m.0.mlp.fc1", "m.0.mlp.fc2"):
        made |= {f"{name}.{part}": tensor for part, tensor in packed("awq_gemm", weight(4, 64, 64, 32)).items()}
    made["m.0.mlp.act.scales"] = by_hand.Tensor("F16", np.ones(64, "<f2").view("<u2"))
    write(tmp_path, "awq_gemm", weight(4, 64, 64, 32), name="m.0.mlp.fc1")  # its configuration
    by_hand.write_safetensors(tmp_path / "model.safetensors", made)
    model = checkpoints.open(tmp_path)
    assert {name: model[name].act_scales_name for name in model} == {
        "m.0.mlp.fc1": "", "m.0.mlp.fc2": "m.0.mlp.act.scales",
    }  # fmt: skip
