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
  ForwardNote note;
  note.rows = s.tokens - (s.tokens > 3 ? 1 : 0);
  note.table.block.router_weight = device_weights.data();
  note.table.block.router_type = weight_type;
  note.table.block.logit_bias = reinterpret_cast<const float*>(device_bias.data());
  const Buffer<ForwardNote> device_note(std::vector<ForwardNote>{note});
  const Buffer<float> logits(s.tokens * s.candidates);
  LogitsArgs args;
  args.rows = {device_rows.data(), row_type, s.hidden + s.padding};
  args.tokens = s.tokens;
  args.hidden = s.hidden;
  args.candidates = s.candidates;
  args.note = device_note.data();
  args.logits = logits.data();
  MOE_CHECK(matrix_units ? launch_matrix_logits(args, device_note.data(), nullptr)
                         : launch_logits(args, nullptr));
  MOE_CHECK(cudaDeviceSynchronize());
  const std::vector<float> got = logits.host();
  double worst = 0;
  for (int64_t t = 0; t < s.tokens; ++t)
    for (int32_t c = 0; c < s.candidates; ++c) {
      const float value = got[t * s.candidates + c];
      if (t >= note.rows) {
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
