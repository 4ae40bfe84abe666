// The expert that sees every row.
#include <algorithm>
#include <cmath>
#include <utility>

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

SharedExpert::SharedExpert(LayerForward& f, const LayerBlock& block, Chunk chunk)
    : group_{block.shared, kSharedExpert, 0, chunk.count}, pending_(true) {
  for (int64_t t = 0; t < chunk.count; ++t) f.work.shared_pairs[static_cast<size_t>(t)] = t;
  batch_.hidden = rows_of(f.hidden, chunk.first, chunk.count);
  batch_.top_k = 1;
  batch_.groups = {&group_, 1};
  batch_.pairs = f.work.shared_pairs.data();
  batch_.out = f.work.shared_rows.data();
  batch_.executor = &f.services.executor();
  batch_.workspace = f.work.shared_scratch;
  if (!f.layer.spec.shared->sigmoid_gate) return;
  StageTimer timer(f.services.clock(), f.report.shared_ns);
  shared_gates(batch_.hidden, block.shared_gate, f.work.shared_gate.data());
}

const ExpertBatch* SharedExpert::take() {
  return std::exchange(pending_, false) ? &batch_ : nullptr;
}

Status SharedExpert::run(LayerForward& f) {
  const ExpertBatch* batch = take();
  if (!batch) return {};
  StageTimer timer(f.services.clock(), f.report.shared_ns);
  return f.layer.shared.gemm->run(f.layer.spec.shared->expert, *batch);
}

}  // namespace moe
