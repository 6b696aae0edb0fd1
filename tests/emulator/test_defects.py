"""The emulator finds what it is there to find, in kernels that have one defect each, and nothing in sound ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_emulator.backend import Modules
from cuda_emulator.bench import Bench
from cuda_emulator.library import Fault, Schedule

SOURCE = Path(__file__).parent / "kernels" / "defects.cu"
THREADS, SHARED_WORDS = 64, 128
GIVEN = np.arange(1000, 1000 + THREADS, dtype=np.uint32)
SCHEDULES = [Schedule(), Schedule(1), Schedule(2)]

# Defect -> what the emulator must say of it.
DEFECTS = {
    "no_barrier_before_read": "since the last barrier|has not written",
    "no_barrier_before_static_read": "since the last barrier|has not written",
    "no_barrier_before_reuse": "since the last barrier",
    "shuffle_as_barrier": "since the last barrier",
    "no_warp_barrier_before_read": "since the last barrier|has not written",
    "no_warp_barrier_before_reuse": "since the last barrier",
    "warp_barrier_for_another_warp": "since the last barrier|has not written",
    "copy_not_waited_for": "a copy of thread .*not waited for",
    "one_copy_too_many_left_pending": "a copy of thread .*not waited for",
    "copy_not_committed": "a copy of thread .*not waited for",
    "no_barrier_after_wait": "since the last barrier|not waited for|has not written",
    "ends_with_copies_in_flight": "ends with asynchronous copies in flight",
    "shared_never_written": "has not written, at offset 20 of dynamic",
    "read_beside_global": "an access to address",
    "write_beside_global": "an access to address",
    "read_past_shared": "512 bytes from the start of 512 bytes of dynamic shared",
    "write_before_shared": "wrote beside its 512 bytes of dynamic shared memory",
    "copy_past_shared": "16 bytes at offset 508 lie outside the 512 bytes",
    "copy_to_misaligned": "16 bytes to the misaligned address",
    "misaligned_vector": r"a misaligned access, at .*defects\.cu",
    "misaligned_streaming_load": "16 bytes to the misaligned address",
    "index_outside_array": r"an index outside its array, at .*defects\.cu",
    "int_overflow": r"a product overflows int, at .*defects\.cu",
    "barrier_in_a_branch": "__syncthreads.., which 1 of 64 threads have left the kernel without",
    "shuffle_in_a_branch": "a warp instruction that not all lanes of its warp reach",
    "different_warp_instructions": "lanes of a warp meet in different instructions",
    "bulk_copy_that_one_warp_does_not_wait_for": "not waited for|has not written",
    "mbarrier_without_fence": "no fence",
    "mbarrier_that_others_are_not_shown": "there is no mbarrier|since the last barrier",
    "bulk_copy_over_words_that_are_read": "since the last barrier|not waited for|more threads arrive",
    "arrival_ahead_of_other_lanes": "since the last barrier|not waited for",
    "more_arrivals_than_a_phase_has": "more threads arrive|not waited for",
    "fewer_bytes_announced_than_come": "more bytes land",
    "more_bytes_announced_than_come": "whose phase never ends",
    "ends_with_bulk_copies_in_flight": "bulk copies in flight",
    "bulk_copy_of_no_multiple_of_16_bytes": "a bulk copy of 252 bytes",
    "no_partial_barrier_before_reuse": "since the last barrier",
    "partial_barrier_that_a_warp_does_not_reach": "some of its threads do not reach",
    "arrival_that_nobody_waits_for": "arrivals at a partial barrier that nobody waits for",
}


@pytest.fixture(scope="module")
def bench(modules: Modules) -> Bench:
    return Bench(modules, SOURCE)


def _run(bench: Bench, name: str, schedule: Schedule) -> np.ndarray:
    return bench.run(name, GIVEN, np.zeros_like(GIVEN), block=THREADS, shared_bytes=4 * SHARED_WORDS, schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_ends_the_launch_whatever_the_order(bench, name, schedule):
    with pytest.raises(Fault, match=DEFECTS[name]) as fault:
        _run(bench, f"{name}_defect", schedule)
    assert f"{name}_defect, block (0, 0, 0), thread (" in str(fault.value)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", DEFECTS)
def test_the_same_kernel_without_its_defect_runs(bench, name, schedule):
    assert np.array_equal(_run(bench, f"{name}_sound", schedule), GIVEN[::-1])


def test_every_defect_of_the_file_is_expected(bench):
    assert {name.removesuffix("_defect") for name in bench.names if name.endswith("_defect")} == set(DEFECTS)


def test_blocks_that_count_on_their_order_are_told_apart_by_schedules(bench):
    def last(schedule: Schedule) -> int:
        out = bench.run("last_block_wins", GIVEN, GIVEN, block=THREADS, grid=THREADS, schedule=schedule)
        return int(out[0])

    assert last(Schedule()) == GIVEN[-1]
    assert len({last(Schedule(seed)) for seed in range(8)}) > 1
    assert last(Schedule(5)) == last(Schedule(5)), "a schedule is a function of its seed"
