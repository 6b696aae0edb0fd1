"""`baracuda-py inspect DIR`: what is in a quantised checkpoint, and what would run it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.text import Text

from baracuda_py.checkpoints.contradictions import Contradiction
from baracuda_py.checkpoints.inspection import Inspection, LayerInspection, PlainTensor
from baracuda_py.checkpoints.inspection import inspect as inspect_checkpoint
from baracuda_py.checkpoints.serving import SplitVerdict
from baracuda_py.cli.folding import Fold, fold, fold_names
from baracuda_py.cli.output import Fact, bytes_text, output_console, print_facts, print_json, print_line, working
from baracuda_py.cli.parsing import DEVICE_HELP, parse_device
from baracuda_py.cli.status import ExitCode

__all__ = ["inspect", "show"]

T = TypeVar("T")
_M = [1, 1024]
_TP = [1, 2, 4, 8]


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, help="Folder of a model, or one safetensors file.")
    ],
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help=DEVICE_HELP)] = None,
    m: Annotated[list[int], typer.Option("--m", min=0, help="Rows (tokens) to select kernels for; repeatable.")] = _M,
    tp: Annotated[list[int], typer.Option("--tp", min=1, help="Tensor-parallel degree to judge; repeatable.")] = _TP,
    every: Annotated[bool, typer.Option("--all", help="List each layer and tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is in a 4-bit checkpoint: formats, sizes, kernels, splits, contradictions. Reads no tensor.

    Exits with 3 when a layer, or the checkpoint, is in a format that is not read, or is damaged.
    """
    with working("reading headers"):
        inspection = inspect_checkpoint(path, parse_device(device), tp, m=m)
    if as_json:
        print_json(inspection.to_dict())
    else:
        show(inspection, every=every)
    if inspection.refused:
        raise typer.Exit(ExitCode.REFUSED)


def show(inspection: Inspection, *, every: bool = False) -> None:
    """The report, section by section; `every`: nothing is folded."""
    print_line(inspection.path.resolve().name, "bold")
    print_facts(list(_summary(inspection)))
    if inspection.layers:
        _heading("Packed layers", len(inspection.layers))
        for layers in _folds(inspection.layers, lambda layer: layer.name, _looks, every):
            print_line(str(layers), indent=2)
            print_line(", ".join(_details(layers.items[0])), "dim", indent=4)
        _heading(f"Kernels on {inspection.device}")
        print_facts(list(_kernels(inspection.layers)))
        _heading("Tensor parallel")
        print_facts([*_splits("columns", inspection.layers), *_splits("rows", inspection.layers)])
    if inspection.refused:
        _heading("Refused", len(inspection.refused), "red")
        for refused in _folds(inspection.refused, lambda one: one.name, lambda one: one.refusal, every):
            print_line(str(refused), indent=2)
            print_line(refused.items[0].refusal, "red", indent=4)
    if inspection.contradictions:
        _heading("Configuration and headers disagree", len(inspection.contradictions), "yellow")
        for one in inspection.contradictions:
            print_line(_disagreement(inspection, one), indent=2)
            for name in one.layers if every else fold_names(one.layers, _modules(inspection)):
                print_line(str(name), "dim", indent=4)
    if inspection.plain:
        _heading("Not quantised", len(inspection.plain))
        for tensors in _folds(inspection.plain, lambda one: one.name, lambda one: (one.dtype, one.shape), every):
            print_line(Text.assemble(str(tensors), ("  " + _tensor(tensors), "dim")), indent=2)
    if not every and output_console().is_terminal:
        print_line()
        print_line("--all lists each layer and tensor.", "dim")


def _heading(text: str, count: int | None = None, style: str = "") -> None:
    print_line()
    print_line(text if count is None else f"{text} ({count:,})", f"bold {style}".strip())


def _summary(inspection: Inspection) -> Iterator[Fact]:
    totals = inspection.totals
    if inspection.config_file is None:
        yield "says", "nothing about quantisation"
    else:
        yield "says", f"{inspection.method}, {inspection.version} ({inspection.config_file.name})"
    count = len(inspection.files)
    nbytes = totals.packed_nbytes + totals.refused_nbytes + totals.plain_nbytes
    indexed = f" listed in {inspection.index.name}" if inspection.index else ""
    yield "holds", f"{bytes_text(nbytes)} in {count} file{'s' * (count != 1)}{indexed}"
    if inspection.layers:
        dense = f"{bytes_text(totals.dense_nbytes)} in 16 bits"
        yield "packed", f"{totals.packed_parameters:,} parameters, {bytes_text(totals.packed_nbytes)}; {dense}"
    yield "plain", f"{totals.plain_parameters:,} parameters, {bytes_text(totals.plain_nbytes)}"
    if inspection.unlisted:
        count = len(inspection.unlisted)
        yield "unlisted", f"{count} tensor{'s' * (count != 1)} in the shards that the index does not list"


def _folds(
    items: Iterable[T], name: Callable[[T], str], alike: Callable[[T], Hashable], every: bool
) -> list[Fold[T]]:
    return [Fold(name(item), (item,)) for item in items] if every else fold(items, name, alike)


def _looks(layer: LayerInspection) -> Hashable:
    return tuple(_details(layer))


def _details(layer: LayerInspection) -> list[str]:
    scales = layer.dtypes["weight_scale" if "weight_scale" in layer.dtypes else "scales"]
    words = [
        layer.format.value,
        f"{layer.ic} x {layer.oc}",
        "one group" if layer.group_size == -1 else f"groups of {layer.group_size}",
        "symmetric" if layer.symmetric else "asymmetric",
        f"{scales} scales",
    ]
    words += ["act-order"] if layer.act_order else []
    words += [f"{layer.dtypes['bias']} bias"] if "bias" in layer.dtypes else []
    words += [f"input divided by {layer.act_scales.rpartition('.')[0].rpartition('.')[2]}"] if layer.act_scales else []
    return words


def _kernels(layers: Sequence[LayerInspection]) -> Iterator[Fact]:
    """For each m the kernels, and their layers where there are several."""
    for column, m in enumerate(serving.m for serving in layers[0].servings):
        kinds: dict[Hashable, list[LayerInspection]] = {}
        for layer in layers:
            serving = layer.servings[column]
            kinds.setdefault((serving.sku, serving.refusal), []).append(layer)
        label = f"m = {m}"
        for same in kinds.values():
            serving = same[0].servings[column]
            if serving.sku is None:
                yield label, Text(f"none: {serving.refusal}", "red")
            else:
                yield label, serving.sku.token
            yield from _which(same, layers)
            label = ""


def _splits(axis: str, layers: Sequence[LayerInspection]) -> Iterator[Fact]:
    """The degrees that are legal, the reason of each that is not, and the layers where they differ."""
    kinds: dict[Hashable, list[LayerInspection]] = {}
    for layer in layers:
        verdicts: tuple[SplitVerdict, ...] = getattr(layer, axis)
        legal = ", ".join(_legal(one, layer.group_size) for one in verdicts if one.part is not None)
        refused = tuple(f"not {one.degree}: {one.refusal}" for one in verdicts if one.part is None)
        kinds.setdefault((legal or "none", refused), []).append(layer)
    label = axis
    for (legal, refused), same in kinds.items():  # type: ignore[misc]
        yield label, legal
        for text in refused:
            yield "", Text(text, "yellow")
        yield from _which(same, layers)
        label = ""


def _legal(verdict: SplitVerdict, group_size: int) -> str:
    part = verdict.part
    assert part is not None
    if part.keeps_all_groups:
        return f"{verdict.degree} (every rank keeps all groups)"
    if part.group_size != group_size:
        return f"{verdict.degree} (groups of {part.group_size})"
    return str(verdict.degree)


def _which(some: Sequence[LayerInspection], layers: Sequence[LayerInspection]) -> Iterator[Fact]:
    """The names of some of the layers; none if they are all."""
    if len(some) < len(layers):
        for one in fold_names([layer.name for layer in some], [layer.name for layer in layers]):
            yield "", Text(f"  {one}", "dim")


def _modules(inspection: Inspection) -> list[str]:
    """Names of all that may be quantised, or be said to be."""
    plain = [tensor.name.rpartition(".")[0] for tensor in inspection.plain]
    packed = [layer.name for layer in inspection.layers] + [refused.name for refused in inspection.refused]
    return list(dict.fromkeys(packed + plain))


def _disagreement(inspection: Inspection, one: Contradiction) -> str:
    assert inspection.config_file is not None
    return f"{one.rule}: {inspection.config_file.name} says {one.config}, the headers {one.headers}"


def _tensor(tensors: Fold[PlainTensor]) -> str:
    one = tensors.items[0]
    return f"{one.dtype} {list(one.shape)}, {bytes_text(sum(tensor.nbytes for tensor in tensors.items))}"
