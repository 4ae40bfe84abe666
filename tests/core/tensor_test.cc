#include "moe/tensor.h"

#include "catch.h"

using namespace moe;

namespace {
// Field for field what dlpack.h declares.
struct DLDevice {
  int device_type;
  int32_t device_id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
}  // namespace

TEST_CASE("row_major strides", "[core]") {
  CHECK(row_major({2, 3, 4}) == Dims{12, 4, 1});
  CHECK(row_major({}) == Dims{});
  CHECK(row_major({int64_t{1} << 62, 8}) == Dims{8, 1});  // nothing overflows
  CHECK(Dims{2, 0, 4}.elements() == 0);
}

TEST_CASE("dtype names round-trip", "[core]") {
  for (int i = 0; i <= static_cast<int>(DType::u64); ++i) {
    auto type = static_cast<DType>(i);
    auto back = dtype_from_safetensors(to_safetensors(type));
    REQUIRE(back.ok());
    CHECK(*back == type);
  }
  CHECK(dtype_from_safetensors("f32").status().code() == StatusCode::invalid_argument);
}

TEST_CASE("DLPack there and back", "[core]") {
  float values[12] = {};
  TensorView view(values, DType::f32, {3, 4});
  int64_t shape[kMaxRank], strides[kMaxRank];
  DLTensor t{};
  REQUIRE(to_dlpack(view, shape, strides, &t).ok());
  CHECK(t.dtype.code == 2);
  CHECK(t.device.device_type == 1);
  t.byte_offset = 8;
  t.strides = nullptr;
  auto back = from_dlpack(t);
  REQUIRE(back.ok());
  CHECK(back->data == values + 2);
  CHECK(back->strides == Dims{4, 1});
  t.dtype.lanes = 4;
  CHECK_FALSE(from_dlpack(t).ok());
  t.dtype = {0, 4, 1};
  CHECK(from_dlpack(t).status().code() == StatusCode::invalid_argument);
}
