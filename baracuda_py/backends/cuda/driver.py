"""The only door to `cuda.bindings`: the driver is probed once, and every CUresult is checked.

Nothing here runs at import. cuda.bindings has no usable type stubs, so its objects are typed `Any`.
"""

from __future__ import annotations

import threading
from typing import Any

from attrs import frozen

from baracuda_py.errors import DriverError

__all__ = ["MINIMUM_DRIVER", "Driver", "probe"]

MINIMUM_DRIVER = 13000  # CUDA 13.0 (driver 580): the first that loads PTX ISA 9.0, which the committed PTX is in
_NO_DEVICE = 100
_UPDATE = "Install an NVIDIA driver of branch 580 or newer"

# CUresult -> (what it means for a module that is loaded, what to do)
_ADVICE = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": ("the PTX is newer than the driver", _UPDATE),
    "CUDA_ERROR_NO_BINARY_FOR_GPU": (
        "the code was compiled for another architecture",
        "Select for this GPU: an 'a' target such as sm_90a loads on its own architecture only",
    ),
    "CUDA_ERROR_INVALID_PTX": (
        "the PTX is corrupt, or for an architecture this GPU is not",
        "Reinstall baracuda_py, or run python -m baracuda_py.sys.build --check in a checkout",
    ),
    "CUDA_ERROR_INVALID_IMAGE": ("the file is no PTX", "Reinstall baracuda_py"),
    "CUDA_ERROR_NOT_FOUND": ("the PTX has no such entry", "Reinstall baracuda_py"),
    "CUDA_ERROR_JIT_COMPILER_NOT_FOUND": (
        "libnvidia-ptxjitcompiler is missing",
        "Install the whole driver; in a container, expose the 'compute' and 'utility' capabilities",
    ),
    "CUDA_ERROR_NOT_INITIALIZED": (
        "this process was forked from one that had used CUDA already",
        "Start it by multiprocessing's 'spawn' or 'forkserver', or fork before anything looks for a GPU",
    ),
    "CUDA_ERROR_NO_DEVICE": ("the driver sees no GPU", "Check nvidia-smi and CUDA_VISIBLE_DEVICES"),
    "CUDA_ERROR_INVALID_DEVICE": ("there is no GPU with that ordinal", "Check CUDA_VISIBLE_DEVICES"),
    "CUDA_ERROR_OUT_OF_MEMORY": ("the GPU's memory is full", "Free some, or use a smaller problem"),
    "CUDA_ERROR_INVALID_HANDLE": (
        "the stream belongs to another context, or was destroyed",
        "Pass a live stream of the plan's device, made in its primary context",
    ),
}


@frozen
class Driver:
    """A driver that answered: its version (13000 is CUDA 13.0), and the bindings module."""

    version: int
    api: Any

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the driver function `name`; its single result, or a tuple of several. DriverError if it fails."""
        status, *results = getattr(self.api, name)(*arguments)
        if status:
            raise self.error(status, name)
        return results[0] if len(results) == 1 else tuple(results)

    def error(self, status: Any, call: str, *, log: str = "", what: str = "") -> DriverError:
        """The DriverError for a CUresult."""
        name = getattr(status, "name", str(status))
        why, fix = _ADVICE.get(name, ("", ""))
        if what:
            why = f"{what}: {why}" if why else what
        return DriverError(int(status), call, name=name, why=why, fix=fix, log=log)


_lock = threading.Lock()
_probed: Driver | DriverError | None = None


def probe() -> Driver | DriverError:
    """The driver, or the reason why there is none to use. The first call takes tens of milliseconds."""
    global _probed
    if _probed is None:
        with _lock:
            if _probed is None:
                _probed = _probe()
    return _probed


def _probe() -> Driver | DriverError:
    try:
        from cuda.bindings import driver as api
    except ImportError as error:
        return DriverError(
            None, "import cuda.bindings.driver", must="cuda-python must be importable", why=str(error),
            fix="Run: pip install 'cuda-python>=13.0,<14'",
        )  # fmt: skip
    try:
        status = api.cuInit(0)[0]
        if status and int(status) != _NO_DEVICE:
            return Driver(0, api).error(status, "cuInit")
        failed, version = api.cuDriverGetVersion()
        if failed:
            return Driver(0, api).error(failed, "cuDriverGetVersion")
        if version < MINIMUM_DRIVER:
            return DriverError(
                None, "cuDriverGetVersion", name=_version_text(version),
                must=f"the driver must support CUDA {_version_text(MINIMUM_DRIVER)}",
                why="the committed PTX is newer than this driver", fix=_UPDATE,
            )  # fmt: skip
        if status:
            return Driver(version, api).error(status, "cuInit")
    except RuntimeError as error:  # cuda.pathfinder.DynamicLibNotFoundError, or a symbol that an old driver lacks
        return DriverError(
            None, "cuInit", must="libcuda.so.1 must be found and complete",
            why=str(error).splitlines()[0], fix=f"{_UPDATE}, or use device='host'",
        )  # fmt: skip
    return Driver(version, api)


def _version_text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
