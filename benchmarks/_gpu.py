"""What a result file says about the GPU and the software that it came from."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import baracuda_py as bp

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("cuda-bindings", "numpy", "ml_dtypes", "attrs", "pytest", "hypothesis", "torch", "nvmath-python")


def gpu_facts() -> dict[str, Any]:
    """GPU, driver, commit and versions. DriverError where there is no GPU."""
    cuda: Any = bp.default_registry().backend("cuda")
    device = cuda.device(0)
    return {
        "gpu": device.name,
        "capability": "sm_{}{}".format(*device.capability),
        "sm_count": device.sm_count,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cuda": f"{cuda.driver.version // 1000}.{cuda.driver.version % 1000 // 10}",
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": commit(),
    }


def commit() -> str:
    """Commit of the working tree, `-dirty` behind it if files differ; `BARACUDA_PY_COMMIT` where there is no git."""
    given = os.environ.get("BARACUDA_PY_COMMIT")
    if given:
        return given
    found = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not found:
        return "unknown"
    return f"{found}-dirty" if _output("git", "-C", str(ROOT), "status", "--porcelain") else found


def slug(name: str) -> str:
    """A folder's name for a GPU: `NVIDIA H200` gives `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
