"""Every driver call may fail: the error names it, and the process goes on."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import driver as cuda

import baracuda_py as bp
from baracuda_py.errors import BaracudaError, DriverError

PROBES = {"cuInit", "cuDriverGetVersion"}


def scenario(stub: Any) -> None:
    """Everything the backend can be asked for, once."""
    import numpy as np

    stream = stub.kit.ProtocolStream(stub.stream(0))
    plan = stub.registry.select(stub.kit.TinyDescriptor(4, 8, shared=64 * 1024), stream)
    assert plan.device.ordinal == 0
    assert stub.backend.contexts.count() == 1
    assert stub.backend.contexts.current_ordinal() == 0
    x = bp.to_device(np.ones((4, 8), np.float16), 0)
    y = bp.to_device(np.full((4, 8), 7, np.float16), 0)
    workspace = bp.allocate_workspace(plan)
    plan.run(stream, workspace, stub.kit.TinyArgs(x, y))
    plan.bind(stub.kit.TinyArgs(x, y), workspace, stream)()
    assert (y.numpy() == 7).all()
    for array in (x, y, workspace.owner):
        array.free()


def in_a_fork(work: Callable[[], Any], log: Path) -> Any:
    """What `work` returns, in a process of its own with a log of its own."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.environ["STUB_LOG"] = str(log)
        try:
            answer = json.dumps(work())
        except BaseException as error:
            answer = json.dumps("".join(traceback.format_exception(error)))
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(process, 0)
    return json.loads(text)


def calls_in(log: Path) -> list[str]:
    return [json.loads(line)["call"] for line in log.read_text().splitlines()]


def test_each_failing_call_is_named_and_the_process_goes_on(stub: Any, tmp_path: str) -> None:
    folder = Path(tmp_path)
    assert in_a_fork(lambda: scenario(stub), folder / "clean") is None
    clean = calls_in(folder / "clean")
    counts = Counter(clean)
    assert set(counts) >= {
        "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain", "cuCtxGetCurrent", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuCtxGetDevice",
        "cuCtxSynchronize", "cuMemAlloc", "cuMemFree", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuStreamGetCtx",
        "cuStreamSynchronize", "cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction", "cuFuncGetAttribute",
        "cuFuncSetAttribute", "cuLaunchKernel",
    }  # fmt: skip
    wrong: dict[tuple[str, int], Any] = {}
    for call, count in counts.items():
        for nth in range(1, count + 1):

            def work(call: str = call, nth: int = nth) -> Any:
                stub.fail(call, 999, nth)
                try:
                    scenario(stub)
                except DriverError as error:
                    facts = [error.call, error.result, error.name, call in str(error)]
                else:
                    return "no error"
                if call in PROBES:
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter("always")
                        devices = [stub.plan().device.kind for _ in range(3)]
                    return [*facts, devices == ["host"] * 3 and len(caught) == 1]
                # A pop that failed cannot have popped; after every other failure the thread has no context, as before.
                stack_kept = call == "cuCtxPopCurrent" or int(cuda.cuCtxGetCurrent()[1]) == 0
                scenario(stub)
                return [*facts, stack_kept]

            answer = in_a_fork(work, folder / f"{call}{nth}")
            if answer != [call, 999, "CUDA_ERROR_UNKNOWN", True, True]:
                wrong[call, nth] = answer
    assert not wrong


def refusal(stub: Any, **fields: int) -> DriverError:
    with pytest.raises(DriverError) as caught:
        stub.plan(0, **fields)
    return caught.value


def host_plans(stub: Any) -> list[warnings.WarningMessage]:
    """Warnings of three selections, all of which must fall to the host."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for rows in (4, 5, 4):
            assert stub.plan(rows=rows).device.kind == "host"
    return caught


@pytest.mark.stub(driver=12080)
def test_an_old_driver_is_named_with_the_version_it_must_have(stub: Any) -> None:
    error = refusal(stub)
    assert (error.call, error.result, error.name) == ("cuDriverGetVersion", None, "12.8")
    assert "must support CUDA 13.0" in str(error)
    assert "580" in str(error)
    (warning,) = host_plans(stub)
    assert warning.category is RuntimeWarning
    assert "must support CUDA 13.0" in str(warning.message)
    assert refusal(stub) is not error  # a traceback of its own


@pytest.mark.stub(devices=0)
def test_a_machine_without_a_gpu_uses_the_host_silently(stub: Any) -> None:
    error = refusal(stub)
    assert (error.call, error.name, error.result) == ("cuInit", "CUDA_ERROR_NO_DEVICE", 100)
    assert "CUDA_VISIBLE_DEVICES" in str(error)
    assert not host_plans(stub)


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount"])
def test_a_broken_driver_falls_to_the_host_with_one_warning(stub: Any, call: str) -> None:
    stub.fail(call, 999)
    (warning,) = host_plans(stub)
    assert f"{call}: the driver call must succeed (got CUDA_ERROR_UNKNOWN (999))" in str(warning.message)


@pytest.mark.parametrize(
    ("module", "call", "name", "text"),
    [
        ("corrupt", "cuLibraryGetKernel", "CUDA_ERROR_INVALID_PTX", "Parsing error near 'CORRUPT'"),
        ("newer", "cuLibraryGetKernel", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is newer than the driver"),
        ("other_arch", "cuLibraryGetKernel", "CUDA_ERROR_NO_BINARY_FOR_GPU", "compiled for another architecture"),
        ("no_entry", "cuLibraryGetKernel", "CUDA_ERROR_NOT_FOUND", "nowhere of module no_entry for sm80"),
        ("no_ptx", "cuLibraryLoadData", "CUDA_ERROR_INVALID_IMAGE", "the file is no PTX"),
    ],
)
def test_ptx_that_does_not_load_is_named_with_the_reason(
    stub: Any, module: str, call: str, name: str, text: str
) -> None:
    index = stub.kit.MODULE_NAMES.index(module)
    for _ in range(2):
        error = refusal(stub, module=index)
        assert (error.call, error.name) == (call, name)
        assert f"module {module} for sm80" in str(error)
        assert text in str(error)
        assert ("Parsing error" in error.log) == (module == "corrupt")
    stub.plan(0).run(None, bp.allocate_workspace(stub.plan(0)), stub.args())


def test_ptx_that_cannot_be_read_is_named(stub: Any) -> None:
    with pytest.raises(BaracudaError, match=r"absent: the PTX for sm80 must be readable: absent.ptx") as caught:
        stub.plan(0, module=stub.kit.MODULE_NAMES.index("absent"))
    assert caught.value.rule == "ptx"
    assert isinstance(caught.value.__cause__, FileNotFoundError)


WITHOUT_DRIVER = """
import warnings
warnings.simplefilter("error")
import baracuda_py as bp
from baracuda_py.errors import DriverError
d = bp.Int4AwqGemmDescriptor(3, 256, 64)
assert bp.select(d).device.kind == "host"
try:
    bp.select(d, 0)
except DriverError as error:
    assert (error.call, error.result) == ("cuInit", None)
    print(error)
"""


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_driver_the_host_serves_and_the_error_says_what_to_install(broken: bool, tmp_path: Path) -> None:
    if not broken and ctypes.util.find_library("cuda"):
        pytest.skip("this machine has a driver")
    if broken:
        (tmp_path / "libcuda.so.1").write_text("not a library")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    run = [sys.executable, "-c", WITHOUT_DRIVER]
    text = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600)
    assert text.returncode == 0, text.stderr
    assert "libcuda.so.1 must be found" in text.stdout
    assert "branch 580 or newer, or use device='host'" in text.stdout
