#include "spec.h"

#include <vector>

#include "commands.h"
#include "names.h"

namespace moe::cli {
namespace {

std::vector<std::string> known_models() {
  std::vector<std::string> names;
  for (const std::string_view name : synthetic_models()) names.emplace_back(name);
  return names;
}

std::string known_models_help() {
  std::string text = "Published model whose shape is taken:";
  for (const std::string& name : known_models()) text += " " + name;
  return text;
}

template <class T>
void assign(T& field, const std::optional<T>& value) {
  if (value) field = *value;
}

}  // namespace

void add_spec_options(CLI::App& command, SpecOptions& options) {
  command.add_option("--like", options.like, known_models_help());
  command.add_option("--layers", options.layers, "MoE layers")->check(CLI::PositiveNumber);
  command.add_option("--experts", options.experts, "Experts per layer")->check(CLI::PositiveNumber);
  command.add_option("--top-k", options.top_k, "Experts per row")->check(CLI::PositiveNumber);
  command.add_option("--hidden", options.hidden, "Values per row")->check(CLI::PositiveNumber);
  command.add_option("--intermediate", options.intermediate, "Inner width of one expert")
      ->check(CLI::PositiveNumber);
  command.add_option("--seed", options.seed, "Other seed, other weights");
  command.add_option("--dtype", options.dtype,
                     "Type of the weights: bf16, f16, f32, or f8_e4m3 in 128 x 128 blocks");
}

SyntheticSpec make_spec(const SpecOptions& options) {
  SyntheticSpec spec;
  if (!options.like.empty()) {
    const Result<SyntheticSpec> like = synthetic_like(options.like);
    if (!like.ok())
      wrong_usage("--like: " + std::string(like.status().message()) +
                  did_you_mean(options.like, known_models()));
    spec = *like;
  }
  assign(spec.layers, options.layers);
  assign(spec.experts, options.experts);
  assign(spec.top_k, options.top_k);
  assign(spec.hidden, options.hidden);
  assign(spec.intermediate, options.intermediate);
  assign(spec.seed, options.seed);
  if (!options.dtype.empty()) spec.dtype = parse_dtype(options.dtype);
  return spec;
}

}  // namespace moe::cli
