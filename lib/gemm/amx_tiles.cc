#include "gemm/amx_tiles.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gemm/cpu_bf16_rows.h"

namespace moe::cpu {
namespace {

constexpr int kEcx = 2, kEdx = 3;

__attribute__((target("xsave"))) bool system_saves_tiles() {
  constexpr uint64_t kTileState = uint64_t{3} << 17;
  constexpr int kOsXsave = 27;
  return cpuid_bit(1, 0, kEcx, kOsXsave) && (_xgetbv(0) & kTileState) == kTileState;
}

bool allow_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_tiles() {
  constexpr int kTile = 24;
  static const bool yes = cpuid_bit(7, 0, kEdx, kTile) && system_saves_tiles() && allow_tiles();
  return yes;
}

}  // namespace

bool has_amx_bf16() {
  constexpr int kBf16 = 22;
  return has_avx512_bf16() && cpuid_bit(7, 0, kEdx, kBf16) && has_tiles();
}

bool has_amx_int8() {
  constexpr int kInt8 = 25;
  return cpuid_bit(7, 0, kEdx, kInt8) && has_tiles();
}

}  // namespace moe::cpu

#endif  // __x86_64__
