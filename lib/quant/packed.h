// How published checkpoints pack int4 and int8 matrices, and back: AWQ, GPTQ, compressed-tensors.
// Arrays are as stored; K inputs, N outputs, G groups. Each function fills the integers, zero
// points and group indices of `out`, whose format, rows (N) and columns (K) are set; scales are not
// packed.
#pragma once

#include <cstdint>

#include "quant/formats.h"

namespace moe {

// Integers per 32-bit word.
inline int64_t per_word(const Format& format) { return format.kind == FormatKind::int4 ? 8 : 4; }

// AutoAWQ "gemm", int4: qweight (K, N / 8), qzeros (G, N / 8); within a word the outputs stand in
// the order 0 2 4 6 1 3 5 7.
void unpack_awq(const int32_t* qweight, const int32_t* qzeros, QuantBuffer* out);

// GPTQ: qweight (K / per_word, N), qzeros (G, N / per_word), g_idx (K). Version 1 stores zero
// points less one, wrapping around.
struct GptqArrays {
  const int32_t* qweight = nullptr;
  const int32_t* qzeros = nullptr;
  const int32_t* g_idx = nullptr;  // null without act-order
  bool version2 = false;
};
void unpack_gptq(const GptqArrays& arrays, QuantBuffer* out);

// compressed-tensors "pack-quantized": weight_packed (N, ceil(K / per_word)), each integer plus
// half its range; weight_zero_point (ceil(N / per_word), G) likewise; weight_g_idx (K).
struct CompressedArrays {
  const int32_t* packed = nullptr;
  const int32_t* zero_point = nullptr;  // null: symmetric
  const int32_t* g_idx = nullptr;       // null without act-order
};
void unpack_compressed(const CompressedArrays& arrays, QuantBuffer* out);

// The reverse: `packed` has N * ceil(K / per_word) words, `zero_point` ceil(N / per_word) * G or is
// null for a symmetric format.
void pack_compressed(const QuantMatrix& matrix, int32_t* packed, int32_t* zero_point);

}  // namespace moe
