// How one expert lies in a slot of the GPU's pool. What lies in a pinned host slot is the same
// bytes, so a miss is one copy. Everything is row-major; the copy engine swizzles on the way in.
//
//   gate_up       (2 * intermediate', hidden')   rows in blocks of 8: 8 gate rows, their 8 up rows,
//                                                the next 8 gate rows, ... so that one thread of a
//                                                matrix tile ends up with a gate and its up
//   down          (hidden, intermediate')
//   gate_up_scale (2, blocks(intermediate), blocks(hidden)) f32, gate then up     fp8 only
//   down_scale    (blocks(hidden), blocks(intermediate)) f32                       fp8 only
//   gate_up_bias  (2 * intermediate') f32, rows as in gate_up                      with bias only
//   down_bias     (hidden) f32                                                     with bias only
//
// e4m3 elements lie in columns of their own order within each 16 (e4m3_column()), in which a
// thread's 32-bit word of a row holds what it multiplies in one step on bf16 rows. Rows quantised
// to e4m3 lie in the same order.
//
// x' is x rounded up to 16 bytes of weights, the copy engine's granule; what is added is zero.
// blocks(x) = ceil(x / 128). Each section starts at a multiple of 256 bytes, as does a slot.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe::cuda {

inline constexpr int64_t kInterleave = 8;    // rows of gate before their rows of up
inline constexpr int64_t kScaleBlock = 128;  // inputs and outputs that share an fp8 scale
inline constexpr int64_t kSlotAlignment = 256;

struct SlotShape {
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int32_t element_bytes = 2;  // 2: bf16; 1: e4m3 with block scales
  bool bias = false;
  bool gated = true;  // false: there are up rows alone, in their order
};

// Byte offsets from the start of the slot; a section that is absent has the next one's offset.
struct SlotSections {
  int64_t hidden_stride = 0;        // elements of a row of gate_up: hidden'
  int64_t intermediate_stride = 0;  // elements of a row of down: intermediate'
  int64_t gate_up = 0;
  int64_t down = 0;
  int64_t gate_up_scale = 0;
  int64_t down_scale = 0;
  int64_t gate_up_bias = 0;
  int64_t down_bias = 0;
  int64_t bytes = 0;
};

constexpr int64_t round_up(int64_t value, int64_t granule) {
  return (value + granule - 1) / granule * granule;
}

constexpr int64_t scale_blocks(int64_t size) { return (size + kScaleBlock - 1) / kScaleBlock; }

// Sizes must be validated before: no overflow is checked here.
constexpr SlotSections slot_sections(const SlotShape& shape) {
  const int64_t granule = 16 / shape.element_bytes;
  const int64_t blocks = scale_blocks(shape.hidden) * scale_blocks(shape.intermediate);
  const bool fp8 = shape.element_bytes == 1;
  SlotSections s;
  s.hidden_stride = round_up(shape.hidden, granule);
  s.intermediate_stride = round_up(shape.intermediate, granule);
  auto next = [](int64_t offset, int64_t bytes) {
    return round_up(offset + bytes, kSlotAlignment);
  };
  const int64_t gates = shape.gated ? 2 : 1;
  s.down = next(s.gate_up, gates * s.intermediate_stride * s.hidden_stride * shape.element_bytes);
  s.gate_up_scale = next(s.down, shape.hidden * s.intermediate_stride * shape.element_bytes);
  s.down_scale = next(s.gate_up_scale, fp8 ? 2 * blocks * 4 : 0);
  s.gate_up_bias = next(s.down_scale, fp8 ? blocks * 4 : 0);
  s.down_bias = next(s.gate_up_bias, shape.bias ? gates * s.intermediate_stride * 4 : 0);
  s.bytes = next(s.down_bias, shape.bias ? shape.hidden * 4 : 0);
  return s;
}

// The row of gate_up that holds gate row i; its up row is kInterleave below.
constexpr int64_t gate_row(int64_t i) {
  return i / kInterleave * 2 * kInterleave + i % kInterleave;
}

// Where row i of a canonical matrix goes: of gate_up, or of down and of up without a gate.
enum class RowOrder { gate, up, own };
constexpr int64_t row_in_slot(RowOrder order, int64_t i) {
  if (order == RowOrder::own) return i;
  return gate_row(i) + (order == RowOrder::up ? kInterleave : 0);
}

// Where column k of a matrix lies in a row of e4m3: byte b of word w of 16 columns is column
// 2 w + {8, 0, 9, 1}[b].
constexpr int64_t e4m3_column(int64_t k) {
  const int64_t at = k % 16;
  return k - at + at % 8 / 2 * 4 + at % 2 * 2 + (at < 8);
}

}  // namespace moe::cuda
