// Where an RoI's samples lie on a feature map, for the CPU and for CUDA.
//
// Coordinates round alike on both, so that every kernel takes the same decisions: which level, which samples are off
// the map, which cells a sample lies between.
#pragma once

#include "arithmetic.h"

namespace maskrcnn {

constexpr int kMaxLevels = 8;
constexpr int kMaxLength = 1 << 28;  // cells of a map along an axis: so numbers of samples are ints

/// What is rounded to whole cells (paper, Table 2c): nothing in RoIAlign, the RoI in RoIWarp, RoI and bins in RoIPool.
enum class Rounding : int { none = 0, roi = 1, bins = 2 };

struct Options {
  int bins_y, bins_x;
  int sampling_ratio;  // samples per bin along each axis; 0: as many as the bin has cells, rounded up
  bool aligned;        // cell centres lie at half coordinates; otherwise at whole ones, and an RoI is a cell or more
  Rounding rounding;
  float canonical_box_size;  // side, in pixels, of a square box that belongs on `canonical_level`
  int canonical_level;
  int finest_level;  // the first map's scale is 2 ** -finest_level
  int num_levels;
};

/// Index of the level that fits a box of corners x0, y0, x1, y1 in pixels (FPN paper, equation 1).
MASKRCNN_HD int level_of(const float* box, const Options& options) {
  if (options.num_levels == 1) return 0;
  const float side = sqrtf(mul(box[2] - box[0], box[3] - box[1]));
  const float level =
      floorf(add(static_cast<float>(options.canonical_level), log2f(add(side / options.canonical_box_size, 1e-8f))));
  const float coarsest = static_cast<float>(options.num_levels - 1);
  return static_cast<int>(fminf(fmaxf(level - static_cast<float>(options.finest_level), 0.f), coarsest));
}

/// A sample lies between two neighbouring cells, `fraction` of the way from `low` to `high`.
template <class Real>
struct Sample {
  int low, high;
  Real fraction;
};

/// The samples of one RoI along one axis, in each of `bins` bins.
template <class Real>
struct Axis {
  Real start, bin;   // of the RoI, and the length of a bin, in cells
  Real count;        // samples per bin: a whole number, but a box may be huge
  int bins, length;  // `length`: cells of the map
  int limit;         // no more samples of a bin than this can lie on the map
  bool whole_cells;  // RoIPool: the samples are the bin's cells

  /// Args: the edges of the RoI in pixels, and the map's scale.
  MASKRCNN_HD Axis(float from, float to, float scale, int bins, int length, const Options& options)
      : bins(bins), length(length), whole_cells(options.rounding == Rounding::bins) {
    const Real offset = options.aligned && !whole_cells ? Real(0.5) : Real(0);
    Real first = mul(static_cast<Real>(from), static_cast<Real>(scale));
    Real last = mul(static_cast<Real>(to), static_cast<Real>(scale));
    if (options.rounding != Rounding::none) {
      first = round(first);
      last = round(last);
    }
    start = add(first, -offset);
    Real size = add(add(last, -offset), -start);
    const bool finite = isfinite(start) && isfinite(size);
    if (whole_cells) size = add(size, Real(1));
    if (!options.aligned || options.rounding != Rounding::none) size = fmax(size, Real(1));
    bin = size / static_cast<Real>(bins);
    count = options.sampling_ratio > 0 ? static_cast<Real>(options.sampling_ratio) : ceil(bin);
    const int most_on_map = 2 * length + 8;  // adaptive samples are more than half a cell apart
    limit = options.sampling_ratio > most_on_map ? options.sampling_ratio : most_on_map;
    if (!finite) count = 0;
  }

  /// Number of samples of bin `p` to look at, the first of them being `first`.
  MASKRCNN_HD int samples(int p, Real& first) const {
    first = 0;
    if (!(count > 0)) return 0;
    if (whole_cells) {
      const Real from = fmin(fmax(add(start, floor(mul(static_cast<Real>(p), bin))), Real(0)), Real(length));
      const Real to = fmin(fmax(add(start, ceil(mul(static_cast<Real>(p + 1), bin))), Real(0)), Real(length));
      first = from;
      return to > from ? static_cast<int>(to - from) : 0;
    }
    if (count > limit) {
      const Real before = floor((Real(-1) - add(start, mul(static_cast<Real>(p), bin))) * count / bin) - 1;
      first = fmax(before, Real(0));
    }
    const Real left = fmin(count - first, static_cast<Real>(limit));
    return left > 0 ? static_cast<int>(left) : 0;
  }

  /// What each of a bin's `samples` weighs in their mean. Those off the map count.
  MASKRCNN_HD Real share(int samples) const { return Real(1) / (whole_cells ? static_cast<Real>(samples) : count); }

  /// The `i`-th sample of bin `p`; false when it lies more than a cell off the map, where it counts as zero.
  MASKRCNN_HD bool at(int p, Real i, Sample<Real>& sample) const {
    if (whole_cells) {
      sample = {static_cast<int>(i), static_cast<int>(i), Real(0)};
      return true;
    }
    Real c = add(add(start, mul(static_cast<Real>(p), bin)), mul(add(i, Real(0.5)), bin) / count);
    if (!(c >= Real(-1) && c <= static_cast<Real>(length))) return false;
    c = fmax(c, Real(0));
    const int low = static_cast<int>(c);
    sample = low >= length - 1 ? Sample<Real>{length - 1, length - 1, Real(0)}
                               : Sample<Real>{low, low + 1, add(c, -static_cast<Real>(low))};
    return true;
  }
};

}  // namespace maskrcnn
