// Pasting of masks: bilinear interpolation of each mask in its box on an image-sized canvas.
#pragma once

#include "../sampling.h"
#include "common.cuh"

namespace maskrcnn::cuda {

struct Canvas {
  int height, width;            // of the image
  int mask_height, mask_width;  // of a mask
  float threshold;              // negative: no decision is made
};

/// Where a mask is read, along one axis, for one pixel of the image.
struct MaskSample {
  int low;  // the cell before; the other one is the next
  float low_weight, high_weight;

  /// Args: pixel of the image; the box's edges; the mask's length in cells. Each operation is rounded as PyTorch's
  ///     grid_sample does, to make the same decisions.
  __device__ __forceinline__ MaskSample(int pixel, float from, float to, int length) {
    float unit = add(mul((static_cast<float>(pixel) + 0.5f - from) / (to - from), 2), -1);
    if (!isfinite(unit)) unit = -2;  // off the mask, so zero
    const float at = add(mul(add(unit, 1), static_cast<float>(length)), -1) / 2;
    const float cell = floor(at);
    const bool on_mask = cell >= -1 && cell < static_cast<float>(length);
    low = on_mask ? static_cast<int>(cell) : length;
    high_weight = add(at, -cell);
    low_weight = add(1, -high_weight);
  }
};

/// The pixels along one axis that a box can cover.
__device__ __forceinline__ void covered(float from, float to, int length, int& first, int& end) {
  const auto clamp = [&](float pixel) {
    return isnan(pixel) ? 0 : static_cast<int>(fminf(fmaxf(pixel, 0), static_cast<float>(length)));
  };
  first = clamp(floor(from) - 1);
  end = clamp(ceil(to) + 1);
}

/// A warp takes a row of one mask's canvas. Only pixels near the box are written: `pasted` (N, height, width) is zero.
__global__ void __launch_bounds__(kThreads)
    paste_masks_kernel(const float* __restrict__ masks, const float* __restrict__ boxes, int64_t count,
                       const __grid_constant__ Canvas canvas, uint8_t* __restrict__ pasted) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= count * canvas.height) return;
  const int64_t index = row / canvas.height;
  const int pixel_y = static_cast<int>(row % canvas.height);
  const float* box = boxes + index * 4;
  int top, bottom, left, right;
  covered(box[1], box[3], canvas.height, top, bottom);
  covered(box[0], box[2], canvas.width, left, right);
  if (pixel_y < top || pixel_y >= bottom) return;

  const float* mask = masks + index * canvas.mask_height * canvas.mask_width;
  const MaskSample y(pixel_y, box[1], box[3], canvas.mask_height);
  for (int pixel_x = left + threadIdx.x % kWarp; pixel_x < right; pixel_x += kWarp) {
    const MaskSample x(pixel_x, box[0], box[2], canvas.mask_width);
    const auto weighted = [&](int cell_y, int cell_x, float weight) {
      const bool on_mask = cell_y >= 0 && cell_y < canvas.mask_height && cell_x >= 0 && cell_x < canvas.mask_width;
      return on_mask ? mul(mask[static_cast<int64_t>(cell_y) * canvas.mask_width + cell_x], weight) : 0.f;
    };
    float soft = weighted(y.low, x.low, mul(y.low_weight, x.low_weight));
    soft = add(soft, weighted(y.low, x.low + 1, mul(y.low_weight, x.high_weight)));
    soft = add(soft, weighted(y.low + 1, x.low, mul(y.high_weight, x.low_weight)));
    soft = add(soft, weighted(y.low + 1, x.low + 1, mul(y.high_weight, x.high_weight)));
    pasted[row * canvas.width + pixel_x] =
        canvas.threshold >= 0 ? soft >= canvas.threshold : static_cast<uint8_t>(static_cast<int>(mul(soft, 255)));
  }
}

}  // namespace maskrcnn::cuda
