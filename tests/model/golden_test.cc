// The published models' own answers: every MoE block of ../shared/goldens.
#include "golden.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <vector>

#include "catch.h"
#include "moe/moe.h"
#include "relative_error.h"
#include "temporary_directory.h"

using namespace moe;

namespace {

// One row's choice as expert -> weight; places without an expert are left out.
std::map<int64_t, float> choice(const auto* ids, const float* weights, int64_t top_k) {
  std::map<int64_t, float> chosen;
  for (int64_t i = 0; i < top_k; ++i)
    if (ids[i] >= 0) chosen[ids[i]] = weights[i];
  return chosen;
}

struct Blocks {
  int compared = 0;
  int choices = 0;
};

void compare_block(Model& model, const test::Golden& golden, const test::GoldenBlock& block,
                   Blocks& blocks) {
  const auto& [layer, x, y, routing_prefix] = block;
  INFO("layer " << layer << " " << x);
  const auto input = golden.read<float>(x), wanted = golden.read<float>(y);
  const int64_t rows = golden.tensors.at(x).shape[0], hidden = golden.tensors.at(x).shape[1];
  const LayerSpec spec = *model.layer(layer);
  const int64_t top_k = spec.router.top_k;
  std::vector<float> out(input.size(), NAN);
  std::vector<int32_t> ids(static_cast<size_t>(rows * top_k));
  std::vector<float> weights(ids.size());
  Routing routing{rows, spec.router.top_k, ids.data(), weights.data()};
  const Status status =
      model.forward(layer, {input.data(), DType::f32, {rows, hidden}},
                    {out.data(), DType::f32, {rows, hidden}}, {.routing_out = &routing});
  INFO(status.message());
  REQUIRE(status.ok());
  CHECK(test::relative_error(out, wanted) < 2e-6);
  ++blocks.compared;

  if (!golden.has(routing_prefix + "topk_ids")) return;
  const auto golden_ids = golden.read<int64_t>(routing_prefix + "topk_ids");
  const auto golden_weights = golden.read<float>(routing_prefix + "topk_weights");
  REQUIRE(golden_ids.size() == ids.size());
  for (int64_t row = 0; row < rows; ++row) {
    INFO("row " << row);
    const auto got = choice(&ids[row * top_k], &weights[row * top_k], top_k);
    const auto want = choice(&golden_ids[row * top_k], &golden_weights[row * top_k], top_k);
    REQUIRE(got.size() == want.size());
    for (auto [id, weight] : want) {
      REQUIRE(got.count(id) == 1);
      REQUIRE(std::abs(got.at(id) - weight) <= 1e-6 * std::max(1.0f, std::abs(weight)));
    }
    ++blocks.choices;
  }
}

// Every block in every checkpoint of one folder of goldens.
void compare_folder(const std::string& folder, size_t families) {
  if (!test::have_shared()) return test::skip("goldens: ../shared is absent");
  size_t seen = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(test::shared_dir() + "/goldens/" + folder)) {
    ++seen;
    INFO(entry.path().string());
    auto model = Model::load(entry.path().string());
    INFO(model.status().message());
    REQUIRE(model.ok());
    const test::Golden golden = test::Golden::open(entry.path() / "golden.safetensors");
    Blocks blocks;
    for (const test::GoldenBlock& block : test::blocks_of(golden, model->layers()))
      compare_block(*model, golden, block, blocks);
    CHECK(blocks.compared >= 3);
  }
  CHECK(seen == families);
}

}  // namespace

TEST_CASE("goldens/a: 19 families", "[model][golden][mission-2][mission-3][mission-5][mission-8]") {
  compare_folder("a", 19);
}
TEST_CASE("goldens/b: 19 families, other sizes", "[model][golden][mission-2][mission-3]") {
  compare_folder("b", 19);
}
TEST_CASE("goldens/fp8-0 and fp8-1: DeepSeek-V3 and Qwen3 in 128 x 128 blocks of fp8",
          "[model][golden][mission-3][mission-41]") {
  compare_folder("fp8-0", 2);
  compare_folder("fp8-1", 2);
}
TEST_CASE("goldens/c: 10 more families", "[model][golden][mission-7]") { compare_folder("c", 10); }

TEST_CASE("a bad fp8 scale is named with its tensor and expert", "[model][mission-47]") {
  if (!test::have_shared()) return test::skip("../shared is absent");
  const std::filesystem::path from = test::shared_dir() + "/goldens/fp8-0/qwen3_moe_fp8";
  for (const float scale : {NAN, INFINITY, 0.0f, 1e-41f}) {
    const test::TemporaryDirectory directory;
    for (const auto& entry : std::filesystem::directory_iterator(from))
      std::filesystem::copy_file(entry, directory / entry.path().filename().string());
    std::string name;
    for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
      if (entry.path().extension() != ".safetensors") continue;
      const auto file = TensorFile::open(entry.path().string());
      REQUIRE(file.ok());
      for (const auto& tensor : file->tensors()) {
        if (!name.empty() || tensor.name.find(".experts.3.up_proj") == std::string::npos ||
            !tensor.name.ends_with("_scale_inv"))
          continue;
        name = tensor.name;
        std::filesystem::permissions(entry.path(), std::filesystem::perms::owner_all);
        std::fstream bytes(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
        bytes.seekp(static_cast<std::streamoff>(tensor.offset));
        bytes.write(reinterpret_cast<const char*>(&scale), sizeof scale);
      }
    }
    REQUIRE(!name.empty());
    const auto model = Model::load(directory.path());
    REQUIRE_FALSE(model.ok());
    INFO(name << " = " << scale << ": " << model.status().message());
    CHECK(model.status().place().expert == 3);
    CHECK(model.status().place().tensor.starts_with("up"));
  }
}
