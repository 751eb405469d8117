// Registers the emulated CUDA operators, for tensors on the CPU, in a namespace of their own.
#include <torch/csrc/stable/library.h>

#include "../../projects_maskrcnn/csrc/ops.h"

namespace maskrcnn_emulated = maskrcnn;

#define maskrcnn maskrcnn_emulated
#define CUDA CPU
#include "../../projects_maskrcnn/csrc/cuda/library.cu"
