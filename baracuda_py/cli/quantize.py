"""`baracuda-py quantize SRC DST`: a checkpoint of plain weights with its linears in 4 bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from baracuda_py.cli.convert import (
    SHARD_SIZE,
    OverwriteOption,
    ShardSizeOption,
    TargetArgument,
    parse_format,
    written_as_json,
    written_facts,
)
from baracuda_py.cli.folding import fold
from baracuda_py.cli.output import Fact, bytes_text, print_facts, print_json, print_line, progress, working
from baracuda_py.cli.parsing import parse_enum, parse_size
from baracuda_py.vocab.enums import ElementKind

if TYPE_CHECKING:
    from baracuda_py.quantize.chain import LayerReport
    from baracuda_py.quantize.checkpoint import Quantized, QuantizePlan
    from baracuda_py.quantize.choice import Left

__all__ = ["quantize"]


def quantize(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", exists=True, help="Folder of a model, or one safetensors file.")
    ],
    target: TargetArgument,
    activations: Annotated[
        Path | None,
        typer.Option("--activations", metavar="FILE", exists=True, dir_okay=False, help="Of the linears' inputs."),
    ] = None,
    group_size: Annotated[
        int, typer.Option("--group-size", metavar="N", help="Channels that share a scale: 32, 64, 128, or -1: all.")
    ] = 128,
    to: Annotated[
        str, typer.Option("--to", metavar="awq-gemm|compressed-tensors", help="Format of the layers.")
    ] = "awq-gemm",
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Modules to quantise; re:... is a pattern.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", metavar="NAME", help="Modules to leave.")] = None,
    fold_into: Annotated[
        str, typer.Option("--fold", metavar="auto|llama|none", help="Which models' norms take up input scales.")
    ] = "auto",
    scales: Annotated[
        str | None, typer.Option("--scales", metavar="f16|bf16", help="Element of the scales. Default: the weights'.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Of torch, to search on: cuda. Default: NumPy.")
    ] = None,
    max_shard_size: ShardSizeOption = SHARD_SIZE,
    overwrite: OverwriteOption = False,
    every: Annotated[bool, typer.Option("--all", help="List each layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Quantise a checkpoint of f16, bf16 or f32 weights to 4 bits (AWQ), layer by layer; everything else is copied.

    With --activations, scales of input channels and clipping are searched; without, weights are rounded to nearest.
    Embeddings, norms, heads and routers stay as they are. DST appears when it is complete.
    """
    # Searching needs NumPy, which the other commands do without.
    from baracuda_py.quantize.checkpoint import plan_quantize

    format = parse_format(to)
    size = parse_size(max_shard_size, "--max-shard-size")
    with working("reading headers"):
        plan = plan_quantize(
            source, target, format=format, group_size=group_size, activations=activations, fold=fold_into,
            only=only or (), skip=skip or (), device=device, max_shard_bytes=size, overwrite=overwrite,
            scales_element=None if scales is None else parse_enum(ElementKind, scales, "--scales"),
        )  # fmt: skip
    with progress(f"quantising {source.name}", plan.save.nbytes) as advance:
        quantized = plan.run(advance)
    if as_json:
        print_json(_as_json(plan, quantized))
    else:
        _show(plan, quantized, every)


def _show(plan: QuantizePlan, quantized: Quantized, every: bool) -> None:
    saved, layers = quantized.saved, quantized.layers
    print_line(f"Wrote {saved.path}", "bold")
    before, after = quantized.before_nbytes, saved.nbytes
    folded = len(quantized.folded)
    others = f"{folded} with input scales folded in, the rest as they were" if folded else "as they were"
    facts: list[Fact] = [
        *written_facts(plan.save, saved, others),
        ("before", f"{bytes_text(before)}; now {after / before:.2f} of it"),
        ("memory", f"at most {bytes_text(plan.save.memory_nbytes)}"),
    ]
    known = [layer for layer in layers if layer.output_error is not None]
    facts.append(("weight error", _spread([layer.weight_error for layer in layers])))
    if known:
        facts.append(("output error", _spread([layer.output_error or 0.0 for layer in known])))
        facts.append(("if rounded", _spread([layer.rtn_error or 0.0 for layer in known])))
    print_facts(facts)
    _show_activations(quantized)
    _show_left(quantized.left)
    if every:
        print_line()
        for layer in layers:
            print_line(f"{layer.name}: {_one(layer)}", indent=2)


def _spread(errors: list[float]) -> str:
    if len(errors) == 1:
        return f"{errors[0]:.4f}"
    return f"{min(errors):.4f} to {max(errors):.4f}, median {median(errors):.4f}"


def _one(layer: LayerReport) -> str:
    words = [f"weight error {layer.weight_error:.4f}"]
    if layer.output_error is not None and layer.rtn_error is not None:
        words.append(f"output error {layer.output_error:.4f}, rounded {layer.rtn_error:.4f}")
    if layer.scaled_by:
        words.append(f"alpha {layer.alpha:.2f} in {layer.scaled_by}")
    return "; ".join(words)


def _show_activations(quantized: Quantized) -> None:
    """How many linears were scaled, and why others were not."""
    layers = quantized.layers
    if all(layer.output_error is None for layer in layers):
        print_line("Rounded to nearest: --activations FILE makes it aware of the activations.", "yellow", indent=2)
        return
    scaled = sum(bool(layer.scaled_by) for layer in layers)
    print_line(f"Scaled and clipped: {scaled} of {len(layers)} layers", indent=2)
    unknown = sum(layer.output_error is None for layer in layers)
    if unknown:
        print_line(f"Rounded, since the file has no activations of them: {unknown}", "yellow", indent=2)
    for why, count in Counter(layer.unscaled_because for layer in layers if layer.unscaled_because).most_common():
        print_line(f"Clipped only: {count}; {why}", "yellow", indent=2)


def _show_left(left: tuple[Left, ...]) -> None:
    if left:
        print_line("Left as they are", indent=2)
    for one in fold(left, lambda one: one.tensor.name, lambda one: (one.why, one.tensor.shape)):
        first = one.items[0]
        print_line(f"{one}  {first.tensor.dtype} {list(first.tensor.shape)}: {first.why}", indent=4)


def _as_json(plan: QuantizePlan, quantized: Quantized) -> dict[str, Any]:
    return {
        **written_as_json(plan.save, quantized.saved),
        "before_nbytes": quantized.before_nbytes,
        "folded": quantized.folded,
        "linears": [attrs.asdict(layer) for layer in quantized.layers],
        "left": [{"name": one.tensor.name, "why": one.why} for one in quantized.left],
    }
