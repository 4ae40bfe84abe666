// Loads experts before a forward asks for them, as long as that pays.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "moe/expert_store.h"
#include "store/governor.h"
#include "store/predict_activation.h"
#include "store/prefetch_ledger.h"

namespace moe {

// What is known of prefetching in one store. With the store's mutex.
struct Prefetcher {
  static Result<std::unique_ptr<Prefetcher>> create(std::vector<LayerExperts> layers,
                                                    PrefetchKind kind);

  // A forward of `layer` needs `experts`: the governor's step.
  void used(int32_t layer, std::span<const int32_t> experts);

  PrefetchKind kind;
  PrefetchLedger ledger;
  PrefetchGovernor governor;
  std::optional<ActivationPredictor> predictor;  // for PrefetchKind::activation
  std::vector<PredictedExpert> predictions;      // scratch
  PrefetchSample sample;                         // of the step that is under way
  int64_t load_ns = 0;                           // of one expert, as lately seen
  PrefetchStats stats;

  bool pending = false;          // a job waits or works
  size_t layer = 0;              // what it fetches: of this store layer
  std::vector<int32_t> experts;  // these, the most urgent last

 private:
  Prefetcher(std::span<const LayerExperts> layers, PrefetchKind kind);
};

}  // namespace moe
