// The tile registers of AMX: whether we may use them, and their shapes.
#pragma once

#include <cstdint>

namespace moe::cpu {

#if defined(__x86_64__)

// Whether this CPU multiplies tiles of bf16 or of bytes and Linux gives us the tiles' registers,
// which it does when a process asks for them; the first call does.
bool has_amx_bf16();
bool has_amx_int8();

// Of 64 bytes, as LDTILECFG reads it. A tile has up to 16 rows of up to 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

inline void configure_tiles(const TileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// GCC's intrinsics do not say what memory they read: stores before this call are done by then.
inline void finish_stores() { asm volatile("" : : : "memory"); }

#endif

}  // namespace moe::cpu
