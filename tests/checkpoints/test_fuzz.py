"""Spoilt checkpoints, a bounded number: the law of `fuzz.py`, whose long run is in benchmarks/results."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import fuzz
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, build, write
from sparse_files import COMPRESSED, write_folder
from whole_checkpoints import BASES, CONFIG, INDEX, join

from baracuda_py import checkpoints
from baracuda_py.checkpoints.headers import HEADER_LIMIT
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint

REPORTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
ERRORS = (CheckpointError, UnsupportedCheckpoint)
ROUNDS = 250

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NATURALS = st.integers(0, 64) | st.integers(-(2**66), 2**66)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F16", "I32", "BF16", "U8", "F4", "X"]) | JSON,
        "shape": st.lists(NATURALS, max_size=3) | JSON,
        "data_offsets": st.tuples(NATURALS, NATURALS) | JSON,
    }
)
NAMES = st.sampled_from(["a.qweight", "a.scales", "a.qzeros", "qweight", ".scales", "a.g_idx"]) | st.text(max_size=6)
HEADERS = st.dictionaries(NAMES, ENTRY | JSON, max_size=5)
SETTINGS = st.dictionaries(
    st.sampled_from(
        [
            "quant_method",
            "bits",
            "group_size",
            "version",
            "zero_point",
            "config_groups",
            "ignore",
            "desc_act",
            "dynamic",
        ]
    ),
    st.sampled_from(["awq", "gptq", "compressed-tensors", 4, 128, -1, True, "gemm"]) | JSON,
)
slow_is_fine = settings(
    max_examples=ROUNDS, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def read_everything(path):
    """The errors that come out; anything else than the package's own is raised."""
    raised = []
    for _, layer, outcome in fuzz.exercise(path, random.Random(0)):
        if isinstance(outcome, BaseException) and not isinstance(outcome, ERRORS):
            raise outcome
        if isinstance(outcome, BaseException):
            raised.append((layer, outcome))
    return raised


def assert_named(raised, folder):
    for layer, error in raised:
        assert error.file.startswith(str(folder))
        assert error.file in str(error)
        assert error.tensor or not layer


@pytest.mark.parametrize("base", BASES, ids=str)
def test_what_is_whole_is_read_without_an_error(tmp_path, base):
    source = random.Random(1)
    path, _ = write(build(source, [], base), base, tmp_path)
    steps = list(fuzz.exercise(path, source))
    assert {step for step, _, _ in steps} >= {"inspect", "open", "layer", "read", "transcode", "shard"}
    for step, _, outcome in steps:
        if step in ("inspect", "open", "layer", "read"):
            assert outcome in ("ok", "none")


@pytest.mark.parametrize("kind", MUTATIONS)
def test_each_mutation_changes_what_is_written(kind):
    changed = 0
    for base in BASES:
        case, same = build(random.Random(3), [kind], base), build(random.Random(3), [], base)
        changed += (case.files, case.links, bool(case.late)) != (same.files, same.links, False)
    assert changed


@slow_is_fine
@given(header=HEADERS, data=st.binary(max_size=64))
@example(header={".qweight": {"dtype": "I32", "shape": [0], "data_offsets": [0, 0]},
                 "s": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}, data=b"")  # fmt: skip
def test_any_header_is_read_or_refused(tmp_path_factory, header, data):
    folder = tmp_path_factory.mktemp("header")
    (folder / "model.safetensors").write_bytes(join(json.dumps(header).encode(), data))
    (folder / CONFIG).write_text('{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}')
    assert_named(read_everything(folder), folder)


@slow_is_fine
@given(found=SETTINGS | JSON, key=st.sampled_from(["quantization_config", "compression_config", "x"]))
def test_any_configuration_is_read_or_refused(tmp_path_factory, found, key):
    folder = tmp_path_factory.mktemp("config")
    path, _ = write(build(random.Random(0), [], BASES[0]), BASES[0], folder)
    (path / CONFIG).write_text(json.dumps({key: found}))
    assert_named(read_everything(path), path)


@slow_is_fine
@given(
    where=st.dictionaries(NAMES, st.sampled_from(["m.safetensors", "../m.safetensors", "/etc/passwd"]) | JSON) | JSON
)
def test_any_index_is_read_or_refused(tmp_path_factory, where):
    folder = tmp_path_factory.mktemp("index")
    (folder / "m.safetensors").write_bytes(join(b'{"a.scales": {"dtype":"F16","shape":[0],"data_offsets":[0,0]}}', b""))
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    assert_named(read_everything(folder), folder)


def test_the_fuzzer_finds_no_broken_law(tmp_path):
    """In a process of its own, whose audit hook and memory limit bind all that it does."""
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, fuzz.__file__, "--count", str(ROUNDS), "--seed", "7", "--output", report],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(json.loads(report.read_text())["outcomes"]["inspect"].values()) == ROUNDS


@pytest.mark.parametrize(
    ("law", "code"),
    [
        ("reach", "import os; os.listdir('/')"),
        ("reach", "open('/etc/hostname')"),
        ("reach", "import os; os.open('/etc/hostname', 0)"),
        ("time", "while True: pass"),
        ("memory", "bytes(3 << 30)"),
        ("errors", "{}['x']"),
        ("errors: no file", "from baracuda_py.errors import CheckpointError; raise CheckpointError('', 'x')"),
    ],
)
def test_the_fuzzer_sees_each_broken_law(law, code):
    """A reader that breaks a law, in place of `checkpoints.open`."""
    script = (
        "import fuzz\n"
        "fuzz.TIME_LIMIT_S = 0.5\n"
        f"good, calls = fuzz.checkpoints.open, []\n"
        "def bad(path):\n"
        "    calls.append(path)\n"
        f"    if len(calls) > {len(BASES)}: exec({code!r})\n"
        "    return good(path)\n"
        "fuzz.checkpoints.open = bad\n"
        "fuzz.chosen = lambda number, seed: (fuzz.random.Random(0), fuzz.BASES[0], [])\n"
        "print([one['law'] for one in fuzz.run(range(1), 0).broken])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(fuzz.__file__).parent, capture_output=True, text=True, check=False
    )
    assert f"'{law}'" in done.stdout, done.stdout + done.stderr


def test_the_long_run_is_recorded_and_broke_no_law():
    reports = [json.loads(path.read_text()) for path in REPORTS.glob("*/checkpoints-fuzz.json")]
    assert max(report["inputs"] for report in reports) >= 20_000
    for report in reports:
        assert report["broken_laws"] == []
        assert set(report["mutations"]) == {*MUTATIONS, "none"}


def test_time_spent_in_patterns_of_a_configuration_is_bounded(tmp_path):
    base = next(base for base in BASES if str(base) == "compressed_tensors, single")
    path, _ = write(build(random.Random(0), [], base), base, tmp_path)
    found = json.loads((path / CONFIG).read_text())
    groups = found["quantization_config"]["config_groups"]
    slow = "re:" + ".*" * 3 + "x"
    groups["group_1"] = {**groups["group_0"], "targets": [f"{slow}{number}" for number in range(30_000)]}
    (path / CONFIG).write_text(json.dumps(found))
    opened = checkpoints.open(path)
    name = "x" * 200
    with pytest.raises(CheckpointError, match="less than 2 s") as caught:
        opened.config.rule(name)
    assert (caught.value.file, caught.value.tensor) == (str(path / CONFIG), name)


def test_a_packed_weight_of_another_type_is_refused_by_name(tmp_path):
    parts = {"weight_packed": ("I16", [64, 8]), "weight_scale": ("F16", [64, 1]), "scaled_zeros": ("F16", [8, 8])}
    opened = checkpoints.open(write_folder(tmp_path, {"a": parts}, COMPRESSED))
    with pytest.raises(UnsupportedCheckpoint, match=r"I16 \[64, 8\]") as caught:
        opened["a"]
    assert caught.value.tensor == "a.weight_packed"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_scales_that_are_no_numbers_are_refused_where_a_format_multiplies_them(tmp_path, scale):
    path, _ = write(build(random.Random(0), [], BASES[0]), BASES[0], tmp_path)
    assert BASES[0].format is checkpoints.PackedFormat.AWQ_GEMM
    header = checkpoints.open(path).folder.tensors["model.layers.0.mlp.up_proj.scales"]
    with header.file.open("r+b") as file:
        file.seek(header.offset)
        file.write(np.float16(scale).tobytes())
    layer = checkpoints.open(path)["model.layers.0.mlp.up_proj"]
    with pytest.raises(UnsupportedCheckpoint, match="finite"):
        checkpoints.transcode(layer, checkpoints.PackedFormat.AWQ_GEMV_FAST, lossy=True)


def test_a_header_of_zeros_is_refused_before_it_is_decoded(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(HEADER_LIMIT.to_bytes(8, "little") + b"{")
        opened.truncate(8 + HEADER_LIMIT)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="JSON"):
        checkpoints.open(file)
    assert tracemalloc.get_traced_memory()[1] < 1.1 * HEADER_LIMIT
    tracemalloc.stop()
