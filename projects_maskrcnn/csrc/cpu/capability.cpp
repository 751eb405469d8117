// Which of the instruction sets that kernels.cpp is compiled for this processor has.
#include <cstdlib>
#include <cstring>

#include "../ops.h"
#include "kernels.h"

namespace maskrcnn::cpu {

namespace {

const Kernels& choose() {
#ifdef MASKRCNN_X86
  // PyTorch's own variable lowers ours too.
  const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
  const bool any = wanted == nullptr || std::strcmp(wanted, "avx512") == 0;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (any && avx512) return avx512::kernels;
  if ((any || std::strcmp(wanted, "avx2") == 0) && avx2) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::string capability() { return kernels().name; }

}  // namespace maskrcnn::cpu
