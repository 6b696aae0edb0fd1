"""`baracuda-py demo`: makes a small AWQ checkpoint, then runs its layers as `run awq-gemm` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import frozen

import baracuda_py as bp
from baracuda_py.checkpoints.checkpoint import open_checkpoint
from baracuda_py.cli.files import make_folder
from baracuda_py.cli.output import print_facts, print_json, print_line, working
from baracuda_py.cli.parsing import parse_device
from baracuda_py.cli.run import (
    DeviceOption,
    JsonOption,
    RepeatOption,
    as_json,
    check_outcomes,
    check_runs_here,
    run_layer,
    show,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LAYERS", "DemoLayer", "demo", "quantise", "write_checkpoint"]

GROUP_SIZE = 128
_SEED = 2
_LARGEST = 15  # of a nibble


@frozen
class DemoLayer:
    """A layer of the demo's checkpoint; `scale` is the standard deviation of its float weights."""

    name: str
    ic: int
    oc: int
    bias: bool
    scale: float = 0.02


LAYERS = (
    DemoLayer("model.layers.0.self_attn.q_proj", 512, 512, bias=True),
    DemoLayer("model.layers.0.mlp.gate_proj", 512, 1408, bias=False),
    DemoLayer("model.layers.0.mlp.down_proj", 1408, 512, bias=False),
)


def quantise(
    weight: NDArray[np.floating[Any]], group_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16]]:
    """Round to nearest with a zero point: w is close to (q - z) * s.

    Args:
        weight: (ic, oc), float.
        group_size: rows that share a scale and a zero point; divides ic.

    Returns:
        q (ic, oc) and z (ic / group_size, oc) in 0..15, and s (ic / group_size, oc) in f16.
    """
    import numpy as np

    ic, oc = weight.shape
    grouped = weight.astype(np.float64).reshape(ic // group_size, group_size, oc)
    low = np.minimum(grouped.min(axis=1), 0.0)  # 0 stays representable
    high = np.maximum(grouped.max(axis=1), 0.0)
    smallest = float(np.finfo(np.float16).tiny)
    scales = np.maximum((high - low) / _LARGEST, smallest).astype(np.float16)
    step = scales.astype(np.float64)
    zeros = np.clip(np.rint(-low / step), 0, _LARGEST)
    nibbles = np.clip(np.rint(grouped / step[:, None]) + zeros[:, None], 0, _LARGEST)
    return nibbles.reshape(ic, oc).astype(np.uint8), zeros.astype(np.uint8), scales


def write_checkpoint(folder: Path, layers: tuple[DemoLayer, ...] = LAYERS) -> None:
    """Write config.json and model.safetensors as quantised repositories on the Hugging Face hub have them."""
    import numpy as np
    from safetensors.numpy import save_file

    from baracuda_py.ops.quantize.awq_packing import HF_GEMM, pack_weight, pack_zeros

    random = np.random.default_rng(_SEED)
    tensors: dict[str, NDArray[Any]] = {}
    for layer in layers:
        weight = random.normal(0.0, layer.scale, (layer.ic, layer.oc))
        nibbles, zeros, scales = quantise(weight, GROUP_SIZE)
        tensors[f"{layer.name}.qweight"] = pack_weight(nibbles, HF_GEMM)
        tensors[f"{layer.name}.qzeros"] = pack_zeros(zeros, HF_GEMM)
        tensors[f"{layer.name}.scales"] = scales
        if layer.bias:
            tensors[f"{layer.name}.bias"] = random.normal(0.0, 1.0, layer.oc).astype(np.float16)
    quantisation = {
        "quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True, "version": "gemm",
    }  # fmt: skip
    config = {"model_type": "qwen2", "torch_dtype": "float16", "quantization_config": quantisation}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        make_folder(output)
        yield output
        return
    with TemporaryDirectory(prefix="baracuda-py-demo-") as made:
        yield Path(made)


def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", file_okay=False, help="Keep the checkpoint here; must be empty."),
    ] = None,
    m: Annotated[int, typer.Option("--m", min=0, help="Rows of the activation (tokens).")] = 16,
    device: DeviceOption = None,
    repeat: RepeatOption = 5,
    as_json_: JsonOption = False,
) -> None:
    """Make a small AWQ checkpoint, compute its layers, and check them against a float64 reference.

    Runs on the GPU if there is one, else on the host.
    """
    chosen = parse_device(device)
    check_runs_here(bp.default_registry().device(chosen))  # before there is anything to clear away
    if output is not None and output.is_dir() and any(output.iterdir()):
        raise typer.BadParameter(f"{output} is not empty", param_hint="--output")
    with _folder(output) as folder:
        with working("making a checkpoint"):
            write_checkpoint(folder)
        if not as_json_:
            kept = f"in {folder}" if output is not None else "in a temporary folder"
            print_line(
                f"Made an AWQ checkpoint {kept}: {len(LAYERS)} linear layers, float weights rounded to 4 bits. Each is "
                "read back, multiplied by random activations with the best kernel that the registry has for it, and "
                "compared with an independent float64 reference."
            )
        outcomes = []
        checkpoint = open_checkpoint(folder)
        for layer in LAYERS:
            outcome = run_layer(checkpoint.layer(layer.name), m, device=chosen, repeat=repeat)
            outcomes.append(outcome)
            if not as_json_:
                print_line()
                show(outcome)
    if as_json_:
        print_json([as_json(outcome) for outcome in outcomes])
    else:
        print_line()
        _conclude(all(outcome.passed for outcome in outcomes), output)
    check_outcomes(*outcomes)


def _conclude(passed: bool, output: Path | None) -> None:
    if not passed:
        print_line("A result is further from the reference than its kernel's guarantee allows.", "bold red")
        return
    print_line("All layers agree with the reference.", "bold green")
    next_commands = ["explain int4_awq_gemm --m 16 --ic 4096 --oc 4096 --device sm_90", "doctor"]
    if output is not None:
        next_commands.insert(0, f"run awq-gemm --checkpoint {output} --layer {LAYERS[0].name} --m 1")
    print_facts([("Next:" if number == 0 else "", f"baracuda-py {c}") for number, c in enumerate(next_commands)], 0)
