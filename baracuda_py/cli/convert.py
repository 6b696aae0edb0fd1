"""`baracuda-py convert SRC DST --to FORMAT`: a checkpoint in another format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from baracuda_py.checkpoints.convert import plan_convert
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.write import MAX_SHARD_BYTES, Saved, SavePlan
from baracuda_py.cli.output import bytes_text, print_facts, print_json, print_line, progress, working
from baracuda_py.cli.parsing import parse_enum

__all__ = ["convert"]

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    "tib": 2**40,
}  # fmt: skip
_SHOWN = 5  # layers whose losses are listed


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", exists=True, help="Folder of a model, or one safetensors file.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; must be empty or absent.")],
    to: Annotated[str, typer.Option("--to", metavar="awq-gemm|compressed-tensors", help="Format of the layers.")],
    lossy: Annotated[bool, typer.Option("--lossy", help="Accept that weights change; the report counts them.")] = False,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Of a file's tensors, e.g. 5GB or 500MiB.")
    ] = f"{MAX_SHARD_BYTES // 10**9}GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint in DST.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a 4-bit checkpoint in another format, layer by layer; everything else is copied.

    Nothing is lost unless --lossy allows it: a conversion that would change a weight is refused with their count. DST
    appears when it is complete, and is left as it was if the command fails or is killed.
    """
    format = parse_enum(PackedFormat, to, "--to")
    size = _parse_size(max_shard_size)
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


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is no size such as 5GB or 500MiB", param_hint="--max-shard-size")
    return max(1, int(float(match[1]) * _UNITS[match[2]]))


def _show(plan: SavePlan, saved: Saved) -> None:
    print_line(f"Wrote {saved.path}", "bold")
    count = len(saved.files)
    print_facts(
        [
            ("layers", f"{saved.layers} in {plan.format.value.replace('_', '-')}"),
            ("other tensors", f"{saved.plain}, as they were"),
            ("other files", ", ".join(plan.files) or "none"),
            ("size", f"{bytes_text(saved.nbytes)} in {count} file{'s' * (count != 1)}"),
            ("memory", f"at most {bytes_text(plan.memory_nbytes)}: two of the largest layer and a fixed part"),
            ("weights", _weights(saved)),
        ]
    )
    for name, loss in list(saved.losses.items())[:_SHOWN]:
        print_line(f"{name}: {loss}", "yellow", indent=2)
    if len(saved.losses) > _SHOWN:
        print_line(f"and {len(saved.losses) - _SHOWN} more layers (--json lists them)", "yellow", indent=2)


def _weights(saved: Saved) -> Text:
    changed = sum(loss.changed for loss in saved.losses.values())
    if not changed:
        return Text("all exactly what they were", "green")
    return Text(f"{changed} changed, in {len(saved.losses)} of {saved.layers} layers", "yellow")


def _as_json(plan: SavePlan, saved: Saved) -> dict[str, Any]:
    return {
        "path": saved.path,
        "format": plan.format.value,
        "files": [file.name for file in saved.files],
        "layers": saved.layers,
        "plain": saved.plain,
        "nbytes": saved.nbytes,
        "memory_nbytes": plan.memory_nbytes,
        "changed_weights": sum(loss.changed for loss in saved.losses.values()),
        "losses": {
            name: {"changed": loss.changed, "total": loss.total, "largest": loss.largest, "why": loss.why}
            for name, loss in saved.losses.items()
        },
    }
