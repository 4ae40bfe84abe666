// What routers chose: tokens per expert, and which experts were chosen together. Recorded by a
// running model (ForwardOptions::usage), or read from the files that other engines write.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/eviction.h"
#include "moe/export.h"
#include "moe/status.h"

namespace moe {

// A weighted collection of sets of experts. Plain data; an index is a set.
struct MOE_API ExpertSets {
  std::vector<int64_t> first = {0};  // (sets + 1): where each set begins in `experts`
  std::vector<int32_t> experts;      // ascending within a set
  std::vector<double> counts;        // (sets)

  int64_t size() const { return static_cast<int64_t>(counts.size()); }  // sets
  std::span<const int32_t> operator[](int64_t set) const {
    return {experts.data() + first[set], static_cast<size_t>(first[set + 1] - first[set])};
  }
  // `set` is distinct and ascending.
  void add(std::span<const int32_t> set, double count);
  double total() const;  // sum of counts
};

// One layer's usage. Any part may be absent (empty), but for `tokens`.
struct LayerUsage {
  int32_t layer = -1;          // the index in its file or model
  std::vector<double> tokens;  // (experts): tokens that chose each expert
  std::vector<float> steps;    // (steps, experts): the same, step by step
  ExpertSets sets;             // the top-k subsets and how many tokens chose each

  // Experts of the layer.
  int32_t experts() const { return static_cast<int32_t>(tokens.size()); }
};

// The usage of a model, layer by layer.
struct UsageTrace {
  int32_t top_k = 0;               // experts per token; 0: not known
  std::vector<LayerUsage> layers;  // ascending in layer
};

// ok, or invalid_argument naming the layer and what is wrong with it: a negative or non-finite
// count, an expert out of range, a set that does not ascend.
MOE_API Status validate(const UsageTrace& usage);

// The most frequent sets that together hold at least `coverage` (in (0, 1]) of all counts; most
// frequent first, equal counts in their old order.
MOE_API ExpertSets prune(const ExpertSets& sets, double coverage);

// What a usage file may not say itself.
struct UsageFileOptions {
  int32_t experts = 0;    // per layer, for files that do not say; 0: the highest index seen, plus 1
  double coverage = 1.0;  // of the sets that are kept
};

// Reads what other engines record. The content says which it is:
//   {"logical_count": [[...]]}             SGLang; (layers, experts) or (steps, layers, experts)
//   CSV with columns layer,e0,e1,...       one token a row; also what TraceWriter writes
//   CSV with layer,expert,count            tokens per expert
//   CSV with layer,expert_a,expert_b,count pairs
//   JSON lines with "layer" and "experts"  vLLM; one token a line
//   {"format": "moe-usage-1", ...}         what write_usage() writes
// Layers without any token (dense ones) are left out. `name` is for messages.
MOE_API Result<UsageTrace> parse_usage(std::string_view text, std::string_view name = {},
                                       const UsageFileOptions& options = {});
// The same from a file, also if it is packed by gzip.
MOE_API Result<UsageTrace> read_usage(std::string_view path, const UsageFileOptions& options = {});

// The library's own format, JSON. What parse_usage() reads back is equal.
MOE_API std::string write_usage(const UsageTrace& usage);
// The same as a file, which appears complete or not at all.
MOE_API Status write_usage(const UsageTrace& usage, std::string_view path);

// How much a window keeps. A layer takes 4 bytes x steps x its experts, and at most
// (4 x top_k + 16) bytes x max_sets.
struct UsageWindowOptions {
  int32_t steps = 1000;      // that the window holds of each layer
  bool keep_steps = false;   // snapshot() carries LayerUsage::steps
  int64_t max_sets = 16384;  // distinct sets per layer; 0: do not record sets
  double coverage = 1;       // of the sets that snapshot() carries, as in prune()
};

// The usage of each layer's last steps, as EPLB's sliding window. Safe for concurrent use: threads
// wait for each other only while they record, or copy, one layer. Recording allocates nothing.
class MOE_API UsageWindow {
 public:
  // An empty window for `layers`, whose tokens choose at most top_k experts. invalid_argument names
  // the value that is out of range.
  static Result<UsageWindow> create(std::span<const LayerExperts> layers, int32_t top_k,
                                    const UsageWindowOptions& options = {});
  UsageWindow(UsageWindow&&) noexcept;
  UsageWindow& operator=(UsageWindow&&) noexcept;
  ~UsageWindow();

  // One step of `layer`: ids (tokens, top_k) as the router gave them. -1 and what is past the
  // layer's experts (zero experts) count as none. No ids are no step. top_k of 0: the window's.
  // On failure nothing is counted.
  Status record(int32_t layer, std::span<const int32_t> ids, int32_t top_k = 0);
  // The same, counted already: (experts). Says nothing about sets.
  Status record_counts(int32_t layer, std::span<const int64_t> tokens);

  // Steps of `layer` in the window: at most options.steps; 0 for a layer that it does not have.
  int64_t steps(int32_t layer) const;

  // What is in the window. Counts and steps are those of its steps. Sets fade: after every
  // options.steps steps, and when max_sets is reached, their counts are halved and those that were
  // seen but once are forgotten. write_usage() makes it a file for `moe plan`.
  UsageTrace snapshot() const;

 private:
  struct Impl;
  explicit UsageWindow(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
