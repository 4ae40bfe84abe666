// Linked in builds without CUDA, in place of cuda/store.
#include "core/error.h"
#include "store/device.h"

namespace moe {

Result<std::unique_ptr<StoreDevice>> open_cuda_store(int32_t index, size_t, const Services&) {
  return error(StatusCode::unimplemented, {.phase = Phase::plan},
               "cuda:{} was asked for, but this build has no CUDA; build with MOE_CUDA=ON", index);
}

}  // namespace moe
