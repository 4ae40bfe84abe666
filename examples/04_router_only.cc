// Uses the router alone: DeepSeek-V3's rule on logits that the host computed itself.
#include <cstdio>
#include <memory>
#include <vector>

#include <moe/router.h>

int main() {
  // 8 experts in 4 groups; the best 2 groups stay, the best 2 experts of those are taken.
  auto router = moe::Router::create({.num_experts = 8,
                                     .top_k = 2,
                                     .scoring = moe::Scoring::sigmoid,
                                     .num_groups = 4,
                                     .top_groups = 2,
                                     .group_score = moe::GroupScore::top2_sum,
                                     .normalize = moe::Normalize::sum_plus_epsilon,
                                     .epsilon = 1e-20f,
                                     .scaling = 2.5f});
  if (!router.ok()) return std::fprintf(stderr, "%s\n", router.status().message().data()), 1;

  //                            group 0    group 1    group 2    group 3
  const std::vector<float> logits = {9, -9, 1, 2, 3, 4, -1, -2,  // expert 0 is alone in its group
                                     0, 0,  0, 0, 0, 0, 5,  5};  // ties go to the lower index
  const int64_t rows = 2;
  std::vector<int32_t> ids(rows * 2);
  std::vector<float> weights(rows * 2);
  std::vector<std::byte> memory((*router)->workspace_bytes(rows, 1) + 64);
  void* scratch = memory.data();
  size_t space = memory.size();
  std::align(64, space - 64, scratch, space);

  moe::RouteInput input;
  input.logits = {logits.data(), moe::DType::f32, {rows, 8}};
  input.workspace = {static_cast<std::byte*>(scratch), space};
  moe::RouteCounts counts;
  const moe::Status status =
      (*router)->route(input, {rows, 2, ids.data(), weights.data()}, &counts);
  if (!status.ok()) return std::fprintf(stderr, "%s\n", status.message().data()), 1;

  for (int64_t row = 0; row < rows; ++row)
    std::printf("row %d: experts %d and %d, weights %.3f and %.3f\n", int(row), ids[row * 2],
                ids[row * 2 + 1], weights[row * 2], weights[row * 2 + 1]);
  // Groups score 1.0, 1.61, 1.93, 0.39 in row 0: groups 1 and 2 stay, experts 5 and 4 win.
  const bool right = ids[0] == 5 && ids[1] == 4 && ids[2] == 6 && ids[3] == 7 &&
                     weights[2] == 1.25f && weights[0] + weights[1] > 2.4999f;
  return right ? 0 : 1;
}
