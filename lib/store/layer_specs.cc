#include "store/layer_specs.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"
#include "quant/formats.h"

namespace moe {
namespace {

LayerSpec as_kept(LayerSpec spec, const std::optional<Format>& format) {
  if (format) spec.expert.format = *format;
  if (format && spec.shared) spec.shared->expert.format = *format;
  return spec;
}

bool same_but_format(LayerSpec a, const LayerSpec& b) {
  a.expert.format = b.expert.format;
  if (a.shared && b.shared) a.shared->expert.format = b.shared->expert.format;
  return a == b;
}

// Of the experts; where those are alike, of the shared one.
std::pair<Format, Format> different_formats(const LayerSpec& a, const LayerSpec& b) {
  return a.expert.format == b.expert.format
             ? std::pair(a.shared->expert.format, b.shared->expert.format)
             : std::pair(a.expert.format, b.expert.format);
}

std::string shape_of(const LayerSpec& spec) {
  std::string text =
      fmt::format("{} experts of {} x {} {}, top {}", spec.router.num_experts, spec.expert.hidden,
                  spec.expert.intermediate, to_string(spec.expert.activation), spec.router.top_k);
  if (spec.shared) text += fmt::format(", a shared one of {}", spec.shared->expert.intermediate);
  return text;
}

Status check_same(const WeightSource& source, const LayerSpec& got, const LayerSpec& wanted) {
  if (got == wanted) return {};
  const Place place{.file = source.name(), .layer = wanted.layer};
  if (same_but_format(got, wanted)) {
    const auto [theirs, ours] = different_formats(got, wanted);
    return invalid_argument(place,
                            "the experts of layer {} of {} are in {}, those that serve in {}; "
                            "convert them, or open a store for them",
                            wanted.layer, source.name(), format_name(theirs), format_name(ours));
  }
  const std::string theirs = shape_of(got), ours = shape_of(wanted);
  if (theirs == ours)
    return invalid_argument(place,
                            "layer {} of {} has another routing rule or kind of expert than the "
                            "one that serves ({}); open a store for it",
                            wanted.layer, source.name(), ours);
  return invalid_argument(place,
                          "layer {} of {} has {}, the one that serves {}; open a store for it",
                          wanted.layer, source.name(), theirs, ours);
}

const LayerSpec* find(const WeightSource& source, int32_t layer) {
  for (const LayerSpec& spec : source.layers())
    if (spec.layer == layer) return &spec;
  return nullptr;
}

}  // namespace

Result<std::vector<LayerSpec>> choose_layers(const WeightSource& source,
                                             std::span<const int32_t> wanted,
                                             const std::optional<Format>& format) {
  for (const int32_t layer : wanted)
    if (!find(source, layer))
      return invalid_argument({.file = source.name(), .layer = layer},
                              "layer {} was asked for but is not an MoE layer of {}", layer,
                              source.name());
  std::vector<LayerSpec> chosen;
  for (const LayerSpec& spec : source.layers())
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), spec.layer) != wanted.end())
      chosen.push_back(as_kept(spec, format));
  if (chosen.empty())
    return invalid_argument({.file = source.name()}, "{} has no MoE layers", source.name());
  for (const LayerSpec& spec : chosen) MOE_RETURN_IF_ERROR(validate(spec));
  return chosen;
}

Status check_same_layers(const WeightSource& source, std::span<const LayerSpec> kept,
                         const std::optional<Format>& format) {
  for (const LayerSpec& spec : kept) {
    const LayerSpec* theirs = find(source, spec.layer);
    if (!theirs)
      return invalid_argument({.file = source.name(), .layer = spec.layer},
                              "{} has no MoE layer {}; a reload needs the same layers",
                              source.name(), spec.layer);
    MOE_RETURN_IF_ERROR(check_same(source, as_kept(*theirs, format), spec));
  }
  return {};
}

}  // namespace moe
