// The loops worth a vector unit. kernels.cpp is compiled once for each instruction set, and one of them is chosen at
// run time. They use raw pointers alone: an inline function of the standard library, compiled for a newer processor,
// could be the copy that the linker keeps for everyone.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace maskrcnn::cpu {

using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

/// The type that features of type T are summed in.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

/// Channels that are worked on together, so that their sums stay in registers.
template <class Real>
constexpr int kBlock = 128 / sizeof(Real);

/// A sparse matrix in compressed rows: row r holds `weight[k]` in column `index[k]` for k from `first[r]` to `first[r +
/// 1]`.
template <class Real>
struct SparseRows {
  int rows;
  const int32_t* first;
  const int32_t* index;
  const Real* weight;
};

/// The bilinear samples of each bin along one axis: bin b has those from `first[b]` to `first[b + 1]`.
template <class Real>
struct SampleRows {
  int rows;
  const int32_t* first;
  const int32_t* order;  // the sample's number within its bin
  const int32_t *low, *high;
  const Real* fraction;
  const int32_t* considered;  // samples of the bin that were looked at
  const uint8_t* complete;    // whether all of the bin's samples are on the map
};

/// A rectangle of cells; strides count elements.
template <class T>
struct Patch {
  const T* data;
  int64_t channel_stride, row_stride, column_stride;
  int rows, columns;
  int readable;              // columns of the map from the first one on
  const uint8_t* used_rows;  // null: all
};

template <class T>
struct RoiKernels {
  using Real = Sum<T>;

  /// Copies `channels` channels of a patch to [rows][columns][kBlock], zeros after the last channel.
  void (*pack)(const Patch<T>& patch, int channels, Real* packed);
  /// Copies [items][kBlock] to `out[channel * channel_stride + item * item_stride]`.
  void (*unpack)(const Real* packed, int items, int channels, int64_t channel_stride, int64_t item_stride, T* out);
  /// `out[bin * out_stride]`: for each bin the sum over its cells, weighted along y and x, of `blocks` blocks of
  /// channels.
  void (*sum_bins)(const Real* cells, int64_t row_stride, int64_t column_stride, int blocks, const SparseRows<Real>& y,
                   const SparseRows<Real>& x, Real* out, int64_t out_stride);
  /// `out[channel][bin]`: the same for one to eight channels of cells whose columns lie together, as many as a multiple
  /// of eight. `scratch`: room for eight numbers a column and a bin. `ahead`: the cells of the call to come, to be
  /// fetched meanwhile. Not for double.
  void (*sum_columns)(const Patch<T>& cells, int channels, const SparseRows<Real>& y, const SparseRows<Real>& x,
                      const Patch<T>& ahead, Real* scratch, T* out);
  /// `best[bin][kBlock]`, `argmax[bin][kBlock]`: for each bin the greatest of its samples, and its number.
  void (*max_bins)(const Real* cells, int64_t row_stride, int64_t column_stride, const SampleRows<Real>& y,
                   const SampleRows<Real>& x, Real* best, int32_t* argmax);
  /// Adds to a row of cells, `cell_stride` apart, what the bins of one RoI pass back to a block of channels. `y_bin`,
  /// `y_weight`: the `y_count` rows of bins that reach this row of cells. `x`: for each cell its columns of bins.
  /// `scratch`: room for bins_x * kBlock numbers.
  void (*spread_bins)(const Real* bins, int64_t bin_stride, int bins_x, int y_count, const int32_t* y_bin,
                      const Real* y_weight, const SparseRows<Real>& x, Real* scratch, Real* cells, int64_t cell_stride);
};

/// A box of corners (x0, y0) and (x1, y1), with its area as NMS rounds it.
template <class T>
struct Box {
  T x0, y0, x1, y1, area;
};

/// Boxes that NMS compares with at once.
constexpr int kBoxBlock = 16;

/// Boxes by coordinate, so that a vector holds many. One of zeros is no box: it overlaps nothing.
template <class T>
struct BoxBlock {
  T x0[kBoxBlock], y0[kBoxBlock], x1[kBoxBlock], y1[kBoxBlock], area[kBoxBlock];
};

/// Whether the IoU of `box` with any box of `count` blocks is above the threshold.
template <class T>
using AnyIouAbove = bool (*)(const Box<T>& box, const BoxBlock<T>* blocks, int64_t count, T threshold);

struct Kernels {
  const char* name;
  RoiKernels<float> of_float;
  RoiKernels<double> of_double;
  RoiKernels<Half> of_half;
  RoiKernels<BFloat16> of_bfloat16;
  AnyIouAbove<float> any_iou_above_float;
  AnyIouAbove<double> any_iou_above_double;

  template <class T>
  const RoiKernels<T>& roi() const;
  template <class T>
  AnyIouAbove<T> any_iou_above() const;
};

template <>
inline const RoiKernels<float>& Kernels::roi() const {
  return of_float;
}
template <>
inline const RoiKernels<double>& Kernels::roi() const {
  return of_double;
}
template <>
inline const RoiKernels<Half>& Kernels::roi() const {
  return of_half;
}
template <>
inline const RoiKernels<BFloat16>& Kernels::roi() const {
  return of_bfloat16;
}

template <>
inline AnyIouAbove<float> Kernels::any_iou_above() const {
  return any_iou_above_float;
}
template <>
inline AnyIouAbove<double> Kernels::any_iou_above() const {
  return any_iou_above_double;
}

/// Those for this processor.
const Kernels& kernels();

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace maskrcnn::cpu
