"""`baracuda-py skus`: the registered kernels."""

from __future__ import annotations

import sys
from enum import Enum
from itertools import groupby
from typing import Annotated, Any, TypeVar

import attrs
import typer

import baracuda_py as bp
from baracuda_py.cli.output import output_console, print_json, print_line, print_table
from baracuda_py.cli.parsing import parse_enum
from baracuda_py.vocab.enums import ArchSku, BackendKind, ElementKind, EpilogueKind, OpCategory
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["promise", "sku_json", "skus"]

E = TypeVar("E", bound=Enum)


def skus(
    category: Annotated[str | None, typer.Option("--category", metavar="NAME", help="E.g. quantization.")] = None,
    op: Annotated[str | None, typer.Option("--op", metavar="OP", help="An op's name, as `ops` lists them.")] = None,
    element: Annotated[str | None, typer.Option("--element", metavar="NAME", help="E.g. f16.")] = None,
    backend: Annotated[str | None, typer.Option("--backend", metavar="NAME", help="E.g. bespoke, host.")] = None,
    arch: Annotated[str | None, typer.Option("--arch", metavar="NAME", help="E.g. sm80, host.")] = None,
    epilogue: Annotated[str | None, typer.Option("--epilogue", metavar="NAME", help="E.g. bias_gelu.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", metavar="NAME", help="E.g. numpy.")] = None,
    guarantee: Annotated[
        str | None,
        typer.Option("--guarantee", metavar="TOKEN", help="At least this, e.g. any-f32-f32-SdB; upper case: any."),
    ] = None,
    bit_stable: Annotated[bool, typer.Option("--bit-stable", help="Same bits in every process.")] = False,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Same bits in every run.")] = False,
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="A row's bits do not depend on the other rows.")
    ] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="One token a line, as when piped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the kernels that match every filter given.

    On a terminal as tables; piped as one SKU token a line, which `bp.KernelSku.parse` reads back.
    """
    registry = bp.default_registry()
    if op is not None:
        registry.op(op)  # refuses an unknown name and lists the known
    found = registry.skus(
        category=_enum(OpCategory, category, "--category"),
        op=op,
        element=_enum(ElementKind, element, "--element"),
        backend=_enum(BackendKind, backend, "--backend"),
        arch=_enum(ArchSku, None if arch is None else arch.replace("sm_", "sm"), "--arch"),
        epilogue=_enum(EpilogueKind, epilogue, "--epilogue"),
        variant=variant,
        guarantee=promise(guarantee, bit_stable, deterministic, batch_invariant),
    )
    if as_json:
        print_json([sku_json(sku) for sku in found])
    elif tokens or not output_console().is_terminal:
        sys.stdout.write("".join(f"{sku}\n" for sku in found))
    else:
        _tables(found)


def promise(
    token: str | None,
    bit_stable: bool = False,
    deterministic: bool = False,
    batch_invariant: bool = False,
    *,
    option: str = "--guarantee",
) -> PrecisionGuarantee | None:
    """The partial guarantee that a token, given as `option`, and flags ask for; None when they ask for nothing."""
    flags = {
        "bit_stable_on_same_hardware": bit_stable,
        "deterministic": deterministic,
        "batch_invariant": batch_invariant,
    }
    wanted: dict[str, Any] = {name: True for name, value in flags.items() if value}
    if token is None:
        return PrecisionGuarantee(**wanted) if wanted else None
    try:
        return attrs.evolve(PrecisionGuarantee.parse(token), **wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def sku_json(sku: KernelSku) -> dict[str, Any]:
    """The token and every field, for scripts."""
    fields = {field.name: getattr(sku, field.name) for field in attrs.fields(KernelSku)}
    return {"sku": sku.token, **fields, "op": sku.kind}


def _enum(enum: type[E], text: str | None, option: str) -> E | None:
    return None if text is None else parse_enum(enum, text, option)


def _tables(found: tuple[KernelSku, ...]) -> None:
    for (category, kind), group in groupby(found, key=lambda sku: (sku.category, sku.kind)):
        print_line(f"{category.name.lower()}.{kind.name.lower()}", "bold")
        rows = [
            [
                *(part.name.lower() for part in (sku.element, sku.layout, sku.epilogue, sku.arch, sku.backend)),
                sku.precision_guarantee.token,
                sku.variant,
            ]
            for sku in group
        ]
        print_table(
            ("element", "layout", "epilogue", "arch", "backend", "guarantee", "variant"), rows, wrapped="variant"
        )
        print_line()
    print_line(f"{len(found)} kernel{'' if len(found) == 1 else 's'}. --tokens prints their whole names.", "dim")
