// One batch through one layer.
#pragma once

#include "core/buffer.h"
#include "model/workspace.h"
#include "moe/model.h"
#include "store/forward_experts.h"

namespace moe {

// Rows are served by one or two sets of versions: [0] the table's, [1] its candidate's.
struct RowVersions {
  const LayerVersions* of[2] = {};
  bool split = false;  // some rows are the candidate's: those with work.side[row] != 0
};

// Scratch of a guess at the next layer's experts.
struct LookAhead {
  std::vector<int32_t> ids;    // (rows, top_k)
  std::vector<float> weights;  // ditto
  Buffer scratch;              // of the router
  ForwardExperts experts;
};

// A forward whose arguments have been checked and whose workspace is large enough.
struct LayerForward {
  ExpertStore::Impl& store;
  StoreLayer& layer;
  EpochReader& reader;
  Wave& wave;               // the context's, empty between forwards
  ForwardExperts& experts;  // the context's; paged layers only
  LookAhead& look_ahead;    // ditto
  const Services& services;
  const Router* own_router = nullptr;  // the host's; null: the built-in rule
  Execution execution = Execution::grouped;

  TensorView hidden;      // (rows, hidden): the valid ones
  MutableTensorView out;  // (rows, hidden)
  const ForwardOptions& options;
  int32_t top_k = 0;
  int64_t deadline_at_ns = 0;

  Workspace work;
  RowVersions versions;
  ForwardReport report;
};

// The path of a batch: route, group, experts, shared experts, weighted sum.
Status forward_layer(LayerForward& f);

}  // namespace moe
