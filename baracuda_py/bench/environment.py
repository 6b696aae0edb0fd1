"""What a result file says of the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import baracuda_py
from baracuda_py.vocab.device import Device

__all__ = ["COMMIT", "cpu_name", "environment", "versions"]

COMMIT = "BARACUDA_PY_COMMIT"  # environment variable: the commit that is measured
_PACKAGES = ("baracuda-py", "cuda-bindings", "numpy", "ml_dtypes", "attrs", "torch", "nvmath-python", "onnxruntime")


def environment(device: Device) -> dict[str, Any]:
    """GPU or processor, driver, versions; the commit where the environment variable BARACUDA_PY_COMMIT says it.

    What the driver's `nvidia-smi` would say is left out where that cannot be run.
    """
    found = _gpu(device) if device.kind == "cuda" else {"cpu": cpu_name(), "cores": _cores()}
    found |= {
        "platform": platform.platform(), "cpu_count": os.cpu_count(), "python": platform.python_version(),
        "packages": versions(*_PACKAGES),
    }  # fmt: skip
    return found | ({"commit": commit} if (commit := os.environ.get(COMMIT)) else {})


def _gpu(device: Device) -> dict[str, Any]:
    assert device.capability is not None
    cuda: Any = baracuda_py.default_registry().backend("cuda")
    return {
        "gpu": device.name, "capability": "sm_{}{}".format(*device.capability), "sm_count": device.sm_count,
        **_smi(device), "cuda_driver_api": cuda.driver.version,
    }  # fmt: skip


def _smi(device: Device) -> dict[str, str]:
    query = ["nvidia-smi", f"--id={device.ordinal}", "--query-gpu=memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(("memory", "driver"), told.strip().split(", "), strict=False))


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_name() -> str:
    """The processor's name; family and model too on Linux, since virtual machines shorten the name."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(.+?)\s*: (.+)$", cpuinfo.read_text(), flags=re.MULTILINE))
    name: str = fields.get("model name", platform.machine())
    return f"{name} family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else name


def versions(*names: str) -> dict[str, str]:
    """Versions of the installed ones of these distributions."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
