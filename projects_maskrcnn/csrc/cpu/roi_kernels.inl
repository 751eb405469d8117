// The vector loops of the RoI operators. Included by kernels.cpp, inside a namespace of each instruction set.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(kVectorBytes), aligned(alignof(Real)), may_alias));
};
template <class Real>
using Vector = typename VectorOf<Real>::type;
template <class Real>
constexpr int kLanes = kVectorBytes / sizeof(Real);
/// Vectors in a block of channels.
constexpr int kVectors = 128 / kVectorBytes;

template <class Real>
inline Vector<Real>& vector_at(Real* p) {
  return *reinterpret_cast<Vector<Real>*>(p);
}
template <class Real>
inline const Vector<Real>& vector_at(const Real* p) {
  return *reinterpret_cast<const Vector<Real>*>(p);
}

// ---- moving channels into blocks and out of them ----

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

template <class T>
inline Eight load_eight(const T* p) {
  Eight v;
  for (int i = 0; i < 8; i++) v[i] = static_cast<float>(p[i]);
  return v;
}
template <>
inline Eight load_eight(const float* p) {
  return *reinterpret_cast<const Eight*>(p);
}
template <class T>
inline void store_eight(T* p, Eight v) {
  for (int i = 0; i < 8; i++) p[i] = static_cast<T>(v[i]);
}
template <>
inline void store_eight(float* p, Eight v) {
  *reinterpret_cast<Eight*>(p) = v;
}

/// Transposes 8 x 8 numbers: exchanges off-diagonal blocks of four, of two, of one.
inline void transpose(Eight (&r)[8]) {
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    const Eight a = r[i], b = r[i + 4];
    r[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
#pragma GCC unroll 8
  for (int k = 0; k < 4; k++) {
    const int i = k + k / 2 * 2;
    const Eight a = r[i], b = r[i + 2];
    r[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    const Eight a = r[i], b = r[i + 1];
    r[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    r[i + 1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
}

/// One row of a patch.
template <class T, class Real>
void pack_row(const T* row, const Patch<T>& patch, int channels, Real* packed) {
  constexpr int block = kBlock<Real>;
  int done = 0;  // channels
  if (patch.channel_stride == 1) {
    for (int x = 0; x < patch.columns; x++) {
      const T* cell = row + x * patch.column_stride;
      for (int c = 0; c < channels; c++) packed[x * block + c] = static_cast<Real>(cell[c]);
    }
    done = channels;
  }
  if constexpr (sizeof(Real) == 4) {
    if (patch.column_stride == 1 && patch.readable >= 8) {
      for (; done + 8 <= channels; done += 8) {
        const T* from = row + done * patch.channel_stride;
        for (int next = 0; next < patch.columns; next += 8) {
          const int x = next + 8 <= patch.readable ? next : patch.readable - 8;  // the last eight may repeat some
          Eight r[8];
          for (int i = 0; i < 8; i++) r[i] = load_eight(from + i * patch.channel_stride + x);
          transpose(r);
          for (int i = 0; i < 8 && x + i < patch.columns; i++) store_eight(packed + (x + i) * block + done, r[i]);
        }
      }
    }
  }
  for (; done < channels; done++) {
    const T* from = row + done * patch.channel_stride;
    for (int x = 0; x < patch.columns; x++) packed[x * block + done] = static_cast<Real>(from[x * patch.column_stride]);
  }
  for (; done < block; done++) {
    for (int x = 0; x < patch.columns; x++) packed[x * block + done] = 0;
  }
}

template <class T, class Real = Sum<T>>
void pack(const Patch<T>& patch, int channels, Real* packed) {
  const int64_t row_size = static_cast<int64_t>(patch.columns) * kBlock<Real>;
  for (int y = 0; y < patch.rows; y++) {
    if (patch.used_rows == nullptr || patch.used_rows[y])
      pack_row(patch.data + y * patch.row_stride, patch, channels, packed + y * row_size);
  }
}

/// `unpack` from [items][kStride].
template <int kStride, class T, class Real>
inline void unpack_from(const Real* packed, int64_t items, int channels, int64_t channel_stride, int64_t item_stride,
                        T* out) {
  if (channel_stride == 1) {
    for (int64_t i = 0; i < items; i++)
      for (int c = 0; c < channels; c++) out[i * item_stride + c] = static_cast<T>(packed[i * kStride + c]);
    return;
  }
  int done = 0;  // channels
  if constexpr (sizeof(Real) == 4) {
    if (item_stride == 1 && items >= 8) {
      for (; done + 8 <= channels; done += 8) {
        for (int64_t next = 0; next < items; next += 8) {
          const int64_t i = next + 8 <= items ? next : items - 8;  // the last eight may repeat some
          Eight r[8];
          for (int k = 0; k < 8; k++) r[k] = load_eight(packed + (i + k) * kStride + done);
          transpose(r);
          for (int k = 0; k < 8; k++) store_eight(out + (done + k) * channel_stride + i, r[k]);
        }
      }
    }
  }
  for (; done < channels; done++)
    for (int64_t i = 0; i < items; i++)
      out[done * channel_stride + i * item_stride] = static_cast<T>(packed[i * kStride + done]);
}

template <class T, class Real = Sum<T>>
void unpack(const Real* packed, int items, int channels, int64_t channel_stride, int64_t item_stride, T* out) {
  unpack_from<kBlock<Real>>(packed, items, channels, channel_stride, item_stride, out);
}

// ---- bins ----

template <class Real>
void sum_bins(const Real* cells, int64_t row_stride, int64_t column_stride, int blocks, const SparseRows<Real>& y,
              const SparseRows<Real>& x, Real* out, int64_t out_stride) {
  for (int by = 0; by < y.rows; by++) {
    for (int bx = 0; bx < x.rows; bx++, out += out_stride) {
      for (int block = 0; block < blocks; block++) {
        Vector<Real> sum[kVectors] = {};
        for (int i = y.first[by]; i < y.first[by + 1]; i++) {
          const Real* row = cells + y.index[i] * row_stride + block * kBlock<Real>;
          for (int j = x.first[bx]; j < x.first[bx + 1]; j++) {
            const Real* cell = row + x.index[j] * column_stride;
            const Real weight = y.weight[i] * x.weight[j];
            for (int v = 0; v < kVectors; v++) sum[v] += weight * vector_at(cell + v * kLanes<Real>);
          }
        }
        for (int v = 0; v < kVectors; v++) vector_at(out + block * kBlock<Real> + v * kLanes<Real>) = sum[v];
      }
    }
  }
}

template <class T>
void sum_columns(const Patch<T>& cells, int channels, const SparseRows<float>& y, const SparseRows<float>& x,
                 const Patch<T>& ahead, float* scratch, T* out) {
  float* line = scratch;                                  // [columns][8]: the rows of a bin, added up
  float* const sums = line + int64_t{8} * cells.columns;  // [bins][8]
  float* sum_of_bin = sums;
  int64_t offset[8];
  for (int i = 0; i < 8; i++) offset[i] = (i < channels ? i : 0) * cells.channel_stride;
  for (int by = 0; by < y.rows; by++) {
    for (int64_t column = 0; column < cells.columns; column += 8) {
      Eight r[8] = {};
      for (int k = y.first[by]; k < y.first[by + 1]; k++) {
        const T* from = cells.data + y.index[k] * cells.row_stride + column;
        for (int i = 0; i < 8; i++) r[i] += y.weight[k] * load_eight(from + offset[i]);
      }
      transpose(r);
      for (int i = 0; i < 8; i++) store_eight(line + (column + i) * 8, r[i]);
    }
    for (int bx = 0; bx < x.rows; bx++, sum_of_bin += 8) {
      Eight sum = {};
      for (int k = x.first[bx]; k < x.first[bx + 1]; k++)
        sum += x.weight[k] * load_eight(line + int64_t{8} * x.index[k]);
      store_eight(sum_of_bin, sum);
    }
    // a part of the cells of the call to come
    const int64_t begin = int64_t{ahead.rows} * by / y.rows, end = int64_t{ahead.rows} * (by + 1) / y.rows;
    for (int i = 0; i < channels; i++) {
      for (int64_t row = begin; row < end; row++) {
        const T* next = ahead.data + i * ahead.channel_stride + row * ahead.row_stride;
        for (int column = 0; column < ahead.columns; column += 64 / sizeof(T)) __builtin_prefetch(next + column);
        __builtin_prefetch(next + ahead.columns - 1);
      }
    }
  }
  const int64_t bins = static_cast<int64_t>(y.rows) * x.rows;
  unpack_from<8>(sums, bins, channels, bins, 1, out);
}

template <class Real>
void max_bins(const Real* cells, int64_t row_stride, int64_t column_stride, const SampleRows<Real>& y,
              const SampleRows<Real>& x, Real* best, int32_t* argmax) {
  constexpr int block = kBlock<Real>;
  for (int by = 0; by < y.rows; by++) {
    for (int bx = 0; bx < x.rows; bx++, best += block, argmax += block) {
      const bool none = y.first[by] == y.first[by + 1] || x.first[bx] == x.first[bx + 1];
      for (int c = 0; c < block; c++) {
        best[c] = none ? Real(0) : -static_cast<Real>(__builtin_inff());
        argmax[c] = -1;
      }
      if (none) continue;
      for (int i = y.first[by]; i < y.first[by + 1]; i++) {
        const Real fy = y.fraction[i];
        const Real* upper = cells + y.low[i] * row_stride;
        const Real* lower = cells + y.high[i] * row_stride;
        for (int j = x.first[bx]; j < x.first[bx + 1]; j++) {
          const Real fx = x.fraction[j];
          const int64_t left = x.low[j] * column_stride, right = x.high[j] * column_stride;
          const int32_t number = y.order[i] * x.considered[bx] + x.order[j];
          for (int c = 0; c < block; c++) {
            const Real value = (1 - fy) * ((1 - fx) * upper[left + c] + fx * upper[right + c]) +
                               fy * ((1 - fx) * lower[left + c] + fx * lower[right + c]);
            const bool better = value > best[c] || value != value;  // a NaN wins, and stays
            best[c] = better ? value : best[c];
            argmax[c] = better ? number : argmax[c];
          }
        }
      }
      if (!y.complete[by] || !x.complete[bx]) {  // samples off the map count as zero
        for (int c = 0; c < block; c++) {
          const bool better = 0 > best[c];
          best[c] = better ? 0 : best[c];
          argmax[c] = better ? -1 : argmax[c];
        }
      }
    }
  }
}

template <class Real>
void spread_bins(const Real* bins, int64_t bin_stride, int bins_x, int y_count, const int32_t* y_bin,
                 const Real* y_weight, const SparseRows<Real>& x, Real* scratch, Real* cells, int64_t cell_stride) {
  constexpr int block = kBlock<Real>, lanes = kLanes<Real>;
  for (int bx = 0; bx < bins_x; bx++) {
    Vector<Real> sum[kVectors] = {};
    for (int i = 0; i < y_count; i++) {
      const Real* bin = bins + (static_cast<int64_t>(y_bin[i]) * bins_x + bx) * bin_stride;
      for (int v = 0; v < kVectors; v++) sum[v] += y_weight[i] * vector_at(bin + v * lanes);
    }
    for (int v = 0; v < kVectors; v++) vector_at(scratch + bx * block + v * lanes) = sum[v];
  }
  for (int column = 0; column < x.rows; column++, cells += cell_stride) {
    Vector<Real> sum[kVectors];
    for (int v = 0; v < kVectors; v++) sum[v] = vector_at(cells + v * lanes);
    for (int j = x.first[column]; j < x.first[column + 1]; j++) {
      const Real* bin = scratch + x.index[j] * block;
      for (int v = 0; v < kVectors; v++) sum[v] += x.weight[j] * vector_at(bin + v * lanes);
    }
    for (int v = 0; v < kVectors; v++) vector_at(cells + v * lanes) = sum[v];
  }
}

template <class T>
constexpr RoiKernels<T> roi_kernels() {
  if constexpr (std::is_same_v<T, double>)
    return {pack<T>, unpack<T>, sum_bins<T>, nullptr, max_bins<T>, spread_bins<T>};
  else
    return {pack<T>, unpack<T>, sum_bins<float>, sum_columns<T>, max_bins<float>, spread_bins<float>};
}
