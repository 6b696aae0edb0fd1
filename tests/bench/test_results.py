"""Result files: what a row holds, what it is judged by, what comes back from a file, what may be added to it."""

from __future__ import annotations

import csv
import json

import pytest
from attrs import evolve

from baracuda_py.bench.cells import Cell
from baracuda_py.bench.contenders import OURS
from baracuda_py.bench.peers import Peer
from baracuda_py.bench.results import CELL, COLUMNS, Rates, Results
from baracuda_py.bench.run import Ceilings
from baracuda_py.errors import InvalidProblem
from baracuda_py.vocab.enums import ElementKind

CELL_OF = Cell(ElementKind.F16, 128, 4096, 4096, 8)
KEY = ("f16", 128, 4096, 4096, 8)


def rows_of(results, kind):
    return [row for row in results.by_cell()[KEY] if row["kind"] == kind]


def test_the_limit_is_the_greater_of_bytes_and_flop_at_the_highest_rates_measured():
    rates = Rates(2e6, {"f16": 500e6})
    assert rates.limit_us(CELL_OF) == CELL_OF.nbytes / 2e6
    many = evolve(CELL_OF, m=4096)
    assert rates.limit_us(many) == many.flop / 500e6
    assert Rates(2e6, {}).limit_us(many) == many.nbytes / 2e6
    assert Rates(2e6, {"f32": 1e6}).limit_us(many) == many.flop / 1e6


def test_rates_are_the_highest_of_what_was_measured_beforehand_and_in_cells(results):
    assert results.rates == Rates(3e6, {"f16": 700e6, "bf16": 650e6})
    results.begin(Ceilings(9e6, {ElementKind.F16: 600e6}))
    assert results.rates == Rates(9e6, {"f16": 700e6, "bf16": 650e6})
    results.parts[:] = [{"read_gb_per_s": 0.1, "dense_tflop_per_s": {"f16": 0.1}}]
    in_cells = evolve(CELL_OF, m=4096).flop / 250
    assert results.rates == Rates(CELL_OF.weight_nbytes / 8, {"f16": in_cells, "bf16": in_cells})


def test_a_row_is_judged_by_the_limit_and_the_fastest_of_the_others(results):
    limit_us = CELL_OF.nbytes / 3e6
    best, = (row for row in rows_of(results, "ours") if row["layout"] == "tiled" and row["selected"])
    assert best["limit_us"] == pytest.approx(limit_us, abs=1e-3)
    assert best["over_limit"] == pytest.approx(10 / limit_us, abs=1e-4)
    assert (best["over_dense"], best["over_read"]) == (10 / 40, 10 / 8)
    assert best["gb_per_s"] == pytest.approx(CELL_OF.nbytes / 10e3, abs=0.1)
    assert best["tflop_per_s"] == pytest.approx(CELL_OF.flop / 10e6, abs=1e-3)
    assert [row["tflop_per_s"] for row in rows_of(results, "read")] == [None, None]
    dense, = rows_of(results, "dense")
    assert (dense["over_dense"], dense["limit_us"]) == (1.0, best["limit_us"])


def test_peers_stand_beside_ours_by_time_and_by_the_dense_gemm_of_their_own_run(results):
    results.peers[4096, 4096, 8] = Peer(4096, 4096, 8, "marlin", 8.0, 0.5)
    tiled = next(row for row in rows_of(results, "ours") if row["layout"] == "tiled")
    assert (tiled["best_peer"], tiled["best_peer_us"]) == ("marlin", 8.0)
    assert (tiled["over_best_peer"], tiled["over_best_peer_by_dense"]) == (10 / 8, 0.25 / 0.5)
    assert rows_of(results, "dense")[0]["best_peer"] is None
    results.peers[4096, 4096, 8] = Peer(4096, 4096, 8, "marlin", 8.0)
    assert next(iter(rows_of(results, "ours")))["over_best_peer_by_dense"] is None


def test_headlines_are_of_the_fastest_that_is_selected_on_the_largest_weights(results):
    lines = {line["what"]: line["value"] for line in results.headlines()}
    assert lines["AWQ GEMM f16 over cublas f16, 4096 x 4096, m = 8"] == 10 / 40
    assert {line["unit"] for line in results.headlines()} == {"x"}
    assert len(lines) == 2 * 3  # weights, rows
    assert all(what.startswith("AWQ GEMM f16 over cublas f16, ") for what in lines)
    results.environment["block_us"] = 3e5
    assert sorted(line["what"] for line in results.headlines()) == sorted(
        what + ", 300 ms each" * what.endswith(("m = 512", "m = 4096")) for what in lines
    )
    results.environment["block_us"] = 1e4
    assert {line["what"] for line in results.headlines()} == set(lines)
    results.rows += [{**row, "group_size": 64} for row in results.rows]
    assert len(results.headlines()) == len(lines)  # of groups of 128 alone
    results.rows = [row for row in results.rows if row["layout"] != "tiled"]
    others = {line["what"] for line in results.headlines()}
    assert others
    assert all(what.endswith((", oc_major", ", hf_gemm")) for what in others)


def test_json_and_csv_hold_the_same_rows_with_the_documented_columns(results, tmp_path):
    results.peers[4096, 4096, 8] = Peer(4096, 4096, 8, "marlin", 8.0, 0.5)
    as_json, as_csv = results.write(tmp_path / "deep" / "out")
    record = json.loads(as_json.read_text())
    assert record["gpu"] == "Fake 90"
    assert record["parts"] == [{"read_gb_per_s": 3000.0, "dense_tflop_per_s": {"f16": 700.0, "bf16": 650.0}}]
    assert record["headlines"]
    assert record["cells"] == results.judged()
    with as_csv.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == COLUMNS == tuple(record["cells"][0])
    assert len(rows) == len(record["cells"]) == 6 * 8 * 2
    for row, other in zip(rows, record["cells"], strict=True):
        for name, text in row.items():
            value = other[name]
            assert text == ("" if value is None else str(int(value)) if isinstance(value, bool) else str(value))
    gone = [row for row in rows if row["absent"]]
    assert {(row["kernel"], row["ic"], row["median_us"]) for row in gone} == {("torch_int4pack_mm", "512", "")}


def test_what_is_written_comes_back_and_can_be_gone_on_with(results, tmp_path):
    results.peers[4096, 4096, 8] = Peer(4096, 4096, 8, "marlin", 8.0, 0.5)
    path, _ = results.write(tmp_path / "out")
    again = Results.load(path)
    assert again.judged() == results.judged()
    assert again.environment == results.environment
    assert again.holds(CELL_OF)
    assert not again.holds(evolve(CELL_OF, m=2))
    again.check_continues(results.environment, path)
    before = path.read_text()
    again.write(tmp_path / "out")
    assert path.read_text() == before


@pytest.mark.parametrize(
    "name", ["gpu", "driver", "commit", "packages", "samples", "block_us", "rotated_nbytes", "layouts"]
)
def test_cells_that_are_measured_otherwise_are_not_added(results, tmp_path, name):
    with pytest.raises(InvalidProblem, match=f"{name} differs") as refused:
        results.check_continues(results.environment | {name: "other"}, tmp_path / "out.json")
    assert "--replace" in refused.value.fix


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cells": [], "parts": []}', '{"cells": [{}], "parts": [], "peers": []}']
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, text):
    path = tmp_path / "out.json"
    path.write_text(text)
    with pytest.raises(InvalidProblem, match=r"out\.json"):
        Results.load(path)
    with pytest.raises(InvalidProblem, match=r"absent\.json"):
        Results.load(tmp_path / "absent.json")


def test_every_column_of_a_cell_is_one_of_its_fields(results):
    assert COLUMNS[: len(CELL)] == CELL
    assert {row["pdl"] for row in results.judged() if row["kind"] == OURS} == {True, False}


def test_a_row_of_overlapping_calls_is_the_selected_one_of_nothing(results):
    overlapping = [row for row in results.judged() if row["pdl"]]
    assert {row["kernel"] for row in overlapping} == {"sm90a.bespoke.bulk_tiled"}
    assert not any(row["selected"] for row in overlapping)
    values = {line["value"] for line in results.headlines()}
    assert values.isdisjoint(row["over_dense"] for row in overlapping)
