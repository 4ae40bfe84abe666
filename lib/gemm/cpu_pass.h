// A batch's work on the CPU as a row of steps, each of many independent tasks, so that several
// batches can be computed in one pass: the chosen experts and the shared one wait once per step for
// the slowest thread, not once per step and batch.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <utility>

#include "moe/expert_gemm.h"

namespace moe::cpu {

class Pass {
 public:
  virtual ~Pass();

  virtual int steps() const = 0;

  // Tasks of a step run in any order and at once, after all of the step before.
  virtual int64_t tasks(int step) const = 0;
  virtual void run(int step, int64_t task, int worker) = 0;

  // Whether the step is worth waking threads.
  virtual bool large(int step) const = 0;
};

// Room for one pass on the stack of whoever computes it.
class PassSpace {
 public:
  PassSpace() = default;
  PassSpace(const PassSpace&) = delete;
  PassSpace& operator=(const PassSpace&) = delete;
  ~PassSpace() {
    if (pass_) pass_->~Pass();
  }

  // Once.
  template <class P, class... Arguments>
  void emplace(Arguments&&... arguments) {
    static_assert(sizeof(P) <= kBytes && alignof(P) <= 64);
    assert(!pass_);
    pass_ = new (memory_) P(std::forward<Arguments>(arguments)...);
  }
  Pass* get() const { return pass_; }  // null: nothing to compute

 private:
  static constexpr size_t kBytes = 768;
  alignas(64) std::byte memory_[kBytes];
  Pass* pass_ = nullptr;
};

// All steps of all passes; null entries are left out. Null executor: the calling thread.
void compute(Executor* executor, std::span<Pass* const> passes);

// A backend whose batches can be computed beside those of another one.
class PassGemm : public ExpertGemm {
 public:
  // Checks a batch and makes its pass. `spec` and `batch` must outlive it.
  virtual Status plan(const ExpertSpec& spec, const ExpertBatch& batch, PassSpace* pass) const = 0;

  Status run(const ExpertSpec& spec, const ExpertBatch& batch) const final;
};

}  // namespace moe::cpu

namespace moe {

// One batch and who computes it.
struct GemmCall {
  const ExpertGemm& gemm;
  const ExpertSpec& spec;
  const ExpertBatch& batch;
};

// Computes both batches, with the threads of the first: in one pass if both backends can, or else
// one after the other. Workspaces and outputs must be apart. The bits are those of run().
Status run_together(const GemmCall& first, const GemmCall& second);

}  // namespace moe
