// Random experts, rows and routings, and one call that runs a backend on them and compares every
// row with the reference. Shared by the tests of all expert-GEMM backends.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "moe/expert_gemm.h"
#include "quant/formats.h"

namespace moe::test {

// One layer of random weights in spec.format, scaled like a trained model's. Quantised matrices
// have random integers, scales, zero points and, in act-order, groups that are the same for gate
// and up. The tensors of an expert are made when they are read.
class RandomWeights final : public WeightSource {
 public:
  RandomWeights(const ExpertSpec& spec, int32_t experts, uint64_t seed);

  const std::vector<LayerSpec>& layers() const noexcept override { return layers_; }
  Result<TensorShape> describe(const WeightId& id) const override;
  Status read(const WeightId& id, const MutableTensorView& out) const override;
  std::string_view name() const noexcept override { return "random weights"; }

 private:
  QuantBuffer quantised(const WeightId& matrix) const;

  std::vector<LayerSpec> layers_;
  uint64_t seed_;
};

// Every format that some backend serves, small and large groups, with and without zero points and
// act-order.
std::span<const Format> all_formats();

struct Problem {
  ExpertSpec spec;
  int32_t experts = 4;
  int32_t top_k = 2;
  int64_t tokens = 5;
  DType rows = DType::f32;
  int64_t row_padding = 0;  // elements between rows
  bool input_weights = false;
  bool one_expert = false;  // every row's first choice is the same
  uint64_t seed = 0;
};

std::string describe(const Problem& problem);

// Owns everything an ExpertBatch points to.
struct Prepared {
  Problem problem;
  std::unique_ptr<RandomWeights> weights;
  std::vector<std::byte> hidden;
  std::vector<float> input_weights;
  std::vector<int32_t> ids;  // (tokens, top_k); -1: none
  std::vector<int64_t> pairs;
  std::vector<ExpertGroup> groups;  // slots are null until slots are packed

  TensorView hidden_view() const;
};

Prepared prepare(const Problem& problem);

// The batch of `from` cut down to one token.
Prepared alone(const Prepared& from, int64_t token);

// Slots of all experts in the layout of `gemm`; filled with 0xff before packing.
class Slots {
 public:
  Slots(const ExpertGemm& gemm, const Prepared& prepared);
  const std::byte* slot(int32_t expert) const { return slots_.at(expert); }

 private:
  std::vector<std::vector<std::byte>> memory_;
  std::map<int32_t, const std::byte*> slots_;
};

// out (tokens * top_k, hidden). Output and workspace are poisoned with NaN before; rows of pairs in
// no group must stay poisoned. `sequential`: one run() per group.
struct RunOptions {
  int threads = 0;  // 0: no executor
  bool sequential = false;
};
std::vector<float> run(const ExpertGemm& gemm, const Prepared& prepared, const Slots& slots,
                       const RunOptions& options = {});

bool is_poison(float value);
bool same_bits(const std::vector<float>& a, const std::vector<float>& b);

// How the reference's rows meet the weights.
enum class Rows { exact, q8 };

// Relative Frobenius error of `out` against the reference over all pairs that have an expert;
// infinity if a pair without one was written.
double error_against_reference(const Prepared& prepared, const std::vector<float>& out,
                               Rows rows = Rows::exact);

}  // namespace moe::test
