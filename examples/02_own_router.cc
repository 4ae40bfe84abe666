// Brings its own router: rows take turns over the experts, whatever is in them.
#include <cstdio>
#include <vector>

#include <moe/moe.h>

namespace {

class TurnRouter final : public moe::Router {
 public:
  explicit TurnRouter(const moe::RouterSpec& spec) : spec_(spec) {}

  const moe::RouterSpec& spec() const noexcept override { return spec_; }

  moe::Status route(const moe::RouteInput&, const moe::Routing& out,
                    moe::RouteCounts*) const override {
    for (int64_t i = 0; i < out.tokens * out.top_k; ++i) {
      out.ids[i] = static_cast<int32_t>(i % spec_.num_experts);
      out.weights[i] = 1.0f / static_cast<float>(out.top_k);
    }
    return {};
  }

 private:
  moe::RouterSpec spec_;
};

int fail(const moe::Status& status) {
  return std::fprintf(stderr, "%s\n", status.message().data()), 1;
}

}  // namespace

int main() {
  auto weights = moe::make_synthetic({.layers = 1, .experts = 8, .top_k = 2, .hidden = 64});
  if (!weights.ok()) return fail(weights.status());
  const moe::LayerSpec& layer = (*weights)->layers().front();
  const TurnRouter router(layer.router);
  auto model = moe::Model::create(**weights, {.router = &router});
  if (!model.ok()) return fail(model.status());

  const int64_t rows = 5;
  const moe::Dims shape = {rows, layer.hidden()};
  std::vector<float> hidden(shape.elements(), 0.5f), out(shape.elements());
  std::vector<int32_t> ids(rows * 2);
  std::vector<float> shares(rows * 2);
  moe::Routing routing = {rows, 2, ids.data(), shares.data()};
  const moe::Status status =
      model->forward(layer.layer, {hidden.data(), moe::DType::f32, shape},
                     {out.data(), moe::DType::f32, shape}, {.routing_out = &routing});
  if (!status.ok()) return fail(status);

  for (int32_t i = 0; i < rows * 2; ++i)
    if (ids[i] != i % 8 || shares[i] != 0.5f) return 1;
  std::printf("row 0 went to experts %d and %d\n", ids[0], ids[1]);
}
