// The grouped kernels against cuBLASLt, expert by expert, and against each other.
#include <cmath>
#include <numeric>
#include <random>

#include "catch.h"
#include "cuda/blas_gemm.h"
#include "cuda/buffer.h"
#include "cuda/oracle.h"
#include "gemm/portable_gemm.h"
#include "runtime/layer.h"
#include "runtime/tensor_map.h"

namespace {

using namespace moe::cuda;
using moe::cuda::test::Buffer;

enum class What { plain, unary, activated };

struct Problem {
  int64_t depth, columns;       // of the output
  std::vector<int32_t> counts;  // rows of each expert
  What what;
  bool bias;
  int32_t activation = 0;
};

constexpr float kAlpha = 1.702f, kLimit = 1.5f;

double activation_of(int32_t kind, double g, double u) {
  const double sigmoid = 1 / (1 + std::exp(-g));
  switch (kind) {
    case 0: return g * sigmoid * u;
    case 1: return 0.5 * g * (1 + std::erf(g / std::sqrt(2.0))) * u;
    case 3: return std::max(g, 0.0) * u;
    default: {
      g = std::min<double>(g, kLimit);
      u = std::min<double>(std::max<double>(u, -kLimit), kLimit);
      return (u + 1) * g / (1 + std::exp(-kAlpha * g));
    }
  }
}

// Experts in order, one slot each, and rows from scattered places.
class Fixture {
 public:
  explicit Fixture(const Problem& problem, uint32_t seed)
      : p(problem),
        weight_rows(p.what == What::activated ? 2 * p.columns : p.columns),
        experts(static_cast<int64_t>(p.counts.size())),
        slot_bytes(round_up(weight_rows * p.depth * 2, 256) + round_up(weight_rows * 4, 256)),
        rows(std::accumulate(p.counts.begin(), p.counts.end(), int64_t{0})),
        slots_(experts * slot_bytes),
        source_(scattered(seed)),
        input_((rows + 5) * p.depth),
        ordered_(rows * p.depth) {
    auto* values = reinterpret_cast<__nv_bfloat16*>(slots_.data());
    MOE_CHECK(moe::cuda::test::fill_normal(values, slots_.size() / 2, 1 / std::sqrt(float(p.depth)),
                                           seed));
    for (int64_t e = 0; e < experts; ++e)
      MOE_CHECK(moe::cuda::test::fill_normal(bias_of(e), weight_rows, 1, seed + 7 + uint32_t(e)));
    MOE_CHECK(moe::cuda::test::fill_normal(input_.data(), input_.size(), 1, seed + 1));
    const std::vector<int32_t> source = source_.host();
    for (int64_t r = 0; r < rows; ++r)
      MOE_CHECK(cudaMemcpy(ordered_.data() + r * p.depth, input_.data() + source[r] * p.depth,
                           static_cast<size_t>(p.depth) * 2, cudaMemcpyDeviceToDevice));
  }

  std::vector<__nv_bfloat16> run(const GroupedGemmKernel& kernel, TileClass size, bool gather) {
    std::vector<TokenTile> list;
    int32_t row = 0;
    for (size_t e = 0; e < p.counts.size(); ++e) {
      const int32_t tiles = (p.counts[e] + tile_tokens(size) - 1) / tile_tokens(size);
      const TokenTile tile = {static_cast<int32_t>(e),
                              static_cast<int32_t>(list.size()),
                              tiles,
                              row,
                              p.counts[e],
                              static_cast<int32_t>(e),
                              {0, 0}};
      list.insert(list.end(), static_cast<size_t>(tiles), tile);
      row += p.counts[e];
    }
    const Buffer<TokenTile> tiles(list);
    const Buffer<int32_t> count(std::vector<int32_t>{static_cast<int32_t>(list.size())});
    const Buffer<__nv_bfloat16> out(rows * p.columns);
    GroupedGemmArgs args = {};
    MOE_CHECK(
        make_tensor_map({slots_.data(), p.depth, weight_rows, experts, p.depth * 2, slot_bytes, 2},
                        kTileRows, &args.weights));
    MOE_CHECK(make_tensor_map({reinterpret_cast<const std::byte*>(ordered_.data()), p.depth, rows,
                               1, p.depth * 2, rows * p.depth * 2, 2},
                              token_box(size), &args.rows));
    args.weight_base = slots_.data();
    args.weight_rows = weight_rows;
    args.depth = p.depth;
    args.tiles = tiles.data();
    args.tile_count = count.data();
    if (gather) args.row_index = source_.data();
    args.row_base = reinterpret_cast<const std::byte*>(gather ? input_.data() : ordered_.data());
    args.row_bytes = p.depth * 2;
    if (p.bias) args.bias = reinterpret_cast<const std::byte*>(bias_of(0));
    args.slot_bytes = slot_bytes;
    args.out = out.data();
    args.out_stride = args.out_columns = p.columns;
    args.activated = p.what == What::activated;
    args.unary = p.what == What::unary;
    args.activation = p.activation;
    args.alpha = kAlpha;
    args.limit = kLimit;
    int multiprocessors = 0;
    MOE_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    MOE_CHECK(
        kernel.launch(size, args, static_cast<int64_t>(list.size()), multiprocessors, nullptr));
    MOE_CHECK(cudaDeviceSynchronize());
    return out.host();
  }

  // By cuBLASLt, with bias and activation on the host.
  std::vector<double> wanted(const moe::cuda::test::BlasGemm& blas) {
    std::vector<double> out;
    int64_t row = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const int32_t count = p.counts[static_cast<size_t>(e)];
      if (count == 0) continue;
      const Buffer<float> products(count * weight_rows);
      blas.multiply(reinterpret_cast<const __nv_bfloat16*>(slots_.data() + e * slot_bytes),
                    ordered_.data() + row * p.depth, weight_rows, count, p.depth, products.data());
      MOE_CHECK(cudaDeviceSynchronize());
      std::vector<float> bias(static_cast<size_t>(weight_rows));
      if (p.bias)
        MOE_CHECK(cudaMemcpy(bias.data(), bias_of(e), bias.size() * 4, cudaMemcpyDeviceToHost));
      const std::vector<float> sums = products.host();
      for (int32_t t = 0; t < count; ++t)
        for (int64_t c = 0; c < p.columns; ++c) {
          const auto at = [&](int64_t r) {
            return double(sums[static_cast<size_t>(t * weight_rows + r)]) +
                   bias[static_cast<size_t>(r)];
          };
          out.push_back(p.what == What::plain   ? at(c)
                        : p.what == What::unary ? activation_of(p.activation, at(c), 1)
                                                : activation_of(p.activation, at(gate_row(c)),
                                                                at(gate_row(c) + kInterleave)));
        }
      row += count;
    }
    return out;
  }

  const Problem p;
  const int64_t weight_rows, experts, slot_bytes, rows;

 private:
  float* bias_of(int64_t expert) {
    return reinterpret_cast<float*>(slots_.data() + expert * slot_bytes +
                                    round_up(weight_rows * p.depth * 2, 256));
  }
  std::vector<int32_t> scattered(uint32_t seed) const {
    std::vector<int32_t> order(static_cast<size_t>(rows) + 5);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    order.resize(static_cast<size_t>(rows));
    return order;
  }

  Buffer<std::byte> slots_;
  Buffer<int32_t> source_;
  Buffer<__nv_bfloat16> input_, ordered_;
};

// Values further from the wanted than a rounding to bf16 explains.
int64_t wrong(const std::vector<__nv_bfloat16>& got, const std::vector<double>& want) {
  int64_t count = 0;
  for (size_t i = 0; i < want.size(); ++i)
    count += !(std::abs(double(float(got[i])) - want[i]) <= 0.0041 * std::abs(want[i]) + 2e-5);
  return count;
}

}  // namespace

TEST_CASE("both grouped kernels equal cuBLASLt up to one rounding to bf16", "[cuda]") {
  if (!moe::cuda::test::have_gpu()) return moe::test::skip("there is no CUDA device here");
  const moe::cuda::test::BlasGemm blas;
  if (!blas.found()) return moe::test::skip("libcublasLt.so.13 is not on the library path");
  std::mt19937 random(static_cast<uint32_t>(moe::test::seed()));
  for (int round = 0; round < 24; ++round) {
    Problem p;
    p.what = static_cast<What>(round % 3);
    p.depth = 8 * (1 + random() % 60);
    p.columns = 8 * (1 + random() % 40);
    p.bias = random() % 2;
    p.activation = std::vector<int32_t>{0, 1, 3, 5}[random() % 4];
    if (p.what == What::unary && p.activation == 5) p.activation = 0;
    for (size_t e = 0; e < 1 + random() % 6; ++e)
      p.counts.push_back(static_cast<int32_t>(random() % (round % 2 ? 300 : 20)));
    p.counts.push_back(1);
    Fixture f(p, static_cast<uint32_t>(random()));
    CAPTURE(round, int(p.what), p.depth, p.columns, p.bias, p.activation, p.counts);
    const std::vector<double> want = f.wanted(blas);
    for (const TileClass size : {TileClass::small, TileClass::medium, TileClass::large})
      for (const bool gather : {false, true}) {
        CAPTURE(int(size), gather);
        if (!gather || gathers(size)) CHECK(wrong(f.run(kHopper, size, gather), want) == 0);
        if (size != TileClass::large) CHECK(wrong(f.run(kPortableBf16, size, gather), want) == 0);
      }
  }
}
