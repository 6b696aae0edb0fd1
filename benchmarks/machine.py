"""What every result file says of the machine, and where it goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from baracuda_py.bench.environment import COMMIT, environment
from baracuda_py.bench.environment import versions as packages
from baracuda_py.tuning import slug

__all__ = ["check_gpu", "commit", "gpu_environment", "gpu_results", "packages", "run_within", "slug", "write_result"]

ROOT = Path(__file__).resolve().parent
_PACKAGES = ("cuda-bindings", "numpy", "ml_dtypes", "attrs", "pytest", "hypothesis", "torch", "nvmath-python")


def commit() -> str:
    """The commit that is measured, with `+` when the working tree differs from it; BARACUDA_PY_COMMIT where it is set;
    `unknown` outside a checkout."""
    if given := os.environ.get(COMMIT):
        return given

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


_NO_GPU = "error: this needs an NVIDIA GPU; `baracuda-py doctor` says what is missing"


def check_gpu() -> None:
    """End the script, with an error in one line, unless there is a GPU; makes no context on it."""
    import baracuda_py as bp

    backend: Any = bp.default_registry().backend("cuda")
    if backend.problem() is not None:
        raise SystemExit(_NO_GPU)


def _current_gpu() -> Any:
    import baracuda_py as bp

    device = bp.default_registry().current_device()
    if device.kind != "cuda":
        raise SystemExit(_NO_GPU)
    return device


def gpu_environment() -> dict[str, Any]:
    """GPU, driver, commit and versions."""
    return {**environment(_current_gpu()), "packages": packages("baracuda-py", *_PACKAGES), "commit": commit()}


def gpu_results() -> Path:
    """Folder for results of the current GPU."""
    return ROOT / "results" / slug(_current_gpu().name)


def run_within(command: list[str], limit_s: float, **options: Any) -> tuple[int | None, str]:
    """Run a command in a session of its own; its exit status, None if it was stopped at the limit, and what it printed.

    Its children are stopped with it, which would go on using the GPU; so they are where this is interrupted.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
    )
    try:
        printed, _ = process.communicate(timeout=limit_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None, process.communicate()[0]
    return process.returncode, printed


def write_result(path: Path, record: dict[str, Any]) -> Path:
    """Write `record` as JSON and return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
