// Registration of the CUDA kernels.
#include <torch/csrc/stable/library.h>

#include "../ops.h"

STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA, m) {
  using namespace maskrcnn::cuda;
  m.impl("roi_average", TORCH_BOX(&roi_average));
  m.impl("roi_average_backward", TORCH_BOX(&roi_average_backward));
  m.impl("roi_max", TORCH_BOX(&roi_max));
  m.impl("roi_max_backward", TORCH_BOX(&roi_max_backward));
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("paste_masks", TORCH_BOX(&paste_masks));
}
