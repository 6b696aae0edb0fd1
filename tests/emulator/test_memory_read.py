"""The kernel that only reads: it reads every piece once and nothing beside, whatever the size and the grid."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator.backend import EmulatorBackend, emulated_registry
from cuda_emulator.driver import Gpu
from cuda_emulator.library import Schedule
from cuda_emulator.memory import GuardedTensor

import baracuda_py
from baracuda_py.bench.read import READS, MemoryRead, read_calls
from baracuda_py.sys import module
from baracuda_py.vocab.enums import ElementKind

CONSTANT = module("memory.read", "sm80").constant
ROUND = CONSTANT("kReadThreads") * CONSTANT("kReadPieces")  # pieces of one round of a block
SMALL = Gpu((9, 0), 1, 227 * 1024, "emulated, one SM")
# Less than a warp; a block that is not full; several blocks, the last ragged; several rounds of all blocks.
PIECES = (1, 33, CONSTANT("kReadThreads") + 5, ROUND - 1, CONSTANT("kReadBlocks") * ROUND * 2 + 517)


@pytest.fixture
def small(modules, monkeypatch):
    """A GPU so small that every block goes round its loop."""
    backend = EmulatorBackend(modules, SMALL)
    registry = emulated_registry(backend)
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: registry)
    return backend, registry


def _parts(small, words, how, edge="end"):
    """The xor of every warp, of a read of memory that lies against an inaccessible page."""
    backend, registry = small
    device = registry.device(0)
    memory = GuardedTensor(backend.emulated.memory, words, ElementKind.U32, 0, alignment=16, edge=edge)
    calls, parts = read_calls(registry, device, MemoryRead(words.nbytes), [memory], 0, how)
    parts.copy_from(np.full(parts.shape, 0xDEADBEEF, np.uint32))
    calls[0]()
    return parts.numpy()


@pytest.mark.parametrize("edge", ["begin", "end"])
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("how", READS)
def test_every_word_is_read_once(small, how, pieces, edge):
    words = np.random.default_rng(pieces).integers(0, 1 << 32, 4 * pieces, np.uint32)
    assert np.bitwise_xor.reduce(_parts(small, words, how, edge)) == np.bitwise_xor.reduce(words)


@pytest.mark.parametrize("how", READS)
def test_each_warp_keeps_the_xor_of_its_own_pieces(small, how):
    pieces = PIECES[-1]
    words = np.random.default_rng(1).integers(0, 1 << 32, (pieces, 4), np.uint32)
    parts = _parts(small, words.reshape(-1), how)
    warp = np.arange(pieces) % (32 * len(parts)) // 32
    expected = np.zeros(len(parts), np.uint32)
    np.bitwise_xor.at(expected, warp, np.bitwise_xor.reduce(words, axis=1))
    assert np.array_equal(parts, expected)
    assert len(parts) == MemoryRead(words.nbytes).parts(small[1].device(0))


def test_the_order_of_blocks_and_lanes_changes_no_bit(small):
    words = np.random.default_rng(2).integers(0, 1 << 32, 4 * PIECES[-1], np.uint32)
    expected = _parts(small, words, READS[0])
    for seed in (1, 2):
        small[0].emulated.schedule = Schedule(seed)
        assert np.array_equal(_parts(small, words, READS[0]), expected)


def test_a_last_piece_that_is_not_whole_is_left_out(small):
    words = np.random.default_rng(3).integers(0, 1 << 32, 4 * 40 + 3, np.uint32)
    assert np.bitwise_xor.reduce(_parts(small, words, READS[0])) == np.bitwise_xor.reduce(words[:160])
