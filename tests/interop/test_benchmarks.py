"""Benchmarks that need torch run where there is no GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(
    not (sys.platform.startswith("linux") and (shutil.which("cc") or shutil.which("gcc"))),
    reason="the stub of libcuda needs Linux and a C compiler",
)
def test_the_module_is_timed_against_the_stub():
    run = [sys.executable, str(BENCHMARKS / "awq_linear.py"), "--stub", "--samples", "100"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in ("AwqLinear, oc_major", "AwqLinear, hf_gemm", "AwqLinear, tiled", "torch.nn.Linear"):
        assert f" {name} " in done.stdout
