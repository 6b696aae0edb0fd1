"""Hypothesis profiles, and the `gpu` marker: skipped without a GPU, or failed where one is required."""

from __future__ import annotations

import gc
import os
import time
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

# Tests run in as many processes as there are cores: threads of BLAS or OpenMP on top of them would wait for one
# another, busily. NumPy and torch read this when they are imported, in the processes that pytest-xdist starts too.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import baracuda_py as bp

REQUIRE_GPU = "BARACUDA_PY_REQUIRE_GPU"

# Host kernels of one descriptor take milliseconds and those of another a second: a deadline would only flicker.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


_LOOP_S = 0.03  # what the loop below takes on a core of a current server that does nothing else


@pytest.fixture
def slowness() -> float:
    """How many times slower than a free core this one is just now, at least 1: limits of time are multiplied by it."""
    start = time.perf_counter()
    for _ in range(1_000_000):
        pass
    return max(1.0, (time.perf_counter() - start) / _LOOP_S)


@cache
def _gpu_problem() -> str:
    problem = bp.default_registry().backend("cuda").problem()  # type: ignore[attr-defined]
    return "" if problem is None else str(problem)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules and the tests themselves, 600,000 objects that live to the end, are looked through no more


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or not _gpu_problem():
        return
    if os.environ.get(REQUIRE_GPU):
        pytest.fail(f"{REQUIRE_GPU} is set, but no GPU can be used: {_gpu_problem()}", pytrace=False)
    pytest.skip(f"needs a GPU: {_gpu_problem()}")
