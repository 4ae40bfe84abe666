// Offsets beyond 2^31 elements: a pool of experts, and the rows of all pairs, against double
// precision on sampled rows.
#include <cmath>
#include <random>

#include "catch.h"
#include "cuda/buffer.h"
#include "cuda/oracle.h"
#include "router/topk.h"
#include "runtime/layer.h"

namespace {

using namespace moe::cuda;
using moe::cuda::test::Buffer;

struct Problem {
  int64_t tokens, hidden, intermediate;
  int32_t experts, top_k;
};

ExpertPool make_pool(const Problem& p) {
  ExpertPool pool;
  pool.shape = {p.hidden, p.intermediate, 2, false};
  pool.sections = slot_sections(pool.shape);
  pool.slots = pool.num_experts = p.experts;
  pool.slot_bytes = pool.sections.bytes;
  return pool;
}

// Relative error of 16 rows, the first and the last among them.
double error_of(const Problem& p) {
  ExpertPool pool = make_pool(p);
  const Buffer<std::byte> memory(pool.slots * pool.slot_bytes);
  std::vector<int32_t> order(static_cast<size_t>(p.experts));
  for (int32_t e = 0; e < p.experts; ++e) order[e] = p.experts - 1 - e;
  const Buffer<int32_t> slots(order);
  pool.base = memory.data();
  pool.slot_of_expert = slots.data();
  PoolMaps maps;
  const Buffer<__nv_bfloat16> hidden(p.tokens * p.hidden), out(p.tokens * p.hidden);
  const Buffer<float> logits(p.tokens * p.experts);
  MOE_CHECK(moe::cuda::test::fill_pool(pool, memory.data(), 5));
  MOE_CHECK(moe::cuda::test::fill_normal(hidden.data(), hidden.size(), 1, 6));
  MOE_CHECK(moe::cuda::test::fill_normal(logits.data(), logits.size(), 1, 7));
  MOE_CHECK(make_pool_maps(pool, &maps));
  const Buffer<std::byte> workspace(static_cast<int64_t>(
      layer_workspace_bytes({.routed = pool.shape, .num_experts = p.experts}, p.tokens, p.top_k)));

  LayerArgs args = {};
  args.pool = pool;
  args.kernel = &kHopper;
  args.maps = &maps;
  args.tokens = p.tokens;
  args.top_k = p.top_k;
  args.hidden = {hidden.data(), moe::DType::bf16, p.hidden};
  args.logits = {logits.data(), moe::DType::f32, p.experts};
  args.out = {out.data(), moe::DType::bf16, p.hidden};
  args.workspace = workspace.data();
  MOE_CHECK(cudaDeviceGetAttribute(&args.multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  MOE_CHECK(enqueue_layer(args, nullptr));

  TopKArgs topk;
  topk.rule = args.rule;
  topk.rule.candidates = p.experts;
  topk.rule.top_k = p.top_k;
  topk.logits = logits.data();
  topk.tokens = p.tokens;
  const Buffer<int32_t> ids(p.tokens * p.top_k);
  const Buffer<float> weights(p.tokens * p.top_k);
  topk.ids = ids.data();
  topk.weights = weights.data();
  MOE_CHECK(launch_topk(topk, nullptr));

  constexpr int64_t kSamples = 16;
  std::vector<int64_t> samples;
  for (int64_t s = 0; s < kSamples; ++s) samples.push_back(s * (p.tokens - 1) / (kSamples - 1));
  const Buffer<int64_t> rows(samples);
  const Buffer<double> scratch(kSamples * p.top_k * p.intermediate), want(kSamples * p.hidden);
  moe::cuda::test::OracleArgs oracle;
  oracle.pool = pool;
  oracle.hidden = hidden.data();
  oracle.ids = ids.data();
  oracle.weights = weights.data();
  oracle.top_k = p.top_k;
  oracle.samples = rows.data();
  oracle.num_samples = kSamples;
  oracle.scratch = scratch.data();
  oracle.out = want.data();
  MOE_CHECK(moe::cuda::test::oracle(oracle));
  MOE_CHECK(cudaDeviceSynchronize());
  const std::vector<double> wanted = want.host();
  double difference = 0, norm = 0;
  for (int64_t s = 0; s < kSamples; ++s) {
    const auto got = out.host(samples[s] * p.hidden, p.hidden);
    for (int64_t h = 0; h < p.hidden; ++h) {
      const double w = wanted[s * p.hidden + h], d = static_cast<float>(got[h]) - w;
      difference += d * d;
      norm += w * w;
    }
  }
  return std::sqrt(difference / norm);
}

}  // namespace

TEST_CASE("experts beyond 2^31 elements on the GPU", "[cuda][large][slow]") {
  if (!moe::cuda::test::have_gpu()) return moe::test::skip("there is no CUDA device here");
  CHECK(error_of({.tokens = 64, .hidden = 4096, .intermediate = 7168, .experts = 40, .top_k = 4}) <
        5e-3);
}

TEST_CASE("rows of pairs beyond 2^31 elements on the GPU", "[cuda][large][slow]") {
  if (!moe::cuda::test::have_gpu()) return moe::test::skip("there is no CUDA device here");
  CHECK(
      error_of({.tokens = 140'000, .hidden = 2048, .intermediate = 64, .experts = 16, .top_k = 8}) <
      5e-3);
}
