// A host program: makes a synthetic model and runs one batch through its first layer.
#include <cmath>
#include <cstdio>
#include <vector>

#include <moe/moe.h>

namespace {
int fail(const moe::Status& status) {
  std::fprintf(stderr, "%s: %s\n", moe::to_string(status.code()), status.message().data());
  return 1;
}
}  // namespace

int main() {
  auto weights = moe::make_synthetic({.layers = 1});
  if (!weights.ok()) return fail(weights.status());
  auto model = moe::Model::create(**weights);
  if (!model.ok()) return fail(model.status());

  const moe::LayerSpec& layer = model->layers().front();
  const int64_t rows = 3;
  std::vector<float> hidden(rows * layer.hidden(), 0.5f), out(hidden.size(), NAN);
  const moe::Dims shape = {rows, layer.hidden()};
  const moe::Status status = model->forward(layer.layer, {hidden.data(), moe::DType::f32, shape},
                                            {out.data(), moe::DType::f32, shape});
  if (!status.ok()) return fail(status);

  double norm = 0;
  for (const float value : out) norm += value * value;
  std::printf("moe %s: norm %g\n", MOE_VERSION, norm);
  return std::isfinite(norm) && norm > 0 ? 0 : 1;
}
