"""What the AWQ GEMM's CUDA kernels promise beyond the generic laws, on an emulated GPU."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from cuda_emulator.backend import HOPPER_SLICE, EmulatorBackend, emulated_registry

import baracuda_py as bp
from baracuda_py.ops.quantize import awq_gemm_sm90a_wide as wide
from baracuda_py.ops.quantize.awq_packing import pack_weight, pack_zeros
from baracuda_py.ops.quantize.awq_tiles import pack_tiles
from baracuda_py.testing.batches import batch_of
from baracuda_py.testing.calls import Call, Case, frobenius_error, reference_outputs
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.tolerance import relative_tolerance

TILED, HF_GEMM, OC_MAJOR = bp.AwqWeightLayout.TILED, bp.AwqWeightLayout.HF_GEMM, bp.AwqWeightLayout.OC_MAJOR
LAYOUTS = (OC_MAJOR, HF_GEMM)
VARIANTS = [
    ("small_m", OC_MAJOR),
    *((variant, layout) for variant in ("stream", "splitk", "tile") for layout in LAYOUTS),
    *(("bulk", layout) for layout in LAYOUTS),
    *((variant, TILED) for variant in ("bulk", "warpgroup", "wide", "stream", "tile", "direct")),
]
ELEMENTS = (bp.ElementKind.F16, bp.ElementKind.BF16)


def _case(registry, variant: str, descriptor) -> Case:
    op = registry.op("int4_awq_gemm")
    wanted = f"{variant}_{descriptor.weight_layout.value}"
    kernel = next(
        kernel
        for kernel in op.kernels
        if (kernel.sku.variant, kernel.sku.element, kernel.sku.epilogue)
        == (wanted, descriptor.element, descriptor.epilogue)
    )
    return Case(registry, op, kernel, descriptor, registry.device(0))


def _run(case: Case, inputs) -> np.ndarray:
    return Call.of(case, inputs).run()["output"]


def _rows_are_those_of(case: Case, counts) -> None:
    """The rows of every smaller batch have the bits that they have in the case's own."""
    batch = batch_of(case.op, case.descriptor)
    assert batch is not None
    inputs = inputs_for(case.op, case.descriptor)
    whole = _run(case, inputs)
    for count in counts:
        fewer = attrs.evolve(case, descriptor=batch.resized(case.descriptor, count))
        found = _run(fewer, inputs | {"activation": inputs["activation"][-count:]})
        assert found.tobytes() == whole[-count:].tobytes(), f"{count} of {batch.count} rows"


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_row_of_the_contracts_kernel_has_the_same_bits_in_every_tile(registry, layout, element):
    descriptor = bp.Int4AwqGemmDescriptor(130, 384, 128, 128, 3, layout, element)
    _rows_are_those_of(_case(registry, "splitk", descriptor), (3, 16, 17, 64, 65, 70, 128, 129))


@pytest.mark.parametrize("group", [128, 64, 32, -1])
def test_a_token_has_the_same_bits_in_every_batch_of_up_to_eight(registry, group):
    descriptor = bp.Int4AwqGemmDescriptor(8, 640, 72, group, None)
    _rows_are_those_of(_case(registry, "small_m", descriptor), range(1, 8))


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize(
    ("group", "ic", "oc", "channels", "rows"),
    [(128, 1280, 72, 32, 1), (64, 1344, 456, 64, 1), (32, 800, 648, 64, 1), (-1, 672, 1096, 64, 2)],
)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
def test_a_token_has_the_same_bits_in_every_batch_of_a_stream(
    modules, monkeypatch, layout, group, ic, oc, channels, rows, element
):
    registry = emulated_registry(EmulatorBackend(modules, HOPPER_SLICE))
    monkeypatch.setattr(bp, "default_registry", lambda: registry)
    descriptor = bp.Int4AwqGemmDescriptor(19, ic, oc, group, None, layout, element)
    case = _case(registry, "stream", descriptor)
    (launch,) = case.plan.launches
    assert f"_c{channels}_" in launch.entry
    assert launch.parameters[-1] == rows
    _rows_are_those_of(case, (1, 8, 9, 16))


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize(
    ("layout", "group", "ic", "oc", "tile"),
    [
        (TILED, 128, 2304, 72, "c32"),
        (TILED, 64, 4288, 40, "c32"),
        (TILED, 32, 1088, 264, "c64"),
        (TILED, -1, 1088, 776, "c64"),
        (HF_GEMM, 128, 896, 96, "c32"),
        (HF_GEMM, 32, 2304, 224, "c32"),
        (HF_GEMM, 128, 4224, 160, "c64_p2"),
        (HF_GEMM, 64, 4416, 224, "c64_p2"),
        (HF_GEMM, 32, 1088, 288, "c64"),
        (HF_GEMM, -1, 1088, 800, "c128"),
        (OC_MAJOR, 128, 2304, 96, "c32"),
        (OC_MAJOR, 64, 1088, 160, "c32"),
        (OC_MAJOR, 32, 2240, 288, "c64"),
        (OC_MAJOR, -1, 1088, 800, "c64"),
    ],
    ids=str,
)
def test_a_token_has_the_same_bits_in_every_batch_by_bulk_copies(
    modules, monkeypatch, layout, group, ic, oc, tile, element
):
    registry = emulated_registry(EmulatorBackend(modules, HOPPER_SLICE))
    monkeypatch.setattr(bp, "default_registry", lambda: registry)
    descriptor = bp.Int4AwqGemmDescriptor(35, ic, oc, group, None, layout, element)
    case = _case(registry, "bulk", descriptor)
    assert f"_{tile}_t32_" in case.plan.launches[0].entry
    _rows_are_those_of(case, (1, 8, 9, 16, 17, 32))


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize(
    ("group", "ic", "oc", "tile"),
    [
        (128, 2304, 72, "c64_p2"),
        (64, 1088, 456, "c64"),
        (32, 1088, 776, "c128"),
        (-1, 1088, 520, "c128"),
        (128, 1152, 1032, "c64"),
    ],
)  # fmt: skip
def test_a_token_has_the_same_bits_in_every_batch_by_warpgroups(
    modules, monkeypatch, group, ic, oc, tile, element
):
    registry = emulated_registry(EmulatorBackend(modules, HOPPER_SLICE))
    monkeypatch.setattr(bp, "default_registry", lambda: registry)
    descriptor = bp.Int4AwqGemmDescriptor(67, ic, oc, group, None, TILED, element)
    case = _case(registry, "warpgroup", descriptor)
    assert f"_{tile}_t64_" in case.plan.launches[0].entry
    inputs = inputs_for(case.op, descriptor)
    exact = reference_outputs(case.op, descriptor, inputs)["output"]
    assert frobenius_error(_run(case, inputs), exact) <= relative_tolerance(case.guarantee, descriptor.element)
    _rows_are_those_of(case, (1, 15, 16, 17, 32, 33, 64))


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize(("group", "ic"), [(128, 640), (64, 448), (32, 416), (-1, 416)])
def test_a_token_has_the_same_bits_in_every_tile_of_one_range(registry, group, ic, element):
    descriptor = bp.Int4AwqGemmDescriptor(130, ic, 136, group, None, TILED, element)
    _rows_are_those_of(_case(registry, "direct", descriptor), (1, 31, 32, 33, 64, 65, 128, 129))


@pytest.mark.parametrize(("group", "element"), [(128, "F16"), (64, "BF16"), (32, "F16"), (-1, "BF16")])
@pytest.mark.parametrize("tokens", [64, 96, 128, 160, 192, 224, 256])
def test_tiles_taken_whole_and_tiles_that_are_split_meet(modules, monkeypatch, tokens, group, element):
    registry = emulated_registry(EmulatorBackend(modules, HOPPER_SLICE))
    monkeypatch.setattr(bp, "default_registry", lambda: registry)
    monkeypatch.setattr(wide, "_cut", lambda desc, device: wide.WideCut.of(desc, device, tokens, splitting=True))
    # A thread block has one tile and a part of another, or more; the last channels, tokens and blocks of ic are ragged.
    descriptor = bp.Int4AwqGemmDescriptor(
        2 * tokens + 9, 1088 + 64 * (group == 128), 264, group, None, TILED, bp.ElementKind[element],
        epilogue=bp.EpilogueKind.BIAS_GELU,
    )  # fmt: skip
    case = _case(registry, "wide", descriptor)
    main, finish = case.plan.launches
    *_, whole, split, splits, _, token_tiles, even = main.parameters
    assert min(whole, split) > 0, "both kinds"
    assert (token_tiles, even) == (3, -(-(2 * tokens + 9) // 24) * 8), "as many tokens in each, but for the last"
    assert splits > 1
    assert main.grid[0] >= split * splits
    assert main.entry.partition("_t")[2].startswith(f"iled_wide_sm90a_{element.lower()}_t{tokens}_")
    assert finish.entry == f"{main.entry}_finish"
    inputs = inputs_for(case.op, descriptor)
    exact = reference_outputs(case.op, descriptor, inputs)["output"]
    assert frobenius_error(_run(case, inputs), exact) <= relative_tolerance(case.guarantee, descriptor.element)


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 21])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_ranges_of_k_cover_it_however_many_they_are(registry, layout, splits):
    descriptor = bp.Int4AwqGemmDescriptor(18, 32 * 42, 64, 64, splits, layout)
    case = _case(registry, "splitk", descriptor)
    inputs = inputs_for(case.op, descriptor)
    exact = reference_outputs(case.op, descriptor, inputs)["output"]
    assert frobenius_error(_run(case, inputs), exact) <= relative_tolerance(case.guarantee, descriptor.element)


@pytest.mark.parametrize(("variant", "layout"), VARIANTS)
def test_partial_sums_beyond_f16_do_not_overflow(registry, layout, variant):
    descriptor = bp.Int4AwqGemmDescriptor(8, 256, 64, 128, 2, layout)
    case = _case(registry, variant, descriptor)
    inputs = inputs_for(case.op, descriptor)
    inputs["activation"][:, :128], inputs["activation"][:, 128:] = 6000, -6000
    if layout is TILED:
        words, zeros = np.full((64, 32), -1, np.int32), np.zeros((2, 64), np.uint8)
        inputs["weight_packed"] = pack_tiles(words, zeros, np.ones((2, 64), np.float16), 128)
    else:
        inputs["weight_packed"][...] = np.uint32(0xFFFFFFFF).astype(inputs["weight_packed"].dtype)
        inputs["zeros"][...], inputs["scales"][...] = 0, 1
    assert (_run(case, inputs) == 0).all()


def _packed(layout, nibbles, zeros, scales, group) -> dict[str, np.ndarray]:
    """Inputs of weights that the nibbles (ic, oc) stand for; zeros and scales: (ic / group, oc)."""
    if layout is TILED:
        return {"weight_packed": pack_tiles(pack_weight(nibbles, "oc_major"), zeros, scales, group)}
    return {
        "weight_packed": pack_weight(nibbles, layout.value),
        "zeros": pack_zeros(zeros, layout.value),
        "scales": scales,
    }  # fmt: skip


@pytest.mark.parametrize("m", [3, 16, 17], ids=lambda m: f"m{m}")
@pytest.mark.parametrize("group", [128, 64, 32])
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_weights_that_are_their_zero_point_add_nothing(registry, layout, element, group, m):
    descriptor = bp.Int4AwqGemmDescriptor(m, 256, 64, group, None, layout, element)
    case = _case(registry, "bulk", descriptor)
    inputs = inputs_for(case.op, descriptor)
    rng = np.random.default_rng(group)
    zeros = rng.integers(0, 16, (256 // group, 64), np.uint8)
    scales = (1 + rng.integers(0, 8, zeros.shape) / 8).astype(np.float16)
    inputs |= _packed(layout, np.repeat(zeros, group, axis=0), zeros, scales, group)
    inputs["activation"][...] = rng.integers(-100, 101, (m, 256))
    assert (_run(case, inputs) == 0).all()


@pytest.mark.parametrize("group", [128, 64, 32])
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_sums_of_x_far_beyond_the_result_cancel(registry, layout, element, group):
    """Of each token all x lie near a large value, and of each group all q - z add up to 0."""
    descriptor = bp.Int4AwqGemmDescriptor(5, 256, 64, group, None, layout, element)
    case = _case(registry, "bulk", descriptor)
    inputs = inputs_for(case.op, descriptor)
    rng = np.random.default_rng(group)
    zeros = rng.integers(4, 12, (256 // group, 64), np.uint8)
    offsets = rng.integers(-4, 4, (256 // group, group // 2, 64))
    offsets = rng.permuted(np.concatenate([offsets, -offsets], axis=1), axis=1)
    nibbles = (np.repeat(zeros, group, axis=0) + offsets.reshape(256, 64)).astype(np.uint8)
    scales = (1 + rng.integers(0, 8, zeros.shape) / 8).astype(np.float16)
    inputs |= _packed(layout, nibbles, zeros, scales, group)
    inputs["activation"][...] = 64 + rng.integers(0, 64, (5, 256)) / 2
    exact = reference_outputs(case.op, descriptor, inputs)["output"]
    assert frobenius_error(_run(case, inputs), exact) <= relative_tolerance(case.guarantee, element)


@pytest.mark.parametrize(("variant", "layout"), VARIANTS)
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_nan_and_infinity_stay_in_their_rows(registry, layout, variant, element):
    descriptor = bp.Int4AwqGemmDescriptor(7, 256, 64, 128, 2, layout, element)
    case = _case(registry, variant, descriptor)
    inputs = inputs_for(case.op, descriptor)
    plain = _run(case, inputs)
    inputs["activation"][2, 37], inputs["activation"][4, 200] = np.nan, np.inf
    found = _run(case, inputs)
    assert np.isnan(found[2].astype(np.float32)).all()
    assert not np.isfinite(found[4].astype(np.float32)).all()
    others = [0, 1, 3, 5, 6]
    assert found[others].tobytes() == plain[others].tobytes()


@pytest.mark.parametrize(("variant", "layout"), VARIANTS)
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("epilogue", [bp.EpilogueKind.BIAS_GELU, bp.EpilogueKind.BIAS_SILU], ids=lambda one: one.name)
def test_activations_keep_their_relative_error_where_they_vanish(registry, layout, variant, element, epilogue):
    descriptor = bp.Int4AwqGemmDescriptor(3, 256, 64, 128, None, layout, element, epilogue)
    case = _case(registry, variant, descriptor)
    inputs = inputs_for(case.op, descriptor)
    inputs["activation"][...] = 0
    # Phi(-3.75) is 9e-5, which f16 still holds with all of its bits; Phi(-8) is 6e-16.
    centre = -3.75 if element is bp.ElementKind.F16 else -8
    inputs["bias"][...] = centre + np.linspace(-0.125, 0.125, 64)
    exact = reference_outputs(case.op, descriptor, inputs)["output"]
    assert frobenius_error(_run(case, inputs), exact) <= relative_tolerance(case.guarantee, element)
