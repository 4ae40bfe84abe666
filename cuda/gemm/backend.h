// A backend of the GPU: how its slots lie, and the kernel that multiplies from them. It has no
// run() of its own: a forward on a GPU takes slots from the table on the device (runtime/layer.h).
#pragma once

#include <cstdint>

#include "gemm/grouped_gemm.h"
#include "gemm/layout.h"
#include "moe/expert_gemm.h"

namespace moe::cuda {

class GpuGemm : public ExpertGemm {
 public:
  virtual SlotShape shape(const ExpertSpec& spec) const = 0;
  virtual const GroupedGemmKernel& kernel() const = 0;
  virtual RowPrecision rows() const = 0;  // what the host accepts

  size_t workspace_bytes(const ExpertSpec&, int64_t, int64_t, int) const noexcept override {
    return 0;
  }
  Status run(const ExpertSpec& spec, const ExpertBatch& batch) const override;
};

// hopper_gemm.cc: TMA, mbarrier and wgmma, for bf16 and fp8.
std::unique_ptr<ExpertGemm> make_hopper_gemm(const ExpertGemmOptions& options);
Status hopper_available();

// portable_gemm.cc: mma.sync and cp.async, bf16.
std::unique_ptr<ExpertGemm> make_portable_gemm(const ExpertGemmOptions& options);
Status portable_available();

}  // namespace moe::cuda
