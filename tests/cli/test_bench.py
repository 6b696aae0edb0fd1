"""`baracuda-py bench`: on the host as it is, and on a GPU whose clock only graphs move."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec

import pytest
from attrs import evolve

import baracuda_py as bp
from baracuda_py.bench import plot
from baracuda_py.bench import run as bench_run
from baracuda_py.bench.cells import Cell
from baracuda_py.bench.contenders import READ, Absent, Contender, Lineup
from baracuda_py.bench.results import COLUMNS
from baracuda_py.bench.run import Bench, Forecast, measured_within
from baracuda_py.errors import DriverError
from baracuda_py.ops.quantize import awq_gemm
from baracuda_py.tuning.timing import timer_on
from baracuda_py.vocab.enums import ElementKind

SMALL = ("--shape", "64x256", "--rotate", "1B", "--samples", 3)
QUICK = (*SMALL, "--m", "4", "--no-plot")
READS = {"read_streaming": 1.5, "read_evict_first": 1.25}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Rates are taken of little: nobody looks at them here."""
    monkeypatch.setattr(bench_run, "_READ_NBYTES", {"cuda": 1 << 12, "host": 1 << 12})
    monkeypatch.setattr(bench_run, "_DENSE_SIDE", {"cuda": 32, "host": 32})
    monkeypatch.delenv("BARACUDA_PY_COMMIT", raising=False)


@pytest.fixture
def gpu(gpu):
    gpu.computes = False
    gpu.times_us = {
        "awq_gemm_small_m": 7.0, "awq_gemm_stream": 2.0, "awq_gemm_splitk": 3.0, "awq_gemm_reduce": 0.5,
        "awq_gemm_tiled": 2.0, "awq_fp8_gemm_tiled": 4.0, "quantize_per_token": 1.5,
        **{f"memory_{name.replace('read_', 'read_sm80_')}": us for name, us in READS.items()},
    }  # fmt: skip
    return gpu


def rows_of(path):
    return json.loads(path.read_text())["cells"]


# -- on the host ---------------------------------------------------------------------------------------------------


def test_on_the_host_every_kernel_is_measured_beside_numpy_and_a_read(run, tmp_path):
    words = ("bench", "--device", "host", *SMALL, "--m", "1,4", "--m", 16, "--no-plot", "--output", tmp_path / "out")
    result = run(*words, "--element", "f16", "--element", "bf16")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["cpu"]
    assert record["packages"]["numpy"]
    assert (record["samples"], record["rotated_nbytes"]) == (3, 1)
    assert "block_us" not in record
    assert record["parts"][0]["read_gb_per_s"] > 0
    assert record["parts"][0]["dense_tflop_per_s"].keys() == {"f32"}
    cells = {(row["element"], row["m"]) for row in record["cells"]}
    assert cells == {(element, m) for element in ("f16", "bf16") for m in (1, 4, 16)}
    one = [row for row in record["cells"] if (row["element"], row["m"]) == ("f16", 4)]
    numpy = {("host.host.numpy", layout.value) for layout in bp.AwqWeightLayout}
    assert numpy | {("numpy_f32", ""), ("read", "")} <= {(row["kernel"], row["layout"]) for row in one}
    assert sum(row["selected"] for row in one) == 3, "one for each layout"
    for row in one:
        if row["absent"]:
            assert row["kernel"] == "torch_int4pack_mm"
            continue
        assert row["median_us"] > 0
        assert row["least_us"] <= row["quartile1_us"] <= row["median_us"] <= row["quartile3_us"]
        assert (row["samples"], row["calls"]) == (3, 1)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(record["cells"])
    assert "64 x 256" in result.out
    assert "runs on CUDA devices" in result.out, "who is absent is told"
    assert "6 of 6 cells on the host" in result.err
    assert not list(tmp_path.glob("*.png"))


def test_select_picks_what_is_marked(run, tmp_path):
    assert run("bench", "--device", "host", *QUICK, "--output", tmp_path / "out").code == 0
    for row in rows_of(tmp_path / "out.json"):
        if row["selected"]:
            cell = Cell(ElementKind.F16, 128, 64, 256, 4)
            chosen = bp.select(cell.descriptor(bp.AwqWeightLayout(row["layout"])), "host").sku
            assert row["kernel"].endswith(chosen.variant)


def test_progress_goes_to_standard_error_and_json_alone_to_standard_output(run, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", screen)
    result = run("bench", "--device", "host", *QUICK, "--json", "--output", tmp_path / "out")
    record = json.loads(result.out)
    assert record["left"] == 0
    assert tuple(record["cells"][0]) == COLUMNS
    assert "measuring the AWQ GEMM" in screen.getvalue()


def test_a_suffix_is_not_added_twice_and_the_device_is_named_where_it_is_asked_for(run, tmp_path):
    assert run("bench", "--device", "host", *QUICK, "--output", tmp_path / "{device}" / "out.json").code == 0
    [folder] = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["out.csv", "out.json"]
    assert folder.name == folder.name.lower()
    assert "{" not in folder.name


def test_peers_are_set_beside_ours(run, tmp_path):
    peers = tmp_path / "peers.csv"
    peers.write_text("n_out,k_in,m,best_peer,best_peer_us,best_over_cublas\n64,256,4,marlin,2.5,0.5\n")
    result = run("bench", "--device", "host", *QUICK, "--compare", peers, "--output", tmp_path / "out")
    assert "marlin" in result.out
    assert "x best peer" in result.out
    for row in rows_of(tmp_path / "out.json"):
        assert row["best_peer_us"] == (2.5 if row["kind"] == "ours" else None)
        if row["kind"] == "ours":
            assert row["over_best_peer"] == round(row["median_us"] / 2.5, 4)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_plot_is_drawn_with_the_results_and_again_from_the_file(run, tmp_path):
    words = ("--device", "host", "--output", tmp_path / "out")
    assert run("bench", *words, *SMALL, "--m", "1,4").code == 0
    first = (tmp_path / "out.svg").read_text()
    assert first.count('id="series-') == 5
    assert (tmp_path / "out.png").stat().st_size > 5_000
    (tmp_path / "out.svg").unlink()
    before = (tmp_path / "out.json").read_text()
    assert run("bench", *words, "--draw").code == 0
    assert (tmp_path / "out.svg").read_text() == first
    assert (tmp_path / "out.json").read_text() == before


def test_without_matplotlib_nothing_is_measured_for_a_plot_that_cannot_be_drawn(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    result = run("bench", "--device", "host", *SMALL, "--output", tmp_path / "out")
    assert result.code == 3
    assert "pip install 'baracuda-py[bench]'" in result.err
    assert "--no-plot" in result.err
    assert not list(tmp_path.iterdir())
    assert run("bench", "--device", "host", *SMALL, "--output", tmp_path / "out", "--estimate").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--shape", "4096"), 3, "OCxIC"), (("--shape", "64x100"), 3, "ic"), (("--m", "0"), 3, "positive"),
        (("--m", "1,x"), 2, "list of numbers"), (("--preset", "gpt"), 2, "frontier"), (("--element", "f8"), 2, "f16"),
        (("--element", "f32"), 3, "element"), (("--group-size", 48), 3, "group_size"),
        (("--layout", "spiral"), 2, "tiled"),
        (("--budget", "soon"), 2, "90s"), (("--rotate", "much"), 2, "size"), (("--device", "sm_90"), 3, "GPU of this"),
        (("--block", "long"), 2, "300ms"),
        (("--draw",), 3, "result file"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_is(run, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.setattr(plot, "find_spec", lambda name: True)
    words = ("--no-plot", "--output", tmp_path / "out", "--device", "host", *arguments)
    result = run("bench", *words)
    assert result.code == code, result.err
    assert said in " ".join(result.err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_an_estimate_on_the_host_knows_how_fast_it_is_and_how_many_calls_there_are(monkeypatch):
    def slow(**arguments):
        time.sleep(0.01)

    monkeypatch.setattr(awq_gemm, "awq_gemm_host", slow)
    cell = Cell(ElementKind.F16, 128, 64, 256, 4)
    host = bp.default_registry().device("host")
    lineup = Lineup(bp.default_registry(), host, (bp.AwqWeightLayout.HF_GEMM,), 4 * cell.weight_nbytes)
    bench = Bench(lineup, 5)
    estimate = bench.estimate_s(cell)
    start = time.perf_counter()
    bench.measure(cell)
    assert estimate == pytest.approx(time.perf_counter() - start, rel=1.0)
    assert estimate >= 0.01 * (5 * (4 + 1) + 1), "5 rounds of 4 copies and one more call, and a first one"


def test_the_estimate_has_the_limits_in_it_which_are_measured_first(gpu):
    bench = Bench(Lineup(bp.default_registry(), gpu.gpu, tuple(bp.AwqWeightLayout)))
    one, two = (bench.ceilings_s(elements) for elements in ([ElementKind.F16], [ElementKind.F16, ElementKind.BF16]))
    assert 0 < one <= two
    assert not gpu.driver.log


FILES = (".csv", ".png", ".svg")


@pytest.mark.parametrize("suffix", FILES)
def test_a_file_that_no_results_go_with_is_not_written_over_unasked(run, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(plot, "find_spec", lambda name: True)
    mine = tmp_path / f"out{suffix}"
    mine.write_text("mine")
    words = ("bench", "--device", "host", *SMALL, "--m", 4, "--output", tmp_path / "out")
    cells = seen(monkeypatch)
    result = run(*words)
    assert result.code == 3
    assert result.err.startswith(f"error: {mine}: ")
    assert "--replace" in result.err
    assert not cells
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert mine.read_text() == "mine"
    assert run(*words, "--estimate").code == 0
    if suffix != ".csv":
        assert run(*words, "--no-plot").code == 0, "it is not written then"
        assert mine.read_text() == "mine"
        return
    assert run(*words, "--no-plot", "--replace").code == 0
    assert mine.read_text().startswith("element,")
    assert run(*words, "--no-plot", "--m", 5).code == 0, "it goes with OUT.json now"


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_what_is_no_file_is_not_written_to(run, tmp_path, monkeypatch, suffix):
    (tmp_path / f"out{suffix}").mkdir()
    cells = seen(monkeypatch)
    result = run("bench", "--device", "host", *SMALL, "--m", 4, "--output", tmp_path / "out", "--no-plot", "--replace")
    assert result.code == 3
    assert "must be a file" in result.err
    assert not cells


def test_what_is_compared_with_is_never_written_over(run, tmp_path):
    peers = tmp_path / "out.csv"
    peers.write_text("n_out,k_in,m,best_peer,best_peer_us,best_over_cublas\n64,256,4,marlin,2.5,0.5\n")
    before = peers.read_text()
    words = ("bench", "--device", "host", *QUICK, "--compare", peers, "--output", tmp_path / "out", "--replace")
    result = run(*words)
    assert result.code == 2
    assert "--compare" in result.err
    assert peers.read_text() == before


def test_an_output_that_cannot_be_written_is_told_in_one_line_before_anything_is_measured(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    cells = seen(monkeypatch)
    result = run("bench", "--device", "host", *QUICK, "--output", tmp_path / "file" / "out")
    assert result.code == 3
    [_, told] = result.err.splitlines()  # the first says how long it would take
    assert told.startswith(f"error: {tmp_path / 'file'}: a folder to write to must be writable: ")
    assert told.endswith("Name another with --output, or make this one writable.")
    assert not cells


# -- on a GPU --------------------------------------------------------------------------------------------------------


def test_medians_are_what_the_gpus_clock_says(run, gpu, tmp_path):
    result = run("bench", *QUICK, "--block", "300ms", "--output", tmp_path / "out")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["gpu"], record["capability"], record["cuda_driver_api"]) == ("Fake 90", "sm_90", 13010)
    assert record["block_us"] == 3e5
    assert "selected" not in record
    times = {(row["kind"], row["kernel"]): row["median_us"] for row in record["cells"] if not row["absent"]}
    assert times["ours", "sm80.bespoke.small_m_oc_major"] == 7.0
    assert times["ours", "sm80.bespoke.stream_tiled"] == 2.0
    assert times["fp8", "sm90a.bespoke.fp8_tiled"] == 4.0
    assert times["fp8", "quantize_per_token, sm90a.bespoke.fp8_tiled"] == 5.5
    assert {name: times["read", name] for name in READS} == READS
    absent = {row["kind"]: row["absent"] for row in record["cells"] if row["absent"]}
    assert absent.keys() == {"dense", "int4"}, "no cuBLAS and no torch with CUDA here"
    assert all(absent.values())
    assert {row["layout"] for row in record["cells"] if row["selected"]} == {"oc_major", "hf_gemm", "tiled"}
    driver = gpu.driver
    assert (driver.live_events, driver.graphs, driver.streams, driver.capturing) == (set(), {}, 0, None)


def test_contenders_of_a_cell_take_turns_behind_a_replay_of_themselves(gpu, monkeypatch):
    order = []
    launch = gpu.driver._cuGraphLaunch

    def noted(graph, stream):
        order.append(graph)
        launch(graph, stream)

    monkeypatch.setattr(gpu.driver, "_cuGraphLaunch", noted)
    lineup = Lineup(bp.default_registry(), gpu.gpu, (bp.AwqWeightLayout.TILED,), 0)
    found = Bench(lineup, 3).measure(Cell(ElementKind.F16, 128, 64, 256, 4))
    count = len(found.times)
    graphs, timed = order[:count], order[count:]
    assert len(set(graphs)) == count > 2
    assert timed[::2] == timed[1::2]
    assert [sorted(timed[start : start + 2 * count : 2]) for start in range(0, 6 * count, 2 * count)] == [
        sorted(graphs)
    ] * 3


def test_what_is_selected_alone_is_recorded_as_that(run, gpu, tmp_path):
    result = run("bench", *QUICK, "--selected", "--output", tmp_path / "out")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["selected"] is True
    assert {row["kind"] for row in record["cells"]} == {"ours", "fp8", "dense"}
    mixed = run("bench", *QUICK, "--output", tmp_path / "out")
    assert mixed.code != 0
    assert "--replace" in mixed.err


@pytest.mark.parametrize(
    ("m", "asked", "block_us"), [(63, (), 0.0), (64, (), 1e4), (64, (3e5,), 3e5), (64, (0.0,), 0.0)]
)
def test_many_rows_are_timed_while_they_run_for_a_while(gpu, monkeypatch, m, asked, block_us):
    blocks = []

    @contextmanager
    def noted(registry, device, block_us):
        blocks.append(block_us)
        with timer_on(registry, device) as timer:
            yield timer

    monkeypatch.setattr(bench_run, "timer_on", noted)
    lineup = Lineup(bp.default_registry(), gpu.gpu, (bp.AwqWeightLayout.TILED,), 0)
    found = Bench(lineup, 1, *asked)
    cell = Cell(ElementKind.F16, 128, 64, 256, m)
    assert found.measure(cell).times
    assert blocks == [block_us]
    least_s = 1.5e-6 * block_us * len(found.measure(cell).times)
    assert found.estimate_s(cell) >= least_s


def test_the_selected_are_timed_alone_beside_the_dense_gemm(gpu):
    cell = Cell(ElementKind.F16, 128, 128, 256, 128)
    lineup = Lineup(bp.default_registry(), gpu.gpu, (bp.AwqWeightLayout.TILED, bp.AwqWeightLayout.HF_GEMM), 0)
    everyone = [one for one in lineup.of(cell) if isinstance(one, Contender)]
    found = list(evolve(lineup, selected=True).of(cell))
    assert {one.kind for one in found} == {"ours", "fp8", "dense"}
    alone = [one for one in found if isinstance(one, Contender)]
    assert [one.kind for one in alone] == ["ours", "ours", "fp8"]  # the emulated GPU has no library
    assert {(one.kind, one.kernel, one.layout) for one in alone} == {
        (one.kind, one.kernel, one.layout) for one in everyone if one.selected
    }
    assert not any(one.overlaps for one in alone)
    odd = list(evolve(lineup, selected=True).of(evolve(cell, oc=9)))
    assert {one.kind for one in odd if isinstance(one, Absent)} >= {"ours", "fp8"}  # with the reason


def test_on_the_host_many_rows_are_timed_as_few_are():
    lineup = Lineup(bp.default_registry(), bp.default_registry().device("host"), (bp.AwqWeightLayout.TILED,), 0)
    found = Bench(lineup, 8).measure(Cell(ElementKind.F16, 128, 64, 256, 64)).times
    assert {one.kind for one, _ in found} > {READ}
    assert {spread.samples for _, spread in found} == {8}


def test_of_many_rows_slow_products_and_reads_take_turns_apart(gpu, monkeypatch):
    lineup = Lineup(bp.default_registry(), gpu.gpu, (bp.AwqWeightLayout.TILED,), 0)
    cell = Cell(ElementKind.F16, 128, 64, 256, 64)
    order = []

    def of(number, one):  # the third takes three times as long as the first, and a read half as long
        took = 0.5 if one.kind == READ else 1.0 + number
        return evolve(one, replay=lambda timer: nullcontext(lambda: order.append(number) or took))

    found = [one for one in lineup.of(cell) if not isinstance(one, Absent)]
    found = [of(number, one) for number, one in enumerate(found)]
    monkeypatch.setattr(Lineup, "of", lambda self, cell: found)
    spreads = dict(Bench(lineup, 20).measure(cell).times)
    near = [0, 1]
    assert all(found[number].kind != READ for number in near)
    assert {one.kind for one in found} > {READ}
    assert [spreads[one].samples for one in found] == [20, 20] + [4] * (len(found) - 2)
    probe, turns = order[: len(found)], order[len(found) :]
    assert sorted(probe) == list(range(len(found)))
    assert set(turns[:40]) == set(near)


def test_weights_are_rotated_over_what_is_asked_for(gpu):
    cell = Cell(ElementKind.F16, 128, 64, 256, 4)
    lineup = Lineup(bp.default_registry(), gpu.gpu, (bp.AwqWeightLayout.OC_MAJOR,), 5 * cell.weight_nbytes)
    found = Bench(lineup, 1).measure(cell)
    assert {one.copies for one, _ in found.times} == {5}
    assert all(spread.median_us < 10 for _, spread in found.times), "of one call, not of all"


def test_one_that_cannot_be_loaded_is_absent_and_the_others_are_measured(run, gpu, tmp_path, monkeypatch):
    prepare = type(gpu).prepare

    def fails(self, code, descriptor, device, names, where):
        if code.launches(descriptor, device)[0].entry.startswith("awq_gemm_small_m"):
            raise DriverError(218, "cuLibraryLoadData", name="CUDA_ERROR_INVALID_PTX")
        return prepare(self, code, descriptor, device, names, where)

    monkeypatch.setattr(type(gpu), "prepare", fails)
    result = run("bench", *QUICK, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    rows = {row["kernel"]: row for row in rows_of(tmp_path / "out.json")}
    assert "CUDA_ERROR_INVALID_PTX" in rows["sm80.bespoke.small_m_oc_major"]["absent"]
    assert rows["sm80.bespoke.splitk_oc_major"]["median_us"] == 3.5
    assert "CUDA_ERROR_INVALID_PTX" in result.out


def test_a_device_on_which_nothing_can_be_prepared_ends_the_run(run, gpu, tmp_path, monkeypatch):
    def fails(self, *arguments):
        raise DriverError(700, "cuLaunchKernel", name="CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(type(gpu), "prepare", fails)
    result = run("bench", *QUICK, "--output", tmp_path / "out")
    assert result.code == 1
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in result.err


# -- in parts --------------------------------------------------------------------------------------------------------


def seen(monkeypatch, stop_at=0):
    """Cells that are measured; Ctrl-C at one of them."""
    cells, measure = [], Bench.measure

    def noted(self, cell):
        cells.append(cell.m)
        if len(cells) == stop_at:
            raise KeyboardInterrupt
        return measure(self, cell)

    monkeypatch.setattr(Bench, "measure", noted)
    return cells


def test_what_was_measured_before_a_stop_is_kept_and_not_measured_again(run, gpu, tmp_path, monkeypatch):
    words = ("bench", *SMALL, "--no-plot", "--m", "1,2,4", "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        seen(patch, stop_at=3)
        assert run(*words).code != 0
    assert {row["m"] for row in rows_of(tmp_path / "out.json")} == {1, 2}
    cells = seen(monkeypatch)
    result = run(*words)
    assert result.code == 0, result.err
    assert cells == [4]
    assert "1 of 3 cells" in result.err
    record = json.loads((tmp_path / "out.json").read_text())
    assert {row["m"] for row in record["cells"]} == {1, 2, 4}
    assert len(record["parts"]) == 2
    assert run(*words).code == 0
    assert cells == [4]


def test_cells_measured_in_another_way_are_not_mixed_in(run, gpu, tmp_path):
    out = ("--output", tmp_path / "out")
    assert run("bench", *QUICK, *out).code == 0
    before = (tmp_path / "out.json").read_text()
    result = run("bench", *QUICK, "--samples", 4, *out)
    assert result.code == 3
    assert "samples" in result.err
    assert (tmp_path / "out.json").read_text() == before
    assert run("bench", *QUICK, "--samples", 4, "--replace", *out).code == 0
    assert {row["samples"] for row in rows_of(tmp_path / "out.json")} == {4, None}


def test_an_estimate_is_said_and_nothing_is_done(run, gpu, tmp_path, monkeypatch):
    cells = seen(monkeypatch)
    result = run("bench", "--estimate", "--no-plot", "--output", tmp_path / "out")
    assert result.code == 0, result.err
    assert "72 of 72 cells" in result.err
    assert not cells
    assert not gpu.driver.log
    assert not list(tmp_path.iterdir())


class Slow:
    """A bench whose cells take what is estimated, times `factor`."""

    def __init__(self, seconds, factor):
        self.seconds, self.factor, self.now = seconds, factor, 0.0

    def estimates_s(self, cells):
        return list(self.seconds)

    def measure(self, cell):
        self.now += self.factor * self.seconds[cell]
        return cell


@pytest.mark.parametrize(
    ("factor", "budget_s", "count"), [(1, None, 4), (1, 10, 4), (1, 9.9, 3), (1, 0.5, 0), (3, 10, 2), (0.5, 5, 4)]
)
def test_a_budget_is_kept_by_estimates_that_learn_from_what_cells_take(factor, budget_s, count):
    slow = Slow([1, 2, 3, 4], factor)
    assert list(measured_within(slow, range(4), budget_s, lambda: slow.now)) == list(range(count))
    assert budget_s is None or slow.now <= budget_s


def test_a_forecast_corrects_what_is_left_by_what_was_taken():
    forecast = Forecast([1.0, 2.0, 3.0])
    assert (forecast.next_s, forecast.total_s) == (1.0, 6.0)
    forecast.took(3.0)
    assert (forecast.next_s, forecast.total_s) == (6.0, 15.0)


def test_a_run_without_time_leaves_every_cell_and_says_so(run, gpu, tmp_path):
    words = ("bench", *SMALL, "--no-plot", "--m", "1,2", "--budget", "0.000001s", "--output", tmp_path / "out")
    result = run(*words)
    assert result.code == 0, result.err
    assert "2 of 2 cells are left" in result.out


def test_cells_with_the_same_weights_are_estimated_to_take_less_than_the_first(gpu):
    bench = Bench(Lineup(bp.default_registry(), gpu.gpu, tuple(bp.AwqWeightLayout)))
    cells = [Cell(ElementKind.F16, 128, oc, 4096, m) for oc, m in ((64, 1), (64, 2), (72, 1))]
    first, second, other = bench.estimates_s(cells)
    assert second < first
    assert other == pytest.approx(first, rel=0.5)


@pytest.mark.gpu
def test_on_a_real_gpu_all_are_measured_but_those_that_are_not_installed(run, tmp_path):
    words = ("--shape", "256x512", "--m", "1,32", "--samples", 3, "--rotate", "2MiB", "--no-plot")
    elements = ("--element", "f16", "--element", "bf16")
    result = run("bench", *words, *elements, "--device", "cuda", "--output", tmp_path / "out")
    assert result.code == 0, result.err
    rows = rows_of(tmp_path / "out.json")
    assert {row["layout"] for row in rows if row["selected"]} == {"oc_major", "hf_gemm", "tiled"}
    assert {row["kernel"] for row in rows if row["kind"] == "read" and row["median_us"] > 0} == set(READS)
    for row in rows:
        if row["absent"]:
            assert row["kind"] in ("dense", "int4"), row
            assert "Error" not in row["absent"], row
        else:
            assert row["least_us"] > 0
            assert row["calls"] > 1
