// Synthetic models: what write_synthetic() writes, open() reads, and make_synthetic() is the same.
#include <cstring>
#include <filesystem>
#include <vector>

#include "catch.h"
#include "moe/checkpoint.h"

namespace {

namespace fs = std::filesystem;
using moe::WeightId;
using moe::WeightKind;

// A directory that is gone when the test ends.
struct TemporaryDirectory {
  fs::path path;
  explicit TemporaryDirectory(const std::string& name)
      : path(fs::temp_directory_path() /
             ("moe_" + name + "_" + std::to_string(moe::test::seed()))) {
    fs::remove_all(path);
  }
  ~TemporaryDirectory() { fs::remove_all(path); }
};

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
          "[checkpoint][mission-2][mission-3][mission-5]") {
  for (std::string_view name : moe::synthetic_models()) {
    DYNAMIC_SECTION(name) {
      auto spec = moe::synthetic_like(name);
      REQUIRE(spec.ok());
      spec->shared_intermediate = 0;
      spec->layers = 2;
      spec->experts = 16;
      spec->top_k = std::min(spec->top_k, 2);
      spec->hidden = 24;
      spec->intermediate = 10;
      spec->seed = moe::test::seed();
      spec->shard_bytes = 20000;
      TemporaryDirectory directory("synthetic_" + std::string(name));
      const moe::Status written = moe::write_synthetic(*spec, directory.path.native());
      INFO(written.message());
      REQUIRE(written.ok());
      auto checkpoint = moe::Checkpoint::open(directory.path.native());
      INFO(checkpoint.status().message());
      REQUIRE(checkpoint.ok());
      CHECK(checkpoint->layers().size() == 2);
      auto made = moe::make_synthetic(*spec);
      REQUIRE(made.ok());
      CHECK(compare(**made, *checkpoint) >= 2 * (1 + 2 * 16));
    }
  }
}
