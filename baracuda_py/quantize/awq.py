"""AWQ weights (arXiv 2306.00978) from floating-point ones, in NumPy.

    y = W x + b  ~  Q (x / input_scale) + b        Q (oc, ic): the weight that qweight, qzeros and scales stand for

The packed tensors are what a checkpoint of the AWQ GEMM format holds and what the layout HF_GEMM reads. Dividing by
`input_scale` is the caller's: fold it into the layer before (`baracuda_py.quantize.folding`), or store it beside the
activation (`<act>.scales`), which divides by it at run time. Linears that read the same input (q, k, v; gate, up)
have to share it: `quantize_awq_group`.

Memory: beside arguments and results, a dozen arrays of `BLOCK_ELEMENTS` float32; of the activations a copy in float32,
4 * tokens * ic bytes, or where there are more tokens than channels their second moments, 8 * ic * ic; and for clipping
the second moments within each group, 4 * ic * group. On a torch device blocks are larger (`engines`), and the
activations and their moments are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from baracuda_py.errors import InvalidProblem
from baracuda_py.ops.quantize.awq_packing import HF_GEMM, pack_weight, pack_zeros, unpack_weight, unpack_zeros
from baracuda_py.quantize.activations import ActivationStatistics, describe
from baracuda_py.quantize.engines import engine_on
from baracuda_py.quantize.rounding import Grid, Rounded, can_vanish, check_vanishing
from baracuda_py.quantize.search import ALPHAS, Problem, ScaledRows, clipped_grid, search_scale
from baracuda_py.quantize.weights import blocks, check_floats, check_weight
from baracuda_py.vocab.elements import element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind

__all__ = ["AwqResult", "quantize_awq", "quantize_awq_group"]

Activations = ActivationStatistics | NDArray[Any] | None


@frozen(eq=False)
class AwqResult:
    """One linear, quantised.

    Attributes:
        qweight: (ic, oc / 8), int32, HF_GEMM nibble order.
        qzeros: (groups, oc / 8), int32, the same order.
        scales: (groups, oc), float16 or bfloat16.
        bias: (oc,), or None.
        input_scale: (ic,), float32, positive: what the input has to be divided by. Each is a value of the scales'
            element, so that it can be stored as such; all are 1 when alpha is 0.
        alpha: exponent of the mean magnitudes that made `input_scale`.
        rtn_error: relative output error of plain rounding: the root of the mean of |e x|^2 / the mean of |W x|^2.
        awq_error: the same of this result.
    """

    qweight: NDArray[np.int32]
    qzeros: NDArray[np.int32]
    scales: NDArray[Any]
    bias: NDArray[Any] | None
    input_scale: NDArray[np.float32]
    alpha: float
    rtn_error: float
    awq_error: float

    def dequantize(self) -> NDArray[np.float32]:
        """The stored weight (oc, ic), which applies to inputs divided by `input_scale`."""
        nibbles, zeros = unpack_weight(self.qweight, HF_GEMM), unpack_zeros(self.qzeros, HF_GEMM)
        return Rounded(nibbles, zeros, self.scales).dequantize()


def quantize_awq(
    weight: NDArray[Any],
    *,
    group_size: int = 128,
    activations: Activations = None,
    bias: NDArray[Any] | None = None,
    scales_element: ElementKind = ElementKind.F16,
    clip: bool = True,
    alphas: Sequence[float] = ALPHAS,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AwqResult:
    """Quantise one linear; its output error on the given activations is at most that of plain rounding.

    Args:
        weight: (oc, ic), as torch's Linear holds it; float16, bfloat16 or float32, finite.
        group_size: input channels that share a scale and a zero point: 32, 64, 128, or -1 for all of them.
        activations: the linear's inputs, tokens (tokens, ic), or their `ActivationStatistics`. None takes all channels
            for alike and uncorrelated: then alpha is 0, and clipping makes the weight's own error least.
        bias: (oc,); float32 is rounded to `scales_element`, float16 and bfloat16 stay.
        scales_element: what the scales are stored as, F16 or BF16.
        clip: search the clipping of each group. Without it, and without activations, this is plain rounding.
        alphas: exponents to try, each in 0..1; 0 always is.
        device: of torch, on which to search, e.g. `"cuda"`; None: NumPy. Sums are taken in another order there, so that
            the choice between candidates that err alike may differ.
        progress: called with (steps done, steps in all).

    Raises:
        Unsupported: another element or group size; torch is not there, or has no such device.
        InvalidProblem: shapes that disagree or do not fit the format (oc % 8, ic % 32), inf or nan, a scale too large
            for its element, scales that vanish in F16 (as for `round_to_nearest`), an alpha outside 0..1.
    """
    (result,) = quantize_awq_group(
        [weight], group_size=group_size, activations=activations, biases=[bias], scales_element=scales_element,
        clip=clip, alphas=alphas, device=device, progress=progress,
    )  # fmt: skip
    return result


def quantize_awq_group(
    weights: Sequence[NDArray[Any]],
    *,
    group_size: int = 128,
    activations: Activations = None,
    biases: Sequence[NDArray[Any] | None] | None = None,
    scales_element: ElementKind = ElementKind.F16,
    clip: bool = True,
    alphas: Sequence[float] = ALPHAS,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[AwqResult, ...]:
    """Quantise linears that read the same input, with one `input_scale` for all.

    The scale is searched for the sum of their squared output errors, as if they were one linear; one of them alone
    may end above its plain rounding. Arguments and errors as for `quantize_awq`, one weight and bias a linear.
    """
    engine = engine_on(device)
    given_biases = [None] * len(weights) if biases is None else list(biases)
    group = _check(weights, given_biases, group_size, scales_element, alphas)
    channels = weights[0].shape[1]
    magnitudes, error = describe(activations, channels, engine)
    alike = magnitudes.min() == magnitudes.max()  # then every alpha gives s = 1
    tried = [0.0] if alike else list(dict.fromkeys([0.0, *alphas]))
    starts = range(0, channels, group) if clip else ()
    within = tuple(error.within(slice(start, start + group)) for start in starts)
    problem = Problem(group, scales_element, error, within, _unit(weights), engine)
    steps = sum(len(list(blocks(len(weight), channels, engine.block_elements))) for weight in weights)
    advance = _counter(progress, steps * (len(tried) + 1))

    stored_biases = [None if bias is None else _stored_bias(bias, scales_element) for bias in given_biases]

    found = search_scale(problem, weights, magnitudes, tried, advance)
    results = []
    for index, weight in enumerate(weights):
        name = "weight" if len(weights) == 1 else f"weights[{index}]"
        packed, squared = _pack(problem, weight, name, found.input_scale, advance)
        results.append(
            AwqResult(
                *packed,
                bias=stored_biases[index],
                input_scale=found.input_scale,
                alpha=found.alpha,
                rtn_error=_relative(found.unscaled[index], found.unrounded[index]),
                awq_error=_relative(squared, found.unrounded[index]),
            )
        )
    return tuple(results)


def _check(
    weights: Sequence[NDArray[Any]],
    biases: Sequence[NDArray[Any] | None],
    group_size: int,
    scales_element: ElementKind,
    alphas: Sequence[float],
) -> int:
    """Input channels of one group; raises what `quantize_awq` says."""
    if not weights:
        raise InvalidProblem("weights", "there must be at least one", rule="weights", value=0)
    groups = [check_weight(weight, group_size, scales_element) for weight in weights]
    channels = [weight.shape[1] for weight in weights]
    if len(set(channels)) > 1:
        raise InvalidProblem(
            "weights", "linears that read the same input must have the same ic", rule="ic", value=channels
        )
    if len(biases) != len(weights):
        raise InvalidProblem("biases", f"there must be {len(weights)}, one a weight", rule="biases", value=len(biases))
    for weight, bias in zip(weights, biases, strict=True):
        if bias is None:
            continue
        check_floats(bias, "bias", "(oc,)", rank=1)
        if len(bias) != len(weight):
            raise InvalidProblem("bias", f"its shape must be ({len(weight)},)", rule="shape", value=bias.shape)
    for alpha in alphas:
        if not 0 <= alpha <= 1:
            raise InvalidProblem("alphas", "each must be in 0..1", rule="alphas", value=alpha)
    return groups[0]


def _unit(weights: Sequence[NDArray[Any]]) -> float:
    """The power of two that brings the largest weight to about 1, so that squares neither overflow nor vanish."""
    largest = max(
        float(np.abs(weight[block].astype(np.float32)).max()) for weight in weights for block in blocks(*weight.shape)
    )
    return float(2.0 ** -np.clip(np.frexp(largest)[1], -126, 126))


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return advance


def _pack(
    problem: Problem, weight: NDArray[Any], name: str, input_scale: NDArray[np.float32], advance: Callable[[], None]
) -> tuple[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[Any]], float]:
    """qweight, qzeros and scales of `weight` (oc, ic), and their squared output error."""
    oc, ic = weight.shape
    groups = ic // problem.group
    qweight = np.empty((ic, oc // 8), np.int32)
    qzeros = np.empty((groups, oc // 8), np.int32)
    scales = np.empty((groups, oc), numpy_dtype(problem.element))
    squared, vanishing = 0.0, 0
    engine = problem.engine
    factors = engine.array(input_scale)
    for block in blocks(oc, ic, engine.block_elements):
        rows = engine.array(weight[block])
        scaled = ScaledRows.of(problem, rows, factors)
        plain = Grid.of(scaled.groups, problem.element, engine)
        vanishing += plain.vanishing(scaled.groups, problem.element) if can_vanish(weight) else 0
        grid, errors = _best_grid(problem, rows, factors, scaled, plain)
        words = slice(block.start // 8, block.stop // 8)
        nibbles = engine.numpy(grid.levels(scaled.groups)).astype(np.uint8).reshape(len(rows), ic)
        qweight[:, words] = pack_weight(nibbles.T, HF_GEMM)
        qzeros[:, words] = pack_zeros(engine.numpy(grid.zeros)[..., 0].T.astype(np.uint8), HF_GEMM)
        scales[:, block] = engine.numpy(grid.scales)[..., 0].T
        squared += float(errors.sum())
        advance()
    check_vanishing(vanishing, scales.size, name)
    return (qweight, qzeros, scales), squared


def _best_grid(problem: Problem, rows: Any, input_scale: Any, scaled: ScaledRows, plain: Grid) -> tuple[Grid, Any]:
    """The clipped grid where that lowers an output channel's error, the plain one elsewhere; and the errors."""
    errors = scaled.errors(plain, problem.error)
    if not problem.within:
        return plain, errors
    clipped = clipped_grid(problem, rows, input_scale, plain)
    clipped_errors = scaled.errors(clipped, problem.error)
    better = (clipped_errors < errors)[:, None, None]
    where = problem.engine.xp.where
    grid = Grid(where(better, clipped.scales, plain.scales), where(better, clipped.zeros, plain.zeros), problem.engine)
    return grid, problem.engine.xp.minimum(clipped_errors, errors)


def _stored_bias(bias: NDArray[Any], element: ElementKind) -> NDArray[Any]:
    """`bias` as a 16-bit float; InvalidProblem when rounding a float32 one overflows."""
    if element_of_dtype(bias.dtype) is not ElementKind.F32:
        return bias.copy()
    with np.errstate(over="ignore"):
        stored = bias.astype(numpy_dtype(element))
    check_floats(stored, f"bias as {element.name}", "(oc,)", rank=1)
    return stored


def _relative(squared: float, reference: float) -> float:
    """Root of a ratio of squared errors; 0 for a layer whose output is 0."""
    return float(np.sqrt(squared / reference)) if reference else 0.0
