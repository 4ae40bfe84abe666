#include "quant/packed.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace moe {
namespace {

// Rows and columns unpacked in one go: what is read and what is written stay in the L1 cache.
constexpr int64_t kRowBlock = 16;
constexpr int64_t kColumnBlock = 128;

constexpr int kAwqNibble[] = {0, 4, 1, 5, 2, 6, 3, 7};  // of the outputs of a word

bool is_int8(const Format& format) { return format.kind == FormatKind::int8; }
int bits_per(const Format& format) { return is_int8(format) ? 8 : 4; }

uint32_t word_at(const std::byte* words, int64_t at) {
  uint32_t word;
  std::memcpy(&word, words + at * 4, sizeof word);
  return word;
}

// `count` unsigned integers as canonical bytes; int8 is kept less 128. A word's low bits come
// first, so its bytes are canonical as they stand.
void copy_bytes(const Format& format, const std::byte* from, int64_t count, uint8_t* out) {
  std::memcpy(out, from, static_cast<size_t>(count));
  if (!is_int8(format)) return;
  for (int64_t i = 0; i < count; ++i) out[i] ^= 0x80;
}

void awq_values(const PackedMatrix& m, const std::byte* words, uint8_t* out) {
  const int64_t bytes = row_bytes(m.format, m.columns), width = m.rows / 8;
  for (int64_t first = 0; first < m.columns; first += kColumnBlock)
    for (int64_t w = 0; w < width; ++w)
      for (int64_t k = first; k < std::min(first + kColumnBlock, m.columns); k += 2) {
        const uint32_t even = word_at(words, k * width + w);
        const uint32_t odd = k + 1 < m.columns ? word_at(words, (k + 1) * width + w) : 0;
        for (int64_t n = 0; n < 8; ++n) {
          const int shift = kAwqNibble[n] * 4;
          out[(w * 8 + n) * bytes + k / 2] =
              static_cast<uint8_t>((even >> shift & 0xf) | (odd >> shift & 0xf) << 4);
        }
      }
}

void gptq_values(const PackedMatrix& m, const std::byte* words, uint8_t* out) {
  const int64_t bytes = row_bytes(m.format, m.columns), high = m.columns / per_word(m.format);
  for (int64_t first = 0; first < m.rows; first += kRowBlock)
    for (int64_t w = 0; w < high; ++w)
      for (int64_t n = first; n < std::min(first + kRowBlock, m.rows); ++n)
        copy_bytes(m.format, words + (w * m.rows + n) * 4, 4, out + n * bytes + w * 4);
}

void compressed_values(const PackedMatrix& m, const std::byte* words, uint8_t* out) {
  const int64_t bytes = row_bytes(m.format, m.columns), stored = packed_values(m)[1] * 4;
  for (int64_t n = 0; n < m.rows; ++n)
    copy_bytes(m.format, words + n * stored, bytes, out + n * bytes);
}

// Where the zero point of output n and group g lies.
struct ZeroAt {
  int64_t word;
  int64_t place;  // within the word, the lowest bits first
};

ZeroAt zero_at(const PackedMatrix& m, int64_t n, int64_t g) {
  const int64_t per = per_word(m.format);
  switch (m.packing) {
    case Packing::awq: return {g * (m.rows / 8) + n / 8, kAwqNibble[n % 8]};
    case Packing::compressed: return {n / per * groups_of(m.format, m.columns) + g, n % per};
    default: return {g * (m.rows / per) + n / per, n % per};
  }
}

}  // namespace

const char* to_string(Packing packing) {
  switch (packing) {
    case Packing::none: return "none";
    case Packing::awq: return "awq";
    case Packing::gptq: return "gptq";
    case Packing::gptq_v2: return "gptq_v2";
    case Packing::compressed: return "pack-quantized";
  }
  return "unknown";
}

Status check_packed(const PackedMatrix& m) {
  if (m.packing == Packing::compressed || m.packing == Packing::none) return {};
  const int64_t per = per_word(m.format);
  const bool rows = m.rows % per == 0;
  const bool columns = m.packing == Packing::awq || m.columns % per == 0;
  if (rows && columns) return {};
  return error(
      StatusCode::unimplemented, {},
      "a matrix of {} outputs and {} inputs cannot be packed as {}, which puts {} {} into a "
      "word",
      m.rows, m.columns, to_string(m.packing), per, rows ? "inputs" : "outputs");
}

Dims packed_values(const PackedMatrix& m) {
  const int64_t per = per_word(m.format);
  switch (m.packing) {
    case Packing::awq: return {m.columns, m.rows / 8};
    case Packing::compressed: return {m.rows, (m.columns + per - 1) / per};
    default: return {m.columns / per, m.rows};
  }
}

Dims packed_zeros(const PackedMatrix& m) {
  const int64_t per = per_word(m.format), groups = groups_of(m.format, m.columns);
  if (m.packing == Packing::compressed) return {(m.rows + per - 1) / per, groups};
  return {groups, m.rows / per};
}

void unpack_values(const PackedMatrix& m, const std::byte* words, uint8_t* out) {
  switch (m.packing) {
    case Packing::awq: return awq_values(m, words, out);
    case Packing::compressed: return compressed_values(m, words, out);
    default: return gptq_values(m, words, out);
  }
}

void unpack_zeros(const PackedMatrix& m, const std::byte* words, uint8_t* out) {
  const int bits = bits_per(m.format);
  const int64_t groups = groups_of(m.format, m.columns);
  const uint32_t mask = (1u << bits) - 1, less = m.packing == Packing::gptq ? 1 : 0;
  for (int64_t n = 0; n < m.rows; ++n)
    for (int64_t g = 0; g < groups; ++g) {
      const ZeroAt at = zero_at(m, n, g);
      const uint32_t q = ((word_at(words, at.word) >> (at.place * bits)) + less) & mask;
      out[n * groups + g] = static_cast<uint8_t>(is_int8(m.format) ? q ^ 0x80 : q);
    }
}

void pack_compressed(const QuantMatrix& matrix, std::byte* values, std::byte* zeros) {
  const PackedMatrix m{Packing::compressed, matrix.format, matrix.rows, matrix.columns};
  const int64_t bytes = row_bytes(m.format, m.columns), stored = packed_values(m)[1] * 4;
  std::memset(values, 0, static_cast<size_t>(m.rows * stored));
  for (int64_t n = 0; n < m.rows; ++n)
    copy_bytes(m.format, reinterpret_cast<const std::byte*>(matrix.values) + n * bytes, bytes,
               reinterpret_cast<uint8_t*>(values) + n * stored);
  if (!zeros) return;
  const int64_t groups = groups_of(m.format, m.columns);
  std::memset(zeros, 0, static_cast<size_t>(packed_zeros(m).elements() * 4));
  for (int64_t n = 0; n < m.rows; ++n)
    for (int64_t g = 0; g < groups; ++g) {
      const ZeroAt at = zero_at(m, n, g);
      const uint8_t zero = matrix.zeros[n * groups + g];
      const uint32_t q = is_int8(m.format) ? zero ^ 0x80u : zero;
      const uint32_t word = word_at(zeros, at.word) | q << (at.place * bits_per(m.format));
      std::memcpy(zeros + at.word * 4, &word, sizeof word);
    }
}

}  // namespace moe
