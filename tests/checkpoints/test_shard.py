"""What the ranks of a tensor-parallel group hold together is the whole layer, nibble for nibble, in every format."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from checkpoint_files import NAME, by_hand, packed, weight, write
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat
from baracuda_py.checkpoints.shard import gate_up_parts, legal_degrees, qkv_parts, regrouped, shard, shard_fused
from baracuda_py.checkpoints.splitting import FusedPart, SplitAxis, fused_parts, split_layer
from baracuda_py.errors import UnsupportedCheckpoint

F = PackedFormat
COLUMNS, ROWS = SplitAxis.COLUMNS, SplitAxis.ROWS
# Format -> ic and oc that it can have, and that divide in several ways: groups of 128 leave 64 and 32.
SIZES = dict.fromkeys(F, (384, 48)) | {F.AWQ_MARLIN: (256, 512)}
GROUPS = dict.fromkeys(F, (128, 64, -1)) | {F.AWQ_MARLIN: (128, -1)}
INDEXED = [F.GPTQ_V1, F.GPTQ_V2, F.COMPRESSED_TENSORS]


def read(tmp_path_factory, format, made, **kwargs):
    return checkpoints.open(write(tmp_path_factory.mktemp("checkpoint"), format.value, made, **kwargs))[NAME]


def weight_for(format, seed, group_size, **kwargs):
    ic, oc = SIZES[format]
    return weight(seed, ic, oc, group_size, symmetric=format is F.AWQ_MARLIN, least_zero=1, **kwargs)


def weights(layer):
    """(ic, oc), float64; exact."""
    return checkpoints.unpack(layer).weights()


def assert_same_tensors(layer, tensors):
    assert layer.tensors.keys() == tensors.keys()
    for part, tensor in tensors.items():
        array = layer.tensors[part]
        assert array.shape == tensor.bits.shape, part
        assert array.tobytes() == tensor.bits.tobytes(), part
        assert not array.flags.writeable


def cut(made, rows, channels, group_size):
    """The part of a weight with these input and output channels, in groups of `group_size`."""
    group = len(rows) if group_size == -1 else group_size
    groups = rows[::group] // made.group
    scales = by_hand.Half(made.s.dtype, made.s.values[groups][:, channels])
    z = None if made.z is None else made.z[groups][:, channels]
    return attrs.evolve(made, q=made.q[rows][:, channels], z=z, s=scales, group_size=group_size)


@pytest.mark.parametrize("axis", SplitAxis)
@pytest.mark.parametrize("format", F)
def test_a_shard_has_the_bytes_of_the_slice_of_the_weight(format, axis, tmp_path_factory):
    @settings(max_examples=4 if format is F.AWQ_MARLIN else 8)
    @given(st.data(), st.integers(0, 2**32), st.sampled_from(GROUPS[format]))
    def check(data, seed, group_size):
        made = weight_for(format, seed, group_size)
        layer = read(tmp_path_factory, format, made)
        degree = data.draw(st.sampled_from(legal_degrees(layer, axis)))
        rank = data.draw(st.integers(0, degree - 1))
        part = shard(layer, axis.value, rank, degree)
        assert (part.ic, part.oc) == ((layer.ic, layer.oc // degree), (layer.ic // degree, layer.oc))[axis is ROWS]
        rows, channels = np.arange(layer.ic), np.arange(layer.oc)
        rows, channels = (rows, np.split(channels, degree)[rank]) if axis is COLUMNS else (
            np.split(rows, degree)[rank], channels
        )  # fmt: skip
        expected = cut(made, rows, channels, part.group_size)
        assert_same_tensors(part, packed(format.value, expected))
        np.testing.assert_array_equal(weights(part), expected.exact)

    check()


@pytest.mark.parametrize("axis", SplitAxis)
@pytest.mark.parametrize("format", F)
def test_the_shards_of_every_legal_degree_make_the_whole(format, axis, tmp_path_factory):
    made = weight_for(format, 1, 128)
    layer = read(tmp_path_factory, format, made)
    degrees = legal_degrees(layer, axis)
    assert len(degrees) > 1
    for degree in degrees:
        parts = [weights(shard(layer, axis, rank, degree)) for rank in range(degree)]
        np.testing.assert_array_equal(np.concatenate(parts, 0 if axis is ROWS else 1), made.exact)


def operands_product(x, layer):
    """x @ layer in float64, by way of what a plan takes."""
    from baracuda_py.ops.quantize.awq_reference import dequantize_reference

    operands = layer.gemm_operands()
    w = dequantize_reference(
        operands.weight_packed, operands.scales, operands.zeros, layout="oc_major", group_size=operands.group_size
    )
    return x @ w + (0 if operands.bias is None else operands.bias.astype(np.float64))


@pytest.mark.parametrize("format", F)
def test_columns_of_the_product_lie_side_by_side_and_rows_add_up_bit_for_bit(format, tmp_path_factory):
    made = weight_for(format, 2, 128)
    ic, oc = SIZES[format]
    bias = np.arange(oc) / 8
    layer = read(tmp_path_factory, format, made, bias=bias)
    # Small integers times multiples of 2**-18: every sum is exact in float64, in any order.
    x = np.random.default_rng(2).integers(-8, 9, (3, ic)).astype(np.float64)
    exact = x @ made.exact + bias
    for degree in legal_degrees(layer, COLUMNS, limit=3):  # beyond it formats have channels that plans have not
        products = [operands_product(x, shard(layer, COLUMNS, rank, degree)) for rank in range(degree)]
        np.testing.assert_array_equal(np.concatenate(products, 1), exact)
    for degree in legal_degrees(layer, ROWS, limit=8):
        slices = np.split(x, degree, 1)
        products = [operands_product(slices[rank], shard(layer, ROWS, rank, degree)) for rank in range(degree)]
        np.testing.assert_array_equal(np.sum(products, 0), exact)


def test_shards_run_through_a_plan(tmp_path_factory):
    made = weight(3, 384, 64, 128)
    layer = read(tmp_path_factory, F.AWQ_GEMM, made, bias=np.arange(64) / 8)
    x = np.random.default_rng(3).standard_normal((2, 384)).astype(np.float16)
    total = np.zeros((2, 64))
    for rank in range(2):
        part = shard(layer, "rows", rank, 2)
        assert part.has_bias == (rank == 0)
        operands = part.gemm_operands()
        output = np.empty((2, 64), np.float16)
        plan = bp.select(operands.descriptor(2), "host")
        plan.run(None, bp.Workspace.NONE, operands.args(np.split(x, 2, 1)[rank].copy(), output))
        total += output
    np.testing.assert_allclose(total, x.astype(np.float64) @ made.exact + np.arange(64) / 8, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("degree", [2, 3, 4, 12])
@pytest.mark.parametrize("format", INDEXED)
def test_groups_out_of_order_are_kept_by_every_rank(format, degree, labelled, tmp_path_factory):
    """384 channels in groups of 128 over 12 ranks: 32 channels a rank, and three groups, which do not divide them."""
    made = weight_for(format, 4, 128, act_order=True)
    settings = {} if labelled or format is F.COMPRESSED_TENSORS else {
        "quantization_config": by_hand.config(format.value, 128)
    }  # fmt: skip
    layer = read(tmp_path_factory, format, made, settings=settings)
    parts = [shard(layer, "rows", rank, degree) for rank in range(degree)]
    np.testing.assert_array_equal(np.concatenate([weights(part) for part in parts]), made.exact)
    for part in parts:
        assert part.groups >= layer.groups
        assert part.groups == part.tensors["weight_scale" if "weight_scale" in part.tensors else "scales"].shape[
            1 if "weight_scale" in part.tensors else 0
        ]  # fmt: skip
    columns = [weights(shard(layer, "columns", rank, degree)) for rank in range(degree) if 48 % (8 * degree) == 0]
    if columns:
        np.testing.assert_array_equal(np.concatenate(columns, 1), made.exact)


def test_an_index_in_order_is_cut_like_none_although_the_configuration_says_act_order(tmp_path_factory):
    made = weight(5, 384, 16, 128, least_zero=1)
    config = by_hand.config("gptq_v2", 128, act_order=True)
    folder = write(tmp_path_factory.mktemp("checkpoint"), "gptq_v2", made, settings=config)
    layer = checkpoints.open(folder)[NAME]
    assert layer.act_order
    part = shard(layer, "rows", 1, 2)
    expected = cut(made, np.arange(192, 384), np.arange(16), 64)
    assert_same_tensors(part, packed("gptq_v2", expected))


# Fused projections.


def heads_of(made, first, head_dim, heads):
    return made.exact[:, first : first + heads * head_dim].reshape(-1, heads, head_dim)


@pytest.mark.parametrize("format", F)
@pytest.mark.parametrize(("heads", "shared", "degree"), [(4, 4, 2), (4, 2, 2), (8, 2, 4), (8, 2, 8), (8, 1, 4)])
def test_ranks_have_their_heads_of_q_and_the_heads_of_k_and_v_that_these_use(
    format, heads, shared, degree, tmp_path_factory
):
    head_dim = {F.AWQ_MARLIN: 256}.get(format, 8)
    made = weight(6, 256 if format is F.AWQ_MARLIN else 64, (heads + 2 * shared) * head_dim, -1,
                  symmetric=format is F.AWQ_MARLIN, least_zero=1)  # fmt: skip
    layer = read(tmp_path_factory, format, made)
    first_k, first_v = heads * head_dim, (heads + shared) * head_dim
    q = heads_of(made, 0, head_dim, heads)
    k, v = heads_of(made, first_k, head_dim, shared), heads_of(made, first_v, head_dim, shared)
    for rank in range(degree):
        part = shard_fused(layer, qkv_parts(heads, shared, head_dim), rank, degree)
        own = np.arange(heads // degree) + rank * (heads // degree)
        used = np.unique(own // (heads // shared))
        expected = np.concatenate([q[:, own], k[:, used], v[:, used]], 1).reshape(layer.ic, -1)
        np.testing.assert_array_equal(weights(part), expected)
        assert part.oc == split_layer(layer, COLUMNS, degree, qkv_parts(heads, shared, head_dim)).oc


def test_gate_and_up_are_each_divided(tmp_path_factory):
    made = weight(7, 64, 64, 32)
    layer = read(tmp_path_factory, F.AWQ_GEMM, made, bias=np.arange(64))
    assert fused_parts("mlp.gate_up_proj", 64, {}) == gate_up_parts(64)
    for rank in range(2):
        channels = np.r_[16 * rank : 16 * rank + 16, 32 + 16 * rank : 48 + 16 * rank]
        part = shard_fused(layer, gate_up_parts(64), rank, 2)
        np.testing.assert_array_equal(weights(part), made.exact[:, channels])
        np.testing.assert_array_equal(part.bias, channels)


def test_heads_of_q_are_never_held_twice(tmp_path_factory):
    layer = read(tmp_path_factory, F.AWQ_GEMM, weight(8, 64, 64, 32))
    parts = qkv_parts(4, 2, 8)
    assert legal_degrees(layer, COLUMNS, parts) == (1, 2, 4)
    with pytest.raises(UnsupportedCheckpoint, match="heads of q must be a multiple of 8"):
        shard_fused(layer, parts, 0, 8)
    with pytest.raises(UnsupportedCheckpoint, match="heads of k must be a multiple of 4, or divide it"):
        shard_fused(read(tmp_path_factory, F.AWQ_GEMM, weight(8, 64, 80, 32)), qkv_parts(4, 3, 8), 0, 4)


# Refusals, and what is not read or copied.


@pytest.mark.parametrize("axis", SplitAxis)
@pytest.mark.parametrize("format", F)
def test_a_degree_is_legal_exactly_if_the_layer_can_be_sharded(format, axis, tmp_path_factory):
    layer = read(tmp_path_factory, format, weight_for(format, 9, 128))
    legal = legal_degrees(layer, axis, limit=16)
    for degree in range(1, 17):
        if degree in legal:
            weights(shard(layer, axis, degree - 1, degree))
        else:
            with pytest.raises(UnsupportedCheckpoint) as refused:
                shard(layer, axis, 0, degree)
            assert refused.value.tensor == NAME


@pytest.mark.parametrize(
    ("format", "axis", "degrees"),
    [
        (F.AWQ_GEMM, COLUMNS, (1, 2, 3, 6)),  # oc = 48: whole words of 8
        (F.AWQ_GEMM, ROWS, (1, 2, 3, 4, 6, 12)),  # ic = 384: groups of 128, 64 or 32
        (F.GPTQ_V2, COLUMNS, (1, 2, 3, 6)),
        (F.COMPRESSED_TENSORS, COLUMNS, (1, 2, 3, 6)),
        (F.AWQ_GEMV, COLUMNS, (1, 2, 3, 4, 6, 8, 12, 16)),
        (F.AWQ_GEMV_FAST, COLUMNS, (1, 2, 3, 4, 6, 12)),  # 4 channels a row
        (F.AWQ_GEMV_FAST, ROWS, (1, 2, 3, 6)),  # runs of 64
        (F.AWQ_MARLIN, COLUMNS, (1, 2)),  # oc = 512: whole 256
        (F.AWQ_MARLIN, ROWS, (1, 2)),  # ic = 256: whole 128
    ],
)
def test_legal_degrees(format, axis, degrees, tmp_path_factory):
    assert legal_degrees(read(tmp_path_factory, format, weight_for(format, 10, 128)), axis, limit=16) == degrees


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda layer: shard(layer, "rows", 0, 24), "must not be cut into less than 32 channels (got 16, what 16"),
        (lambda layer: shard(layer, "rows", 0, 5), "ic must be a multiple of 5"),
        (lambda layer: shard(layer, "columns", 0, 4), "oc must be a multiple of 8"),
        (lambda layer: shard(layer, "columns", 2, 2), "a rank must be in 0 .. degree - 1 (got rank 2 of 2)"),
        (lambda layer: shard(layer, "rows", 0, 0), "degree must be positive (got 0)"),
        (lambda layer: shard_fused(layer, gate_up_parts(32), 0, 2), "parts must add up to oc (got 32, not 48)"),
        (lambda layer: shard_fused(layer, (FusedPart("a", 24), FusedPart("b", 24)), 0, 2), "runs of 8 channels"),
    ],
)
def test_the_reason_is_named(call, text, tmp_path_factory):
    layer = read(tmp_path_factory, F.AWQ_GEMM, weight_for(F.AWQ_GEMM, 11, 128))
    with pytest.raises(UnsupportedCheckpoint) as refused:
        call(layer)
    assert text in str(refused.value)


class Untouchable(dict):
    def __getitem__(self, part):
        raise AssertionError(f"{part} is read")


@pytest.mark.parametrize("axis", SplitAxis)
def test_sharding_reads_nothing(axis, tmp_path_factory):
    layer = read(tmp_path_factory, F.AWQ_GEMM, weight_for(F.AWQ_GEMM, 12, 128), bias=np.zeros(48))
    part = shard(attrs.evolve(layer, tensors=Untouchable(dict.fromkeys(layer.tensors))), axis, 1, 2)
    assert part.has_bias == (axis is COLUMNS)
    with pytest.raises(AssertionError, match="qweight is read"):
        part.tensors["qweight"]


@pytest.mark.parametrize("axis", SplitAxis)
@pytest.mark.parametrize("format", F)
def test_weights_are_views(format, axis, tmp_path_factory):
    layer = read(tmp_path_factory, format, weight_for(format, 13, -1))
    held = dict(layer.tensors)
    degree = legal_degrees(layer, axis)[1]
    part = shard(attrs.evolve(layer, tensors=held), axis, 1, degree)
    name = "weight_packed" if format is F.COMPRESSED_TENSORS else "qweight"
    assert np.shares_memory(part.tensors[name], held[name])


def test_scales_of_the_activation_go_with_the_input(tmp_path_factory):
    made = weight(14, 64, 16, 32)
    more = {"model.layers.3.mlp.act.scales": by_hand.Tensor("F16", np.arange(64).astype("<f2").view("<u2"))}
    layer = read(tmp_path_factory, F.AWQ_GEMM, made, more=more)
    np.testing.assert_array_equal(shard(layer, "rows", 1, 2).act_scales, np.arange(32, 64))
    np.testing.assert_array_equal(shard(layer, "columns", 1, 2).act_scales, np.arange(64))


@pytest.mark.parametrize("format", [format for format in F if format is not F.AWQ_MARLIN])
def test_smaller_groups_hold_the_same_weights(format, tmp_path_factory):
    made = weight_for(format, 15, 128)
    layer = regrouped(read(tmp_path_factory, format, made), 32)
    ic, oc = SIZES[format]
    assert_same_tensors(layer, packed(format.value, cut(made, np.arange(ic), np.arange(oc), 32)))
