// Linked in builds without CUDA, in place of cuda/runtime.
#include "core/error.h"
#include "model/device_model.h"

namespace moe {

Result<std::unique_ptr<DeviceModel>> make_cuda_model(ExpertStore::Impl&, const ModelOptions&) {
  return error(StatusCode::unimplemented, {.phase = Phase::plan}, "this build has no CUDA");
}

}  // namespace moe
