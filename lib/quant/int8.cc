#include "quant/int8.h"

#include "quant/formats.h"
#include "quant/integer.h"

namespace moe {
namespace {

bool any_group(int32_t group) { return group >= 0; }

void decode(const QuantMatrix& m, int64_t row, int64_t begin, int64_t count, float* out) {
  const auto* q = reinterpret_cast<const int8_t*>(m.values) + row * m.columns;
  const int64_t first = row * groups_of(m.format, m.columns);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = first + group_at(m, begin + i);
    const int8_t zero = m.zeros ? static_cast<int8_t>(m.zeros[at]) : int8_t{0};
    out[i] = decode_int8(q[begin + i], zero, m.scales[at]);
  }
}

void encode(const float* values, QuantBuffer* out) {
  encode_integers({.least = -128, .most = 127, .zero = 0}, values, out,
                  [&](int64_t row, int64_t column, int q) {
                    out->values[static_cast<size_t>(row * out->columns + column)] =
                        static_cast<uint8_t>(q);
                  });
}

}  // namespace

const QuantFormat kInt8 = {FormatKind::int8, DType::i8, 1,      false, true,
                           "0 or more",      any_group, decode, encode};

}  // namespace moe
