// One tensor of a slot, computed from a function.
#pragma once

#include <cuda_runtime_api.h>

#include "checkpoint/generated.h"
#include "gemm/layout.h"

namespace moe::cuda {

// What a section holds.
enum class SectionType { bf16, e4m3, f32 };

struct GenerateArgs {
  GeneratedTensor tensor;
  int64_t rows = 0;
  int64_t columns = 1;
  RowOrder order = RowOrder::own;
  SectionType type = SectionType::bf16;  // e4m3: in the order of e4m3_column()
  int64_t stride = 1;                    // elements between rows of the section
  std::byte* section = nullptr;
};
cudaError_t launch_generate(const GenerateArgs& args, cudaStream_t stream);

}  // namespace moe::cuda
