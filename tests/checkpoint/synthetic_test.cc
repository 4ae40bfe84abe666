// Synthetic models: what write_synthetic() writes, open() reads, and make_synthetic() is the same.
#include <cstring>
#include <vector>

#include "catch.h"
#include "checkpoint/family.h"
#include "moe/checkpoint.h"
#include "temporary_directory.h"

namespace {

using moe::WeightId;
using moe::WeightKind;
using moe::test::TemporaryDirectory;

// The canonical tensor as dense bytes, poisoned first.
std::vector<char> read(const moe::WeightSource& source, const WeightId& id) {
  auto shape = source.describe(id);
  INFO(shape.status().message());
  REQUIRE(shape.ok());
  std::vector<char> bytes(
      static_cast<size_t>(shape->shape.elements() * moe::bits_of(shape->dtype) / 8), '\x7f');
  const moe::Status status = source.read(id, {bytes.data(), shape->dtype, shape->shape});
  INFO(status.message());
  REQUIRE(status.ok());
  return bytes;
}

constexpr WeightKind kAllKinds[] = {
    WeightKind::router_weight,
    WeightKind::router_bias,
    WeightKind::router_selection_bias,
    WeightKind::router_per_expert_scale,
    WeightKind::router_input_scale,
    WeightKind::router_token_experts,
    WeightKind::shared_gate,
    WeightKind::gate,
    WeightKind::up,
    WeightKind::down,
    WeightKind::gate_bias,
    WeightKind::up_bias,
    WeightKind::down_bias,
};

// Every tensor of every layer, experts and shared expert included, is the same in both.
int compare(const moe::WeightSource& a, const moe::WeightSource& b) {
  int tensors = 0;
  REQUIRE(a.layers().size() == b.layers().size());
  for (const moe::LayerSpec& layer : a.layers())
    for (WeightKind kind : kAllKinds)
      for (int32_t expert = -1; expert < layer.router.num_experts; ++expert) {
        if (kind < WeightKind::gate && expert >= 0) break;
        const WeightId id{layer.layer, kind, expert};
        REQUIRE(a.describe(id).ok() == b.describe(id).ok());
        if (!a.describe(id).ok()) continue;
        INFO(moe::to_string(kind) << " of expert " << expert);
        REQUIRE(read(a, id) == read(b, id));
        ++tensors;
      }
  return tensors;
}

}  // namespace

TEST_CASE("a synthetic checkpoint reads back as make_synthetic() computes it",
          "[checkpoint][mission-2][mission-3][mission-5][mission-6][mission-7][mission-8]") {
  int made_families = 0;
  for (std::string_view family : moe::family_names()) {
    if (moe::find_family(family)->synthetic.empty()) continue;
    ++made_families;
    DYNAMIC_SECTION(family) {
      moe::SyntheticSpec spec{.family = family,
                              .layers = 2,
                              .experts = 16,
                              .top_k = family == "switch_transformers" ? 1 : 2,
                              .hidden = 24,
                              .intermediate = 10,
                              .seed = moe::test::seed(),
                              .shard_bytes = 20000};
      TemporaryDirectory directory;
      const moe::Status written = moe::write_synthetic(spec, directory.path());
      INFO(written.message());
      REQUIRE(written.ok());
      auto checkpoint = moe::Checkpoint::open(directory.path());
      INFO(checkpoint.status().message());
      REQUIRE(checkpoint.ok());
      CHECK(checkpoint->family() == family);
      REQUIRE(checkpoint->layers().size() == 2);
      const moe::LayerSpec& layer = checkpoint->layers()[0];
      CHECK(layer.router.num_experts == 16);
      CHECK(layer.router.top_k == spec.top_k);
      CHECK(layer.hidden() == 24);
      CHECK(layer.expert.intermediate == 10);
      auto made = moe::make_synthetic(spec);
      REQUIRE(made.ok());
      CHECK(compare(**made, *checkpoint) >= 2 * (1 + 2 * 16));
    }
  }
  CHECK(made_families >= 35);
}

TEST_CASE("every preset names a family that can be made", "[checkpoint]") {
  CHECK(moe::synthetic_models().size() >= 20);
  for (std::string_view model : moe::synthetic_models()) {
    auto spec = moe::synthetic_like(model);
    INFO(model << ": " << spec.status().message());
    REQUIRE(spec.ok());
    auto made = moe::make_synthetic(*spec);  // full size: nothing is computed before it is read
    INFO(made.status().message());
    REQUIRE(made.ok());
    CHECK((*made)->layers().size() == static_cast<size_t>(spec->layers));
    const auto& layer = (*made)->layers()[0];
    if (layer.shared && spec->shared_intermediate > 0)
      CHECK(layer.shared->expert.intermediate == spec->shared_intermediate);
  }
}
