"""The AWQ GEMM that dequantises into its workspace and leaves the product to cuBLASLt: when it is taken, its room."""

from __future__ import annotations

import pytest
from attrs import evolve

import baracuda_py as bp
from baracuda_py.backends.cublaslt import CublasLtBackend
from baracuda_py.backends.cuda import CudaBackend
from baracuda_py.backends.host import HostBackend
from baracuda_py.backends.sequence import SequenceBackend
from baracuda_py.ops.gemm.dense_gemm import OP as DENSE
from baracuda_py.ops.quantize.awq_gemm import OP
from baracuda_py.plan import new_registry
from baracuda_py.tuning import table_for
from baracuda_py.vocab.code import WORKSPACE, Pointer
from baracuda_py.vocab.enums import EpilogueKind

LAYOUTS = tuple(bp.AwqWeightLayout)
FUSED = (EpilogueKind.IDENTITY, EpilogueKind.BIAS, EpilogueKind.BIAS_RELU)
MEASURED = (bp.AwqWeightLayout.OC_MAJOR, bp.AwqWeightLayout.HF_GEMM)  # of those there is a tuning table
SHAPES = ((4096, 4096), (4096, 14336), (8192, 28672), (28672, 8192))
LIBRARY_NBYTES = 32 << 20


def registry_where(absent: str | None):
    """The op over a machine where cuBLASLt is there, or something of it is absent."""

    def load():
        raise AssertionError("selection must not load the library")

    registry = new_registry(tables=table_for)
    cuda = CudaBackend()
    library = CublasLtBackend(cuda, lambda: absent, load)
    for backend in (HostBackend(), cuda, library, SequenceBackend(registry.backend)):
        registry.register_backend(backend)
    registry.register(OP)
    return registry


def taken(registry, desc, device="sm_90", preference=None):
    return registry.select(desc, device, preference).sku


def by_cublas(sku):
    return sku.backend is bp.BackendKind.CUBLAS


@pytest.mark.parametrize("layout", MEASURED, ids=lambda layout: layout.name)
@pytest.mark.parametrize(("ic", "oc"), SHAPES)
def test_prompts_take_it_and_decoding_does_not(layout, ic, oc):
    registry = registry_where(None)
    for m, expected in ((1, False), (16, False), (64, False), (512, True), (4096, True)):
        desc = bp.Int4AwqGemmDescriptor(m, ic, oc, weight_layout=layout)
        assert by_cublas(taken(registry, desc)) is expected, m


@pytest.mark.parametrize("absent", ["nvmath-python", "libcublasLt"])
def test_without_the_library_it_is_refused_with_what_to_install_and_others_serve(absent):
    registry = registry_where(absent)
    desc = bp.Int4AwqGemmDescriptor(4096, 4096, 4096)
    assert not by_cublas(taken(registry, desc))
    sku = taken(registry_where(None), desc)
    with pytest.raises(bp.errors.Unsupported, match="pip install 'baracuda-py\\[nvidia\\]'") as refused:
        registry.plan(sku, desc, "sm_90")
    assert refused.value.rule == absent


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize(("ic", "oc"), [(4096, 4096), (96, 40)])
@pytest.mark.parametrize("m", [1, 512, 5000])
def test_its_workspace_is_the_dense_weight_and_cublaslts(layout, ic, oc, m):
    registry = registry_where(None)
    desc = bp.Int4AwqGemmDescriptor(m, ic, oc, 32, weight_layout=layout)
    [sku] = registry.skus(
        element=desc.element, epilogue=desc.epilogue, variant=f"dequantized_{layout.value}"
    )
    weight = -(-2 * ic * oc // 256) * 256
    plan = registry.plan(sku, desc, "sm_80")
    assert plan.workspace_size == weight + LIBRARY_NBYTES
    assert registry.plan(sku, evolve(desc, m=0), "sm_80").workspace_size == 0
    [launch] = plan.launches
    assert Pointer(WORKSPACE) in launch.parameters
    assert Pointer("output") not in launch.parameters


def test_who_has_no_room_for_a_dense_weight_says_so_and_is_served_by_another():
    registry = registry_where(None)
    desc = bp.Int4AwqGemmDescriptor(4096, 8192, 8192)
    limit = bp.PlanPreference(max_workspace_bytes=2 * 8192 * 8192)
    assert by_cublas(taken(registry, desc))
    assert not by_cublas(taken(registry, desc, preference=limit))


def test_who_requires_batch_invariance_is_served_by_another():
    registry = registry_where(None)
    wish = bp.PlanPreference(require=bp.PrecisionGuarantee(batch_invariant=True))
    assert not by_cublas(taken(registry, bp.Int4AwqGemmDescriptor(4096, 4096, 4096), preference=wish))


@pytest.mark.parametrize("epilogue", EpilogueKind, ids=lambda epilogue: epilogue.name)
def test_only_epilogues_that_cublaslt_computes_as_this_op_defines_them_are_left_to_it(epilogue):
    sku = taken(registry_where(None), bp.Int4AwqGemmDescriptor(4096, 4096, 4096, epilogue=epilogue))
    assert by_cublas(sku) is (epilogue in FUSED)
    assert sku.epilogue is epilogue


def test_it_promises_what_the_dense_product_of_16_bit_operands_promises():
    for kernel in OP.kernels:
        if by_cublas(kernel.sku):
            sku = kernel.sku
            [dense] = (
                k.sku for k in DENSE.kernels
                if by_cublas(k.sku) and (k.sku.element, k.sku.layout, k.sku.epilogue)
                == (sku.element, sku.layout, sku.epilogue)
            )  # fmt: skip
            assert sku.precision_guarantee == dense.precision_guarantee
            assert sku.precision_guarantee.math_precision.name == sku.element.name


@pytest.mark.parametrize("layout", MEASURED, ids=lambda layout: layout.name)
def test_selection_goes_from_ours_to_the_library_once(layout):
    """As m grows there is one point from which on the library is faster."""
    registry = registry_where(None)
    chosen = [
        by_cublas(taken(registry, bp.Int4AwqGemmDescriptor(m, 8192, 8192, weight_layout=layout)))
        for m in (1, 8, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 16384)
    ]
    assert chosen == sorted(chosen)
