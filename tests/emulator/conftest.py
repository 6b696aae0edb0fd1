"""The emulated GPU as fixtures. Everything here is skipped where it cannot be built, with the reason.

What runs on it is no run on a GPU and counts as none: it shows indexing, masking, which barriers and waits there are,
and the rounding that the emulator models.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import baracuda_py
from baracuda_py.ops.gemm import dense_gemm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "backends" / "cublaslt"))

from cuda_emulator.backend import EmulatorBackend, Modules, emulated_registry
from cuda_emulator.compiler import problem


@pytest.fixture(scope="session")
def modules(request: pytest.FixtureRequest) -> Modules:
    """Every module, compiled for the CPU; kept in pytest's cache folder, by content."""
    if problem():
        pytest.skip(problem())
    return Modules(Path(request.config.cache.mkdir("cuda_emulator")))


@pytest.fixture(autouse=True)
def _small_library_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double of cuBLASLt needs no workspace, and 32 MiB would be fenced, filled and compared at every run."""
    monkeypatch.setattr(dense_gemm, "_WORKSPACE_BYTES", 1024)


@pytest.fixture
def backend(modules: Modules) -> EmulatorBackend:
    """A fresh emulated GPU."""
    return EmulatorBackend(modules)


@pytest.fixture
def registry(backend: EmulatorBackend, monkeypatch: pytest.MonkeyPatch):
    """The built-in ops over that GPU. It is the default registry too, from which device arrays take their memory."""
    made = emulated_registry(backend)
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: made)
    return made
