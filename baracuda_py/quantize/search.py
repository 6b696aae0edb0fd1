"""The two searches of AWQ (arXiv 2306.00978): scales of the input channels, and the clipping of each group.

Scales. A weight W is stored as Q(W s), to be used as y = Q(W s) (x / s): a channel of large s is rounded finely, as
seen from the output, while its group keeps about the same scale. Large activations make an error matter, hence
s = mean |x| ^ alpha, and the alpha is taken that makes the output error |(Q(W s) / s - W) x|^2 least.

Clipping. A group whose extremes are given up has finer steps for the rest. Each group is tried with its interval
shrunk, and takes the one of least output error. Groups are judged one by one, as if their errors did not add up in
the output; where they do, to more than without clipping, the output channel stays unclipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from baracuda_py.quantize.activations import OutputError
from baracuda_py.quantize.engines import Engine
from baracuda_py.quantize.rounding import Grid
from baracuda_py.quantize.weights import blocks
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind

__all__ = [
    "ALPHAS",
    "CLIP_RATIOS",
    "Found",
    "Problem",
    "ScaledRows",
    "clipped_grid",
    "input_scale_of",
    "search_scale",
]

ALPHAS = tuple(step / 20 for step in range(21))
CLIP_RATIOS = tuple(1 - step / 20 for step in range(1, 11))

# Channels that are hardly ever active count as this share of the largest: it bounds max(s) / min(s), and with it what
# scaling can add to a group's range.
_LEAST_MAGNITUDE = 1e-4


@frozen(eq=False)
class Problem:
    """What both searches work on.

    Attributes:
        group: input channels of one group.
        element: of the stored scales.
        error: the output error of a change of the weight.
        within: the same for each group's channels alone; empty when nothing is to be clipped.
        unit: a power of two that brings weights to a size of which squares do not overflow.
        engine: where it is worked on; errors hold arrays of it.
    """

    group: int
    element: ElementKind
    error: OutputError
    within: tuple[OutputError, ...]
    unit: float
    engine: Engine


@frozen(eq=False)
class ScaledRows:
    """Some output channels of a weight, scaled, and what rounding them changes.

    Attributes:
        groups: (rows, groups, group), float32: W s.
        original: (rows, channels), float32: W unit.
        back: (channels,), float32: unit / s.
    """

    groups: Any
    original: Any
    back: Any

    @classmethod
    def of(cls, problem: Problem, rows: Any, input_scale: Any) -> ScaledRows:
        """Of `rows` (rows, channels) and as many channels' scales."""
        with np.errstate(over="ignore"):
            scaled = rows * input_scale
        groups = scaled.reshape(len(rows), -1, problem.group)
        return cls(groups, rows * problem.unit, problem.unit / input_scale)

    def errors(self, grid: Grid, error: OutputError) -> Any:
        """(rows,), float64, the output error of rounding to `grid`; nan where a scale overflows."""
        change = grid.nearest(self.groups).reshape(self.original.shape)
        change *= self.back
        change -= self.original
        return error.of(change)


@frozen(eq=False)
class Found:
    """The result of a scale search.

    Attributes:
        alpha: the exponent.
        input_scale: (ic,), float32: s.
        unrounded: the output of each weight, as a mean square.
        unscaled: the output error of each weight at s = 1, before clipping.
    """

    alpha: float
    input_scale: NDArray[np.float32]
    unrounded: NDArray[np.float64]
    unscaled: NDArray[np.float64]


def input_scale_of(magnitudes: NDArray[np.float32], alpha: float, element: ElementKind) -> NDArray[np.float32]:
    """s = magnitudes ^ alpha (ic,), centred on 1 and exactly values of `element`; 1 where all channels are alike."""
    largest = magnitudes.max()
    if not largest:
        return np.ones_like(magnitudes)
    powers = np.maximum(magnitudes / largest, _LEAST_MAGNITUDE).astype(np.float64) ** alpha
    return (powers / np.sqrt(powers.max() * powers.min())).astype(numpy_dtype(element)).astype(np.float32)


def search_scale(
    problem: Problem,
    weights: Sequence[NDArray[Any]],
    magnitudes: NDArray[np.float32],
    alphas: Sequence[float],
    advance: Callable[[], None],
) -> Found:
    """The alpha of least output error, summed over `weights` [(oc, ic), ...] that share their input.

    Alpha 0, plain rounding, should be the first of `alphas`; InvalidProblem when the first overflows the scales'
    element, while others that do are passed over. `advance` is called after each alpha of each block.
    """
    engine = problem.engine
    scales = [input_scale_of(magnitudes, alpha, problem.element) for alpha in alphas]
    factors = [engine.array(scale) for scale in scales]
    errors = np.zeros((len(weights), len(alphas)))
    unrounded = np.zeros(len(weights))
    for index, weight in enumerate(weights):
        oc, ic = weight.shape
        for block in blocks(oc, ic, engine.block_elements):
            rows = engine.array(weight[block])
            unrounded[index] += float(problem.error.of(rows * problem.unit).sum())
            for column, factor in enumerate(factors):
                scaled = ScaledRows.of(problem, rows, factor)
                grid = Grid.of(scaled.groups, problem.element, engine)
                if not column:
                    grid.check(problem.element)
                errors[index, column] += float(scaled.errors(grid, problem.error).sum())
                advance()
    best = int(np.argmin(np.nan_to_num(errors.sum(axis=0), nan=np.inf)))
    return Found(alphas[best], scales[best], unrounded, errors[:, 0])


def clipped_grid(problem: Problem, rows: Any, input_scale: Any, grid: Grid) -> Grid:
    """`grid` (rows, groups, 1) of `rows` (rows, ic), with the interval of each group shrunk to what errs least."""
    engine, xp = problem.engine, problem.engine.xp
    scales, zeros = xp.asarray(grid.scales, copy=True), xp.asarray(grid.zeros, copy=True)
    for index, error in enumerate(problem.within):
        channels = slice(index * problem.group, (index + 1) * problem.group)
        part = ScaledRows.of(problem, rows[:, channels], input_scale[channels])
        low = xp.clip(xp.amin(part.groups, axis=-1, keepdims=True), None, 0)
        high = xp.clip(xp.amax(part.groups, axis=-1, keepdims=True), 0, None)
        least = part.errors(Grid(grid.scales[:, index, None], grid.zeros[:, index, None], engine), error)
        for ratio in CLIP_RATIOS:
            shrunk = Grid.between(low * ratio, high * ratio, problem.element, engine)
            errors = part.errors(shrunk, error)
            better = errors < least
            least[better] = errors[better]
            scales[better, index] = shrunk.scales[better, 0]
            zeros[better, index] = shrunk.zeros[better, 0]
    return Grid(scales, zeros, engine)
