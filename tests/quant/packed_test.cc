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

const std::byte* words(const std::vector<int32_t>& stored) {
  return reinterpret_cast<const std::byte*>(stored.data());
}

// A matrix whose zero points are stored too.
QuantBuffer unpacked(Packing packing, const Format& format, int64_t rows, int64_t columns,
                     const std::vector<int32_t>& stored_values,
                     const std::vector<int32_t>& stored_zeros) {
  QuantBuffer buffer(format, rows, columns);
  const PackedMatrix matrix{packing, format, rows, columns};
  REQUIRE(check_packed(matrix).ok());
  REQUIRE(packed_values(matrix).elements() == static_cast<int64_t>(stored_values.size()));
  unpack_values(matrix, words(stored_values), buffer.values.data());
  if (!format.zero_points) return buffer;
  REQUIRE(packed_zeros(matrix).elements() == static_cast<int64_t>(stored_zeros.size()));
  unpack_zeros(matrix, words(stored_zeros), buffer.zeros.data());
  return buffer;
}

float decoded(const QuantBuffer& buffer, int64_t row, int64_t column) {
  float value;
  find_format(buffer.format.kind)->decode(buffer.view(), row, column, 1, &value);
  return value;
}

}  // namespace

TEST_CASE("AWQ unpacks to AutoAWQ's own numbers, bit for bit", "[quant][mission-43]") {
  const Json& g = golden("awq_gemm_int4");
  QuantBuffer buffer = unpacked(Packing::awq, {FormatKind::int4, 8, DType::f16, true}, 16, 16,
                                values<int32_t>(g, "qweight"), values<int32_t>(g, "qzeros"));
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
    for (bool order : {false, true}) {
      QuantBuffer buffer = unpacked(Packing::gptq, {kind, 16, DType::f16, true, order}, 32, 32,
                                    values<int32_t>(g, "qweight"), values<int32_t>(g, "qzeros"));
      if (order) buffer.groups = values<int32_t>(g, "g_idx");
      set_scales(values<float>(g, "scales"), &buffer);
      for (int64_t n = 0; n < 32; ++n)
        for (int64_t k = 0; k < 32; ++k) REQUIRE(decoded(buffer, n, k) == expected[n * 32 + k]);
    }
  }
}

TEST_CASE("GPTQ zero points wrap: version 1 stores 0 as 15, version 2 as 0",
          "[quant][mission-43]") {
  const Format format{FormatKind::int4, 8, DType::f16, true};
  const std::vector<int32_t> weights(8, 0), all_15 = {-1}, all_0 = {0};
  const auto zeros = [&](Packing packing, const std::vector<int32_t>& stored) {
    return unpacked(packing, format, 8, 8, weights, stored).zeros;
  };
  CHECK(zeros(Packing::gptq, all_15) == std::vector<uint8_t>(8, 0));
  CHECK(zeros(Packing::gptq_v2, all_0) == std::vector<uint8_t>(8, 0));
  CHECK(zeros(Packing::gptq, all_0) == std::vector<uint8_t>(8, 1));
}

TEST_CASE("matrices that do not fill whole words are refused", "[quant]") {
  const Format format{FormatKind::int4, 8, DType::f16, true};
  CHECK(check_packed({Packing::awq, format, 16, 7}).ok());
  CHECK(check_packed({Packing::compressed, format, 3, 7}).ok());
  const Status outputs = check_packed({Packing::awq, format, 12, 8});
  CHECK(outputs.code() == StatusCode::unimplemented);
  CHECK(outputs.message().find("12 outputs") != std::string_view::npos);
  CHECK(check_packed({Packing::gptq, format, 16, 12}).message().find("8 inputs") !=
        std::string_view::npos);
  CHECK(check_packed({Packing::gptq, {FormatKind::int8, 8, DType::f16, true}, 16, 12}).ok());
}

TEST_CASE("compressed-tensors packs and unpacks as its own code",
          "[quant][mission-42][mission-43]") {
  for (FormatKind kind : {FormatKind::int4, FormatKind::int8}) {
    const bool small = kind == FormatKind::int4;
    const Json& g = golden(small ? "compressed_tensors_pack_int4" : "compressed_tensors_pack_int8");
    const auto expected = values<int32_t>(g, "values");
    const auto packed = values<int32_t>(g, "packed_dim1");
    QuantBuffer buffer = unpacked(Packing::compressed, {kind, 0, DType::bf16}, 3, 11, packed, {});
    std::fill(buffer.scales.begin(), buffer.scales.end(), 1.0f);
    for (int64_t n = 0; n < 3; ++n)
      for (int64_t k = 0; k < 11; ++k)
        REQUIRE(decoded(buffer, n, k) == static_cast<float>(expected[n * 11 + k]));
    std::vector<int32_t> again(packed.size(), -1);
    const auto bytes = [](std::vector<int32_t>& v) {
      return reinterpret_cast<std::byte*>(v.data());
    };
    pack_compressed(buffer.view(), bytes(again), nullptr);
    CHECK(again == packed);

    // Zero points are packed along the outputs: here the same integers, 11 groups of one input.
    const auto zeros = values<int32_t>(g, "packed_dim0_zero_point_style");
    const QuantBuffer with =
        unpacked(Packing::compressed, {kind, 1, DType::bf16, true}, 3, 11, packed, zeros);
    for (int64_t i = 0; i < 33; ++i)
      REQUIRE(static_cast<int>(small ? with.zeros[i] - 8 : static_cast<int8_t>(with.zeros[i])) ==
              expected[i]);
    std::vector<int32_t> zeros_again(zeros.size(), -1);
    pack_compressed(with.view(), bytes(again), bytes(zeros_again));
    CHECK(zeros_again == zeros);
  }
}
