// The expert that sees every row.
#include <algorithm>
#include <cmath>
#include <utility>

#include "core/rows.h"
#include "model/stages.h"
#include "quant/half.h"

namespace moe {
namespace {

// gate[t] = sigmoid(w . hidden[t]) for the rows listed
void shared_gates(const TensorView& hidden, const TensorView& weight, std::span<const int64_t> rows,
                  float* gate) {
  constexpr int64_t kBlock = 256;
  float x[kBlock], w[kBlock];
  for (const int64_t t : rows) {
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

SharedExpert::SharedExpert(LayerForward& f, Chunk chunk) : pending_(true) {
  batch_.hidden = rows_of(f.hidden, chunk.first, chunk.count);
  batch_.top_k = 1;
  batch_.pairs = f.work.shared_pairs.data();
  batch_.out = f.work.shared_rows.data();
  batch_.executor = &f.services.executor();
  batch_.workspace = f.work.shared_scratch;
  size_t used = 0;
  int64_t listed = 0;
  for (uint8_t side = 0; side < 2; ++side) {  // the rows of each set of versions
    const int64_t first = listed;
    for (int64_t t = 0; t < chunk.count; ++t) {
      const bool other = f.versions.split && f.work.side[static_cast<size_t>(chunk.first + t)] != 0;
      if (other == (side == 1)) f.work.shared_pairs[static_cast<size_t>(listed++)] = t;
    }
    if (listed == first) continue;
    const LayerBlock& block = *f.versions.of[side]->block;
    groups_[used++] = {block.shared, kSharedExpert, first, listed - first};
    if (!f.layer.spec.shared->sigmoid_gate) continue;
    StageTimer timer(f.services.clock(), f.report.shared_ns);
    const std::span<const int64_t> pairs = f.work.shared_pairs;
    shared_gates(batch_.hidden, block.shared_gate,
                 pairs.subspan(static_cast<size_t>(first), static_cast<size_t>(listed - first)),
                 f.work.shared_gate.data());
  }
  batch_.groups = {groups_, used};
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
