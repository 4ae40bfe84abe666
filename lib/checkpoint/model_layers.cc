#include "checkpoint/model_layers.h"

#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"
#include "core/nearest.h"

namespace moe {
namespace {

constexpr int64_t kMostLayers = 10000;
constexpr int64_t kMostExperts = 65536;

Status unknown_family(std::string_view model_type, std::string_view file) {
  const std::vector<std::string_view> known = family_names();
  NearestName nearest(model_type);
  for (std::string_view name : known) nearest.offer(name);
  return error(StatusCode::unimplemented, {.file = file, .phase = Phase::open},
               "model_type of {} is {}, which is not a known family{}; known: {}", file,
               json_quoted(model_type.substr(0, 64)), nearest.suggestion(), fmt::join(known, ", "));
}

Status check(const LayerSpec& spec, std::string_view file) {
  const Place place{.file = file, .layer = spec.layer, .phase = Phase::open};
  const RouterSpec& router = spec.router;
  if (router.candidates() > kMostExperts)
    return invalid_argument(place, "{} calls for {} experts, at most {} are possible", file,
                            router.candidates(), kMostExperts);
  if (router.top_k > router.candidates())
    return invalid_argument(place, "{} chooses {} of {} experts in layer {}", file, router.top_k,
                            router.candidates(), spec.layer);
  return validate(spec).at(place);
}

}  // namespace

Result<ModelLayers> model_layers(ModelConfig& config) {
  const Place place{.file = config.file(), .phase = Phase::open};
  ModelLayers model;
  model.family = find_family(config.text_model_type());
  if (!model.family) model.family = find_family(config.model_type());
  if (!model.family) model.family = find_architecture(config.architecture());
  if (!model.family) return unknown_family(config.model_type(), config.file());

  const int64_t count =
      model.family->layers ? model.family->layers(config) : config.count({"num_hidden_layers"});
  MOE_RETURN_IF_ERROR(config.status());
  if (count > kMostLayers)
    return invalid_argument(place, "{} calls for {} layers, at most {} are possible", config.file(),
                            count, kMostLayers);
  for (int32_t layer = 0; layer < count; ++layer) {
    std::optional<FamilyLayer> described = model.family->layer(config, layer);
    MOE_RETURN_IF_ERROR(config.status());
    if (!described) continue;
    MOE_RETURN_IF_ERROR(check(described->spec, config.file()));
    model.layers.push_back(std::move(*described));
  }
  if (model.layers.empty())
    return invalid_argument(place, "none of the {} layers of this {} model has experts, says {}",
                            count, model.family->model_type, config.file());
  return model;
}

}  // namespace moe
