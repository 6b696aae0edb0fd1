"""The roofline, flattened: time over the limit, a panel a weight, a line a contender; the limit is the line at 1.

    limit = max(bytes / read rate, flop / dense rate)       with the highest rates that were measured beside it

Left of the dotted line the first of the two is the greater, right of it the second.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attrs import frozen

from baracuda_py.bench.cells import Cell
from baracuda_py.bench.contenders import DENSE, FP8, INT4, OURS, READ
from baracuda_py.bench.results import Rates, Results, Row, cell_of, fastest
from baracuda_py.errors import Unsupported

__all__ = ["Series", "check_plots", "draw", "drawn_from", "series_of"]

# Okabe and Ito's colours, which the colour-blind tell apart; line styles and markers differ too.
_STYLES: Mapping[str, dict[str, Any]] = {
    "tiled": {"color": "#0072B2", "marker": "o", "linewidth": 2.2},
    "overlap": {"color": "#0072B2", "marker": "", "linewidth": 1.6, "linestyle": (0, (5, 2))},
    "oc_major": {"color": "#56B4E9", "marker": "s", "linewidth": 1.6},
    "hf_gemm": {"color": "#009E73", "marker": "^", "linewidth": 1.6},
    FP8: {"color": "#F0E442", "marker": "X", "linewidth": 1.6},
    DENSE: {"color": "#D55E00", "marker": "v", "linewidth": 1.8},
    INT4: {"color": "#E69F00", "marker": "P", "linewidth": 1.6},
    READ: {"color": "#777777", "marker": "", "linewidth": 1.4, "linestyle": (0, (4, 2))},
    "peer": {"color": "#CC79A7", "marker": "D", "linewidth": 0.0},
}
_COLUMNS = 3
_PANEL_INCHES = 3.6, 2.9
_NEAR_TICKS, _FAR_TICKS = (1, 1.5, 2, 3, 5, 8, 12, 20), (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_BELOW = 0.16  # part of the axis' height below the limit, where its name stands, over that above
_COLUMN_LETTERS = 36  # of a title of 12 points
_PLOTTED = "matplotlib"


def check_plots() -> None:
    """Raise Unsupported, saying what to install, if nothing can be drawn."""
    if find_spec(_PLOTTED) is None:
        raise Unsupported(
            "bench", f"a plot needs {_PLOTTED}", rule=_PLOTTED, got="not installed",
            fix="Run: pip install 'baracuda-py[bench]', or pass --no-plot and draw the file elsewhere with --draw",
        )  # fmt: skip


@frozen
class Series:
    """One line of a panel.

    Attributes:
        name: the layout of ours that `select` serves, `"overlap"` (the fastest of ours whose calls overlap), FP8,
            DENSE, INT4, READ, or `"peer"`.
        label: in words.
        points: rows, and time over the limit.
    """

    name: str
    label: str
    points: tuple[tuple[int, float], ...]


def series_of(cells: Iterable[list[Row]]) -> list[Series]:
    """The lines of the cells of one weight: what `select` picks for each layout, and the others that were measured."""
    labels: dict[str, str] = {}
    points: dict[str, list[tuple[int, float]]] = {}
    for rows in cells:
        for name, label, time_us in _lines(rows):
            labels.setdefault(name, label)
            points.setdefault(name, []).append((rows[0]["m"], time_us / rows[0]["limit_us"]))
    return [Series(name, labels[name], tuple(sorted(points[name]))) for name in _STYLES if name in points]


def _lines(rows: list[Row]) -> Iterator[tuple[str, str, float]]:
    """Name, label and time of those that have a line."""
    for row in rows:
        if row["kind"] == OURS and row["selected"] and row["median_us"]:
            yield row["layout"], f"ours, {row['layout'].upper()}", row["median_us"]
    overlapping = fastest(row for row in rows if row["kind"] == OURS and row["pdl"])
    if overlapping is not None:
        yield "overlap", f"ours, {overlapping['layout'].upper()}, overlapping", overlapping["median_us"]
    for kind in (FP8, DENSE, INT4, READ):
        # Rows that are to be fp8 have to be made so.
        best = fastest(row for row in rows if row["kind"] == kind and (kind != FP8 or "," in row["kernel"]))
        if best is not None:
            labels = {FP8: "ours, fp8, quantised", INT4: "torch int4, bf16", READ: "reading the weights"}
            label = labels.get(kind, _dense_label(best))
            yield kind, label, best["median_us"]
    peer = next((row for row in rows if row["best_peer_us"]), None)
    if peer is not None:
        yield "peer", "best of others", peer["best_peer_us"]


def _dense_label(row: Row) -> str:
    library, _, element = row["kernel"].partition("_")
    return f"{ {'cublas': 'cuBLAS', 'numpy': 'NumPy'}.get(library, library) } {element}"


def draw(results: Results, stem: Path) -> tuple[Path, Path]:
    """Write STEM.png and STEM.svg; return where. The SVG says by `drawn_from` of what. Raises as `check_plots`."""
    check_plots()
    from matplotlib import rc_context

    style = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
        "svg.hashsalt": "baracuda_py", "axes.titlesize": 10.5, "axes.titleweight": "bold",
    }  # fmt: skip
    paths = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with rc_context(style):
        figure = _figure(results)
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None, "Description": drawn_from(results)})
    return paths


def drawn_from(results: Results) -> str:
    """Which results: their commit, and a checksum of what was measured."""
    rows = json.dumps(results.rows, sort_keys=True).encode()
    return f"commit {results.environment.get('commit', 'unknown')}, rows {zlib.crc32(rows):08x}"


Panels = dict[tuple[int, int], list[list[Row]]]


def _figure(results: Results) -> Any:
    """A block of panels for each element and group size, a panel for each weight."""
    from matplotlib.figure import Figure

    blocks: dict[tuple[str, int], Panels] = {}
    for (element, group, oc, ic, _), rows in results.by_cell().items():
        blocks.setdefault((element, group), {}).setdefault((oc, ic), []).append(rows)
    columns = min(_COLUMNS, max(len(panels) for panels in blocks.values()))
    heights = [-(-len(panels) // columns) for panels in blocks.values()]
    size = max(columns, 2) * _PANEL_INCHES[0], sum(heights) * _PANEL_INCHES[1] + 0.5 * len(blocks)
    figure = Figure(size, layout="constrained")
    parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
    device = results.environment.get("gpu") or results.environment.get("cpu", "")
    for part, ((element, group), panels), height in zip(parts, blocks.items(), heights, strict=True):
        groups = "one group" if group == -1 else f"groups of {group}"
        title = f"AWQ W4A16 GEMM, {element}, {groups}: {device}"
        if len(title) > _COLUMN_LETTERS * max(columns, 2):
            title = title.replace(": ", ":\n", 1)
        part.suptitle(title, fontsize=12, x=0.01, ha="left")
        _block(part.subplots(height, columns, sharex=True, sharey=True, squeeze=False), panels, results.rates, part)
    return figure


def _block(axes: Any, panels: Panels, rates: Rates, part: Any) -> None:
    """The panels, small weights first; the first has the names of the limits."""
    ordered = sorted(panels.items(), key=lambda one: one[0][0] * one[0][1])
    for axis, (shape, cells) in zip(axes.flat, ordered, strict=False):
        _panel(axis, shape, cells, rates)
    lowest = list(axes[-1])
    for index in range(len(panels), axes.size):
        axes.flat[index].set_axis_off()
        if len(axes) > 1:
            lowest.append(axes.flat[index - axes.shape[1]])
    every = [one for _, cells in ordered for one in series_of(cells)]
    rows = sorted({m for one in every for m, _ in one.points})
    most = max(2.0, 1.25 * max(over for one in every for _, over in one.points))
    for axis in axes.flat:
        axis.set_xticks(rows[:: 2 if len(rows) > 7 else 1])
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_yticks([tick for tick in (_NEAR_TICKS if most < 25 else _FAR_TICKS) if tick < most])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    axes.flat[0].set_ylim(most**-_BELOW, most)
    for axis in axes[:, 0]:
        axis.set_ylabel("time over the limit")
    for axis in lowest:
        axis.set_xlabel("rows of the activation (m)")
        axis.tick_params(labelbottom=True)
    _name_limits(axes.flat[0], [cell_of(one[0]) for one in ordered[0][1]], rates)
    _name_lines(part, axes, every)


def _panel(axis: Any, shape: tuple[int, int], cells: list[list[Row]], rates: Rates) -> None:
    """The lines of one weight, and its limit."""
    oc, ic = shape
    axis.set_title(f"{oc} x {ic}", loc="left")
    place = f"{cells[0][0]['element']}-g{cells[0][0]['group_size']}-{oc}x{ic}"
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.grid(True, which="major", color="#e6e6e6", linewidth=0.7)
    axis.axhspan(1e-3, 1, color="#f0f0f0", zorder=0, linewidth=0)
    axis.axhline(1, color="black", linewidth=1.6, zorder=2).set_gid(f"limit-{place}")
    turn = _turn(cell_of(cells[0][0]), rates)
    if turn is not None and cells[0][0]["m"] < turn < cells[-1][0]["m"]:
        axis.axvline(turn, color="black", linewidth=0.8, linestyle=":", zorder=1)
    for series in series_of(cells):
        style = {"linestyle": "-", "markersize": 4.5, **_STYLES[series.name]}
        x, y = zip(*series.points, strict=True)
        (line,) = axis.plot(x, y, zorder=2.5 if series.name == READ else 3, **style)
        line.set_gid(f"series-{series.name}-{place}")


def _turn(cell: Cell, rates: Rates) -> float | None:
    """The number of rows from which on flop are the greater limit; None without a dense rate, or if they never are."""
    rate = rates.dense_of(cell)
    if rate is None:
        return None
    a_row = cell.flop / cell.m / rate - (cell.nbytes - cell.weight_nbytes) / cell.m / rates.read
    return cell.weight_nbytes / rates.read / a_row if a_row > 0 else None


def _name_lines(part: Any, axes: Any, series: list[Series]) -> None:
    """What the lines are, below the panels, each name in the colour of its line: beside them there is no room."""
    labels = {one.name: one.label for one in series}
    drawn = [(line, (line.get_gid() or "").split("-")) for axis in axes.flat for line in axis.get_lines()]
    lines = {gid[1]: line for line, gid in drawn if gid[0] == "series"}
    names = [name for name in _STYLES if name in labels]
    columns = len(names) if len(names) <= 4 else -(-len(names) // 2) if axes.shape[1] < _COLUMNS else len(names)
    part.legend(
        [lines[name] for name in names], [labels[name] for name in names], loc="outside lower center", ncols=columns,
        frameon=False, labelcolor="linecolor", fontsize=9.5, columnspacing=1.2, handletextpad=0.4, handlelength=1.6,
    )  # fmt: skip


def _name_limits(axis: Any, cells: list[Cell], rates: Rates) -> None:
    """What the limit is made of, below it."""
    gb_per_s = rates.read / 1e3
    read = f"{gb_per_s / 1e3:.2f} TB/s" if gb_per_s >= 1e3 else f"{gb_per_s:.1f} GB/s"
    dense = rates.dense_of(cells[0])
    turn = _turn(cells[0], rates)
    style = {"textcoords": "offset points", "fontsize": 8.5, "color": "#333333"}
    if turn is None or turn > cells[0].m:
        axis.annotate(f"bytes / {read}", (cells[0].m, 1), (0, -13), **style)
    if dense is not None and turn is not None and turn < cells[-1].m:
        rate = f"{dense / 1e6:.3g} TFLOP/s" if dense >= 1e6 else f"{dense / 1e3:.3g} GFLOP/s"
        axis.annotate(f"flop / {rate}", (cells[-1].m, 1), (0, -13), ha="right", **style)
