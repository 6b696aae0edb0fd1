"""The roofline: a line for everything that was measured, in both files, and the limits by their names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from baracuda_py.bench.cells import Cell
from baracuda_py.bench.peers import Peer
from baracuda_py.bench.plot import draw, drawn_from, series_of
from baracuda_py.bench.results import Results, cell_of
from baracuda_py.bench.run import Ceilings
from baracuda_py.vocab.enums import ElementKind

COMMITTED = sorted((Path(__file__).parents[2] / "benchmarks" / "results").rglob("*.svg"))


def _series(results):
    """Series by weight, of every element."""
    weights = {}
    for rows in results.by_cell().values():
        weights.setdefault(cell_of(rows[0]).weights, []).append(rows)
    return {key: series_of(cells) for key, cells in weights.items()}


def test_lines_are_what_select_picks_for_a_layout_and_everyone_else_once(results):
    found = {key[1:]: [one.name for one in series] for key, series in _series(results).items() if key[0].name == "F16"}
    assert found == {
        (128, 4096, 4096): ["tiled", "overlap", "oc_major", "dense", "int4", "read"],
        (128, 4096, 512): ["tiled", "overlap", "oc_major", "dense", "read"],
    }


def test_points_are_times_over_the_limit(results):
    cells = [rows for key, rows in results.by_cell().items() if key[:4] == ("f16", 128, 4096, 4096)]
    by_name = {one.name: dict(one.points) for one in series_of(cells)}
    for m, us in ((1, 10.0), (8, 10.0), (4096, 300.0)):
        limit = results.rates.limit_us(Cell(ElementKind.F16, 128, 4096, 4096, m))
        assert by_name["tiled"][m] == pytest.approx(us / limit, rel=1e-3)
        assert by_name["overlap"][m] == pytest.approx(0.95 * us / limit, rel=1e-3)
        assert by_name["read"][m] == pytest.approx(8 / limit, rel=1e-3)


def test_both_files_have_a_line_for_each_series_and_the_limit_in_each_panel(results, tmp_path):
    results.peers[4096, 4096, 8] = Peer(4096, 4096, 8, "marlin", 8.0, 0.5)
    png, svg = draw(results, tmp_path / "deep" / "out")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 20_000
    text = svg.read_text()
    lines = re.findall(r'id="series-([^"]+)"', text)
    assert len(lines) == sum(map(len, _series(results).values())) == 2 * (7 + 5)
    assert {"peer-f16-g128-4096x4096", "peer-bf16-g128-4096x4096", "int4-f16-g128-4096x4096"} < set(lines)
    assert len(re.findall(r'id="limit-[^"]+"', text)) == 4
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    named = ("bytes / 3.00 TB/s", "flop / 700 TFLOP/s", "4096 x 512", "cuBLAS f16", "cuBLAS bf16", "ours, TILED")
    for words in (*named, "Fake 90"):
        assert words in text, words


def test_the_same_results_give_the_same_picture(results, tmp_path):
    first, second = (draw(results, tmp_path / name)[1].read_text() for name in ("a", "b"))
    assert first == second


def test_one_cell_without_a_dense_gemm_is_drawn(results, tmp_path):
    few = Results({"cpu": "a processor"})
    few.begin(Ceilings(12e3, {}))
    few.rows = [row for row in results.rows if (row["m"], row["ic"], row["element"]) == (1, 512, "f16")]
    few.rows = [row for row in few.rows if row["kind"] != "dense"]
    _, svg = draw(few, tmp_path / "one")
    assert len(re.findall(r'id="series-', svg.read_text())) == 4


@pytest.mark.parametrize("svg", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_picture_is_of_the_committed_results(svg):
    assert f">{drawn_from(Results.load(svg.with_suffix('.json')))}<" in svg.read_text()
    assert svg.with_suffix(".png").exists()


def test_what_a_picture_says_it_was_drawn_from_differs_with_every_time(results, tmp_path):
    before = drawn_from(results)
    assert before in draw(results, tmp_path / "out")[1].read_text()
    results.rows[-1]["median_us"] = 1.25
    assert drawn_from(results) != before
