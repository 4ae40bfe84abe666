#include "moe/tensor.h"

#include <array>
#include <cassert>

#include "core/error.h"

namespace moe {
namespace {

struct Row {
  DType type;
  int bits;
  const char* name;
  const char* safetensors;
};

constexpr std::array<Row, 22> kTypes = {{
    {DType::boolean, 8, "boolean", "BOOL"},
    {DType::f4, 4, "f4", "F4"},
    {DType::f6_e2m3, 6, "f6_e2m3", "F6_E2M3"},
    {DType::f6_e3m2, 6, "f6_e3m2", "F6_E3M2"},
    {DType::u8, 8, "u8", "U8"},
    {DType::i8, 8, "i8", "I8"},
    {DType::f8_e5m2, 8, "f8_e5m2", "F8_E5M2"},
    {DType::f8_e4m3, 8, "f8_e4m3", "F8_E4M3"},
    {DType::f8_e8m0, 8, "f8_e8m0", "F8_E8M0"},
    {DType::f8_e4m3fnuz, 8, "f8_e4m3fnuz", "F8_E4M3FNUZ"},
    {DType::f8_e5m2fnuz, 8, "f8_e5m2fnuz", "F8_E5M2FNUZ"},
    {DType::i16, 16, "i16", "I16"},
    {DType::u16, 16, "u16", "U16"},
    {DType::f16, 16, "f16", "F16"},
    {DType::bf16, 16, "bf16", "BF16"},
    {DType::i32, 32, "i32", "I32"},
    {DType::u32, 32, "u32", "U32"},
    {DType::f32, 32, "f32", "F32"},
    {DType::c64, 64, "c64", "C64"},
    {DType::f64, 64, "f64", "F64"},
    {DType::i64, 64, "i64", "I64"},
    {DType::u64, 64, "u64", "U64"},
}};

constexpr bool in_enum_order() {
  for (size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].type != static_cast<DType>(i)) return false;
  return true;
}
static_assert(in_enum_order());

const Row& row(DType type) { return kTypes[static_cast<size_t>(type)]; }

// DLDataTypeCode of dlpack.h.
enum Dlpack : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct DlpackRow {
  DType type;
  uint8_t code, bits;
};
constexpr DlpackRow kDlpack[] = {
    {DType::i8, kInt, 8},       {DType::i16, kInt, 16},     {DType::i32, kInt, 32},
    {DType::i64, kInt, 64},     {DType::u8, kUInt, 8},      {DType::u16, kUInt, 16},
    {DType::u32, kUInt, 32},    {DType::u64, kUInt, 64},    {DType::f16, kFloat, 16},
    {DType::f32, kFloat, 32},   {DType::f64, kFloat, 64},   {DType::bf16, kBfloat, 16},
    {DType::c64, kComplex, 64}, {DType::boolean, kBool, 8},
};
constexpr int32_t kDlCpu = 1, kDlCuda = 2, kDlCudaHost = 3;

}  // namespace

const char* to_string(DType type) { return row(type).name; }
const char* to_safetensors(DType type) { return row(type).safetensors; }
int bits_of(DType type) { return row(type).bits; }

Result<DType> dtype_from_safetensors(std::string_view name) {
  for (const Row& r : kTypes)
    if (name == r.safetensors) return r.type;
  return invalid_argument({}, "unknown dtype \"{}\"", name);
}

namespace detail {

Result<TensorView> view_of(const DlpackFields& f) {
  if (f.rank < 0 || f.rank > kMaxRank)
    return invalid_argument({}, "DLPack tensor has {} axes; at most {} are supported", f.rank,
                            kMaxRank);
  if (f.lanes != 1)
    return invalid_argument({}, "DLPack tensor has {} lanes per element; only 1 is supported",
                            f.lanes);
  if (f.device_type != kDlCpu && f.device_type != kDlCuda && f.device_type != kDlCudaHost)
    return invalid_argument({}, "DLPack device type {} is not CPU (1), CUDA (2) or CUDA host (3)",
                            f.device_type);
  for (const DlpackRow& r : kDlpack) {
    if (r.code != f.code || r.bits != f.bits) continue;
    Dims shape, strides;
    shape.rank = strides.rank = f.rank;
    for (int axis = 0; axis < f.rank; ++axis) shape[axis] = f.shape[axis];
    strides = row_major(shape);
    if (f.strides)
      for (int axis = 0; axis < f.rank; ++axis) strides[axis] = f.strides[axis];
    const Device device = f.device_type == kDlCuda ? Device::cuda(f.device_index) : Device::cpu();
    return TensorView(static_cast<const char*>(f.data) + f.byte_offset, r.type, shape, strides,
                      device);
  }
  return invalid_argument({}, "DLPack type code {} with {} bits has no equal here", f.code, f.bits);
}

Status fields_of(const TensorView& view, int64_t* shape, int64_t* strides, DlpackFields* out) {
  for (const DlpackRow& r : kDlpack) {
    if (r.type != view.dtype) continue;
    for (int axis = 0; axis < view.shape.rank; ++axis) {
      shape[axis] = view.shape[axis];
      strides[axis] = view.strides[axis];
    }
    *out = {const_cast<void*>(view.data),
            view.device.kind == DeviceKind::cuda ? kDlCuda : kDlCpu,
            view.device.index,
            view.shape.rank,
            r.code,
            r.bits,
            1,
            shape,
            strides,
            0};
    return {};
  }
  return invalid_argument({}, "{} has no equal in DLPack", to_string(view.dtype));
}

}  // namespace detail
}  // namespace moe
