// Which tensors a checkpoint has once its experts are quantised.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_set>
#include <vector>

#include "checkpoint/write_checkpoint.h"
#include "model/quantised_expert.h"
#include "moe/quantize.h"

namespace moe {

// The format that experts get: scales have the weights' type (bf16 for fp8).
Format quantised_format(const ExpertSpec& from, const QuantizeOptions& options);

// The same expert in that format.
inline ExpertSpec quantised_spec(ExpertSpec from, const QuantizeOptions& options) {
  from.format = quantised_format(from, options);
  return from;
}

class QuantizePlan {
 public:
  // `source` must outlive it.
  QuantizePlan(const Checkpoint& source, const QuantizeOptions& options)
      : source_(source), from_(*source.impl()), options_(options) {}

  // What is made and copied. unimplemented with the reason where it cannot be.
  Status add_all(NewCheckpoint* made);

  // What a made tensor's key stands for.
  struct Key {
    size_t expert, matrix;  // of experts(), of its matrices
    NewPart part;
  };
  const Key& key(int64_t of) const { return keys_[static_cast<size_t>(of)]; }
  const std::vector<NewExpert>& experts() const { return experts_; }

 private:
  Status check(const ExpertSpec& spec, int32_t layer) const;
  Status name_module(const LayerTensors& layer, const Part& part, int32_t expert,
                     std::string* module) const;
  Status add_expert(const LayerTensors& layer, Owner owner, int32_t index, NewCheckpoint* made);
  void add_tensors(const NewMatrix& matrix, size_t place, TensorRun* run);
  void replace(const LayerTensors& layer, const Part& part, int32_t expert,
               const std::string& module);
  Status add_rest(NewCheckpoint* made) const;

  const Checkpoint& source_;
  const Checkpoint::Impl& from_;
  const QuantizeOptions options_;
  std::vector<NewExpert> experts_;
  std::vector<Key> keys_;
  std::unordered_set<std::string> replaced_;
};

}  // namespace moe
