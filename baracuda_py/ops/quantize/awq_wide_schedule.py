"""How kernels for many tokens cut outputs in tiles of 128 channels: WideSchedule of awq_gemm_wide_schedule.cuh."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from baracuda_py.ops.quantize.awq_gemm_sm90a import SHARED_BYTES
from baracuda_py.ops.quantize.awq_problem import AwqProduct
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, TILE_ROWS, ceil_div
from baracuda_py.sys import module
from baracuda_py.vocab.code import Launch, Parameter
from baracuda_py.vocab.device import Device

__all__ = ["WideCut", "finish_launches"]

_MIN_SPLIT_BLOCKS = 4  # blocks of 128 input channels that an SM has at least, where tiles are split
_MAX_SPLITS = 16
_PANEL = 8  # token tiles that follow each other before the next channels, so that L2 keeps their x
_ROWS = 8  # of x, of which a tile has a multiple
_SUM_BYTES = 4
_OUTPUT_BYTES = 2
_RESERVED_BYTES = 1024  # of shared memory, that an SM keeps for each of its thread blocks
# A second launch that begins early would crowd the SMs that are free first: with shared memory, which they have no use
# for, no more of its thread blocks fit an SM than its share. Up to this share it saves (8192 x 8192 at m = 64 on an
# H100: 26.4 us instead of 27.5); beyond, it costs (4096 x 14336 at m = 256: 48.8 instead of 47.6).
_EARLY_SHARE = 4


def _constant(name: str) -> int:
    return module("quantize.awq_gemm.tiled_wide_few_f16_g1", "sm90a").constant(name)  # all say the same


@frozen
class WideCut:
    """How the outputs are cut.

    Attributes:
        tokens: that a tile has room for: those of the entry.
        token_tiles: tiles along m.
        even: tokens of a tile if all have as many, a multiple of 8.
        depth: blocks of 128 input channels.
        blocks: thread blocks that are launched.
        whole: tiles that one thread block computes.
        split: the others.
        splits: ranges of ic that each of those is cut in, a thread block each.
    """

    tokens: int
    token_tiles: int
    even: int
    depth: int
    blocks: int
    whole: int
    split: int
    splits: int

    @classmethod
    def of(cls, desc: AwqProduct, device: Device, tokens: int, *, splitting: bool) -> WideCut:
        """With `splitting`, the tiles of the last round are split, if the GPU holds twice as many thread blocks."""
        token_tiles = ceil_div(desc.m, tokens)
        even = ceil_div(ceil_div(desc.m, max(token_tiles, 1)), _ROWS) * _ROWS
        depth = ceil_div(desc.ic, TILE_COLUMNS)
        tiles = token_tiles * ceil_div(desc.oc, _constant("kWideChannels"))
        sms = max(device.sm_count, 1)
        left = tiles % sms
        splits = min(sms // left, depth // _MIN_SPLIT_BLOCKS, _MAX_SPLITS) if splitting and left else 1
        if splits <= 1:
            return cls(tokens, token_tiles, even, depth, min(sms, tiles), tiles, 0, 1)
        blocks = sms if tiles > left else left * splits
        return cls(tokens, token_tiles, even, depth, blocks, tiles - left, left, splits)

    @classmethod
    def all(cls, desc: AwqProduct, device: Device, tokens: Iterable[int]) -> tuple[WideCut, ...]:
        """Every cut with tiles of so many tokens; the first is the smallest.

        Tiles that are half empty or more are left out, but for the smallest.
        """
        least, *larger = tokens
        fitting = [least, *(one for one in larger if one < 2 * desc.m)]
        return tuple(cls.of(desc, device, one, splitting=splitting) for one in fitting for splitting in (False, True))

    @property
    def partial_nbytes(self) -> int:
        """Bytes of the workspace."""
        return self.split * self.splits * _constant("kWideChannels") * self.tokens * _SUM_BYTES

    @property
    def schedule(self) -> tuple[int, int, int, int]:
        """The first of WideSchedule, in awq_gemm_wide_schedule.cuh."""
        return self.whole, self.split, self.splits, min(_PANEL, self.token_tiles)

    def us(self, device: Device, peak: float) -> float:
        """Estimated time, in microseconds, of a GPU of `peak` flop a microsecond."""
        sms = max(device.sm_count, 1)
        rounds = ceil_div(self.whole, sms)
        blocks = rounds * self.depth + (ceil_div(self.depth, self.splits) if self.split else 0)  # one after the other
        block_us = 2 * _constant("kWideChannels") * self.tokens * TILE_COLUMNS * sms / peak
        finish_us = 2.0 + 2 * self.partial_nbytes / device.bytes_per_us if self.split else 0.0
        return 3.0 + rounds + blocks * block_us + finish_us


def finish_launches(
    main: Launch, cut: WideCut, device: Device, parameters: tuple[Parameter, ...]
) -> tuple[Launch, ...]:
    """What comes behind `main`: the second launch, which adds the parts of tiles that are split; none, if none is."""
    if not cut.split:
        return ()
    tokens = _constant("kWideFinishTokens")
    blocks = cut.split * _constant("kWideChannels") // TILE_ROWS * cut.tokens // tokens
    threads, nbytes = _constant("kWideFinishThreads"), tokens * TILE_ROWS * _OUTPUT_BYTES
    share = ceil_div(blocks, max(device.sm_count, 1))
    early = share <= _EARLY_SHARE
    if early:
        nbytes = max(nbytes, SHARED_BYTES // share - _RESERVED_BYTES)
    entry = f"{main.entry}_finish"
    return (Launch(entry, (blocks, 1, 1), (threads, 1, 1), parameters, nbytes, main.module, overlaps=early),)
