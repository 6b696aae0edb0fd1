"""The bare read: its launches on any GPU, its run on one, and the host's."""

from __future__ import annotations

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.bench.read import READS, MemoryRead, Reader, _code, read_calls
from baracuda_py.sys import module
from baracuda_py.vocab.device import HOST, Device, dry_device
from baracuda_py.vocab.enums import ElementKind

WEIGHT = 4096 * 4096 // 2


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("nbytes", [16, 4096, WEIGHT, 1 << 33])
@pytest.mark.parametrize("how", READS)
def test_a_launch_is_what_the_kernel_was_compiled_for(how, nbytes, arch):
    device, problem = dry_device(arch), MemoryRead(nbytes)
    (launch,) = _code(how).launches(problem, device)
    entry = module("memory.read", "sm80").entry(launch.entry)
    assert launch.block == (entry.max_threads, 1, 1)
    assert entry.parameter_nbytes == (8, 8, 8)
    assert launch.parameters[1] * 16 == nbytes
    assert 32 * problem.parts(device) == launch.grid[0] * launch.block[0]


def test_a_large_weight_fills_the_gpu_and_a_small_one_starts_no_block_for_nothing():
    device = Device("cuda", None, (9, 0), 132)
    assert MemoryRead(WEIGHT).blocks(device) == 132 * 3
    assert MemoryRead(512 * 16).blocks(device) == 1
    assert MemoryRead(512 * 16 + 16).blocks(device) == 2


def test_there_must_be_something_to_read():
    with pytest.raises(ValueError, match="nbytes"):
        MemoryRead(0)


@pytest.mark.parametrize("nbytes", [24, 1000, (4 << 20) + 5])
def test_the_host_reads_buffers_of_its_own_that_are_kept_for_the_next_call(nbytes):
    reader = Reader(bp.default_registry(), HOST, 3 * nbytes - 1)
    calls = reader.calls(nbytes, 0, READS[0])
    assert len(calls) == 3
    assert [call() for call in calls] == [None] * 3
    first, *others = reader._buffers(nbytes)
    assert first.nbytes == nbytes
    assert not any(np.shares_memory(first, other) for other in others)
    assert reader._buffers(nbytes)[0] is first


@pytest.mark.gpu
@pytest.mark.parametrize("nbytes", [16, 512 * 16 * 5 + 48, WEIGHT])
@pytest.mark.parametrize("how", READS)
def test_a_gpu_reads_every_word_once(how, nbytes):
    registry = bp.default_registry()
    device = registry.device(0)
    words = np.random.default_rng(nbytes).integers(0, 1 << 32, nbytes // 4, np.uint32)
    calls, parts = read_calls(registry, device, MemoryRead(nbytes), [bp.to_device(words, device)], 0, how)
    assert parts.element is ElementKind.U32
    calls[0]()
    assert np.bitwise_xor.reduce(parts.numpy()) == np.bitwise_xor.reduce(words)
