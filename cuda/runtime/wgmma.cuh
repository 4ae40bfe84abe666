// One warpgroup's matrix product: D (64, N) += A (64, k) * B (N, k)^T, fp32 accumulators. B lies in
// shared memory (matrix_descriptor of runtime/ptx.cuh), A too or, in bf16, in registers. k is 32
// bytes of a row: 16 bf16 or 32 e4m3. N is the token side; the list below is every N that the
// kernels use.
//
// A thread holds d[4 j + {0, 1}] = row lane / 4, columns 8 j + 2 (lane % 4) + {0, 1}, and
// d[4 j + {2, 3}] = the same columns 8 rows below; warp w of the warpgroup has rows 16 w ...
// In registers, a[0] = row lane / 4, columns 2 (lane % 4) + {0, 1}; a[1] = the same 8 rows below;
// a[2] and a[3] = the same as these 8 columns on.
#pragma once

#include <cstdint>

namespace moe::cuda {

enum class Element : int { bf16, e4m3 };

template <int kN>
struct Wgmma;
template <int kN>
struct WgmmaRegisters;  // A in registers

// clang-format off
#define MOE_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MOE_D8(i) MOE_D4(i), MOE_D4(i + 4)
#define MOE_D32(i) MOE_D8(i), MOE_D8(i + 8), MOE_D8(i + 16), MOE_D8(i + 24)

// REGISTERS names the accumulators %0 ...; A, B, P are the operands that follow them.
#define MOE_WGMMA(N, REGISTERS, A, B, P, ...)                                                   \
  template <>                                                                                   \
  struct Wgmma<N> {                                                                             \
    template <Element kElement>                                                                 \
    __device__ static inline void run(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {     \
      if constexpr (kElement == Element::bf16)                                                  \
        asm volatile("{.reg .pred p; setp.ne.b32 p, " P ", 0;"                                  \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS     \
                     "}, " A ", " B ", p, 1, 1, 0, 0;}"                                         \
                     : __VA_ARGS__ : "l"(a), "l"(b), "r"(add));                                 \
      else                                                                                      \
        asm volatile("{.reg .pred p; setp.ne.b32 p, " P ", 0;"                                  \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" REGISTERS     \
                     "}, " A ", " B ", p, 1, 1;}"                                               \
                     : __VA_ARGS__ : "l"(a), "l"(b), "r"(add));                                 \
    }                                                                                           \
  };

#define MOE_WGMMA_REGISTERS(N, REGISTERS, A, B, P, ...)                                         \
  template <>                                                                                   \
  struct WgmmaRegisters<N> {                                                                    \
    __device__ static inline void run(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,    \
                                      int add) {                                                \
      asm volatile("{.reg .pred p; setp.ne.b32 p, " P ", 0;"                                    \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS       \
                   "}, {" A "}, " B ", p, 1, 1, 0;}"                                            \
                   : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)); \
    }                                                                                           \
  };

#define MOE_Q0 MOE_R0 ", " MOE_R8 ", " MOE_R16 ", " MOE_R24
#define MOE_Q32 MOE_R32 ", " MOE_R40 ", " MOE_R48 ", " MOE_R56
#define MOE_Q64 MOE_R64 ", " MOE_R72 ", " MOE_R80 ", " MOE_R88
#define MOE_Q96 MOE_R96 ", " MOE_R104 ", " MOE_R112 ", " MOE_R120
#define MOE_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MOE_R8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define MOE_R16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define MOE_R24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define MOE_R32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define MOE_R40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define MOE_R48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define MOE_R56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define MOE_R64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define MOE_R72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define MOE_R80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define MOE_R88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define MOE_R96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define MOE_R104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define MOE_R112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define MOE_R120 "%120, %121, %122, %123, %124, %125, %126, %127"

MOE_WGMMA(8, "%0, %1, %2, %3", "%4", "%5", "%6",
          MOE_D4(0))
MOE_WGMMA(16, MOE_R0, "%8", "%9", "%10",
          MOE_D8(0))
MOE_WGMMA(32, MOE_R0 ", " MOE_R8, "%16", "%17", "%18",
          MOE_D8(0), MOE_D8(8))
MOE_WGMMA(64, MOE_Q0, "%32", "%33", "%34",
          MOE_D32(0))
MOE_WGMMA(96, MOE_Q0 ", " MOE_R32 ", " MOE_R40, "%48", "%49", "%50",
          MOE_D32(0), MOE_D8(32), MOE_D8(40))
MOE_WGMMA(128, MOE_Q0 ", " MOE_Q32, "%64", "%65", "%66",
          MOE_D32(0), MOE_D32(32))
MOE_WGMMA(144, MOE_Q0 ", " MOE_Q32 ", " MOE_R64, "%72", "%73", "%74",
          MOE_D32(0), MOE_D32(32), MOE_D8(64))
MOE_WGMMA(160, MOE_Q0 ", " MOE_Q32 ", " MOE_R64 ", " MOE_R72, "%80", "%81", "%82",
          MOE_D32(0), MOE_D32(32), MOE_D8(64), MOE_D8(72))
MOE_WGMMA(176, MOE_Q0 ", " MOE_Q32 ", " MOE_R64 ", " MOE_R72 ", " MOE_R80, "%88", "%89", "%90",
          MOE_D32(0), MOE_D32(32), MOE_D8(64), MOE_D8(72), MOE_D8(80))
MOE_WGMMA(192, MOE_Q0 ", " MOE_Q32 ", " MOE_Q64, "%96", "%97", "%98",
          MOE_D32(0), MOE_D32(32), MOE_D32(64))
MOE_WGMMA(208, MOE_Q0 ", " MOE_Q32 ", " MOE_Q64 ", " MOE_R96, "%104", "%105", "%106",
          MOE_D32(0), MOE_D32(32), MOE_D32(64), MOE_D8(96))
MOE_WGMMA(224, MOE_Q0 ", " MOE_Q32 ", " MOE_Q64 ", " MOE_R96 ", " MOE_R104, "%112", "%113", "%114",
          MOE_D32(0), MOE_D32(32), MOE_D32(64), MOE_D8(96), MOE_D8(104))
MOE_WGMMA(240, MOE_Q0 ", " MOE_Q32 ", " MOE_Q64 ", " MOE_R96 ", " MOE_R104 ", " MOE_R112, "%120", "%121", "%122",
          MOE_D32(0), MOE_D32(32), MOE_D32(64), MOE_D8(96), MOE_D8(104), MOE_D8(112))
MOE_WGMMA(256, MOE_Q0 ", " MOE_Q32 ", " MOE_Q64 ", " MOE_Q96, "%128", "%129", "%130",
          MOE_D32(0), MOE_D32(32), MOE_D32(64), MOE_D32(96))

MOE_WGMMA_REGISTERS(8, "%0, %1, %2, %3", "%4, %5, %6, %7", "%8", "%9",
                    MOE_D4(0))
MOE_WGMMA_REGISTERS(16, MOE_R0, "%8, %9, %10, %11", "%12", "%13",
                    MOE_D8(0))
MOE_WGMMA_REGISTERS(32, MOE_R0 ", " MOE_R8, "%16, %17, %18, %19", "%20", "%21",
                    MOE_D8(0), MOE_D8(8))
MOE_WGMMA_REGISTERS(64, MOE_Q0, "%32, %33, %34, %35", "%36", "%37",
                    MOE_D32(0))
MOE_WGMMA_REGISTERS(96, MOE_Q0 ", " MOE_R32 ", " MOE_R40, "%48, %49, %50, %51", "%52", "%53",
                    MOE_D32(0), MOE_D8(32), MOE_D8(40))
MOE_WGMMA_REGISTERS(128, MOE_Q0 ", " MOE_Q32, "%64, %65, %66, %67", "%68", "%69",
                    MOE_D32(0), MOE_D32(32))

#undef MOE_WGMMA_REGISTERS
#undef MOE_WGMMA
#undef MOE_D32
#undef MOE_D8
#undef MOE_D4
// clang-format on

}  // namespace moe::cuda
