// How an operator refuses its arguments.
#pragma once

#include <sstream>
#include <stdexcept>

namespace maskrcnn {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace maskrcnn

/// Raises a std::runtime_error of the parts after the condition where that does not hold. PyTorch's own macro would put
/// the C++ function, file and line before what the user is to read.
#define MASKRCNN_CHECK(condition, ...)               \
  do {                                               \
    if (!(condition)) ::maskrcnn::fail(__VA_ARGS__); \
  } while (false)
