"""The files that the guides show, put in place and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import baracuda_py
from baracuda_py.sys.sources import Source

TESTS = Path(__file__).parents[1]
SWIGLU = "baracuda_py/sys/src/gated_activation/swiglu/sm80.cu"


def write_files(blocks: Any, page: str, folder: Path) -> set[str]:
    """Write the blocks that are files below `folder`."""
    files = {block.file: block.text for block in blocks(page) if block.file}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return set(files)


def python(folder: Path, *arguments: str) -> str:
    """Run Python with the packages below `folder` in front; its output."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("BARACUDA_PY_NO_PLUGINS", None)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def with_swiglu(blocks: Any, tmp_path: Path) -> Path:
    """A copy of the package and of its generic tests, with the guide's files in it; its PTX is not built."""
    package = Path(baracuda_py.__file__).parent
    shutil.copytree(package, tmp_path / "baracuda_py", ignore=shutil.ignore_patterns("__pycache__"))
    written = write_files(blocks, "docs/guide-add-an-op.md", tmp_path)
    assert SWIGLU in written
    shutil.copy(TESTS.parent / "pyproject.toml", tmp_path)
    for generic in ("conftest.py", "test_harness_host.py"):
        shutil.copy(TESTS / generic, tmp_path / "tests")
    return tmp_path


def run_tests(folder: Path) -> None:
    """The guide's laws, and the generic ones on the guide's op."""
    said = python(folder, "-m", "pytest", "-v", "-p", "no:cacheprovider", "tests", "-k", "swiglu")
    assert "test_a_closed_gate_lets_nothing_through PASSED" in said
    assert "test_every_host_kernel_is_right_on_any_valid_descriptor[swiglu] PASSED" in said


def declare_module(folder: Path) -> None:
    """What the build would write, as far as a dry run reads it."""
    source = Source(folder / "baracuda_py" / "sys", folder / SWIGLU)
    manifest = {
        "module": source.module, "arch": source.arch, "isa": "9.0", "ptx_sha256": "", "constants": source.constants(),
        "serves": ["sm_80"], "assembled_only": ["sm_80"], "entries": {},
    }  # fmt: skip
    path = folder / "baracuda_py" / "sys" / "ptx" / source.arch / f"{source.module}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest), "utf-8")


def toolchain_is_cached() -> bool:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baracuda_py"
    return any(cache.glob("ptx-toolchain-*"))


def test_the_op_of_the_guide_passes_its_tests_and_everyones(with_swiglu: Path) -> None:
    declare_module(with_swiglu)
    run_tests(with_swiglu)


@pytest.mark.skipif(not toolchain_is_cached(), reason="python -m baracuda_py.sys.build has not installed its compiler")
def test_the_kernel_of_the_guide_builds_as_the_guide_says(with_swiglu: Path) -> None:
    python(with_swiglu, "-m", "baracuda_py.sys.build", "gated_activation.swiglu")
    manifest = json.loads((with_swiglu / "baracuda_py/sys/ptx/sm80/gated_activation.swiglu.json").read_text("utf-8"))
    assert set(manifest["entries"]) == {f"swiglu_sm80_{element}" for element in ("f16", "bf16", "f32")}
    run_tests(with_swiglu)


@pytest.fixture
def plug_in(blocks: Callable[[str], list[Any]], tmp_path: Path) -> Path:
    """The guide's plug-in, installed: its entry points as an installer writes them."""
    write_files(blocks, "docs/guide-plugins.md", tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_plug_in_of_the_guide_is_found_and_served(plug_in: Path) -> None:
    python(plug_in, "use_it.py")


def test_a_broken_plug_in_is_named_as_the_guide_says(plug_in: Path) -> None:
    (plug_in / "fancy_ops" / "__init__.py").write_text("raise ImportError('out of order')\n")
    said = python(
        plug_in, "-c",
        "import baracuda_py as bp\n"
        "print(bp.default_registry().plugin_errors)\n"
        "print(bp.select(bp.SoftmaxDescriptor((2, 3)), 'host'))\n",
    )  # fmt: skip
    assert "baracuda_py.ops:fancy" in said
    assert "RuntimeWarning: plug-in 'fancy'" in said
    assert "out of order" in said
    assert "SoftmaxPlan" in said
