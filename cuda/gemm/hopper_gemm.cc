#include "gemm/backend.h"
#include "gemm/pack.h"
#include "gemm/problem.h"
#include "runtime/scope.h"

namespace moe::cuda {
namespace {

class HopperGemm final : public GpuGemm {
 public:
  const char* name() const noexcept override { return "cuda-hopper"; }

  Status supports(const ExpertSpec& spec) const override {
    MOE_RETURN_IF_ERROR(check_spec(spec));
    return check_float_format(spec, name());
  }
  SlotShape shape(const ExpertSpec& spec) const override { return slot_shape(spec); }
  const GroupedGemmKernel& kernel() const override { return kHopperBf16; }
  SlotLayout layout(const ExpertSpec& spec) const override {
    return {"cuda-bf16", static_cast<size_t>(slot_sections(shape(spec)).bytes),
            static_cast<size_t>(kSlotAlignment)};
  }
  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    return guarded({.layer = layer, .expert = expert, .phase = Phase::load},
                   [&] { return pack_bf16(spec, source, layer, expert, slot); });
  }
};

}  // namespace

std::unique_ptr<ExpertGemm> make_hopper_gemm(const ExpertGemmOptions&) {
  return std::make_unique<HopperGemm>();
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
