#include <cuda_fp8.h>

#include "cuda/oracle.h"

namespace moe::cuda::test {
namespace {

__device__ inline uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

__device__ inline float normal(uint64_t seed, uint64_t index) {
  const uint64_t bits = mix(mix(seed) ^ index);
  const float u = (static_cast<uint32_t>(bits) + 0.5f) * 0x1p-32f;
  const float v = static_cast<uint32_t>(bits >> 32) * 0x1p-32f;
  return sqrtf(-2.0f * __logf(fmaxf(u, 1e-12f))) * __cosf(6.2831853f * v);
}

template <typename T>
__global__ void fill(T* out, int64_t count, float scale, uint64_t seed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step)
    out[i] = static_cast<T>(scale * normal(seed, i));
}

// One section of one slot; rows and columns from the first padded one on are zero.
struct Section {
  std::byte* base;
  int64_t rows, columns, stride, valid_rows;
  int32_t interleaved, bytes;
  float scale;
  uint64_t seed;
};

__device__ inline bool padding_row(const Section& s, int64_t row) {
  return s.interleaved ? row / 16 * 8 + row % 8 >= s.valid_rows : row >= s.valid_rows;
}

__global__ void fill_section(const Section s) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < s.rows * s.stride; i += step) {
    const int64_t row = i / s.stride, column = i % s.stride;
    const bool zero = column >= s.columns || padding_row(s, row);
    const float value = zero ? 0.0f : s.scale * normal(s.seed, i);
    if (s.bytes == 4) reinterpret_cast<float*>(s.base)[i] = value;
    if (s.bytes == 2) reinterpret_cast<__nv_bfloat16*>(s.base)[i] = __float2bfloat16(value);
    if (s.bytes == 1)
      reinterpret_cast<__nv_fp8_e4m3*>(s.base)[row * s.stride + e4m3_column(column)] =
          __nv_fp8_e4m3(value);
  }
}

// Positive and spread by a factor of about two around `scale`.
__global__ void fill_scales(float* out, int64_t count, float scale, uint64_t seed) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = scale * exp2f(fminf(fmaxf(0.5f * normal(seed, i), -1.0f), 1.0f));
}

// A weight of a slot as the format says.
struct Reader {
  const ExpertPool& pool;
  const std::byte* slot;

  __device__ double at(int64_t offset, int64_t row, int64_t stride, int64_t column) const {
    const std::byte* p = slot + offset;
    if (pool.shape.element_bytes == 2)
      return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(p)[row * stride + column]);
    return static_cast<float>(
        reinterpret_cast<const __nv_fp8_e4m3*>(p)[row * stride + e4m3_column(column)]);
  }
  __device__ double f32(int64_t offset, int64_t index) const {
    return reinterpret_cast<const float*>(slot + offset)[index];
  }
  __device__ double gate_up(bool up, int64_t i, int64_t column) const {
    const SlotSections& s = pool.sections;
    const double code =
        at(s.gate_up, gate_row(i) + (up ? kInterleave : 0), s.hidden_stride, column);
    if (pool.shape.element_bytes == 2) return code;
    const int64_t blocks = scale_blocks(pool.shape.hidden);
    const int64_t row = i / kScaleBlock + (up ? scale_blocks(pool.shape.intermediate) : 0);
    return code * f32(s.gate_up_scale, row * blocks + column / kScaleBlock);
  }
  __device__ double down(int64_t row, int64_t i) const {
    const SlotSections& s = pool.sections;
    const double code = at(s.down, row, s.intermediate_stride, i);
    if (pool.shape.element_bytes == 2) return code;
    return code * f32(s.down_scale,
                      row / kScaleBlock * scale_blocks(pool.shape.intermediate) + i / kScaleBlock);
  }
};

__device__ double activate(const OracleArgs& args, double g, double u) {
  const double limit = args.limit;
  switch (args.activation) {
    case 0: return g / (1 + exp(-g)) * u;
    case 1: return 0.5 * g * (1 + erf(g * 0.70710678118654752)) * u;
    case 2: return 0.5 * g * (1 + tanh(0.79788456080286536 * (g + 0.044715 * g * g * g))) * u;
    case 3: return fmax(g, 0.0) * u;
    case 4: return fmax(g, 0.0) * fmax(g, 0.0) * u;
    case 5:
      g = fmin(g, limit);
      return (fmin(fmax(u, -limit), limit) + 1) * g / (1 + exp(-args.alpha * g));
    default: return fmin(g / (1 + exp(-g)), limit) * fmin(fmax(u, -limit), limit);
  }
}

__device__ double warp_sum(double x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

// blockIdx: (intermediate / 8, places, samples); a warp an element.
__global__ void oracle_up(const OracleArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  const int64_t token = args.samples[blockIdx.z];
  const int32_t id = args.ids[token * args.top_k + blockIdx.y];
  const SlotShape& shape = args.pool.shape;
  if (id < 0 || i >= shape.intermediate) return;
  const Reader weights{args.pool,
                       args.pool.base + args.pool.slot_of_expert[id] * args.pool.slot_bytes};
  double g = 0, u = 0;
  for (int64_t c = threadIdx.x % 32; c < shape.hidden; c += 32) {
    const double x = args.rows ? args.rows[blockIdx.z * shape.hidden + c]
                               : __bfloat162float(args.hidden[token * shape.hidden + c]);
    g += x * weights.gate_up(false, i, c);
    u += x * weights.gate_up(true, i, c);
  }
  g = warp_sum(g), u = warp_sum(u);
  if (shape.bias) {
    g += weights.f32(args.pool.sections.gate_up_bias, gate_row(i));
    u += weights.f32(args.pool.sections.gate_up_bias, gate_row(i) + kInterleave);
  }
  if (threadIdx.x % 32 == 0)
    args.scratch[(blockIdx.z * args.top_k + blockIdx.y) * shape.intermediate + i] =
        activate(args, g, u);
}

// What a group of up to 128 values is in e4m3 (quant/e4m3.cuh). One thread.
__device__ void requantize(double* values, int64_t count) {
  float amax = 0x1p-100f;
  for (int64_t i = 0; i < count; ++i) amax = fmaxf(amax, fabsf(static_cast<float>(values[i])));
  const float scale = amax * (1.0f / 448.0f), inverse = 1.0f / scale;
  for (int64_t i = 0; i < count; ++i)
    values[i] =
        double(scale) * static_cast<float>(__nv_fp8_e4m3(static_cast<float>(values[i]) * inverse));
}

// A thread a group of 128 columns of a (rows, columns) matrix.
__global__ void requantize_rows(double* values, int64_t rows, int64_t columns) {
  const int64_t groups = scale_blocks(columns);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * groups) return;
  const int64_t first = i % groups * kScaleBlock;
  requantize(values + i / groups * columns + first,
             columns - first < kScaleBlock ? columns - first : kScaleBlock);
}

__global__ void widen_samples(const OracleArgs args) {
  const int64_t hidden = args.pool.shape.hidden;
  for (int64_t c = threadIdx.x; c < hidden; c += blockDim.x)
    args.rows[blockIdx.x * hidden + c] =
        __bfloat162float(args.hidden[args.samples[blockIdx.x] * hidden + c]);
}

// blockIdx: (hidden / 8, 1, samples).
__global__ void oracle_down(const OracleArgs args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  const int64_t token = args.samples[blockIdx.z];
  const SlotShape& shape = args.pool.shape;
  if (row >= shape.hidden) return;
  double sum = 0;
  for (int place = 0; place < args.top_k; ++place) {
    const int32_t id = args.ids[token * args.top_k + place];
    if (id < 0) continue;
    const Reader weights{args.pool,
                         args.pool.base + args.pool.slot_of_expert[id] * args.pool.slot_bytes};
    const double* x = args.scratch + (blockIdx.z * args.top_k + place) * shape.intermediate;
    double y = 0;
    for (int64_t i = threadIdx.x % 32; i < shape.intermediate; i += 32)
      y += x[i] * weights.down(row, i);
    y = warp_sum(y);
    if (shape.bias) y += weights.f32(args.pool.sections.down_bias, row);
    sum += args.weights[token * args.top_k + place] * y;
  }
  if (threadIdx.x % 32 == 0) args.out[blockIdx.z * shape.hidden + row] = sum;
}

__global__ void compare(const uint32_t* a, const uint32_t* b, int64_t words,
                        unsigned long long* different) {
  unsigned long long found = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    found += a[i] != b[i];
  if (found) atomicAdd(different, found);
}

}  // namespace

cudaError_t fill_normal(__nv_bfloat16* out, int64_t count, float scale, uint64_t seed) {
  fill<<<2048, 256>>>(out, count, scale, seed);
  return cudaGetLastError();
}

cudaError_t fill_normal(float* out, int64_t count, float scale, uint64_t seed) {
  fill<<<2048, 256>>>(out, count, scale, seed);
  return cudaGetLastError();
}

cudaError_t fill_pool(const ExpertPool& pool, std::byte* base, uint64_t seed) {
  const SlotShape& shape = pool.shape;
  const SlotSections& s = pool.sections;
  const bool fp8 = shape.element_bytes == 1;
  const float up = 1 / sqrtf(shape.hidden), down = 1 / sqrtf(shape.intermediate);
  for (int64_t slot = 0; slot < pool.slots; ++slot) {
    std::byte* p = base + slot * pool.slot_bytes;
    const uint64_t key = seed * 1000003 + slot * 16;
    fill_section<<<1024, 256>>>({p + s.gate_up, 2 * s.intermediate_stride, shape.hidden,
                                 s.hidden_stride, shape.intermediate, 1, shape.element_bytes,
                                 fp8 ? 64.0f : up, key});
    fill_section<<<1024, 256>>>({p + s.down, shape.hidden, shape.intermediate,
                                 s.intermediate_stride, shape.hidden, 0, shape.element_bytes,
                                 fp8 ? 64.0f : down, key + 1});
    if (fp8) {
      const int64_t blocks = scale_blocks(shape.hidden) * scale_blocks(shape.intermediate);
      const auto grid = [](int64_t count) { return static_cast<unsigned>((count + 255) / 256); };
      fill_scales<<<grid(2 * blocks), 256>>>(reinterpret_cast<float*>(p + s.gate_up_scale),
                                             2 * blocks, up / 64, key + 2);
      fill_scales<<<grid(blocks), 256>>>(reinterpret_cast<float*>(p + s.down_scale), blocks,
                                         down / 64, key + 3);
    }
    if (shape.bias) {
      fill_section<<<64, 256>>>({p + s.gate_up_bias, 2 * s.intermediate_stride, 1, 1,
                                 shape.intermediate, 1, 4, 0.5f, key + 4});
      fill_section<<<64, 256>>>(
          {p + s.down_bias, shape.hidden, 1, 1, shape.hidden, 0, 4, 0.5f, key + 5});
    }
  }
  return cudaGetLastError();
}

cudaError_t count_different(const void* a, const void* b, int64_t words,
                            unsigned long long* different) {
  compare<<<1024, 256>>>(static_cast<const uint32_t*>(a), static_cast<const uint32_t*>(b), words,
                         different);
  return cudaGetLastError();
}

cudaError_t oracle(const OracleArgs& args) {
  const SlotShape& shape = args.pool.shape;
  const unsigned samples = static_cast<unsigned>(args.num_samples);
  const dim3 up(static_cast<unsigned>((shape.intermediate + 7) / 8), args.top_k, samples);
  const dim3 down(static_cast<unsigned>((shape.hidden + 7) / 8), 1, samples);
  const auto quantized = [](double* values, int64_t rows, int64_t columns) {
    const int64_t groups = rows * scale_blocks(columns);
    requantize_rows<<<static_cast<unsigned>((groups + 127) / 128), 128>>>(values, rows, columns);
  };
  if (args.rows) {
    widen_samples<<<samples, 256>>>(args);
    quantized(args.rows, samples, shape.hidden);
  }
  oracle_up<<<up, 256>>>(args);
  if (args.rows) quantized(args.scratch, samples * args.top_k, shape.intermediate);
  oracle_down<<<down, 256>>>(args);
  return cudaGetLastError();
}

}  // namespace moe::cuda::test
