// What belongs to the caller: its device, context, streams and errors.
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>

#include <cuda.h>

#include "catch.h"
#include "cuda/disturb.h"
#include "cuda/host.h"
#include "moe/moe.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::skip;
using HostRows = moe::test::Rows;

// An error of the caller's own that is not sticky and that it has not looked at.
constexpr cudaError_t kPending = cudaErrorInvalidMemcpyDirection;
void leave_pending() {
  int a = 0, b = 0;
  REQUIRE(cudaMemcpy(&a, &b, sizeof a, static_cast<cudaMemcpyKind>(77)) == kPending);
  REQUIRE(cudaPeekAtLastError() == kPending);
}

template <typename F>
F driver(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  MOE_CHECK(cudaGetDriverEntryPointByVersion(name, &function, 11000, cudaEnableDefault, &found));
  REQUIRE(found == cudaDriverEntryPointSuccess);
  return reinterpret_cast<F>(function);
}

}  // namespace

TEST_CASE("an error that the caller left pending outlives all that the library does",
          "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  const HostRows hidden(random, 30, 64, DType::bf16);
  const DeviceRows in(hidden), out(hidden);
  leave_pending();
  for (const auto& row : expert_gemm_rows()) (void)row.available();
  CHECK(cudaPeekAtLastError() == kPending);
  {
    Model model = must(Model::create(source.source(), {.device = kGpu}));
    CHECK(cudaPeekAtLastError() == kPending);
    Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
    CHECK(cudaPeekAtLastError() == kPending);
    for (int i = 0; i < 3; ++i) must(model.forward(context, 0, in.view(), out.mutable_view()));
    CHECK(cudaPeekAtLastError() == kPending);
  }
  {  // paged: the host waits while the GPU is not ready
    Model all = must(Model::create(source.source(), {.device = kGpu}));
    PlainMemory memory;
    Model model =
        must(Model::create(source.source(), {.device = kGpu,
                                             .expert_memory = 6 * all.store().stats().slot_bytes,
                                             .host = {.device_memory = &memory}}));
    Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
    must(model.forward(context, 0, in.view(), out.mutable_view()));
    CHECK(model.store().stats().paging.misses > 0);
  }
  CHECK(cudaPeekAtLastError() == kPending);

  // A call of ours that fails overwrites the code; that something is pending is not lost.
  const Model model = must(Model::create(source.source(), {.device = kGpu}));
  const auto too_much = Context::create(
      model, {.stream = cuda_stream(stream.stream), .max_tokens = int64_t{1} << 29});
  CHECK(too_much.status().code() == StatusCode::resource_exhausted);
  CHECK(cudaGetLastError() != cudaSuccess);
}

TEST_CASE("an error of the library's own leaves none with the caller", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  const Model model = must(Model::create(source.source(), {.device = kGpu}));
  const auto too_much = Context::create(
      model, {.stream = cuda_stream(stream.stream), .max_tokens = int64_t{1} << 29});
  CHECK(too_much.status().code() == StatusCode::resource_exhausted);
  CHECK(too_much.status().message().find("asked") != std::string_view::npos);
  CHECK(too_much.status().message().find("free") != std::string_view::npos);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
  const auto elsewhere = Model::create(source.source(), {.device = Device::cuda(99)});
  CHECK(elsewhere.status().code() == StatusCode::invalid_argument);
  CHECK(cudaPeekAtLastError() == cudaSuccess);
}

TEST_CASE("a forward runs beside a legacy stream that is busy", "[cuda][overlap]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  Model model = must(Model::create(source.source(), {.device = kGpu}));
  Context context =
      must(Context::create(model, {.stream = cuda_stream(stream.stream), .max_tokens = 20}));
  const HostRows hidden(random, 20, 64, DType::bf16);
  const DeviceRows in(hidden), out(hidden);
  must(model.forward(context, 0, in.view(), out.mutable_view()));
  MOE_CHECK(cudaDeviceSynchronize());

  int* stop = nullptr;
  MOE_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&stop), sizeof *stop, 0));
  *stop = 0;
  MOE_CHECK(launch_wait(stop, cudaStreamLegacy));
  must(model.forward(context, 0, in.view(), out.mutable_view()));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  cudaError_t done = cudaErrorNotReady;
  while (done == cudaErrorNotReady && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    done = cudaStreamQuery(stream.stream);
  }
  CHECK(done == cudaSuccess);
  CHECK(cudaStreamQuery(cudaStreamLegacy) == cudaErrorNotReady);  // it was busy all the while
  *reinterpret_cast<volatile int*>(stop) = 1;
  MOE_CHECK(cudaDeviceSynchronize());
  (void)cudaGetLastError();
  MOE_CHECK(cudaFreeHost(stop));
}

TEST_CASE("the caller's own driver context stays current", "[cuda]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  const HostRows hidden(random, 20, 64, DType::bf16);
  const DeviceRows in(hidden), out(hidden);
  CUcontext primary = nullptr, own = nullptr, now = nullptr;
  const auto current = driver<CUresult (*)(CUcontext*)>("cuCtxGetCurrent");
  REQUIRE(current(&primary) == CUDA_SUCCESS);
  REQUIRE(driver<CUresult (*)(CUcontext*, unsigned, CUdevice)>("cuCtxCreate")(&own, 0, 0) ==
          CUDA_SUCCESS);
  {
    Model model = must(Model::create(source.source(), {.device = kGpu}));
    Context context = must(Context::create(model, {.stream = cuda_stream(stream.stream)}));
    must(model.forward(context, 0, in.view(), out.mutable_view()));
    REQUIRE(current(&now) == CUDA_SUCCESS);
    CHECK(now == own);
  }
  REQUIRE(current(&now) == CUDA_SUCCESS);
  CHECK(now == own);
  REQUIRE(driver<CUresult (*)(CUcontext)>("cuCtxSetCurrent")(primary) == CUDA_SUCCESS);
  REQUIRE(driver<CUresult (*)(CUcontext)>("cuCtxDestroy")(own) == CUDA_SUCCESS);
  MOE_CHECK(cudaStreamSynchronize(stream.stream));
}

// Hidden, since nothing of the process works afterwards: tools/gpu-tests runs it alone.
TEST_CASE("a sticky error of the caller is answered and stays", "[.][cuda-sticky]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(test::seed());
  const OwnStream stream;
  RandomModel source({plain_layer()}, random, DType::bf16);
  const HostRows hidden(random, 20, 64, DType::bf16);
  std::optional<Model> model = must(Model::create(source.source(), {.device = kGpu}));
  std::optional<Context> context =
      must(Context::create(*model, {.stream = cuda_stream(stream.stream)}));
  const DeviceRows in(hidden), out(hidden);
  MOE_CHECK(launch_fault(nullptr));
  const cudaError_t sticky = cudaDeviceSynchronize();
  REQUIRE(sticky == cudaErrorIllegalAddress);
  const Status status = model->forward(*context, 0, in.view(), out.mutable_view());
  CHECK_FALSE(status.ok());
  CHECK(status.message().find("CUDA failed to") != std::string_view::npos);
  const auto refused = Model::create(source.source(), {.device = kGpu});
  CHECK_FALSE(refused.ok());
  context.reset();
  model.reset();
  CHECK(cudaGetLastError() == sticky);
  CHECK(cudaDeviceSynchronize() == sticky);
}
