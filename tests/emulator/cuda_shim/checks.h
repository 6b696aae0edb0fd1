// Which thread of the cluster last read and wrote each byte of shared memory, and whether that was since the last
// barrier.
//
// Two threads' accesses to a byte, one of them a write, race unless a __syncthreads() lies between them, or, of one
// warp, a __syncwarp(): other warp instructions order no memory. A copy by cp.async writes its bytes all the time from its
// issue to the wait of the thread that issued it; a bulk copy from its issue until its mbarrier's phase has ended, and
// for a thread that has not waited for that, for ever. A byte that the block has not written must not be read.
//
// A bulk copy to bytes that a thread wrote, itself or by cp.async, wants a fence of that thread, or of the one that issues it,
// since then.
//
// Memory of a launch that may not have ended is for threads that have waited for it, or know of one that has.
//
// A thread that arrives at an mbarrier passes on what its warp did before its last __syncwarp(), and what it knows of other
// warps; one that waits for the phase gets to know it. A partial barrier does both for its threads; those that
// arrive there without waiting pass on as at an mbarrier.
//
// Threads and warps are counted through the blocks of a cluster. A warp that arrives at the cluster's barrier passes on
// what its lanes did before, and what they know; they get to know the others' with the wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {

constexpr int kMaxMbarriers = 1024;  // of a cluster

// Intervals between barriers, phases of mbarriers, fences.
using Count = std::uint32_t;

void begin_launch();
void end_launch();  // of one that did not fail

// The dynamic shared memory of a block of the cluster; static shared memory, which kernels with clusters have none of.
void watch_dynamic(int block, char* begin, std::size_t nbytes);
void watch_static(char* begin, std::size_t nbytes);
void watch_unfinished(const char* begin, std::size_t nbytes);  // added to; `forget_unfinished` takes all back
void forget_unfinished();
void begin_cluster(int blocks, int threads);  // threads of a block
void pass_barrier(int block);
void pass_warp_barrier(int warp);

// What is known of each warp, as the number of its steps that are over, and of each mbarrier, as phases that have ended.
using Clock = std::vector<Count>;
void note_release(int thread, Clock& clock);        // adds what the thread passes on
void note_acquire(int thread, const Clock& clock);  // adds to what it knows
void note_merge(Clock& clock, const Clock& other);
void note_phase_seen(int thread, int mbarrier, Count phases);
void pass_partial_barrier(const std::vector<int>& threads);

// The cluster's barrier. An arrival that does not release passes on nothing, but that its block has begun.
void note_cluster_arrival(int warp, bool releases, Clock& clock);
void note_cluster_wait(int thread, const Clock& clock);
bool cluster_has_begun(int thread);             // whether the thread knows it of all blocks
int warp_whose_writes_are_unseen(int block);  // remote ones, by all threads of the block, which might have ended; or -1

void note_read(int thread, const void* address, std::size_t nbytes);
bool holds_something(const void* address, std::size_t nbytes);  // whether the block has written, or a copy fills, all of it
void note_write(int thread, const void* address, std::size_t nbytes);
// To the memory of any block.
void note_remote_write(int thread, int block, const void* address, std::size_t nbytes);
void note_copy_issued(int thread, const void* address, std::size_t nbytes);
void note_bulk_copy_issued(int thread, const void* address, std::size_t nbytes);
void note_fence(int thread);  // before bulk copies
void note_copy_landed(int thread, const void* address, std::size_t nbytes);
void note_bulk_copy_landed(const void* address, std::size_t nbytes, int mbarrier, Count phases);
void note_global(int thread, const void* address, std::size_t nbytes);  // of a copy
void note_launch_before_ended(int thread);
void note_mbarrier_used(int thread, const void* address);  // it must have been initialised before

// Index in the cluster of the thread that runs, and of a lane of its warp.
int running_thread();
int running_thread_of_lane(int lane);

}  // namespace emulator
