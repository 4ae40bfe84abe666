// Tensors that somebody else owns: pointer, type, shape, strides, device. Views are small structs
// passed by value; they never allocate, free or keep anything alive.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "moe/export.h"
#include "moe/status.h"

namespace moe {

// Element types. The names are those of safetensors, in lower case.
enum class DType : int32_t {
  boolean,
  f4,  // E2M1, two per byte, low nibble first
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,  // E4M3FN: no infinity, 0x7f and 0xff are NaN
  f8_e8m0,  // a power of two, 2^(b - 127); 255 is NaN
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};

MOE_API const char* to_string(DType type);  // "bf16"
MOE_API int bits_of(DType type);            // 16 for bf16, 4 for f4
// The type named `name` as safetensors spells it ("BF16"), or invalid_argument.
MOE_API Result<DType> dtype_from_safetensors(std::string_view name);
MOE_API const char* to_safetensors(DType type);  // "BF16"

// What sort of device.
enum class DeviceKind : int32_t { cpu = 0, cuda = 1 };

// Where memory lies and work runs. The default is the CPU.
struct Device {
  DeviceKind kind = DeviceKind::cpu;  // kind of memory and processor
  int32_t index = 0;                  // among devices of the kind

  static constexpr Device cpu() { return {}; }  // host memory
  // The GPU that CUDA calls `index`.
  static constexpr Device cuda(int32_t index) { return {DeviceKind::cuda, index}; }
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr int kMaxRank = 4;  // most axes of a view

// Extents or strides, outermost first. Strides are in elements.
struct Dims {
  int32_t rank = 0;               // how many of them; 0 for a scalar
  int64_t extent[kMaxRank] = {};  // the first `rank` count

  constexpr Dims() = default;
  // At most kMaxRank values; more are a caller's bug (assert).
  constexpr Dims(std::initializer_list<int64_t> values) {
    assert(values.size() <= kMaxRank);
    for (int64_t value : values) extent[rank++] = value;
  }
  constexpr int64_t operator[](int axis) const { return extent[axis]; }  // axis < rank
  constexpr int64_t& operator[](int axis) { return extent[axis]; }       // axis < rank

  // The product of all extents; 1 for a scalar.
  constexpr int64_t elements() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank; ++axis) product *= extent[axis];
    return product;
  }
  friend constexpr bool operator==(const Dims& a, const Dims& b) {
    if (a.rank != b.rank) return false;
    for (int axis = 0; axis < a.rank; ++axis)
      if (a.extent[axis] != b.extent[axis]) return false;
    return true;
  }
};

// Strides, in elements, of a dense row-major tensor. The outermost extent is not looked at: it may
// be anything.
constexpr Dims row_major(const Dims& shape) {
  Dims strides = shape;
  if (shape.rank > 0) strides[shape.rank - 1] = 1;
  for (int axis = shape.rank - 2; axis >= 0; --axis)
    strides[axis] = strides[axis + 1] * shape[axis + 1];
  return strides;
}

// What a view of either kind knows besides its pointer.
struct TensorShape {
  DType dtype = DType::f32;  // of the elements
  Dims shape;                // outermost first
  Dims strides;              // in elements
  Device device;             // where `data` can be read
};

// Read-only. `data` may be null only if there are no elements. It need not be aligned beyond what
// the element type needs.
struct TensorView : TensorShape {
  const void* data = nullptr;  // element (0, 0, ...); borrowed

  TensorView() = default;
  // Dense and row-major.
  TensorView(const void* pointer, DType type, const Dims& dims, Device where = {})
      : TensorShape{type, dims, row_major(dims), where}, data(pointer) {}
  // `steps` are the strides, in elements.
  TensorView(const void* pointer, DType type, const Dims& dims, const Dims& steps, Device where)
      : TensorShape{type, dims, steps, where}, data(pointer) {}
};

// Writable. Two elements must not share memory.
struct MutableTensorView : TensorShape {
  void* data = nullptr;  // element (0, 0, ...); borrowed

  MutableTensorView() = default;
  // Dense and row-major.
  MutableTensorView(void* pointer, DType type, const Dims& dims, Device where = {})
      : TensorShape{type, dims, row_major(dims), where}, data(pointer) {}
  // `steps` are the strides, in elements.
  MutableTensorView(void* pointer, DType type, const Dims& dims, const Dims& steps, Device where)
      : TensorShape{type, dims, steps, where}, data(pointer) {}
  // The same tensor, read-only.
  operator TensorView() const { return {data, dtype, shape, strides, device}; }
};

// DLPack, without including its header: `T` is DLTensor of dlpack.h (any version up to 1.x).
// The view borrows the tensor's memory. Types without an equal here, more than kMaxRank axes and
// other devices than CPU, pinned host and CUDA are refused.
template <class T>
Result<TensorView> from_dlpack(const T& tensor);

// Fills `out` with a view of the same memory. `shape` and `strides` must hold kMaxRank values each
// and live as long as `out` is used.
template <class T>
Status to_dlpack(const TensorView& view, int64_t* shape, int64_t* strides, T* out);

// ---- implementation

namespace detail {
struct DlpackFields {
  void* data;
  int32_t device_type, device_index, rank;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};
MOE_API Result<TensorView> view_of(const DlpackFields& fields);
MOE_API Status fields_of(const TensorView& view, int64_t* shape, int64_t* strides,
                         DlpackFields* out);
}  // namespace detail

template <class T>
Result<TensorView> from_dlpack(const T& t) {
  const detail::DlpackFields fields = {t.data,
                                       static_cast<int32_t>(t.device.device_type),
                                       t.device.device_id,
                                       t.ndim,
                                       t.dtype.code,
                                       t.dtype.bits,
                                       t.dtype.lanes,
                                       t.shape,
                                       t.strides,
                                       t.byte_offset};
  return detail::view_of(fields);  // nvcc 13.0 rejects the braces as an argument
}

template <class T>
Status to_dlpack(const TensorView& view, int64_t* shape, int64_t* strides, T* out) {
  detail::DlpackFields f{};
  if (Status status = detail::fields_of(view, shape, strides, &f); !status.ok()) return status;
  out->data = f.data;
  out->device.device_type = static_cast<decltype(out->device.device_type)>(f.device_type);
  out->device.device_id = f.device_index;
  out->ndim = f.rank;
  out->dtype.code = f.code;
  out->dtype.bits = f.bits;
  out->dtype.lanes = f.lanes;
  out->shape = shape;
  out->strides = strides;
  out->byte_offset = f.byte_offset;
  return {};
}

}  // namespace moe
