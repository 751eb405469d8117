// Pasting of masks: bilinear interpolation of each mask in its box on an image-sized canvas.
#pragma once

#include "../pasting.h"
#include "common.cuh"

namespace maskrcnn::cuda {

struct Canvas {
  int64_t height, width;            // of the image
  int64_t mask_height, mask_width;  // of a mask
  float threshold;                  // negative: no decision is made
};

/// A warp takes a row of one mask's canvas. Only pixels near the box are written: `pasted` (N, height, width) is zero.
__global__ void __launch_bounds__(kThreads)
    paste_masks_kernel(const float* __restrict__ masks, const double* __restrict__ boxes, int64_t count,
                       const __grid_constant__ Canvas canvas, uint8_t* __restrict__ pasted) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= count * canvas.height) return;
  const int64_t index = row / canvas.height, pixel_y = row % canvas.height;
  const double* box = boxes + index * 4;
  const Pixels rows = covered(box[1], box[3], canvas.height), columns = covered(box[0], box[2], canvas.width);
  if (pixel_y < rows.begin || pixel_y >= rows.end) return;

  const float x0 = static_cast<float>(box[0]), y0 = static_cast<float>(box[1]);
  const float x1 = static_cast<float>(box[2]), y1 = static_cast<float>(box[3]);
  const float* mask = masks + index * canvas.mask_height * canvas.mask_width;
  const auto cell = [&](int64_t y, int64_t x) {
    const bool on_mask = y >= 0 && y < canvas.mask_height && x >= 0 && x < canvas.mask_width;
    return on_mask ? mask[y * canvas.mask_width + x] : 0.f;
  };
  const MaskSample y(pixel_y, y0, y1, canvas.mask_height);
  for (int64_t pixel_x = columns.begin + threadIdx.x % kWarp; pixel_x < columns.end; pixel_x += kWarp) {
    const MaskSample x(pixel_x, x0, x1, canvas.mask_width);
    const float soft = interpolate(y, x, cell(y.low, x.low), cell(y.low, x.low + 1), cell(y.low + 1, x.low),
                                   cell(y.low + 1, x.low + 1));
    pasted[row * canvas.width + pixel_x] = canvas.threshold >= 0 ? soft >= canvas.threshold : to_byte(soft * 255);
  }
}

}  // namespace maskrcnn::cuda
