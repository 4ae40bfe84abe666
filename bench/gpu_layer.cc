// Times whole layers on the GPU: top-k from given logits, permutation, both expert GEMMs, the
// activation and the weighted sum. Graph replays; a graph holds 8, 4, 2 or 1 layers with different
// inputs and routings, so that L2 does not hold the weights. Random normal weights and rows; every
// token draws its experts uniformly. Sampled rows are checked against double precision.
//
//   gpu_layer [--shapes a,b] [--tokens 1,4] [--format bf16|fp8] [--rows exact|fast]
//             [--size N] [--gather 0|1] [--decode 0|1] [--few-tiles 0|1]
//             [--peers points.csv] [--quick]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "cuda/buffer.h"
#include "cuda/oracle.h"
#include "gpu_limits.h"
#include "router/topk.h"
#include "runtime/layer.h"

namespace {

using namespace moe::cuda;
using moe::cuda::test::Buffer;

struct Shape {
  const char* name;
  int32_t experts, top_k;
  int64_t hidden, intermediate;
};

constexpr Shape kShapes[] = {{"mixtral", 8, 2, 4096, 14336},
                             {"qwen3", 128, 8, 2048, 768},
                             {"dsv3", 256, 8, 7168, 2048},
                             {"olmoe", 64, 8, 2048, 1024},
                             {"gptoss", 128, 4, 2880, 2880}};

struct Options {
  std::vector<std::string> shapes;
  std::vector<int64_t> tokens = {1, 4, 16, 64, 256, 1024, 4096, 16384};
  bool fp8 = false;
  bool quick = false;  // limits of the H200 instead of measuring them
  std::string peers;
  int32_t size = -1, gather = -1, decode = -1, few_tiles = -1;
  moe::RowPrecision rows = moe::RowPrecision::automatic;
};

struct Limits {
  double bandwidth, bf16, fp8;
};

// (shape, tokens) -> fastest whole layer of others, and its name.
using Peers = std::map<std::pair<std::string, int64_t>, std::pair<double, std::string>>;

// For fp8 a pair of GEMMs counts with 7 % added for everything around it.
Peers read_peers(const std::string& path, bool fp8) {
  Peers peers;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::stringstream fields(line);
    std::string shape, tokens, name, variant, time;
    std::getline(fields, shape, ',');
    std::getline(fields, tokens, ',');
    std::getline(fields, name, ',');
    std::getline(fields, variant, ',');
    std::getline(fields, time, ',');
    const bool gemms = name.find("GEMMs") != std::string::npos;
    const bool is_fp8 = name.find("fp8") != std::string::npos || name.rfind("torch_scaled", 0) == 0;
    if (shape == "shape" || name.find("mx4") != std::string::npos || name == "proto_persistent" ||
        is_fp8 != fp8 || (gemms && !fp8))
      continue;
    const double us = std::stod(time) * (gemms ? 1.07 : 1);
    auto& best = peers[{shape, std::stoll(tokens)}];
    if (best.first == 0 || us < best.first) best = {us, name};
  }
  return peers;
}

class ShapeBench {
 public:
  ShapeBench(const Shape& shape, bool fp8, const Limits& limits)
      : shape_(shape),
        limits_(limits),
        fp8_(fp8),
        pool_bytes_(pool_size(shape, fp8)),
        slots_(shuffled(shape.experts)) {
    pool_.base = pool_bytes_.data();
    pool_.slot_of_expert = slots_.data();
    MOE_CHECK(moe::cuda::test::fill_pool(pool_, pool_bytes_.data(), 7));
    MOE_CHECK(make_pool_maps(pool_, &maps_));
    MOE_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0));
    MOE_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    MOE_CHECK(cudaDeviceSynchronize());
  }
  ~ShapeBench() { cudaStreamDestroy(stream_); }

  void run(int64_t tokens, const Peers& peers, const Options& options) {
    const int layers = tokens <= 64 ? 8 : tokens <= 256 ? 4 : tokens <= 4096 ? 2 : 1;
    Buffer<__nv_bfloat16> hidden(layers * tokens * shape_.hidden);
    Buffer<__nv_bfloat16> out(layers * tokens * shape_.hidden), again(tokens * shape_.hidden);
    Buffer<float> logits(layers * tokens * shape_.experts);
    Buffer<std::byte> workspace(static_cast<int64_t>(layer_workspace_bytes(
        {.routed = pool_.shape, .num_experts = shape_.experts}, tokens, shape_.top_k)));
    MOE_CHECK(moe::cuda::test::fill_normal(hidden.data(), hidden.size(), 1, tokens));
    MOE_CHECK(moe::cuda::test::fill_normal(logits.data(), logits.size(), 1, tokens + 1));
    MOE_CHECK(cudaDeviceSynchronize());

    auto layer = [&](int i, __nv_bfloat16* to) {
      LayerArgs args = {};
      args.pool = pool_;
      args.kernel = &kHopper;
      args.maps = &maps_;
      args.tokens = tokens;
      args.top_k = shape_.top_k;
      args.hidden = {hidden.data() + i * tokens * shape_.hidden, moe::DType::bf16, shape_.hidden};
      args.logits = {logits.data() + i * tokens * shape_.experts, moe::DType::f32, shape_.experts};
      args.out = {to, moe::DType::bf16, shape_.hidden};
      args.workspace = workspace.data();
      args.multiprocessors = multiprocessors_;
      args.size = options.size;
      args.gather = options.gather;
      args.decode = options.decode;
      args.few_tiles = options.few_tiles;
      args.rows = options.rows;
      return enqueue_layer(args, stream_);
    };
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MOE_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < layers; ++i) MOE_CHECK(layer(i, out.data() + i * tokens * shape_.hidden));
    MOE_CHECK(cudaStreamEndCapture(stream_, &graph));
    MOE_CHECK(cudaGraphInstantiate(&exec, graph, 0));

    const double time = replay(exec, layers);
    MOE_CHECK(layer(0, again.data()));
    MOE_CHECK(cudaStreamSynchronize(stream_));
    Buffer<unsigned long long> different(1);
    MOE_CHECK(cudaMemset(different.data(), 0, 8));
    MOE_CHECK(moe::cuda::test::count_different(out.data(), again.data(), again.size() / 2,
                                               different.data()));
    double distinct = 0;
    const double error = verify(tokens, hidden, logits, out, layers - 1, false, &distinct);
    const double alike =
        fp8_ ? verify(tokens, hidden, logits, out, layers - 1, true, &distinct) : error;
    report(tokens, time, distinct, error, alike, different.host()[0], peers);
    MOE_CHECK(cudaGraphExecDestroy(exec));
    MOE_CHECK(cudaGraphDestroy(graph));
  }

 private:
  int64_t pool_size(const Shape& shape, bool fp8) {
    pool_.shape = {shape.hidden, shape.intermediate, fp8 ? 1 : 2, false};
    pool_.sections = slot_sections(pool_.shape);
    pool_.slots = pool_.num_experts = shape.experts;
    pool_.slot_bytes = pool_.sections.bytes;
    return pool_.slots * pool_.slot_bytes;
  }

  // An expert's slot says nothing about its index.
  static std::vector<int32_t> shuffled(int32_t experts) {
    std::vector<int32_t> slots(experts);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), std::mt19937(7));
    return slots;
  }

  // Median seconds of a layer.
  double replay(cudaGraphExec_t exec, int layers) {
    cudaEvent_t begin, end;
    MOE_CHECK(cudaEventCreate(&begin));
    MOE_CHECK(cudaEventCreate(&end));
    std::vector<double> times;
    double spent = 0;
    for (int i = 0; i < 43 && (i < 8 || spent < 0.25); ++i) {
      MOE_CHECK(cudaEventRecord(begin, stream_));
      MOE_CHECK(cudaGraphLaunch(exec, stream_));
      MOE_CHECK(cudaEventRecord(end, stream_));
      MOE_CHECK(cudaEventSynchronize(end));
      float ms = 0;
      MOE_CHECK(cudaEventElapsedTime(&ms, begin, end));
      spent += ms * 1e-3;
      if (i >= 3) times.push_back(ms * 1e-3 / layers);
    }
    MOE_CHECK(cudaEventDestroy(begin));
    MOE_CHECK(cudaEventDestroy(end));
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
  }

  // Relative error of sampled rows of layer i against double precision; `quantized`: of rows and
  // activations that were rounded to e4m3.
  double verify(int64_t tokens, const Buffer<__nv_bfloat16>& hidden, const Buffer<float>& logits,
                const Buffer<__nv_bfloat16>& out, int i, bool quantized, double* distinct) {
    Buffer<int32_t> ids(tokens * shape_.top_k);
    Buffer<float> weights(tokens * shape_.top_k);
    MOE_CHECK(launch_topk({.rule = {.candidates = shape_.experts,
                                    .top_k = shape_.top_k,
                                    .weighting = moe::Weighting::softmax_of_selected_logits},
                           .logits = logits.data() + i * tokens * shape_.experts,
                           .tokens = tokens,
                           .ids = ids.data(),
                           .weights = weights.data()},
                          nullptr));
    std::vector<int64_t> samples;
    const int64_t count = std::min<int64_t>(tokens, 8);
    for (int64_t s = 0; s < count; ++s)
      samples.push_back(s * (tokens - 1) / std::max<int64_t>(count - 1, 1));
    const Buffer<int64_t> rows(samples);
    Buffer<double> scratch(count * shape_.top_k * shape_.intermediate), want(count * shape_.hidden);
    Buffer<double> widened(quantized ? count * shape_.hidden : 0);
    moe::cuda::test::OracleArgs args = {};
    args.pool = pool_;
    args.hidden = hidden.data() + i * tokens * shape_.hidden;
    args.ids = ids.data();
    args.weights = weights.data();
    args.top_k = shape_.top_k;
    args.samples = rows.data();
    args.num_samples = count;
    args.scratch = scratch.data();
    args.out = want.data();
    args.rows = quantized ? widened.data() : nullptr;
    MOE_CHECK(moe::cuda::test::oracle(args));
    MOE_CHECK(cudaDeviceSynchronize());

    std::vector<bool> hit(shape_.experts);
    for (const int32_t id : ids.host()) hit[id] = true;
    *distinct = static_cast<double>(std::count(hit.begin(), hit.end(), true));
    const std::vector<double> reference = want.host();
    double error = 0, norm = 0;
    for (int64_t s = 0; s < count; ++s) {
      const auto row = out.host((i * tokens + samples[s]) * shape_.hidden, shape_.hidden);
      for (int64_t c = 0; c < shape_.hidden; ++c) {
        const double r = reference[s * shape_.hidden + c], d = __bfloat162float(row[c]) - r;
        error += d * d;
        norm += r * r;
      }
    }
    return std::sqrt(error / norm);
  }

  void report(int64_t tokens, double time, double distinct, double error, double alike,
              unsigned long long different, const Peers& peers) const {
    const double element = fp8_ ? 1 + 4.0 / (128 * 128) : 2;
    // Expected number of distinct experts, as the peers' figures use.
    const double expected =
        shape_.experts * (1 - std::pow(1 - double(shape_.top_k) / shape_.experts, tokens));
    const double bytes = expected * 3 * shape_.hidden * shape_.intermediate * element +
                         tokens * (4.0 * shape_.hidden + 4.0 * shape_.experts);
    const double flops = 6.0 * tokens * shape_.top_k * shape_.hidden * shape_.intermediate;
    const double floor =
        std::max(bytes / limits_.bandwidth, flops / (fp8_ ? limits_.fp8 : limits_.bf16));
    const auto peer = peers.find({shape_.name, tokens});
    std::printf("%-8s %5lld %5.0f %10.1f %10.1f %4.0f%% ", shape_.name,
                static_cast<long long>(tokens), distinct, time * 1e6, floor * 1e6,
                100 * floor / time);
    if (peer != peers.end())
      std::printf("%10.1f %5.2f %-18s", peer->second.first, peer->second.first / (time * 1e6),
                  peer->second.second.c_str());
    if (fp8_) std::printf(" %.1e", alike);
    std::printf(" %.1e %s %.0f TF %.2f TB/s\n", error, different ? "BITS DIFFER" : "same",
                flops / time * 1e-12, bytes / time * 1e-12);
    std::fflush(stdout);
  }

  Shape shape_;
  Limits limits_;
  bool fp8_;
  ExpertPool pool_;
  Buffer<std::byte> pool_bytes_;
  Buffer<int32_t> slots_;
  PoolMaps maps_;
  int multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    if (key == "--quick") {
      options.quick = true;
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    if (key == "--shapes") options.shapes = split(value);
    if (key == "--size") options.size = std::stoi(value);
    if (key == "--gather") options.gather = std::stoi(value);
    if (key == "--decode") options.decode = std::stoi(value);
    if (key == "--few-tiles") options.few_tiles = std::stoi(value);
    if (key == "--peers") options.peers = value;
    if (key == "--format") options.fp8 = value == "fp8";
    if (key == "--rows" && value == "exact") options.rows = moe::RowPrecision::exact;
    if (key == "--rows" && value == "fast") options.rows = moe::RowPrecision::fast;
    if (key == "--tokens") {
      options.tokens.clear();
      for (const std::string& part : split(value)) options.tokens.push_back(std::stoll(part));
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  if (!moe::cuda::test::have_gpu()) {
    std::printf("no CUDA device here\n");
    return 77;
  }
  Limits limits = {4.64e12, 790e12, 1505e12};
  if (!options.quick) {
    const double bandwidth = moe::bench::read_bandwidth();
    const double bf16 = moe::bench::matrix_rate(false), fp8 = moe::bench::matrix_rate(true);
    std::printf(
        "measured: read %.2f TB/s, cuBLASLt 8192^3 bf16 %.0f, fp8 %.0f TFLOP/s (0: not measured)\n",
        bandwidth * 1e-12, bf16 * 1e-12, fp8 * 1e-12);
  }
  std::printf("roofline with %.2f TB/s, bf16 %.0f, fp8 %.0f TFLOP/s\n", limits.bandwidth * 1e-12,
              limits.bf16 * 1e-12, limits.fp8 * 1e-12);
  std::printf("%-8s %5s %5s %10s %10s %5s %10s %5s %-18s %s\n", "shape", "M", "hit", "us",
              "roof us", "", "peer us", "x", "peer", "error");
  const Peers peers = read_peers(options.peers, options.fp8);
  for (const Shape& shape : kShapes) {
    if (!options.shapes.empty() &&
        std::find(options.shapes.begin(), options.shapes.end(), shape.name) == options.shapes.end())
      continue;
    ShapeBench bench(shape, options.fp8, limits);
    for (const int64_t tokens : options.tokens) bench.run(tokens, peers, options);
  }
  return 0;
}
