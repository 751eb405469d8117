// The RoIs and feature maps of a launch, as kernels see them.
#pragma once

#include "../sampling.h"
#include "common.cuh"

namespace maskrcnn::cuda {

/// One level of the features, or of their gradient. The strides count elements.
struct Map {
  void* data;
  int64_t image_stride, channel_stride, row_stride, column_stride;
  int height, width;
  float scale;
};

struct Maps {
  Map level[kMaxLevels];
};

constexpr int kImagesPerLaunch = 64;

/// RoIs `first` to `end`, which are all that lie in images `first_image` to `end_image`. Boxes come with 4 columns,
/// sorted by image; or with 5, the first of which is the image's index, and then a launch takes them all.
struct LaunchRois {
  const float* boxes;
  int columns;
  int first, end;
  int first_image, end_image;
  int image_begin[kImagesPerLaunch + 1];  // with 4 columns: the first RoI of each image, and `end`

  __device__ __forceinline__ const float* corners(int roi) const {
    return boxes + static_cast<int64_t>(roi) * columns + (columns - 4);
  }

  /// Index of the RoI's image; -1 when its column names none.
  __device__ __forceinline__ int image_of(int roi) const {
    if (columns == 5) {
      const float index = boxes[static_cast<int64_t>(roi) * columns];
      return index >= 0 && index < static_cast<float>(end_image) ? static_cast<int>(index) : -1;
    }
    int image = 0;
    while (roi >= image_begin[image + 1]) image++;
    return first_image + image;
  }

  /// Where to look for the RoIs of `image`: from here ...
  __device__ __forceinline__ int begin_of(int image) const {
    return columns == 5 ? first : image_begin[image - first_image];
  }
  /// ... up to here.
  __device__ __forceinline__ int end_of(int image) const {
    return columns == 5 ? end : image_begin[image - first_image + 1];
  }
};

/// The samples of a box on a map, along y or along x.
template <class Real>
__device__ __forceinline__ Axis<Real> axis_of(const float* box, const Map& map, const Options& options, bool along_x) {
  return {along_x ? box[0] : box[1],
          along_x ? box[2] : box[3],
          map.scale,
          along_x ? options.bins_x : options.bins_y,
          along_x ? map.width : map.height,
          options};
}

/// An RoI on the map that it is pooled from. When it names no image, it has no samples.
template <class Real>
struct Roi {
  int image, level;
  Axis<Real> y, x;

  __device__ __forceinline__ Roi(const LaunchRois& rois, const Maps& maps, const Options& options, int roi)
      : image(rois.image_of(roi)),
        level(level_of(rois.corners(roi), options)),
        y(axis_of<Real>(rois.corners(roi), maps.level[level], options, false)),
        x(axis_of<Real>(rois.corners(roi), maps.level[level], options, true)) {
    if (image < 0) y.count = x.count = 0;
  }
};

}  // namespace maskrcnn::cuda
