// Mask probabilities to bitmaps, and to COCO's run-length encoding without the bitmaps.
//
// A pixel's probability is interpolated between the four cells of the mask around its centre. Along a line of pixels
// between the same cells it changes linearly, so the two ends of such a stretch mostly decide for all of its pixels.
// Where they do not, and rounding might matter, each is computed just as torch's grid_sample does, so that the
// decisions are Detectron2's to the last pixel.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "../pasting.h"
#include "../tensors.h"

namespace maskrcnn::cpu {
namespace {

/// Neighbouring pixels along an axis that lie between the same two cells of the mask.
struct Stretch {
  int64_t begin, end;
  int64_t low;  // the first of the cells
};

/// Where the pixels along one axis of the image lie on the mask. It is framed by empty cells, two before and one after.
class PixelAxis {
 public:
  static constexpr int64_t kBefore = 2, kFrame = 3;

  /// `start`, `end`: of the box, in pixels. `length`: of the image. `cells`: of the mask.
  PixelAxis(double start, double end, int64_t length, int64_t cells) : pixels_(covered(start, end, length)) {
    for (int64_t i = pixels_.begin; i < pixels_.end; i++) {
      MaskSample sample(i, static_cast<float>(start), static_cast<float>(end), cells);
      sample.low += kBefore;
      if (stretches_.empty() || stretches_.back().low != sample.low) stretches_.push_back({i, i, sample.low});
      stretches_.back().end = i + 1;
      samples_.push_back(sample);
    }
  }

  /// The image's pixels that the box may reach: others are not in the mask.
  int64_t begin() const { return pixels_.begin; }
  int64_t end() const { return pixels_.end; }
  const MaskSample& operator[](int64_t i) const { return samples_[i - pixels_.begin]; }
  const std::vector<Stretch>& stretches() const { return stretches_; }

 private:
  Pixels pixels_;
  std::vector<MaskSample> samples_;  // their cells are counted in the frame
  std::vector<Stretch> stretches_;
};

/// One mask to be pasted, by lines: columns of the image, or rows.
class Paste {
 public:
  Paste(const float* mask, int64_t mask_height, int64_t mask_width, const double* box, int64_t height, int64_t width,
        bool by_columns)
      : x_(box[0], box[2], width, mask_width),
        y_(box[1], box[3], height, mask_height),
        x_stride_(by_columns ? mask_height + PixelAxis::kFrame : 1),
        y_stride_(by_columns ? 1 : mask_width + PixelAxis::kFrame),
        by_columns_(by_columns),
        cells_((mask_height + PixelAxis::kFrame) * (mask_width + PixelAxis::kFrame)),
        along_line_((by_columns ? mask_height : mask_width) + PixelAxis::kFrame) {
    float greatest = 0;
    for (int64_t y = 0; y < mask_height; y++)
      for (int64_t x = 0; x < mask_width; x++) {
        const float p = mask[y * mask_width + x];
        cells_[(y + PixelAxis::kBefore) * y_stride_ + (x + PixelAxis::kBefore) * x_stride_] = p;
        if (!(std::fabs(p) <= greatest)) greatest = std::isfinite(p) ? std::fabs(p) : kInfinity;
      }
    // Two ways to interpolate differ by less than 16 roundings of the greatest term, each by 2 ** -24 at most.
    doubt_ = greatest * 0x1p-19f + std::numeric_limits<float>::min();
  }

  const PixelAxis& lines() const { return by_columns_ ? x_ : y_; }
  const PixelAxis& along() const { return by_columns_ ? y_ : x_; }

  /// As grid_sample rounds it.
  float probability(int64_t y, int64_t x) const {
    const MaskSample &sample_y = y_[y], &sample_x = x_[x];
    const float* cell = &cells_[sample_y.low * y_stride_ + sample_x.low * x_stride_];
    return interpolate(sample_y, sample_x, cell[0], cell[x_stride_], cell[y_stride_], cell[y_stride_ + x_stride_]);
  }

  /// Calls `run(begin, end)` for pixels of a line that belong to the mask, in order; runs may touch.
  template <class Run>
  void runs(int64_t line, float threshold, Run run) {
    const MaskSample& across = lines()[line];
    const int64_t stride = along_line_.size();
    const float *low = &cells_[across.low * stride], *high = low + stride;
    for (int64_t i = 0; i < stride; i++) along_line_[i] = across.low_weight * low[i] + across.high_weight * high[i];
    const float surely = threshold + doubt_, surely_not = threshold - doubt_;
    for (const Stretch& stretch : along().stretches()) {
      const float first = along_line_[stretch.low], last = along_line_[stretch.low + 1];
      if (first < surely_not && last < surely_not) continue;
      if (first >= surely && last >= surely) {
        run(stretch.begin, stretch.end);
        continue;
      }
      for (int64_t i = stretch.begin; i < stretch.end; i++) {
        const MaskSample& sample = along()[i];
        const float about = sample.low_weight * first + sample.high_weight * last;
        if (about < surely_not) continue;
        if (about >= surely || (by_columns_ ? probability(i, line) : probability(line, i)) >= threshold) run(i, i + 1);
      }
    }
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  PixelAxis x_, y_;
  int64_t x_stride_, y_stride_;
  bool by_columns_;
  std::vector<float> cells_;       // of the mask in its frame, each line of them contiguous
  std::vector<float> along_line_;  // cells interpolated at one line of pixels
  float doubt_;
};

/// COCO's compressed run-length encoding, as it is written: the lengths of alternating runs off and on the mask, from
/// off. Each, from the fourth on, is given as its difference from the one two before; then five bits at a time, least
/// first, in characters from '0' on, where the sixth bit says that there are more to come.
class RleWriter {
 public:
  /// The next pixels of the mask. They may follow straight upon the last.
  void on(int64_t begin, int64_t end) {
    if (begin == end_) {
      end_ = end;
      return;
    }
    flush();
    begin_ = begin;
    end_ = end;
  }

  /// The string, of an image with so many pixels.
  std::string finish(int64_t pixels) {
    flush();
    if (pixels > written_ || count_ == 0) write(pixels - written_);
    return std::move(text_);
  }

 private:
  void flush() {
    if (begin_ == end_) return;
    write(begin_ - written_);
    write(end_ - begin_);
  }

  void write(int64_t length) {
    written_ += length;
    int64_t rest = count_ > 2 ? length - two_before_ : length;
    two_before_ = before_;
    before_ = length;
    count_++;
    bool more = true;
    while (more) {
      const int64_t bits = rest & 31;
      rest >>= 5;
      more = rest != (bits & 16 ? -1 : 0);  // the last one's top bit is the sign
      text_.push_back(static_cast<char>('0' + (more ? bits | 32 : bits)));
    }
  }

  int64_t begin_ = 0, end_ = 0;  // the last run, which may yet grow
  int64_t written_ = 0;          // pixels
  int64_t count_ = 0, before_ = 0, two_before_ = 0;
  std::string text_;
};

/// Masks and boxes in the layout and precision that we compute with.
struct Masks {
  Tensor values, boxes;
  int64_t count, mask_height, mask_width, height, width;

  Paste paste(int64_t i, bool by_columns) const {
    return Paste(values.const_data_ptr<float>() + i * mask_height * mask_width, mask_height, mask_width,
                 boxes.const_data_ptr<double>() + 4 * i, height, width, by_columns);
  }
};

Masks prepare(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width) {
  check_masks(masks, boxes, height, width);
  using torch::stable::contiguous, torch::stable::to;
  return {contiguous(to(masks, ScalarType::Float)),
          contiguous(to(boxes, ScalarType::Double)),
          masks.size(0),
          masks.size(1),
          masks.size(2),
          height,
          width};
}

}  // namespace

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  const Masks ready = prepare(masks, boxes, height, width);
  const bool decide = threshold >= 0;
  Tensor pasted = torch::stable::empty({ready.count, height, width}, decide ? ScalarType::Bool : ScalarType::Byte);
  auto* pixels = static_cast<uint8_t*>(pasted.mutable_data_ptr());
  torch::stable::parallel_for(0, ready.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      uint8_t* canvas = pixels + i * height * width;
      std::memset(canvas, 0, height * width);
      Paste paste = ready.paste(i, /*by_columns=*/false);
      for (int64_t y = paste.lines().begin(); y < paste.lines().end(); y++) {
        uint8_t* row = canvas + y * width;
        if (decide) {
          paste.runs(y, static_cast<float>(threshold),
                     [row](int64_t begin, int64_t end) { std::memset(row + begin, 1, end - begin); });
        } else {
          for (int64_t x = paste.along().begin(); x < paste.along().end(); x++)
            row[x] = to_byte(paste.probability(y, x) * 255);
        }
      }
    }
  });
  return pasted;
}

std::tuple<Tensor, Tensor> masks_to_rle(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  const Masks ready = prepare(masks, boxes, height, width);
  MASKRCNN_CHECK(threshold >= 0, "threshold must not be negative; got ", threshold);
  MASKRCNN_CHECK(height * width < int64_t{1} << 32, "COCO's encoding holds images of less than 2 ** 32 pixels; got ",
                 height, " x ", width);
  std::vector<std::string> texts(ready.count);
  torch::stable::parallel_for(0, ready.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      Paste paste = ready.paste(i, /*by_columns=*/true);
      RleWriter writer;
      for (int64_t x = paste.lines().begin(); x < paste.lines().end(); x++)
        paste.runs(x, static_cast<float>(threshold),
                   [&](int64_t begin, int64_t end) { writer.on(x * height + begin, x * height + end); });
      texts[i] = writer.finish(height * width);
    }
  });
  Tensor offsets = torch::stable::empty({ready.count + 1}, ScalarType::Long);
  auto* offset = offsets.mutable_data_ptr<int64_t>();
  offset[0] = 0;
  for (int64_t i = 0; i < ready.count; i++) offset[i + 1] = offset[i] + static_cast<int64_t>(texts[i].size());
  Tensor bytes = torch::stable::empty({offset[ready.count]}, ScalarType::Byte);
  for (int64_t i = 0; i < ready.count; i++)
    std::copy(texts[i].begin(), texts[i].end(), bytes.mutable_data_ptr<uint8_t>() + offset[i]);
  return {bytes, offsets};
}

}  // namespace maskrcnn::cpu
