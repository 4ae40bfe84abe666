// What the two ways of `moe run` share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/checkpoint.h"
#include "moe/model.h"

namespace moe::cli {

struct RunOptions {
  std::string checkpoint, input, output, device = "cpu";
  std::string gemm;
  int threads = 0;
  size_t expert_memory = 0;
  int64_t rows = 64;
  uint64_t seed = 0;
  std::vector<int32_t> layers;
  bool json = false;
};

// Runs layers of `checkpoint` one at a time, so that only one is in memory.
class LayerRunner {
 public:
  LayerRunner(const Checkpoint& checkpoint, const RunOptions& options);

  // not_found, listing the MoE layers, unless `layer` is one.
  Result<LayerSpec> spec(int32_t layer) const;

  // A model of that layer alone.
  Result<Model> load(int32_t layer) const;

 private:
  const Checkpoint& checkpoint_;
  Device device_;
  std::string gemm_;
  size_t expert_memory_;
  std::unique_ptr<Executor> executor_;
};

// Every tensor `layers.{i}.{name}` of the input through layer i; results into the output.
Status run_file(const Checkpoint& checkpoint, const RunOptions& options);

// Rows of its own through the layers, and a report: routing, time per stage, check against the
// reference. `internal` if the check fails.
Status run_report(const Checkpoint& checkpoint, const RunOptions& options);

}  // namespace moe::cli
