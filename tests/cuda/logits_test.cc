// The router's matrix product on the GPU against double precision, by every kernel that computes
// it.
#include "router/logits.h"

#include <cmath>
#include <random>

#include "catch.h"
#include "cuda/buffer.h"
#include "quant/half.h"
#include "router/matrix_logits.h"

namespace {

using namespace moe;
using namespace moe::cuda;
using moe::cuda::test::Buffer;

struct Shape {
  int64_t tokens, hidden, padding;
  int32_t candidates;
};

struct Matrix {
  std::vector<std::byte> bytes;
  DType type;
  int64_t stride;
  Matrix(std::mt19937& random, int64_t rows, int64_t columns, int64_t pitch, DType t)
      : bytes(static_cast<size_t>(rows * pitch * bits_of(t) / 8)), type(t), stride(pitch) {
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        store_float(t, bytes.data(), r * pitch + c, normal(random));
  }
  double at(int64_t r, int64_t c) const { return load_float(type, bytes.data(), r * stride + c); }
};

// Largest error over all logits, in units of sqrt(hidden).
double worst_error(const Shape& s, DType row_type, DType weight_type, bool matrix_units,
                   std::mt19937& random) {
  const Matrix rows(random, s.tokens, s.hidden, s.hidden + s.padding, row_type);
  const Matrix weights(random, s.candidates, s.hidden, s.hidden, weight_type);
  const Matrix bias(random, 1, s.candidates, s.candidates, DType::f32);
  const Buffer<std::byte> device_rows(rows.bytes), device_weights(weights.bytes),
      device_bias(bias.bytes);
  struct Table {
    DeviceTable head;
    int32_t slots[256] = {};
  } table;
  REQUIRE(s.candidates <= 256);
  table.head.block.router_weight = device_weights.data();
  table.head.block.router_type = weight_type;
  table.head.block.logit_bias = reinterpret_cast<const float*>(device_bias.data());
  const int64_t valid = s.tokens - (s.tokens > 3 ? 1 : 0);
  const Buffer<Table> device_table(std::vector<Table>{table});
  const Buffer<const DeviceTable*> cell(
      std::vector<const DeviceTable*>{&device_table.data()->head});
  const Buffer<EpochCounters> counters(std::vector<EpochCounters>(1));
  const Buffer<int64_t> valid_rows(std::vector<int64_t>{valid});
  const Buffer<ForwardNote> note(1);
  const Buffer<int32_t> slots(s.candidates);
  const Buffer<float> logits(s.tokens * s.candidates);
  LogitsArgs args;
  args.rows = {device_rows.data(), row_type, s.hidden + s.padding};
  args.hidden = s.hidden;
  args.begin.counters = counters.data();
  args.begin.cell = cell.data();
  args.begin.tokens = s.tokens;
  args.begin.valid_rows = valid_rows.data();
  args.begin.note = note.data();
  args.begin.slots = slots.data();
  args.begin.candidates = s.candidates;
  args.logits = logits.data();
  for (uint64_t forward = 1; forward <= 2; ++forward) {
    MOE_CHECK(matrix_units ? launch_matrix_logits(args, nullptr) : launch_logits(args, nullptr));
    MOE_CHECK(cudaDeviceSynchronize());
    const EpochCounters seen = counters.host()[0];
    REQUIRE(seen.entered == forward);  // once, whatever the number of blocks
    REQUIRE((seen.taken == 0 && seen.done == 0));
    REQUIRE(note.host()[0].rows == valid);
  }
  const std::vector<float> got = logits.host();
  double worst = 0;
  for (int64_t t = 0; t < s.tokens; ++t)
    for (int32_t c = 0; c < s.candidates; ++c) {
      const float value = got[t * s.candidates + c];
      if (t >= valid) {
        if (!std::isnan(value)) return INFINITY;  // rows past the valid ones stay as they were
        continue;
      }
      double want = bias.at(0, c);
      for (int64_t h = 0; h < s.hidden; ++h) want += rows.at(t, h) * weights.at(c, h);
      const double error = std::abs(value - want) / std::sqrt(static_cast<double>(s.hidden));
      if (!(error <= worst)) worst = error;
    }
  return worst;
}

}  // namespace

TEST_CASE("router logits on the GPU are those of double precision", "[cuda][small]") {
  if (!moe::cuda::test::have_gpu()) return moe::test::skip("there is no CUDA device here");
  std::mt19937 random(static_cast<uint32_t>(moe::test::seed()));
  for (const Shape& s :
       {Shape{1, 64, 0, 8}, Shape{5, 70, 3, 17}, Shape{9, 2048, 0, 128}, Shape{33, 264, 8, 65},
        Shape{100, 40, 0, 64}, Shape{530, 72, 0, 20}, Shape{600, 67, 1, 130}})
    for (const DType row : {DType::f32, DType::bf16, DType::f16})
      for (const DType weight : {DType::f32, DType::bf16}) {
        CAPTURE(s.tokens, s.hidden, s.padding, s.candidates, to_string(row), to_string(weight));
        CHECK(worst_error(s, row, weight, false, random) < 5e-6);  // of up to 78,000 sums
      }
}

TEST_CASE("router logits from the matrix units are those of double precision", "[cuda][small]") {
  if (!moe::cuda::test::have_gpu()) return moe::test::skip("there is no CUDA device here");
  std::mt19937 random(static_cast<uint32_t>(moe::test::seed()));
  for (const Shape& s : {Shape{1, 64, 0, 8}, Shape{9, 2048, 0, 128}, Shape{33, 264, 8, 65},
                         Shape{17, 40, 0, 64}, Shape{2100, 72, 0, 20}, Shape{70, 1024, 0, 200}}) {
    CAPTURE(s.tokens, s.hidden, s.padding, s.candidates);
    CHECK(worst_error(s, DType::bf16, DType::bf16, true, random) < 5e-6);
  }
}
