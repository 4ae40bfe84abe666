// Router: the interface's home, and the built-in rule behind it.
#include "moe/router.h"

#include "core/error.h"
#include "router/cpu_router.h"

namespace moe {
namespace {

class CpuRouter final : public Router {
 public:
  CpuRouter(const RouterSpec& spec, const RouterWeights& weights)
      : spec_(spec), weights_(weights) {}

  const RouterSpec& spec() const noexcept override { return spec_; }

  size_t workspace_bytes(int64_t tokens, int concurrency) const noexcept override {
    const int64_t hidden = weights_.weight.data ? weights_.weight.shape[1] : 0;
    return route_workspace_bytes(spec_, hidden, tokens, concurrency);
  }

  Status route(const RouteInput& input, const Routing& out, RouteCounts* counts) const override {
    return guarded({.layer = input.layer, .phase = Phase::route},
                   [&] { return route_cpu(spec_, weights_, input, out, counts); });
  }

 private:
  const RouterSpec spec_;
  const RouterWeights weights_;
};

}  // namespace

Router::~Router() = default;

size_t Router::workspace_bytes(int64_t, int) const noexcept { return 0; }

Result<std::unique_ptr<Router>> Router::create(const RouterSpec& spec,
                                               const RouterWeights& weights) {
  return guarded({.phase = Phase::route}, [&]() -> Result<std::unique_ptr<Router>> {
    MOE_RETURN_IF_ERROR(validate(spec));
    MOE_RETURN_IF_ERROR(check_shapes(spec, weights));
    MOE_RETURN_IF_ERROR(check_values(spec, weights));
    return std::unique_ptr<Router>(std::make_unique<CpuRouter>(spec, weights));
  });
}

}  // namespace moe
