"""Packing and unpacking AWQ nibbles, against a loop over single nibbles and the reference's own unpackers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baracuda_py.ops.quantize import awq_packing as packing
from baracuda_py.ops.quantize import awq_reference as reference

LAYOUTS = (packing.OC_MAJOR, packing.HF_GEMM)

octets = st.integers(1, 9).map(lambda words: 8 * words)
seeds = st.integers(0, 2**32 - 1)


def random_nibbles(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (rows, columns), dtype=np.uint8)


def set_nibble(words: np.ndarray, row: int, word: int, nibble: int, value: int) -> None:
    unsigned = words.view(np.uint32)
    unsigned[row, word] |= np.uint32(int(value) << (4 * nibble))


def pack_weight_by_loop(nibbles: np.ndarray, layout: str) -> np.ndarray:
    ic, oc = nibbles.shape
    oc_major = layout == packing.OC_MAJOR
    words = np.zeros((oc, ic // 8) if oc_major else (ic, oc // 8), dtype=np.int32)
    for k in range(ic):
        for n in range(oc):
            if oc_major:
                set_nibble(words, n, k // 8, k % 8, nibbles[k, n])
            else:
                set_nibble(words, k, n // 8, [0, 4, 1, 5, 2, 6, 3, 7][n % 8], nibbles[k, n])
    return words


def pack_zeros_by_loop(nibbles: np.ndarray, layout: str) -> np.ndarray:
    groups, oc = nibbles.shape
    words = np.zeros((groups, oc // 8), dtype=np.int32)
    for group in range(groups):
        for n in range(oc):
            position = n % 8 if layout == packing.OC_MAJOR else [0, 4, 1, 5, 2, 6, 3, 7][n % 8]
            set_nibble(words, group, n // 8, position, nibbles[group, n])
    return words


@pytest.mark.parametrize("layout", LAYOUTS)
@given(ic=octets, oc=octets, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_packing_a_weight_puts_each_nibble_where_the_loop_does(layout: str, ic: int, oc: int, seed: int) -> None:
    nibbles = random_nibbles(seed, ic, oc)
    words = packing.pack_weight(nibbles, layout)
    np.testing.assert_array_equal(words, pack_weight_by_loop(nibbles, layout))
    assert words.dtype == np.int32


@pytest.mark.parametrize("layout", LAYOUTS)
@given(groups=st.integers(1, 9), oc=octets, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_packing_zeros_puts_each_nibble_where_the_loop_does(layout: str, groups: int, oc: int, seed: int) -> None:
    nibbles = random_nibbles(seed, groups, oc)
    words = packing.pack_zeros(nibbles, layout)
    np.testing.assert_array_equal(words, pack_zeros_by_loop(nibbles, layout))
    np.testing.assert_array_equal(packing.unpack_zeros(words, layout), nibbles)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(ic=octets, oc=octets, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_unpacking_inverts_packing(layout: str, ic: int, oc: int, seed: int) -> None:
    nibbles = random_nibbles(seed, ic, oc)
    np.testing.assert_array_equal(packing.unpack_weight(packing.pack_weight(nibbles, layout), layout), nibbles)


@given(rows=st.integers(1, 9), columns=octets, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_reference_unpacks_the_words_of_the_loop(rows: int, columns: int, seed: int) -> None:
    nibbles = random_nibbles(seed, rows, columns)
    natural = pack_zeros_by_loop(nibbles, packing.OC_MAJOR)
    interleaved = pack_zeros_by_loop(nibbles, packing.HF_GEMM)
    np.testing.assert_array_equal(reference.unpack_natural(natural, columns), nibbles)
    np.testing.assert_array_equal(reference.unpack_hf_gemm(interleaved, columns), nibbles)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
@given(ic=octets, oc=octets, seed=seeds)
@settings(max_examples=15, deadline=None)
def test_repacking_keeps_every_weight_and_zero_point(source: str, target: str, ic: int, oc: int, seed: int) -> None:
    nibbles = random_nibbles(seed, ic, oc)
    repacked = packing.repack_weight(packing.pack_weight(nibbles, source), source=source, target=target)
    np.testing.assert_array_equal(repacked, packing.pack_weight(nibbles, target))
    zeros = packing.repack_zeros(packing.pack_zeros(nibbles, source), source=source, target=target)
    np.testing.assert_array_equal(zeros, packing.pack_zeros(nibbles, target))


@pytest.mark.parametrize(("ic", "oc"), [(2088, 24), (24, 2088), (1096, 1080)])
def test_repacking_a_weight_larger_than_a_block_keeps_every_nibble(ic: int, oc: int) -> None:
    nibbles = random_nibbles(0, ic, oc)
    for source, target in (LAYOUTS, LAYOUTS[::-1]):
        repacked = packing.repack_weight(packing.pack_weight(nibbles, source), source=source, target=target)
        np.testing.assert_array_equal(repacked, packing.pack_weight(nibbles, target))


def test_autoawq_order_is_the_documented_one() -> None:
    columns = np.arange(8, dtype=np.uint8)[None, :]
    assert packing.pack_weight(columns, packing.HF_GEMM).view(np.uint32)[0, 0] == 0x75316420
    assert packing.pack_zeros(columns, packing.OC_MAJOR).view(np.uint32)[0, 0] == 0x76543210


def test_an_unknown_layout_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="marlin"):
        packing.pack_weight(np.zeros((8, 8), dtype=np.uint8), "marlin")


def test_a_partial_word_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        packing.pack_zeros(np.zeros((1, 12), dtype=np.uint8), packing.OC_MAJOR)
