// A published model's own answers: golden.safetensors beside its tiny checkpoint.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "catch.h"
#include "moe/checkpoint.h"

namespace moe::test {

struct Golden {
  std::map<std::string, Checkpoint::Tensor> tensors;
  TensorFile file;

  static Golden open(const std::filesystem::path& path) {
    auto file = TensorFile::open(path.string());
    INFO(file.status().message());
    REQUIRE(file.ok());
    std::map<std::string, Checkpoint::Tensor> tensors;
    for (const auto& tensor : file->tensors()) tensors.emplace(tensor.name, tensor);
    return {std::move(tensors), std::move(*file)};
  }
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const auto& tensor = tensors.at(name);
    std::vector<T> values(tensor.bytes / sizeof(T));
    REQUIRE(file.read(tensor, values.data()).ok());
    return values;
  }
  bool has(const std::string& name) const { return tensors.count(name) > 0; }
};

// Names of one block's tensors: rows in and out; prefix of the routing, which may be absent.
struct GoldenBlock {
  int32_t layer;
  std::string x, y, routing;
};

inline std::vector<GoldenBlock> blocks_of(const Golden& golden,
                                          const std::vector<LayerSpec>& layers) {
  std::vector<GoldenBlock> blocks;
  for (const LayerSpec& spec : layers) {
    const std::string prefix = "layers." + std::to_string(spec.layer) + ".";
    if (golden.has(prefix + "input"))
      blocks.push_back({spec.layer, prefix + "input", prefix + "output", prefix});
    for (const auto& [name, tensor] : golden.tensors) {
      if (name.rfind(prefix + "x", 0) != 0 || name.find('.', prefix.size()) != std::string::npos)
        continue;
      std::string answer = name;
      answer[prefix.size()] = 'y';
      blocks.push_back({spec.layer, name, answer, name + "."});
    }
  }
  return blocks;
}

}  // namespace moe::test
