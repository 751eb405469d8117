// Pasting of masks: bilinear interpolation of each mask in its box on an image-sized canvas.
#pragma once

#include "../sampling.h"
#include "common.cuh"

namespace maskrcnn::cuda {

struct Canvas {
  int64_t height, width;            // of the image
  int64_t mask_height, mask_width;  // of a mask
  float threshold;                  // negative: no decision is made
};

/// Where a mask is read, along one axis, for one pixel of the image.
struct MaskSample {
  int64_t low;  // the cell before; the other one is the next
  float low_weight, high_weight;

  /// Args: pixel of the image; the box's edges; the mask's length in cells. The roundings are those of the CPU.
  __device__ __forceinline__ MaskSample(int64_t pixel, float from, float to, int64_t length) {
    float unit = (static_cast<float>(pixel) + 0.5f - from) / (to - from) * 2 - 1;
    if (!isfinite(unit)) unit = -2;  // off the mask
    const float at = fmaf(unit + 1, static_cast<float>(length) / 2, -0.5f);
    const float cell = floor(at);
    low = cell >= -1 && cell < static_cast<float>(length) ? static_cast<int64_t>(cell) : length;
    high_weight = at - cell;
    low_weight = 1 - high_weight;
  }
};

/// The pixels along one axis that a box can cover.
__device__ __forceinline__ void covered(double from, double to, int64_t length, int64_t& first, int64_t& end) {
  const auto pixel = [&](double at) {  // NaN: 0
    return at > 0 ? static_cast<int64_t>(fmin(at, static_cast<double>(length))) : 0;
  };
  first = pixel(floor(from) - 1);
  end = pixel(ceil(to) + 1);
}

/// Rounded down. Numbers that no byte holds wrap around, as in PyTorch; NaN is zero.
__device__ __forceinline__ uint8_t to_byte(float value) {
  return fabsf(value) < 0x1p62f ? static_cast<uint8_t>(static_cast<int64_t>(value)) : 0;
}

/// A warp takes a row of one mask's canvas. Only pixels near the box are written: `pasted` (N, height, width) is zero.
__global__ void __launch_bounds__(kThreads)
    paste_masks_kernel(const float* __restrict__ masks, const double* __restrict__ boxes, int64_t count,
                       const __grid_constant__ Canvas canvas, uint8_t* __restrict__ pasted) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= count * canvas.height) return;
  const int64_t index = row / canvas.height, pixel_y = row % canvas.height;
  const double* box = boxes + index * 4;
  int64_t top, bottom, left, right;
  covered(box[1], box[3], canvas.height, top, bottom);
  covered(box[0], box[2], canvas.width, left, right);
  if (pixel_y < top || pixel_y >= bottom) return;

  const float x0 = static_cast<float>(box[0]), y0 = static_cast<float>(box[1]);
  const float x1 = static_cast<float>(box[2]), y1 = static_cast<float>(box[3]);
  const float* mask = masks + index * canvas.mask_height * canvas.mask_width;
  const auto cell = [&](int64_t y, int64_t x) {
    const bool on_mask = y >= 0 && y < canvas.mask_height && x >= 0 && x < canvas.mask_width;
    return on_mask ? mask[y * canvas.mask_width + x] : 0.f;
  };
  const MaskSample y(pixel_y, y0, y1, canvas.mask_height);
  for (int64_t pixel_x = left + threadIdx.x % kWarp; pixel_x < right; pixel_x += kWarp) {
    const MaskSample x(pixel_x, x0, x1, canvas.mask_width);
    float soft = cell(y.low, x.low) * (x.low_weight * y.low_weight);
    soft = fmaf(cell(y.low, x.low + 1), x.high_weight * y.low_weight, soft);
    soft = fmaf(cell(y.low + 1, x.low), x.low_weight * y.high_weight, soft);
    soft = fmaf(cell(y.low + 1, x.low + 1), x.high_weight * y.high_weight, soft);
    pasted[row * canvas.width + pixel_x] = canvas.threshold >= 0 ? soft >= canvas.threshold : to_byte(soft * 255);
  }
}

}  // namespace maskrcnn::cuda
