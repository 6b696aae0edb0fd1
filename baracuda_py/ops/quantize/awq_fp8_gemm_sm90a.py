"""The CUDA kernel of the AWQ GEMM of fp8 activations for TILED weights on compute capability 9.0: entry, tiles, grid.

fp8      128 output channels of 64 to 256 tokens a tile, by warpgroup instructions on fp8; a thread block takes tile
         after tile. What a last round leaves of the GPU is filled as `wide_tiled` of the other op does it.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from baracuda_py.ops.quantize.awq_gemm_sm90a import SHARED_BYTES
from baracuda_py.ops.quantize.awq_layout import AwqWeightLayout
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, Tiling, ceil_div
from baracuda_py.ops.quantize.awq_wide_schedule import WideCut, finish_launches
from baracuda_py.registry import Kernel
from baracuda_py.sys import module
from baracuda_py.vocab.code import WORKSPACE, Launch, Parameter, Pointer, PtxCode, Stride, TensorMap
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
    QuantizeKind,
)
from baracuda_py.vocab.rules import at_most, one_of
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_fp8_gemm import Int4AwqFp8GemmDescriptor

__all__ = ["fp8_kernels"]

_ARCH = ArchSku.SM90A
_TOKENS = (64, 128, 256)  # of a tile
_TILES = 2  # of weights, in a tile of outputs
_INT = (1 << 31) - 1

_GUARANTEE = PrecisionGuarantee(
    MathPrecision.FP8_E4M3,
    ElementKind.F32,
    ElementKind.F32,
    bit_stable_on_same_hardware=True,
    deterministic=True,
    batch_invariant=False,
)


def _module(element: ElementKind, groups: int) -> str:
    """A module each: a driver compiles a module as a whole, and a checkpoint needs one."""
    return f"quantize.awq_fp8_gemm.tiled_{element.name.lower()}_g{groups}"


def _constant(name: str) -> int:
    return module(_module(ElementKind.F16, 1), _ARCH.name.lower()).constant(name)  # all say the same


def _cut(desc: Int4AwqFp8GemmDescriptor, device: Device) -> WideCut:
    return min(WideCut.all(desc, device, _TOKENS), key=lambda cut: _cut_us(desc, device, cut))


def _box_tokens(cut: WideCut) -> int:
    """Tiles are not even (kEven in awq_fp8_gemm_tiled.cuh): boxes are smaller only where one tile has all tokens."""
    return cut.even if cut.token_tiles == 1 else cut.tokens


def _operands(desc: Int4AwqFp8GemmDescriptor, cut: WideCut) -> tuple[Parameter, ...]:
    """BARACUDA_FP8_PARAMETERS of awq_fp8_gemm_tiled_entries.cuh, and the parts."""
    return (
        Pointer("weight_packed"),
        Pointer("activation_scales"),
        Pointer("bias"),
        Pointer("output"),
        desc.m,
        desc.ic,
        desc.oc,
        Stride("output", 0),
        int(desc.scales_kind is ElementKind.BF16),
        int(desc.epilogue),
        *cut.schedule,
        _box_tokens(cut),
        Pointer(WORKSPACE),
    )


def _launches(desc: Int4AwqFp8GemmDescriptor, device: Device) -> tuple[Launch, ...]:
    tiling, cut = Tiling(desc.ic, desc.oc, desc.group_size), _cut(desc, device)
    stage = TILE_COLUMNS * cut.tokens + ceil_div(_TILES * 2 * tiling.block_nbytes, 1024) * 1024
    fixed = _constant("kFp8FixedBytes")
    stages = min(_constant("kFp8MaxStages"), (SHARED_BYTES - fixed) // stage)
    boxes = TensorMap(
        "activation", ElementKind.FP8_E4M3, (desc.ic, desc.m, 1), (Stride("activation", 0), 0),
        (TILE_COLUMNS, _box_tokens(cut), 1),
    )  # fmt: skip
    name = f"awq_fp8_gemm_tiled_sm90a_{desc.element.name.lower()}_t{cut.tokens}_g{tiling.groups_of_block}"
    main = Launch(
        name,
        (cut.blocks, 1, 1),
        (_constant("kFp8Threads"), 1, 1),
        (*_operands(desc, cut), boxes, stages),
        fixed + stages * stage,
        _module(desc.element, tiling.groups_of_block),
        overlaps=True,
    )
    return (main, *finish_launches(main, cut, device, _operands(desc, cut)))


def _workspace(desc: Int4AwqFp8GemmDescriptor, device: Device) -> int:
    return _cut(desc, device).partial_nbytes


# Of the peak of 16-bit elements. Few tokens leave much of the time to the making of weights. With groups of 128 an H200
# takes 0.88 to 1.10 of what they give (awq_tiled.json).
_SHARE_OF_PEAK = {64: 0.55, 128: 0.8, 256: 1.02}
_SHARE_OF_GROUPS = {1: 1.0, 2: 0.9, 4: 0.65}  # of that, by the groups of a block, each of which is added apart


def _cut_us(desc: Int4AwqFp8GemmDescriptor, device: Device, cut: WideCut) -> float:
    groups = Tiling(desc.ic, desc.oc, desc.group_size).groups_of_block
    return cut.us(device, device.flop_per_us * _SHARE_OF_PEAK[cut.tokens] * _SHARE_OF_GROUPS[groups])


def _cost(desc: Int4AwqFp8GemmDescriptor, device: Device) -> float:
    nbytes = desc.ic * desc.oc // 2 + desc.m * (desc.ic + 2 * desc.oc)
    return max(_cut_us(desc, device, _cut(desc, device)), 4.0 + nbytes / (0.7 * device.bytes_per_us))


_RULES = (
    one_of("weight_layout", (AwqWeightLayout.TILED,), why="the kernel reads one layout", fix="Repack the weights"),
    at_most("m", _INT, why="the kernel takes it as a 32-bit int"),
    at_most("ic", _INT - (TILE_COLUMNS - 1), why="the kernel rounds it up to whole blocks in a 32-bit int"),
    at_most("oc", _INT, why="the kernel takes it as a 32-bit int"),
    at_most("outputs", 64 * 128 << 30, why="the kernel counts tiles in a 32-bit int"),
)


def fp8_kernels() -> tuple[Kernel, ...]:
    """The kernels, for every element of outputs and every epilogue."""
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_FP8_GEMM, element, ElementKind.U4, LayoutSku.RCR,
                epilogue, _ARCH, BackendKind.BESPOKE, _GUARANTEE, "fp8_tiled",
            ),
            PtxCode(_module(element, 1), _ARCH, _launches),
            cost=_cost,
            rules=_RULES,
            workspace=_workspace,
            alignment={"activation": 16, "weight_packed": 16},
            doc="fp8 on the tensor cores, sums of a group added in f32; cuts ic only where that fills the GPU",
        )
        for element, epilogue in product((ElementKind.F16, ElementKind.BF16), EpilogueKind)
    )  # fmt: skip
