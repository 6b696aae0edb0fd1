"""`baracuda-py tune`, on a GPU that is made of host memory and of a clock that only graphs move."""

from __future__ import annotations

import json

import pytest
from attrs import evolve

import baracuda_py as bp
from baracuda_py import tuning
from baracuda_py.plan import new_registry
from baracuda_py.tuning.measure import Tuner
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.tuning import kernel_label

PROBLEM = "m=4,ic=256,oc=128,split_k_iters=1"
DESC = bp.Int4AwqGemmDescriptor(4, 256, 128, split_k_iters=1)


@pytest.fixture
def gpu(gpu):
    gpu.computes = False
    gpu.times_us = {
        "awq_gemm_small_m": 7.0, "awq_gemm_stream": 8.0, "awq_gemm_splitk": 3.0, "awq_gemm_reduce": 0.5,
        "awq_gemm_tiled": 2.0, "awq_gemm_bulk": 6.0,
    }  # fmt: skip
    return gpu


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(tuning.FOLDER, raising=False)
    return tmp_path / "tables"


def test_the_table_has_the_time_of_every_kernel_that_serves(run, gpu, folder):
    result = run("tune", "int4_awq_gemm", "--problem", PROBLEM, "--output", folder, "--samples", 3)
    assert result.code == 0, result.err
    made = tuning.read_table((folder / "fake-90.json").read_text(), "file")
    assert (made.device, made.device.name) == (Device("cuda", None, (9, 0), 132), "Fake 90")
    (problem,) = made.problems["int4_awq_gemm"]
    assert problem.fields == {"m": 4, "ic": 256, "oc": 128, "split_k_iters": 1}
    assert problem.times_us == {
        "sm80.bespoke.small_m_oc_major": 7.0, "sm80.bespoke.stream_oc_major": 8.0,
        "sm80.bespoke.splitk_oc_major": 3.0, "sm80.bespoke.tile_oc_major": 3.0, "sm80.bespoke.direct_oc_major": 3.0,
        "sm90a.bespoke.bulk_oc_major": 6.0,
    }  # fmt: skip
    assert made.origin == {"cuda_driver_api": 13010, "version": bp.__version__, "samples": 3}
    assert "selected so far" in result.out
    assert "2.00 x" in result.out
    assert f"{tuning.FOLDER}={folder}" in result.out


def test_everything_that_was_made_is_gone_again(run, gpu, folder):
    assert run("tune", "int4_awq_gemm", "--problem", PROBLEM, "--output", folder).code == 0
    driver = gpu.driver
    assert (driver.live_events, driver.graphs, driver.streams, driver.capturing) == (set(), {}, 0, None)


def test_other_problems_and_ops_of_a_table_are_kept(run, gpu, folder, monkeypatch):
    monkeypatch.setenv("BARACUDA_PY_COMMIT", "abc")
    layouts = ("", ",weight_layout=hf_gemm", ",weight_layout=tiled")
    for problem in (PROBLEM + layouts[0], PROBLEM + layouts[1]):
        assert run("tune", "int4_awq_gemm", "--problem", problem, "--output", folder).code == 0
    gpu.times_us["awq_gemm_stream"] = 9.0
    more = [word for layout in layouts[1:] for word in ("--problem", PROBLEM + layout)]
    result = run("tune", "int4_awq_gemm", *more, "--output", folder, "--json")
    assert len(json.loads(result.out)["problems"]) == 2
    made = tuning.read_table((folder / "fake-90.json").read_text(), "file")
    times = [
        next(us for label, us in one.times_us.items() if "stream" in label)
        for one in made.problems["int4_awq_gemm"]
    ]
    assert times == [8.0, 9.0, 9.0]
    assert made.origin["commit"] == "abc"


def test_copies_of_the_weights_outsize_the_cache_and_are_shared_by_kernels(gpu):
    weights = 256 * 128 // 2 + 2 * 128 * 2 + 2 * 128 // 2
    tuner = Tuner(bp.default_registry(), gpu.gpu, samples=1, rotated_nbytes=10 * weights - 1)
    tuner.measure(DESC)
    launches = gpu.driver.log.count("launch")
    assert launches == 6 * (10 + 1)  # kernels, and a first call of each
    copied = gpu.driver.log.count("cuMemcpyHtoD")
    tuner.measure(evolve(DESC, m=2))
    assert gpu.driver.log.count("cuMemcpyHtoD") - copied == 1, "only the activation is new"


def test_an_ops_samples_are_drawn_once_for_all_kernels_and_problems_of_the_same_weights(gpu):
    default, drawn = bp.default_registry(), []
    op = default.op("int4_awq_gemm")

    def samples(descriptor, random):
        drawn.append(descriptor)
        return op.samples(descriptor, random)

    registry = new_registry()
    for name in ("host", "cuda"):
        registry.register_backend(default.backend(name))
    registry.register(evolve(op, samples=samples))
    tuner = Tuner(registry, gpu.gpu, samples=1, rotated_nbytes=0)
    tiled = DESC.with_weight_layout(bp.AwqWeightLayout.TILED)
    assert len(tuner.measure(tiled).times_us) > 1
    tuner.measure(evolve(tiled, m=2))
    assert drawn == [tiled]


def test_the_gpu_is_busy_when_a_replay_that_is_timed_is_enqueued(gpu):
    Tuner(bp.default_registry(), gpu.gpu, samples=3, rotated_nbytes=0).measure(DESC)
    log = gpu.driver.log
    starts = [i for i, name in enumerate(log) if log[i : i + 3] == ["cuEventRecord", "cuGraphLaunch", "cuEventRecord"]]
    assert len(starts) == log.count("cuEventElapsedTime") == 3 * 6
    assert {log[i - 1] for i in starts} == {"cuGraphLaunch"}


def stop_at(monkeypatch, number):
    """Ctrl-C while that problem is measured."""
    measure, seen = Tuner.measure, []

    def stopped(self, descriptor):
        seen.append(descriptor)
        if len(seen) == number:
            raise KeyboardInterrupt
        return measure(self, descriptor)

    monkeypatch.setattr(Tuner, "measure", stopped)
    return seen


def test_whoever_stops_the_command_keeps_what_was_measured(run, gpu, folder, monkeypatch):
    stop_at(monkeypatch, 3)
    words = [word for m in (1, 2, 3) for word in ("--problem", f"m={m},ic=256,oc=128")]
    assert run("tune", "int4_awq_gemm", *words, "--output", folder).code != 0
    [path] = folder.iterdir()
    made = tuning.load_table(path)
    assert [one.fields["m"] for one in made.problems["int4_awq_gemm"]] == [1, 2]


def test_a_file_that_is_no_table_is_refused_before_anything_is_measured(run, gpu, folder, monkeypatch):
    seen = stop_at(monkeypatch, 0)
    folder.mkdir()
    (folder / "fake-90.json").write_text("{}")
    result = run("tune", "int4_awq_gemm", "--problem", PROBLEM, "--output", folder)
    assert result.code == 3
    assert "fake-90.json" in result.err
    assert not seen
    assert (folder / "fake-90.json").read_text() == "{}"


def test_a_problem_that_the_op_refuses_is_refused_before_anything_is_measured(run, gpu, folder, monkeypatch):
    seen = stop_at(monkeypatch, 0)
    words = ("--problem", PROBLEM, "--problem", "m=1,ic=100,oc=8")
    assert run("tune", "int4_awq_gemm", *words, "--output", folder).code == 3
    assert not seen
    assert not folder.exists()


def test_a_folder_that_the_environment_names_is_made(run, gpu, folder, monkeypatch):
    monkeypatch.setenv(tuning.FOLDER, str(folder))
    monkeypatch.setattr(bp.default_registry(), "_tables", tuning.table_for)
    result = run("tune", "int4_awq_gemm", "--problem", PROBLEM)
    assert result.code == 0, result.err
    assert (folder / "fake-90.json").exists()
    file = folder / "fake-90.json"
    monkeypatch.setenv(tuning.FOLDER, str(file))
    result = run("tune", "int4_awq_gemm", "--problem", PROBLEM)
    assert result.code == 2
    tuning._tables.cache_clear()


def test_what_is_measured_is_what_select_goes_by(run, gpu, folder, monkeypatch):
    assert run("tune", "int4_awq_gemm", "--problem", PROBLEM, "--output", folder).code == 0
    monkeypatch.setenv(tuning.FOLDER, str(folder))
    tuning._tables.cache_clear()
    registry = bp.default_registry()
    monkeypatch.setattr(registry, "_tables", tuning.table_for)
    monkeypatch.setattr(registry, "_calibrations", {})
    found = registry.explain(DESC, 0)
    assert found.candidates[0].cost_us == pytest.approx(3.0)
    assert kernel_label(found.chosen.sku) != "sm80.bespoke.small_m_oc_major"
    tuning._tables.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("int4_awq_gemm",), 2, "BARACUDA_PY_TUNING"), (("nothing", "--output", "x"), 3, "registered"),
        (("softmax", "--output", "x"), 3, "--problem"),
        (("int4_awq_gemm", "--output", "x", "--problem", "m"), 2, "FIELD"),
        (("int4_awq_gemm", "--output", "x", "--device", "sm_90"), 3, "GPU of this machine"),
        (("int4_awq_gemm", "--output", "x", "--device", "host"), 3, "GPU of this machine"),
        (("int4_awq_gemm", "--output", "x", "--problem", "m=1,ic=100,oc=8"), 3, "ic"),
        (("int4_awq_gemm", "--output", "x", "--problem", "m=1"), 2, "ic and oc must be given"),
        (("softmax", "--output", "x", "--problem", "shap=2"), 2, "none of the fields shape, axis"),
        (("softmax", "--output", "x", "--problem", "shape=4,0,-1,axis=1"), 3, "shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(run, gpu, folder, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    result = run("tune", *arguments)
    assert result.code == code
    assert said in " ".join(result.err.replace("│", " ").split())
    assert not (tmp_path / "x").exists()


def test_the_ops_own_problems_are_valid_and_cover_every_layout():
    op = bp.default_registry().op("int4_awq_gemm")
    problems = list(op.tuned())
    for descriptor in problems:
        op.check(descriptor)
    assert {descriptor.weight_layout for descriptor in problems} == set(bp.AwqWeightLayout)
    assert len(set(problems)) == len(problems) == 3 * 6 * 12


def test_times_are_taken_from_a_result_file(run, gpu, folder, tmp_path):
    out = tmp_path / "awq"
    options = ("--shape", "128x256", "--m", "1,4", "--layout", "oc_major", "--samples", 2, "--no-plot")
    assert run("bench", *options, "--output", out).code == 0
    assert run("tune", "int4_awq_gemm", "--problem", PROBLEM, "--output", folder).code == 0
    result = run("tune", "int4_awq_gemm", "--from", out.with_suffix(".json"), "--output", folder)
    assert result.code == 0, result.err
    made = tuning.load_table(folder / "fake-90.json")
    other, *taken = made.problems["int4_awq_gemm"]
    assert other.fields["split_k_iters"] == 1, "what the file does not hold is kept"
    assert [problem.fields["m"] for problem in taken] == [1, 4]
    rows = json.loads(out.with_suffix(".json").read_text())["cells"]
    for problem in taken:
        own = [row for row in rows if row["m"] == problem.fields["m"] and row["kind"] == "ours" and not row["pdl"]]
        assert problem.times_us == {row["kernel"]: row["median_us"] for row in own if row["median_us"]}
    assert made.origin["from"] == [str(out.with_suffix(".json"))]
    again = tmp_path / "again"
    options = ("--shape", "128x256", "--m", "4,8", "--layout", "oc_major", "--samples", 2, "--no-plot")
    assert run("bench", *options, "--output", again).code == 0
    files = [path.with_suffix(".json") for path in (out, again)]
    assert run("tune", "int4_awq_gemm", "--from", files[0], "--from", files[1], "--output", folder).code == 0
    both = tuning.load_table(folder / "fake-90.json")
    assert [problem.fields["m"] for problem in both.problems["int4_awq_gemm"][1:]] == [1, 4, 8]
    latest = next(row for row in json.loads(files[1].read_text())["cells"] if row["m"] == 4 and row["kind"] == "ours")
    assert both.problems["int4_awq_gemm"][2].times_us[latest["kernel"]] == latest["median_us"]
    assert both.origin["from"] == list(map(str, files))
    other_gpu = json.loads(files[1].read_text()) | {"gpu": "another"}
    files[1].write_text(json.dumps(other_gpu))
    assert run("tune", "int4_awq_gemm", "--from", files[0], "--from", files[1], "--output", folder).code != 0
    assert run("tune", "softmax", "--from", out.with_suffix(".json"), "--output", folder).code != 0


def test_what_is_no_result_file_is_refused_with_advice_that_tune_takes(run, folder, tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    result = run("tune", "int4_awq_gemm", "--from", path, "--output", folder)
    assert result.code == 3
    assert result.err.startswith(f"error: {path}: a result file must be as `baracuda-py bench` writes it")
    assert "Give --from what `baracuda-py bench` wrote" in result.err
    assert "--replace" not in result.err, "tune has no such option"
    assert "--replace" not in run("bench", "--draw", "--output", tmp_path / "other").err, "nothing is measured"
    assert "--replace" in run("bench", "--device", "host", "--no-plot", "--output", tmp_path / "other").err
    assert path.read_text() == "{}"
    assert not folder.exists()


def test_a_result_file_of_the_host_is_refused(run, gpu, folder, tmp_path):
    path = tmp_path / "out.json"
    options = ("--shape", "128x256", "--m", 1, "--layout", "oc_major", "--samples", 2, "--no-plot")
    assert run("bench", *options, "--output", path).code == 0
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in record.items() if key not in ("gpu", "capability")}))
    result = run("tune", "int4_awq_gemm", "--from", path, "--output", folder)
    assert result.code == 3
    assert "it must be of a GPU. Measure it with" in result.err
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(run, gpu, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    tried = stop_at(monkeypatch, 0)
    result = run("tune", "int4_awq_gemm", "--problem", PROBLEM, "--output", tmp_path / "file" / "tables")
    assert result.code == 3
    [told] = result.err.splitlines()
    assert told.startswith(f"error: {tmp_path / 'file' / 'tables'}: a folder to write to must be writable: ")
    assert "--output" in told
    assert not tried
