// Arithmetic that rounds alike on the CPU and on CUDA.
//
// What both compute with these, in the same order, comes out the same to the bit. A compiler may fuse no multiplication
// with an addition: in host code the build forbids it; in CUDA code `mul` and `add` do, where there is such a pair.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define MASKRCNN_HD __host__ __device__ __forceinline__
#else
#define MASKRCNN_HD inline
#endif

namespace maskrcnn {

using std::ceil;
using std::floor;
using std::fmax;
using std::fmin;
using std::isfinite;
using std::round;

#ifdef __CUDA_ARCH__
MASKRCNN_HD float mul(float a, float b) { return __fmul_rn(a, b); }
MASKRCNN_HD float add(float a, float b) { return __fadd_rn(a, b); }
MASKRCNN_HD double mul(double a, double b) { return __dmul_rn(a, b); }
MASKRCNN_HD double add(double a, double b) { return __dadd_rn(a, b); }
#else
MASKRCNN_HD float mul(float a, float b) { return a * b; }
MASKRCNN_HD float add(float a, float b) { return a + b; }
MASKRCNN_HD double mul(double a, double b) { return a * b; }
MASKRCNN_HD double add(double a, double b) { return a + b; }
#endif

/// The largest Real that is not above `threshold`: a Real is above the one just if it is above the other.
template <class Real>
Real rounded_down(double threshold) {
  const Real nearest = static_cast<Real>(threshold);
  return nearest > threshold ? std::nextafter(nearest, Real(0)) : nearest;
}

}  // namespace maskrcnn
