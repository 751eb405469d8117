// Non-maximum suppression: all pairs of boxes at once into a matrix of bits, then one block decides in order of score.
#pragma once

#include "../arithmetic.h"
#include "common.cuh"

namespace maskrcnn::cuda {

using Bits = unsigned long long;
constexpr int kBits = 64;

/// Words that have a bit for each of `count` boxes.
MASKRCNN_HD int words_of(int count) { return count / kBits + (count % kBits > 0); }

/// Intersection over union, rounded after each operation as PyTorch does; 0 where neither box has an area.
template <class Real>
__device__ __forceinline__ Real iou(const Real* a, const Real* b) {
  const Real width = fmax(fmin(a[2], b[2]) - fmax(a[0], b[0]), Real(0));
  const Real height = fmax(fmin(a[3], b[3]) - fmax(a[1], b[1]), Real(0));
  const Real both = mul(height, width);
  if (!(both > 0)) return 0;  // most pairs: a division would take the longer
  const Real area_a = mul(a[2] - a[0], a[3] - a[1]), area_b = mul(b[2] - b[0], b[3] - b[1]);
  return both / (add(area_a, area_b) - both);
}

/// Sets the bit j % 64 of overlaps[i][j / 64] where the i-th best box would suppress the j-th. Only words that hold a
/// j > i are written. A block takes kThreads of the i (blockIdx.x) and a word (blockIdx.y, from the first that they
/// write on).
///
/// Args: boxes (N, 4); groups (N,), or null: boxes of different groups leave each other alone; order (N,): the indices
///     of the boxes, by decreasing score.
template <class Real>
__global__ void __launch_bounds__(kThreads)
    nms_overlaps(const Real* __restrict__ boxes, const int64_t* __restrict__ groups, const int64_t* __restrict__ order,
                 int count, Real threshold, Bits* __restrict__ overlaps) {
  struct Others {
    Real box[kBits][4];
    int64_t group[kBits];
  };
  auto& others = shared_memory<Others>();
  const int words = words_of(count), thread = threadIdx.x;
  const int first = blockIdx.x * kThreads, i = first + thread;
  const int word = first / kBits + blockIdx.y;
  if (word >= words) return;
  const int size = min(kBits, count - word * kBits);
  if (thread < size) {
    const int64_t other = order[word * kBits + thread];
    for (int k = 0; k < 4; k++) others.box[thread][k] = boxes[other * 4 + k];
    others.group[thread] = groups != nullptr ? groups[other] : 0;
  }
  __syncthreads();
  if (i >= count || word < i / kBits) return;
  const Real* from = boxes + order[i] * 4;
  const Real box[4] = {from[0], from[1], from[2], from[3]};
  const int64_t group = groups != nullptr ? groups[order[i]] : 0;
  Bits bits = 0;
  for (int k = 0; k < size; k++) {
    if (word * kBits + k > i && others.group[k] == group && iou(box, others.box[k]) > threshold) bits |= Bits(1) << k;
  }
  overlaps[static_cast<int64_t>(i) * words + word] = bits;
}

/// `bits`, or none, without a branch. Args: condition: 0 or 1.
__device__ __forceinline__ Bits only_if(Bits condition, Bits bits) { return (0 - condition) & bits; }

/// Goes through the boxes by decreasing score, 64 at a time, and keeps those that no kept one suppresses. One block.
///
/// Args: suppressed: a scratch of a bit for each box; kept: (N,), filled from the front; kept_count: one number.
__global__ void __launch_bounds__(kThreads, 1)
    nms_keep(const Bits* __restrict__ overlaps, const int64_t* __restrict__ order, int count,
             Bits* __restrict__ suppressed, int64_t* __restrict__ kept, int64_t* __restrict__ kept_count) {
  constexpr int kInFlight = 32;  // loads that are under way before the first is waited for
  struct Batch {
    Bits overlaps[kBits];  // among themselves
    Bits kept;
  };
  auto& batch = shared_memory<Batch>();
  const int words = words_of(count), thread = threadIdx.x;
  int64_t total = 0;
  for (int word = thread; word < words; word += kThreads) suppressed[word] = 0;
  for (int now = 0; now < words; now++) {
    const int first = now * kBits, size = min(kBits, count - first);
    const Bits* rows = overlaps + static_cast<int64_t>(first) * words;
    if (thread < kBits) batch.overlaps[thread] = thread < size ? rows[static_cast<int64_t>(thread) * words + now] : 0;
    __syncthreads();
    if (thread == 0) {
      Bits kept_now = ~suppressed[now];
      if (size < kBits) kept_now &= (Bits(1) << size) - 1;
#pragma unroll
      for (int i = 0; i < kBits; i++) kept_now &= ~only_if(kept_now >> i & 1, batch.overlaps[i]);
      batch.kept = kept_now;
    }
    __syncthreads();
    const Bits kept_now = batch.kept;
    if (thread < kBits && (kept_now >> thread & 1)) {
      kept[total + __popcll(kept_now & ((Bits(1) << thread) - 1))] = order[first + thread];
    }
    total += __popcll(kept_now);
    for (int word = now + 1 + thread; word < words; word += kThreads) {  // so there are kBits rows
      Bits bits = suppressed[word];
      for (int begin = 0; begin < kBits; begin += kInFlight) {
        Bits row[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; i++) row[i] = rows[static_cast<int64_t>(begin + i) * words + word];
#pragma unroll
        for (int i = 0; i < kInFlight; i++) bits |= only_if(kept_now >> (begin + i) & 1, row[i]);
      }
      suppressed[word] = bits;
    }
    // Thread 0 has itself written the word that it reads next; before any other is read come the next barriers.
  }
  if (thread == 0) *kept_count = total;
}

}  // namespace maskrcnn::cuda
