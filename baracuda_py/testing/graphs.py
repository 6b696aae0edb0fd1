"""Laws of GPU kernels about streams and CUDA graphs, through driver calls alone."""

from __future__ import annotations

from typing import Any

from baracuda_py.testing.calls import Call, Case
from baracuda_py.testing.data import POISONS, same_bits

__all__ = ["captures_and_replays", "runs_on_a_stream_of_its_own"]

_REPLAYS = 3


def runs_on_a_stream_of_its_own(case: Case) -> None:
    """A run on another stream, given as a handle, computes what it computes on the default one."""
    call = Call.of(case)
    expected = call.run()
    backend: Any = case.registry.backend("cuda")
    driver = backend.driver
    with backend.fresh_stream(case.device) as stream:
        call.poison(POISONS[1])
        call.plan.run(int(stream), call.workspace, call.args)
        driver.call("cuStreamSynchronize", stream)
        assert not case.guarantee.deterministic or same_bits(expected, call.outputs())
        assert not (damage := call.damage()), "; ".join(damage)


def captures_and_replays(case: Case) -> None:
    """`run` and a bound run are captured in a CUDA graph without running, and each replay computes the same bits."""
    call = Call.of(case)
    expected = call.run()
    backend: Any = case.registry.backend("cuda")
    driver = backend.driver
    with backend.fresh_stream(case.device) as stream:
        handle = int(stream)
        bound = call.plan.bind(call.args, call.workspace, handle)
        for enqueue in (lambda: call.plan.run(handle, call.workspace, call.args), bound):
            call.poison(POISONS[0])
            mode = driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            driver.call("cuStreamBeginCapture", stream, mode)
            try:
                enqueue()
            finally:
                graph = driver.call("cuStreamEndCapture", stream)
            assert not call.touched(), "the kernel ran while it was captured"
            executable = driver.call("cuGraphInstantiate", graph, 0)
            for replay in range(_REPLAYS):
                call.poison(POISONS[replay % 2])
                driver.call("cuGraphLaunch", executable, stream)
                driver.call("cuStreamSynchronize", stream)
                assert same_bits(expected, call.outputs()), f"replay {replay + 1} differs from the run"
                assert not (damage := call.damage()), "; ".join(damage)
            driver.call("cuGraphExecDestroy", executable)
            driver.call("cuGraphDestroy", graph)
