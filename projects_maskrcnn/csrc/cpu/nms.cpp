// Greedy non-maximum suppression. A box can only be suppressed by one of about its own place and size, so the kept
// boxes lie in a grid, and each next box is compared with those of a few cells, a vector at a time. The decisions are
// those of comparing it with all: the grid leaves out none whose IoU could be above the threshold, and extra ones do no
// harm.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "../arithmetic.h"
#include "../tensors.h"
#include "kernels.h"

namespace maskrcnn::cpu {
namespace {

template <class T>
Box<T> box_at(const T* boxes, int64_t index) {
  const T* corners = boxes + 4 * index;
  const T area = (corners[2] - corners[0]) * (corners[3] - corners[1]);
  return {corners[0], corners[1], corners[2], corners[3], area};
}

/// Whether the box can suppress or be suppressed: otherwise its IoU with any other is zero or NaN.
template <class T>
bool is_solid(const Box<T>& box) {
  return box.x1 > box.x0 && box.y1 > box.y0 && std::isfinite(box.area);
}

/// Cells of equal size along one axis, over the first corners of all boxes.
struct GridAxis {
  double least = std::numeric_limits<double>::infinity(), greatest = -std::numeric_limits<double>::infinity();
  int cells = 1;

  void include(double corner) {
    least = std::min(least, corner);
    greatest = std::max(greatest, corner);
  }

  /// Never decreases as `corner` grows, so the corners of a range lie in the cells from its start's to its end's.
  int cell_of(double corner) const {
    const double cell = (corner - least) / (greatest - least) * cells;
    return cell > 0 ? static_cast<int>(std::min<double>(cell, cells - 1)) : 0;  // of no size, NaN: all lie in cell 0
  }
};

struct Range {
  int first, last;
};

/// The cells of all boxes whose IoU with a box from `start` to `end` can be above `iou`. The two share more than `iou`
/// of the length of each: the other starts before that is less than what is left of ours, and not so far ahead of ours
/// that it would be too long for what ours can share.
Range cells_in_reach(const GridAxis& axis, double start, double end, double iou) {
  constexpr double slack = 1e-5;  // far more than an IoU is off by rounding
  iou *= 1 - slack;
  const double length = (end - start) * (1 + slack);
  return {axis.cell_of(start - length * (1 - iou) / iou), axis.cell_of(start + length * (1 - iou))};
}

int64_t blocks_needed(int64_t boxes) { return (boxes + kBoxBlock - 1) / kBoxBlock; }

/// The kept boxes of one group. Each of its boxes has a slot from the outset, ordered by cell, filled when it is kept.
/// While few are kept they are as well compared with one after another, so they also lie in a list.
template <class T>
class Grid {
 public:
  Grid(const T* boxes, const std::vector<int64_t>& members, double threshold)
      : threshold_(threshold), rounded_threshold_(rounded_down<T>(threshold)) {
    constexpr double boxes_per_cell = 12;
    x_.cells = y_.cells = std::max(1, static_cast<int>(std::sqrt(members.size() / boxes_per_cell)));
    for (int64_t member : members) {
      const Box<T> box = box_at(boxes, member);
      if (!is_solid(box)) continue;
      x_.include(box.x0);
      y_.include(box.y0);
    }
    std::vector<int32_t> cells;
    cells.reserve(members.size());
    first_slot_.assign(x_.cells * y_.cells + 1, 0);
    for (int64_t member : members) {
      const Box<T> box = box_at(boxes, member);
      cells.push_back(y_.cell_of(box.y0) * x_.cells + x_.cell_of(box.x0));
      first_slot_[cells.back() + 1]++;
    }
    std::partial_sum(first_slot_.begin(), first_slot_.end(), first_slot_.begin());
    std::vector<int64_t> next(first_slot_.begin(), first_slot_.end());
    slot_of_.reserve(members.size());
    for (int32_t cell : cells) slot_of_.push_back(next[cell]++);
    slots_.resize(blocks_needed(members.size()), BoxBlock<T>{});
    kept_boxes_ = slots_;
  }

  bool suppresses(const Box<T>& box) const {
    // The IoU of a tiny box is too coarsely rounded to reason about, unless it is zero.
    const bool tiny = box.area < std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
    const double iou = tiny ? 0 : threshold_;
    const Range x = cells_in_reach(x_, box.x0, box.x1, iou), y = cells_in_reach(y_, box.y0, box.y1, iou);
    int64_t in_reach = 0;
    for (int row = y.first; row <= y.last; row++) in_reach += blocks_of(row, x).size();
    const Blocks all{0, blocks_needed(kept_)};
    if (in_reach >= all.size()) return any_above(box, kept_boxes_, all);
    for (int row = y.first; row <= y.last; row++)
      if (any_above(box, slots_, blocks_of(row, x))) return true;
    return false;
  }

  /// Adds the `i`-th member.
  void keep(size_t i, const Box<T>& box) {
    put(box, slots_, slot_of_[i]);
    put(box, kept_boxes_, kept_++);
  }

 private:
  struct Blocks {
    int64_t begin, end;
    int64_t size() const { return std::max<int64_t>(end - begin, 0); }
  };

  /// Those with the slots of a row's cells.
  Blocks blocks_of(int row, Range columns) const {
    const int64_t* first_slot = &first_slot_[row * x_.cells];
    return {first_slot[columns.first] / kBoxBlock, blocks_needed(first_slot[columns.last + 1])};
  }

  bool any_above(const Box<T>& box, const std::vector<BoxBlock<T>>& others, Blocks blocks) const {
    return any_iou_above_(box, others.data() + blocks.begin, blocks.size(), rounded_threshold_);
  }

  static void put(const Box<T>& box, std::vector<BoxBlock<T>>& blocks, int64_t slot) {
    BoxBlock<T>& block = blocks[slot / kBoxBlock];
    const int64_t lane = slot % kBoxBlock;
    block.x0[lane] = box.x0;
    block.y0[lane] = box.y0;
    block.x1[lane] = box.x1;
    block.y1[lane] = box.y1;
    block.area[lane] = box.area;
  }

  AnyIouAbove<T> any_iou_above_ = kernels().any_iou_above<T>();
  double threshold_;
  T rounded_threshold_;
  GridAxis x_, y_;
  std::vector<int64_t> first_slot_;  // of each cell, row by row
  std::vector<int64_t> slot_of_;     // each member
  std::vector<BoxBlock<T>> slots_, kept_boxes_;
  int64_t kept_ = 0;
};

/// Marks as kept those of `members`, in order of decreasing score, that no kept one before them suppresses.
template <class T>
void suppress(const T* boxes, const std::vector<int64_t>& members, double threshold, uint8_t* kept) {
  Grid<T> grid(boxes, members, threshold);
  for (size_t i = 0; i < members.size(); i++) {
    const Box<T> box = box_at(boxes, members[i]);
    if (is_solid(box)) {
      if (grid.suppresses(box)) continue;
      grid.keep(i, box);
    }
    kept[members[i]] = true;
  }
}

/// The indices of all scores: NaN first, then from the greatest on; of equal ones the first comes first.
std::vector<int64_t> by_decreasing_score(const Tensor& scores) {
  const Tensor values = torch::stable::contiguous(torch::stable::to(scores, ScalarType::Double));
  std::vector<std::pair<double, int64_t>> scored;
  scored.reserve(scores.size(0));
  for (int64_t i = 0; i < scores.size(0); i++) scored.emplace_back(values.const_data_ptr<double>()[i], i);
  std::sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) {
    if (a.first > b.first) return true;
    if (a.first < b.first) return false;
    const bool a_is_nan = std::isnan(a.first), b_is_nan = std::isnan(b.first);
    return a_is_nan == b_is_nan ? a.second < b.second : a_is_nan;
  });
  std::vector<int64_t> order;
  order.reserve(scored.size());
  for (const auto& [score, index] : scored) order.push_back(index);
  return order;
}

/// The indices, in their order, of each group; all in one where there are none.
std::vector<std::vector<int64_t>> split(const std::vector<int64_t>& order, const std::optional<Tensor>& groups) {
  if (!groups) return {order};
  const Tensor dense = torch::stable::contiguous(*groups);
  const int64_t* group_of = dense.const_data_ptr<int64_t>();
  std::unordered_map<int64_t, size_t> numbers;
  std::vector<std::vector<int64_t>> members;
  for (int64_t index : order) {
    auto [number, is_new] = numbers.try_emplace(group_of[index], members.size());
    if (is_new) members.emplace_back();
    members[number->second].push_back(index);
  }
  return members;
}

template <class T>
std::vector<uint8_t> kept_of(const Tensor& boxes, ScalarType type, const std::vector<std::vector<int64_t>>& groups,
                             double threshold) {
  const Tensor dense = torch::stable::contiguous(torch::stable::to(boxes, type));
  const T* data = dense.const_data_ptr<T>();
  std::vector<uint8_t> kept(boxes.size(0), false);
  torch::stable::parallel_for(0, groups.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; group++) suppress(data, groups[group], threshold, kept.data());
  });
  return kept;
}

}  // namespace

Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> groups, double iou_threshold) {
  check_nms(boxes, scores, groups, iou_threshold);
  const std::vector<int64_t> order = by_decreasing_score(scores);
  const std::vector<std::vector<int64_t>> members = split(order, groups);
  const std::vector<uint8_t> kept = boxes.scalar_type() == ScalarType::Double
                                        ? kept_of<double>(boxes, ScalarType::Double, members, iou_threshold)
                                        : kept_of<float>(boxes, ScalarType::Float, members, iou_threshold);
  const int64_t kept_count = std::count(kept.begin(), kept.end(), true);
  Tensor indices = torch::stable::empty({kept_count}, ScalarType::Long);
  std::copy_if(order.begin(), order.end(), indices.mutable_data_ptr<int64_t>(), [&](int64_t i) { return kept[i]; });
  return indices;
}

}  // namespace maskrcnn::cpu
