#include "quant/fp8_block.h"

#include <cmath>
#include <fstream>
#include <random>
#include <sstream>

#include "catch.h"
#include "core/json.h"
#include "quant/formats.h"

using namespace moe;

TEST_CASE("every E4M3 code decodes as its definition says", "[quant][mission-41]") {
  if (!test::have_shared()) return test::skip("vectors: ../shared is absent");
  std::ifstream file(test::shared_dir() + "/vectors/quant_golden.json");
  std::stringstream text;
  text << file.rdbuf();
  std::string json = text.str();
  for (size_t at; (at = json.find("NaN")) != std::string::npos;) json.replace(at, 3, "null");
  const auto parsed = Json::parse(json, {});
  REQUIRE(parsed.ok());
  const auto& table = parsed->find("fp8_e4m3fn_table")->find("values")->items();
  REQUIRE(table.size() == 256);
  for (int code = 0; code < 256; ++code) {
    INFO("code " << code);
    const float got = e4m3_to_f32(static_cast<uint8_t>(code));
    if (const auto number = table[static_cast<size_t>(code)].number())
      CHECK(got == *number);
    else
      CHECK(std::isnan(got));
    CHECK(std::signbit(got) == (code >= 128));
  }
}

TEST_CASE("f32 becomes the nearest E4M3, ties to even", "[quant][mission-41]") {
  // The nearest by search; a tie goes to the code that is even.
  const auto nearest = [](float value) {
    int best = 0;
    for (int code = 1; code < 0x7f; ++code) {
      const double off = std::fabs(double(e4m3_to_f32(uint8_t(code))) - std::fabs(value));
      const double best_off = std::fabs(double(e4m3_to_f32(uint8_t(best))) - std::fabs(value));
      if (off < best_off || (off == best_off && code % 2 == 0)) best = code;
    }
    return best | (std::signbit(value) ? 0x80 : 0);
  };
  std::vector<float> values = {0.0f,   -0.0f,  448.0f,   449.0f,    464.0f,   480.0f,   1e9f,
                               -1e30f, 1e-30f, 0x1p-10f, 0x1.8p-9f, INFINITY, -INFINITY};
  for (int code = 0; code < 0x7e; ++code) {  // halfway between neighbours, and beside it
    const float middle = (e4m3_to_f32(uint8_t(code)) + e4m3_to_f32(uint8_t(code + 1))) / 2;
    for (float v : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)})
      values.insert(values.end(), {v, -v});
  }
  std::mt19937_64 random(test::seed());
  std::normal_distribution<float> normal(0, 3);
  for (int i = 0; i < 2000; ++i) values.push_back(std::exp(normal(random)) * (i % 2 ? 1 : -1));
  for (float value : values) {
    INFO(value);
    CHECK(int(f32_to_e4m3(value)) == nearest(value));
  }
  CHECK((f32_to_e4m3(NAN) & 0x7f) == 0x7f);
  for (int code = 0; code < 256; ++code)
    CHECK(((code & 0x7f) == 0x7f || int(f32_to_e4m3(e4m3_to_f32(uint8_t(code)))) == code));
}

TEST_CASE("blocks are ragged at the edges; group 0 is a scale per output", "[quant][mission-41]") {
  CHECK(scale_shape({FormatKind::fp8_block, 128}, 129, 300) == Dims{2, 3});
  CHECK(scale_shape({FormatKind::fp8_block, 0}, 129, 300) == Dims{129, 1});
  QuantBuffer m({FormatKind::fp8_block, 4}, 5, 9);                  // 2 x 3 scales
  for (size_t i = 0; i < m.values.size(); ++i) m.values[i] = 0x38;  // 1
  for (size_t i = 0; i < m.scales.size(); ++i) m.scales[i] = float(i + 1);
  float row[9];
  kFp8Block.decode(m.view(), 4, 0, 9, row);
  CHECK(std::vector<float>(row, row + 9) == std::vector<float>{4, 4, 4, 4, 5, 5, 5, 5, 6});
  kFp8Block.decode(m.view(), 3, 3, 6, row);
  CHECK(std::vector<float>(row, row + 6) == std::vector<float>{1, 2, 2, 2, 2, 3});
  QuantBuffer n({FormatKind::fp8_block, 0}, 2, 3);
  for (uint8_t& value : n.values) value = 0x38;
  n.scales = {2, 3};
  kFp8Block.decode(n.view(), 1, 0, 3, row);
  CHECK(row[2] == 3);
}

TEST_CASE("fp8 comes back within what three bits allow, in every group", "[quant][mission-41]") {
  std::mt19937_64 random(test::seed());
  std::normal_distribution<float> normal(0, 0.02f);
  for (const Format& format : {Format{FormatKind::fp8_block, 128}, Format{FormatKind::fp8_block, 0},
                               Format{FormatKind::fp8_block, 32, DType::bf16}}) {
    const int64_t rows = 200, columns = 300;
    std::vector<float> values(static_cast<size_t>(rows * columns)), row(columns);
    for (float& value : values) value = normal(random);
    QuantBuffer buffer(format, rows, columns);
    kFp8Block.encode(values.data(), &buffer);
    REQUIRE(check_matrix(buffer.view()).ok());
    double error = 0, norm = 0;
    for (int64_t r = 0; r < rows; ++r) {
      kFp8Block.decode(buffer.view(), r, 0, columns, row.data());
      for (int64_t c = 0; c < columns; ++c) {
        const double value = values[static_cast<size_t>(r * columns + c)];
        error += std::pow(row[static_cast<size_t>(c)] - value, 2);
        norm += value * value;
      }
    }
    INFO(format_name(format));
    CHECK(std::sqrt(error / norm) > 0.02);
    CHECK(std::sqrt(error / norm) < 0.035);
  }
}

TEST_CASE("fp8 elements that are NaN are found", "[quant][mission-47]") {
  QuantBuffer m({FormatKind::fp8_block, 128}, 3, 200);
  std::fill(m.scales.begin(), m.scales.end(), 1.0f);
  REQUIRE(check_matrix(m.view()).ok());
  for (uint8_t nan : {0x7f, 0xff}) {
    QuantBuffer broken = m;
    broken.values[2 * 200 + 17] = nan;
    const Status status = check_matrix(broken.view());
    CHECK(status.code() == StatusCode::data_loss);
    CHECK(status.message().find("element [2, 17] is NaN") != std::string_view::npos);
  }
}
