"""Speed of checkpoints on one core: inspecting a 70B model's headers, loading, and reading into the layouts of plans.

    python benchmarks/checkpoints.py [--folder DIR]

In every round each contender runs once, on files in the page cache:
  inspect    a 70B-sized AWQ folder of eight shards, sparse on disk, for the host and for a GPU (dry run)
  load       every tensor of a file as an array of its own: `Folder.read` and a copy, beside safetensors' `load_file`
  map        the same without the copy: what a lazy reader has before it touches anything
  transcode  `layer.gemm_operands(layout)` of each format: packed bytes a second, opening and page faults included
Rates are of wall time; the CPU time beside it shows that one core did it.
Writes benchmarks/results/<cpu>/checkpoints.json and prints a table; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import machine
import numpy as np
from host_awq import OtherProcesses, cpu_name
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat, transcode
from baracuda_py.checkpoints.folder import Folder
from baracuda_py.checkpoints.inspection import inspect
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout

IC, OC, GROUP_SIZE = 4096, 14336, 128
LOADED_LAYERS = 8
NAME = "model.layers.0.mlp.up_proj"
# Llama 70B: hidden 8192, 28672 in the MLP, 8 key and value heads of 128.
LARGE_LAYERS, LARGE_SHARDS, VOCABULARY = 80, 8, 128256
LARGE = {
    "self_attn.q_proj": (8192, 8192), "self_attn.k_proj": (8192, 1024), "self_attn.v_proj": (8192, 1024),
    "self_attn.o_proj": (8192, 8192), "mlp.gate_proj": (8192, 28672), "mlp.up_proj": (8192, 28672),
    "mlp.down_proj": (28672, 8192),
}  # fmt: skip
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True, "version": "gemm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where to put 0.5 GB of files for the time of the run")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<cpu>/checkpoints.json")
    arguments = parser.parse_args()

    cpu = cpu_name()
    record: dict[str, Any] = {
        "cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(),
        "packages": machine.packages("baracuda-py", "numpy", "safetensors"), "commit": machine.commit(),
        "problem": {"ic": IC, "oc": OC, "group_size": GROUP_SIZE, "loaded_layers": LOADED_LAYERS},
    }  # fmt: skip
    others = OtherProcesses()
    with TemporaryDirectory(dir=arguments.folder) as folder:
        calls = contenders(Path(folder))
        record["cells"] = measure(calls, arguments.rounds)
    record["cores_used_by_others"] = others.cores_used()
    record["headlines"] = headlines({cell["what"]: cell for cell in record["cells"]})
    path = arguments.output or machine.ROOT / "results" / machine.slug(cpu) / "checkpoints.json"
    machine.write_result(path, record)
    print_table(record)


def contenders(folder: Path) -> dict[str, tuple[Callable[[], Any], int]]:
    """What to call, and the bytes that it handles (0: none in particular)."""
    large = folder / "large"
    write_large(large)
    single = folder / "single"
    write_layers(single, LOADED_LAYERS)
    file = single / "model.safetensors"
    nbytes = file.stat().st_size

    def copied() -> dict[str, Any]:
        opened = Folder.open(single)
        return {name: np.array(opened.read(name)) for name in opened.tensors}

    def mapped() -> dict[str, Any]:
        opened = Folder.open(single)
        return {name: opened.read(name) for name in opened.tensors}

    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "inspect 70B for the host": (lambda: inspect(large, "host"), 0),
        "inspect 70B for sm_90": (lambda: inspect(large, "sm_90"), 0),
        "load, safetensors": (lambda: load_file(file), nbytes),
        "load, baracuda_py": (copied, nbytes),
        "map, baracuda_py": (mapped, nbytes),
    }
    write_layers(folder / "one", 1)
    layer = checkpoints.open(folder / "one")[NAME]
    calls |= {
        f"AWQ_GEMM to {layout.name}": (operands(folder / "one", layout), layer.nbytes) for layout in AwqWeightLayout
    }
    for format in PackedFormat:
        if format not in (PackedFormat.AWQ_GEMM, PackedFormat.AWQ_MARLIN):
            other = transcode(layer, format, lossy=True)  # GPTQ v1 has no zero point 0
            calls[f"{format.name} to OC_MAJOR"] = (
                operands(write_layer(folder / format.value, other), AwqWeightLayout.OC_MAJOR),
                layer.nbytes,
            )
    oc_major = checkpoints.open(folder / PackedFormat.COMPRESSED_TENSORS.value)[NAME]
    calls["COMPRESSED_TENSORS to HF_GEMM"] = (lambda: oc_major.gemm_operands(AwqWeightLayout.HF_GEMM), layer.nbytes)
    return calls


def operands(folder: Path, layout: AwqWeightLayout) -> Callable[[], Any]:
    """Open a checkpoint and read its layer into a layout."""
    return lambda: checkpoints.open(folder)[NAME].gemm_operands(layout)


def write_layers(folder: Path, count: int) -> None:
    """An AWQ GEMM checkpoint of random words."""
    folder.mkdir()
    random = np.random.default_rng(0)
    groups = IC // GROUP_SIZE
    tensors = {}
    for index in range(count):
        name = NAME.replace("0", str(index))
        tensors[f"{name}.qweight"] = random.integers(-(2**31), 2**31, (IC, OC // 8), np.int32)
        tensors[f"{name}.qzeros"] = random.integers(-(2**31), 2**31, (groups, OC // 8), np.int32)
        tensors[f"{name}.scales"] = random.uniform(0.01, 0.02, (groups, OC)).astype(np.float16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": CONFIG}))


def write_layer(folder: Path, layer: checkpoints.PackedLayer) -> Path:
    """A checkpoint of one converted layer."""
    folder.mkdir()
    save_file({f"{NAME}.{part}": array for part, array in layer.tensors.items()}, folder / "model.safetensors")
    settings: dict[str, Any] = CONFIG
    if layer.format in (PackedFormat.GPTQ_V1, PackedFormat.GPTQ_V2):
        format = "gptq" if layer.format is PackedFormat.GPTQ_V1 else "gptq_v2"
        settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "checkpoint_format": format}
    elif layer.format is PackedFormat.COMPRESSED_TENSORS:
        weights = {"num_bits": 4, "group_size": GROUP_SIZE}
        settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return folder


def write_large(folder: Path, shards: int = LARGE_SHARDS) -> None:
    """The headers of a 70B model in AWQ GEMM, and files as long as it, without a block on disk behind the headers."""
    folder.mkdir()
    weight_map = {}
    for shard in range(shards):
        tensors: dict[str, tuple[str, list[int]]] = {}
        for index in range(shard * LARGE_LAYERS // shards, (shard + 1) * LARGE_LAYERS // shards):
            prefix = f"model.layers.{index}"
            for module, (ic, oc) in LARGE.items():
                tensors[f"{prefix}.{module}.qweight"] = ("I32", [ic, oc // 8])
                tensors[f"{prefix}.{module}.qzeros"] = ("I32", [ic // GROUP_SIZE, oc // 8])
                tensors[f"{prefix}.{module}.scales"] = ("F16", [ic // GROUP_SIZE, oc])
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{norm}.weight"] = ("F16", [8192])
        if shard in (0, shards - 1):
            tensors["lm_head.weight" if shard else "model.embed_tokens.weight"] = ("F16", [VOCABULARY, 8192])
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write_sparse(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": CONFIG}))


def write_sparse(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file whose data are a hole."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + int(np.prod(shape)) * {"I32": 4, "F16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def measure(calls: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> list[dict[str, Any]]:
    """Rounds of all calls in turn, after one to warm up."""
    wall: dict[str, list[float]] = {what: [] for what in calls}
    cpu: dict[str, list[float]] = {what: [] for what in calls}
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}", file=sys.stderr, end="\r")
        for what, (call, _) in calls.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            result = call()
            taken, taken_cpu = time.perf_counter() - start, time.process_time() - start_cpu
            del result
            if turn:
                wall[what].append(taken)
                cpu[what].append(taken_cpu)
    cells = []
    for what, (_, nbytes) in calls.items():
        low, median, high = statistics.quantiles(wall[what], n=4)
        cell = {
            "what": what, "median_ms": median * 1e3, "quartiles_ms": [low * 1e3, high * 1e3],
            "cpu_ms": statistics.median(cpu[what]) * 1e3, "rounds": rounds,
        }  # fmt: skip
        cells.append(cell | ({"nbytes": nbytes, "mb_per_s": nbytes / median / 1e6} if nbytes else {}))
    return cells


def headlines(cells: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that the README may quote."""
    ratio = cells["load, baracuda_py"]["median_ms"] / cells["load, safetensors"]["median_ms"]
    return [
        {"what": "Checkpoints: inspecting the headers of a 70B model",
         "value": round(cells["inspect 70B for sm_90"]["median_ms"] / 1e3, 2), "unit": "s"},
        {"what": "Checkpoints: loading every tensor, over safetensors' time", "value": round(ratio, 2), "unit": "x"},
        {"what": "Checkpoints: reading AWQ GEMM into OC_MAJOR, packed bytes on one core",
         "value": round(cells["AWQ_GEMM to OC_MAJOR"]["mb_per_s"]), "unit": "MB/s"},
    ]  # fmt: skip


def print_table(record: dict[str, Any]) -> None:
    """The cells."""
    table = Table("what", "median ms", "quartiles ms", "CPU ms", "MB/s", title=record["cpu"])
    for cell in record["cells"]:
        low, high = cell["quartiles_ms"]
        rate = f"{cell['mb_per_s']:.0f}" if "mb_per_s" in cell else ""
        spread = f"{low:.1f} .. {high:.1f}"
        table.add_row(cell["what"], f"{cell['median_ms']:.1f}", spread, f"{cell['cpu_ms']:.1f}", rate)
    Console().print(table)
    for line in record["headlines"]:
        print(f"{line['what']}: {line['value']} {line['unit']}")
    print(f"cores used by other processes: {record['cores_used_by_others']}")


if __name__ == "__main__":
    main()
