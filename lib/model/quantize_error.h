// How far the result of a quantised expert is from the source's, through the kernels of forward().
#pragma once

#include <memory>
#include <vector>

#include "moe/expert_gemm.h"
#include "moe/weights.h"

namespace moe {

// One kind of expert, as it was and as it becomes. For one thread.
class OutputError {
 public:
  // unimplemented, with the reason, if no CPU backend runs both.
  static Result<OutputError> make(const ExpertSpec& from, const ExpertSpec& to);

  // Of one expert that both sources have. Relative Frobenius norm over kRows random rows, always
  // the same ones.
  Result<double> of(const WeightSource& from, const WeightSource& to, int32_t layer,
                    int32_t expert) const;

 private:
  static constexpr int64_t kRows = 16;
  OutputError() = default;

  ExpertSpec from_, to_;
  std::unique_ptr<ExpertGemm> exact_, quantised_;
  std::vector<float> rows_;
};

}  // namespace moe
