// ExpertStore::Impl::describe(): text for people.
#include <fmt/format.h>

#include "store/store_impl.h"

namespace moe {
namespace {

std::string describe_expert(const ExpertSpec& spec) {
  std::string format = to_string(spec.format.kind);
  if (spec.format.group > 0) format += fmt::format(" (group {})", spec.format.group);
  return fmt::format("{} x {} {}{}{}, {}", spec.hidden, spec.intermediate,
                     to_string(spec.activation), spec.gated ? "" : " (no gate)",
                     spec.bias ? " with biases" : "", format);
}

std::string describe_layer(const StoreLayer& layer) {
  const LayerSpec& spec = layer.spec;
  std::string text = fmt::format(
      "{} experts{}, top {}, {}; backend {}, {} bytes a slot ({})", spec.router.num_experts,
      spec.router.num_zero_experts > 0 ? fmt::format(" + {} zero", spec.router.num_zero_experts)
                                       : "",
      spec.router.top_k, describe_expert(spec.expert), layer.routed.gemm->name(),
      layer.routed.layout.bytes, layer.routed.layout.name);
  if (spec.shared)
    text += fmt::format("; shared {}; backend {}", describe_expert(spec.shared->expert),
                        layer.shared.gemm->name());
  return text;
}

// Why each row of the table does or does not serve `spec`.
std::string explain(const ExpertSpec& spec, const ExpertStoreOptions& options,
                    std::string_view chosen) {
  std::string text;
  for (const ExpertGemmRow& row : expert_gemm_rows()) {
    std::string verdict;
    if (row.device != options.device.kind)
      verdict = "other device";
    else if (Status s = row.available(); !s.ok())
      verdict = std::string(s.message());
    else if (Status t = row.make(options.gemm_options)->supports(spec); !t.ok())
      verdict = std::string(t.message());
    else
      verdict = chosen == row.name ? "chosen" : "fits; passed over";
    text += fmt::format("    {:<20} {}\n", row.name, verdict);
  }
  return text;
}

}  // namespace

std::string ExpertStore::Impl::describe() const {
  std::string text =
      fmt::format("{}: {} MoE layer(s), {} bytes of slots\n", source.name(), layers.size(), [&] {
        size_t bytes = 0;
        for (const SlotClass& slots : classes) bytes += slots.pool->committed_bytes();
        return bytes;
      }());
  // Consecutive layers that read alike are told once.
  for (size_t first = 0; first < layers.size();) {
    const std::string line = describe_layer(*layers[first]);
    size_t last = first;
    while (last + 1 < layers.size() && describe_layer(*layers[last + 1]) == line) ++last;
    text += first == last ? fmt::format("  layer {}: {}\n", specs[first].layer, line)
                          : fmt::format("  layers {} to {}: {}\n", specs[first].layer,
                                        specs[last].layer, line);
    if (options.expert_gemm)
      text += fmt::format("    {:<20} chosen: brought by the host\n", options.expert_gemm->name());
    else
      text += explain(specs[first].expert, options, layers[first]->routed.gemm->name());
    first = last + 1;
  }
  return text;
}

}  // namespace moe
