// Integer checkpoints in every published layout, spelled bit by bit by make_quantised.py, beside
// the same weights in f32.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "catch.h"
#include "checkpoint/files.h"
#include "moe/moe.h"
#include "random_model.h"
#include "relative_error.h"
#include "temporary_directory.h"

using namespace moe;
using test::TemporaryDirectory;

namespace {

// make_quantised.py's checkpoints, written once. Empty without python3.
const std::string& quantised_checkpoints() {
  static const TemporaryDirectory directory;
  static const std::string path = [] {
    if (std::string(MOE_PYTHON).empty()) return std::string();
    const std::string made = directory / "made";
    const std::string command =
        fmt::format("\"{}\" \"{}\" \"{}\"", MOE_PYTHON, MOE_MAKE_QUANTISED, made);
    REQUIRE(std::system(command.c_str()) == 0);
    return made;
  }();
  return path;
}

std::vector<float> forward(const std::string& path, const ModelOptions& options, int32_t layer,
                           const std::vector<float>& rows) {
  auto model = Model::load(path, options);
  INFO(model.status().message());
  REQUIRE(model.ok());
  const int64_t hidden = model->layer(layer)->hidden();
  const Dims shape = {static_cast<int64_t>(rows.size()) / hidden, hidden};
  std::vector<float> out(rows.size(), NAN);
  const Status status =
      model->forward(layer, {rows.data(), DType::f32, shape}, {out.data(), DType::f32, shape});
  INFO(status.message());
  REQUIRE(status.ok());
  return out;
}

// A copy of one of the checkpoints whose tensors and config.json a test may spoil.
class Spoiled {
 public:
  struct Stored {
    DType dtype;
    Dims shape;
    std::vector<char> bytes;
  };

  struct Where {
    int32_t expert;
    std::string tensor;
  };

  explicit Spoiled(const std::string& name)
      : config(test::read_file(quantised_checkpoints() + "/" + name + "/config.json")) {
    auto file = TensorFile::open(quantised_checkpoints() + "/" + name + "/model.safetensors");
    REQUIRE(file.ok());
    for (const auto& tensor : file->tensors()) {
      Stored& stored = tensors[std::string(tensor.name)];
      stored = {tensor.dtype, tensor.shape, std::vector<char>(tensor.bytes)};
      REQUIRE(file->read(tensor, stored.bytes.data()).ok());
    }
  }

  static std::string name(int expert, const char* tensor) {
    return fmt::format("model.layers.0.block_sparse_moe.experts.{}.{}", expert, tensor);
  }
  Stored& at(const std::string& name) {
    REQUIRE(tensors.count(name) == 1);
    return tensors[name];
  }
  void replace(const std::string& from, const std::string& to) {
    const size_t place = config.find(from);
    REQUIRE(place != std::string::npos);
    config.replace(place, from.size(), to);
  }

  // The whole is refused with this code, and its message says this; where it does.
  Where refused(StatusCode code, const std::vector<std::string>& words) const {
    const TemporaryDirectory directory;
    std::vector<NamedTensor> named;
    for (const auto& [name, stored] : tensors)
      named.push_back({name, TensorView(stored.bytes.data(), stored.dtype, stored.shape)});
    REQUIRE(write_safetensors(directory / "model.safetensors", named).ok());
    std::ofstream(directory / "config.json") << config;
    const Status status = Model::load(directory.path()).status();
    INFO(to_string(status.code()) << ": " << status.message());
    CHECK(status.code() == code);
    for (const std::string& word : words) {
      INFO("wanted: " << word);
      CHECK(status.message().find(word) != std::string_view::npos);
    }
    return {status.place().expert, std::string(status.place().tensor)};
  }

  std::map<std::string, Stored> tensors;
  std::string config;
};

}  // namespace

TEST_CASE("AWQ, GPTQ and compressed-tensors give the answers of their weights in f32",
          "[model][mission-42][mission-43]") {
  if (quantised_checkpoints().empty()) return test::skip("make_quantised.py: no python3");
  test::Random random(test::seed());
  std::set<std::string> formats;
  int compared = 0;
  for (const auto& entry : std::filesystem::directory_iterator(quantised_checkpoints())) {
    const std::string path = entry.path().string();
    if (path.ends_with(".reference")) continue;
    INFO(path);
    auto checkpoint = Checkpoint::open(path);
    INFO(checkpoint.status().message());
    REQUIRE(checkpoint.ok());
    for (const LayerSpec& spec : checkpoint->layers()) {
      formats.insert(to_string(spec.expert.format.kind));
      std::vector<float> rows(static_cast<size_t>(17 * spec.hidden()));
      for (float& value : rows) value = static_cast<float>(random.between(-1000, 1000)) / 700.0f;
      const auto wanted = forward(path + ".reference", {}, spec.layer, rows);
      ModelOptions exact;
      exact.gemm_options.rows = RowPrecision::exact;
      CHECK(test::relative_error(forward(path, exact, spec.layer, rows), wanted) < 2e-6);
      CHECK(test::relative_error(forward(path, {}, spec.layer, rows), wanted) < 2e-2);
      ++compared;
    }
  }
  CHECK(compared >= 23);
  CHECK(formats == std::set<std::string>{"bf16", "int4", "int8"});
}

TEST_CASE("paging reads a packed expert whole, with the resident model's answers",
          "[model][mission-42][mission-84]") {
  if (quantised_checkpoints().empty()) return test::skip("make_quantised.py: no python3");
  test::Random random(test::seed());
  for (const char* name : {"awq", "gptq4-v2-asym-order", "pack4-asym-order", "int8-asym"}) {
    INFO(name);
    const std::string path = quantised_checkpoints() + "/" + name;
    std::vector<float> rows(5 * 64);
    for (float& value : rows) value = static_cast<float>(random.between(-1000, 1000)) / 700.0f;
    auto resident = Model::load(path);
    REQUIRE(resident.ok());
    ModelOptions paged;
    paged.expert_memory = 3 * resident->store().stats().slot_bytes;  // one expert at a time
    CHECK(forward(path, paged, 0, rows) == forward(path, {}, 0, rows));
  }
}

TEST_CASE("what is wrong with a packed checkpoint is said with tensor, got and wanted",
          "[model][mission-12][mission-47]") {
  if (quantised_checkpoints().empty()) return test::skip("make_quantised.py: no python3");
  SECTION("a tensor is missing") {
    for (const char* tensor : {"w1.qweight", "w2.scales", "w3.qzeros"}) {
      Spoiled model("awq");
      model.tensors.erase(Spoiled::name(1, tensor));
      model.refused(StatusCode::invalid_argument, {Spoiled::name(1, tensor), "missing"});
    }
    Spoiled model("gptq4-order");
    model.tensors.erase(Spoiled::name(2, "w2.g_idx"));
    model.refused(StatusCode::invalid_argument, {Spoiled::name(2, "w2.g_idx"), "missing"});
    Spoiled packed("pack4-asym-order");
    packed.tensors.erase(Spoiled::name(0, "w1.weight_zero_point"));
    packed.refused(StatusCode::invalid_argument,
                   {Spoiled::name(0, "w1.weight_zero_point"), "missing"});
  }
  SECTION("another shape or type") {
    Spoiled model("gptq4-sym");
    model.at(Spoiled::name(1, "w1.scales")).shape = {1, 192};
    model.refused(StatusCode::invalid_argument,
                  {Spoiled::name(1, "w1.scales"), "[1, 192]", "[2, 96]"});
    Spoiled other("gptq4-sym");
    other.at(Spoiled::name(1, "w1.qweight")).dtype = DType::f32;
    other.refused(StatusCode::invalid_argument, {Spoiled::name(1, "w1.qweight"), "F32", "I32"});
    Spoiled group("awq");
    group.replace("\"group_size\": 32", "\"group_size\": 64");
    group.refused(StatusCode::invalid_argument, {"qzeros", "[2, 12]", "[1, 12]"});
  }
  SECTION("a scale that is no scale") {
    for (const uint16_t bits : {0x7e00, 0x7c00, 0x0000}) {
      Spoiled model("awq");
      std::memcpy(model.at(Spoiled::name(2, "w1.scales")).bytes.data() + 6, &bits, 2);
      const auto where = model.refused(StatusCode::data_loss, {"scale [3, 0]"});
      CHECK(where.expert == 2);
      CHECK(where.tensor.starts_with("gate"));
    }
  }
  SECTION("an input in a group that is not there") {
    for (const int32_t group : {-1, 2}) {
      Spoiled model("gptq4-order");
      std::memcpy(model.at(Spoiled::name(1, "w1.g_idx")).bytes.data() + 12, &group, 4);
      const auto where =
          model.refused(StatusCode::data_loss, {fmt::format("input 3 is in group {}", group)});
      CHECK(where.expert == 1);
      CHECK(where.tensor.starts_with("gate"));
    }
  }
  SECTION("what config.json says is not what is stored") {
    Spoiled zeros("gptq4-asym");
    zeros.replace("\"sym\": false", "\"sym\": true");
    zeros.refused(StatusCode::data_loss, {"qzeros", "symmetric"});
    Spoiled order("gptq4-order");
    order.replace("\"desc_act\": true", "\"desc_act\": false");
    order.refused(StatusCode::data_loss, {"g_idx", "no act-order"});
  }
  SECTION("a variant that nobody here can read") {
    const std::pair<const char*, std::pair<const char*, const char*>> kVariants[] = {
        {"awq", {"\"version\": \"gemm\"", "\"version\": \"gemv\""}},
        {"gptq4-sym", {"\"bits\": 4", "\"bits\": 3"}},
        {"gptq4-sym", {"\"damp_percent\": 0.01", "\"checkpoint_format\": \"marlin\""}},
        {"pack4-ragged", {"\"format\": \"pack-quantized\"", "\"format\": \"marlin-24\""}},
        {"pack4-ragged", {"\"num_bits\": 4", "\"num_bits\": 2"}},
        {"int8-rows", {"\"strategy\": \"channel\"", "\"strategy\": \"diagonal\""}},
    };
    for (const auto& [name, change] : kVariants) {
      Spoiled model(name);
      model.replace(change.first, change.second);
      model.refused(StatusCode::unimplemented, {"config.json"});
    }
  }
}
