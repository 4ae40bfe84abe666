// PredictedExpert by activation matrices (MoE-Infinity, arXiv 2401.14361): how often each expert of
// each layer was used is counted per sequence; the remembered sequence that resembles the current
// one most says which experts the layers ahead will need.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/eviction.h"
#include "moe/status.h"
#include "store/expert_index.h"

namespace moe {

struct ActivationPredictorOptions {
  std::vector<LayerExperts> layers;  // in the order of a forward; ascending
  int32_t sequences = 64;            // remembered; the one that matched least makes room
};

// An expert that a layer ahead will probably need; more urgent if `priority` is higher.
struct PredictedExpert {
  ExpertId id;
  double priority = 0;  // (share of its layer's uses) * (1 - (layers ahead) / (L + 1))
};

// Not thread-safe. Allocates nothing after create().
class ActivationPredictor {
 public:
  static Result<ActivationPredictor> create(const ActivationPredictorOptions& options);

  // A forward of `layer` needs `experts` (distinct).
  void accessed(int32_t layer, std::span<const int32_t> experts) noexcept;

  // Remembers the sequence and begins another one.
  void sequence_ended() noexcept;

  // The most urgent experts of the `horizon` layers after the last one accessed (after the last
  // layer comes the next token's first), best first, equal ones in their order. Fills the front of
  // `out` and returns how many; 0 until a sequence has ended.
  size_t predict(int32_t horizon, std::span<PredictedExpert> out) noexcept;

  // Of the current sequence to remembered sequence `m`: the mean over the layers of the cosine of
  // their rows; a layer that either has not used counts as 0.
  double similarity(int32_t m) const noexcept;
  int32_t remembered() const noexcept { return remembered_; }

 private:
  explicit ActivationPredictor(const ActivationPredictorOptions& options);

  int32_t most_similar() const noexcept;
  void remember(int32_t m) noexcept;

  size_t at(int32_t m, int32_t index) const {
    return static_cast<size_t>(m) * static_cast<size_t>(index_.experts()) +
           static_cast<size_t>(index);
  }
  size_t row(int32_t m, int32_t position) const {
    return static_cast<size_t>(m) * static_cast<size_t>(index_.layers()) +
           static_cast<size_t>(position);
  }

  ExpertIndex index_;
  int32_t sequences_;
  int32_t remembered_ = 0;
  int32_t current_ = 0;  // position of the last layer

  std::vector<uint32_t> uses_;            // (experts): of the current sequence
  std::vector<uint64_t> norms_;           // (layers): squared, of its rows
  std::vector<uint32_t> past_;            // (sequences, experts)
  std::vector<uint64_t> past_norms_;      // (sequences, layers)
  std::vector<uint64_t> past_sums_;       // (sequences, layers)
  std::vector<uint64_t> products_;        // (sequences, layers): current row times past row
  std::vector<uint64_t> matches_;         // (sequences): how often it was the most similar
  std::vector<PredictedExpert> scratch_;  // (experts)
};

}  // namespace moe
