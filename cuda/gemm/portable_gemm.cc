#include "gemm/portable_gemm.h"

#include "gemm/backend.h"
#include "gemm/pack.h"
#include "gemm/problem.h"
#include "runtime/scope.h"

namespace moe::cuda {
namespace {

class PortableGemm final : public GpuGemm {
 public:
  const char* name() const noexcept override { return "cuda-portable"; }

  Status supports(const ExpertSpec& spec) const override {
    MOE_RETURN_IF_ERROR(check_spec(spec));
    return check_float_format(spec, name());
  }
  SlotShape shape(const ExpertSpec& spec) const override { return slot_shape(spec); }
  const GroupedGemmKernel& kernel() const override { return kPortableBf16; }
  RowPrecision rows() const override { return RowPrecision::exact; }
  SlotLayout layout(const ExpertSpec& spec) const override {
    return {"cuda-bf16", static_cast<size_t>(slot_sections(shape(spec)).bytes),
            static_cast<size_t>(kSlotAlignment)};
  }
  Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer, int32_t expert,
              std::byte* slot) const override {
    return guarded({.layer = layer, .expert = expert, .phase = Phase::load},
                   [&] { return pack_slot(spec, source, layer, expert, slot); });
  }
};

}  // namespace

Status GpuGemm::run(const ExpertSpec&, const ExpertBatch&) const {
  return error(StatusCode::unimplemented, {.phase = Phase::compute},
               "{} computes from the table on the GPU: use Model::forward", name());
}

std::unique_ptr<ExpertGemm> make_portable_gemm(const ExpertGemmOptions&) {
  return std::make_unique<PortableGemm>();
}

Status portable_available() {
  MOE_RETURN_IF_ERROR(check_device(0));
  int major = 0;
  MOE_RETURN_IF_ERROR(check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
                            "ask for the GPU's kind"));
  if (major >= 8) return {};
  return error(StatusCode::unavailable, {.phase = Phase::plan},
               "needs compute capability 8.0 or more; cuda:0 has {}.x", major);
}

}  // namespace moe::cuda
