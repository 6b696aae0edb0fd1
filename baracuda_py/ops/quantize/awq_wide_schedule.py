"""How kernels for many tokens cut outputs in tiles of 128 channels: WideSchedule of awq_gemm_wide_schedule.cuh."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from baracuda_py.ops.quantize.awq_problem import AwqProduct
from baracuda_py.ops.quantize.awq_tiles import TILE_COLUMNS, TILE_ROWS
from baracuda_py.sys import module
from baracuda_py.vocab.code import Launch, Parameter
from baracuda_py.vocab.device import Device

__all__ = ["WideCut", "finish_launches"]

_MIN_SPLIT_BLOCKS = 4  # blocks of 128 input channels that an SM has at least, where tiles are split
_MAX_SPLITS = 16
_PANEL = 8  # token tiles that follow each other before the next channels, so that L2 keeps their x
_SUM_BYTES = 4
_OUTPUT_BYTES = 2


def _constant(name: str) -> int:
    return module("quantize.awq_gemm.tiled_wide_f16_g1", "sm90a").constant(name)  # all say the same


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@frozen
class WideCut:
    """How the outputs are cut.

    Attributes:
        tokens: of a tile.
        token_tiles: tiles along m.
        depth: blocks of 128 input channels.
        resident: thread blocks that an SM holds at a time.
        blocks: thread blocks that are launched.
        whole: tiles that one thread block computes.
        split: the others.
        splits: ranges of ic that each of those is cut in, a thread block each.
    """

    tokens: int
    token_tiles: int
    depth: int
    resident: int
    blocks: int
    whole: int
    split: int
    splits: int

    @classmethod
    def of(cls, desc: AwqProduct, device: Device, tokens: int, *, resident: int = 1, splitting: bool) -> WideCut:
        """With `splitting`, the tiles of the last round are split, if the GPU holds twice as many thread blocks."""
        token_tiles = _ceil_div(desc.m, tokens)
        depth = _ceil_div(desc.ic, TILE_COLUMNS)
        tiles = token_tiles * _ceil_div(desc.oc, _constant("kWideChannels"))
        slots = max(device.sm_count, 1) * resident
        left = tiles % slots
        ranges = depth // (_MIN_SPLIT_BLOCKS * resident)
        splits = min(slots // left, ranges, _MAX_SPLITS) if splitting and left else 1
        if splits <= 1:
            return cls(tokens, token_tiles, depth, resident, min(slots, tiles), tiles, 0, 1)
        blocks = slots if tiles > left else left * splits
        return cls(tokens, token_tiles, depth, resident, blocks, tiles - left, left, splits)

    @classmethod
    def all(cls, desc: AwqProduct, device: Device, residents: Iterable[tuple[int, int]]) -> tuple[WideCut, ...]:
        """Every cut with tiles of so many tokens, and so many thread blocks an SM; the first is the smallest.

        Tiles that are half empty or more are left out, but for the smallest.
        """
        least, *larger = residents
        fitting = [least, *(one for one in larger if one[0] < 2 * desc.m)]
        return tuple(
            cls.of(desc, device, tokens, resident=resident, splitting=splitting)
            for tokens, resident in fitting for splitting in (False, True)
        )  # fmt: skip

    @property
    def partial_nbytes(self) -> int:
        """Bytes of the workspace."""
        return self.split * self.splits * _constant("kWideChannels") * self.tokens * _SUM_BYTES

    @property
    def schedule(self) -> tuple[int, int, int, int]:
        """BARACUDA_WIDE_SCHEDULE_PARAMETERS of awq_gemm_wide_schedule.cuh."""
        return self.whole, self.split, self.splits, min(_PANEL, self.token_tiles)

    def us(self, device: Device, peak: float, *, alone: float = 1.0) -> float:
        """Estimated time, in microseconds, of a GPU of `peak` flop a microsecond; where a thread block has an SM for
        itself that could hold two, it takes `alone` times what each of two does."""
        sms = max(device.sm_count, 1)
        rounds = _ceil_div(self.whole, sms * self.resident)
        blocks = rounds * self.depth + (_ceil_div(self.depth, self.splits) if self.split else 0)  # one after the other
        flop = 2 * _constant("kWideChannels") * self.tokens * TILE_COLUMNS
        block_us = flop * sms * self.resident / peak
        if self.resident > 1 and self.blocks <= sms:
            block_us *= alone
        finish_us = 2.0 + 2 * self.partial_nbytes / device.bytes_per_us if self.split else 0.0
        return 3.0 + rounds + blocks * block_us + finish_us


def finish_launches(main: Launch, cut: WideCut, parameters: tuple[Parameter, ...]) -> tuple[Launch, ...]:
    """What comes behind `main`: the second launch, which adds the parts of tiles that are split; none, if none is."""
    if not cut.split:
        return ()
    tokens = _constant("kWideFinishTokens")
    blocks = cut.split * _constant("kWideChannels") // TILE_ROWS * cut.tokens // tokens
    threads, nbytes = _constant("kWideFinishThreads"), tokens * TILE_ROWS * _OUTPUT_BYTES
    return (Launch(f"{main.entry}_finish", (blocks, 1, 1), (threads, 1, 1), parameters, nbytes, main.module),)
