"""What a layer's inputs look like, and the output error that a change of its weight makes on them.

The output error of a change e (oc, ic) of the weight is the mean over tokens of |e x|^2. It is computed from what is
known of x: from the tokens themselves, from the second moments E[x x^T], or from their diagonal alone, which takes the
input channels for uncorrelated. The errors here are in units of the largest second moment: only ratios mean something.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from baracuda_py.errors import InvalidProblem
from baracuda_py.quantize.engines import Engine
from baracuda_py.quantize.weights import blocks, check_floats

__all__ = ["ActivationStatistics"]


def _as_float32(values: Any) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # an overflow is refused as inf
        return np.asarray(values, np.float32)


@frozen(eq=False)
class ActivationStatistics:
    """Statistics of a layer's inputs over calibration tokens.

    Attributes:
        mean_magnitude: (ic,), the mean of |x|.
        second_moment: (ic,), the mean of x^2; or (ic, ic), the mean of x x^T, which also knows how channels move
            together, for 4 * ic * ic bytes.
        tokens: how many the means are over.

    Raises InvalidProblem when a value is not finite or negative, or when the shapes disagree.
    """

    mean_magnitude: NDArray[np.float32] = field(converter=_as_float32)
    second_moment: NDArray[np.float32] = field(converter=_as_float32)
    tokens: int = 1

    def __attrs_post_init__(self) -> None:
        check_floats(self.mean_magnitude, "mean_magnitude", "(ic,)", rank=1)
        channels = len(self.mean_magnitude)
        rank = 2 if np.ndim(self.second_moment) == 2 else 1
        check_floats(self.second_moment, "second_moment", "(ic,) or (ic, ic)", rank=rank)
        if self.second_moment.shape != (channels,) * rank:
            raise InvalidProblem(
                "second_moment", f"its shape must be ({channels},) or ({channels}, {channels}), as mean_magnitude says",
                rule="shape", value=self.second_moment.shape,
            )  # fmt: skip
        squares = self.second_moment if rank == 1 else self.second_moment.diagonal()
        for name, values in (("mean_magnitude", self.mean_magnitude), ("second_moment", squares)):
            if values.min() < 0:
                raise InvalidProblem(
                    name, "means of magnitudes and squares must not be negative", rule="sign", value=float(values.min())
                )
        if self.tokens < 1:
            raise InvalidProblem("tokens", "there must be at least one", rule="tokens", value=self.tokens)

    @classmethod
    def of(cls, samples: NDArray[Any], *, correlations: bool = False) -> ActivationStatistics:
        """Statistics of `samples` (tokens, ic), f16, bf16 or f32; with `correlations` the whole of E[x x^T].

        Raises Unsupported for another element, InvalidProblem for another rank, and for inf or nan.
        """
        check_floats(samples, "samples", "(tokens, ic)", rank=2)
        tokens, channels = samples.shape
        magnitude = np.zeros(channels, np.float64)
        moment = np.zeros((channels, channels) if correlations else channels, np.float32)
        for rows in blocks(tokens, channels):
            block = samples[rows].astype(np.float32)
            magnitude += np.abs(block).sum(axis=0, dtype=np.float64)
            moment += block.T @ block if correlations else np.square(block).sum(axis=0)
        moment /= tokens
        return cls(magnitude / tokens, moment, tokens)

    def merged(self, other: ActivationStatistics) -> ActivationStatistics:
        """The statistics over the tokens of both, so that calibration can run in batches."""
        if self.second_moment.shape != other.second_moment.shape:
            raise InvalidProblem(
                "activations", f"both must have second moments of shape {self.second_moment.shape}", rule="shape",
                value=other.second_moment.shape,
            )  # fmt: skip
        tokens = self.tokens + other.tokens
        share = np.float32(other.tokens / tokens)
        return ActivationStatistics(
            self.mean_magnitude + (other.mean_magnitude - self.mean_magnitude) * share,
            self.second_moment + (other.second_moment - self.second_moment) * share,
            tokens,
        )


class OutputError(Protocol):
    """The mean over tokens of (e x)^2 for each output channel, and the same for some input channels alone."""

    def of(self, change: Any) -> Any:
        """(rows,), float64, of the change (rows, channels) of a weight."""
        ...

    def within(self, channels: slice) -> OutputError:
        """For changes of those input channels alone."""
        ...


@frozen(eq=False)
class UncorrelatedError:
    """The output error from (channels,) means of x^2."""

    squares: Any
    engine: Engine

    def of(self, change: Any) -> Any:
        return self.engine.double(self.engine.xp.square(change) @ self.squares)

    def within(self, channels: slice) -> UncorrelatedError:
        return UncorrelatedError(self.squares[channels], self.engine)


@frozen(eq=False)
class CorrelatedError:
    """The output error from (channels, channels) means of x x^T."""

    moments: Any
    engine: Engine

    def of(self, change: Any) -> Any:
        errors = self.engine.double(self.engine.xp.einsum("ij,ij->i", change @ self.moments, change))
        # A sum of cancelling terms can come out just below 0; nan stays.
        return self.engine.xp.clip(errors, 0, None)

    def within(self, channels: slice) -> CorrelatedError:
        xp = self.engine.xp
        return CorrelatedError(xp.asarray(self.moments[channels, channels], copy=True), self.engine)


@frozen(eq=False)
class SampledError:
    """The output error from tokens (tokens, channels), fewer than the channels."""

    tokens: Any
    engine: Engine

    def of(self, change: Any) -> Any:
        outputs = change @ self.tokens.T
        return self.engine.double(self.engine.xp.einsum("ij,ij->i", outputs, outputs)) / len(self.tokens)

    def within(self, channels: slice) -> OutputError:
        tokens = self.tokens[:, channels]
        if tokens.shape[0] < tokens.shape[1]:
            return SampledError(tokens, self.engine)
        return CorrelatedError(tokens.T @ tokens / len(tokens), self.engine)  # less work a row than the tokens


def describe(activations: Any, channels: int, engine: Engine) -> tuple[NDArray[np.float32], OutputError]:
    """Magnitudes (ic,) and output error of what a caller gave: statistics, tokens, or None for all channels alike.

    The magnitudes are NumPy's, the error is the engine's.

    Raises Unsupported or InvalidProblem for anything else, and when it is not of `channels` input channels.
    """
    if activations is None:
        alike = np.ones(channels, np.float32)
        return alike, UncorrelatedError(engine.array(alike), engine)
    ours = not isinstance(activations, ActivationStatistics)
    if not isinstance(activations, ActivationStatistics):
        check_floats(activations, "activations", "(tokens, ic)", rank=2)
        _check_width(activations.shape[1], channels)
        if len(activations) < channels:
            tokens = activations.astype(np.float32)
            tokens /= max(-tokens.min(), tokens.max()) or np.float32(1)
            return ActivationStatistics.of(tokens).mean_magnitude, SampledError(engine.array(tokens), engine)
        activations = ActivationStatistics.of(activations, correlations=True)
    _check_width(len(activations.mean_magnitude), channels)
    moment = activations.second_moment
    moment = np.divide(moment, moment.max() or np.float32(1), out=moment if ours else None)
    kind = UncorrelatedError if moment.ndim == 1 else CorrelatedError
    return activations.mean_magnitude, kind(engine.array(moment), engine)


def _check_width(width: int, channels: int) -> None:
    if width != channels:
        raise InvalidProblem(
            "activations", f"they must have the weight's {channels} input channels", rule="ic", value=width
        )
