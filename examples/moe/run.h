// What the two ways of `moe run` share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "batch.h"
#include "core/new_file.h"
#include "json.h"
#include "moe/checkpoint.h"
#include "moe/model.h"
#include "moe/trace.h"

namespace moe::cli {

struct RunOptions {
  std::string checkpoint, input, output, device = "cpu";
  std::string gemm, row_precision = "automatic";
  int threads = 0;
  size_t expert_memory = 0;
  std::string policy;        // empty: the default
  std::string record_trace;  // empty: nothing is recorded
  std::string record_usage;  // ditto
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

  // Largest relative Frobenius norm of that model's error on rows in f32.
  double tolerance(const LayerSpec& spec) const;

 private:
  double tolerance(const ExpertSpec& spec) const;

  const Checkpoint& checkpoint_;
  Device device_;
  std::string gemm_;
  ExpertGemmOptions gemm_options_;
  size_t expert_memory_;
  std::string policy_;
  std::unique_ptr<Executor> executor_;
};

// What paging did, as the member "paging" of the innermost object; nothing where all is resident.
void add_paging(Json& json, const ExpertStoreStats& stats, const RunOptions& options);

// Writes the routing of every batch to --record-trace, and what was chosen how often to
// --record-usage; does nothing without them.
class Recorder {
 public:
  static Result<Recorder> create(const RunOptions& options, const std::vector<LayerSpec>& layers);
  // The forward number `step` of its layer. Zero experts count as none.
  Status add(const LayerSpec& layer, int64_t step, const Batch& batch);
  Status finish();

 private:
  std::optional<TraceWriter> trace_;
  std::optional<UsageWindow> usage_;
  std::optional<NewFile> usage_file_;
};

// Every tensor `layers.{i}.{name}` of the input through layer i; results into the output.
Status run_file(const Checkpoint& checkpoint, const RunOptions& options);

// Rows of its own through the layers, and a report: routing, time per stage, check against the
// reference. `internal` if the check fails.
Status run_report(const Checkpoint& checkpoint, const RunOptions& options);

}  // namespace moe::cli
