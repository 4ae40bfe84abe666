#include <algorithm>

#include "core/error.h"
#include "model/model_impl.h"

namespace moe {

Context::Impl::Impl(Model::Impl& owner) : model(owner) {
  model.store->impl()->readers.add(&reader);
}
Context::Impl::~Impl() { model.store->impl()->readers.remove(&reader); }

Result<Workspace> Context::Impl::workspace(const StoreLayer& layer, const BatchShape& batch) {
  const size_t needed = Workspace::cut(layer, batch, nullptr).bytes;
  if (needed > buffer.size()) {
    buffer = {};  // the old one first: both need not fit
    auto bigger = Buffer::allocate(model.services.memory(), needed, "a forward's workspace");
    if (!bigger.ok()) return bigger.status().at({.layer = layer.spec.layer, .phase = Phase::plan});
    buffer = std::move(*bigger);
  }
  return Workspace::cut(layer, batch, buffer.data());
}

namespace {

// Of the layer that needs most.
size_t most_bytes(const Model::Impl& model, int64_t tokens) {
  if (model.device) return model.device->workspace_bytes(tokens);
  size_t bytes = 0;
  for (const auto& layer : model.store->impl()->layers) {
    const BatchShape batch{tokens, layer->spec.router.top_k,
                           model.services.executor().concurrency()};
    bytes = std::max(bytes, Workspace::cut(*layer, batch, nullptr).bytes);
  }
  return bytes;
}

Status check_tokens(int64_t max_tokens) {
  constexpr int64_t kMost = int64_t{1} << 40;
  if (max_tokens >= 0 && max_tokens <= kMost) return {};
  return invalid_argument({}, "max_tokens is {}; it must be from 0 to {}", max_tokens, kMost);
}

}  // namespace

Result<size_t> Context::workspace_bytes(const Model& model, int64_t max_tokens) {
  MOE_RETURN_IF_ERROR(check_tokens(max_tokens));
  return most_bytes(*model.impl(), max_tokens);
}

Result<Context> Context::create(const Model& model, const ContextOptions& options) {
  return guarded({}, [&]() -> Result<Context> {
    MOE_RETURN_IF_ERROR(check_tokens(options.max_tokens));
    if (options.stream.device != model.impl()->options.device)
      return invalid_argument({}, "the stream is not on the model's device");
    auto impl = std::make_unique<Impl>(*model.impl());
    impl->stream = options.stream;
    if (model.impl()->device) {
      MOE_ASSIGN_OR_RETURN(impl->device,
                           model.impl()->device->make_context(options.stream, options.max_tokens));
      return Context(std::move(impl));
    }
    MOE_ASSIGN_OR_RETURN(
        impl->buffer,
        Buffer::allocate(model.impl()->services.memory(),
                         most_bytes(*model.impl(), options.max_tokens), "a context's workspace"));
    return Context(std::move(impl));
  });
}

Context::Context(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Context::Context(Context&&) noexcept = default;
Context& Context::operator=(Context&&) noexcept = default;
Context::~Context() = default;

}  // namespace moe
