// Where an image's pixels lie on a mask that is pasted into a box, for the CPU and for CUDA.
//
// All is rounded as in torch's grid_sample, on a processor with fused multiply-add.
#pragma once

#include "arithmetic.h"

namespace maskrcnn {

struct Pixels {
  int64_t begin, end;
};

/// The pixels along one axis of an image of `length` that a box can cover: none, where `end` is not after `begin`.
MASKRCNN_HD Pixels covered(double from, double to, int64_t length) {
  const auto pixel = [&](double at) {  // NaN: 0
    return at > 0 ? static_cast<int64_t>(fmin(at, static_cast<double>(length))) : 0;
  };
  return {pixel(floor(from) - 1), pixel(ceil(to) + 1)};
}

/// The two cells of a mask that a pixel lies between, along one axis, and their weights.
struct MaskSample {
  int64_t low;  // the other is the next. One of them or both may lie off the mask, and count as zero
  float low_weight, high_weight;

  /// Args: pixel of the image; the box's edges; the mask's length in cells.
  MASKRCNN_HD MaskSample(int64_t pixel, float from, float to, int64_t length) {
    float unit = (static_cast<float>(pixel) + 0.5f - from) / (to - from) * 2 - 1;
    if (!isfinite(unit)) unit = -2;  // off the mask
    const float at = fmaf(unit + 1, static_cast<float>(length) / 2, -0.5f);
    const float cell = floor(at);
    low = cell >= -1 && cell < static_cast<float>(length) ? static_cast<int64_t>(cell) : -2;
    high_weight = at - cell;
    low_weight = 1 - high_weight;
  }
};

/// A mask's value at a pixel, of the four cells around it: `low_high` is that low along y and high along x.
MASKRCNN_HD float interpolate(const MaskSample& y, const MaskSample& x, float low_low, float low_high, float high_low,
                              float high_high) {
  float value = low_low * (x.low_weight * y.low_weight);
  value = fmaf(low_high, x.high_weight * y.low_weight, value);
  value = fmaf(high_low, x.low_weight * y.high_weight, value);
  return fmaf(high_high, x.high_weight * y.high_weight, value);
}

/// Rounded down. Numbers that no byte holds wrap around, as in torch; NaN is zero.
MASKRCNN_HD uint8_t to_byte(float value) {
  return fabsf(value) < 0x1p62f ? static_cast<uint8_t>(static_cast<int64_t>(value)) : 0;
}

}  // namespace maskrcnn
