// The oracle as a backend: a slot holds the canonical matrices as f32, one after the other.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "gemm/backends.h"
#include "gemm/problem.h"
#include "gemm/reference.h"
#include "quant/formats.h"

namespace moe {
namespace {

// The matrices of `expert` in slot order.
template <class Expert>
auto parts(Expert& expert) {
  return std::array{&expert.gate,      &expert.up,      &expert.down,
                    &expert.gate_bias, &expert.up_bias, &expert.down_bias};
}

// Elements of each part.
std::array<int64_t, 6> sizes(const ExpertSpec& spec) {
  const int64_t matrix = spec.hidden * spec.intermediate;
  const int64_t gate = spec.gated ? matrix : 0;
  if (!spec.bias) return {gate, matrix, matrix, 0, 0, 0};
  return {gate, matrix, matrix, spec.gated ? spec.intermediate : 0, spec.intermediate, spec.hidden};
}

ReferenceExpert unpack(const ExpertSpec& spec, const std::byte* slot) {
  ReferenceExpert expert{.spec = spec};
  const auto* values = reinterpret_cast<const float*>(slot);
  for (size_t i = 0; i < 6; ++i) {
    const int64_t count = sizes(spec)[i];
    parts(expert)[i]->assign(values, values + count);
    values += count;
  }
  return expert;
}

void compute(const ExpertSpec& spec, const ExpertBatch& batch, const ExpertGroup& group) {
  const ReferenceExpert expert = unpack(spec, group.slot);
  std::vector<float> row(spec.hidden);
  std::vector<double> x(spec.hidden), y(spec.hidden);
  for (int64_t i = group.first; i < group.first + group.count; ++i) {
    load_pair(batch, batch.pairs[i], 0, spec.hidden, row.data());
    x.assign(row.begin(), row.end());
    expert_forward_reference(expert, x.data(), y.data());
    std::copy(y.begin(), y.end(), batch.out + batch.pairs[i] * spec.hidden);
  }
}

class ReferenceGemm final : public ExpertGemm {
 public:
  const char* name() const noexcept override { return "reference"; }

  Status supports(const ExpertSpec& spec) const override {
    MOE_RETURN_IF_ERROR(check_spec(spec));
    return check_format(spec.format);
  }

  SlotLayout layout(const ExpertSpec& spec) const override {
    int64_t elements = 0;
    for (int64_t count : sizes(spec)) elements += count;
    return {"canonical-f32", static_cast<size_t>(elements) * sizeof(float), 64};
  }

  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    return guarded({.layer = layer, .expert = expert, .phase = Phase::load}, [&]() -> Status {
      MOE_RETURN_IF_ERROR(supports(spec));
      MOE_ASSIGN_OR_RETURN(const ReferenceExpert canonical,
                           read_reference_expert(spec, source, layer, expert));
      for (const std::vector<float>* part : parts(canonical)) {
        const size_t bytes = part->size() * sizeof(float);
        if (bytes > 0) std::memcpy(slot, part->data(), bytes);
        slot += bytes;
      }
      return {};
    });
  }

  size_t workspace_bytes(const ExpertSpec&, int64_t, int64_t, int) const noexcept override {
    return 0;  // it allocates: an oracle may
  }

  Status run(const ExpertSpec& spec, const ExpertBatch& batch) const override {
    return guarded({.phase = Phase::compute}, [&]() -> Status {
      MOE_RETURN_IF_ERROR(supports(spec));
      MOE_RETURN_IF_ERROR(check_cpu_batch(spec, batch, 0));
      for (const ExpertGroup& group : batch.groups) compute(spec, batch, group);
      return {};
    });
  }
};

}  // namespace

std::unique_ptr<ExpertGemm> make_reference_gemm(const ExpertGemmOptions&) {
  return std::make_unique<ReferenceGemm>();
}

}  // namespace moe
