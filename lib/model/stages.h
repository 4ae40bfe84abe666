// The stages that layer.cc strings together. Each adds its time to the forward's report.
#pragma once

#include <cstdint>
#include <span>

#include "model/layer.h"

namespace moe {

// Rows [first, first + count) of a batch.
struct Chunk {
  int64_t first = 0;
  int64_t count = 0;
};

// Fills work.ids and work.weights for the whole batch: the host's routing, its router, or ours.
Status route(LayerForward& f);

// The expert that sees every row of a chunk: fills work.shared_rows and work.shared_gate. Whoever
// runs chosen experts takes its batch along in their pass; else it runs by itself.
class SharedExpert {
 public:
  SharedExpert() = default;  // none
  SharedExpert(LayerForward& f, Chunk chunk);
  SharedExpert(const SharedExpert&) = delete;
  SharedExpert& operator=(const SharedExpert&) = delete;

  const ExpertBatch* take();    // null: none, or taken already
  Status run(LayerForward& f);  // unless it was taken

 private:
  ExpertGroup groups_[2];  // of the rows of each set of versions
  ExpertBatch batch_;
  bool pending_ = false;
};

// Fill work.rows with what the chunk's chosen experts make of its rows.
Status run_resident(LayerForward& f, const ExpertTable& table, Chunk chunk, SharedExpert& shared);
// In waves; nothing is held between two of them.
Status run_paged(LayerForward& f, Chunk chunk, SharedExpert& shared);

// While the last wave of a paged layer is computed: whom the next layer will need is loaded early.
void look_ahead(LayerForward& f);

// Once per forward of a paged layer, before run_paged(): what the batch is going to use.
void tell_eviction_policy(LayerForward& f);

// Adds the time since construction to a counter.
class StageTimer {
 public:
  StageTimer(const Clock& clock, int64_t& total)
      : clock_(clock), total_(total), start_(clock.now_ns()) {}
  ~StageTimer() { total_ += clock_.now_ns() - start_; }

 private:
  const Clock& clock_;
  int64_t& total_;
  int64_t start_;
};

}  // namespace moe
