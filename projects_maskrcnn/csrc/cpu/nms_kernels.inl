// The vector loop of non-maximum suppression. Included by kernels.cpp, inside a namespace of each instruction set.

// A fused multiply-add would round the union of two boxes otherwise than the reference does.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

template <class T>
bool any_iou_above(const Box<T>& box, const BoxBlock<T>* blocks, int64_t count, T threshold) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  for (const BoxBlock<T>* others = blocks; others < blocks + count; others++) {
    int32_t above = 0;
    for (int i = 0; i < kBoxBlock; i++) {
      const T x0 = box.x0 > others->x0[i] ? box.x0 : others->x0[i];
      const T y0 = box.y0 > others->y0[i] ? box.y0 : others->y0[i];
      const T x1 = box.x1 < others->x1[i] ? box.x1 : others->x1[i];
      const T y1 = box.y1 < others->y1[i] ? box.y1 : others->y1[i];
      const T width = x1 - x0 > 0 ? x1 - x0 : 0;
      const T height = y1 - y0 > 0 ? y1 - y0 : 0;
      const T overlap = width * height;
      above |= overlap / (box.area + others->area[i] - overlap) > threshold;
    }
    if (above) return true;
  }
  return false;
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
