// Against vectors/quant_golden.json, which the formats' own packers wrote.
#include "quant/packed.h"

#include <string>

#include "catch.h"
#include "core/json.h"
#include "quant/half.h"

using namespace moe;
using namespace moe::test;

namespace {

const Json& golden(std::string_view name) {
  static const Json file = [] {
    auto read = Json::read(shared_dir() + "/vectors/quant_golden.json");
    REQUIRE(read.ok());
    return *std::move(read);
  }();
  const Json* found = file.find(name);
  REQUIRE(found);
  return *found;
}

void flatten(const Json& json, std::vector<double>* out) {
  if (json.is_array())
    for (const Json& item : json.items()) flatten(item, out);
  else
    out->push_back(json.number().value());
}

template <class T>
std::vector<T> values(const Json& json, std::string_view key) {
  std::vector<double> numbers;
  REQUIRE(json.find(key));
  flatten(*json.find(key), &numbers);
  return std::vector<T>(numbers.begin(), numbers.end());
}

// (G, N) of a checkpoint as (N, G).
void set_scales(const std::vector<float>& stored, QuantBuffer* out) {
  const int64_t groups = groups_of(out->format, out->columns);
  for (int64_t n = 0; n < out->rows; ++n)
    for (int64_t g = 0; g < groups; ++g) out->scales[n * groups + g] = stored[g * out->rows + n];
}

float decoded(const QuantBuffer& buffer, int64_t row, int64_t column) {
  float value;
  find_format(buffer.format.kind)->decode(buffer.view(), row, column, 1, &value);
  return value;
}

}  // namespace

TEST_CASE("AWQ unpacks to AutoAWQ's own numbers, bit for bit", "[quant][mission-43]") {
  const Json& g = golden("awq_gemm_int4");
  QuantBuffer buffer({FormatKind::int4, 8, DType::f16, true}, 16, 16);
  unpack_awq(values<int32_t>(g, "qweight").data(), values<int32_t>(g, "qzeros").data(), &buffer);
  set_scales(values<float>(g, "scales"), &buffer);
  const auto expected = values<float>(g, "dequant_KxN");
  for (int64_t n = 0; n < 16; ++n)
    for (int64_t k = 0; k < 16; ++k) REQUIRE(decoded(buffer, n, k) == expected[k * 16 + n]);
}

TEST_CASE("GPTQ unpacks to AutoGPTQ's own numbers, bit for bit",
          "[quant][mission-42][mission-43]") {
  for (FormatKind kind : {FormatKind::int4, FormatKind::int8}) {
    const Json& g = golden(kind == FormatKind::int4 ? "gptq_v1_int4" : "gptq_v1_int8");
    const auto expected = values<float>(g, "W_out_in");
    const auto g_idx = values<int32_t>(g, "g_idx");
    for (bool order : {false, true}) {
      QuantBuffer buffer({kind, 16, DType::f16, true, order}, 32, 32);
      const auto qweight = values<int32_t>(g, "qweight"), qzeros = values<int32_t>(g, "qzeros");
      unpack_gptq({qweight.data(), qzeros.data(), g_idx.data()}, &buffer);
      set_scales(values<float>(g, "scales"), &buffer);
      for (int64_t n = 0; n < 32; ++n)
        for (int64_t k = 0; k < 32; ++k) REQUIRE(decoded(buffer, n, k) == expected[n * 32 + k]);
    }
  }
}

TEST_CASE("GPTQ zero points wrap: version 1 stores 0 as 15, version 2 as 0",
          "[quant][mission-43]") {
  QuantBuffer buffer({FormatKind::int4, 8, DType::f16, true}, 8, 8);
  const std::vector<int32_t> weights(8, 0), all_15 = {-1}, all_0 = {0};
  unpack_gptq({weights.data(), all_15.data()}, &buffer);
  CHECK(buffer.zeros == std::vector<uint8_t>(8, 0));
  unpack_gptq({weights.data(), all_0.data(), nullptr, true}, &buffer);
  CHECK(buffer.zeros == std::vector<uint8_t>(8, 0));
  unpack_gptq({weights.data(), all_0.data()}, &buffer);
  CHECK(buffer.zeros == std::vector<uint8_t>(8, 1));
}

TEST_CASE("compressed-tensors packs and unpacks as its own code",
          "[quant][mission-42][mission-43]") {
  for (FormatKind kind : {FormatKind::int4, FormatKind::int8}) {
    const bool small = kind == FormatKind::int4;
    const Json& g = golden(small ? "compressed_tensors_pack_int4" : "compressed_tensors_pack_int8");
    const auto expected = values<int32_t>(g, "values");
    const auto packed = values<int32_t>(g, "packed_dim1");
    QuantBuffer buffer({kind, 0, DType::bf16}, 3, 11);
    unpack_compressed({packed.data()}, &buffer);
    std::fill(buffer.scales.begin(), buffer.scales.end(), 1.0f);
    for (int64_t n = 0; n < 3; ++n)
      for (int64_t k = 0; k < 11; ++k)
        REQUIRE(decoded(buffer, n, k) == static_cast<float>(expected[n * 11 + k]));
    std::vector<int32_t> again(packed.size(), -1);
    pack_compressed(buffer.view(), again.data(), nullptr);
    CHECK(again == packed);

    // Zero points are packed along the outputs: here the same integers, 11 groups of one input.
    const auto zeros = values<int32_t>(g, "packed_dim0_zero_point_style");
    QuantBuffer with({kind, 1, DType::bf16, true}, 3, 11);
    unpack_compressed({packed.data(), zeros.data()}, &with);
    for (int64_t i = 0; i < 33; ++i)
      REQUIRE(static_cast<int>(small ? with.zeros[i] - 8 : static_cast<int8_t>(with.zeros[i])) ==
              expected[i]);
    std::vector<int32_t> zeros_again(zeros.size(), -1);
    pack_compressed(with.view(), again.data(), zeros_again.data());
    CHECK(zeros_again == zeros);
  }
}
