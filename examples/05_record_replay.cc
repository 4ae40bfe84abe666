// Records where rows went, and later sends them there again: the same bits without a router.
#include <cstdio>
#include <vector>

#include <moe/moe.h>

int main() {
  auto weights = moe::make_synthetic({.family = "mixtral", .layers = 1, .experts = 8, .top_k = 2});
  if (!weights.ok()) return std::fprintf(stderr, "%s\n", weights.status().message().data()), 1;
  auto model = moe::Model::create(**weights);
  if (!model.ok()) return std::fprintf(stderr, "%s\n", model.status().message().data()), 1;

  const moe::LayerSpec& layer = model->layers().front();
  const int64_t rows = 16;
  const moe::Dims shape = {rows, layer.hidden()};
  std::vector<float> hidden(shape.elements()), first(hidden.size()), second(hidden.size());
  for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  const moe::TensorView in = {hidden.data(), moe::DType::f32, shape};

  std::vector<int32_t> ids(rows * 2);
  std::vector<float> shares(rows * 2);
  moe::Routing record = {rows, 2, ids.data(), shares.data()};
  moe::Status status = model->forward(layer.layer, in, {first.data(), moe::DType::f32, shape},
                                      {.routing_out = &record});
  if (status.ok())
    status = model->forward(layer.layer, in, {second.data(), moe::DType::f32, shape},
                            {.routing_in = &record});
  if (!status.ok()) return std::fprintf(stderr, "%s\n", status.message().data()), 1;
  if (first != second) return 1;

  // The record is honoured, not looked at: another choice gives another result.
  ids[0] = ids[0] == 0 ? 1 : 0;
  if (ids[1] == ids[0]) ids[1] = 7;
  status = model->forward(layer.layer, in, {second.data(), moe::DType::f32, shape},
                          {.routing_in = &record});
  if (!status.ok() || first == second) return 1;
  std::printf("replayed %d rows\n", int(rows));
}
