"""Tests that take `stub` run in a process of their own, against a stub of libcuda; the test process has no driver.

`@pytest.mark.stub(devices=2)` sets the stub's environment (see stub/libcuda.c): devices, capability, driver, fail.
In the test, `stub` is a `kit.Stub`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STUB = Path(__file__).parent / "stub"


class Zygote:
    """The process that forks the tests."""

    def __init__(self, library_path: Path) -> None:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library_path), "OPENBLAS_NUM_THREADS": "1"}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        self._process = subprocess.Popen(
            [sys.executable, str(STUB / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=STUB.parents[3],
        )  # fmt: skip

    def run(self, request: dict[str, object]) -> str:
        """Run one test; its traceback, empty when it passed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        return json.loads(answer) if answer else "the stub's process ended; see its stderr above"

    def close(self) -> None:
        """End it, and close its pipes."""
        assert self._process.stdin is not None
        with self._process:
            self._process.stdin.close()
            self._process.wait(timeout=30)


def _with_library(folder: Path) -> Zygote:
    spec = importlib.util.spec_from_file_location("stub_build", STUB / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    if not sys.platform.startswith("linux"):
        pytest.skip("the stub of libcuda is for Linux")
    if build.compiler() is None:
        pytest.skip("the stub of libcuda needs a C compiler (cc, gcc or clang)")
    build.build(folder)
    return Zygote(folder)


@pytest.fixture(scope="session")
def _zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = _with_library(tmp_path_factory.mktemp("libcuda"))
    yield zygote
    zygote.close()


@pytest.fixture
def stub(_zygote: Zygote) -> Zygote:
    """Here the process that forks; inside the test, a `kit.Stub`."""
    return _zygote


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "stub(devices, capability, driver, fail): environment of the libcuda stub")


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Send a test that takes `stub` to the zygote."""
    zygote = pyfuncitem.funcargs.get("stub")
    if zygote is None:
        return None
    environment: dict[str, str] = {}
    for marker in pyfuncitem.iter_markers("stub"):
        for name, value in marker.kwargs.items():
            environment.setdefault(f"STUB_{name.upper()}", str(value))
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: _plain(pyfuncitem.funcargs[name]) for name in names if name != "stub"}
    text = zygote.run({
        "path": str(pyfuncitem.path), "function": pyfuncitem.originalname, "arguments": arguments,
        "environment": environment,
    })  # fmt: skip
    if text:
        pytest.fail(f"in the stub's process:\n{text}", pytrace=False)
    return True


def _plain(value: object) -> object:
    """A fixture's value as JSON can carry it."""
    return str(value) if isinstance(value, Path) else value
