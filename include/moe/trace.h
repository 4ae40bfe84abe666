// Which experts a router chose, row by row: recorded from a running model, read back to be
// replayed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "moe/eviction.h"
#include "moe/export.h"
#include "moe/router.h"
#include "moe/status.h"

namespace moe {

// One row (token) at one layer. Neighbouring rows with equal seq, step and layer are one forward.
struct TraceRow {
  int64_t seq = 0;        // a new value ends the sequence before
  int64_t step = 0;       // counts the forwards of a layer
  int64_t token_pos = 0;  // in the sequence
  int32_t layer = -1;     // the checkpoint's own index
};

// Plain data, in the order in which it happened.
struct RoutingTrace {
  int32_t top_k = 0;                 // experts of a row
  std::vector<LayerExperts> layers;  // ascending in layer
  std::vector<TraceRow> rows;        // in the order of execution
  std::vector<int32_t> experts;      // (rows, top_k), highest weight first; -1: none
  std::vector<float> weights;        // (rows, top_k), or empty
};

// ok, or invalid_argument naming the row and what is wrong with it.
MOE_API Status validate(const RoutingTrace& trace);

// Reads a CSV file, or such a file compressed by gzip. Its first line names the columns: `layer`
// and e0, e1, ... are needed; seq, step, token_pos, w0, w1, ... (weights) and experts (how many the
// layer has; else the highest index seen, plus 1) are known; others are skipped. An empty e means
// none. Errors name the line.
MOE_API Result<RoutingTrace> read_trace(std::string_view path);

// The same from memory. `name` is for messages.
MOE_API Result<RoutingTrace> parse_trace(std::string_view text, std::string_view name = {});

// Writes `trace` as CSV: seq,step,token_pos,layer,experts,e0,...,w0,... The file appears complete
// or not at all. read_trace() reads back an equal one.
MOE_API Status write_trace(const RoutingTrace& trace, std::string_view path);

// Records while a model runs; the format is write_trace()'s. Not safe for concurrent use.
class MOE_API TraceWriter {
 public:
  // Starts a file beside `path`, which appears when finish() succeeds. `layers` are those that will
  // be recorded; `weights` says whether weights are.
  static Result<TraceWriter> create(std::string_view path, std::span<const LayerExperts> layers,
                                    int32_t top_k, bool weights = true);

  TraceWriter(TraceWriter&&) noexcept;
  TraceWriter& operator=(TraceWriter&&) noexcept;
  ~TraceWriter();  // without finish(): nothing is left

  // Adds one forward. `row.token_pos` is that of the first row of `routing`, whose top_k may be
  // smaller than the file's.
  Status append(const TraceRow& row, const Routing& routing);

  // Ends the file. invalid after it: append().
  Status finish();

 private:
  struct Impl;
  explicit TraceWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
