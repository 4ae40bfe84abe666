// A source whose tensors are looked through for values that are not finite.
#pragma once

#include <cmath>
#include <span>

#include "core/error.h"
#include "moe/weights.h"
#include "quant/half.h"

namespace moe {

// Passes everything on; a read that brings NaN or infinity is data_loss.
class FiniteSource final : public WeightSource {
 public:
  explicit FiniteSource(const WeightSource& inner) : inner_(inner) {}

  const std::vector<LayerSpec>& layers() const noexcept override { return inner_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return inner_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    MOE_RETURN_IF_ERROR(inner_.read(id, out));
    return check(id, out);
  }
  Status read_all(std::span<const WeightRead> reads) const override {
    MOE_RETURN_IF_ERROR(inner_.read_all(reads));
    for (const WeightRead& read : reads) MOE_RETURN_IF_ERROR(check(read.id, read.out));
    return {};
  }
  std::string_view name() const noexcept override { return inner_.name(); }

 private:
  static Status check(const WeightId& id, const TensorView& view) {
    if (view.dtype != DType::f32 && view.dtype != DType::bf16 && view.dtype != DType::f16)
      return {};
    const bool matrix = view.shape.rank == 2;
    const int64_t rows = matrix ? view.shape[0] : 1;
    const int64_t columns = matrix ? view.shape[1] : view.shape.elements();
    const int64_t row_step = matrix ? view.strides[0] : 0;
    const int64_t step = view.shape.rank == 0 ? 1 : view.strides[view.shape.rank - 1];
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        if (!std::isfinite(load_float(view.dtype, static_cast<const std::byte*>(view.data),
                                      r * row_step + c * step)))
          return error(StatusCode::data_loss,
                       {.tensor = to_string(id.kind), .layer = id.layer, .expert = id.expert},
                       "{} has a value that is not finite at [{}, {}]", to_string(id.kind), r, c);
    return {};
  }

  const WeightSource& inner_;
};

}  // namespace moe
