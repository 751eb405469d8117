// What all kernels stand on: number types, 16-byte loads, shared memory, launches.
//
// The same sources run on the CPU, for tests: without nvcc, tests/csrc/cuda_emulation.h stands for CUDA.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulation.h"
#endif

#include <cstdint>
#include <cstring>

#include "../check.h"

namespace maskrcnn::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;  // of every block of every kernel

template <class T>
struct Sums {
  using Type = float;
};
template <>
struct Sums<double> {
  using Type = double;
};
/// What values of type T are weighted and summed in.
template <class T>
using Real = typename Sums<T>::Type;

/// How many blocks of the RoI kernels should fit on a multiprocessor at once. It bounds the registers of a thread.
template <class T>
constexpr int kBlocksPerProcessor = sizeof(T) <= 4 ? 3 : 2;

/// Adds `weight` times each number to `sums`.
template <class Number, int kSize>
__device__ __forceinline__ void add_weighted(Number (&sums)[kSize], Number weight, const Number (&numbers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i++) sums[i] += weight * numbers[i];
}

/// Neighbouring values that one instruction loads or stores, kept as they are in memory for the sake of registers.
template <class T>
struct Pack {
  static constexpr int kSize = 16 / sizeof(T);
  uint4 bits;

  static __device__ __forceinline__ Pack load(const void* from) { return {__ldg(static_cast<const uint4*>(from))}; }

  __device__ __forceinline__ void store(T* to) const { *reinterpret_cast<uint4*>(to) = bits; }

  static __device__ __forceinline__ Pack of(const Real<T> (&numbers)[kSize]) {
    T values[kSize];
#pragma unroll
    for (int i = 0; i < kSize; i++) values[i] = static_cast<T>(numbers[i]);
    Pack pack;
    memcpy(&pack, values, sizeof(pack));
    return pack;
  }

  __device__ __forceinline__ void read(Real<T> (&numbers)[kSize]) const {
    T values[kSize];
    memcpy(values, &bits, sizeof(bits));
#pragma unroll
    for (int i = 0; i < kSize; i++) numbers[i] = static_cast<Real<T>>(values[i]);
  }

  /// Adds `weight` times each value to `sums`.
  __device__ __forceinline__ void add_to(Real<T> (&sums)[kSize], Real<T> weight) const {
    Real<T> numbers[kSize];
    read(numbers);
    add_weighted(sums, weight, numbers);
  }
};

/// The block's shared memory. A kernel has one such structure, without constructors.
template <class Storage>
__device__ __forceinline__ Storage& shared_memory() {
#ifdef __CUDACC__
  __shared__ Storage storage;
  return storage;
#else
  return emulation::shared_memory<Storage>();
#endif
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline const char* remedy(cudaError_t status) {
  switch (status) {
    case cudaErrorNoKernelImageForDevice:
      return ". Build the operators for this GPU: name its compute capability in MASKRCNN_CUDA_ARCHS, such as 75";
    case cudaErrorInsufficientDriver:
      return ". Update the driver, or build the operators with an older CUDA toolkit";
    default:
      return "";
  }
}

inline void check(cudaError_t status) {
  MASKRCNN_CHECK(status == cudaSuccess, "CUDA: ", cudaGetErrorString(status), remedy(status));
}

/// Starts `kernel` on grid_x x grid_y blocks. An empty grid is fine.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, cudaStream_t stream,
            const Arguments&... arguments) {
  if (grid_x == 0 || grid_y == 0) return;
  MASKRCNN_CHECK(grid_x <= INT32_MAX && grid_y <= 65535, "the input is too large for one CUDA launch: ", grid_x, " x ",
                 grid_y, " blocks");
  const dim3 grid(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
#ifdef __CUDACC__
  kernel<<<grid, kThreads, 0, stream>>>(arguments...);
  check(cudaGetLastError());
#else
  emulation::launch(grid, kThreads, [&] { kernel(arguments...); });
#endif
}

}  // namespace maskrcnn::cuda
