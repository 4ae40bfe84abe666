#include "work.h"

#include <set>

namespace moe::cli {
namespace {

double weights_of(const ExpertSpec& spec) {
  return (spec.gated ? 3.0 : 2.0) * static_cast<double>(spec.hidden) *
         static_cast<double>(spec.intermediate);
}

bool is_integer(const Format& format) {
  return format.kind == FormatKind::int8 || format.kind == FormatKind::int4;
}

}  // namespace

double expert_bytes(const ExpertSpec& spec) {
  const Format& format = spec.format;
  double bits = 16;
  if (format.kind == FormatKind::f32) bits = 32;
  if (format.kind == FormatKind::int8 || format.kind == FormatKind::fp8_block) bits = 8;
  if (format.kind == FormatKind::int4) bits = 4;
  const double scale_bits = bits_of(format.scale);
  const double group_bits = scale_bits + (format.zero_points ? 8 : 0);
  if (is_integer(format))
    bits += group_bits / static_cast<double>(format.group > 0 ? format.group : spec.hidden);
  if (format.kind == FormatKind::fp8_block && format.group > 0)
    bits += scale_bits / (format.group * format.group);
  return weights_of(spec) * bits / 8;
}

Work work_of(const LayerSpec& layer, std::span<const int32_t> ids, int64_t rows, bool shared) {
  constexpr double kRouterBytes = 2;  // of a weight
  std::set<int32_t> active;
  int64_t pairs = 0;
  for (const int32_t id : ids) {
    if (id < 0 || id >= layer.router.num_experts) continue;
    active.insert(id);
    ++pairs;
  }
  const auto count = static_cast<double>(rows);
  const auto router = static_cast<double>(layer.router.candidates() * layer.hidden());
  Work work;
  work.flops = 2 * (static_cast<double>(pairs) * weights_of(layer.expert) + count * router);
  work.weight_bytes =
      static_cast<double>(active.size()) * expert_bytes(layer.expert) + kRouterBytes * router;
  if (shared && layer.shared) {
    work.flops += 2 * count * weights_of(layer.shared->expert);
    work.weight_bytes += expert_bytes(layer.shared->expert);
  }
  return work;
}

}  // namespace moe::cli
