"""Runs tests against the stub of libcuda: one fork a test, so that each finds a process that never touched the driver.

Started with LD_LIBRARY_PATH at the stub. Reads one JSON request a line from stdin (test file, function, arguments,
environment), answers with one line on stdout: empty when the test passed, else its traceback as JSON text.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import ModuleType

import cuda.bindings.driver  # noqa: F401  these three before the fork, which makes each test start in milliseconds
import ml_dtypes  # noqa: F401
import numpy  # noqa: F401

import baracuda_py

TIMEOUT_S = 60


def load(path: Path, name: str) -> ModuleType:
    """The module in a file, imported under `name`, once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def child(request: dict, kit: ModuleType, folder: str) -> str:
    """Run one test; its traceback with local variables, empty when it passed."""
    os.environ.update(request["environment"], STUB_LOG=str(Path(folder, "log")))
    signal.alarm(TIMEOUT_S)
    warnings.simplefilter("error")
    module = load(Path(request["path"]), Path(request["path"]).stem)
    test = getattr(module, request["function"])
    try:
        test(**request["arguments"], stub=kit.Stub(ctypes.CDLL("libcuda.so.1"), Path(folder, "log")))
    except BaseException as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return ""


def main() -> None:
    """Serve until stdin ends."""
    kit = load(Path(__file__).parent / "kit.py", "kit")
    baracuda_py.default_registry().ops()  # made here, not yet in touch with the driver
    for line in sys.stdin:
        reading, writing = os.pipe()
        with tempfile.TemporaryDirectory() as folder:
            process = os.fork()
            if process == 0:
                os.close(reading)
                text = child(json.loads(line), kit, folder)
                with os.fdopen(writing, "w") as pipe:
                    pipe.write(text)
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                text = pipe.read()
            _, status = os.waitpid(process, 0)
        if status:
            text += f"the test's process ended with status {status} (a signal, if below 128)"
        print(json.dumps(text), flush=True)


if __name__ == "__main__":
    main()
