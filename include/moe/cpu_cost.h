// What experts cost on this machine's CPU: measured once per format, then predicted for any batch.
// For whoever must choose between computing an expert here and copying it to a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "moe/expert_gemm.h"
#include "moe/export.h"
#include "moe/host.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

// What some threads do together with experts of one format.
struct CpuRates {
  // Computing with few experts, over and over.
  struct Point {
    int64_t rows = 1;          // of one expert
    double ns_per_weight = 0;  // for all of its rows
  };

  int threads = 1;                // how many they are
  double job_ns = 0;              // handing them a batch, and waiting for its end
  double read_ns_per_weight = 0;  // fetching a weight, and its share of a scale, from memory
  std::vector<Point> compute;     // ascending in rows and in time, from one row on
};

// The rates of one format on several numbers of threads. Plain data.
struct CpuCost {
  Format format;                // of the slots
  std::vector<CpuRates> rates;  // ascending in threads; more threads are never slower
};

// How measure_cpu_cost() goes about it.
struct CpuCostOptions {
  RowPrecision rows = RowPrecision::automatic;  // as the model's
  DType hidden = DType::f32;                    // type of the rows: f32, bf16 or f16
  size_t memory = size_t{512} << 20;            // bytes for weights that no cache holds
  int64_t most_rows = 256;                      // of one expert that are tried
  int samples = 3;                              // of each reading; medians count
};

// Measures the backend that would serve `format`, on 1, 2, 4, ... and `threads` threads of its own
// (0: one per core this process may use). Takes a second or two and options.memory; other work on
// the machine shows in the answer. unimplemented if no CPU backend serves the format.
MOE_API Result<CpuCost> measure_cpu_cost(const Format& format, int threads = 0,
                                         const CpuCostOptions& options = {});

// Predicted ns of one expert that `rows` rows chose, among others on `threads` threads: the longer
// of fetching and computing. Never less for more rows or fewer threads; 0 for 0 rows.
// `cost` holds at least one rate; beyond the threads that were measured, more do not help.
MOE_API double expert_ns(const CpuCost& cost, const ExpertSpec& spec, int64_t rows, int threads);

// Predicted ns of ExpertGemm::run() for experts with these rows each.
MOE_API double batch_ns(const CpuCost& cost, const ExpertSpec& spec,
                        std::span<const int64_t> rows_of_expert, int threads);

// Which experts of a batch, all in host memory, to compute on the CPU.
struct CpuShare {
  std::vector<bool> on_cpu;  // per expert; the others are copied
  double ns = 0;             // until both the CPU and the link are done
};

// The split whose later end is earliest: the CPU computes some experts, `cpu_ns` each, while a link
// copies the others, `copy_ns` each, one after the other. Optimal; of equal splits the one with the
// fewest experts on the CPU. Results of an expert have the bits of the backend that computed it, so
// a row may differ by the sum of both backends' error_bound() from one split to another: whoever
// asks for the same bits in every run must not let times decide.
MOE_API CpuShare choose_for_cpu(std::span<const double> cpu_ns, double copy_ns);

}  // namespace moe
