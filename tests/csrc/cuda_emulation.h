// CUDA on the CPU, for tests: enough of it to run the kernels of csrc/cuda/ from their own sources.
//
// Blocks run one after the other. The threads of a block are fibers: each runs up to its next barrier, then another one
// goes on. Between two barriers they take turns from the first to the last, or, by the toss of a coin, from the last to
// the first, so that a missing barrier shows sooner or later; and shared memory is full of rubbish when a block begins.
// What this cannot show is speed, and what happens only between threads that truly run at once.
#pragma once

#include <math.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../../projects_maskrcnn/csrc/check.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#undef assert
#define assert(condition) MASKRCNN_CHECK(condition, #condition)

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;
using std::max;
using std::min;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 0, unsigned y = 0, unsigned z = 0) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockIdx, threadIdx;

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kSharedBytes = 48 << 10;  // what a block has without asking for more

/// What a thread waits for.
enum class Barrier { none, warp, block, never };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Barrier barrier = Barrier::none;
  bool vote = false;
};

inline std::function<void()> kernel;
inline std::vector<Thread> threads;
inline std::vector<uint32_t> ballots;  // of each warp, as of its last barrier
inline int running;
inline ucontext_t scheduler;
inline std::exception_ptr error;
alignas(16) inline unsigned char shared_bytes[kSharedBytes];

/// Lets the others go on until all of the warp, or of the block, have come here. Returns the votes of the warp.
inline uint32_t wait(Barrier barrier, bool vote) {
  const int me = running;
  threads[me].barrier = barrier;
  threads[me].vote = vote;
  swapcontext(&threads[me].context, &scheduler);
  return ballots[me / kWarp];
}

inline void run_kernels() {
  for (;;) {
    try {
      kernel();
    } catch (...) {
      error = std::current_exception();
    }
    wait(Barrier::never, false);
  }
}

inline void create_threads(int count) {
  threads = std::vector<Thread>(count);
  ballots.resize(count / kWarp);
  for (Thread& thread : threads) {
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    makecontext(&thread.context, run_kernels, 0);
  }
}

/// Lets the threads from `first` to `end` pass, if all of them have come to `barrier`.
inline bool release(int first, int end, Barrier barrier) {
  for (int i = first; i < end; i++) {
    if (threads[i].barrier != barrier) return false;
  }
  for (int i = first; i < end; i++) {
    uint32_t& ballot = ballots[i / kWarp];
    if (i % kWarp == 0) ballot = 0;
    ballot |= static_cast<uint32_t>(threads[i].vote) << i % kWarp;
    threads[i].barrier = Barrier::none;
  }
  return true;
}

inline void run_block() {
  static std::minstd_rand coin;
  const int count = static_cast<int>(threads.size());
  memset(shared_bytes, 0xA5, sizeof(shared_bytes));
  do {
    const bool last_first = coin() / 64 % 2;
    for (int turn = 0; turn < count; turn++) {
      running = last_first ? count - 1 - turn : turn;
      if (threads[running].barrier != Barrier::none) continue;
      threadIdx.x = running;
      swapcontext(&scheduler, &threads[running].context);
      if (error) return;
    }
    bool released = false;
    for (int first = 0; first < count; first += kWarp) released |= release(first, first + kWarp, Barrier::warp);
    released |= release(0, count, Barrier::block);
    if (released) continue;
    MASKRCNN_CHECK(release(0, count, Barrier::never), "the threads of a block wait at different barriers");
    return;
  } while (true);
}

/// Runs `run` for every thread of the grid. What it throws stops the grid.
inline void launch(dim3 grid, int threads_per_block, std::function<void()> run) {
  if (static_cast<int>(threads.size()) != threads_per_block) create_threads(threads_per_block);
  kernel = std::move(run);
  gridDim = grid;
  try {
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++) {
      for (blockIdx.x = 0; blockIdx.x < grid.x && !error; blockIdx.x++) run_block();
    }
    if (error) std::rethrow_exception(error);
  } catch (...) {
    threads.clear();  // those that have not ended can never go on
    error = nullptr;
    throw;
  }
}

template <class Storage>
Storage& shared_memory() {
  static_assert(sizeof(Storage) <= kSharedBytes);
  return *reinterpret_cast<Storage*>(shared_bytes);
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::Barrier::block, false); }

inline int __syncthreads_and(int vote) {
  emulation::wait(emulation::Barrier::block, vote);
  return std::all_of(emulation::ballots.begin(), emulation::ballots.end(), [](uint32_t votes) { return votes == ~0u; });
}

inline void __syncwarp() { emulation::wait(emulation::Barrier::warp, false); }

inline unsigned __ballot_sync(unsigned, int vote) { return emulation::wait(emulation::Barrier::warp, vote); }

template <class T>
T __ldg(const T* from) {
  assert(reinterpret_cast<uintptr_t>(from) % sizeof(T) == 0);
  return *from;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorNoKernelImageForDevice, cudaErrorInsufficientDriver };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
