"""Blocks of a cluster write to each other's shared memory; what is wrong in that is found."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as bindings
from cuda_emulator.backend import HOPPER, Modules
from cuda_emulator.bench import Bench
from cuda_emulator.driver import EmulatedDriver, LoadedModule
from cuda_emulator.library import Fault, Schedule

from baracuda_py.sys import Entry, Resources

SOURCE = Path(__file__).parent / "kernels" / "clusters.cu"
BLOCK, CLUSTERS = 64, 3
GIVEN = np.arange(1, 1 + CLUSTERS * 2 * BLOCK * 2, dtype=np.float32).reshape(CLUSTERS, 2, BLOCK, 2)
EXPECTED = GIVEN[:, ::-1, ::-1]
SHARED_BYTES = 8 * BLOCK
SCHEDULES = [Schedule(), *map(Schedule, range(1, 8))]

# Defect -> what the emulator must say of it.
DEFECTS = {
    "store_to_a_block_that_has_not_begun": "no cluster barrier has shown that block . of the cluster has begun",
    "begun_for_a_warp_that_is_not_told": "no cluster barrier has shown that block . of the cluster has begun",
    "block_that_ends_ahead_of_stores": "has ended|when the block might have ended",
    "store_to_a_block_that_has_ended": "block 1 of the cluster, to which this thread writes, has ended",
    "relaxed_arrival_ahead_of_the_end": "when the block might have ended",
    "block_barrier_in_place_of_the_clusters": "since the last barrier",
    "store_over_words_that_are_read": "since the last barrier",
    "two_stores_to_the_same_words": "a write to bytes that thread .* wrote since the last barrier",
    "relaxed_arrival_behind_a_store": "a read of bytes that thread .* wrote since the last barrier",
    "store_behind_the_arrival": "since the last barrier|has not written",
    "read_ahead_of_the_wait": "since the last barrier",
    "lane_ahead_of_the_wait": "a read of bytes that thread .* wrote since the last barrier",
    "lane_behind_the_arrival": "a read of bytes that thread .* wrote since the last barrier",
    "end_in_place_of_an_arrival": "a read of bytes that thread .* wrote since the last barrier",
    "arrival_without_a_wait": "arrives at the cluster's barrier again without a wait",
    "wait_without_an_arrival": "waits at the cluster's barrier without an arrival",
    "arrival_in_a_branch": "a warp instruction that not all lanes of its warp reach",
    "warp_that_never_arrives": "in cluster_wait.. for threads that have neither arrived nor ended",
    "mbarrier_of_the_other_block": "there is no mbarrier",
    "partial_barrier_of_the_other_block": "some of its threads do not reach",
    "own_words_as_the_clusters": "a read of bytes that thread .* wrote since|has not written",
    "rank_that_is_none": "the cluster has no block 2",
    "store_past_shared": "8 bytes at offset 512 lie outside the 512 bytes",
    "store_to_misaligned": "8 bytes to the misaligned address",
    "address_of_the_cluster_in_a_copy": "lie outside the 512 bytes",
    "words_of_the_peer_by_a_pointer": "memory of block 0 of the cluster",
    "write_before_the_second_blocks_shared": "wrote beside its 512 bytes of dynamic shared memory",
}


@pytest.fixture(scope="module")
def bench(modules: Modules) -> Bench:
    return Bench(modules, SOURCE)


def _run(
    bench: Bench, name: str, schedule: Schedule | None = None, *, grid: int = 2 * CLUSTERS, block: int = BLOCK,
    cluster: int = 2,
) -> np.ndarray:  # fmt: skip
    return bench.run(
        name, GIVEN, np.empty_like(GIVEN), block=block, grid=grid, cluster=cluster, shared_bytes=SHARED_BYTES,
        schedule=schedule,
    )  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_ends_the_launch_whatever_the_order(bench, name, schedule):
    with pytest.raises(Fault, match=DEFECTS[name]) as fault:
        _run(bench, f"{name}_defect", schedule)
    assert f"{name}_defect, block (" in str(fault.value)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", DEFECTS)
def test_the_same_kernel_without_its_defect_runs(bench, name, schedule):
    assert np.array_equal(_run(bench, f"{name}_sound", schedule), EXPECTED)


def test_every_defect_of_the_file_is_expected(bench):
    assert {name.removesuffix("_defect") for name in bench.names if name.endswith("_defect")} == set(DEFECTS)


def test_a_fault_names_its_block(bench):
    with pytest.raises(Fault, match=r"block \(1, 0, 0\), thread \(0, 0, 0\)"):
        _run(bench, "write_before_the_second_blocks_shared_defect")


@pytest.mark.parametrize(
    ("geometry", "why"),
    [
        ({"grid": 5}, "no multiple of the cluster's blocks"),
        ({"grid": 8, "cluster": 4}, "clusters of 2 blocks"),
        ({"block": 80}, "warps are whole"),
        ({"block": 544}, "1024 threads at most"),
    ],
)
def test_a_launch_that_is_none_is_refused(bench, geometry, why):
    with pytest.raises(Fault, match=why):
        _run(bench, "arrival_in_a_branch_sound", **geometry)


def test_static_shared_memory_is_refused(modules):
    defects = Bench(modules, SOURCE.with_name("defects.cu"))
    words = np.zeros(64, np.uint32)
    with pytest.raises(Fault, match="no static shared memory"):
        defects.run("no_barrier_before_read_sound", words, words, block=64, grid=2, cluster=2, shared_bytes=512)


@pytest.mark.parametrize(("grid", "status"), [(6, "CUDA_SUCCESS"), (5, "CUDA_ERROR_INVALID_VALUE")])
def test_the_driver_takes_the_cluster_from_the_manifest(bench, grid, status):
    entry = Entry("-", (8, 8), None, {(9, 0): Resources(32, 0, 0, 0, 0)}, cluster=2)
    module: Any = SimpleNamespace(entry=lambda _name: entry)
    driver = EmulatedDriver(HOPPER, lambda _image: LoadedModule(bench.library, module))
    driver.cuCtxPushCurrent(1)
    _, loaded = driver.cuLibraryLoadData(b"")
    _, function = driver.cuLibraryGetKernel(loaded, b"store_over_words_that_are_read_sound")
    out = np.zeros_like(GIVEN)
    slots = (ctypes.c_uint64 * 2)(GIVEN.ctypes.data, out.ctypes.data)
    base = ctypes.addressof(slots)
    parameters = (ctypes.c_void_p * 2)(base, base + 8)
    found = driver.cuLaunchKernel(function, grid, 1, 1, BLOCK, 1, 1, SHARED_BYTES, 0, ctypes.addressof(parameters), 0)
    assert found == (getattr(bindings.CUresult, status),), driver.fault
    assert np.array_equal(out, EXPECTED if status == "CUDA_SUCCESS" else np.zeros_like(out))
