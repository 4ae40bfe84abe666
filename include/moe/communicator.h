// How rows reach the ranks that own their experts, and come back. dispatch() and combine() are one
// pair; every wait has a deadline. One rank needs none of it.
#pragma once

#include <cstdint>
#include <memory>

#include "moe/export.h"
#include "moe/router.h"
#include "moe/status.h"
#include "moe/stream.h"
#include "moe/tensor.h"

namespace moe {

// What one rank sends: its rows and where each chosen expert lives.
struct DispatchInput {
  uint64_t epoch = 0;  // of the sender's table; receivers refuse what they no longer hold
  TensorView hidden;   // (tokens, hidden)
  Routing routing;     // of those rows
  const int32_t* rank_of_pair = nullptr;  // (tokens, top_k): decided by the sender's table
  const int32_t* slot_of_pair = nullptr;  // (tokens, top_k): the slot on that rank
  int64_t deadline_ns = 0;                // from now; 0: 2 s
  Stream stream;                          // on which the rows are ready
};

// What one rank received. Owned by the communicator, valid until the matching combine() returns.
struct DispatchOutput {
  int64_t rows = 0;                // received
  TensorView hidden;               // (rows, hidden)
  const int32_t* slots = nullptr;  // (rows): the slot that computes each row
  const float* weights = nullptr;  // (rows)
};

// One rank of a group. One dispatch is in flight at a time.
class MOE_API Communicator {
 public:
  virtual ~Communicator();

  virtual int32_t rank() const noexcept = 0;   // this one, in [0, ranks())
  virtual int32_t ranks() const noexcept = 0;  // of the group; constant

  // Sends rows to the owners of their experts, receives the rows whose experts live here.
  // deadline_exceeded or unavailable name the peer; the communicator is usable afterwards.
  virtual Result<DispatchOutput> dispatch(const DispatchInput& input) = 0;

  // Sends `computed` (rows of the last dispatch, in its order) back. `out` receives this rank's own
  // pairs, (tokens * top_k, hidden) f32, unweighted, indexed by pair.
  virtual Status combine(const TensorView& computed, float* out, int64_t deadline_ns) = 0;

  // Ends waits of all ranks as soon as possible; they return `aborted`.
  virtual void abort() noexcept = 0;
};

}  // namespace moe
