// Packs the experts of a checkpoint into integers ahead of time, in compressed-tensors' published
// layout (pack-quantized), which Model::load and other engines read.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "moe/export.h"
#include "moe/host.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

// What quantize() makes.
struct QuantizeOptions {
  FormatKind format = FormatKind::int4;  // int4 or int8
  int32_t group = 128;  // inputs that share a scale, a multiple of 32; 0: a whole row
};

// What quantising cost one expert: relative Frobenius norms of differences to the source.
struct ExpertError {
  int32_t expert = kSharedExpert;  // or the shared one
  double weights = 0;              // of gate, up and down together
  double outputs = 0;  // of results for 16 random rows, with rows in int8 as forward has
};

// The experts of one layer, the shared one last.
struct LayerErrors {
  int32_t layer = -1;                // the checkpoint's own index
  std::vector<ExpertError> experts;  // ascending
};

// Writes the checkpoint `from` (experts in f32, f16, bf16 or fp8) into a new folder `to` with the
// experts, shared ones too, as weight_packed, weight_scale and weight_shape; fused experts are
// split. Slots are those of ModelOptions::format with the same Format; scales have the weights'
// type (bf16 for fp8). All else is copied; config.json gets a quantization_config. Holds one expert
// in memory. As with repack(), `to` must not exist and appears complete or not at all.
// unimplemented if the family's packed experts have no names, if the experts are integers already,
// or if tensors outside the experts are quantised; invalid_argument for options that make no sense.
MOE_API Result<std::vector<LayerErrors>> quantize(std::string_view from, std::string_view to,
                                                  const QuantizeOptions& options = {},
                                                  Progress progress = nullptr,
                                                  void* argument = nullptr);

}  // namespace moe
