// The expert that sees every row.
#include <algorithm>
#include <cmath>

#include "core/rows.h"
#include "model/stages.h"
#include "quant/half.h"

namespace moe {
namespace {

// gate[t] = sigmoid(w . hidden[t])
void shared_gates(const TensorView& hidden, const TensorView& weight, float* gate) {
  constexpr int64_t kBlock = 256;
  float x[kBlock], w[kBlock];
  for (int64_t t = 0; t < hidden.shape[0]; ++t) {
    double dot = 0;
    for (int64_t h = 0; h < hidden.shape[1]; h += kBlock) {
      const int64_t n = std::min(kBlock, hidden.shape[1] - h);
      load_row(hidden.dtype, element(hidden, t, h), 1, n, x);
      load_row(weight.dtype, element(weight, 0, h), 1, n, w);
      for (int64_t i = 0; i < n; ++i) dot += static_cast<double>(x[i]) * w[i];
    }
    gate[t] = static_cast<float>(1.0 / (1.0 + std::exp(-dot)));
  }
}

}  // namespace

Status run_shared(LayerForward& f, const LayerBlock& block, Chunk chunk) {
  StageTimer timer(f.services.clock(), f.report.shared_ns);
  const SharedSpec& spec = *f.layer.spec.shared;
  for (int64_t t = 0; t < chunk.count; ++t) f.work.shared_pairs[static_cast<size_t>(t)] = t;
  const ExpertGroup group{block.shared, kSharedExpert, 0, chunk.count};
  ExpertBatch batch;
  batch.hidden = rows_of(f.hidden, chunk.first, chunk.count);
  batch.top_k = 1;
  batch.groups = {&group, 1};
  batch.pairs = f.work.shared_pairs.data();
  batch.out = f.work.shared_rows.data();
  if (spec.sigmoid_gate) shared_gates(batch.hidden, block.shared_gate, f.work.shared_gate.data());
  return run_groups(f, *f.layer.shared.gemm, spec.expert, batch);
}

}  // namespace moe
