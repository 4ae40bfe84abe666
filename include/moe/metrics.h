// What the library counted: a snapshot of plain numbers, and the same as Prometheus text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe/export.h"
#include "moe/model.h"

namespace moe {

// What one layer did.
struct LayerMetrics {
  int32_t layer = -1;                // the checkpoint's own index
  int64_t forwards = 0;              // batches computed
  int64_t rows = 0;                  // of those batches
  int64_t assignments = 0;           // (row, expert) pairs computed
  int64_t nonfinite_rows = 0;        // with a non-finite router logit
  int64_t dropped = 0;               // choices lost to capacity
  double seconds = 0;                // in forward(), all threads added
  std::vector<int64_t> expert_rows;  // per candidate
};

// What one model did.
struct Metrics {
  int64_t forwards = 0;              // of all layers
  int64_t errors = 0;                // forwards that returned an error
  std::vector<LayerMetrics> layers;  // ascending in layer
};

// Counters since the model was made. Takes no lock that a forward holds. On a GPU forwards count
// when they run, replays of captured graphs too; the call copies the counters back, and `seconds`
// is the time of enqueueing.
MOE_API Metrics metrics(const Model& model);

// Prometheus text exposition format 0.0.4. `model_label` becomes the label `model`.
MOE_API std::string to_prometheus(const Metrics& metrics, std::string_view model_label);

}  // namespace moe
