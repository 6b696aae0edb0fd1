"""The CUDA kernels of the AWQ GEMM for compute_80 and later: which entry, which grid, which workspace.

    small_m  OC_MAJOR, m <= 8: weights stream from global memory to registers; no workspace, one launch
    splitk   the kernel of baracuda's contract: ic cut in `split_k_iters` ranges, f32 partials in the workspace, summed
             in their order by a second launch
    tile     the same code for any shape; it cuts ic only as far as that fills the GPU
    direct   the same code for any shape, ic in one range: no workspace, and m changes no bits
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from baracuda_py.ops.quantize.awq_layout import reads_layout
from baracuda_py.ops.quantize.awq_tiles import ceil_div
from baracuda_py.registry import Kernel
from baracuda_py.sys import PtxModule, module
from baracuda_py.vocab.code import WORKSPACE, Launch, Parameter, Pointer, PtxCode, Stride
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
from baracuda_py.vocab.rules import Rule, at_most, multiple_of, one_of
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor

__all__ = ["IC_LIMIT", "even_share", "guarantee", "operands", "reduce_launch", "sm80_kernels", "streaming_us"]

_ARCH = ArchSku.SM80
_MAX_SPLITS = 32  # more would read back more partials than there is work in a split
_MIN_SPLIT_IC = 256  # input channels that are worth a split of their own
# Thread blocks of a tile that an SM holds at a time, by its rows: what registers and shared memory leave room for.
_RESIDENT = {16: 4, 64: 2, 128: 1}


def _module(part: str) -> PtxModule:
    return module(f"quantize.awq_gemm.{part}", _ARCH.name.lower())


def operands(desc: Int4AwqGemmDescriptor) -> tuple[Parameter, ...]:
    """BARACUDA_AWQ_GEMM_PARAMETERS of awq_gemm.cuh."""
    return (
        Pointer("activation"),
        Pointer("weight_packed"),
        Pointer("zeros"),
        Pointer("scales"),
        Pointer("bias"),
        Pointer("output"),
        desc.m,
        desc.ic,
        desc.oc,
        desc.group,
        Stride("activation", 0),
        Stride("output", 0),
        int(desc.scales_kind is ElementKind.BF16),
        int(desc.epilogue),
    )


# -- splitk and tile ---------------------------------------------------------------------------------------------


def tile_rows(m: int) -> int:
    """Rows of the tile that serves m rows."""
    return 16 if m <= 16 else 64 if m <= 64 else 128


def fill_splits(desc: Int4AwqGemmDescriptor, rows: int, m: int, device: Device) -> int:
    """Ranges of ic that give every SM a thread block, were there `m` rows; 1 when the tiles do that alone."""
    tiles = ceil_div(m, rows) * ceil_div(desc.oc, _module(f"splitk_{desc.weight_layout.value}").constant("kTileN"))
    fitting = device.sm_count * _RESIDENT[rows] // max(tiles, 1)
    return max(1, min(fitting, desc.ic // _MIN_SPLIT_IC, _MAX_SPLITS))


def contract_splits(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """The descriptor's `split_k_iters`; an open one is filled for 16 rows whatever m is, so that m changes no bits."""
    return desc.split_k_iters or fill_splits(desc, 16, 16, device)


def free_splits(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """Splits of the tile kernel."""
    return fill_splits(desc, tile_rows(desc.m), desc.m, device)


def _tile_launches(desc: Int4AwqGemmDescriptor, splits: int) -> tuple[Launch, ...]:
    layout, element, rows = desc.weight_layout.value, desc.element.name.lower(), tile_rows(desc.m)
    code = _module(f"splitk_{layout}")
    main = Launch(
        f"awq_gemm_splitk_sm80_{element}_{layout}_m{rows}",
        (ceil_div(desc.m, rows) * ceil_div(desc.oc, code.constant("kTileN")), 1, splits),
        (code.constant(f"kTileM{rows}Threads"), 1, 1),
        (*operands(desc), Pointer(WORKSPACE)),
        code.constant(f"kTileM{rows}SharedBytes"),
    )
    return (main,) if splits == 1 else (main, reduce_launch(desc, splits))


def reduce_launch(desc: Int4AwqGemmDescriptor, splits: int) -> Launch:
    """The second pass of split-K: f32 partials (splits, m, oc) in the workspace, summed in their order."""
    threads = _module("reduce").constant("kReduceThreads")
    return Launch(
        f"awq_gemm_reduce_sm80_{desc.element.name.lower()}",
        (min(ceil_div(desc.m * desc.oc // 2, threads), 1 << 20), 1, 1),
        (threads, 1, 1),
        (
            Pointer(WORKSPACE),
            Pointer("bias"),
            Pointer("output"),
            desc.m,
            desc.oc,
            splits,
            Stride("output", 0),
            int(desc.epilogue),
        ),
        module="quantize.awq_gemm.reduce",
        arch=_ARCH,
    )


def _splitk_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    return _tile_launches(desc, contract_splits(desc, device))


def _free_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    return _tile_launches(desc, free_splits(desc, device))


def _direct_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    return _tile_launches(desc, 1)


def _splitk_workspace(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """The contract's formula, rows rounded up to 128; 4 bytes a partial, for they are f32."""
    return contract_splits(desc, device) * ceil_div(desc.m, 128) * 128 * desc.oc * 4


def _free_workspace(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    splits = free_splits(desc, device)
    return splits * desc.m * desc.oc * 4 if splits > 1 else 0


# -- small_m -----------------------------------------------------------------------------------------------------


def _small_m_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    """One launch; its channels and warps a thread block depend on everything but m, so that m changes no bits."""
    element, code = desc.element.name.lower(), _module("small_m_oc_major")
    blocks_k = ceil_div(desc.ic, code.constant("kBlockK"))
    if desc.group != desc.ic and desc.group % code.constant("kBlockK"):  # a block of k holds more than one group
        channels, suffix = 32, f"_g{desc.group}"
    else:
        enough = 0.75 * device.sm_count
        channels, suffix = next((c for c in (64, 32) if ceil_div(desc.oc, c) >= enough), 16), ""
    entry = code.entry(f"awq_gemm_small_m_sm80_{element}_oc_major_c{channels}{suffix}")
    blocks = ceil_div(desc.oc, channels)
    assert entry.max_threads is not None
    warps = min(blocks_k, entry.max_threads // 32)
    if channels == 32 and blocks >= 2 * device.sm_count:
        warps = min(warps, 8)  # so that an SM holds two
    shared = warps * channels * code.constant("kSumBytesPerChannel")
    return (Launch(entry.name, (blocks, 1, 1), (32 * warps, 1, 1), operands(desc), shared),)


# -- estimates ---------------------------------------------------------------------------------------------------


def streaming_us(desc: Int4AwqGemmDescriptor, device: Device, efficiency: float) -> float:
    """Time that the bytes of weights and activations take at a share of the device's bandwidth."""
    weight = desc.ic * desc.oc / 2 + desc.groups * desc.oc * 2.5
    activation = 2 * desc.m * (desc.ic + desc.oc)
    return (weight + activation) / (device.bytes_per_us * efficiency)


def even_share(blocks: int, device: Device) -> float:
    """Of the SMs' time that is used, where those that have the most thread blocks end last."""
    sms = max(device.sm_count, 1)
    return blocks / (ceil_div(blocks, sms) * sms)


def _small_m_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    [launch] = _small_m_launches(desc, device)
    # Of smaller groups a thread multiplies by a scale more often, which takes longer than memory (H100).
    longer = 1.0 if desc.group >= 128 else 1.35 if desc.group >= 64 else 2.8
    return 2.6 + longer * streaming_us(desc, device, 0.54 * even_share(launch.grid[0], device))


def _tile_cost(desc: Int4AwqGemmDescriptor, device: Device, splits: int) -> float:
    rows = tile_rows(desc.m)
    blocks = ceil_div(desc.m, rows) * ceil_div(desc.oc, 128) * splits
    waves = ceil_div(blocks, device.sm_count * _RESIDENT[rows])
    busy = blocks / (waves * device.sm_count * _RESIDENT[rows])
    flop = 2 * ceil_div(desc.m, rows) * rows * desc.ic * desc.oc
    arithmetic = flop / (device.flop_per_us * 0.25 * max(busy, 1e-3))
    partials = 2 * splits * desc.m * desc.oc * 4 / device.bytes_per_us + 2.5 if splits > 1 else 0.0
    return 4.0 + max(arithmetic, streaming_us(desc, device, 0.4 * min(1.0, busy * 2))) + partials


def _splitk_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return _tile_cost(desc, device, contract_splits(desc, device))


def _free_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return _tile_cost(desc, device, free_splits(desc, device))


def _direct_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return _tile_cost(desc, device, 1)


# -- kernels -----------------------------------------------------------------------------------------------------

# 16 bytes is what cp.async and the widest loads move. An output may start at any element and have rows of any pitch.
_ALIGNMENT = {"activation": 16, "weight_packed": 16, "scales": 16, "zeros": 4}


def guarantee(element: ElementKind, *, batch_invariant: bool) -> PrecisionGuarantee:
    """What the kernels promise: f32 sums in a fixed order."""
    return PrecisionGuarantee(
        MathPrecision.BF16 if element is ElementKind.BF16 else MathPrecision.F16,
        ElementKind.F32,
        ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        batch_invariant=batch_invariant,
    )


_INT = (1 << 31) - 1
_WHY_INT = "the kernel takes it as a 32-bit int"
# Beyond 64 rows a tile is 128 x 128 outputs, and a grid has at most 2^31 blocks; half of that leaves room for edges.
_TILE_LIMITS = (
    at_most("m", _INT, why=_WHY_INT),
    at_most("outputs", 128 * 128 << 30, why="a grid has at most 2^31 blocks"),
)
_GRID_Z = (1 << 16) - 1  # blocks of a grid along z, where the splits lie
# As many blocks of 128 input channels as warps share them out, sixteen at most, are counted beyond the last.
IC_LIMIT = at_most("ic", _INT - (16 * 128 - 1), why="the kernel counts some blocks beyond it in a 32-bit int")
_LIMITS = (IC_LIMIT, at_most("oc", _INT, why=_WHY_INT))


# A kernel's variant, whether m changes no bits, its module, its rules, launches, cost and workspace, and what it is.
_Part = tuple[str, bool, str, tuple[Rule, ...], Callable[..., Any], Callable[..., float], Any, str]


def sm80_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels that read weights in `layout`, for every element and epilogue."""
    reads = reads_layout(layout)
    small_m: _Part = (
        "small_m", True, "small_m", (at_most("m", 8, why="the tokens are one n8 tile of the tensor cores"),),
        _small_m_launches, _small_m_cost, None, "decoding: few rows, weights read once, no workspace",
    )  # fmt: skip
    parts: tuple[_Part, ...] = (
        (
            "splitk", True, "splitk",
            (
                one_of("group_size", (64, 128), why="baracuda's contract", fix="The tile kernel serves every group"),
                multiple_of("oc", 64, why="baracuda's contract", fix="The tile kernel serves every oc % 8 == 0"),
                multiple_of("ic", "32 * split_k_iters", why="each split takes whole steps of 32 input channels"),
                at_most("split_k_iters", _GRID_Z, why="a grid is that deep"),
                *_TILE_LIMITS,
            ),
            _splitk_launches, _splitk_cost, _splitk_workspace, "baracuda's contract, split_k_iters as asked",
        ),
        (
            "tile", False, "splitk", _TILE_LIMITS, _free_launches, _free_cost, _free_workspace,
            "any shape; cuts ic only as far as that fills the GPU",
        ),
        (
            "direct", True, "splitk", _TILE_LIMITS, _direct_launches, _direct_cost, None,
            "any shape without a workspace, a row's bits the same at every m",
        ),
    )  # fmt: skip
    if layout.value == "oc_major":
        parts = (small_m, *parts)
    made = []
    for (variant, invariant, part, rules, launches, cost, workspace, doc), element, epilogue in product(
        parts, (ElementKind.F16, ElementKind.BF16), EpilogueKind
    ):
        extra = {} if workspace is None else {"workspace": workspace}
        made.append(
            Kernel(
                KernelSku(
                    OpCategory.QUANTIZATION,
                    QuantizeKind.INT4_AWQ_GEMM,
                    element,
                    ElementKind.U4,
                    LayoutSku.RCR if layout.value == "oc_major" else LayoutSku.RRR,
                    epilogue,
                    _ARCH,
                    BackendKind.BESPOKE,
                    guarantee(element, batch_invariant=invariant),
                    f"{variant}_{layout.value}",
                ),
                PtxCode(f"quantize.awq_gemm.{part}_{layout.value}", _ARCH, launches),
                cost=cost,
                rules=(reads, *rules, *_LIMITS),
                alignment=_ALIGNMENT,
                doc=doc,
                **extra,
            )
        )
    return tuple(made)
