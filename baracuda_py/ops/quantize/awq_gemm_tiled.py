"""The CUDA kernels of the AWQ GEMM for TILED weights, for compute_80 and later: which entry, which grid.

    tile     128 output channels of 32, 64 or 128 tokens a thread block; ic is cut only as far as that fills the GPU,
             f32 partials in the workspace, summed in their order by a second launch
    direct   the same code, ic in one range: no workspace, and m changes no bits
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from baracuda_py.ops.quantize.awq_gemm_sm80 import (
    IC_LIMIT,
    even_share,
    guarantee,
    operands,
    reduce_launch,
    streaming_us,
)
from baracuda_py.ops.quantize.awq_gemm_stream import shared_nbytes_of
from baracuda_py.ops.quantize.awq_layout import reads_layout
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, Tiling, ceil_div
from baracuda_py.registry import Kernel
from baracuda_py.sys import module
from baracuda_py.vocab.code import WORKSPACE, Launch, Pointer, PtxCode
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    OpCategory,
    QuantizeKind,
)
from baracuda_py.vocab.rules import at_most, one_of
from baracuda_py.vocab.sku import KernelSku

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor

__all__ = ["tiled_kernels"]

_ARCH = ArchSku.SM80
_INT = (1 << 31) - 1
# Thread blocks of the tile kernel that the registers of an SM hold at a time, by its tokens.
_RESIDENT = {32: 2, 64: 1, 128: 1}
_STAGES = {32: (4,), 64: (3,), 128: (3, 2)}
_MIN_SPLIT_BLOCKS = 2  # blocks of 128 input channels that are worth a split of their own
_MAX_SPLITS = 32


def _module(element: ElementKind, groups: int) -> str:
    """A module each: a driver compiles a module as a whole, and a checkpoint needs one."""
    return f"quantize.awq_gemm.tiled_tile_{element.name.lower()}_g{groups}"


def _constant(name: str) -> int:
    return module(_module(ElementKind.F16, 1), _ARCH.name.lower()).constant(name)  # all say the same


def _tile_tokens(m: int) -> int:
    """Tokens of the tile that serves m rows."""
    return 32 if m <= 32 else 64 if m <= 64 else 128


def _tiles(desc: Int4AwqGemmDescriptor) -> int:
    return ceil_div(desc.m, _tile_tokens(desc.m)) * ceil_div(desc.oc, _constant("kTiledTileChannels"))


def _splits(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """Ranges of ic that give every SM its thread blocks; 1 when the tiles do that alone."""
    fitting = _slots(desc, device) // max(_tiles(desc), 1)
    return max(1, min(fitting, ceil_div(desc.ic, TILE_COLUMNS) // _MIN_SPLIT_BLOCKS, _MAX_SPLITS))


def _slots(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """Thread blocks that the GPU holds at a time."""
    per_sm = shared_nbytes_of(device) + 1024
    fitting = per_sm // (_stages(desc, device) * _stage_nbytes(desc) + 1024)  # the system takes a KiB for each
    return device.sm_count * min(_RESIDENT[_tile_tokens(desc.m)], fitting)


def _stage_nbytes(desc: Int4AwqGemmDescriptor) -> int:
    """A block of 128 input channels: each of two slices of it has 64 of them, with the scales that those need."""
    groups = max(1, Tiling(desc.ic, desc.oc, desc.group_size).groups_of_block // 2)
    return 2 * (_constant("kTiledTileChannels") // 32 * (1024 + 80 * groups) + TILE_COLUMNS * _tile_tokens(desc.m))


def _stages(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    """Of the entries there are for the tile, the most stages that the shared memory holds."""
    fitting = shared_nbytes_of(device) // _stage_nbytes(desc)
    return next(stages for stages in _STAGES[_tile_tokens(desc.m)] if stages <= fitting)


def _tile_launches(desc: Int4AwqGemmDescriptor, device: Device, splits: int) -> tuple[Launch, ...]:
    tiling, tokens = Tiling(desc.ic, desc.oc, desc.group_size), _tile_tokens(desc.m)
    stages = _stages(desc, device)
    main = Launch(
        f"awq_gemm_tiled_tile_sm80_{desc.element.name.lower()}_t{tokens}_s{stages}_g{tiling.groups_of_block}",
        (_tiles(desc), 1, splits),
        (_constant("kTiledTileThreads"), 1, 1),
        (*operands(desc), Pointer(WORKSPACE)),
        stages * _stage_nbytes(desc),
        _module(desc.element, tiling.groups_of_block),
    )
    return (main,) if splits == 1 else (main, reduce_launch(desc, splits))


def _free_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    return _tile_launches(desc, device, _splits(desc, device))


def _direct_launches(desc: Int4AwqGemmDescriptor, device: Device) -> tuple[Launch, ...]:
    return _tile_launches(desc, device, 1)


def _free_workspace(desc: Int4AwqGemmDescriptor, device: Device) -> int:
    splits = _splits(desc, device)
    return splits * desc.m * desc.oc * 4 if splits > 1 else 0


def _tile_cost(desc: Int4AwqGemmDescriptor, device: Device, splits: int) -> float:
    tokens = _tile_tokens(desc.m)
    blocks, slots = _tiles(desc) * splits, _slots(desc, device)
    busy = blocks / (ceil_div(blocks, slots) * slots)
    if splits == 1:  # two thread blocks of an SM take twice as long as one
        busy = even_share(blocks, device) * max(device.sm_count, 1) / slots
    share = 0.47 if tokens == 128 else 0.6 if splits == 1 and tokens < 64 else 0.39  # of the peak, measured on an H100
    flop = 2 * ceil_div(desc.m, tokens) * tokens * desc.ic * desc.oc
    arithmetic = flop / (device.flop_per_us * share * max(busy, 1e-3))
    partials = 2 * splits * desc.m * desc.oc * 4 / device.bytes_per_us + 2.5 if splits > 1 else 0.0
    return 4.0 + max(arithmetic, streaming_us(desc, device, 0.6 * min(1.0, busy * 2))) + partials


def _free_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return _tile_cost(desc, device, _splits(desc, device))


def _direct_cost(desc: Int4AwqGemmDescriptor, device: Device) -> float:
    return _tile_cost(desc, device, 1)


_LIMITS = (
    *(at_most(name, _INT, why="the kernel takes it as a 32-bit int") for name in ("m", "oc")),
    IC_LIMIT,
    at_most("outputs", 128 * 128 << 30, why="a grid has at most 2^31 blocks"),
)


def tiled_kernels(layout: AwqWeightLayout) -> tuple[Kernel, ...]:
    """The kernels, for every element and epilogue. `layout` is TILED."""
    reads = reads_layout(layout)
    # A bf16 scale may lie beyond f16's range; an f16 one loses digits as bf16, no more than the weight does.
    scales = {
        ElementKind.F16: (one_of("scales_kind", (ElementKind.F16,), why="it multiplies weights by scales in f16"),),
        ElementKind.BF16: (),
    }
    parts: tuple[tuple[str, bool, Callable[..., Any], Callable[..., float], Any, str], ...] = (
        (
            "tile", False, _free_launches, _free_cost, _free_workspace,
            "more rows; cuts ic only as far as that fills the GPU",
        ),
        (
            "direct", True, _direct_launches, _direct_cost, None,
            "more rows without a workspace, a row's bits the same at every m",
        ),
    )  # fmt: skip
    return tuple(
        Kernel(
            KernelSku(
                OpCategory.QUANTIZATION, QuantizeKind.INT4_AWQ_GEMM, element, ElementKind.U4, LayoutSku.RCR, epilogue,
                _ARCH, BackendKind.BESPOKE, guarantee(element, batch_invariant=invariant), f"{variant}_{layout.value}",
            ),
            PtxCode(_module(element, 1), _ARCH, launches),
            cost=cost,
            rules=(reads, *scales[element], *_LIMITS),
            alignment={"activation": 16, "weight_packed": 16},
            doc=doc,
            **({} if workspace is None else {"workspace": workspace}),
        )
        for (variant, invariant, launches, cost, workspace, doc), element, epilogue in product(
            parts, (ElementKind.F16, ElementKind.BF16), EpilogueKind
        )
    )  # fmt: skip
