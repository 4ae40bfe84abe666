#include "store/block_copy.h"

#include <cstring>

#include "quant/half.h"
#include "router/cpu_router.h"
#include "runtime/scope.h"

namespace moe::cuda {
namespace {

// The host's side of the copy, tensor after tensor.
class Image {
 public:
  // As it is stored; -1 if absent.
  int64_t add(const TensorView& view) {
    if (!view.data) return -1;
    const int64_t at = begin(view.shape.elements() * bits_of(view.dtype) / 8);
    std::memcpy(bytes.data() + at, view.data, bytes.size() - static_cast<size_t>(at));
    return at;
  }
  int64_t add_f32(const TensorView& view) {
    if (!view.data) return -1;
    const int64_t count = view.shape.elements();
    const int64_t at = begin(count * 4);
    load_row(view.dtype, view.data, 1, count, reinterpret_cast<float*>(bytes.data() + at));
    return at;
  }
  std::vector<std::byte> bytes;

 private:
  int64_t begin(int64_t count) {
    const size_t at = (bytes.size() + 255) / 256 * 256;
    bytes.resize(at + static_cast<size_t>(count));
    return static_cast<int64_t>(at);
  }
};

}  // namespace

Result<std::unique_ptr<DeviceCopy>> BlockCopy::make(const LayerSpec& spec, const LayerBlock& block,
                                                    Arena& arena, cudaStream_t stream) {
  const RouterWeights& router = block.router;
  const Place place = {.layer = spec.layer, .phase = Phase::load};
  MOE_RETURN_IF_ERROR(check_shapes(spec.router, router).at(place));
  Image image;
  const bool bf16 = router.weight.dtype == DType::bf16;
  const int64_t weight = bf16 ? image.add(router.weight) : image.add_f32(router.weight);
  const int64_t logit_bias = image.add_f32(router.logit_bias);
  const int64_t selection_bias = image.add_f32(router.selection_bias);
  const int64_t per_expert_scale = image.add_f32(router.per_expert_scale);
  const int64_t input_scale = image.add_f32(router.input_scale);
  const int64_t token_experts = image.add(router.token_experts);
  const int64_t shared_gate = image.add_f32(block.shared_gate);

  std::unique_ptr<BlockCopy> copy(new BlockCopy(arena));
  copy->candidates_ = spec.router.candidates();
  copy->bytes_ = image.bytes.size();
  MOE_ASSIGN_OR_RETURN(copy->data_, arena.take(copy->bytes_));
  const auto at = [&](int64_t offset) { return offset < 0 ? nullptr : copy->data_ + offset; };
  const auto floats = [&](int64_t offset) { return reinterpret_cast<const float*>(at(offset)); };
  copy->tensors_ = {at(weight),
                    bf16 ? DType::bf16 : DType::f32,
                    floats(logit_bias),
                    floats(selection_bias),
                    floats(per_expert_scale),
                    floats(input_scale),
                    at(token_experts),
                    floats(shared_gate)};
  if (image.bytes.empty()) return std::unique_ptr<DeviceCopy>(std::move(copy));
  MOE_RETURN_IF_ERROR(check(cudaMemcpyAsync(copy->data_, image.bytes.data(), copy->bytes_,
                                            cudaMemcpyHostToDevice, stream),
                            "copy a router to the GPU", place));
  MOE_RETURN_IF_ERROR(check(cudaStreamSynchronize(stream), "copy a router to the GPU", place));
  return std::unique_ptr<DeviceCopy>(std::move(copy));
}

BlockCopy::~BlockCopy() {
  if (data_) arena_.give_back(data_, bytes_);
}

}  // namespace moe::cuda
