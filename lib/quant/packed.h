// How published checkpoints pack the integers of int4 and int8 matrices into 32-bit words, and
// back. Words are as stored, little-endian, of any alignment; K inputs, N outputs, G groups, P
// integers per word (8 of int4, 4 of int8). Scales are not packed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/formats.h"

namespace moe {

enum class Packing : int32_t {
  none,
  // AutoAWQ "gemm", int4: values (K, N / 8), zeros (G, N / 8); within a word the outputs stand in
  // the order 0 2 4 6 1 3 5 7.
  awq,
  // Values (K / P, N), zeros (G, N / P) less one, wrapping around.
  gptq,
  // The same with zeros as they are.
  gptq_v2,
  // compressed-tensors "pack-quantized": values (N, ceil(K / P)), each integer plus half its range;
  // zeros (ceil(N / P), G) likewise.
  compressed,
};

const char* to_string(Packing packing);  // "gptq"

// One matrix and how it is packed.
struct PackedMatrix {
  Packing packing = Packing::none;
  Format format;
  int64_t rows = 0;     // N
  int64_t columns = 0;  // K
};

inline int64_t per_word(const Format& format) { return format.kind == FormatKind::int4 ? 8 : 4; }

// ok, or unimplemented where rows or columns do not fill whole words as they must.
Status check_packed(const PackedMatrix& matrix);

// Shapes of the words.
Dims packed_values(const PackedMatrix& matrix);
Dims packed_zeros(const PackedMatrix& matrix);

// Fill canonical values (rows, row_bytes()) and zeros (rows, groups).
void unpack_values(const PackedMatrix& matrix, const std::byte* words, uint8_t* out);
void unpack_zeros(const PackedMatrix& matrix, const std::byte* words, uint8_t* out);

// The zero point of a format without zero points, as unpack_zeros() gives it.
inline uint8_t middle_zero(const Format& format) { return format.kind == FormatKind::int4 ? 8 : 0; }

// The reverse, in Packing::compressed: `values` has the bytes of packed_values(); `zeros` those of
// packed_zeros(), or is null for a matrix without.
void pack_compressed(const QuantMatrix& matrix, std::byte* values, std::byte* zeros);

}  // namespace moe
