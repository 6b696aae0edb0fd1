"""An op small enough to test registries and laws with: y = 2 x over (rows, columns)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from baracuda_py.registry import Kernel, Op
from baracuda_py.vocab.code import HostCode
from baracuda_py.vocab.descriptors import arguments, descriptor, enum_field, int_field, tensor
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
    UnaryKind,
)
from baracuda_py.vocab.rules import Rule, at_most, non_negative, one_of
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["ToyKernel", "toy_op"]


def _double(_descriptor: Any, x: Any, y: Any) -> None:
    y[...] = 2 * x


@frozen
class ToyKernel:
    """What one kernel of a toy op is like.

    Attributes:
        variant: of its SKU; unique in a registry.
        element: of its SKU.
        most_rows: what it takes, or None for any number.
        cost: its estimate.
        function: called as a host kernel is, with arguments x and y.
        rules: further rules.
        batch_invariant: of its guarantee.
        workspace_nbytes: what it says it needs.
    """

    variant: str
    element: ElementKind = ElementKind.F32
    most_rows: int | None = None
    cost: float = 1.0
    function: Callable[..., None] = _double
    rules: tuple[Rule, ...] = ()
    batch_invariant: bool = True
    workspace_nbytes: int = 0


def toy_op(
    name: str,
    kernels: Sequence[ToyKernel],
    *,
    rules: Sequence[Rule] = (),
    x_shape: tuple[int | str, ...] = ("rows", "columns"),
) -> Op:
    """An op with a descriptor class and an args class of its own.

    Args:
        name: of the op.
        kernels: its host kernels.
        rules: behind `rows >= 0`, `columns >= 0` and the element's.
        x_shape: of the input, for specs that are to be refused.
    """

    @descriptor
    class ToyDescriptor:
        """A doubling: rows, columns, element."""

        rows: int = int_field()
        columns: int = int_field(default=4)
        element: ElementKind = enum_field(ElementKind, default=ElementKind.F32)

    @arguments
    class ToyArgs:
        """Input and output of a doubling."""

        x: Any = tensor("element", x_shape, strides="rows")
        y: Any = tensor("element", ("rows", "columns"), strides="rows", role="out")

    elements = tuple(dict.fromkeys(kernel.element for kernel in kernels)) or (ElementKind.F32,)
    return Op(
        name=name,
        category=OpCategory.UNARY_ELEMENTWISE,
        kinds=(UnaryKind.NEG,),
        descriptor=ToyDescriptor,
        args=ToyArgs,
        rules=(non_negative("rows"), non_negative("columns"), one_of("element", elements), *rules),
        reference=lambda _descriptor, x: 2.0 * x.astype("float64"),
        kernels=tuple(map(_kernel, kernels)),
        examples=tuple(ToyDescriptor(rows, 4, element) for rows in (0, 1, 3) for element in elements),
    )


def _kernel(toy: ToyKernel) -> Kernel:
    def cost(_descriptor: Any, _device: Device) -> float:
        return toy.cost

    def workspace(_descriptor: Any, _device: Device) -> int:
        return toy.workspace_nbytes

    limit = () if toy.most_rows is None else (at_most("rows", toy.most_rows),)
    guarantee = PrecisionGuarantee(MathPrecision.F32, ElementKind.F32, ElementKind.F32, True, True, toy.batch_invariant)
    sku = KernelSku(
        OpCategory.UNARY_ELEMENTWISE, UnaryKind.NEG, toy.element, toy.element, LayoutSku.RRR, EpilogueKind.IDENTITY,
        ArchSku.HOST, BackendKind.HOST, guarantee, toy.variant,
    )  # fmt: skip
    return Kernel(sku, HostCode(toy.function), cost=cost, rules=(*limit, *toy.rules), workspace=workspace)
