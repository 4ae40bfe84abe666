// A model quantised ahead of time: the slots of one that is quantised when loaded, written complete
// or not at all.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint/files.h"
#include "moe/moe.h"
#include "random_model.h"
#include "relative_error.h"

using namespace moe;
using test::TemporaryDirectory;
namespace fs = std::filesystem;

namespace {

SyntheticSpec small(std::string_view family, DType dtype) {
  return {.family = family,
          .experts = 4,
          .top_k = 2,
          .hidden = 96,
          .intermediate = 80,  // no multiple of a group: the last one is shorter
          .dtype = dtype,
          .seed = test::seed()};
}

DType scale_of(DType type) { return type == DType::f32 || type == DType::f16 ? type : DType::bf16; }

std::vector<std::byte> slot(const WeightSource& source, const ExpertSpec& spec, int32_t layer,
                            int32_t expert) {
  auto gemm = make_expert_gemm(Device::cpu(), spec);
  REQUIRE(gemm.ok());
  std::vector<std::byte> bytes((*gemm)->layout(spec).bytes + 64);
  auto* start = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64);
  const Status status = (*gemm)->pack(spec, source, layer, expert, start);
  INFO(status.message());
  REQUIRE(status.ok());
  return {start, start + (*gemm)->layout(spec).bytes};
}

// Every slot read as packed integers is the one quantised from `from` on the way.
void check_slots(const std::string& from, const std::string& to, const QuantizeOptions& options,
                 DType scale) {
  const auto source = Checkpoint::open(from), made = Checkpoint::open(to);
  INFO(made.status().message());
  REQUIRE((source.ok() && made.ok()));
  REQUIRE(source->layers().size() == made->layers().size());
  const Format wanted{.kind = options.format, .group = options.group, .scale = scale};
  for (const LayerSpec& spec : made->layers()) {
    CHECK(spec.expert.format == wanted);
    for (int32_t e = 0; e < spec.router.num_experts; ++e)
      CHECK(slot(*made, spec.expert, spec.layer, e) == slot(*source, spec.expert, spec.layer, e));
    if (!spec.shared) continue;
    CHECK(spec.shared->expert.format == wanted);
    CHECK(slot(*made, spec.shared->expert, spec.layer, kSharedExpert) ==
          slot(*source, spec.shared->expert, spec.layer, kSharedExpert));
  }
}

// All that is stored of a routed expert, extents too, lies side by side from a multiple of 4 KiB
// on.
void check_places(const std::string& folder) {
  const auto made = Checkpoint::open(folder);
  REQUIRE(made.ok());
  struct Extent {
    uint64_t first = UINT64_MAX, last = 0, bytes = 0;
    int tensors = 0;
  };
  std::map<std::string, Extent> experts;
  for (const auto& tensor : made->tensors()) {
    const std::string name(tensor.name);
    if (name.find(".experts.") == std::string::npos) continue;
    // "...experts.7.up_proj.weight_packed" belongs to "...experts.7"
    Extent& expert = experts[name.substr(0, name.rfind('.', name.rfind('.') - 1))];
    expert.first = std::min(expert.first, tensor.offset);
    expert.last = std::max(expert.last, tensor.offset + tensor.bytes);
    expert.bytes += tensor.bytes;
    ++expert.tensors;
  }
  CHECK(experts.size() >= 8);
  for (const auto& [name, expert] : experts) {
    CAPTURE(name);
    CHECK(expert.tensors == 9);
    CHECK(expert.first % 4096 == 0);
    CHECK(expert.last - expert.first == expert.bytes);
  }
}

}  // namespace

TEST_CASE("a model quantised ahead has the slots of one quantised when loaded",
          "[model][mission-42][mission-43]") {
  const std::pair<FormatKind, int32_t> kFormats[] = {{FormatKind::int4, 32},
                                                     {FormatKind::int4, 128},
                                                     {FormatKind::int8, 0},
                                                     {FormatKind::int8, 64}};
  size_t first = 0;  // every type meets every format in some family
  for (const char* family : {"qwen3_moe", "deepseek_v3", "mixtral"}) {
    for (DType dtype : {DType::bf16, DType::f16, DType::f32, DType::f8_e4m3})
      for (size_t i = 0; i < 2; ++i) {
        const auto [format, group] = kFormats[(first + i) % 4];
        CAPTURE(family, to_string(dtype), to_string(format), group);
        const TemporaryDirectory directory;
        REQUIRE(write_synthetic(small(family, dtype), directory / "in").ok());
        const QuantizeOptions options{format, group};
        const auto errors = quantize(directory / "in", directory / "out", options);
        INFO(errors.status().message());
        REQUIRE(errors.ok());
        check_slots(directory / "in", directory / "out", options, scale_of(dtype));
        check_places(directory / "out");
        REQUIRE(errors->size() == 2);
        for (const LayerErrors& layer : *errors) {
          CHECK(layer.experts.size() >= 4);
          const double most = format == FormatKind::int4 ? 0.2 : 0.02;
          for (const ExpertError& expert : layer.experts) {
            CHECK((expert.weights > 1e-4 && expert.weights < most));
            CHECK((expert.outputs > 1e-4 && expert.outputs < 3 * most));
          }
        }
        REQUIRE(repack(directory / "out", directory / "repacked").ok());
        check_slots(directory / "in", directory / "repacked", options, scale_of(dtype));
        check_places(directory / "repacked");
      }
    ++first;
  }
}

TEST_CASE("quantised ahead or when loaded: the same answers", "[model][mission-42][mission-43]") {
  for (DType dtype : {DType::bf16, DType::f32})
    for (FormatKind kind : {FormatKind::int4, FormatKind::int8}) {
      CAPTURE(to_string(dtype), to_string(kind));
      const TemporaryDirectory directory;
      REQUIRE(write_synthetic(small("deepseek_v3", dtype), directory / "in").ok());
      REQUIRE(quantize(directory / "in", directory / "out", {kind, 64}).ok());
      auto ahead = Model::load(directory / "out");
      auto loaded = Model::load(directory / "in", {.format = Format{kind, 64, scale_of(dtype)}});
      auto whole = Model::load(directory / "in");
      REQUIRE((ahead.ok() && loaded.ok() && whole.ok()));
      for (const LayerSpec& spec : ahead->layers()) {
        const Dims shape = {7, spec.hidden()};
        std::mt19937 random(static_cast<uint32_t>(test::seed()));
        std::normal_distribution<float> normal;
        std::vector<float> rows(static_cast<size_t>(shape.elements()));
        for (float& value : rows) value = normal(random);
        const auto answer = [&](Model& model) {
          std::vector<float> out(rows.size(), -1);
          const Status status = model.forward(spec.layer, {rows.data(), DType::f32, shape},
                                              {out.data(), DType::f32, shape});
          INFO(status.message());
          REQUIRE(status.ok());
          return out;
        };
        const std::vector<float> wanted = answer(*loaded);
        CHECK(answer(*ahead) == wanted);
        const double error = test::relative_error(wanted, answer(*whole));
        CHECK((error > 1e-4 && error < (kind == FormatKind::int4 ? 0.5 : 0.05)));
      }
    }
}

TEST_CASE("published models are quantised, or refused with a sentence",
          "[model][mission-42][mission-43]") {
  if (!test::have_shared()) return test::skip("../shared is absent");
  int made = 0;
  for (const auto& entry : fs::directory_iterator(test::shared_dir() + "/goldens/a")) {
    const std::string from = entry.path().string();
    if (!fs::exists(from + "/config.json")) continue;
    CAPTURE(from);
    const TemporaryDirectory directory;
    const QuantizeOptions options{FormatKind::int4, 32};
    const auto errors = quantize(from, directory / "out", options);
    INFO(errors.status().message());
    if (!errors.ok()) {
      CHECK(errors.status().code() == StatusCode::unimplemented);
      CHECK(fs::is_empty(directory.path()));
      continue;
    }
    const auto source = Checkpoint::open(from);
    REQUIRE(source.ok());
    const FormatKind kind = source->layers()[0].expert.format.kind;
    check_slots(from, directory / "out", options,
                kind == FormatKind::f32   ? DType::f32
                : kind == FormatKind::f16 ? DType::f16
                                          : DType::bf16);
    ++made;
  }
  CHECK(made >= 10);
}

TEST_CASE("a quantised folder is complete or absent", "[model][mission-93]") {
  const TemporaryDirectory directory;
  REQUIRE(write_synthetic(small("qwen3_moe", DType::bf16), directory / "in").ok());
  const Progress progress = [](void* left, int64_t, int64_t) {
    return --*static_cast<int*>(left) > 0;
  };
  int stopped = 0;
  for (int n = 1;; n += 1 + n / 5, ++stopped) {
    int left = n;
    const auto done = quantize(directory / "in", directory / "out", {}, progress, &left);
    CHECK(fs::exists(directory / "out") == done.ok());
    if (done.ok()) break;
    CHECK(done.status().code() == StatusCode::cancelled);
    CHECK(std::distance(fs::directory_iterator(directory.path()), {}) == 1);
  }
  CHECK(stopped > 10);
  CHECK(quantize(directory / "in", directory / "out").status().code() ==
        StatusCode::already_exists);
}

TEST_CASE("no room for a whole shard: a sentence, and nothing is left", "[model][mission-93]") {
  const TemporaryDirectory directory;
  REQUIRE(write_synthetic(small("qwen3_moe", DType::bf16), directory / "in").ok());
  REQUIRE(quantize(directory / "in", directory / "whole").ok());
  const auto whole = fs::file_size(directory / "whole/model.safetensors");
  for (const uintmax_t room : {uintmax_t{0}, uintmax_t{5000}, whole / 2, whole - 1, whole}) {
    CAPTURE(room);
    const pid_t child = ::fork();
    if (child == 0) {  // files may not become longer
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit most{room, room};
      ::setrlimit(RLIMIT_FSIZE, &most);
      const auto done = quantize(directory / "in", directory / "out");
      if (done.ok()) ::_exit(0);
      ::_exit(test::says(done.status(), "write") ? 1 : 2);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == (room < whole));
    CHECK(fs::exists(directory / "out") == (room == whole));
    CHECK(std::distance(fs::directory_iterator(directory.path()), {}) == 2 + (room == whole));
  }
}

TEST_CASE("quantize refuses what makes no sense, and writes nothing", "[model][mission-12]") {
  const TemporaryDirectory directory;
  REQUIRE(write_synthetic(small("qwen3_moe", DType::bf16), directory / "in").ok());
  const auto code = [&](const char* to, const QuantizeOptions& options) {
    return quantize(directory / "in", directory / to, options).status().code();
  };
  CHECK(code("out", {FormatKind::int4, 48}) == StatusCode::invalid_argument);
  CHECK(code("out", {FormatKind::int4, -32}) == StatusCode::invalid_argument);
  CHECK(code("out", {FormatKind::bf16, 0}) == StatusCode::invalid_argument);
  CHECK(code("in/out", {}) == StatusCode::invalid_argument);
  CHECK_FALSE(quantize(directory / "in", "/proc/nowhere/out").ok());
  CHECK(std::distance(fs::directory_iterator(directory.path()), {}) == 1);
  REQUIRE(code("out", {}) == StatusCode::ok);
  const auto again = quantize(directory / "out", directory / "again");
  CHECK(again.status().code() == StatusCode::unimplemented);
  CHECK(test::says(again.status(), "already"));
  CHECK_FALSE(fs::exists(directory / "again"));
}
