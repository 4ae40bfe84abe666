#include "model/quantised_expert.h"

#include <cmath>

#include "core/error.h"
#include "gemm/read_matrix.h"
#include "quant/half.h"

namespace moe {

Status QuantisedExpert::make(const WeightSource& source) {
  const int32_t layer = expert_.layer->spec().layer;
  std::vector<MatrixId> ids;
  for (const NewMatrix& matrix : expert_.matrices)
    ids.push_back({{layer, matrix.kind, expert_.index}, matrix.packed.rows, matrix.packed.columns});
  MOE_ASSIGN_OR_RETURN(const std::vector<StoredMatrix> stored, read_stored(source, ids));
  buffers_.resize(ids.size());
  scales_.resize(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::vector<float> values = in_f32(stored[i]);
    Result<QuantBuffer> made = quantise(values, format_, ids[i].outputs, ids[i].inputs);
    if (!made.ok())
      return made.status().at({.file = source.name(),
                               .tensor = to_string(ids[i].id.kind),
                               .layer = layer,
                               .expert = expert_.index});
    buffers_[i] = std::move(*made);
    add_error(values, buffers_[i].view());
    MOE_RETURN_IF_ERROR(set(ids[i].id, i));
  }
  return expert_.spec().bias ? set_biases(source, layer) : Status();
}

double QuantisedExpert::error() const { return norm_ > 0 ? std::sqrt(difference_ / norm_) : 0; }

void QuantisedExpert::store(size_t i, NewPart part, std::string* out) const {
  const PackedMatrix& packed = expert_.matrices[i].packed;
  switch (part) {
    case NewPart::words:
      out->assign(static_cast<size_t>(packed_values(packed).elements()) * 4, '\0');
      pack_compressed(buffers_[i].view(), reinterpret_cast<std::byte*>(out->data()), nullptr);
      return;
    case NewPart::scales: out->assign(scales_[i].begin(), scales_[i].end()); return;
    case NewPart::extents:
      const int64_t extents[] = {packed.rows, packed.columns};
      out->assign(reinterpret_cast<const char*>(extents), sizeof extents);
  }
}

void QuantisedExpert::add_error(const std::vector<float>& values, const QuantMatrix& matrix) {
  const std::vector<float> back = dequantise(matrix);
  for (size_t k = 0; k < values.size(); ++k) {
    difference_ += std::pow(static_cast<double>(back[k]) - values[k], 2);
    norm_ += std::pow(static_cast<double>(values[k]), 2);
  }
}

Status QuantisedExpert::set(const WeightId& id, size_t i) {
  const QuantBuffer& buffer = buffers_[i];
  const Dims shape = scale_shape(format_, buffer.rows, buffer.columns);
  scales_[i].resize(buffer.scales.size() * static_cast<size_t>(bits_of(format_.scale) / 8));
  for (size_t k = 0; k < buffer.scales.size(); ++k)
    store_float(format_.scale, reinterpret_cast<std::byte*>(scales_[i].data()),
                static_cast<int64_t>(k), buffer.scales[k]);
  MOE_RETURN_IF_ERROR(weights_.set(id, {buffer.values.data(), value_type(format_),
                                        value_shape(format_, buffer.rows, buffer.columns)}));
  return weights_.set({id.layer, companion(id.kind, Role::scale), id.expert},
                      {scales_[i].data(), format_.scale, shape});
}

Status QuantisedExpert::set_biases(const WeightSource& source, int32_t layer) {
  using enum WeightKind;
  for (WeightKind kind : {gate_bias, up_bias, down_bias}) {
    if (kind == gate_bias && !expert_.spec().gated) continue;
    const WeightId id{layer, kind, expert_.index};
    MOE_ASSIGN_OR_RETURN(const TensorShape shape, source.describe(id));
    auto& bytes = biases_.emplace_back(static_cast<size_t>(shape.shape.elements()) *
                                       static_cast<size_t>(bits_of(shape.dtype) / 8));
    MOE_RETURN_IF_ERROR(source.read(id, {bytes.data(), shape.dtype, shape.shape}));
    MOE_RETURN_IF_ERROR(weights_.set(id, {bytes.data(), shape.dtype, shape.shape}));
  }
  return {};
}

}  // namespace moe
