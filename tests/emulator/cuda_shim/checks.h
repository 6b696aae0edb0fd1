// Which thread of the block last read and wrote each byte of shared memory, and whether that was since the last
// barrier.
//
// Two threads' accesses to a byte, one of them a write, race unless a __syncthreads() lies between them, or, of one
// warp, a __syncwarp(): other warp instructions order no memory. A copy by cp.async writes its bytes all the time from its issue to the wait of
// the thread that issued it. A byte that the block has not written must not be read.
#pragma once

#include <cstddef>

namespace emulator {

// The block's shared memory: dynamic and static.
void watch_shared(char* dynamic, std::size_t dynamic_nbytes, char* statics, std::size_t static_nbytes);
void begin_block();
void pass_barrier();
void pass_warp_barrier(int warp);

void note_read(int thread, const void* address, std::size_t nbytes);
void note_write(int thread, const void* address, std::size_t nbytes);
void note_copy_issued(int thread, const void* address, std::size_t nbytes);
void note_copy_landed(int thread, const void* address, std::size_t nbytes);

// Index in the block of the thread that runs, and of a lane of its warp.
int running_thread();
int running_thread_of_lane(int lane);

}  // namespace emulator
