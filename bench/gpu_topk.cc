// Times choosing experts on the GPU, alone: gpu_topk prints microseconds a launch, the median of
// replays of a graph of 20 launches over different rows.
#include <cstdio>

#include "cuda/buffer.h"
#include "cuda/oracle.h"
#include "router/topk.h"

namespace {

using namespace moe;
using namespace moe::cuda;
using moe::cuda::test::Buffer;

constexpr int kLaunches = 20, kReplays = 51;

double microseconds(const rule::Rule& rule, int64_t tokens, cudaStream_t stream) {
  const int64_t values = tokens * rule.candidates;
  const Buffer<float> logits(values * kLaunches), weights(tokens * rule.top_k);
  const Buffer<int32_t> ids(tokens * rule.top_k);
  MOE_CHECK(moe::cuda::test::fill_normal(logits.data(), logits.size(), 2, 7));
  MOE_CHECK(cudaDeviceSynchronize());
  MOE_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kLaunches; ++i)
    MOE_CHECK(launch_topk({.rule = rule,
                           .logits = logits.data() + i * values,
                           .tokens = tokens,
                           .ids = ids.data(),
                           .weights = weights.data()},
                          stream));
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  MOE_CHECK(cudaStreamEndCapture(stream, &graph));
  MOE_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  cudaEvent_t begin, end;
  MOE_CHECK(cudaEventCreate(&begin));
  MOE_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kReplays; ++i) {
    MOE_CHECK(cudaEventRecord(begin, stream));
    MOE_CHECK(cudaGraphLaunch(replay, stream));
    MOE_CHECK(cudaEventRecord(end, stream));
    MOE_CHECK(cudaEventSynchronize(end));
    times.push_back(0);
    MOE_CHECK(cudaEventElapsedTime(&times.back(), begin, end));
  }
  MOE_CHECK(cudaEventDestroy(begin));
  MOE_CHECK(cudaEventDestroy(end));
  MOE_CHECK(cudaGraphExecDestroy(replay));
  MOE_CHECK(cudaGraphDestroy(graph));
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return times[kReplays / 2] * 1e3 / kLaunches;
}

}  // namespace

int main() {
  if (!moe::cuda::test::have_gpu()) return std::puts("there is no CUDA device here"), 1;
  const Buffer<float> bias(std::vector<float>(256, 0.f));
  const struct {
    const char* name;
    rule::Rule rule;
  } cases[] = {
      {"softmax, E=128, k=8, normalised",
       {.candidates = 128, .top_k = 8, .weighting = Weighting::softmax_of_selected_logits}},
      {"softmax over all, E=128, k=8",
       {.candidates = 128, .top_k = 8, .normalize = Normalize::sum_plus_epsilon}},
      {"sigmoid, bias, normalised, E=256, k=8",
       {.candidates = 256,
        .top_k = 8,
        .scoring = Scoring::sigmoid,
        .normalize = Normalize::sum_plus_epsilon,
        .epsilon = 1e-20f,
        .scaling = 2.5f,
        .selection_bias = bias.data()}},
      {"sigmoid, bias, 4 of 8 groups, E=256, k=8",
       {.candidates = 256,
        .top_k = 8,
        .scoring = Scoring::sigmoid,
        .num_groups = 8,
        .top_groups = 4,
        .group_score = GroupScore::top2_sum,
        .normalize = Normalize::sum_plus_epsilon,
        .epsilon = 1e-20f,
        .scaling = 2.5f,
        .selection_bias = bias.data()}},
  };
  cudaStream_t stream;
  MOE_CHECK(cudaStreamCreate(&stream));
  std::printf("%-44s %8s %8s %8s %8s\n", "us, M =", "1", "256", "4096", "16384");
  for (const auto& c : cases) {
    std::printf("%-44s", c.name);
    for (const int64_t tokens : {1, 256, 4096, 16384})
      std::printf(" %8.2f", microseconds(c.rule, tokens, stream));
    std::printf("\n");
  }
}
