"""`baracuda-py convert SRC DST --to FORMAT`: a checkpoint in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from baracuda_py.checkpoints.convert import plan_convert
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.write import FORMATS, MAX_SHARD_BYTES, Saved, SavePlan
from baracuda_py.cli.output import Fact, bytes_text, print_facts, print_json, print_line, progress, working
from baracuda_py.cli.parsing import parse_size

__all__ = [
    "SHARD_SIZE",
    "OverwriteOption",
    "ShardSizeOption",
    "TargetArgument",
    "convert",
    "parse_format",
    "written_as_json",
    "written_facts",
]

_SHOWN = 5  # layers whose losses are listed

TargetArgument = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must be empty or absent.")]
ShardSizeOption = Annotated[
    str, typer.Option("--max-shard-size", metavar="SIZE", help="Of a file's tensors, e.g. 5GB or 500MiB.")
]
SHARD_SIZE = f"{MAX_SHARD_BYTES // 10**9}GB"
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint in DST.")]


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", exists=True, help="Folder of a model, or one safetensors file.")
    ],
    target: TargetArgument,
    to: Annotated[str, typer.Option("--to", metavar="awq-gemm|compressed-tensors", help="Format of the layers.")],
    lossy: Annotated[bool, typer.Option("--lossy", help="Accept that weights change; the report counts them.")] = False,
    max_shard_size: ShardSizeOption = SHARD_SIZE,
    overwrite: OverwriteOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a 4-bit checkpoint in another format, layer by layer; everything else is copied.

    Nothing is lost unless --lossy allows it: a conversion that would change a weight is refused with their count. DST
    appears when it is complete, and is left as it was if the command fails or is killed.
    """
    format = parse_format(to)
    size = parse_size(max_shard_size, "--max-shard-size")
    with working("reading headers"):
        plan = plan_convert(
            source, target, format, max_shard_bytes=size, overwrite=overwrite, lossy=lossy
        )  # fmt: skip
    with progress(f"writing {target.name}", plan.nbytes) as advance:
        saved = plan.run(advance)
    if as_json:
        print_json(_as_json(plan, saved))
    else:
        _show(plan, saved)


def parse_format(text: str) -> PackedFormat:
    """The format of `--to`: one of those that are written, whatever its case."""
    formats = {format.name.lower().replace("_", "-"): format for format in FORMATS}
    try:
        return formats[text.lower().replace("_", "-")]
    except KeyError:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(formats)}", param_hint="--to") from None


def written_facts(plan: SavePlan, saved: Saved, others: str = "as they were") -> list[Fact]:
    """What a folder that was written holds; `others`: how the tensors are that are no layer's."""
    count = len(saved.files)
    return [
        ("layers", f"{saved.layers} in {plan.format.value.replace('_', '-')}"),
        ("other tensors", f"{saved.plain}, {others}"),
        ("other files", ", ".join(plan.files) or "none"),
        ("size", f"{bytes_text(saved.nbytes)} in {count} file{'s' * (count != 1)}"),
    ]


def _show(plan: SavePlan, saved: Saved) -> None:
    print_line(f"Wrote {saved.path}", "bold")
    memory = f"at most {bytes_text(plan.memory_nbytes)}: two of the largest layer and a fixed part"
    print_facts([*written_facts(plan, saved), ("memory", memory), ("weights", _weights(saved))])
    for name, loss in list(saved.losses.items())[:_SHOWN]:
        print_line(f"{name}: {loss}", "yellow", indent=2)
    if len(saved.losses) > _SHOWN:
        print_line(f"and {len(saved.losses) - _SHOWN} more layers (--json lists them)", "yellow", indent=2)


def _weights(saved: Saved) -> Text:
    changed = sum(loss.changed for loss in saved.losses.values())
    if not changed:
        return Text("all exactly what they were", "green")
    return Text(f"{changed} changed, in {len(saved.losses)} of {saved.layers} layers", "yellow")


def written_as_json(plan: SavePlan, saved: Saved) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "path": saved.path,
        "format": plan.format.value,
        "files": [file.name for file in saved.files],
        "layers": saved.layers,
        "plain": saved.plain,
        "nbytes": saved.nbytes,
        "memory_nbytes": plan.memory_nbytes,
    }


def _as_json(plan: SavePlan, saved: Saved) -> dict[str, Any]:
    return {
        **written_as_json(plan, saved),
        "changed_weights": sum(loss.changed for loss in saved.losses.values()),
        "losses": {
            name: {"changed": loss.changed, "total": loss.total, "largest": loss.largest, "why": loss.why}
            for name, loss in saved.losses.items()
        },
    }
