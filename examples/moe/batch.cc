#include "batch.h"

#include <random>

#include "gpu.h"
#include "quant/half.h"

namespace moe::cli {

Batch random_batch(const WeightSource& source, const LayerSpec& layer, int64_t rows, uint64_t seed,
                   DType dtype) {
  Batch batch{.name = "random", .rows = rows, .hidden_size = layer.hidden(), .dtype = dtype};
  const int64_t elements = rows * batch.hidden_size;
  batch.hidden.resize(static_cast<size_t>(elements * bits_of(dtype) / 8));
  std::mt19937_64 random(seed + static_cast<uint64_t>(layer.layer));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < elements; ++i) store_float(dtype, batch.hidden.data(), i, normal(random));

  if (layer.router.selection != Selection::token_lookup) return batch;
  const auto table = source.describe({layer.layer, WeightKind::router_token_experts});
  const int64_t vocabulary = table.ok() ? table->shape[0] : 1;
  std::uniform_int_distribution<int64_t> token(0, vocabulary - 1);
  for (int64_t row = 0; row < rows; ++row) batch.token_ids.push_back(token(random));
  return batch;
}

Status forward(Model& model, const LayerSpec& layer, Batch& batch) {
  if (model.store().device().kind == DeviceKind::cuda) return forward_on_gpu(model, layer, batch);
  batch.top_k = layer.router.top_k;
  batch.out.resize(batch.hidden.size());
  batch.ids.resize(static_cast<size_t>(batch.rows * batch.top_k));
  batch.weights.resize(batch.ids.size());
  Routing routing = batch.routing();
  const Status status =
      model.forward(layer.layer, batch.hidden_view(),
                    {batch.out.data(), batch.dtype, {batch.rows, batch.hidden_size}},
                    {.routing_out = &routing,
                     .token_ids = batch.token_ids.empty() ? nullptr : batch.token_ids.data(),
                     .report = &batch.report});
  batch.ids_64.assign(batch.ids.begin(), batch.ids.end());
  return status;
}

}  // namespace moe::cli
