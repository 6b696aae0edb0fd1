"""A quantised weight in no particular format: w[k, n] = (q[k, n] - z[g, n]) * s[g, n], with g = g_idx[k] or k // group.

Weights are the same when every such product is; a zero point whose scale is 0 may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from baracuda_py.checkpoints.words import pack, unpack

__all__ = ["SYMMETRIC_ZERO", "LossReport", "Nibbles", "channel_blocks", "compared", "requantized", "shifted"]

SYMMETRIC_ZERO = 8
_LARGEST = 15
# Weights that a block of output channels holds as floats: 16 MiB in float32.
_BLOCK_WEIGHTS = 1 << 22


@frozen
class LossReport:
    """What a conversion did to the weights.

    Attributes:
        changed: weights that are not what they were.
        total: weights.
        largest: the largest absolute change.
        why: the reason; `""` if nothing changed.
    """

    changed: int
    total: int
    largest: float = 0.0
    why: str = ""

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return self.changed > 0

    def __str__(self) -> str:
        if not self.changed:
            return f"all {self.total} weights are exactly what they were"
        return f"{self.changed} of {self.total} weights changed, by at most {self.largest:.3g}: {self.why}"


@frozen(eq=False)
class Nibbles:
    """A weight as nibbles.

    Attributes:
        words: (oc, ic / 8), int32: the nibbles q, in natural order along ic, as `AwqWeightLayout.OC_MAJOR` has them.
        z: (groups, oc), uint8 in 0..15; None for a symmetric weight, where it is 8.
        scales: (groups, oc), in the type in which they are stored.
        g_idx: (ic,), int32: the group of each input channel; None when they are in order, k // (ic / groups).
    """

    words: NDArray[np.int32]
    z: NDArray[np.uint8] | None
    scales: NDArray[Any]
    g_idx: NDArray[np.int32] | None = None

    @classmethod
    def of(
        cls,
        q: NDArray[np.uint8],
        z: NDArray[np.uint8] | None,
        scales: NDArray[Any],
        g_idx: NDArray[np.int32] | None = None,
    ) -> Nibbles:
        """Of q (ic, oc), uint8 in 0..15."""
        return cls(pack(np.ascontiguousarray(q.T)), z, scales, g_idx)

    @property
    def ic(self) -> int:
        """Input features."""
        return self.words.shape[1] * 8

    @property
    def oc(self) -> int:
        """Output features."""
        return self.words.shape[0]

    @property
    def groups(self) -> int:
        """Rows of the scales."""
        return self.scales.shape[0]

    @property
    def q(self) -> NDArray[np.uint8]:
        """(ic, oc), unpacked at each access; a transposed view of a contiguous array."""
        return unpack(self.words).T

    @property
    def zeros(self) -> NDArray[np.uint8]:
        """(groups, oc): z, or 8 everywhere."""
        return np.full(self.scales.shape, SYMMETRIC_ZERO, np.uint8) if self.z is None else self.z

    @property
    def group_of_row(self) -> NDArray[np.int32]:
        """(ic,): the group of each input channel."""
        if self.g_idx is not None:
            return self.g_idx
        return np.arange(self.ic, dtype=np.int32) // np.int32(self.ic // self.groups)

    def weights(self, dtype: Any = np.float64) -> NDArray[Any]:
        """(ic, oc): the weights, exact in float64 (and in float32 for scales of 16 bits)."""
        return self.channels(slice(None), dtype).T

    def channels(self, channels: slice, dtype: Any) -> NDArray[Any]:
        """(channels, ic): the weights of some output channels."""
        rows = self.group_of_row
        q = unpack(self.words[channels]).astype(dtype)
        q -= self.zeros[:, channels].T.astype(dtype)[:, rows]
        q *= self.scales[:, channels].T.astype(dtype)[:, rows]
        return q

    def in_order(self) -> Nibbles:
        """The same, without a g_idx that says what its absence says."""
        if self.g_idx is None or not np.array_equal(self.g_idx, evolve(self, g_idx=None).group_of_row):
            return self
        return evolve(self, g_idx=None)

    def split(self, groups: int) -> Nibbles:
        """The same in `groups` smaller groups, a multiple of what it has: scales and zero points are repeated."""
        repeats = groups // self.groups
        if repeats == 1:
            return self
        z = None if self.z is None else np.repeat(self.z, repeats, axis=0)
        return evolve(self, z=z, scales=np.repeat(self.scales, repeats, axis=0))


def channel_blocks(ic: int, oc: int) -> Iterator[slice]:
    """Slices of output channels that hold some 4 million weights each."""
    step = max(1, _BLOCK_WEIGHTS // ic)
    for start in range(0, oc, step):
        yield slice(start, min(start + step, oc))


def compared(old: Nibbles, new: Nibbles, why: str) -> LossReport:
    """How many weights of `new` are not those of `old`; `why`, if there are any."""
    losses = [_difference(old, new, channels) for channels in channel_blocks(old.ic, old.oc)]
    return _summed(old, losses, why)


def _difference(old: Nibbles, new: Nibbles, channels: slice) -> tuple[int, float]:
    """Weights that differ in some output channels, and the largest difference."""
    # Products of a nibble and a scale of 16 bits are exact in float32.
    exact = np.float32 if max(old.scales.dtype.itemsize, new.scales.dtype.itemsize) == 2 else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        before, after = old.channels(channels, exact), new.channels(channels, exact)
        differs = (before != after) & ~(np.isnan(before) & np.isnan(after))
        count = int(np.count_nonzero(differs))
        return count, float(np.abs(after - before)[differs].max()) if count else 0.0


def _summed(old: Nibbles, losses: list[tuple[int, float]], why: str) -> LossReport:
    changed = sum(count for count, _ in losses)
    return LossReport(changed, old.ic * old.oc, max(largest for _, largest in losses), why if changed else "")


def _rewritten(
    old: Nibbles, new: Nibbles, q_of: Callable[[slice], NDArray[np.uint8]], why: str
) -> tuple[Nibbles, LossReport]:
    """`new` with its words filled, a block of channels at a time, and in what it differs from `old`.

    `q_of(channels)` gives nibbles (channels, ic), and may fill the block's zero points and scales.
    """
    losses = []
    for channels in channel_blocks(old.ic, old.oc):
        new.words[channels] = pack(q_of(channels))
        losses.append(_difference(old, new, channels))
    return new, _summed(old, losses, why)


def shifted(old: Nibbles, z: NDArray[np.uint8] | None, why: str) -> tuple[Nibbles, LossReport]:
    """`old` with zero points `z`: nibbles move with them, and those that leave 0..15 are clipped."""
    moved = (np.full_like(old.zeros, SYMMETRIC_ZERO) if z is None else z).astype(np.int8) - old.zeros.astype(np.int8)

    def q_of(channels: slice) -> NDArray[np.uint8]:
        q = unpack(old.words[channels]).astype(np.int8)
        q += moved[:, channels].T[:, old.group_of_row]
        return np.clip(q, 0, _LARGEST, out=q).astype(np.uint8)

    return _rewritten(old, Nibbles(np.empty_like(old.words), z, old.scales, old.g_idx), q_of, why)


def requantized(old: Nibbles, groups: int, *, symmetric: bool, why: str) -> tuple[Nibbles, LossReport]:
    """`old` rounded to nearest in `groups` groups in order of ic, each scaled to its largest weights."""
    group = old.ic // groups
    scales = np.empty((groups, old.oc), old.scales.dtype)
    z = np.full((groups, old.oc), SYMMETRIC_ZERO, np.uint8)

    def q_of(channels: slice) -> NDArray[np.uint8]:
        w = old.channels(channels, np.float32).reshape(-1, groups, group)
        if symmetric:
            scale = np.abs(w).max(axis=2) / (_LARGEST - SYMMETRIC_ZERO)
        else:
            scale = (np.maximum(w.max(axis=2), 0) - np.minimum(w.min(axis=2), 0)) / _LARGEST
        scales[:, channels] = scale.T
        rounded = scales[:, channels].T.astype(np.float32)
        divisor = np.where(rounded == 0, np.float32(1), rounded)
        if not symmetric:
            zero = np.clip(np.rint(-np.minimum(w.min(axis=2), 0) / divisor), 0, _LARGEST)
            z[:, channels] = zero.T
        w /= divisor[:, :, None]
        np.rint(w, out=w)
        w += z[:, channels].T[:, :, None]
        return np.clip(w, 0, _LARGEST, out=w).astype(np.uint8).reshape(-1, old.ic)

    new = Nibbles(np.empty_like(old.words), None if symmetric else z, scales)
    with np.errstate(invalid="ignore", over="ignore"):
        return _rewritten(old, new, q_of, why)
