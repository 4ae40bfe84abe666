// A store's memory on a GPU that grows and shrinks while its model is used.
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

}  // namespace

TEST_CASE("the budget of a paged model on a GPU moves", "[cuda][moving]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  LayerSpec spec = plain_layer(0, 32, 4);
  spec.expert.hidden = 512;
  spec.expert.intermediate = 1024;  // 3 MiB
  RandomModel source({spec}, random, DType::bf16);
  Model all = must(Model::create(source.source(), {.device = kGpu}));
  const size_t slot = all.store().stats().slot_bytes;
  Model paged = must(Model::create(source.source(), {.device = kGpu, .expert_memory = 10 * slot}));
  Context a = must(Context::create(all, {.stream = cuda_stream(stream.stream)}));
  Context b = must(Context::create(paged, {.stream = cuda_stream(stream.stream)}));
  const HostRows hidden(random, 60, 512, DType::bf16);
  const DeviceRows in(hidden), want(hidden), out(hidden);
  must(all.forward(a, 0, in.view(), want.mutable_view()));
  const auto right = [&] {
    must(paged.forward(b, 0, in.view(), out.mutable_view()));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    return distance(out.host(), want.host(), 60) < 1e-2;
  };
  CHECK(right());
  const size_t small = paged.store().stats().pool_bytes;
  CHECK(small <= 10 * slot);

  must(paged.store().set_expert_memory(24 * slot));
  CHECK(right());
  CHECK(right());
  const size_t large = paged.store().stats().pool_bytes;
  CHECK(large > 20 * slot);
  CHECK(large <= 24 * slot);
  const size_t free = free_on_device();

  must(paged.store().set_expert_memory(8 * slot));
  CHECK(paged.store().stats().pool_bytes <= 8 * slot);
  CHECK(free_on_device() >= free + 12 * slot);  // granules are shared at the ends
  CHECK(right());

  const Status least = paged.store().set_expert_memory(1);
  CHECK(least.code() == StatusCode::resource_exhausted);
  CHECK(right());
  must(paged.store().set_expert_memory(40 * slot));  // more than all
  CHECK(right());
  CHECK(right());
  must(paged.store().set_expert_memory(9 * slot));
  CHECK(right());

  const Status resident = all.store().set_expert_memory(10 * slot);
  CHECK(resident.code() == StatusCode::failed_precondition);
  CHECK(resident.message().find("has to page") != std::string_view::npos);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}
