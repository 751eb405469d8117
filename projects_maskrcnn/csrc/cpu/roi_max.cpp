// The greatest of each bin's samples, and its gradient.
#include "roi.h"

namespace maskrcnn::cpu {

namespace {

/// The samples of an axis, for maxima.
template <class Real>
struct Samples {
  int lowest = 0, cells = 0;
  std::vector<int32_t> first, order, low, high, considered;
  std::vector<Real> fraction;
  std::vector<uint8_t> complete;

  void build(const Axis<Real>& axis) {
    first.assign(1, 0);
    for (auto* v : {&order, &low, &high, &considered}) v->clear();
    fraction.clear();
    complete.clear();
    for (int bin = 0; bin < axis.bins; bin++) {
      Real start;
      const int samples = axis.samples(bin, start);
      for (int k = 0; k < samples; k++) {
        Sample<Real> sample;
        if (!axis.at(bin, start + k, sample)) continue;
        order.push_back(k);
        low.push_back(sample.low);
        high.push_back(sample.high);
        fraction.push_back(sample.fraction);
      }
      const auto on_map = static_cast<int32_t>(low.size()) - first.back();
      considered.push_back(samples);
      complete.push_back(axis.whole_cells || static_cast<Real>(on_map) >= axis.count);
      first.push_back(static_cast<int32_t>(low.size()));
    }
    lowest = low.empty() ? 0 : *std::min_element(low.begin(), low.end());
    cells = low.empty() ? 0 : *std::max_element(high.begin(), high.end()) - lowest + 1;
    for (int32_t& cell : low) cell -= lowest;
    for (int32_t& cell : high) cell -= lowest;
  }

  SampleRows<Real> view() const {
    return {static_cast<int>(first.size()) - 1,
            first.data(),
            order.data(),
            low.data(),
            high.data(),
            fraction.data(),
            considered.data(),
            complete.data()};
  }
};

template <class T>
void maximum(const std::vector<Map<const T>>& maps, const Rois& rois, const std::vector<Roi>& list, const Map<T>& out,
             int32_t* argmax, int64_t channels) {
  using Real = Sum<T>;
  const RoiKernels<T>& kernel = kernels().roi<T>();
  const int bins = rois.options.bins_y * rois.options.bins_x;
  const int64_t bin_stride = out.channel_stride == 1 ? channels : 1;
  share_work(rois.size(), [&](auto next) {
    Samples<Real> y, x;
    std::vector<Real> scratch, best(static_cast<size_t>(bins) * kBlock<Real>);
    std::vector<int32_t> number(best.size());
    for (int64_t r; (r = next()) < rois.size();) {
      const Map<const T>& map = maps[list[r].level];
      y.build(list[r].y<Real>(rois, map));
      x.build(list[r].x<Real>(rois, map));
      for (int64_t channel = 0; channel < channels; channel += kBlock<Real>) {
        const int count = static_cast<int>(std::min<int64_t>(kBlock<Real>, channels - channel));
        const Cells<T> cells =
            cells_of(map, list[r].image, y.lowest, x.lowest, y.cells, x.cells, channel, count, nullptr, scratch);
        kernel.max_bins(cells.data, cells.row_stride, cells.column_stride, y.view(), x.view(), best.data(),
                        number.data());
        const int64_t offset = r * out.image_stride + channel * out.channel_stride;
        kernel.unpack(best.data(), bins, count, out.channel_stride, bin_stride, out.data + offset);
        for (int c = 0; c < count; c++)
          for (int b = 0; b < bins; b++)
            argmax[offset + c * out.channel_stride + b * bin_stride] = number[b * kBlock<Real> + c];
      }
    }
  });
}

/// The threads share the planes of the maps: each gathers from its RoIs, in their order.
template <class T>
void maximum_backward(const Map<const T>& grad, const Map<const int32_t>& argmax, const Rois& rois,
                      const std::vector<Roi>& list, const std::vector<Map<T>>& maps, int64_t channels) {
  using Real = Sum<T>;
  const int64_t num_maps = maps.size() * rois.num_images;
  std::vector<std::vector<int64_t>> of_map(num_maps);
  std::vector<Axis<Real>> ys, xs;
  for (int64_t r = 0; r < rois.size(); r++) {
    of_map[list[r].level * rois.num_images + list[r].image].push_back(r);
    ys.push_back(list[r].y<Real>(rois, maps[list[r].level]));
    xs.push_back(list[r].x<Real>(rois, maps[list[r].level]));
  }
  share_work(num_maps * channels, [&](auto next) {
    std::vector<Real> plane;
    for (int64_t item; (item = next()) < num_maps * channels;) {
      const int64_t channel = item % channels, image = item / channels % rois.num_images;
      const Map<T>& map = maps[item / channels / rois.num_images];
      plane.assign(static_cast<size_t>(map.height) * map.width, 0);
      for (int64_t r : of_map[item / channels]) {
        const T* grads = grad.data + r * grad.image_stride + channel * grad.channel_stride;
        const int32_t* numbers = argmax.data + r * argmax.image_stride + channel * argmax.channel_stride;
        for (int by = 0; by < rois.options.bins_y; by++) {
          for (int bx = 0; bx < rois.options.bins_x; bx++) {
            const int32_t number = numbers[by * argmax.row_stride + bx * argmax.column_stride];
            Real first_y, first_x;
            const int rows = ys[r].samples(by, first_y), columns = xs[r].samples(bx, first_x);
            Sample<Real> y, x;
            if (number < 0 || number >= int64_t{rows} * columns || !ys[r].at(by, first_y + number / columns, y) ||
                !xs[r].at(bx, first_x + number % columns, x))
              continue;
            const Real value = static_cast<Real>(grads[by * grad.row_stride + bx * grad.column_stride]);
            Real* upper = plane.data() + static_cast<int64_t>(y.low) * map.width;
            Real* lower = plane.data() + static_cast<int64_t>(y.high) * map.width;
            upper[x.low] += value * (1 - y.fraction) * (1 - x.fraction);
            upper[x.high] += value * (1 - y.fraction) * x.fraction;
            lower[x.low] += value * y.fraction * (1 - x.fraction);
            lower[x.high] += value * y.fraction * x.fraction;
          }
        }
      }
      T* to = map.data + image * map.image_stride + channel * map.channel_stride;
      for (int64_t i = 0; i < map.height; i++)
        for (int64_t j = 0; j < map.width; j++)
          to[i * map.row_stride + j * map.column_stride] = static_cast<T>(plane[i * map.width + j]);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> roi_max(Tensors features, Tensor boxes, Ints boxes_per_image, Floats scales, int64_t bins_y,
                                   int64_t bins_x, int64_t sampling_ratio, bool aligned, int64_t rounding,
                                   double canonical_box_size, int64_t canonical_level) {
  const Rois rois = check_features(features, boxes, boxes_per_image, scales, bins_y, bins_x, sampling_ratio, aligned,
                                   rounding, canonical_box_size, canonical_level);
  const std::vector<Roi> list = list_rois(rois, boxes_per_image);
  const int64_t channels = features[0].size(1);
  const Ints sizes{rois.size(), channels, bins_y, bins_x};
  Tensor out = empty(features[0], features[0].scalar_type(), sizes, channels_last(features[0]));
  Tensor argmax = empty(features[0], ScalarType::Int, sizes, channels_last(features[0]));
  for_dtype(out.scalar_type(), "features", [&](auto zero) {
    using T = decltype(zero);
    maximum<T>(maps_of<const T>(features), rois, list, maps_of<T>({out})[0], static_cast<int32_t*>(argmax.data_ptr()),
               channels);
  });
  return {out, argmax};
}

Tensors roi_max_backward(Tensor grad, Tensor argmax, Tensor boxes, Ints boxes_per_image, Floats scales,
                         int64_t num_images, Ints heights, Ints widths, int64_t sampling_ratio, bool aligned,
                         int64_t rounding, double canonical_box_size, int64_t canonical_level, bool channels_last) {
  const Rois rois = check_gradient(grad, boxes, boxes_per_image, scales, num_images, heights, widths, sampling_ratio,
                                   aligned, rounding, canonical_box_size, canonical_level);
  check_argmax(argmax, grad);
  const std::vector<Roi> list = list_rois(rois, boxes_per_image);
  Tensors result = empty_gradients(grad, num_images, heights, widths, channels_last);
  for_dtype(grad.scalar_type(), "grad", [&](auto zero) {
    using T = decltype(zero);
    maximum_backward<T>(maps_of<const T>({grad})[0], maps_of<const int32_t>({argmax})[0], rois, list,
                        maps_of<T>(result), grad.size(1));
  });
  return result;
}

}  // namespace maskrcnn::cpu
