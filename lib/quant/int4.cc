#include "quant/int4.h"

#include "quant/formats.h"
#include "quant/integer.h"

namespace moe {
namespace {

bool any_group(int32_t group) { return group >= 0; }

void decode(const QuantMatrix& m, int64_t row, int64_t begin, int64_t count, float* out) {
  const uint8_t* q = m.values + row * row_bytes(m.format, m.columns);
  const int64_t first = row * groups_of(m.format, m.columns);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = first + group_at(m, begin + i);
    out[i] = decode_int4(int4_at(q, begin + i), m.zeros ? m.zeros[at] : kInt4Zero, m.scales[at]);
  }
}

void encode(const float* values, QuantBuffer* out) {
  const int64_t bytes = row_bytes(out->format, out->columns);
  encode_integers({.least = 0, .most = 15, .zero = kInt4Zero}, values, out,
                  [&](int64_t row, int64_t column, int q) {
                    out->values[static_cast<size_t>(row * bytes + column / 2)] |=
                        static_cast<uint8_t>(q << column % 2 * 4);
                  });
}

}  // namespace

const QuantFormat kInt4 = {FormatKind::int4, DType::u8, 2,      false, true,
                           "0 or more",      any_group, decode, encode};

}  // namespace moe
