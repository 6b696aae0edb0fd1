"""The problems of the AWQ GEMM benchmark: shapes of models times numbers of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product

from attrs import frozen

from baracuda_py.errors import InvalidProblem
from baracuda_py.ops.gemm.dense_gemm import DenseGemmDescriptor
from baracuda_py.ops.quantize.awq_gemm import OP, AwqWeightLayout, Int4AwqGemmDescriptor
from baracuda_py.vocab.enums import ElementKind, LayoutSku

__all__ = ["PRESETS", "ROWS", "Cell", "Shape", "cells_of", "parse_shape"]

Shape = tuple[int, int]
"""Output and input channels of a layer, `(oc, ic)`."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


def _model(hidden: int, key_value: int, intermediate: int) -> tuple[Shape, ...]:
    """Layers of a block: queries and output, keys and values, gate and up, down."""
    return (hidden, hidden), (key_value, hidden), (intermediate, hidden), (hidden, intermediate)


PRESETS: Mapping[str, tuple[Shape, ...]] = {
    "frontier": ((4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192), (28672, 8192), (8192, 28672)),
    "qwen2.5-0.5b": _model(896, 128, 4864),
    "qwen2.5-7b": _model(3584, 512, 18944),
    "qwen2.5-32b": _model(5120, 1024, 27648),
    "mixtral-8x7b": _model(4096, 1024, 14336),
}
"""Layers by name: `frontier`, those of 8B to 70B models, and those of one model (of a mixture, one expert's)."""


@frozen(order=True)
class Cell:
    """One problem, in all weight layouts.

    Attributes:
        oc, ic: output and input channels.
        m: rows of the activation.
        element: of activation and output: F16 or BF16.
        group_size: input channels that share a scale.
    """

    element: ElementKind
    group_size: int
    oc: int
    ic: int
    m: int

    def descriptor(self, layout: AwqWeightLayout) -> Int4AwqGemmDescriptor:
        """The AWQ GEMM with weights in one layout."""
        return Int4AwqGemmDescriptor(
            self.m, self.ic, self.oc, self.group_size, weight_layout=layout, element=self.element
        )

    def dense(self, element: ElementKind) -> DenseGemmDescriptor:
        """The product with unpacked weights, which lie as a linear layer's."""
        return DenseGemmDescriptor(self.m, self.oc, self.ic, layout=LayoutSku.RCR, element=element)

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the packed weights, with scales and zero points."""
        groups = self.descriptor(AwqWeightLayout.OC_MAJOR).groups
        return self.oc * self.ic // 2 + groups * self.oc * 2 + groups * self.oc // 2

    @property
    def nbytes(self) -> int:
        """Bytes that must be read or written: weights, activation, output."""
        return self.weight_nbytes + 2 * self.m * (self.oc + self.ic)

    @property
    def flop(self) -> int:
        """Multiplications and additions of the product."""
        return 2 * self.m * self.oc * self.ic

    @property
    def weights(self) -> tuple[ElementKind, int, int, int]:
        """What cells with the same weights have in common."""
        return self.element, self.group_size, self.oc, self.ic

    def __str__(self) -> str:
        return f"{self.oc} x {self.ic}, m = {self.m}, {self.element.name.lower()}, group {self.group_size}"


def parse_shape(text: str) -> Shape:
    """The shape in `"OCxIC"`; InvalidProblem for any other text."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if match is None:
        raise InvalidProblem(
            "bench", "a shape must be OCxIC", rule="shape", value=text, fix="Write output x input, e.g. 14336x4096"
        )
    return int(match[1]), int(match[2])


def cells_of(
    shapes: Iterable[Shape], rows: Iterable[int], elements: Iterable[ElementKind], group_sizes: Iterable[int]
) -> list[Cell]:
    """Every combination once, cells of the same weights one after the other.

    Raises:
        InvalidProblem, Unsupported: the op does not allow one; InvalidProblem for m = 0, which computes nothing.
    """
    found = [
        Cell(element, group_size, oc, ic, m)
        for element, group_size, (oc, ic), m in product(elements, group_sizes, shapes, rows)
    ]  # fmt: skip
    for cell in found:
        OP.check(cell.descriptor(AwqWeightLayout.OC_MAJOR))
        if not cell.m:
            raise InvalidProblem("bench", "m must be positive", rule="m", value=cell.m, why="0 rows take no time")
    return list(dict.fromkeys(found))
