"""Golden vectors of 4-bit checkpoint formats: `python tests/golden/generate.py [--check]`.

Writes a folder a case, which README.md describes. Needs NumPy only, and nothing of the package that the vectors test:
each format is written one nibble at a time, straight from its definition. --check writes nothing and compares.

In every function q is (ic, oc) and z is (groups, oc), integers in 0..15; s is (groups, oc) as `Half`; group is the
number of input channels of a group. Results map the last part of a tensor's name to a `Tensor`.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
LAYER = "model.layers.0.mlp.down_proj"


class Tensor(NamedTuple):
    """A tensor as safetensors stores it: dtype name, and an array of its bits."""

    dtype: str
    bits: np.ndarray


class Half(NamedTuple):
    """Floats of 16 bits: dtype name, and the values as float64, which the type can represent."""

    dtype: str
    values: np.ndarray


def store(half: Half) -> Tensor:
    """As stored. BF16 is the upper half of float32."""
    if half.dtype == "F16":
        return Tensor("F16", half.values.astype("<f2").view("<u2"))
    assert half.dtype == "BF16"
    return Tensor("BF16", (half.values.astype("<f4").view("<u4") >> 16).astype("<u2"))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """To nearest even in F16 or BF16, as float64."""
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float64)
    bits = values.astype(np.float32).view(np.uint32)  # callers have products of 12 bits: exact in float32
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


class Words:
    """Integer words that are all zero, and nibbles put into them."""

    def __init__(self, rows: int, columns: int, bits: int = 32) -> None:
        self.words = np.zeros((rows, columns), f"<u{bits // 8}")
        self.dtype = f"I{bits}"

    def put(self, row: int, column: int, nibble: int, value: int) -> None:
        """`value` into bits 4 nibble .. 4 nibble + 3, which must still be zero."""
        assert 0 <= value <= 15
        word = int(self.words[row, column])
        assert (word >> (4 * nibble)) & 15 == 0
        self.words[row, column] = word | value << (4 * nibble)

    def tensor(self) -> Tensor:
        """As stored: signed integers of the same bits."""
        return Tensor(self.dtype, self.words)


# Column of eight -> its nibble, from the lowest; AutoAWQ's order.
INTERLEAVED = (0, 4, 1, 5, 2, 6, 3, 7)


def awq_gemm(q, z, s, group):
    """AWQ GEMM."""
    ic, oc = q.shape
    qweight, qzeros = Words(ic, oc // 8), Words(ic // group, oc // 8)
    for n in range(oc):
        for k in range(ic):
            qweight.put(k, n // 8, INTERLEAVED[n % 8], int(q[k, n]))
        for g in range(ic // group):
            qzeros.put(g, n // 8, INTERLEAVED[n % 8], int(z[g, n]))
    return {"qweight": qweight.tensor(), "qzeros": qzeros.tensor(), "scales": store(s)}


def gemv_width(ic, group):
    """Words of zero points of an output channel: whole runs of 1, 2 or 4 of them."""
    groups = ic // group
    words = (groups + 7) // 8
    run = 1 if group >= 128 else 2 if group >= 64 else 4
    return (words + run - 1) // run * run


def awq_gemv(q, z, s, group):
    """AWQ GEMV."""
    ic, oc = q.shape
    width = gemv_width(ic, group)
    qweight, qzeros = Words(oc, ic // 8), Words(oc, width)
    scales = np.zeros((oc, 8 * width))
    for n in range(oc):
        for k in range(ic):
            qweight.put(n, k // 8, k % 8, int(q[k, n]))
        for g in range(ic // group):
            qzeros.put(n, g // 8, g % 8, int(z[g, n]))
            scales[n, g] = s.values[g, n]
    return {"qweight": qweight.tensor(), "qzeros": qzeros.tensor(), "scales": store(Half(s.dtype, scales))}


def awq_gemv_fast(q, z, s, group, zeros_name="qzeros"):
    """AWQ GEMV_FAST; llm-awq v2 with another name for the zeros."""
    ic, oc = q.shape
    qweight = Words(oc // 4, ic, bits=16)
    scales, zeros = np.zeros((8 * gemv_width(ic, group), oc)), np.zeros((8 * gemv_width(ic, group), oc))
    for n in range(oc):
        for k in range(ic):
            column = 64 * (k // 64) + 16 * (n % 4) + 8 * ((k % 64) // 32) + k % 8
            qweight.put(n // 4, column, (k % 32) // 8, int(q[k, n]))
        for g in range(ic // group):
            scales[g, n] = s.values[g, n]
            zeros[g, n] = -s.values[g, n] * z[g, n]
    return {
        "qweight": qweight.tensor(),
        zeros_name: store(Half(s.dtype, rounded(zeros, s.dtype))),
        "scales": store(Half(s.dtype, scales)),
    }


def llm_awq_v2(q, z, s, group):
    """llm-awq v2."""
    return awq_gemv_fast(q, z, s, group, "scaled_zeros")


def marlin_permutation():
    """Position -> element, of 1024: four tiles of 16 x 16, each in order of rows, side by side.

    Lane i of a warp holds column i / 4 (and that plus 8) of rows 2 (i % 4) and 2 (i % 4) + 1 (and those plus 8), of
    each of four tiles; the eight of one tile share a word, in the order that its kernel takes nibbles apart.
    """
    order = []
    for lane in range(32):
        for tile in range(4):
            eight = [
                256 * tile + 16 * (2 * (lane % 4) + low + 8 * high) + lane // 4 + 8 * right
                for right in (0, 1)
                for high in (0, 1)
                for low in (0, 1)
            ]
            order += [eight[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    return order


def awq_marlin(q, z, s, group):
    """Marlin: symmetric."""
    assert z is None
    ic, oc = q.shape
    order = marlin_permutation()
    qweight = Words(ic // 16, oc * 2)
    for block in range(oc // 64):
        for top in range(ic // 16):
            for position, element in enumerate(order):
                tile, row, column = element // 256, element % 256 // 16, element % 16
                value = q[16 * top + row, 64 * block + 16 * tile + column]
                qweight.put(top, 128 * block + position // 8, position % 8, int(value))
    if ic // group > 1:
        of_position = [i + 8 * j for i in range(8) for j in range(8)]
    else:
        of_position = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    scales = np.zeros_like(s.values)
    for g in range(ic // group):
        for n in range(oc):
            start = n // len(of_position) * len(of_position)
            scales[g, n] = s.values[g, start + of_position[n - start]]
    return {"qweight": qweight.tensor(), "scales": store(Half(s.dtype, scales))}


def gptq(q, z, s, group, g_idx=None, less=0):
    """GPTQ v2; v1 stores zero points less one."""
    ic, oc = q.shape
    qweight, qzeros = Words(ic // 8, oc), Words(ic // group, oc // 8)
    for n in range(oc):
        for k in range(ic):
            qweight.put(k // 8, n, k % 8, int(q[k, n]))
        for g in range(ic // group):
            qzeros.put(g, n // 8, n % 8, int(z[g, n]) - less)
    index = np.array([k // group for k in range(ic)] if g_idx is None else g_idx, "<i4")
    return {"qweight": qweight.tensor(), "qzeros": qzeros.tensor(), "scales": store(s), "g_idx": Tensor("I32", index)}


def gptq_v1(q, z, s, group, g_idx=None):
    """GPTQ v1: no zero point may be 0."""
    return gptq(q, z, s, group, g_idx, less=1)


def compressed_tensors(q, z, s, group, g_idx=None):
    """compressed-tensors pack-quantized; symmetric if z is None."""
    ic, oc = q.shape
    packed, zero_point = Words(oc, ic // 8), Words(oc // 8, ic // group)
    scale = np.zeros((oc, ic // group))
    for n in range(oc):
        for k in range(ic):
            packed.put(n, k // 8, k % 8, int(q[k, n]))
        for g in range(ic // group):
            scale[n, g] = s.values[g, n]
            if z is not None:
                zero_point.put(n // 8, g, n % 8, int(z[g, n]))
    made = {
        "weight_packed": packed.tensor(),
        "weight_scale": store(Half(s.dtype, scale)),
        "weight_shape": Tensor("I64", np.array([oc, ic], "<i8")),
    }
    if z is not None:
        made["weight_zero_point"] = zero_point.tensor()
    if g_idx is not None:
        made["weight_g_idx"] = Tensor("I32", np.array(g_idx, "<i4"))
    return made


FORMATS = {
    "awq_gemm": awq_gemm,
    "awq_gemv": awq_gemv,
    "awq_gemv_fast": awq_gemv_fast,
    "llm_awq_v2": llm_awq_v2,
    "awq_marlin": awq_marlin,
    "gptq_v1": gptq_v1,
    "gptq_v2": gptq,
    "compressed_tensors": compressed_tensors,
}
_VERSIONS = {
    "awq_gemm": "gemm", "awq_gemv": "gemv", "awq_gemv_fast": "gemv_fast", "llm_awq_v2": "gemv_fast",
    "awq_marlin": "marlin",
}  # fmt: skip


def config(format: str, group_size: int, *, symmetric: bool = False, act_order: bool = False) -> dict:
    """The `quantization_config` of a checkpoint in `format`."""
    if format == "compressed_tensors":
        weights = {
            "num_bits": 4, "type": "int", "symmetric": symmetric, "actorder": "group" if act_order else None,
            "strategy": "channel" if group_size == -1 else "group",
            "group_size": None if group_size == -1 else group_size,
        }  # fmt: skip
        return {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }  # fmt: skip
    if format.startswith("gptq"):
        return {
            "quant_method": "gptq", "bits": 4, "group_size": group_size, "desc_act": act_order, "sym": False,
            "checkpoint_format": "gptq" if format == "gptq_v1" else "gptq_v2",
        }  # fmt: skip
    made = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": not symmetric,
            "version": _VERSIONS[format]}  # fmt: skip
    return made | ({"backend": "llm-awq"} if format == "llm_awq_v2" else {})


def dequantized(q, z, s, group, g_idx=None) -> np.ndarray:
    """(ic, oc), float64: w[k, n] = (q[k, n] - z[g, n]) * s[g, n], with z = 8 if z is None; one weight at a time."""
    ic, oc = q.shape
    w = np.empty((ic, oc))
    for k in range(ic):
        g = k // group if g_idx is None else g_idx[k]
        for n in range(oc):
            w[k, n] = (int(q[k, n]) - (8 if z is None else int(z[g, n]))) * s.values[g, n]
    return w


def dequantized_fast(q, z, s, group) -> np.ndarray:
    """(ic, oc), float64: w = q * s + qzeros, where qzeros is -s * z rounded to the type of s."""
    ic, oc = q.shape
    w = np.empty((ic, oc))
    zeros = rounded(-s.values * z, s.dtype)
    for k in range(ic):
        for n in range(oc):
            w[k, n] = int(q[k, n]) * s.values[k // group, n] + zeros[k // group, n]
    return w


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, its data from the largest alignment to the smallest, then by name."""
    header, offset, data = {}, 0, []
    for name in sorted(tensors, key=lambda name: (-tensors[name].bits.dtype.itemsize, name)):
        dtype, bits = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
        data.append(np.ascontiguousarray(bits).tobytes())
    text = json.dumps({"__metadata__": {"format": "pt"}} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


class Random:
    """SplitMix64, which is the same everywhere."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, limit: int) -> int:
        """An integer in 0 .. limit - 1."""
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return (mixed ^ (mixed >> 31)) % limit

    def array(self, shape: tuple[int, ...], limit: int, least: int = 0) -> np.ndarray:
        """Integers in least .. limit - 1."""
        count = int(np.prod(shape))
        return np.array([least + self.below(limit - least) for _ in range(count)], np.int64).reshape(shape)

    def half(self, shape: tuple[int, ...], dtype: str, bits: int) -> Half:
        """Values of 2^-8 .. 2^-4 with that many bits after the leading one."""
        fractions = 1 + self.array(shape, 1 << bits) / (1 << bits)
        return Half(dtype, fractions * 2.0 ** -(5.0 + self.array(shape, 4)))


class Case(NamedTuple):
    """What a case is made of."""

    format: str
    ic: int
    oc: int
    group_size: int
    dtype: str = "F16"
    symmetric: bool = False
    act_order: bool = False
    bias: bool = False
    rounds: bool = False  # whether -s * z needs rounding in the formats that store it
    note: str = ""


CASES = {
    "awq_gemm": Case("awq_gemm", 64, 40, 32, bias=True),
    "awq_gemm_square": Case("awq_gemm", 64, 64, 64, note="a square weight: shapes alone still tell the format"),
    "awq_gemm_one_group_bf16": Case("awq_gemm", 96, 16, -1, "BF16"),
    "awq_gemv_g32": Case("awq_gemv", 96, 24, 32, note="3 groups, padded to 32"),
    "awq_gemv_g64": Case("awq_gemv", 128, 16, 64, note="2 groups, padded to 16"),
    "awq_gemv_g128": Case("awq_gemv", 256, 8, 128, bias=True, note="2 groups, padded to 8"),
    "awq_gemv_fast": Case("awq_gemv_fast", 128, 24, 64, note="every -s * z is exact"),
    "awq_gemv_fast_rounded": Case("awq_gemv_fast", 128, 24, 32, rounds=True, note="most -s * z are rounded"),
    "llm_awq_v2": Case("llm_awq_v2", 128, 16, 128, bias=True),
    "llm_awq_v2_bf16": Case("llm_awq_v2", 64, 16, 64, "BF16", rounds=True, note="most -s * z are rounded"),
    "awq_marlin_g128": Case("awq_marlin", 256, 256, 128, symmetric=True),
    "awq_marlin_one_group": Case("awq_marlin", 128, 256, -1, symmetric=True),
    "gptq_v1": Case("gptq_v1", 64, 40, 32, bias=True, note="zero points of 1..15 only"),
    "gptq_v2": Case("gptq_v2", 64, 40, 32),
    "gptq_v2_act_order": Case("gptq_v2", 96, 24, 32, act_order=True),
    "compressed_tensors": Case("compressed_tensors", 64, 40, 32, symmetric=True),
    "compressed_tensors_zero_points": Case("compressed_tensors", 96, 24, 32, "BF16"),
    "compressed_tensors_act_order": Case("compressed_tensors", 64, 16, 32, act_order=True),
    "compressed_tensors_one_group": Case("compressed_tensors", 64, 16, -1, symmetric=True, bias=True),
}


def files(name: str, case: Case) -> dict[str, object]:
    """The content of a case's files: JSON, or tensors."""
    random = Random(sorted(CASES).index(name))
    group = case.ic if case.group_size == -1 else case.group_size
    groups = case.ic // group
    q = random.array((case.ic, case.oc), 16)
    z = None if case.symmetric else random.array((groups, case.oc), 16, least=1 if case.format == "gptq_v1" else 0)
    fraction = {"F16": 10, "BF16": 7}[case.dtype] if case.rounds or "gemv_fast" not in case.format else 6
    if case.format == "llm_awq_v2" and not case.rounds:
        fraction = 6
    s = random.half((groups, case.oc), case.dtype, fraction)
    order = {}
    if case.act_order:
        g_idx = [k // group for k in range(case.ic)]
        for k in range(case.ic - 1, 0, -1):
            other = random.below(k + 1)
            g_idx[k], g_idx[other] = g_idx[other], g_idx[k]
        order = {"g_idx": g_idx}
    tensors = FORMATS[case.format](q, z, s, group, **order)
    if case.bias:
        tensors["bias"] = store(random.half((case.oc,), case.dtype, 4))
    w = dequantized_fast(q, z, s, group) if case.rounds else dequantized(q, z, s, group, **order)
    assert (w.astype(np.float32) == w).all(), "the expected weights must be exact in float32"
    expected = {"q": Tensor("U8", q.astype("u1")), "weight": Tensor("F32", w.astype("<f4"))}
    if z is not None:
        expected["z"] = Tensor("U8", z.astype("u1"))
    description = {
        "format": case.format, "layer": LAYER, "ic": case.ic, "oc": case.oc, "group_size": case.group_size,
        "scales": case.dtype, "symmetric": case.symmetric, "act_order": case.act_order,
        "weight": "q * s + qzeros" if case.rounds else "(q - z) * s", "note": case.note,
    }  # fmt: skip
    settings = config(case.format, case.group_size, symmetric=case.symmetric, act_order=case.act_order)
    return {
        "case.json": description,
        "config.json": {"quantization_config": settings},
        "model.safetensors": {f"{LAYER}.{part}": tensor for part, tensor in tensors.items()},
        "expected.safetensors": expected,
    }


def write(root: Path) -> None:
    """Every case, into a folder of its own below `root`."""
    for name, case in CASES.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files(name, case).items():
            if file.endswith(".json"):
                (folder / file).write_bytes(json.dumps(content, indent=1).encode() + b"\n")
            else:
                write_safetensors(folder / file, content)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is not what it would be")
    if not parser.parse_args().check:
        write(HERE)
        return 0
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as made:
        write(Path(made))
        fresh = {file.relative_to(made): file.read_bytes() for file in Path(made).rglob("*.*")}
    there = {file: (HERE / file).read_bytes() if (HERE / file).exists() else None for file in fresh}
    stale = [file for file, content in fresh.items() if there[file] != content]
    for file in stale:
        print(f"{file} is not what generate.py writes")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
