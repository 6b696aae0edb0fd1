"""A pytest plugin: which committed PTX modules tests launch, in this process and in the workers of pytest-xdist."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import pytest

from baracuda_py import sys as kernels
from baracuda_py.backends.cuda import CudaBackend
from baracuda_py.backends.cuda.launch import CudaExecutable

LAUNCHED: dict[str, str] = {}  # sha256 of each module by "arch/name"
_modules: WeakKeyDictionary[CudaExecutable, dict[str, str]] = WeakKeyDictionary()


def pytest_sessionstart() -> None:
    """Wrap the backend: an executable's modules count as launched when it is run or a bound run is called."""
    prepare, run, bind = CudaBackend.prepare, CudaExecutable.run, CudaExecutable.bind

    def recorded_prepare(backend: CudaBackend, code: Any, *rest: Any, **named: Any) -> CudaExecutable:
        executable = prepare(backend, code, *rest, **named)
        if code.load is None:
            loaded = [
                kernels.module(launch.module or code.module, (launch.arch or code.arch).name.lower())
                for launch in executable.launches
            ]
            _modules[executable] = {f"{one.arch}/{one.name}": one.sha256 for one in loaded}
        return executable

    def recorded_run(executable: CudaExecutable, *rest: Any) -> None:
        run(executable, *rest)
        LAUNCHED.update(_modules.get(executable, {}))

    def recorded_bind(executable: CudaExecutable, *rest: Any) -> Any:
        bound = bind(executable, *rest)

        def call() -> None:
            bound()
            LAUNCHED.update(_modules.get(executable, {}))

        return call

    CudaBackend.prepare = recorded_prepare  # type: ignore[method-assign]
    CudaExecutable.run = recorded_run  # type: ignore[method-assign]
    CudaExecutable.bind = recorded_bind  # type: ignore[method-assign]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker: what it launched goes to the process that started it."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["launched"] = LAUNCHED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the process that started the workers: one of them ended; one that crashed leaves no output."""
    LAUNCHED.update(getattr(node, "workeroutput", {}).get("launched", {}))
