"""A package of its own, installed beside baracuda_py, adds an op through the entry point; a broken one is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import baracuda_py

SOURCE = Path(__file__).parent / "plugin_package"

SCRIPT = """
import json, warnings
import numpy as np
import baracuda_py as bp

registry = bp.default_registry()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = [op.name for op in registry.ops()]

import baracuda_toy
descriptor = baracuda_toy.AbsDescriptor(4)
plan = bp.select(descriptor, "host")
x, y = np.array([1, -2, 3, -4], np.float32), np.full(4, np.nan, np.float32)
plan.run(None, bp.Workspace.NONE, baracuda_toy.AbsArgs(x, y))

from baracuda_py.testing.calls import cases
from baracuda_py.testing.harness import laws_for
from baracuda_py.vocab.device import HOST
laws = 0
for case in cases(registry, HOST, plan.kernel):
    for law in laws_for(case):
        law(case)
        laws += 1

w = bp.select(bp.Int4AwqGemmDescriptor(1, 256, 64), "host")
print(json.dumps({
    "names": names, "variant": plan.sku.variant, "y": y.tolist(), "laws": laws, "awq": w.sku.variant,
    "errors": {name: str(error) for name, error in registry.plugin_errors.items()},
    "warnings": [str(warning.message) for warning in caught],
}))
"""


def _write_distribution(target: Path) -> None:
    """Install as pip would: the package, and a dist-info with its metadata and entry points."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text("utf-8"))["project"]
    shutil.copytree(SOURCE / "baracuda_toy", target / "baracuda_toy", ignore=shutil.ignore_patterns("__pycache__"))
    info = target / f"baracuda_toy-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", "utf-8"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    # Written by hand, so that neither a network nor setuptools is needed; the format is that of the packaging guide.
    target = tmp_path_factory.mktemp("site")
    _write_distribution(target)
    return target


def _run(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(target), str(Path(baracuda_py.__file__).parents[1])])
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True)


def test_an_installed_package_adds_an_op_and_a_broken_one_is_named_without_hurting_the_rest(installed):
    done = _run(installed)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "toy_abs" in found["names"]
    assert "half_an_op" not in found["names"]
    assert "int4_awq_gemm" in found["names"]
    assert found["variant"] == "toy_package"
    assert found["y"] == [1.0, 2.0, 3.0, 4.0]
    assert found["laws"] >= 5
    assert found["awq"]
    broken = {name: error for name, error in found["errors"].items() if "toy" in name}
    assert broken == {"baracuda_py.ops:broken_toy": "the broken toy is broken"}
    assert any("broken_toy" in text and "the broken toy is broken" in text for text in found["warnings"])


def test_the_scan_can_be_turned_off(installed):
    done = _run(installed, BARACUDA_PY_NO_PLUGINS="1")
    assert done.returncode != 0
    assert "AbsDescriptor" in done.stderr
    assert "Unsupported" in done.stderr
