"""What the emulator computes for the instructions that it models, against NumPy and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cuda_emulator.backend import Modules
from cuda_emulator.bench import Bench
from cuda_emulator.library import Fault

SOURCE = Path(__file__).parent / "kernels" / "instructions.cu"
DTYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
BLOCK = 256
EVERY = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(scope="module")
def bench(modules: Modules) -> Bench:
    return Bench(modules, SOURCE)


def _grid(bench: Bench, name: str, given: np.ndarray, like: np.ndarray) -> np.ndarray:
    assert len(like) % BLOCK == 0
    return bench.run(name, given, like, block=BLOCK, grid=len(like) // BLOCK)


@pytest.mark.parametrize("element", DTYPES)
def test_every_16_bit_value_widens_as_in_numpy(bench, element):
    found = _grid(bench, f"widen_{element}", EVERY.view(np.uint32), np.empty((len(EVERY) // 2, 2), np.float32))
    assert np.array_equal(found.ravel(), EVERY.view(DTYPES[element]).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("element", DTYPES)
def test_f32_rounds_to_nearest_even_as_in_numpy(bench, element):
    dtype = DTYPES[element]
    values = EVERY.view(dtype).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        above = np.nextafter(values.astype(dtype), dtype.type(np.inf)).astype(np.float32)
        ties = ((values.astype(np.float64) + above) / 2).astype(np.float32)
        near = [np.nextafter(ties, np.float32(sign * np.inf)) for sign in (1, -1)]
    random = np.random.default_rng(1).integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    given = np.concatenate([values, ties, *near, random])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = given.astype(dtype)
    found = _grid(bench, f"round_{element}", given, np.empty(len(given), np.uint16)).view(dtype)
    numbers = ~np.isnan(given)
    assert np.array_equal(found[numbers].view(np.uint16), expected[numbers].view(np.uint16))
    assert np.isnan(found[~numbers].astype(np.float32)).all()


def _rounded(exact: Fraction, dtype: np.dtype) -> float:
    """The nearest value of `dtype` by exact comparison; of two that are as near, the one with an even last bit."""
    start = np.float32(float(exact)).astype(dtype)
    bits = int(start.view(np.uint16))
    around = [np.uint16(bits + step).view(dtype) for step in (-1, 0, 1) if 0 <= bits + step < 1 << 16]
    finite = [value for value in around if np.isfinite(value)]
    return float(min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint16)) % 2)))


@pytest.mark.parametrize("element", DTYPES)
def test_packed_fma_rounds_once(bench, element):
    dtype, random = DTYPES[element], np.random.default_rng(2)
    scale = 2.0 ** random.integers(-6, 7, (3, BLOCK * 8))
    abc = (random.standard_normal(scale.shape) * scale).astype(dtype)
    # Sums that cancel, and sums with an addend far below the other's last bit: where rounding twice would show.
    abc[2, ::4] = -(abc[0, ::4].astype(np.float32) * abc[1, ::4].astype(np.float32)).astype(dtype)
    abc[2, 1::4] = (abc[2, 1::4].astype(np.float32) * 2.0**-9).astype(dtype)
    pairs = np.ascontiguousarray(abc.T.reshape(-1, 2, 3).transpose(0, 2, 1)).view(np.uint32).reshape(-1, 3)
    found = _grid(bench, f"fma_{element}", pairs, np.empty(len(pairs), np.uint32)).view(dtype).astype(np.float64)
    a, b, c = (row.astype(np.float64) for row in abc)
    expected = [
        _rounded(Fraction(x) * Fraction(y) + Fraction(z), dtype) for x, y, z in zip(a, b, c, strict=True)
    ]  # fmt: skip
    assert np.array_equal(found, np.array(expected))
    product = (a.astype(np.float32) * b.astype(np.float32)).astype(dtype).astype(np.float64)
    twice = (product + c).astype(dtype).astype(np.float64)
    assert (twice != found).any(), "the inputs do not tell one rounding from two"


@pytest.mark.parametrize("element", DTYPES)
def test_packed_multiplication_rounds_as_in_numpy(bench, element):
    dtype = DTYPES[element]
    a, b = np.random.default_rng(7).standard_normal((2, BLOCK * 2)).astype(dtype)
    a[:2] = -0.0, 0.0
    pairs = np.stack([a.view(np.uint32), b.view(np.uint32)], axis=1)
    found = _grid(bench, f"mul_{element}", pairs, np.empty(BLOCK, np.uint32))
    assert np.array_equal(found.view(np.uint16), (a * b).view(np.uint16))


def test_bytes_are_permuted_as_the_selector_says(bench):
    random = np.random.default_rng(3)
    given = random.integers(0, 1 << 32, (BLOCK, 3), dtype=np.uint32)
    given[:, 2] &= 0xFFFF
    found = _grid(bench, "permute", given, np.empty(BLOCK, np.uint32))
    for (a, b, selector), result in zip(given.tolist(), found.tolist(), strict=True):
        pool = (b << 32 | a).to_bytes(8, "little")
        chosen = [(pool[s & 7], s & 8) for s in ((selector >> 4 * i) & 15 for i in range(4))]
        expected = bytes((255 if byte & 128 else 0) if sign else byte for byte, sign in chosen)
        assert result.to_bytes(4, "little") == expected


def test_a_lane_has_the_value_of_the_lane_that_it_names(bench):
    values, lanes = np.random.default_rng(9).permutation(32), np.random.default_rng(10).integers(0, 32, 32)
    given = np.concatenate([values, lanes]).astype(np.float32)
    found = bench.run("values_of_lanes", given, np.empty(32, np.float32), block=32)
    assert np.array_equal(found, values[lanes])


def test_mma_multiplies_subnormal_numbers(bench):
    nibbles = (np.add.outer(3 * np.arange(16), np.arange(16)) % 16).astype(np.uint16)
    nibbles[8:] *= 16  # as those of another position lie
    b = np.random.default_rng(11).integers(-2000, 2001, (16, 8)).astype(np.float16)
    given = np.concatenate([nibbles.ravel(), b.view(np.uint16).ravel()])
    found = bench.run("mma_f16", given, np.empty((16, 8), np.float32), block=32, shared_bytes=512)
    assert np.array_equal(found * 2.0**24, nibbles.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize("element", DTYPES)
def test_ldmatrix_and_mma_multiply_matrices(bench, element):
    random = np.random.default_rng(4)
    # Distinct small integers: every sum is exact, and an element out of its place changes the product.
    a = random.permutation(256).reshape(16, 16) - 128
    b = random.permutation(128).reshape(16, 8) - 64
    given = np.concatenate([a.ravel(), b.ravel()]).astype(np.float32).astype(DTYPES[element]).view(np.uint16)
    found = bench.run(f"mma_{element}", given, np.empty((16, 8), np.float32), block=32, shared_bytes=512)
    assert np.array_equal(found, (a @ b).astype(np.float32))


def test_ldmatrix_transposes(bench):
    matrices = np.random.default_rng(7).permutation(256).astype(np.uint16).reshape(4, 8, 8)
    found = bench.run("load_transposed", matrices, np.empty((4, 8, 8), np.uint16), block=32, shared_bytes=512)
    assert np.array_equal(found, matrices.transpose(0, 2, 1))


def test_stmatrix_transposes(bench):
    a = np.random.default_rng(6).permutation(256).astype(np.uint16).reshape(16, 16)
    found = bench.run("transpose", a, np.empty((16, 16), np.uint16), block=32, shared_bytes=512)
    assert np.array_equal(found, a.T)


@pytest.mark.parametrize("begin", [(0, 0, 0), (0, 3, 1), (0, 7, 2)])
def test_a_box_is_swizzled_and_zero_beyond_the_tensor(bench, begin):
    # x (12, 200) with rows of 208, seen as (4, 12, 64): the last 64 columns are cut, as are rows beyond the twelfth.
    x = np.arange(1, 12 * 208 + 1, dtype=np.uint16)
    views = np.lib.stride_tricks.as_strided(x, (3, 12, 64), (128, 416, 2))
    given = np.array([x.ctypes.data, 64, 12, 3, 416, 128, 64, 8, 4, 2, 112, *[0] * 5, *begin], np.uint64)
    found = bench.run("box", given, np.empty((4, 8, 8, 8), np.uint16), block=32, shared_bytes=4 * 8 * 128 + 8)
    expected = np.zeros((4, 8, 64), np.uint16)
    part = views[begin[2] : begin[2] + 4, begin[1] : begin[1] + 8]
    expected[: part.shape[0], : part.shape[1]] = part
    for row in range(8):  # of 16-byte chunks, chunk c of row r lies at c ^ r
        for chunk in range(8):
            assert np.array_equal(found[:, row, chunk ^ row], expected[:, row, 8 * chunk : 8 * chunk + 8])


@pytest.mark.parametrize(
    ("element", "columns"),
    [("f16", 32), ("f16", 64), ("f16", 96), ("f16", 160), ("f16", 256),
     ("bf16", 128), ("bf16", 192), ("bf16", 224), ("bf16", 256)],
)  # fmt: skip
def test_a_warpgroup_multiplies_by_swizzled_rows(bench, element, columns):
    random = np.random.default_rng(5)
    a, b = random.integers(-15, 16, (64, 16)), random.integers(-100, 101, (columns, 64))
    given = np.concatenate([a.ravel(), b.ravel()]).astype(np.float32).astype(DTYPES[element]).view(np.uint16)
    like, shared = np.empty((64, columns), np.float32), columns * 128
    found = bench.run(f"wgmma_{element}_{columns}", given, like, block=128, shared_bytes=shared)
    assert np.array_equal(found, (a @ b[:, 32:48].T).astype(np.float32))


def test_a_warpgroup_may_multiply_by_rows_of_which_the_first_are_written(bench):
    random = np.random.default_rng(6)
    a, b = random.integers(-15, 16, (64, 16)), random.integers(-100, 101, (64, 64))
    given = np.concatenate([a.ravel(), b.ravel()]).astype(np.float16).view(np.uint16)
    like, shape = np.empty((64, 64), np.float32), {"block": 128, "shared_bytes": 64 * 128}
    found = bench.run("wgmma_of_24_rows", given, like, **shape)
    assert np.array_equal(found[:, :24], (a @ b[:24, 32:48].T).astype(np.float32))
    assert np.isnan(found[:, 24:]).all()
    with pytest.raises(Fault, match="has not written"):
        bench.run("wgmma_of_no_rows", given, like, **shape)


@pytest.mark.parametrize("begin", [(0, 0, 0), (128, 3, 0), (256, 7, 0)])
def test_a_box_of_bytes_is_swizzled_and_zero_beyond_the_tensor(bench, begin):
    x = np.random.default_rng(8).integers(1, 256, (12, 304), dtype=np.uint8)  # seen without its last 16 columns
    given = np.array([x.ctypes.data, 288, 12, 1, 304, 288, 128, 32, 1, 1, 112, *[0] * 5, *begin], np.uint64)
    found = bench.run("box", given, np.empty((32, 8, 16), np.uint8), block=32, shared_bytes=32 * 128 + 8)
    expected = np.zeros((32, 128), np.uint8)
    part = x[begin[1] :, begin[0] : min(begin[0] + 128, 288)]
    expected[: part.shape[0], : part.shape[1]] = part
    for row in range(32):
        for chunk in range(8):
            assert np.array_equal(found[row, chunk ^ row % 8], expected[row, 16 * chunk : 16 * chunk + 16])


@pytest.mark.parametrize(("nbytes", "begin"), [(16, (0, 0, 0)), (32, (288, 9, 0)), (64, (64, 3, 0)), (128, (0, 2, 0))])
@pytest.mark.parametrize("swizzled", [False, True])
def test_a_box_is_swizzled_over_its_rows_or_not_at_all(bench, swizzled, nbytes, begin):
    x = np.random.default_rng(10).integers(1, 256, (200, 304), dtype=np.uint8)
    rows, mask = 4096 // nbytes if nbytes > 16 else 256, (nbytes - 16) * swizzled
    given = np.array([x.ctypes.data, 304, 200, 1, 304, 304, nbytes, rows, 1, 1, mask, *[0] * 5, *begin], np.uint64)
    found = bench.run("box", given, np.empty((256, 16), np.uint8), block=32, shared_bytes=4096 + 8)
    expected = np.zeros((rows, nbytes), np.uint8)
    part = x[begin[1] : begin[1] + rows, begin[0] : begin[0] + nbytes]
    expected[: part.shape[0], : part.shape[1]] = part
    at = np.arange(256) * 16
    assert np.array_equal(found[(at ^ at >> 3 & mask) // 16], expected.reshape(256, 16))


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("columns", [64, 128])
def test_a_warpgroup_multiplies_by_swizzled_rows_of_bytes(bench, columns, adds):
    a, b = (np.random.default_rng(9 + rows).permutation(rows * 32).reshape(rows, 32) for rows in (64, columns))
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[codes & 0x7F != 0x7F]  # but NaN
    of_a, of_b = codes[a % len(codes)], codes[b % len(codes)]
    given = np.concatenate([of_a.ravel(), np.pad(of_b, ((0, 0), (32, 64))).ravel()])
    name = f"wgmma_e4m3_{columns}_{'adds' if adds else 'anew'}"
    found = bench.run(name, given, np.empty((64, columns), np.float32), block=128, shared_bytes=columns * 128)
    exact = of_a.view(E4M3).astype(np.float64) @ of_b.view(E4M3).astype(np.float64).T
    assert np.array_equal(found, (exact + (1000 if adds else 0)).astype(np.float32))


def test_bytes_are_subtracted_apart(bench):
    a, b = np.random.default_rng(10).integers(0, 256, (2, BLOCK * 4), dtype=np.uint8)
    given = np.stack([a.view(np.uint32), b.view(np.uint32)], axis=1)
    found = _grid(bench, "absolute_differences", given, np.empty(BLOCK, np.uint32)).view(np.uint8)
    assert np.array_equal(found, np.abs(a.astype(int) - b))
