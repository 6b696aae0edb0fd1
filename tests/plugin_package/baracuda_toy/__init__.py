"""An op that is no part of baracuda_py: y = |x|, on the host."""

from __future__ import annotations

from typing import Any

import baracuda_py as bp
from baracuda_py.vocab.code import HostCode
from baracuda_py.vocab.descriptors import arguments, descriptor, int_field, tensor
from baracuda_py.vocab.enums import UnaryKind
from baracuda_py.vocab.rules import non_negative

__all__ = ["AbsArgs", "AbsDescriptor", "register"]


@descriptor
class AbsDescriptor:
    """Absolute values of `count` f32 numbers."""

    count: int = int_field()


@arguments
class AbsArgs:
    """Input and output."""

    x: Any = tensor(bp.ElementKind.F32, ("count",))
    y: Any = tensor(bp.ElementKind.F32, ("count",), role="out")


def _abs(_descriptor: AbsDescriptor, x: Any, y: Any) -> None:
    y[...] = abs(x)


def register(registry: Any) -> None:
    """The entry point."""
    f32 = bp.ElementKind.F32
    guarantee = bp.PrecisionGuarantee(
        bp.MathPrecision.F32, f32, f32, bit_stable_on_same_hardware=True, deterministic=True, batch_invariant=True
    )
    sku = bp.KernelSku(
        bp.OpCategory.UNARY_ELEMENTWISE, UnaryKind.ABS, f32, f32, bp.LayoutSku.RRR, bp.EpilogueKind.IDENTITY,
        bp.ArchSku.HOST, bp.BackendKind.HOST, guarantee, "toy_package",
    )  # fmt: skip
    registry.register(
        bp.Op(
            name="toy_abs",
            category=bp.OpCategory.UNARY_ELEMENTWISE,
            kinds=(UnaryKind.ABS,),
            descriptor=AbsDescriptor,
            args=AbsArgs,
            rules=(non_negative("count"),),
            reference=lambda _descriptor, x: abs(x.astype("float64")),
            kernels=(bp.Kernel(sku, HostCode(_abs), cost=lambda _descriptor, _device: 1.0),),
            examples=(AbsDescriptor(0), AbsDescriptor(5)),
        )
    )
