// Checkpoints that must be refused: the message names file, tensor, what was found and what to do.
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "catch.h"
#include "moe/checkpoint.h"
#include "temporary_directory.h"

using namespace moe;
using test::TemporaryDirectory;

namespace {

constexpr int64_t kHidden = 6, kIntermediate = 5, kExperts = 4;

// A Mixtral model of one layer whose tensors and config.json a test may spoil.
struct Mixtral {
  struct Tensor {
    DType dtype = DType::bf16;
    Dims shape;
  };
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> config = {
      {"model_type", "\"mixtral\""}, {"hidden_size", "6"},       {"intermediate_size", "5"},
      {"num_local_experts", "4"},    {"num_hidden_layers", "1"}, {"num_experts_per_tok", "2"},
  };

  Mixtral() {
    tensors["model.layers.0.block_sparse_moe.gate.weight"] = {DType::bf16, {kExperts, kHidden}};
    for (int expert = 0; expert < kExperts; ++expert) {
      tensors[name(expert, "w1")] = {DType::bf16, {kIntermediate, kHidden}};
      tensors[name(expert, "w3")] = {DType::bf16, {kIntermediate, kHidden}};
      tensors[name(expert, "w2")] = {DType::bf16, {kHidden, kIntermediate}};
    }
  }

  static std::string name(int expert, const std::string& projection) {
    return fmt::format("model.layers.0.block_sparse_moe.experts.{}.{}.weight", expert, projection);
  }

  void write(const std::filesystem::path& directory) const {
    std::filesystem::create_directories(directory);
    const std::vector<char> zeros(4096);
    std::vector<NamedTensor> named;
    for (const auto& [name, tensor] : tensors)
      named.push_back({name, TensorView(zeros.data(), tensor.dtype, tensor.shape)});
    const Status status = write_safetensors((directory / "model.safetensors").native(), named);
    INFO(status.message());
    REQUIRE(status.ok());
    std::ofstream file(directory / "config.json");
    const char* separator = "{";
    for (const auto& [key, value] : config) {
      file << separator << '"' << key << "\": " << value;
      separator = ", ";
    }
    file << "}";
  }

  Status open() const {
    TemporaryDirectory directory;
    write(directory.path());
    return open(directory.path());
  }
  static Status open(const std::filesystem::path& directory) {
    auto checkpoint = Checkpoint::open(directory.native());
    return checkpoint.ok() ? Status() : checkpoint.status();
  }
};

void refused(const Status& status, StatusCode code, const std::vector<std::string>& words) {
  INFO(to_string(status.code()) << ": " << status.message());
  CHECK(status.code() == code);
  for (const std::string& word : words) {
    INFO("wanted: " << word);
    CHECK(status.message().find(word) != std::string_view::npos);
  }
}

void refused(const Mixtral& model, const std::vector<std::string>& words) {
  refused(model.open(), StatusCode::invalid_argument, words);
}

}  // namespace

TEST_CASE("the model that the refusals start from is accepted", "[checkpoint]") {
  CHECK(Mixtral().open().ok());
}

TEST_CASE("config.json that no model can have is refused", "[checkpoint][mission-12]") {
  const auto with = [](const std::string& key, const std::string& value) {
    Mixtral model;
    model.config[key] = value;
    return model;
  };
  for (const char* key : {"num_local_experts", "num_experts_per_tok", "hidden_size",
                          "intermediate_size", "num_hidden_layers"})
    for (const char* value :
         {"0", "-1", "1.5", "\"8\"", "true", "{}", "1e30", "9223372036854775807"}) {
      INFO(key << " = " << value);
      refused(with(key, value), {key, "config.json", "wanted"});
    }
  for (const char* key : {"num_local_experts", "num_experts_per_tok", "hidden_size",
                          "intermediate_size", "num_hidden_layers"}) {
    Mixtral model;
    model.config.erase(key);
    refused(model, {key, "nothing", "config.json"});
  }
  refused(with("num_experts_per_tok", "5"), {"5 of 4 experts"});
  refused(with("num_hidden_layers", "2000000"), {"2000000 layers", "10000"});
  refused(with("num_local_experts", "100000"), {"100000 experts", "65536"});
  refused(with("hidden_act", "\"tanh\""), {"hidden_act", "tanh", "silu"});
}

TEST_CASE("config.json that is not one is refused", "[checkpoint][mission-12]") {
  TemporaryDirectory directory;
  Mixtral().write(directory.path());
  const auto write = [&](const char* text) { std::ofstream(directory / "config.json") << text; };
  write("[1, 2]");
  refused(Mixtral::open(directory.path()), StatusCode::invalid_argument, {"config.json", "object"});
  write("{\"model_type\": ");
  refused(Mixtral::open(directory.path()), StatusCode::invalid_argument, {"config.json"});
  write("");
  refused(Mixtral::open(directory.path()), StatusCode::invalid_argument, {"config.json"});
  std::filesystem::remove(directory / "config.json");
  refused(Mixtral::open(directory.path()), StatusCode::not_found, {"config.json"});
  refused(Mixtral::open(directory / "nowhere"), StatusCode::not_found, {"nowhere"});
}

TEST_CASE("an unknown family is refused with the nearest known one", "[checkpoint][mission-12]") {
  Mixtral model;
  model.config["model_type"] = "\"mixtrall\"";
  refused(model.open(), StatusCode::unimplemented,
          {"mixtrall", "did you mean \"mixtral\"", "deepseek_v3"});
  model.config["model_type"] = "\"llama\"";
  refused(model.open(), StatusCode::unimplemented, {"\"llama\""});
  model.config.erase("model_type");
  refused(model.open(), StatusCode::unimplemented, {"model_type", "mixtral"});
}

TEST_CASE("tensors that are missing are all named", "[checkpoint][mission-12]") {
  SECTION("one projection of one expert") {
    Mixtral model;
    model.tensors.erase(Mixtral::name(2, "w3"));
    refused(model, {Mixtral::name(2, "w3"), "missing"});
  }
  SECTION("of the first expert") {
    Mixtral model;
    model.tensors.erase(Mixtral::name(0, "w2"));
    refused(model, {Mixtral::name(0, "w2"), "missing"});
  }
  SECTION("several") {
    Mixtral model;
    model.tensors.erase(Mixtral::name(1, "w1"));
    model.tensors.erase(Mixtral::name(3, "w2"));
    refused(model, {Mixtral::name(1, "w1"), Mixtral::name(3, "w2"), "2 tensors"});
  }
  SECTION("a layer that config.json promises") {
    Mixtral model;
    model.config["num_hidden_layers"] = "2";
    refused(model, {"model.layers.1.block_sparse_moe.gate.weight", "missing"});
  }
  SECTION("every router") {
    Mixtral model;
    model.tensors.erase("model.layers.0.block_sparse_moe.gate.weight");
    refused(model, {"model.layers.0.block_sparse_moe.gate.weight", "mixtral"});
  }
}

TEST_CASE("tensors that do not fit config.json are refused", "[checkpoint][mission-12]") {
  SECTION("one expert has another shape") {
    Mixtral model;
    model.tensors[Mixtral::name(3, "w1")].shape = {kIntermediate + 1, kHidden};
    refused(model, {Mixtral::name(3, "w1"), "[6, 6]", "[5, 6]", "model.safetensors"});
  }
  SECTION("transposed") {
    Mixtral model;
    model.tensors[Mixtral::name(1, "w2")].shape = {kIntermediate, kHidden};
    refused(model, {Mixtral::name(1, "w2"), "[5, 6]", "[6, 5]"});
  }
  SECTION("one expert has another type") {
    Mixtral model;
    model.tensors[Mixtral::name(3, "w1")].dtype = DType::f16;
    refused(model, {Mixtral::name(3, "w1"), "F16", "BF16"});
  }
  SECTION("hidden_size") {
    Mixtral model;
    model.config["hidden_size"] = "7";
    refused(model, {"[4, 6]", "[4, 7]"});
  }
  SECTION("fewer experts than are present") {
    Mixtral model;
    model.config["num_local_experts"] = "3";
    refused(model, {"gate.weight", "[4, 6]", "[3, 6]"});
    model.tensors["model.layers.0.block_sparse_moe.gate.weight"].shape = {3, kHidden};
    refused(model, {Mixtral::name(3, "w3"), "3 experts"});
  }
  SECTION("more experts than are present") {
    Mixtral model;
    model.config["num_local_experts"] = "5";
    refused(model, {"[4, 6]", "[5, 6]"});
    model.tensors["model.layers.0.block_sparse_moe.gate.weight"].shape = {5, kHidden};
    refused(model, {Mixtral::name(4, "w1"), Mixtral::name(4, "w2"), Mixtral::name(4, "w3")});
  }
}

TEST_CASE("a quantised checkpoint is refused with its format's name", "[checkpoint][mission-12]") {
  const std::pair<const char*, const char*> kFormats[] = {
      {R"({"quant_method": "mxfp4"})", "mxfp4"},
      {R"({"quant_method": "awq", "bits": 3, "group_size": 128})", "awq 3 bit, groups of 128"},
      {R"({"quant_method": "gptq", "bits": 2, "group_size": -1})", "gptq 2 bit, groups of -1"},
      {R"({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"})",
       "compressed-tensors nvfp4-pack-quantized"},
      {R"({"quant_method": "modelopt", "quant_algo": "NVFP4"})", "modelopt NVFP4"},
      {R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})",
       "bitsandbytes 4 bit (nf4)"},
      {R"({"quant_method": "quark"})", "quark"},
  };
  for (const auto& [config, name] : kFormats) {
    Mixtral model;
    model.config["quantization_config"] = config;
    refused(model.open(), StatusCode::unimplemented, {name, "config.json"});
  }
  SECTION("named in hf_quant_config.json") {
    TemporaryDirectory directory;
    Mixtral().write(directory.path());
    std::ofstream(directory / "hf_quant_config.json")
        << R"({"producer": {}, "quantization": {"quant_algo": "NVFP4"}})";
    refused(Mixtral::open(directory.path()), StatusCode::unimplemented,
            {"modelopt NVFP4", "hf_quant_config.json"});
  }
  SECTION("not named at all") {
    Mixtral model;
    for (const char* projection : {"w1", "w2", "w3"})
      model.tensors[Mixtral::name(0, projection)].dtype = DType::f8_e4m3;
    refused(model.open(), StatusCode::unimplemented, {Mixtral::name(0, "w1"), "F8_E4M3"});
  }
  SECTION("only by the tensors' names") {
    Mixtral model;
    const std::string name = Mixtral::name(1, "w1");
    model.tensors.erase(name);
    const std::string packed = name.substr(0, name.size() - 6) + "qweight";
    model.tensors[packed] = {DType::i32, {3, 4}};
    refused(model.open(), StatusCode::unimplemented, {packed, "awq or gptq"});
  }
}

TEST_CASE("describe() and read() refuse what a layer does not have", "[checkpoint]") {
  TemporaryDirectory directory;
  Mixtral().write(directory.path());
  auto checkpoint = Checkpoint::open(directory.path());
  REQUIRE(checkpoint.ok());
  std::vector<char> memory(1000);
  const MutableTensorView gate(memory.data(), DType::bf16, {kIntermediate, kHidden});
  const auto read = [&](const WeightId& id, const MutableTensorView& out) {
    return checkpoint->read(id, out).code();
  };
  CHECK(read({0, WeightKind::gate, 0}, gate) == StatusCode::ok);
  CHECK(read({1, WeightKind::gate, 0}, gate) == StatusCode::not_found);
  CHECK(read({0, WeightKind::gate, 4}, gate) == StatusCode::not_found);
  CHECK(read({0, WeightKind::gate, -2}, gate) == StatusCode::not_found);
  CHECK(read({0, WeightKind::gate, kSharedExpert}, gate) == StatusCode::not_found);
  CHECK(read({0, WeightKind::gate_scale, 0}, gate) == StatusCode::not_found);
  CHECK(read({0, WeightKind::router_bias}, gate) == StatusCode::not_found);
  CHECK(read({0, WeightKind::down, 0}, gate) == StatusCode::invalid_argument);
  CHECK(read({0, WeightKind::gate, 0}, {memory.data(), DType::f16, gate.shape}) ==
        StatusCode::invalid_argument);
  CHECK(read({0, WeightKind::gate, 0}, {nullptr, DType::bf16, gate.shape}) ==
        StatusCode::invalid_argument);
  CHECK(read({0, WeightKind::gate, 0}, {memory.data(), DType::bf16, gate.shape, Device::cuda(0)}) ==
        StatusCode::invalid_argument);
}
