#include "model/quantize_error.h"

#include <cmath>
#include <numeric>
#include <random>

#include "core/buffer.h"
#include "core/error.h"

namespace moe {
namespace {

// The expert's results for `rows`, (count, hidden).
Result<std::vector<float>> run(const ExpertGemm& gemm, const ExpertSpec& spec,
                               const WeightSource& source, int32_t layer, int32_t expert,
                               const std::vector<float>& rows) {
  const int64_t count = static_cast<int64_t>(rows.size()) / spec.hidden;
  const SlotLayout layout = gemm.layout(spec);
  const size_t scratch = gemm.workspace_bytes(spec, count, 1, 1);
  std::vector<std::byte> memory(layout.bytes + scratch +
                                2 * std::max<size_t>(64, layout.alignment));
  const auto aligned = [](std::byte* at, size_t step) {
    const auto address = reinterpret_cast<uintptr_t>(at);
    return at + (step - address % step) % step;
  };
  std::byte* slot = aligned(memory.data(), layout.alignment);
  MOE_RETURN_IF_ERROR(gemm.pack(spec, source, layer, expert, slot));
  std::vector<int64_t> pairs(static_cast<size_t>(count));
  std::iota(pairs.begin(), pairs.end(), int64_t{0});
  std::vector<float> out(rows.size());
  const ExpertGroup group{slot, expert, 0, count};
  ExpertBatch batch;
  batch.hidden = TensorView(rows.data(), DType::f32, {count, spec.hidden});
  batch.groups = {&group, 1};
  batch.pairs = pairs.data();
  batch.out = out.data();
  batch.workspace = {aligned(slot + layout.bytes, 64), scratch};
  MOE_RETURN_IF_ERROR(gemm.run(spec, batch));
  return out;
}

}  // namespace

Result<OutputError> OutputError::make(const ExpertSpec& from, const ExpertSpec& to) {
  OutputError made;
  made.from_ = from;
  made.to_ = to;
  MOE_ASSIGN_OR_RETURN(made.exact_,
                       make_expert_gemm(Device::cpu(), from, {}, {.rows = RowPrecision::exact}));
  MOE_ASSIGN_OR_RETURN(made.quantised_, make_expert_gemm(Device::cpu(), to));
  std::mt19937 random(1);
  made.rows_.resize(static_cast<size_t>(kRows * from.hidden));
  for (float& value : made.rows_)  // uniform in [-1, 1), the same everywhere
    value = static_cast<float>(random()) * 0x1p-31f - 1.0f;
  return made;
}

Result<double> OutputError::of(const WeightSource& from, const WeightSource& to, int32_t layer,
                               int32_t expert) const {
  MOE_ASSIGN_OR_RETURN(const std::vector<float> wanted,
                       run(*exact_, from_, from, layer, expert, rows_));
  MOE_ASSIGN_OR_RETURN(const std::vector<float> got,
                       run(*quantised_, to_, to, layer, expert, rows_));
  double difference = 0, norm = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - wanted[i], 2);
    norm += std::pow(static_cast<double>(wanted[i]), 2);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace moe
