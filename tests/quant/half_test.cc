#include "quant/half.h"

#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"

using namespace moe;

namespace {

// A 16-bit float by its definition.
double decode(uint16_t half, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int exponent = half >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = half & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  const int hidden = exponent ? 1 << mantissa_bits : 0;
  return sign * std::ldexp(hidden + mantissa, std::max(exponent, 1) - bias - mantissa_bits);
}

// Every finite half, the value midway to the next, and the floats on either side of it.
template <class Encode, class Decode>
void check_rounding(uint16_t infinity, Encode encode, Decode to_f32) {
  int wrong = 0;
  for (uint32_t h = 0; h < infinity; ++h) {
    const float low = to_f32(static_cast<uint16_t>(h));
    const double next = h + 1 < infinity ? to_f32(static_cast<uint16_t>(h + 1))
                                         : 2.0 * low - to_f32(static_cast<uint16_t>(h - 1));
    const float middle = static_cast<float>((low + next) / 2);
    const uint32_t even = h & 1 ? h + 1 : h;
    for (uint32_t sign : {0u, 0x8000u}) {
      const float s = sign ? -1.0f : 1.0f;
      wrong += encode(s * low) != (h | sign);
      if (middle == (low + next) / 2) {  // f32 subnormals have no exact middle below the first
        wrong += encode(s * middle) != (even | sign);
        wrong += encode(s * std::nextafter(middle, 0.0f)) != (h | sign);
        wrong += encode(s * std::nextafter(middle, INFINITY)) != ((h + 1) | sign);
      }
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("all 65536 halves decode to their value", "[quant]") {
  int wrong = 0;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const double f16 = decode(half, 5), bf16 = decode(half, 8);
    const float a = f16_to_f32(half), b = bf16_to_f32(half);
    wrong += std::isnan(f16) ? !std::isnan(a) : a != f16 || std::signbit(a) != std::signbit(f16);
    wrong += std::isnan(bf16) ? !std::isnan(b) : b != bf16 || std::signbit(b) != std::signbit(bf16);
  }
  CHECK(wrong == 0);
}

TEST_CASE("rounding goes to the nearest half, ties to even", "[quant]") {
  check_rounding(0x7c00, f32_to_f16, f16_to_f32);
  check_rounding(0x7f80, f32_to_bf16, bf16_to_f32);
}

TEST_CASE("NaN survives the way to 16 bits and infinity stays infinity", "[quant]") {
  for (uint32_t bits : {0x7f800001u, 0xffffffffu, 0x7fc00000u, 0x7f80ffffu, 0xff800001u}) {
    const float nan = detail::f32_of_bits(bits);
    CHECK(std::isnan(f16_to_f32(f32_to_f16(nan))));
    CHECK(std::isnan(bf16_to_f32(f32_to_bf16(nan))));
  }
  CHECK(f32_to_f16(INFINITY) == 0x7c00);
  CHECK(f32_to_bf16(-INFINITY) == 0xff80);
  CHECK(f32_to_f16(1e30f) == 0x7c00);
}

TEST_CASE("rows of every float type go to f32 and back, strided too", "[quant]") {
  const std::vector<float> values = {0, -1, 0.5f, 3, -1024, 0.25f, 7};
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    REQUIRE(is_float(type));
    for (int64_t stride : {1, 3}) {
      std::vector<double> memory(values.size() * 3);
      std::vector<float> back(values.size(), 99.0f);
      store_row(type, values.data(), static_cast<int64_t>(values.size()), memory.data(), stride);
      load_row(type, memory.data(), stride, static_cast<int64_t>(values.size()), back.data());
      CHECK(back == values);
    }
  }
  CHECK_FALSE(is_float(DType::i32));
}
