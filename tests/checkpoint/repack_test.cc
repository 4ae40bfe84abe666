// A repacked model: the same weights, each expert in one aligned piece, and digests that notice.
#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/family.h"
#include "checkpoint/files.h"

using namespace moe;
using namespace moe::test;
namespace fs = std::filesystem;

namespace {

// What every file of a folder holds.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::directory_iterator(folder))
    all[entry.path().filename().string()] = read_file(entry.path().string());
  return all;
}

std::vector<std::byte> bytes_of(const Checkpoint& checkpoint, const WeightId& id) {
  const auto shape = checkpoint.describe(id);
  if (!shape.ok()) return {};
  std::vector<std::byte> bytes(
      static_cast<size_t>(shape->shape.elements() * bits_of(shape->dtype) / 8), std::byte{0xee});
  const Status status =
      checkpoint.read(id, MutableTensorView(bytes.data(), shape->dtype, shape->shape));
  INFO(status.message());
  REQUIRE(status.ok());
  return bytes;
}

// Compares every canonical tensor; returns how many there were.
int compare(const Checkpoint& one, const Checkpoint& other) {
  int compared = 0;
  REQUIRE(one.layers().size() == other.layers().size());
  for (const LayerSpec& spec : one.layers())
    for (int k = 0; k <= static_cast<int>(WeightKind::down_scale); ++k)
      for (int32_t e = kSharedExpert; e < spec.router.num_experts; ++e) {
        const auto kind = static_cast<WeightKind>(k);
        if (kind < WeightKind::gate && e != kSharedExpert) break;
        const auto bytes = bytes_of(one, {spec.layer, kind, e});
        CHECK(bytes == bytes_of(other, {spec.layer, kind, e}));
        compared += !bytes.empty();
      }
  return compared;
}

// Every expert's own tensors lie side by side from a multiple of 4 KiB on; a tensor that several
// share begins at one. PyTorch reads a tensor only at a multiple of its element.
void check_places(const Checkpoint& checkpoint) {
  for (const auto& tensor : checkpoint.tensors())
    CHECK(tensor.offset % static_cast<uint64_t>(std::max(8, bits_of(tensor.dtype)) / 8) == 0);
  const Checkpoint::Impl& inside = *checkpoint.impl();
  for (const LayerTensors& layer : inside.layers.layers()) {
    std::map<const Checkpoint::Tensor*, int> users;
    std::vector<std::vector<const Checkpoint::Tensor*>> all;
    for (int32_t e = 0; e < layer.spec().router.num_experts; ++e) {
      auto& tensors = all.emplace_back();
      for (const Part& part : layer.parts()) {
        if (part.owner != Owner::routed || !is_expert_kind(part.kind)) continue;
        const auto found = inside.layers.find({layer.spec().layer, part.kind, e});
        REQUIRE(found.ok());
        const Checkpoint::Tensor* tensor = inside.files.find(found->name);
        if (tensor && std::find(tensors.begin(), tensors.end(), tensor) == tensors.end())
          tensors.push_back(tensor);
      }
      for (const auto* tensor : tensors) ++users[tensor];
    }
    for (const auto& tensors : all) {
      std::vector<const Checkpoint::Tensor*> own;
      for (const auto* tensor : tensors)
        if (users[tensor] == 1)
          own.push_back(tensor);
        else
          CHECK(tensor->offset % 4096 == 0);
      std::sort(own.begin(), own.end(),
                [](const auto* a, const auto* b) { return a->offset < b->offset; });
      for (size_t i = 0; i < own.size(); ++i) {
        CHECK(own[i]->file == own[0]->file);
        if (i == 0)
          CHECK(own[i]->offset % 4096 == 0);
        else
          CHECK(own[i]->offset == own[i - 1]->offset + own[i - 1]->bytes);
      }
    }
  }
}

void check_repacked(const std::string& from, const std::string& to) {
  const auto before = contents(from);
  const Status status = repack(from, to);
  INFO(status.message());
  REQUIRE(status.ok());
  CHECK(contents(from) == before);
  CHECK(fs::exists(to + "/moe.manifest.json"));
  CHECK(read_file(to + "/config.json") == before.at("config.json"));
  Notebook notes;
  const auto old = Checkpoint::open(from), made = Checkpoint::open(to, {.log = &notes});
  INFO(made.status().message());
  REQUIRE((old.ok() && made.ok()));
  CHECK(notes.text.empty());
  CHECK(compare(*old, *made) > 0);
  check_places(*made);
  for (const auto& tensor : old->tensors()) {  // also those that are no experts
    const auto copy = made->find(tensor.name);
    REQUIRE(copy.ok());
    std::string one(tensor.bytes, 'a'), other(tensor.bytes, 'b');
    REQUIRE((old->read_raw(tensor, one.data()).ok() && made->read_raw(*copy, other.data()).ok()));
    CHECK(one == other);
  }
}

SyntheticSpec small(std::string_view family) {
  return {.family = family,
          .experts = 6,
          .top_k = family == "switch_transformers" ? 1 : 2,
          .hidden = 24,
          .intermediate = 10,
          .seed = test::seed(),
          .shard_bytes = 20000};
}

}  // namespace

TEST_CASE("a model of every family is the same when repacked", "[checkpoint][mission-84]") {
  int made = 0;
  for (const std::string_view family : family_names()) {
    const Family* row = find_family(family);
    if (row->architecture.empty() || row->synthetic.empty()) continue;
    CAPTURE(family);
    TemporaryDirectory directory;
    REQUIRE(write_synthetic(small(family), directory / "in").ok());
    check_repacked(directory / "in", directory / "out");
    ++made;
  }
  CHECK(made >= 35);
}

TEST_CASE("published models are the same when repacked", "[checkpoint][mission-84]") {
  if (!have_shared()) return skip("../shared is absent");
  for (const auto& entry : fs::directory_iterator(shared_dir() + "/goldens/a")) {
    if (!entry.is_directory() || !fs::exists(entry.path() / "config.json")) continue;
    CAPTURE(entry.path().string());
    TemporaryDirectory directory;
    check_repacked(entry.path().string(), directory / "out");
  }
}

TEST_CASE("a damaged byte of a repacked expert is noticed where it is read",
          "[checkpoint][mission-93][mission-96]") {
  for (const std::string_view family : {"qwen3_moe", "gpt_oss"}) {
    CAPTURE(family);
    TemporaryDirectory directory;
    REQUIRE(write_synthetic(small(family), directory / "in").ok());
    REQUIRE(repack(directory / "in", directory / "out").ok());
    const auto good = Checkpoint::open(directory / "out");
    REQUIRE(good.ok());
    const WeightId id{good->layers()[0].layer, WeightKind::down, 3};
    const auto found = good->impl()->layers.find(id);
    REQUIRE(found.ok());
    const Checkpoint::Tensor& tensor = *good->impl()->files.find(found->name);
    const auto shape = good->describe(id);
    REQUIRE(shape.ok());
    const std::string path = directory / ("out/" + std::string(tensor.file));
    std::string bytes = read_file(path);
    bytes[tensor.offset + static_cast<uint64_t>(found->slice.base) * 2 + 5] ^= 4;
    write_file(path, bytes);

    const auto damaged = Checkpoint::open(directory / "out");
    REQUIRE(damaged.ok());
    std::vector<std::byte> out(static_cast<size_t>(shape->shape.elements() * 2));
    const MutableTensorView view(out.data(), shape->dtype, shape->shape);
    const Status status = damaged->read(id, view);
    CHECK(status.code() == StatusCode::data_loss);
    CHECK(status.place().tensor == tensor.name);
    CHECK(says(status, "digest"));
    CHECK(damaged->read({id.layer, id.kind, 2}, view).ok());
    fs::remove(directory / "out/moe.manifest.json");  // the store works without it
    const auto trusting = Checkpoint::open(directory / "out");
    REQUIRE(trusting.ok());
    CHECK(trusting->read(id, view).ok());
    write_file(directory / "out/moe.manifest.json",
               "{\"schema_version\":1,\"xxh3\":{\"a\":\"x\"}}");
    CHECK(Checkpoint::open(directory / "out").status().code() == StatusCode::invalid_argument);
  }
}

TEST_CASE("a repacked folder is complete or absent", "[checkpoint][mission-93]") {
  TemporaryDirectory directory;
  REQUIRE(write_synthetic(small("qwen3_moe"), directory / "in").ok());
  const auto before = contents(directory / "in");
  struct Stop {
    int left;
    bool crash;
  };
  const Progress progress = [](void* argument, int64_t, int64_t) {
    Stop& stop = *static_cast<Stop*>(argument);
    if (--stop.left > 0) return true;
    if (stop.crash) ::_exit(7);
    return false;
  };
  for (const bool crash : {false, true})
    for (int n = 1;; n += crash ? 5 : 1) {
      Stop stop{n, crash};
      bool done;
      if (crash) {
        const pid_t child = ::fork();
        if (child == 0)
          ::_exit(repack(directory / "in", directory / "out", progress, &stop).ok() ? 0 : 1);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        done = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (!done) REQUIRE(WEXITSTATUS(status) == 7);
      } else {
        done = repack(directory / "in", directory / "out", progress, &stop).ok();
        if (!done) CHECK(std::distance(fs::directory_iterator(directory.path()), {}) == 1);
      }
      CHECK(fs::exists(directory / "out") == done);
      CHECK(contents(directory / "in") == before);
      if (!done) continue;
      CHECK(Checkpoint::open(directory / "out").ok());
      fs::remove_all(directory / "out");
      break;
    }
}

TEST_CASE("repack refuses folders that it must not write", "[checkpoint]") {
  TemporaryDirectory directory;
  REQUIRE(write_synthetic(small("qwen3_moe"), directory / "in").ok());
  CHECK(repack(directory / "in", directory / "in/out").code() == StatusCode::invalid_argument);
  CHECK(repack(directory / "in", directory / "in").code() == StatusCode::already_exists);
  CHECK(repack(directory / "nowhere", directory / "out").code() == StatusCode::not_found);
  CHECK_FALSE(fs::exists(directory / "out"));
}
