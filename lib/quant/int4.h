// int4: (q - zero) * scale, q from 0 to 15; zero is 8 unless each group has its own.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace moe {

struct QuantFormat;
extern const QuantFormat kInt4;

inline constexpr uint8_t kInt4Zero = 8;

// Element `column` of a row: two in a byte, the even one in the low nibble.
MOE_HOST_DEVICE inline uint8_t int4_at(const uint8_t* row, int64_t column) {
  return static_cast<uint8_t>(row[column / 2] >> (column % 2 * 4) & 0xf);
}

MOE_HOST_DEVICE inline float decode_int4(uint8_t q, uint8_t zero, float scale) {
  return static_cast<float>(q - zero) * scale;
}

}  // namespace moe
