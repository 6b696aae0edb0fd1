"""Peak memory and speed of converting a checkpoint of 32 layers of 4096 x 14336, AWQ GEMM to compressed-tensors.

    python benchmarks/checkpoints_convert.py [--layers 32] [--folder DIR]

The folder is made in a temporary place (about 1 GB, random nibbles), and converted by a process of its own, whose peak
is `VmHWM` of /proc/self/status: all resident memory, pages of mapped files included. The bound is two layers' size plus
200 MB. Writes benchmarks/results/<cpu>/checkpoints_convert.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, commit, packages, slug, write_result

IC, OC, GROUP = 4096, 14336, 128
ROOM_BYTES = 200_000_000
CHILD = """
import json, sys, time
from baracuda_py import checkpoints
start = time.perf_counter()
saved = checkpoints.convert(sys.argv[1], sys.argv[2], checkpoints.PackedFormat.COMPRESSED_TENSORS)
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"seconds": seconds, "peak_bytes": int(status["VmHWM"].split()[0]) * 1024, "nbytes": saved.nbytes}))
"""


def make(folder: Path, layers: int) -> int:
    """Write the source checkpoint; bytes of one layer."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    shapes = {"qweight": (IC, OC // 8), "qzeros": (IC // GROUP, OC // 8)}
    weight_map = {}
    for layer in range(layers):
        name = f"model.layers.{layer}.mlp.up_proj"
        tensors: dict[str, Any] = {
            f"{name}.{part}": random.integers(-(1 << 31), 1 << 31, shape, np.int64).astype(np.int32)
            for part, shape in shapes.items()
        }
        tensors[f"{name}.scales"] = random.uniform(0.5, 1.5, (IC // GROUP, OC)).astype(np.float16)
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        print(f"\rmade {layer + 1} of {layers} layers", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return sum(tensor.nbytes for tensor in tensors.values())


def cpu_name() -> str:
    """The processor, as /proc/cpuinfo says it."""
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    )
    return f"{facts['model name']} family {facts['cpu family']} model {facts['model']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made; default: a temporary folder")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        source = Path(scratch, "source")
        source.mkdir()
        layer_bytes = make(source, arguments.layers)
        command = [sys.executable, "-c", CHILD, source, Path(scratch, "target")]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    limit = 2 * layer_bytes + ROOM_BYTES
    cpu = cpu_name()
    record = {
        "cpu": cpu,
        "python": platform.python_version(),
        "packages": packages("numpy", "safetensors"),
        "commit": commit(),
        "layers": arguments.layers,
        "layer_bytes": layer_bytes,
        **found,
        "limit_bytes": limit,
        "mb_per_s": found["nbytes"] / found["seconds"] / 1e6,
        "headlines": [
            {
                "what": f"Checkpoints: peak memory, {arguments.layers} layers of {layer_bytes / 1e6:.0f} MB converted",
                "value": round(found["peak_bytes"] / 1e6),
                "unit": "MB",
            }
        ],
    }
    print(write_result(arguments.output or ROOT / "results" / slug(cpu) / "checkpoints_convert.json", record))
    print(f"peak {found['peak_bytes'] / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB, {record['mb_per_s']:.0f} MB/s")
    sys.exit(found["peak_bytes"] > limit)


if __name__ == "__main__":
    main()
