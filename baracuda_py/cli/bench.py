"""`baracuda-py bench`: the AWQ GEMM beside a dense GEMM, torch's int4 op and a bare read, as JSON, CSV and a plot."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import baracuda_py as bp
from baracuda_py.cli.files import check_new, make_folder
from baracuda_py.cli.output import error_console, print_json, print_line, print_table, progress, time_text
from baracuda_py.cli.parsing import RUN_DEVICE_HELP, parse_device, parse_enum, parse_size
from baracuda_py.errors import InvalidProblem
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.tuning import slug
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import ElementKind

if TYPE_CHECKING:  # they need NumPy, which the other commands do without
    from baracuda_py.bench.cells import Cell
    from baracuda_py.bench.results import Results, Row
    from baracuda_py.bench.run import Bench

__all__ = ["bench"]

_ROTATED = "320MiB"
_BY_TIME = 32  # rows up to which times of two runs stand by themselves; more are limited by power, and ratios count
_SUFFIXES = (".json", ".csv", ".png", ".svg")


def bench(
    output: Annotated[
        Path, typer.Option("--output", metavar="OUT", help="Writes OUT.json, .csv, .png, .svg; {device} is its name.")
    ] = Path("awq-{device}"),
    presets: Annotated[
        list[str] | None,
        typer.Option("--preset", metavar="NAME", help="frontier, or a model: qwen2.5-0.5b, -7b, -32b, mixtral-8x7b."),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="OCxIC", help="Output x input channels. Default: those of `frontier`."),
    ] = None,
    rows: Annotated[
        list[str] | None, typer.Option("--m", metavar="M,...", help="Rows of the activation. Default: 1 to 4096.")
    ] = None,
    elements: Annotated[
        list[str] | None, typer.Option("--element", metavar="f16|bf16", help="Of activation and output. Default: f16.")
    ] = None,
    group_sizes: Annotated[
        list[int] | None, typer.Option("--group-size", help="32, 64, 128 or -1. Default: 128.")
    ] = None,
    layouts: Annotated[
        list[str] | None,
        typer.Option("--layout", metavar="NAME", help="oc_major, hf_gemm or tiled. Default: all."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help=RUN_DEVICE_HELP)] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Rounds; the median counts.")] = 20,
    rotate: Annotated[str, typer.Option("--rotate", metavar="SIZE", help="Weights that are walked over.")] = _ROTATED,
    block: Annotated[
        str, typer.Option("--block", metavar="TIME", help="How long 64 rows or more run each time, on a GPU.")
    ] = "10ms",
    selected: Annotated[
        bool, typer.Option("--selected", help="Only what select picks, beside the dense GEMM: for long blocks.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="Such as 90s or 10m: what does not fit is left for a next run."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="CSV", exists=True, dir_okay=False, help="The best of others, by cell."),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw OUT.png and OUT.svg; needs matplotlib.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Forget what OUT.json holds; write over any OUT.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say how long it will take.")] = False,
    draw: Annotated[bool, typer.Option("--draw", help="Measure nothing; draw OUT.json.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Measure the AWQ GEMM on a GPU or the host: every kernel of ours, a dense GEMM, torch's int4 op, a bare read.

    All of a cell are timed in turns, on weights that come from memory, and judged by the limits that the same command
    measures: how fast memory is read, how fast a large dense product is. The files are written after every cell. The
    same command again goes on where it stopped. Nothing else should use the device meanwhile.
    """
    from baracuda_py.bench.cells import PRESETS, ROWS, cells_of, parse_shape
    from baracuda_py.bench.peers import read_peers
    from baracuda_py.bench.plot import check_plots

    registry = bp.default_registry()
    named = [shape for name in presets or () for shape in _preset(PRESETS, name)] + list(map(parse_shape, shapes or ()))
    wanted = cells_of(
        named or PRESETS["frontier"],
        [m for text in rows or () for m in _numbers(text)] or ROWS,
        [parse_enum(ElementKind, text, "--element") for text in elements or ("f16",)],
        group_sizes or (128,),
    )
    peers = read_peers(compare) if compare else {}
    if draw or (plot and not estimate):
        check_plots()
    resolved = registry.device(parse_device(device))
    stem = _stem(output, resolved)
    if not estimate:
        _check_output(stem, replace or draw, plot or draw, compare)
    if draw:
        kept = _kept(stem, False, None, peers)
        make_folder(stem.parent)
        _draw(kept, stem)
        print_line(f"Drew {stem}.png and {stem}.svg", "bold")
        return
    rotated_nbytes = parse_size(rotate, "--rotate")
    made = _bench(resolved, layouts, samples, rotated_nbytes, 1e6 * _seconds(block, "--block"), selected)
    results = _kept(stem, replace or estimate, _environment(made), peers)
    left = [cell for cell in wanted if not results.holds(cell)]
    budget_s = None if budget is None else _seconds(budget, "--budget")
    _announce(made, left, len(wanted), budget_s)
    if estimate:
        return
    if left or plot:
        make_folder(stem.parent)
    _measure(made, left, results, stem, budget_s)
    if plot and results.rows:
        _draw(results, stem)
    shown = [row for row in results.judged() if _in(row, wanted)]
    if as_json:
        print_json({"output": stem, "left": sum(not results.holds(cell) for cell in wanted), "cells": shown})
    else:
        _show(results, wanted, stem)


def _preset(presets: Any, name: str) -> Any:
    if name not in presets:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(presets)}", param_hint="--preset")
    return presets[name]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,8,64", param_hint="--m") from None


def _seconds(text: str, option: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|min|h|)", text.strip().lower())
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"{text!r} is no time such as 300ms, 90s or 10m", param_hint=option)
    return float(match[1]) * {"": 1, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def _stem(output: Path, device: Device) -> Path:
    """OUT without a suffix that would be added to it again, and with the device's name filled in."""
    from baracuda_py.bench.environment import cpu_name

    named = Path(str(output).replace("{device}", slug(cpu_name() if device.kind == "host" else device.name)))
    return named.with_suffix("") if named.suffix in _SUFFIXES else named


def _check_output(stem: Path, replace: bool, plot: bool, compare: Path | None) -> None:
    """Refuse to write to what is no file, over what no OUT.json goes with, and over what is compared with."""
    json_path, *others = (stem.with_name(stem.name + suffix) for suffix in _SUFFIXES[: 4 if plot else 2])
    if compare is not None and any(path.exists() and path.samefile(compare) for path in (json_path, *others)):
        raise typer.BadParameter(f"{str(compare)!r} is a file that --output writes", param_hint="--compare")
    for path in (json_path, *others):
        if path.exists() and not path.is_file():
            raise InvalidProblem(
                str(path), "what is written to must be a file", rule="--output", got="what is no file",
                fix="Name another --output",
            )  # fmt: skip
    if not replace and not json_path.exists():
        check_new(others, f"a file beside a new {json_path.name} must be new too")


def _bench(
    device: Device, layouts: Sequence[str] | None, samples: int, rotated_nbytes: int, block_us: float, selected: bool
) -> Bench:
    from baracuda_py.bench.contenders import Lineup
    from baracuda_py.bench.run import Bench

    chosen = [parse_enum(AwqWeightLayout, text, "--layout") for text in layouts or ()] or list(AwqWeightLayout)
    lineup = Lineup(bp.default_registry(), device, tuple(dict.fromkeys(chosen)), rotated_nbytes, selected)
    return Bench(lineup, samples, block_us)


def _environment(made: Bench) -> dict[str, Any]:
    from baracuda_py.bench.environment import environment

    how: dict[str, Any] = {"samples": made.samples, "rotated_nbytes": made.lineup.rotated_nbytes}
    if made.lineup.device.kind == "cuda":
        how["block_us"] = made.block_us
    if made.lineup.selected:
        how["selected"] = True
    return {**environment(made.lineup.device), **how, "layouts": sorted(layout.value for layout in made.lineup.layouts)}


def _kept(stem: Path, replace: bool, environment: dict[str, Any] | None, peers: Any) -> Results:
    """What OUT.json holds, if that may go on; environment None: it must be there."""
    from baracuda_py.bench.results import Results

    path = stem.with_name(stem.name + ".json")
    if environment is None or (path.exists() and not replace):
        fix = "Name another output" if environment is None else "Name another output, or pass --replace"
        results = Results.load(path, fix)
        if environment is not None:
            results.check_continues(environment, path)
    else:
        results = Results(environment)
    results.peers |= peers
    return results


def _elements(cells: Sequence[Cell]) -> list[ElementKind]:
    return list(dict.fromkeys(cell.element for cell in cells))


def _announce(made: Bench, left: Sequence[Cell], wanted: int, budget_s: float | None) -> None:
    """How much there is to do, on standard error, before it is done."""
    seconds = sum(made.estimates_s(left)) + (made.ceilings_s(_elements(left)) if left else 0.0)
    said = f"{len(left)} of {wanted} cells on {made.lineup.device}: about {time_text(1e6 * seconds)}"
    if budget_s is not None and seconds > budget_s:
        said += f", of which {time_text(1e6 * budget_s)} are taken now"
    error_console().print(said, markup=False, soft_wrap=True)


def _measure(
    made: Bench, left: Sequence[Cell], results: Results, stem: Path, budget_s: float | None,
    clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Measure what is left, within the budget; what is measured is written at once."""
    from baracuda_py.bench.run import measured_within

    if not left:
        return
    begun = clock()
    estimates = [max(1, round(1e3 * seconds)) for seconds in made.estimates_s(left)]
    with progress("measuring the AWQ GEMM", sum(estimates)) as advance:
        results.begin(made.ceilings(_elements(left)))
        rest = None if budget_s is None else budget_s - (clock() - begun)
        for measured, estimate in zip(measured_within(made, left, rest), estimates, strict=False):
            results.add(measured)
            results.write(stem)
            advance(estimate)


def _draw(results: Results, stem: Path) -> None:
    from baracuda_py.bench.plot import draw

    results.write(stem)
    draw(results, stem)


def _in(row: Row, wanted: Iterable[Cell]) -> bool:
    from baracuda_py.bench.results import cell_of

    return cell_of(row) in wanted


def _show(results: Results, wanted: Sequence[Cell], stem: Path) -> None:
    """A line a cell: the fastest kernel that `select` picks for one of the layouts, and what it is judged by."""
    cells = [rows for rows in results.by_cell().values() if _in(rows[0], wanted)]
    compared = any(row["best_peer"] for rows in cells for row in rows)
    columns = ["oc x ic", "m", "", "selected", "time", "x limit", "x dense", "x read", "x int4", "x fastest"]
    columns += ["x best peer", "best peer"] if compared else []
    lines = [line for rows in cells if (line := _line(rows, compared))]
    if lines:
        print_table(columns, lines, right=[name for name in columns if name.startswith("x ") or name in ("m", "time")])
    if compared:
        print_line(f"Best peer: times up to m = {_BY_TIME}, above that ratios to the dense GEMM of each run.", "dim")
    for reason in dict.fromkeys(
        f"Absent: {_called(row)}: {row['absent']}"
        for rows in cells for row in rows if row["absent"]
    ):  # fmt: skip
        print_line(reason, "yellow")
    if left := sum(not results.holds(cell) for cell in wanted):
        print_line(f"{left} of {len(wanted)} cells are left: the same command goes on with them.", "yellow")
    if results.rows:
        print_line(f"Wrote {stem}.json, and beside it what else was asked for", "bold")


def _line(rows: Sequence[Row], compared: bool) -> list[str] | None:
    from baracuda_py.bench.contenders import INT4, OURS
    from baracuda_py.bench.results import fastest

    best = fastest(row for row in rows if row["kind"] == OURS and row["selected"])
    if best is None:
        return None
    least = fastest(row for row in rows if row["kind"] == OURS and not row["pdl"])
    int4 = fastest(row for row in rows if row["kind"] == INT4)
    assert least is not None
    rivals = any(row["kind"] == OURS and not row["selected"] and row["median_us"] for row in rows)
    line = [
        f"{best['oc']} x {best['ic']}", str(best["m"]), f"{best['element']} g{best['group_size']}",
        _called(best), time_text(best["median_us"]),
        *(_times(best[name]) for name in ("over_limit", "over_dense", "over_read")),
        _times(best["median_us"] / int4["median_us"] if int4 else None),
        _times(best["median_us"] / least["median_us"] if rivals else None),
    ]  # fmt: skip
    if compared:
        by_time = best["m"] <= _BY_TIME
        ratio = best["over_best_peer" if by_time else "over_best_peer_by_dense"]
        line += [_times(ratio), best["best_peer"] or ""]
    return line


def _called(row: Row) -> str:
    """The kernel, with the layout where its name does not say it."""
    layout = "" if row["kernel"].endswith(f"_{row['layout']}") else row["layout"]
    return f"{row['kernel']} {layout}".strip()


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
