// Data and checks that the placement tests share.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "catch.h"
#include "core/json.h"
#include "moe/placement.h"
#include "placement/random.h"

namespace moe::test {

inline Json shared_json(const std::string& path) {
  Result<Json> json = Json::read(shared_dir() + "/" + path);
  INFO(path << ": " << json.status().message());
  REQUIRE(json.ok());
  return *std::move(json);
}

inline UsageTrace shared_usage(const std::string& path, const UsageFileOptions& options = {}) {
  Result<UsageTrace> usage = read_usage(shared_dir() + "/traces/" + path, options);
  INFO(path << ": " << usage.status().message());
  REQUIRE(usage.ok());
  return *std::move(usage);
}

// The value of a Result that must be there.
template <class T>
T must(Result<T> result) {
  INFO(result.status().message());
  REQUIRE(result.ok());
  return *std::move(result);
}

template <class T>
std::vector<T> numbers(const Json& array) {
  std::vector<T> out;
  for (const Json& item : array.items()) out.push_back(static_cast<T>(*item.number()));
  return out;
}

inline UsageTrace one_layer(std::vector<double> tokens, ExpertSets sets = {}) {
  UsageTrace usage;
  usage.layers.push_back({0, std::move(tokens), {}, std::move(sets)});
  return usage;
}

// Skewed: a few experts take most of it.
inline std::vector<double> random_tokens(placement::Random& random, int32_t experts) {
  std::vector<double> tokens;
  for (int32_t e = 0; e < experts; ++e) {
    const double u = random.uniform();
    tokens.push_back(static_cast<double>(random.below(1000)) * (u > 0.8 ? 10 : 1));
  }
  return tokens;
}

inline Prediction predicted(const PlacementProblem& problem, const Placement& placement) {
  return must(evaluate(problem, placement));
}

// vLLM's, copies sharing evenly, from the definition.
inline double balancedness(const PlacementProblem& problem, const Placement& placement) {
  double means = 0, maxima = 0;
  const std::vector<int32_t> rank = problem.cluster.rank_of_slot();
  for (size_t l = 0; l < placement.layers.size(); ++l) {
    const auto& slots = placement.layers[l].expert_of_slot;
    std::vector<double> load(problem.cluster.ranks(), 0.0), copies(256 * 256, 0.0);
    double sum = 0;
    for (int32_t e : slots)
      if (e >= 0) ++copies[e];
    for (size_t s = 0; s < slots.size(); ++s)
      if (slots[s] >= 0)
        load[rank[s]] += problem.usage.layers[l].tokens[slots[s]] / copies[slots[s]];
    for (double tokens : problem.usage.layers[l].tokens) sum += tokens;
    means += sum / problem.cluster.ranks();
    maxima += *std::max_element(load.begin(), load.end());
  }
  return means / maxima;
}

inline const std::vector<std::string>& deepseek_files() {
  static const std::vector<std::string> kFiles = {
      "decode_in1000out1000",  "decode_in2000out100",  "decode_in500out1500",
      "prefill_in1000out1000", "prefill_in1024",       "prefill_in2000out100",
      "prefill_in4096",        "prefill_in500out1500", "prefill_in512"};
  return kFiles;
}
inline UsageTrace deepseek(const std::string& name) {
  UsageTrace usage = shared_usage("deepseek_r1_sglang/" + name + ".json");
  REQUIRE(usage.layers.size() == 58);
  return usage;
}

}  // namespace moe::test
