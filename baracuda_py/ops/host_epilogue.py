"""Epilogues of the host GEMMs: out = activation(accumulator + bias), in place on float32.

GELU is the exact one, v * Phi(v) with Phi the normal distribution function, and not its tanh approximation.
NumPy has no erf, so Phi comes from erfc(z) = t exp(-z^2) P(t), t = 1 / (1 + z / 2), whose P is interpolated from
`math.erfc` on first use: no coefficient is typed in. The substitution is the one of Numerical Recipes, section 6.2.
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baracuda_py.vocab.enums import EpilogueKind

__all__ = ["BIAS", "BIAS_GELU", "BIAS_RELU", "BIAS_SILU", "IDENTITY", "apply_epilogue"]

IDENTITY = EpilogueKind.IDENTITY
BIAS = EpilogueKind.BIAS
BIAS_RELU = EpilogueKind.BIAS_RELU
BIAS_GELU = EpilogueKind.BIAS_GELU
BIAS_SILU = EpilogueKind.BIAS_SILU

# 10 terms leave 3e-8 of relative error, under float32's own 6e-8, up to z = 9. Past it erfc is below 1e-36, where
# the extrapolated P stays finite and exp(-z^2) carries the result to 0.
_TERMS = 10
_LARGEST_ARGUMENT = 9.0


def apply_epilogue(values: NDArray[np.float32], bias: NDArray[Any] | None, epilogue: int) -> None:
    """Add `bias` and apply the activation, in place.

    values: (m, columns), float32, any strides. bias: (columns,), any float type; required unless `epilogue` is
    `IDENTITY`, which ignores it. ValueError for an unknown epilogue or a missing bias.
    """
    if epilogue not in (IDENTITY, BIAS, BIAS_RELU, BIAS_GELU, BIAS_SILU):
        raise ValueError(f"epilogue must be one of 0..4 (got {epilogue!r})")
    if epilogue == IDENTITY:
        return
    if bias is None:
        raise ValueError(f"epilogue {int(epilogue)} needs a bias (got None)")
    values += bias.astype(np.float32)
    if epilogue == BIAS_RELU:
        np.maximum(values, 0.0, out=values)
    elif epilogue == BIAS_GELU:
        values *= _normal_distribution(values)
    elif epilogue == BIAS_SILU:
        with np.errstate(over="ignore"):  # exp(-v) is inf below v = -88: v / inf is the right -0
            values /= 1.0 + np.exp(-values)


def _normal_distribution(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Phi(v) = erfc(-v / sqrt 2) / 2; the relative error grows with v^2, as that of exp, on the lower tail."""
    z = np.abs(values)
    z *= np.float32(math.sqrt(0.5))
    t = 1.0 / (1.0 + 0.5 * z)
    highest, *rest = _erfc_polynomial()
    tail = np.full_like(t, highest)
    for coefficient in rest:
        tail *= t
        tail += coefficient
    with np.errstate(over="ignore"):
        np.multiply(z, z, out=z)
    tail *= t * np.exp(-z)
    tail *= 0.5
    return np.where(values > 0, 1.0 - tail, tail)


@functools.cache
def _erfc_polynomial() -> tuple[np.float32, ...]:
    """Coefficients of P(t) = erfc(z) exp(z^2) / t, highest power first."""

    def scaled_erfc(t: float) -> float:
        z = 2.0 / t - 2.0
        return math.erfc(z) * math.exp(z * z) / t

    fit = np.polynomial.Chebyshev.interpolate(
        np.vectorize(scaled_erfc), _TERMS - 1, domain=[1.0 / (1.0 + 0.5 * _LARGEST_ARGUMENT), 1.0]
    )
    return tuple(np.float32(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef[::-1])
