"""What was measured, as JSON and CSV: a row a contender and cell, and what it is judged by.

A file may be measured in parts: what is in it is kept, and later parts add cells. The limit of a cell is
max(bytes / read rate, flop / dense rate) with the highest rates that the file holds, measured beside it, not those of a
data sheet.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from baracuda_py.bench.cells import Cell
from baracuda_py.bench.contenders import DENSE, OURS, READ
from baracuda_py.bench.peers import Peer
from baracuda_py.bench.run import BLOCK_US, SUSTAINED_ROWS, Ceilings, Measured
from baracuda_py.errors import InvalidProblem
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.tuning import write_text
from baracuda_py.vocab.descriptors import to_fields
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tuning import Problem

__all__ = ["CELL", "COLUMNS", "Rates", "Results", "Row", "cell_of", "fastest"]

Row = dict[str, Any]
CELL = ("element", "group_size", "oc", "ic", "m")
_MEASURED = (
    "kind", "kernel", "kernel_element", "layout", "selected", "pdl", "samples", "calls", "median_us", "quartile1_us",
    "quartile3_us", "least_us", "nbytes", "absent",
)  # fmt: skip
_JUDGED = (
    "gb_per_s", "tflop_per_s", "limit_us", "over_limit", "over_dense", "over_read", "best_peer", "best_peer_us",
    "over_best_peer", "over_best_peer_by_dense",
)  # fmt: skip
COLUMNS = (*CELL, *_MEASURED, *_JUDGED)
"""Of the CSV, and of a row in the JSON. `pdl`: whether calls were bound to overlap the one before them."""

# In all parts of a file.
_SAME = ("gpu", "cpu", "driver", "commit", "packages", "samples", "block_us", "rotated_nbytes", "layouts", "selected")
_HEADLINE_ROWS = (1, 8, 512, 4096)


@frozen
class Rates:
    """The highest rates that were measured: of reads, bytes a us; of dense products, flop a us by element."""

    read: float
    dense: Mapping[str, float]

    def dense_of(self, cell: Cell) -> float | None:
        """That of the cell's element; of f32, in which the host computes, where it has none of its own."""
        return self.dense.get(cell.element.name.lower(), self.dense.get("f32"))

    def limit_us(self, cell: Cell) -> float:
        """The least time of a cell: of its bytes, or of its flop where a dense rate is known."""
        rate = self.dense_of(cell)
        return max(cell.nbytes / self.read, cell.flop / rate if rate else 0.0)


@define
class Results:
    """One file's content.

    Attributes:
        environment: of all parts: the machine, versions, and how it was measured.
        parts: one for each time that the command ran: the highest rates that it measured beforehand.
        rows: as they were measured; the columns that judge them are made by `judged`.
        peers: the best known kernel of a cell, by (oc, ic, m).
    """

    environment: dict[str, Any]
    parts: list[dict[str, Any]] = field(factory=list)
    rows: list[Row] = field(factory=list)
    peers: dict[tuple[int, int, int], Peer] = field(factory=dict)

    # -- what is measured -----------------------------------------------------------------------------------------

    def begin(self, ceilings: Ceilings) -> None:
        """A new part, with the rates that it measured."""
        dense = {element.name.lower(): round(rate / 1e6, 4) for element, rate in ceilings.dense.items()}
        self.parts.append({"read_gb_per_s": round(ceilings.read / 1e3, 2), "dense_tflop_per_s": dense})

    def add(self, measured: Measured) -> None:
        """The rows of a cell."""
        cell = dict(zip(CELL, _values(measured.cell), strict=True))
        for one, spread in measured.times:
            self.rows.append(
                {
                    **cell, "kind": one.kind, "kernel": one.kernel, "kernel_element": _name(one.element),
                    "layout": one.layout, "selected": one.selected, "pdl": one.overlaps, "samples": spread.samples,
                    "calls": one.copies, "median_us": round(spread.median_us, 3),
                    "quartile1_us": round(spread.quartiles_us[0], 3), "quartile3_us": round(spread.quartiles_us[1], 3),
                    "least_us": round(spread.least_us, 3), "nbytes": one.nbytes, "absent": "",
                }
            )  # fmt: skip
        for gone in measured.absent:
            row = {**cell, **dict.fromkeys(_MEASURED), "kind": gone.kind, "kernel": gone.kernel, "layout": gone.layout}
            self.rows.append({**row, "kernel_element": _name(gone.element), "selected": False, "absent": gone.reason})

    def holds(self, cell: Cell) -> bool:
        """Whether the cell is measured."""
        return _values(cell) in {tuple(row[name] for name in CELL) for row in self.rows}

    # -- what it is judged by -------------------------------------------------------------------------------------

    @property
    def rates(self) -> Rates:
        """The highest rates of any read and any dense product that was measured."""
        read = [1e3 * part["read_gb_per_s"] for part in self.parts]
        dense = [(name, 1e6 * rate) for part in self.parts for name, rate in part["dense_tflop_per_s"].items()]
        for row in self.rows:
            if row["kind"] == READ and row["median_us"]:
                read.append(row["nbytes"] / row["median_us"])
            elif row["kind"] == DENSE and row["median_us"]:
                dense.append((row["kernel_element"], _flop(row) / row["median_us"]))
        return Rates(max(read), {name: max(rate for one, rate in dense if one == name) for name, _ in dense})

    def judged(self) -> list[Row]:
        """The rows with all `COLUMNS`, cell by cell."""
        return [row for cell in self.by_cell().values() for row in cell]

    def by_cell(self) -> dict[tuple[Any, ...], list[Row]]:
        """The judged rows of each cell."""
        cells: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            cells.setdefault(tuple(row[name] for name in CELL), []).append(row)
        rates = self.rates
        return {key: self._judge(rows, rates.limit_us(cell_of(rows[0]))) for key, rows in sorted(cells.items())}

    def _judge(self, rows: list[Row], limit_us: float) -> list[Row]:
        dense, read = _least(rows, DENSE), _least(rows, READ)
        peer = self.peers.get((rows[0]["oc"], rows[0]["ic"], rows[0]["m"]))
        judged = []
        for row in rows:
            time_us = row["median_us"]
            over_dense = _ratio(time_us, dense)
            made: Row = {
                "gb_per_s": _ratio(row["nbytes"], time_us and 1e3 * time_us, 1),
                "tflop_per_s": None if row["kind"] == READ else _ratio(_flop(row), time_us and 1e6 * time_us, 3),
                "limit_us": round(limit_us, 3), "over_limit": _ratio(time_us, limit_us), "over_dense": over_dense,
                "over_read": _ratio(time_us, read), "best_peer": None, "best_peer_us": None, "over_best_peer": None,
                "over_best_peer_by_dense": None,
            }  # fmt: skip
            if peer is not None and row["kind"] == OURS:
                made |= {
                    "best_peer": peer.name, "best_peer_us": peer.time_us,
                    "over_best_peer": _ratio(time_us, peer.time_us),
                    "over_best_peer_by_dense": _ratio(over_dense, peer.over_dense),
                }  # fmt: skip
            judged.append({name: {**row, **made}[name] for name in COLUMNS})
        return judged

    def headlines(self) -> list[dict[str, Any]]:
        """For the two largest weights at few rows and at many, in f16 and groups of 128: the fastest kernel that is
        selected, over the dense GEMM."""
        largest = sorted({(row["oc"], row["ic"]) for row in self.rows}, key=lambda shape: -shape[0] * shape[1])[:2]
        lines = []
        for key, rows in self.by_cell().items():
            element, group_size, oc, ic, m = key
            best = fastest(row for row in rows if row["kind"] == OURS and row["selected"])
            dense = fastest(row for row in rows if row["kind"] == DENSE)
            usual = element == ElementKind.F16.name.lower() and group_size == 128
            if usual and (oc, ic) in largest and m in _HEADLINE_ROWS and best and dense:
                layout = "" if best["layout"] in ("", AwqWeightLayout.TILED.value) else f", {best['layout']}"
                block_us = self.environment.get("block_us", 0.0)
                usual_block = m < SUSTAINED_ROWS or block_us in (0.0, BLOCK_US)
                each = "" if usual_block else f", {block_us / 1e3:g} ms each"
                dense_gemm = dense["kernel"].replace("_", " ")
                what = f"AWQ GEMM {element} over {dense_gemm}, {oc} x {ic}, m = {m}{layout}{each}"
                lines.append({"what": what, "value": best["over_dense"], "unit": "x"})
        return lines

    def problems(self) -> tuple[Problem, ...]:
        """The times of our kernels, each by itself on its stream, as a tuning table of the op has them."""
        found: dict[tuple[Cell, str], dict[str, float]] = {}
        for row in self.rows:
            if row["kind"] == OURS and not row["pdl"] and row["median_us"]:
                found.setdefault((cell_of(row), row["layout"]), {})[row["kernel"]] = row["median_us"]
        return tuple(
            Problem(to_fields(cell.descriptor(AwqWeightLayout(layout))), times)
            for (cell, layout), times in sorted(found.items())
        )

    # -- files ------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path, fix: str = "") -> Results:
        """From the JSON; InvalidProblem, naming the file and saying `fix`, if it is none of `write`."""
        try:
            given = json.loads(path.read_text("utf-8"))
            rows = [{name: row[name] for name in (*CELL, *_MEASURED)} for row in given.pop("cells")]
            peers = [Peer(**one) for one in given.pop("peers")]
            parts = list(given.pop("parts"))
            given.pop("headlines", None)
            made = cls(given, parts, rows, {peer.key: peer for peer in peers})
            made.judged()
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise InvalidProblem(
                str(path), "a result file must be as `baracuda-py bench` writes it", rule="result file",
                why=f"{type(error).__name__}: {error}", fix=fix,
            ) from None  # fmt: skip
        return made

    def check_continues(self, environment: Mapping[str, Any], where: Path) -> None:
        """Whether what is measured now may be added: on the same machine, of the same commit, in the same way.

        Raises:
            InvalidProblem: it may not.
        """
        for name in _SAME:
            if self.environment.get(name) != environment.get(name):
                raise InvalidProblem(
                    str(where), f"the cells of a file must be measured alike, and its {name} differs", rule=name,
                    value=environment.get(name), why=f"it holds {self.environment.get(name)!r}",
                    fix="Name another output, or pass --replace",
                )  # fmt: skip

    def write(self, stem: Path) -> tuple[Path, Path]:
        """Write STEM.json and STEM.csv; return where."""
        rows = self.judged()
        paths = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".csv")
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_text(paths[0], self._json(rows))
        write_text(paths[1], _csv(rows))
        return paths

    def _json(self, rows: Iterable[Row]) -> str:
        """A row a line."""
        head = {**self.environment, "parts": self.parts, "headlines": self.headlines()}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        listed = {"peers": [peer.fields for peer in self.peers.values()], "cells": list(rows)}
        for key, values in listed.items():
            inner = ",\n".join(f"  {json.dumps(value)}" for value in values)
            lines.append(f" {json.dumps(key)}: [\n{inner}\n ]" if inner else f" {json.dumps(key)}: []")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row of the least median; None if none has one."""
    return min((row for row in rows if row["median_us"]), key=lambda row: row["median_us"], default=None)


def _csv(rows: Iterable[Row]) -> str:
    made = io.StringIO()
    writer = csv.DictWriter(made, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: int(value) if isinstance(value, bool) else value for name, value in row.items()})
    return made.getvalue()


def _values(cell: Cell) -> tuple[Any, ...]:
    return (cell.element.name.lower(), cell.group_size, cell.oc, cell.ic, cell.m)


def cell_of(row: Mapping[str, Any]) -> Cell:
    """The cell that a row is of."""
    return Cell(ElementKind[row["element"].upper()], row["group_size"], row["oc"], row["ic"], row["m"])


def _flop(row: Mapping[str, Any]) -> int:
    return cell_of(row).flop


def _name(element: ElementKind | None) -> str:
    return element.name.lower() if element else ""


def _least(rows: Iterable[Row], kind: str) -> float | None:
    found = fastest(row for row in rows if row["kind"] == kind)
    return found["median_us"] if found else None


def _ratio(value: float | None, other: float | None, digits: int = 4) -> float | None:
    return round(value / other, digits) if value and other else None
