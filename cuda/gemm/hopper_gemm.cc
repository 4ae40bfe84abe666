#include "core/error.h"
#include "gemm/backend.h"
#include "gemm/pack.h"
#include "gemm/problem.h"
#include "runtime/scope.h"

namespace moe::cuda {
namespace {

constexpr int32_t kBlock = static_cast<int32_t>(kScaleBlock);

Status check_weights(const ExpertSpec& spec, const char* name) {
  if (spec.format.kind != FormatKind::fp8_block) return check_float_format(spec, name);
  if (spec.format.group == kBlock) return {};
  return error(StatusCode::unimplemented, {.phase = Phase::plan},
               "weights are fp8 with {}; {} computes from blocks of {} x {}",
               spec.format.group == 0
                   ? "a scale per output"
                   : fmt::format("blocks of {} x {}", spec.format.group, spec.format.group),
               name, kBlock, kBlock);
}

class HopperGemm final : public GpuGemm {
 public:
  explicit HopperGemm(RowPrecision rows) : rows_(rows) {}

  const char* name() const noexcept override { return "cuda-hopper"; }

  Status supports(const ExpertSpec& spec) const override {
    MOE_RETURN_IF_ERROR(check_spec(spec));
    return check_weights(spec, name());
  }
  SlotShape shape(const ExpertSpec& spec) const override { return slot_shape(spec); }
  const GroupedGemmKernel& kernel() const override { return kHopper; }
  RowPrecision rows() const override { return rows_; }
  SlotLayout layout(const ExpertSpec& spec) const override {
    const SlotShape slot = shape(spec);
    return {slot.element_bytes == 1 ? "cuda-fp8-block128" : "cuda-bf16",
            static_cast<size_t>(slot_sections(slot).bytes), static_cast<size_t>(kSlotAlignment)};
  }
  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    return guarded({.layer = layer, .expert = expert, .phase = Phase::load},
                   [&] { return pack_slot(spec, source, layer, expert, slot); });
  }

 private:
  const RowPrecision rows_;
};

}  // namespace

std::unique_ptr<ExpertGemm> make_hopper_gemm(const ExpertGemmOptions& options) {
  return std::make_unique<HopperGemm>(options.rows);
}

Status hopper_available() {
  MOE_RETURN_IF_ERROR(check_device(0));
  int major = 0;
  MOE_RETURN_IF_ERROR(check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
                            "ask for the GPU's kind"));
  if (major == 9) return {};
  return error(StatusCode::unavailable, {.phase = Phase::plan},
               "needs compute capability 9.0; cuda:0 has {}.x", major);
}

}  // namespace moe::cuda
