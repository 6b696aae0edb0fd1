"""The 4-bit formats: their tensors, how to tell them apart by headers alone, and the shapes that headers must have.

ic, oc: input and output features. groups: ic / group size, 1 for group size -1. A weight is
`w[k, n] = (q[k, n] - z[k // group, n]) * s[k // group, n]` with q and z in 0..15; a symmetric format has z = 8.

                        weights                      zero points                      scales
    AWQ_GEMM            qweight i32 (ic, oc / 8)     qzeros i32 (groups, oc / 8)      scales (groups, oc)
    AWQ_GEMV            qweight i32 (oc, ic / 8)     qzeros i32 (oc, width)           scales (oc, 8 width)
    AWQ_GEMV_FAST       qweight i16 (oc / 4, ic)     qzeros float (8 width, oc)       scales (8 width, oc)
    LLM_AWQ_V2          qweight i16 (oc / 4, ic)     scaled_zeros float (8 width, oc) scales (8 width, oc)
    AWQ_MARLIN          qweight i32 (ic / 16, 2 oc)  none: symmetric                  scales (groups, oc)
    GPTQ_V1, GPTQ_V2    qweight i32 (ic / 8, oc)     qzeros i32 (groups, oc / 8)      scales (groups, oc)
    COMPRESSED_TENSORS  weight_packed i32            weight_zero_point i32            weight_scale (oc, groups)
                        (oc, ic / 8)                 (oc / 8, groups), or none

Besides: bias (oc,); GPTQ's g_idx and compressed-tensors' weight_g_idx, (ic,); weight_shape (2,). All are optional.

Width: see `zeros_width`. All but GPTQ_V1 and GPTQ_V2, which the configuration tells apart, have headers of their own: a
tensor that fits two formats would need groups of 16 channels or fewer in one of them.
Sources: AutoAWQ, awq/modules/linear; AutoGPTQ, auto_gptq/nn_modules/qlinear; compressed-tensors, pack_quantized.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum

from attrs import frozen

from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

__all__ = [
    "WEIGHT_PARTS",
    "Geometry",
    "PackedFormat",
    "Part",
    "channels_together",
    "check_fits",
    "detect",
    "expected_parts",
    "geometry",
    "packed_modules",
    "zeros_width",
]


class PackedFormat(Enum):
    """How a quantised linear layer lies in a checkpoint."""

    AWQ_GEMM = "awq_gemm"  # what Hugging Face *-AWQ repositories hold
    AWQ_GEMV = "awq_gemv"
    AWQ_GEMV_FAST = "awq_gemv_fast"  # stores -s * z, rounded, instead of z
    LLM_AWQ_V2 = "llm_awq_v2"  # as AWQ_GEMV_FAST; bf16 scales too
    AWQ_MARLIN = "awq_marlin"  # symmetric; tiles of a GPU kernel
    GPTQ_V1 = "gptq_v1"  # stores z - 1: cannot hold z = 0
    GPTQ_V2 = "gptq_v2"
    COMPRESSED_TENSORS = "compressed_tensors"  # pack-quantized


_F = PackedFormat
_HALVES = ("F16", "BF16")
_FLOATS = ("F16", "BF16", "F32")
_INDICES = ("I32", "I64")

# The tensor that makes a module a packed layer.
WEIGHT_PARTS = ("qweight", "weight_packed", "B")
# Marlin's own names, as AutoGPTQ writes them too -> AutoAWQ's.
_MARLIN_NAMES = {"B": "qweight", "s": "scales"}


@frozen
class Part:
    """One tensor of a layer: the element types it may have, its shape, and whether it must be there."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    needed: bool = True


@frozen
class Geometry:
    """Sizes of a layer.

    Attributes:
        ic, oc: input and output features.
        group_size: input features of a group, or -1 for all of them.
    """

    ic: int
    oc: int
    group_size: int

    @property
    def group(self) -> int:
        """Input features of a group."""
        return self.ic if self.group_size == -1 else self.group_size

    @property
    def groups(self) -> int:
        """Groups along ic."""
        return self.ic // self.group


def zeros_width(geometry: Geometry) -> int:
    """Words of zero points of one output channel in the GEMV formats, which their kernels want padded."""
    multiple = 1 if geometry.group >= 128 else 2 if geometry.group >= 64 else 4
    words = -(-geometry.groups // 8)
    return -(-words // multiple) * multiple


def packed_modules(names: Iterable[str]) -> dict[str, list[str]]:
    """The modules that have a packed weight, and which of their tensors may belong to it, by the name's last part."""
    parts: dict[str, list[str]] = {}
    for name in names:
        module, dot, part = name.rpartition(".")
        if part in _KNOWN_PARTS and (module or not dot):  # ".scales" is no part of the module that "qweight" is
            parts.setdefault(module, []).append(part)
    return {
        module: found for module, found in parts.items()
        if "qweight" in found or "weight_packed" in found or ("B" in found and "s" in found)
    }  # fmt: skip


_KNOWN_PARTS = frozenset(
    ("qweight", "qzeros", "scales", "scaled_zeros", "g_idx", "bias", "B", "s",
     "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
)  # fmt: skip


def detect(module: str, parts: Mapping[str, TensorHeader], *, gptq_v2: bool = False) -> PackedFormat:
    """The format of a module with these tensors, square or not.

    Raises:
        CheckpointError: a tensor is missing, or is no matrix.
        UnsupportedCheckpoint: the tensors are those of no format here.
    """
    weight_name = next(part for part in WEIGHT_PARTS if part in parts)
    scales_name = {"qweight": "scales", "weight_packed": "weight_scale", "B": "s"}[weight_name]
    weight = parts[weight_name]
    if scales_name not in parts:
        raise CheckpointError(
            weight.file, f"a packed layer must have {scales_name}", tensor=f"{module}.{scales_name}",
            rule="missing tensor", got="none",
        )  # fmt: skip
    scales = parts[scales_name]
    for header in (weight, scales):
        if len(header.shape) != 2 or 0 in header.shape:
            raise CheckpointError(
                header.file, "this must be a matrix that is not empty", tensor=header.name, rule="shape",
                got=str(header),
            )  # fmt: skip
    if weight_name == "weight_packed" and weight.dtype == "I32":
        return _F.COMPRESSED_TENSORS
    if weight_name == "B":
        return _F.AWQ_MARLIN
    if weight_name == "qweight" and weight.dtype == "I16":
        return _F.LLM_AWQ_V2 if "scaled_zeros" in parts else _F.AWQ_GEMV_FAST
    if weight_name == "qweight" and weight.dtype == "I32":
        # A row of scales a row of words would be groups of one to sixteen channels in the formats below.
        if scales.shape[0] == weight.shape[0] and "g_idx" not in parts:
            return _F.AWQ_GEMV
        if weight.shape[1] * 8 == scales.shape[1]:
            return _F.AWQ_GEMM
        if weight.shape[1] == scales.shape[1]:
            return _F.GPTQ_V2 if gptq_v2 else _F.GPTQ_V1
        if weight.shape[1] == 2 * scales.shape[1]:
            return _F.AWQ_MARLIN
    raise UnsupportedCheckpoint(
        weight.file, "the shapes must be those of a 4-bit format that is known here", tensor=weight.name,
        rule="format", got=f"{weight} with {scales_name} {scales}",
    )  # fmt: skip


_SIZES: dict[PackedFormat, Callable[[int, int], tuple[int, int]]] = {
    _F.AWQ_GEMM: lambda rows, columns: (rows, columns * 8),
    _F.AWQ_GEMV: lambda rows, columns: (columns * 8, rows),
    _F.AWQ_GEMV_FAST: lambda rows, columns: (columns, rows * 4),
    _F.LLM_AWQ_V2: lambda rows, columns: (columns, rows * 4),
    _F.AWQ_MARLIN: lambda rows, columns: (rows * 16, columns // 2),
    _F.GPTQ_V1: lambda rows, columns: (rows * 8, columns),
    _F.GPTQ_V2: lambda rows, columns: (rows * 8, columns),
    _F.COMPRESSED_TENSORS: lambda rows, columns: (columns * 8, rows),
}


def expected_parts(format: PackedFormat, geometry: Geometry, *, symmetric: bool = False) -> dict[str, Part]:
    """The tensors of a layer, by the last part of their names; `symmetric` chooses for COMPRESSED_TENSORS."""
    ic, oc, groups = geometry.ic, geometry.oc, geometry.groups
    bias = {"bias": Part(_FLOATS, (oc,), needed=False)}
    if format is _F.AWQ_GEMM:
        words = (groups, oc // 8)
        return {"qweight": Part(("I32",), (ic, oc // 8)), "qzeros": Part(("I32",), words),
                "scales": Part(_HALVES, (groups, oc)), **bias}  # fmt: skip
    if format is _F.AWQ_GEMV:
        width = zeros_width(geometry)
        return {"qweight": Part(("I32",), (oc, ic // 8)), "qzeros": Part(("I32",), (oc, width)),
                "scales": Part(_HALVES, (oc, 8 * width)), **bias}  # fmt: skip
    if format in (_F.AWQ_GEMV_FAST, _F.LLM_AWQ_V2):
        padded = (8 * zeros_width(geometry), oc)
        zeros = "qzeros" if format is _F.AWQ_GEMV_FAST else "scaled_zeros"
        return {"qweight": Part(("I16",), (oc // 4, ic)), zeros: Part(_HALVES, padded),
                "scales": Part(_HALVES, padded), **bias}  # fmt: skip
    if format is _F.AWQ_MARLIN:
        return {"qweight": Part(("I32",), (ic // 16, 2 * oc)), "scales": Part(_HALVES, (groups, oc)), **bias}
    if format in (_F.GPTQ_V1, _F.GPTQ_V2):
        return {"qweight": Part(("I32",), (ic // 8, oc)), "qzeros": Part(("I32",), (groups, oc // 8)),
                "scales": Part(_FLOATS, (groups, oc)), "g_idx": Part(_INDICES, (ic,), needed=False),
                **bias}  # fmt: skip
    zero_point = {} if symmetric else {"weight_zero_point": Part(("I32",), (oc // 8, groups))}
    return {"weight_packed": Part(("I32",), (oc, ic // 8)), "weight_scale": Part(_FLOATS, (oc, groups)), **zero_point,
            "weight_shape": Part(_INDICES, (2,), needed=False),
            "weight_g_idx": Part(_INDICES, (ic,), needed=False), **bias}  # fmt: skip


# Per format, what ic and oc must be multiples of, and the group sizes if not all are possible.
_MULTIPLES = {
    _F.AWQ_GEMM: (8, 8), _F.AWQ_GEMV: (8, 1), _F.AWQ_GEMV_FAST: (64, 4), _F.LLM_AWQ_V2: (64, 4),
    _F.AWQ_MARLIN: (128, 256), _F.GPTQ_V1: (8, 8), _F.GPTQ_V2: (8, 8), _F.COMPRESSED_TENSORS: (8, 1),
}  # fmt: skip
_GROUP_SIZES = {_F.AWQ_MARLIN: (128, -1)}


def channels_together(format: PackedFormat, *, symmetric: bool = False) -> int:
    """Output channels that share a word or a tile; a run of whole ones can be taken out without repacking."""
    if format is _F.AWQ_MARLIN:
        return 64  # of a tile and of a permutation of the scales; its kernels want whole 256
    if format is _F.COMPRESSED_TENSORS and not symmetric:
        return 8  # in a word of zero points
    return _MULTIPLES[format][1]


def check_fits(file: object, layer: str, format: PackedFormat, geometry: Geometry, *, symmetric: bool = False) -> None:
    """Whether a format can hold a layer of these sizes at all.

    Raises:
        UnsupportedCheckpoint: ic or oc is not the multiple that the format packs, or it lacks the group size.
    """

    def check(allowed: bool, must: str, rule: str, value: int) -> None:
        if not allowed:
            raise UnsupportedCheckpoint(file, f"{format.name}: {must}", tensor=layer, rule=rule, value=value)

    ic_multiple, oc_multiple = _MULTIPLES[format]
    oc_multiple = math.lcm(oc_multiple, channels_together(format, symmetric=symmetric))
    check(geometry.ic % ic_multiple == 0, f"ic must be a multiple of {ic_multiple}", "ic", geometry.ic)
    check(geometry.oc % oc_multiple == 0, f"oc must be a multiple of {oc_multiple}", "oc", geometry.oc)
    sizes = _GROUP_SIZES.get(format)
    if sizes is not None and geometry.groups > 1:
        allowed = " or ".join(map(str, sizes))
        check(geometry.group_size in sizes, f"the group size must be {allowed}", "group_size", geometry.group_size)


def geometry(
    module: str, format: PackedFormat, headers: Mapping[str, TensorHeader], group_size: int, config: str
) -> tuple[Geometry, dict[str, TensorHeader]]:
    """The sizes of a layer, and those of its tensors that belong to the format, by their usual last part.

    Args:
        module: the layer's name.
        format: as `detect` says.
        headers: of the module's tensors, by last part.
        group_size: what the configuration says; headers cannot tell it once a layer has been split.
        config: the name of the file that says so.

    Raises:
        CheckpointError: a tensor is missing or has another shape or element type; the message names it.
        UnsupportedCheckpoint: sizes that the format cannot have.
    """
    parts = {_MARLIN_NAMES.get(part, part) if "B" in headers else part: header for part, header in headers.items()}
    weight = parts["weight_packed" if format is _F.COMPRESSED_TENSORS else "qweight"]
    sizes = Geometry(*_SIZES[format](*weight.shape), group_size)
    if sizes.ic % sizes.group or sizes.oc == 0:
        raise CheckpointError(
            weight.file, f"a weight of {sizes.ic} input channels must have whole groups", tensor=weight.name,
            rule="group_size", got=f"{weight}", why=f"{config} says group_size = {group_size}",
        )  # fmt: skip
    symmetric = "weight_zero_point" not in parts
    check_fits(weight.file, module, format, sizes, symmetric=symmetric)
    expected = expected_parts(format, sizes, symmetric=symmetric)
    for part, must in expected.items():
        header = parts.get(part)
        if header is None:
            if not must.needed:
                continue
            raise CheckpointError(
                weight.file, f"a layer in {format.name} must have {part}", tensor=f"{module}.{part}",
                rule="missing tensor", got="none",
            )  # fmt: skip
        if header.dtype not in must.dtypes or header.shape != must.shape:
            raise CheckpointError(
                header.file, f"{part} of {format.name} must be {' or '.join(must.dtypes)} {list(must.shape)}",
                tensor=header.name, rule=part, got=str(header),
                why=f"ic = {sizes.ic}, oc = {sizes.oc}, and {config} says group_size = {group_size}",
            )  # fmt: skip
    return sizes, {part: header for part, header in parts.items() if part in expected}
