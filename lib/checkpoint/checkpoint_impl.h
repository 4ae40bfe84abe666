// The inside of a Checkpoint, shared with what rewrites one.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/layer_set.h"
#include "checkpoint/manifest.h"
#include "checkpoint/tensor_directory.h"
#include "core/batch_reader.h"
#include "moe/checkpoint.h"

namespace moe {

struct Checkpoint::Impl {
  Impl(const std::string& path, std::string_view model_type, TensorDirectory opened,
       std::vector<LayerTensors> resolved, Manifest digests, bool direct_io,
       BatchReader::MakeRing make_ring)
      : directory(path),
        family(model_type),
        files(std::move(opened)),
        layers(std::move(resolved)),
        manifest(std::move(digests)),
        reader(direct_io, make_ring) {}

  // As Checkpoint::open(); tests bring rings that fail.
  static Result<Checkpoint> open(std::string_view directory, const CheckpointOptions& options,
                                 BatchReader::MakeRing make_ring);

  std::string directory;
  std::string family;
  TensorDirectory files;
  LayerSet layers;
  Manifest manifest;
  BatchReader reader;
};

}  // namespace moe
