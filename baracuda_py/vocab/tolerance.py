"""How far a result may lie from the exact one, given what its kernel promises."""

from __future__ import annotations

import math

from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.sku import PrecisionGuarantee

__all__ = ["relative_tolerance"]

# Unit roundoff: the largest relative error of one rounding to nearest. Integer operands are exact.
_ROUNDOFF = {
    "F16": 2.0**-11,
    "BF16": 2.0**-8,
    "TF32": 2.0**-11,
    "F32": 2.0**-24,
    "F64": 2.0**-53,
    "FP8_E4M3": 2.0**-4,
    "FP8_E5M2": 2.0**-3,
}
# Nobody rounds operands to fp8 unasked: they are given, and exact. What is lost is in the tensor cores' sums, of which
# each keeps some 13 bits of its largest product.
_FP8_SUMS = 2.0**-9
# A sum in the accumulator's type rounds once a term, not once: the random walk over 2^16 terms.
_ACCUMULATION = 2.0**8


def relative_tolerance(guarantee: PrecisionGuarantee, output: ElementKind, elements: int | None = None) -> float:
    """Bound on ||y - exact|| / ||exact|| (Frobenius) for an output of element kind `output`.

    The unit roundoff of the coarsest rounding on the way. The roundings of operands, partial sums and output are
    independent and each has a root mean square of at most 1/sqrt(3) of that, so that three of them stay within it. Of
    few `elements` they may not: of one, all three may be at their largest, and n depart by some 2 / sqrt(n).
    """
    multiplied = guarantee.math_precision.name if guarantee.math_precision is not None else ""
    single = [_FP8_SUMS if multiplied.startswith("FP8") else _ROUNDOFF.get(multiplied, 0.0)]
    single += [_ROUNDOFF.get(kind.name, 0.0) for kind in (output, guarantee.partial_sums) if kind is not None]
    accumulator = guarantee.accumulator
    summed = _ACCUMULATION * _ROUNDOFF.get(accumulator.name, 0.0) if accumulator is not None else 0.0
    few = 1.0 if elements is None else 1.0 + 2.0 / math.sqrt(max(elements, 1))
    return few * max(*single, summed, 0.0)
