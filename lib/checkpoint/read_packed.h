// From the words of a packed module to canonical tensors, and what else such a module stores that
// must agree with config.json.
#pragma once

#include <cstddef>
#include <vector>

#include "checkpoint/layer_set.h"
#include "checkpoint/tensor_directory.h"

namespace moe {

// `words` are all bytes of the stored tensor; `out` has the slice's shape, any strides.
Status unpack_slice(const TensorSlice& slice, const std::byte* words, const MutableTensorView& out);

// A tensor that the canonical ones do not need, but that would make them wrong if it disagreed:
// zero points of a symmetric matrix, group indices where there is no act-order, the matrix's
// extents.
struct Witness {
  const Checkpoint::Tensor* tensor = nullptr;
  Role role = Role::other;  // zero, group, or other: the extents
  PackedMatrix matrix;
};

// Those of the packed matrix `found`; none for other tensors.
std::vector<Witness> witnesses_of(const LayerSet::Found& found, const TensorDirectory& files);

// ok, or data_loss naming the first value that disagrees. `bytes` are all of the tensor.
Status check_witness(const Witness& witness, const std::byte* bytes);

}  // namespace moe
