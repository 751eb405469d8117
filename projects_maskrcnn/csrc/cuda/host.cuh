// What the operators need of PyTorch to launch kernels.
#pragma once

#include "../tensors.h"
#include "common.cuh"

#ifdef __CUDACC__
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace maskrcnn::cuda {

#ifdef __CUDACC__
/// The stream that PyTorch works on. Its accessor lies in a library that we do not link with, so as to load beside a
/// PyTorch for CPUs alone; where there are CUDA tensors, it is in memory. (The stable ABI has its own from 2.13 on.)
inline cudaStream_t current_stream(int32_t device) {
  using Accessor = AOTITorchError (*)(int32_t, void**);
  static const Accessor accessor = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Accessor>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  MASKRCNN_CHECK(accessor != nullptr, "found no aoti_torch_get_current_cuda_stream in this PyTorch's libtorch_cuda.so");
  void* stream = nullptr;
  MASKRCNN_CHECK(accessor(device, &stream) == 0, "PyTorch gave no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

/// Makes a tensor's device the current one, for as long as this lives.
struct OnDevice {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit OnDevice(const Tensor& tensor)
      : guard(tensor.get_device_index()), stream(current_stream(tensor.get_device_index())) {}
};
#else
struct OnDevice {
  cudaStream_t stream = nullptr;

  explicit OnDevice(const Tensor&) {}
};
#endif

template <class T>
struct Native {
  using Type = T;
};
template <>
struct Native<torch::headeronly::Half> {
  using Type = __half;
};
template <>
struct Native<torch::headeronly::BFloat16> {
  using Type = __nv_bfloat16;
};

/// Calls `f(T())` with CUDA's own type for the features that `type` names.
template <class F>
void for_native_dtype(ScalarType type, const char* name, F&& f) {
  for_dtype(type, name, [&](auto zero) { f(typename Native<decltype(zero)>::Type()); });
}

}  // namespace maskrcnn::cuda
