// Non-maximum suppression: all pairs of boxes at once into a matrix of bits, then one block decides in order of score.
#pragma once

#include "../sampling.h"
#include "common.cuh"

namespace maskrcnn::cuda {

using Bits = unsigned long long;
constexpr int kBits = 64;

/// Intersection over union, rounded after each operation as PyTorch does; NaN where neither box has an area.
__device__ __forceinline__ float iou(const float* a, const float* b) {
  const float width = fmaxf(fminf(a[2], b[2]) - fmaxf(a[0], b[0]), 0);
  const float height = fmaxf(fminf(a[3], b[3]) - fmaxf(a[1], b[1]), 0);
  const float both = mul(height, width);
  const float area_a = mul(a[2] - a[0], a[3] - a[1]), area_b = mul(b[2] - b[0], b[3] - b[1]);
  return both / (add(area_a, area_b) - both);
}

/// Sets the bit j % 64 of overlaps[i][j / 64] where the i-th best box would suppress the j-th. Only words that hold a
/// j > i are written. A block takes kThreads of the i (blockIdx.x) and a word (blockIdx.y, in strides of the grid).
///
/// Args: boxes (N, 4); groups (N,), or null: boxes of different groups leave each other alone; order (N,): of the
/// boxes,
///     by decreasing score.
__global__ void __launch_bounds__(kThreads)
    nms_overlaps(const float* __restrict__ boxes, const int64_t* __restrict__ groups, const int64_t* __restrict__ order,
                 int count, float threshold, Bits* __restrict__ overlaps) {
  struct Others {
    float box[kBits][4];
    int64_t group[kBits];
  };
  auto& others = shared_memory<Others>();
  const int words = (count + kBits - 1) / kBits;
  const int first = blockIdx.x * kThreads, i = first + threadIdx.x;
  float box[4] = {};
  int64_t group = 0;
  if (i < count) {
    for (int k = 0; k < 4; ++k) box[k] = boxes[order[i] * 4 + k];
    if (groups != nullptr) group = groups[order[i]];
  }
  for (int word = first / kBits + blockIdx.y; word < words; word += gridDim.y) {
    const int others_count = min(kBits, count - word * kBits);
    __syncthreads();  // before `others` is written anew
    if (threadIdx.x < others_count) {
      const int64_t other = order[word * kBits + threadIdx.x];
      for (int k = 0; k < 4; ++k) others.box[threadIdx.x][k] = boxes[other * 4 + k];
      others.group[threadIdx.x] = groups != nullptr ? groups[other] : 0;
    }
    __syncthreads();
    if (i >= count || word < i / kBits) continue;
    Bits bits = 0;
    for (int k = 0; k < others_count; ++k) {
      if (word * kBits + k > i && others.group[k] == group && iou(box, others.box[k]) > threshold) bits |= Bits(1) << k;
    }
    overlaps[static_cast<int64_t>(i) * words + word] = bits;
  }
}

/// Goes through the boxes by decreasing score, 64 at a time, and keeps those that no kept one suppresses. One block.
///
/// Args: suppressed: a scratch of a bit for each box; kept: (N,), filled from the front; kept_count: one number.
__global__ void __launch_bounds__(kThreads)
    nms_keep(const Bits* __restrict__ overlaps, const int64_t* __restrict__ order, int count,
             Bits* __restrict__ suppressed, int64_t* __restrict__ kept, int64_t* __restrict__ kept_count) {
  constexpr int kInFlight = 32;  // loads that are under way before the first is waited for
  struct Batch {
    Bits overlaps[kBits];  // among themselves
    Bits kept;
  };
  auto& batch = shared_memory<Batch>();
  const int words = (count + kBits - 1) / kBits, thread = threadIdx.x;
  int64_t total = 0;
  for (int word = thread; word < words; word += kThreads) suppressed[word] = 0;
  for (int now = 0; now < words; ++now) {
    const int first = now * kBits, size = min(kBits, count - first);
    const Bits* rows = overlaps + static_cast<int64_t>(first) * words;
    if (thread < size) batch.overlaps[thread] = rows[static_cast<int64_t>(thread) * words + now];
    __syncthreads();
    if (thread == 0) {
      Bits candidates = ~suppressed[now];
      if (size < kBits) candidates &= (Bits(1) << size) - 1;
      for (int i = 0; i < size; ++i) {
        if (candidates >> i & 1) candidates &= ~batch.overlaps[i];
      }
      batch.kept = candidates;
    }
    __syncthreads();
    const Bits chosen = batch.kept;
    if (thread < size && (chosen >> thread & 1)) {
      kept[total + __popcll(chosen & ((Bits(1) << thread) - 1))] = order[first + thread];
    }
    total += __popcll(chosen);
    for (int word = now + 1 + thread; word < words; word += kThreads) {
      Bits bits = suppressed[word];
      for (int start = 0; start < size; start += kInFlight) {
        Bits row[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          const bool used = chosen >> (start + i) & 1;
          row[i] = used ? rows[static_cast<int64_t>(start + i) * words + word] : 0;
        }
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) bits |= row[i];
      }
      suppressed[word] = bits;
    }
    __syncthreads();  // before the next word of `suppressed` is read
  }
  if (thread == 0) *kept_count = total;
}

}  // namespace maskrcnn::cuda
