// The shape of a synthetic model on the command line: --like NAME, and what differs from it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "moe/checkpoint.h"

namespace moe::cli {

struct SpecOptions {
  std::string like;
  std::optional<int32_t> layers, experts, top_k;
  std::optional<int64_t> hidden, intermediate;
  std::optional<uint64_t> seed;
  std::string dtype;
};

void add_spec_options(CLI::App& command, SpecOptions& options);

// Unknown names are wrong usage.
SyntheticSpec make_spec(const SpecOptions& options);

}  // namespace moe::cli
