"""`baracuda-py ops`: what is registered."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import baracuda_py as bp
from baracuda_py.cli.output import print_json, print_table
from baracuda_py.registry import Op
from baracuda_py.vocab.enums import ArchSku

__all__ = ["ops"]


def _summary(op: Op) -> dict[str, Any]:
    on_host = sum(kernel.sku.arch is ArchSku.HOST for kernel in op.kernels)
    return {
        "name": op.name,
        "category": op.category,
        "gpu_kernels": len(op.kernels) - on_host,
        "host_kernels": on_host,
        "descriptor": op.descriptor.__name__,
        "doc": op.doc.partition("\n")[0],
    }


def ops(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the registered ops."""
    found = [_summary(op) for op in bp.default_registry().ops()]
    if as_json:
        print_json(found)
        return
    rows = [
        (one["name"], one["category"].name.lower(), str(one["gpu_kernels"]), str(one["host_kernels"]), one["doc"])
        for one in found
    ]
    print_table(("op", "category", "gpu", "host", "what it is"), rows, right=("gpu", "host"), wrapped="what it is")
