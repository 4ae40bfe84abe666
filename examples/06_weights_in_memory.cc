// Uses weights that the host already holds: two experts, small enough to follow by hand.
#include <cstdio>
#include <vector>

#include <moe/moe.h>

int main() {
  using moe::DType;
  using moe::WeightKind;

  // Both experts see every row: top 2 of 2, softmax over equal logits gives 0.5 each.
  moe::LayerSpec layer;
  layer.layer = 0;
  layer.router = {.num_experts = 2, .top_k = 2};
  layer.expert = {.hidden = 2,
                  .intermediate = 2,
                  .activation = moe::Activation::relu2,
                  .gated = false,
                  .format = {moe::FormatKind::f32}};

  const std::vector<float> router = {0, 0, 0, 0};    // (experts, hidden)
  const std::vector<float> identity = {1, 0, 0, 1};  // up and down of expert 0
  const std::vector<float> twice = {2, 0, 0, 2};     // up of expert 1
  moe::MemoryWeights weights({layer});
  const moe::Dims square = {2, 2};
  const struct {
    moe::WeightId id;
    const std::vector<float>& values;
  } tensors[] = {{{0, WeightKind::router_weight}, router},
                 {{0, WeightKind::up, 0}, identity},
                 {{0, WeightKind::down, 0}, identity},
                 {{0, WeightKind::up, 1}, twice},
                 {{0, WeightKind::down, 1}, identity}};
  for (const auto& tensor : tensors) {
    const moe::Status status = weights.set(tensor.id, {tensor.values.data(), DType::f32, square});
    if (!status.ok()) return std::fprintf(stderr, "%s\n", status.message().data()), 1;
  }

  auto model = moe::Model::create(weights);
  if (!model.ok()) return std::fprintf(stderr, "%s\n", model.status().message().data()), 1;
  const float hidden[2] = {3, -1};
  float out[2] = {};
  const moe::Status status =
      model->forward(0, {hidden, DType::f32, {1, 2}}, {out, DType::f32, {1, 2}});
  if (!status.ok()) return std::fprintf(stderr, "%s\n", status.message().data()), 1;

  // 0.5 * relu(3)^2 + 0.5 * relu(6)^2 = 22.5, and nothing passes below zero.
  std::printf("%g %g\n", out[0], out[1]);
  return out[0] == 22.5f && out[1] == 0.0f ? 0 : 1;
}
