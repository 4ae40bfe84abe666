// The feed-forward network of many experts at once: one backend per kind of device and format,
// chosen from a visible ordered table. A host may list the table, force a row, or bring its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moe/export.h"
#include "moe/host.h"
#include "moe/status.h"
#include "moe/stream.h"
#include "moe/tensor.h"
#include "moe/weights.h"

namespace moe {

// How exact the rows are when they meet the weights: the A of W8A8.
enum class RowPrecision : int32_t {
  // int8 and int4 weights meet rows in int8 with a scale per 32 inputs; bf16 weights bf16 rows as
  // they are (AMX). On a GPU, fp8 weights meet rows in e4m3 with a scale per 128 inputs (W8A8)
  // where a batch has several rows an expert. Others `exact`.
  automatic,

  // f32 on the CPU; bf16 on a GPU, whose matrix units take no more.
  exact,

  // As automatic, but bf16 weights may meet rows rounded to bf16 (AMX too), and fp8 ones meet e4m3
  // in every batch whose experts are gated and resident.
  fast,
};

// What a backend may choose from when it is made.
struct ExpertGemmOptions {
  RowPrecision rows = RowPrecision::automatic;  // least exact rows that the host accepts
};

// How one expert lies in a slot of a device's pool.
struct SlotLayout {
  std::string name;       // two backends with equal names read the same bytes
  size_t bytes = 0;       // of one expert
  size_t alignment = 64;  // of the slot's address; a power of two
};

// The rows of one expert: pairs[first, first + count) of ExpertBatch.
struct ExpertGroup {
  const std::byte* slot = nullptr;  // packed by the backend that runs the batch
  int32_t expert = -1;              // logical index; messages and order only
  int64_t first = 0;                // index into ExpertBatch::pairs
  int64_t count = 0;                // rows
};

// One batch for the experts of one layer.
// A pair p = token * top_k + place is one chosen expert of one row.
struct ExpertBatch {
  TensorView hidden;  // (tokens, hidden) f32, bf16 or f16; rows may be strided
  int32_t top_k = 1;  // experts of a row

  // Grouped by expert, ascending; within a group ascending in p. Zero experts and pairs without an
  // expert are in no group.
  std::span<const ExpertGroup> groups;
  const int64_t* pairs = nullptr;  // all groups, one after the other

  // (tokens, top_k), indexed by p: multiplied into the expert's input (Llama 4). Null: none.
  const float* input_weights = nullptr;

  // (tokens * top_k, hidden), indexed by p: the unweighted result. Rows in no group stay untouched.
  float* out = nullptr;

  Stream stream;                   // where the rows are; the CPU has none
  Executor* executor = nullptr;    // null: the calling thread
  std::span<std::byte> workspace;  // at least workspace_bytes(), 64-byte aligned
};

// Safe for concurrent use with different outputs and workspaces. Stateless but for constants.
class MOE_API ExpertGemm {
 public:
  virtual ~ExpertGemm();

  virtual const char* name() const noexcept = 0;  // that of its row; constant

  // ok, or unimplemented with the number that no kernel serves.
  virtual Status supports(const ExpertSpec& spec) const = 0;

  // The slot of one expert. Needs supports(spec).
  virtual SlotLayout layout(const ExpertSpec& spec) const = 0;

  // Reads the expert (or the shared expert, kSharedExpert) of `layer` from `source` into `slot`,
  // which has layout(spec).bytes, all of which are written.
  virtual Status pack(const ExpertSpec& spec, const WeightSource& source, int32_t layer,
                      int32_t expert, std::byte* slot) const = 0;

  // Scratch of run() for `pairs` pairs over at most `groups` groups.
  virtual size_t workspace_bytes(const ExpertSpec& spec, int64_t pairs, int64_t groups,
                                 int concurrency) const noexcept = 0;

  // Largest error of run() for rows of type `hidden`: the relative Frobenius norm of the difference
  // to the reference on the weights as the slot holds them. Backends differ in bits within it.
  virtual double error_bound(const ExpertSpec& spec, DType hidden) const noexcept;

  // Computes batch.out. A row's bits depend on nothing but that row and its expert's slot.
  // A backend of a GPU answers unimplemented: Model::forward drives it from the device's table.
  virtual Status run(const ExpertSpec& spec, const ExpertBatch& batch) const = 0;
};

// A row of the table of backends.
struct ExpertGemmRow {
  const char* name;         // what ModelOptions::gemm takes
  const char* description;  // one line for people
  DeviceKind device;        // where it runs
  // ok if it runs on this machine; otherwise why not.
  Status (*available)();
  // One of them. Throws std::bad_alloc alone.
  std::unique_ptr<ExpertGemm> (*make)(const ExpertGemmOptions& options);
};

// Every backend of this build, best first.
MOE_API std::span<const ExpertGemmRow> expert_gemm_rows();

// The first row of `device` that is available and supports `spec`; `name` forces one.
// The message of a failure lists each row with its reason.
MOE_API Result<std::unique_ptr<ExpertGemm>> make_expert_gemm(Device device, const ExpertSpec& spec,
                                                             std::string_view name = {},
                                                             const ExpertGemmOptions& options = {});

}  // namespace moe
