// ForwardOptions::batch_invariant on a GPU: a row's bits depend on that row alone.
#include <cstring>

#include "catch.h"
#include "cuda/host.h"
#include "moe/moe.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::skip;
using HostRows = moe::test::Rows;

struct Case {
  const char* gemm;
  DType rows;
  LayerSpec spec;
};

LayerSpec layer(Random& random, int32_t experts, int32_t top_k, bool shared) {
  LayerSpec spec = plain_layer(0, experts, top_k);
  spec.expert.hidden = 8 * random.between(8, 60);
  spec.expert.intermediate = 8 * random.between(8, 40);
  spec.expert.bias = random.chance(0.5);
  spec.router.weight_on_input = !shared && random.chance(0.5);
  if (shared) {
    spec.shared.emplace();
    spec.shared->expert = spec.expert;
    spec.shared->sigmoid_gate = random.chance(0.5);
  }
  return spec;
}

// The rows [first, first + count) of the batch, computed alone.
std::vector<std::byte> alone(Model& model, Context& context, const DeviceRows& in,
                             const HostRows& like, int64_t first, int64_t count,
                             cudaStream_t stream) {
  const int64_t hidden = like.shape[1], bytes = hidden * bits_of(like.dtype) / 8;
  const Buffer<std::byte> out(count * bytes);
  must(model.forward(context, 0,
                     {in.bytes.data() + first * bytes, like.dtype, {count, hidden}, kGpu},
                     {out.data(), like.dtype, {count, hidden}, kGpu}, {.batch_invariant = true}));
  MOE_CHECK(cudaStreamSynchronize(stream));
  return out.host();
}

}  // namespace

TEST_CASE("a row's bits on the GPU do not depend on its batch, if asked for", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  constexpr int64_t kRows = 700;
  for (int round = 0; round < 12; ++round) {
    const Case c = {
        round % 2 ? "cuda-hopper" : "cuda-portable", random.one_of({DType::bf16, DType::f32}),
        layer(random, static_cast<int32_t>(random.one_of({4, 16, 64})), 4, round % 4 < 2)};
    CAPTURE(round, c.gemm, to_string(c.rows), c.spec.router.num_experts, c.spec.expert.hidden,
            c.spec.expert.intermediate, c.spec.shared.has_value());
    RandomModel source({c.spec}, random, DType::bf16);
    Model model = must(Model::create(source.source(), {.device = kGpu, .gemm = c.gemm}));
    Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
    const HostRows hidden(random, kRows, c.spec.hidden(), c.rows);
    const DeviceRows in(hidden);
    const std::vector<std::byte> all = alone(model, context, in, hidden, 0, kRows, stream.stream);
    const size_t row_bytes = all.size() / kRows;
    int64_t different = 0;
    for (const int64_t count : {1, 2, 5, 16, 17, 33, 64, 65, 200, 513})
      for (int part = 0; part < 3; ++part) {
        const int64_t first = random.between(0, kRows - count);
        const auto some = alone(model, context, in, hidden, first, count, stream.stream);
        different += std::memcmp(some.data(), all.data() + first * row_bytes, some.size()) != 0;
      }
    CHECK(different == 0);
  }
}

TEST_CASE("a capacity and batch invariance exclude each other on the GPU", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  LayerSpec spec = plain_layer();
  spec.router.capacity = 3;
  RandomModel source({spec}, random, DType::bf16);
  Model model = must(Model::create(source.source(), {.device = kGpu}));
  Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
  const HostRows hidden(random, 20, 64, DType::bf16);
  const DeviceRows in(hidden), out(hidden);
  const Status refused =
      model.forward(context, 0, in.view(), out.mutable_view(), {.batch_invariant = true});
  CHECK(refused.code() == StatusCode::failed_precondition);
  CHECK(refused.message().find("capacity") != std::string_view::npos);
}
