// int8: (q - zero) * scale, one scale per row or per group of inputs.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace moe {

struct QuantFormat;
extern const QuantFormat kInt8;

MOE_HOST_DEVICE inline float decode_int8(int8_t q, int8_t zero, float scale) {
  return static_cast<float>(q - zero) * scale;
}

}  // namespace moe
