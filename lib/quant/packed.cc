#include "quant/packed.h"

#include <algorithm>

#include "quant/int4.h"

namespace moe {
namespace {

// Place `at` of a word, the lowest bits first.
uint32_t field(int32_t word, int64_t at, int bits) {
  return static_cast<uint32_t>(word) >> (at * bits) & ((1u << bits) - 1);
}

int bits_per(const Format& format) { return format.kind == FormatKind::int4 ? 4 : 8; }

// Unsigned integers from 0 on; int8 is kept less 128.
class Writer {
 public:
  explicit Writer(QuantBuffer* out)
      : out_(*out),
        small_(out->format.kind == FormatKind::int4),
        bytes_(row_bytes(out->format, out->columns)) {
    std::fill(out->values.begin(), out->values.end(), uint8_t{0});
  }
  void value(int64_t row, int64_t column, uint32_t q) {
    if (small_)
      out_.values[row * bytes_ + column / 2] |= static_cast<uint8_t>(q << column % 2 * 4);
    else
      out_.values[row * bytes_ + column] = static_cast<uint8_t>(q ^ 0x80);
  }
  void zero(int64_t row, int64_t group, uint32_t q) {
    const int64_t groups = groups_of(out_.format, out_.columns);
    out_.zeros[row * groups + group] = static_cast<uint8_t>(small_ ? q : q ^ 0x80);
  }

 private:
  QuantBuffer& out_;
  bool small_;
  int64_t bytes_;
};

void copy_groups(const int32_t* g_idx, QuantBuffer* out) {
  if (out->format.act_order) out->groups.assign(g_idx, g_idx + out->columns);
}

}  // namespace

void unpack_awq(const int32_t* qweight, const int32_t* qzeros, QuantBuffer* out) {
  constexpr int kNibble[] = {0, 4, 1, 5, 2, 6, 3, 7};  // of the outputs of a word
  Writer writer(out);
  const int64_t words = out->rows / 8, groups = groups_of(out->format, out->columns);
  for (int64_t k = 0; k < out->columns; ++k)
    for (int64_t n = 0; n < out->rows; ++n)
      writer.value(n, k, field(qweight[k * words + n / 8], kNibble[n % 8], 4));
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t n = 0; n < out->rows; ++n)
      writer.zero(n, g, field(qzeros[g * words + n / 8], kNibble[n % 8], 4));
}

void unpack_gptq(const GptqArrays& arrays, QuantBuffer* out) {
  Writer writer(out);
  const int bits = bits_per(out->format);
  const int64_t per = per_word(out->format), words = out->rows / per;
  const uint32_t mask = (1u << bits) - 1, less = arrays.version2 ? 0 : 1;
  for (int64_t k = 0; k < out->columns; ++k)
    for (int64_t n = 0; n < out->rows; ++n)
      writer.value(n, k, field(arrays.qweight[k / per * out->rows + n], k % per, bits));
  for (int64_t g = 0; g < groups_of(out->format, out->columns); ++g)
    for (int64_t n = 0; n < out->rows; ++n)
      writer.zero(n, g, (field(arrays.qzeros[g * words + n / per], n % per, bits) + less) & mask);
  copy_groups(arrays.g_idx, out);
}

void unpack_compressed(const CompressedArrays& arrays, QuantBuffer* out) {
  Writer writer(out);
  const int bits = bits_per(out->format);
  const int64_t per = per_word(out->format), words = (out->columns + per - 1) / per;
  const int64_t groups = groups_of(out->format, out->columns);
  for (int64_t n = 0; n < out->rows; ++n)
    for (int64_t k = 0; k < out->columns; ++k)
      writer.value(n, k, field(arrays.packed[n * words + k / per], k % per, bits));
  for (int64_t n = 0; arrays.zero_point && n < out->rows; ++n)
    for (int64_t g = 0; g < groups; ++g)
      writer.zero(n, g, field(arrays.zero_point[n / per * groups + g], n % per, bits));
  copy_groups(arrays.g_idx, out);
}

void pack_compressed(const QuantMatrix& m, int32_t* packed, int32_t* zero_point) {
  const bool small = m.format.kind == FormatKind::int4;
  const int bits = bits_per(m.format);
  const int64_t per = per_word(m.format), words = (m.columns + per - 1) / per;
  const int64_t groups = groups_of(m.format, m.columns);
  const auto put = [&](int32_t* word, int64_t at, uint32_t q) {
    *word = static_cast<int32_t>(static_cast<uint32_t>(*word) | q << (at * bits));
  };
  std::fill_n(packed, m.rows * words, 0);
  for (int64_t n = 0; n < m.rows; ++n) {
    const uint8_t* row = m.values + n * row_bytes(m.format, m.columns);
    for (int64_t k = 0; k < m.columns; ++k)
      put(packed + n * words + k / per, k % per, small ? int4_at(row, k) : row[k] ^ 0x80u);
  }
  if (!zero_point) return;
  std::fill_n(zero_point, (m.rows + per - 1) / per * groups, 0);
  for (int64_t n = 0; n < m.rows; ++n)
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t zero = m.zeros[n * groups + g];
      put(zero_point + n / per * groups + g, n % per, small ? zero : zero ^ 0x80u);
    }
}

}  // namespace moe
