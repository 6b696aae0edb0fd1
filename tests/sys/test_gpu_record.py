"""Committed PTX that claims to have run on a GPU has: its very bytes are in the record of a run without failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baracuda_py import sys as kernels
from baracuda_py.sys import parse_arch
from baracuda_py.sys.build import ROOT
from baracuda_py.sys.sources import find_sources

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _clean_runs() -> list[tuple[tuple[int, int], dict[str, str]]]:
    """Capability and launched PTX, `arch/module` to sha256, of every recorded run that passed."""
    runs = []
    for path in sorted(RESULTS.glob("*/gpu-tests.json")):
        record = json.loads(path.read_text("utf-8"))
        tests = record["tests"]
        if not tests["failed"] and not tests["errors"] and tests["passed"]:
            runs.append((parse_arch(record["capability"]), record["ptx"]))
    return runs


@pytest.mark.parametrize("module", kernels.modules(), ids=lambda module: f"{module.arch}/{module.name}")
def test_ptx_that_says_it_ran_on_a_gpu_is_in_a_record(module):
    claimed = set(module.serves) - set(module.assembled_only)
    ran = {capability for capability, ptx in _clean_runs() if ptx.get(f"{module.arch}/{module.name}") == module.sha256}
    assert claimed <= ran, (
        f"no recorded run has launched this PTX on {sorted(claimed - ran)}: run benchmarks/gpu_tests.py there, "
        "or list the architecture as assembled_only"
    )


@pytest.mark.parametrize("source", find_sources(ROOT), ids=lambda source: f"{source.arch}/{source.module}")
def test_only_a_source_excuses_ptx_from_the_record_of_a_gpu_that_has_one(source):
    module = kernels.module(source.module, source.arch)
    recorded = {capability for capability, _ in _clean_runs()}
    assert recorded & set(module.assembled_only) == recorded & {parse_arch(arch) for arch in source.not_run()}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/gpu-tests.json")), ids=lambda path: path.parent.name)
def test_a_record_names_its_machine_and_has_no_failures(path):
    record = json.loads(path.read_text("utf-8"))
    assert record["gpu"]
    assert record["driver"]
    assert record["commit"] != "unknown"
    assert record["tests"]["failed"] == record["tests"]["errors"] == 0
    assert record["tests"]["passed"] > 0
    for tool, found in record.get("sanitizer", {}).items():
        assert found.get("errors", 0) == 0, f"{tool}: {found}"
