// Compiled once for each instruction set, with MASKRCNN_ISA as its name.
#include "kernels.h"

#include <type_traits>

#define MASKRCNN_STRING_(x) #x
#define MASKRCNN_STRING(x) MASKRCNN_STRING_(x)

namespace maskrcnn::cpu::MASKRCNN_ISA {

namespace {
#include "nms_kernels.inl"
#include "roi_kernels.inl"
}  // namespace

const Kernels kernels{
    MASKRCNN_STRING(MASKRCNN_ISA), roi_kernels<float>(), roi_kernels<double>(), roi_kernels<Half>(),
    roi_kernels<BFloat16>(),       any_iou_above<float>, any_iou_above<double>,
};

}  // namespace maskrcnn::cpu::MASKRCNN_ISA
