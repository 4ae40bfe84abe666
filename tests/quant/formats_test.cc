#include "quant/formats.h"

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

// Root of the mean squared error over that of the values.
double round_trip_error(const Format& format, int64_t rows, int64_t columns) {
  const auto values = random_values(rows * columns, moe::test::seed());
  QuantBuffer buffer(format, rows, columns);
  find_format(format.kind)->encode(values.data(), &buffer);
  REQUIRE(check_matrix(buffer.view()).ok());
  std::vector<float> row(static_cast<size_t>(columns));
  double error = 0, norm = 0;
  for (int64_t r = 0; r < rows; ++r) {
    find_format(format.kind)->decode(buffer.view(), r, 0, columns, row.data());
    for (int64_t c = 0; c < columns; ++c) {
      const double value = values[static_cast<size_t>(r * columns + c)];
      const double off = row[static_cast<size_t>(c)] - value;
      error += off * off;
      norm += value * value;
    }
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("quantised normal numbers come back within what their bits allow",
          "[quant][mission-42]") {
  const auto at_most = [](const Format& format, double least, double most) {
    const double error = round_trip_error(format, 7, 391);
    INFO(format_name(format) << ": " << error);
    CHECK(error > least);
    CHECK(error < most);
  };
  at_most({FormatKind::int8, 0}, 0.004, 0.010);
  at_most({FormatKind::int8, 32, DType::bf16}, 0.003, 0.007);
  at_most({FormatKind::int8, 64, DType::f16, true}, 0.003, 0.007);
  at_most({FormatKind::int4, 0, DType::f32}, 0.10, 0.15);
  at_most({FormatKind::int4, 32, DType::bf16}, 0.06, 0.095);
  at_most({FormatKind::int4, 64, DType::f16}, 0.07, 0.11);
  at_most({FormatKind::int4, 128, DType::f16, true}, 0.07, 0.12);
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
