#include "quant/formats.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "catch.h"
#include "quant/half.h"

using namespace moe;

namespace {

std::vector<float> random_values(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// The step that spans a group's values, in `steps` (with a zero point), or its largest one, in
// `below` or `above` of zero.
double step_of(const Format& format, const float* values, int64_t count) {
  const auto [low, high] = std::minmax_element(values, values + count);
  const double below = format.kind == FormatKind::int8 ? 128 : 8, above = below - 1;
  if (format.zero_points) return (std::max(*high, 0.0f) - std::min(*low, 0.0f)) / (below + above);
  return std::max(*high / above, -*low / below);
}

// Squared errors of a matrix beside what rounding to the nearest step makes of them.
struct RoundTrip {
  double error = 0;
  double noise = 0;     // of steps that hold all values: s^2 / 12 each
  double variance = 0;  // of `noise`: rounding errors are uniform, so 4/5 of its terms' squares
  double chosen = 0;    // as noise, of the steps that were chosen
};

RoundTrip round_trip(const Format& format, int64_t rows, int64_t columns, uint64_t seed) {
  const auto values = random_values(rows * columns, seed);
  QuantBuffer buffer(format, rows, columns);
  find_format(format.kind)->encode(values.data(), &buffer);
  REQUIRE(check_matrix(buffer.view()).ok());
  const double rounding = format.scale == DType::bf16  ? 0x1p-9
                          : format.scale == DType::f16 ? 0x1p-11
                                                       : 0x1p-24;
  const double slack = rounding * (format.kind == FormatKind::int8 ? 255 : 15);
  const int64_t groups = groups_of(format, columns), size = format.group ? format.group : columns;
  std::vector<float> row(static_cast<size_t>(columns));
  RoundTrip sum;
  for (int64_t r = 0; r < rows; ++r) {
    find_format(format.kind)->decode(buffer.view(), r, 0, columns, row.data());
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t count = std::min(size, columns - g * size);
      const float* wanted = values.data() + r * columns + g * size;
      const double step = step_of(format, wanted, count);
      double error = 0;
      for (int64_t i = 0; i < count; ++i)
        error +=
            std::pow(static_cast<double>(row[static_cast<size_t>(g * size + i)]) - wanted[i], 2);
      // The step that holds all values is among those that were tried, and misses by half of itself
      // at most, and at the ends by what rounding the scale makes of all steps.
      const auto n = static_cast<double>(count);
      CHECK(error <= n * std::pow(step * (0.5 + slack), 2));
      const double one = step * step / 12,
                   scale = buffer.scales[static_cast<size_t>(r * groups + g)];
      sum.error += error;
      sum.noise += n * one;
      sum.variance += n * 0.8 * one * one;
      sum.chosen += n * scale * scale / 12;
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("quantised normal numbers come back within what their bits allow",
          "[quant][mission-42]") {
  const Format kMade[] = {{FormatKind::int8, 0},
                          {FormatKind::int8, 32, DType::bf16},
                          {FormatKind::int8, 64, DType::f16, true},
                          {FormatKind::int4, 0, DType::f32},
                          {FormatKind::int4, 32, DType::bf16},
                          {FormatKind::int4, 64, DType::f16},
                          {FormatKind::int4, 128, DType::f16, true}};
  for (const Format& format : kMade)
    for (uint64_t i = 0; i < 20; ++i) {
      const RoundTrip trip = round_trip(format, 7, 391, moe::test::seed() + i);
      CAPTURE(format_name(format), i, trip.error, trip.noise, trip.chosen);
      CHECK(trip.error < trip.noise + 6 * std::sqrt(trip.variance));
      CHECK(trip.error > trip.chosen / 2);  // nobody kept more bits
    }
}

TEST_CASE("what a format can say exactly comes back exactly", "[quant]") {
  for (FormatKind kind : {FormatKind::int8, FormatKind::int4}) {
    const int least = kind == FormatKind::int8 ? -128 : -8, most = -least - 1;
    std::vector<float> values;
    for (int i = 0; i < 64; ++i)
      values.push_back(static_cast<float>(i == 0 ? least : i == 1 ? most : i % most) * 0.25f);
    QuantBuffer buffer({kind, 32, DType::bf16}, 2, 32);
    find_format(kind)->encode(values.data(), &buffer);
    std::vector<float> back(32);
    find_format(kind)->decode(buffer.view(), 0, 0, 32, back.data());
    CHECK(std::equal(back.begin(), back.end(), values.begin()));
  }
}

TEST_CASE("a dead group has a scale that other programs accept", "[quant][mission-47]") {
  const std::vector<float> zeros(64);
  QuantBuffer buffer({FormatKind::int4, 32, DType::f16}, 1, 64);
  find_format(FormatKind::int4)->encode(zeros.data(), &buffer);
  CHECK(check_matrix(buffer.view()).ok());
  std::vector<float> back(64, 5.0f);
  find_format(FormatKind::int4)->decode(buffer.view(), 0, 0, 64, back.data());
  CHECK(back == zeros);
}

TEST_CASE("zero, subnormal and non-finite scales and wild groups are found",
          "[quant][mission-47]") {
  const auto values = random_values(3 * 64, moe::test::seed());
  QuantBuffer good({FormatKind::int4, 32, DType::f16, false, true}, 3, 64);
  find_format(FormatKind::int4)->encode(values.data(), &good);
  for (int i = 0; i < 64; ++i) good.groups[static_cast<size_t>(i)] = i % 2;
  REQUIRE(check_matrix(good.view()).ok());
  for (float bad : {0.0f, NAN, INFINITY, 0x1p-15f}) {
    QuantBuffer broken = good;
    broken.scales[3] = bad;
    const Status status = check_matrix(broken.view());
    CHECK(status.code() == StatusCode::data_loss);
    CHECK(status.message().find("scale [1, 1]") != std::string_view::npos);
  }
  QuantBuffer wild = good;
  wild.groups[7] = 2;
  CHECK(check_matrix(wild.view()).message() == "input 7 is in group 2; there are 2");
}

TEST_CASE("formats have names, shapes and refusals", "[quant]") {
  CHECK(format_name({FormatKind::bf16}) == "bf16");
  CHECK(format_name({FormatKind::int4, 128, DType::f16, true, true}) == "int4-g128-f16-zero-order");
  const Format format{FormatKind::int4, 32, DType::bf16};
  CHECK(value_shape(format, 3, 33) == Dims{3, 17});
  CHECK(scale_shape(format, 3, 33) == Dims{3, 2});
  CHECK(scale_shape({FormatKind::int8}, 3, 33) == Dims{3, 1});
  CHECK(check_format(format).ok());
  CHECK(check_format({FormatKind::int4, -1}).code() == StatusCode::invalid_argument);
  CHECK(check_format({FormatKind::int8, 32, DType::i8}).code() == StatusCode::invalid_argument);
  CHECK(check_format({FormatKind::mxfp4, 32}).code() == StatusCode::unimplemented);
}
