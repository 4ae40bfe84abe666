// Experts that do not fit into memory, under one cap for everybody (a memory cgroup):
//   store     moe::Model with expert_memory, reading the checkpoint
//   mmap      the same kernels on a mapped file of slots that are packed already
//   willneed  that, with MADV_WILLNEED on the experts that a row was routed to
// Each round runs all three, one process each, with the page cache of their files dropped before.
// The cap is expert_memory plus kOverhead; page cache counts against it. What mmap is spared here:
// packing, digests, and the weighted sum.
//
//   paging_bench run CHECKPOINT TRACE.csv[.gz] TOKENS ROUNDS      times in one line each
//   paging_bench read CHECKPOINT THREADS SECONDS                  whole experts, at random; for fio
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "moe/model.h"
#include "moe/trace.h"

namespace {

using namespace moe;
namespace fs = std::filesystem;

constexpr size_t kOverhead = size_t{128} << 20;  // of the process, beside experts
constexpr size_t kPage = 4096;
constexpr int64_t kWarmUp = 64;  // tokens before the clock starts

[[noreturn]] void fail(std::string_view what) {
  std::fprintf(stderr, "paging_bench: %.*s\n", static_cast<int>(what.size()), what.data());
  std::_Exit(1);
}
void check(const Status& status) {
  if (!status.ok()) fail(status.message());
}
template <class T>
T take(Result<T> result) {
  check(result.status());
  return std::move(*result);
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A memory cgroup, of either version; removed at the end.
class Cap {
 public:
  explicit Cap(size_t bytes) {
    const bool v1 = fs::exists("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    path_ = std::string(v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup") + "/moe-paging-bench-" +
            std::to_string(::getpid());
    std::error_code failed;
    fs::create_directory(path_, failed);
    std::ofstream limit(path_ + (v1 ? "/memory.limit_in_bytes" : "/memory.max"));
    if (failed || !(limit << bytes << std::flush))
      fail(
          "no memory cgroup can be made here, so there would be no cap: run as root where there "
          "are cgroups");
  }
  ~Cap() { ::rmdir(path_.c_str()); }
  void enter() const {
    if (!(std::ofstream(path_ + "/cgroup.procs") << ::getpid() << std::flush)) fail("cgroup.procs");
  }

 private:
  std::string path_;
};

struct Outcome {
  double tokens_per_second = 0;
  PagingStats paging;
};

struct Setup {
  const Checkpoint& checkpoint;
  const RoutingTrace& trace;
  int64_t tokens;
  std::string packed;  // file of slots, (layers, experts)
  std::unique_ptr<ExpertGemm> gemm;
  size_t stride = 0;

  const LayerSpec& layer(size_t i) const { return checkpoint.layers()[i]; }
  size_t layers() const { return checkpoint.layers().size(); }
  const int32_t* ids(int64_t token, size_t layer) const {
    const size_t row = static_cast<size_t>(token) * layers() + layer;
    return trace.experts.data() + row % trace.rows.size() * static_cast<size_t>(trace.top_k);
  }
  size_t experts() const { return static_cast<size_t>(layer(0).router.num_experts); }
  size_t packed_bytes() const { return stride * layers() * experts(); }
  size_t memory() const { return packed_bytes() / 4; }
};

std::vector<float> row_of(const Setup& setup) {
  std::mt19937_64 random(1);
  std::vector<float> row(static_cast<size_t>(setup.layer(0).hidden()));
  for (float& x : row) x = std::normal_distribution<float>()(random);
  return row;
}

// Runs forward(token, layer) for all tokens.
template <class Forward>
double tokens_per_second(const Setup& setup, Forward forward) {
  double start = seconds();
  for (int64_t token = -kWarmUp; token < setup.tokens; ++token) {
    if (token == 0) start = seconds();
    for (size_t i = 0; i < setup.layers(); ++i) forward(token + kWarmUp, i);
  }
  return static_cast<double>(setup.tokens) / (seconds() - start);
}

Outcome run_store(const Setup& setup) {
  Model model = take(Model::create(setup.checkpoint, {.expert_memory = setup.memory()}));
  Context context = take(Context::create(model));
  const std::vector<float> row = row_of(setup);
  std::vector<float> out(row.size());
  const Dims shape = {1, static_cast<int64_t>(row.size())};
  const int32_t top_k = setup.trace.top_k;
  std::vector<int32_t> ids(static_cast<size_t>(top_k));
  std::vector<float> weights(ids.size(), 1.0f / static_cast<float>(top_k));
  const double speed = tokens_per_second(setup, [&](int64_t token, size_t i) {
    std::copy_n(setup.ids(token, i), top_k, ids.begin());
    const Routing routing{1, top_k, ids.data(), weights.data()};
    check(model.forward(context, setup.layer(i).layer, {row.data(), DType::f32, shape},
                        {out.data(), DType::f32, shape}, {.top_k = top_k, .routing_in = &routing}));
  });
  return {speed, model.store().stats().paging};
}

Outcome run_mmap(const Setup& setup, bool will_need) {
  const int file = ::open(setup.packed.c_str(), O_RDONLY | O_CLOEXEC);
  auto* slots = static_cast<std::byte*>(
      ::mmap(nullptr, setup.packed_bytes(), PROT_READ, MAP_SHARED, file, 0));
  if (slots == MAP_FAILED) fail("mmap");
  const auto executor = take(make_executor());
  const ExpertSpec& spec = setup.layer(0).expert;
  const int32_t top_k = setup.trace.top_k;
  const std::vector<float> row = row_of(setup);
  std::vector<float> out(row.size() * static_cast<size_t>(top_k));
  const size_t scratch = setup.gemm->workspace_bytes(spec, top_k, top_k, executor->concurrency());
  std::vector<std::byte> workspace(scratch + 64);
  auto* aligned =
      reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64);
  std::vector<ExpertGroup> groups(static_cast<size_t>(top_k));
  std::vector<int64_t> pairs(groups.size());
  const double speed = tokens_per_second(setup, [&](int64_t token, size_t i) {
    const int32_t* ids = setup.ids(token, i);
    for (int64_t k = 0; k < top_k; ++k) {
      const size_t expert = i * setup.experts() + static_cast<size_t>(ids[k]);
      groups[static_cast<size_t>(k)] = {slots + expert * setup.stride, ids[k], k, 1};
    }
    std::sort(groups.begin(), groups.end(),
              [](const ExpertGroup& a, const ExpertGroup& b) { return a.expert < b.expert; });
    for (size_t k = 0; k < groups.size(); ++k) {
      pairs[k] = groups[k].first;
      groups[k].first = static_cast<int64_t>(k);
      if (will_need) ::madvise(const_cast<std::byte*>(groups[k].slot), setup.stride, MADV_WILLNEED);
    }
    ExpertBatch batch;
    batch.hidden = {row.data(), DType::f32, {1, static_cast<int64_t>(row.size())}};
    batch.top_k = top_k;
    batch.groups = groups;
    batch.pairs = pairs.data();
    batch.out = out.data();
    batch.executor = executor.get();
    batch.workspace = {aligned, scratch};
    check(setup.gemm->run(spec, batch));
  });
  return {speed, {}};
}

void drop_cache(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  (void)::fsync(file);
  (void)::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ::close(file);
}

// `mode` in a process of its own, under the cap.
Outcome run_capped(const Setup& setup, int mode) {
  drop_cache(setup.packed);
  for (const auto& entry : fs::directory_iterator(std::string(setup.checkpoint.directory())))
    drop_cache(entry.path());
  const Cap cap(setup.memory() + kOverhead);
  int ends[2];
  if (::pipe(ends) != 0) fail("pipe");
  const pid_t child = ::fork();
  if (child == 0) {
    cap.enter();
    const Outcome outcome = mode == 0 ? run_store(setup) : run_mmap(setup, mode == 2);
    std::_Exit(::write(ends[1], &outcome, sizeof outcome) == sizeof outcome ? 0 : 1);
  }
  ::close(ends[1]);
  Outcome outcome;
  const bool got = ::read(ends[0], &outcome, sizeof outcome) == sizeof outcome;
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  if (!got) fail("a run died; was it killed for memory?");
  return outcome;
}

void write_packed(Setup& setup) {
  setup.gemm = take(make_expert_gemm({}, setup.layer(0).expert));
  const size_t bytes = setup.gemm->layout(setup.layer(0).expert).bytes;
  setup.stride = (bytes + kPage - 1) / kPage * kPage;
  if (fs::exists(setup.packed) && fs::file_size(setup.packed) == setup.packed_bytes()) return;
  std::ofstream file(setup.packed, std::ios::binary);
  std::unique_ptr<std::byte, decltype(&std::free)> slot(
      static_cast<std::byte*>(std::aligned_alloc(kPage, setup.stride)), &std::free);
  std::memset(slot.get(), 0, setup.stride);
  for (const LayerSpec& layer : setup.checkpoint.layers())
    for (int32_t e = 0; e < layer.router.num_experts; ++e) {
      check(setup.gemm->pack(layer.expert, setup.checkpoint, layer.layer, e, slot.get()));
      file.write(reinterpret_cast<char*>(slot.get()), static_cast<std::streamsize>(setup.stride));
    }
  if (!file.flush()) fail("cannot write " + setup.packed);
}

int run(const char* directory, const char* trace_file, int64_t tokens, int rounds) {
  const Checkpoint checkpoint = take(Checkpoint::open(directory));
  const RoutingTrace trace = take(read_trace(trace_file));
  Setup setup{checkpoint, trace, tokens, std::string(directory) + ".packed", nullptr};
  if (trace.layers.size() != setup.layers() ||
      trace.layers[0].experts != setup.layer(0).router.num_experts)
    fail("the trace and the checkpoint have other layers or experts");
  write_packed(setup);
  std::printf(
      "%zu layers of %zu experts of %.2f MB, %.0f MB in all; expert_memory %.0f MB, cap "
      "%.0f MB; top %d, %lld tokens\n",
      setup.layers(), setup.experts(), static_cast<double>(setup.stride) / 1e6,
      static_cast<double>(setup.packed_bytes()) / 1e6, static_cast<double>(setup.memory()) / 1e6,
      static_cast<double>(setup.memory() + kOverhead) / 1e6, trace.top_k,
      static_cast<long long>(tokens));
  constexpr const char* kNames[] = {"store", "mmap", "willneed"};
  std::vector<double> speeds[3];
  for (int round = 0; round < rounds; ++round)
    for (int mode = 0; mode < 3; ++mode) {
      const Outcome outcome = run_capped(setup, mode);
      speeds[mode].push_back(outcome.tokens_per_second);
      std::printf("round %d  %-9s %8.3f tokens/s", round, kNames[mode], outcome.tokens_per_second);
      if (mode == 0)
        std::printf("  hits %lld misses %lld read %.0f MB stalled %.1f s",
                    static_cast<long long>(outcome.paging.hits),
                    static_cast<long long>(outcome.paging.misses),
                    static_cast<double>(outcome.paging.bytes_loaded) / 1e6,
                    static_cast<double>(outcome.paging.stall_ns) / 1e9);
      std::printf("\n");
      std::fflush(stdout);
    }
  const double store = median(speeds[0]), plain = median(speeds[1]), hinted = median(speeds[2]);
  std::printf("medians: store %.3f, mmap %.3f (store is %.2fx), willneed %.3f (%.2fx)\n", store,
              plain, store / plain, hinted, store / hinted);
  return 0;
}

int read(const char* directory, int threads, double limit) {
  const Checkpoint checkpoint = take(Checkpoint::open(directory));
  const LayerSpec& layer = checkpoint.layers()[0];
  const WeightKind kinds[] = {WeightKind::gate, WeightKind::up, WeightKind::down};
  size_t expert_bytes = 0;
  std::vector<TensorShape> shapes;
  for (const WeightKind kind : kinds) {
    shapes.push_back(take(checkpoint.describe({layer.layer, kind, 0})));
    expert_bytes +=
        static_cast<size_t>(shapes.back().shape.elements() * bits_of(shapes.back().dtype) / 8);
  }
  std::atomic<int64_t> experts{0};
  const double start = seconds();
  std::vector<std::thread> readers;
  for (int t = 0; t < threads; ++t)
    readers.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<uint64_t>(t) + 1);
      std::vector<std::vector<std::byte>> memory(3, std::vector<std::byte>(expert_bytes));
      while (seconds() - start < limit) {
        const LayerSpec& chosen = checkpoint.layers()[random() % checkpoint.layers().size()];
        const auto e =
            static_cast<int32_t>(random() % static_cast<uint64_t>(chosen.router.num_experts));
        std::vector<WeightRead> reads;
        for (size_t k = 0; k < 3; ++k)
          reads.push_back({{chosen.layer, kinds[k], e},
                           MutableTensorView(memory[k].data(), shapes[k].dtype, shapes[k].shape)});
        check(checkpoint.read_all(reads));
        ++experts;
      }
    });
  for (std::thread& reader : readers) reader.join();
  const double took = seconds() - start;
  std::printf("%d readers, blocks of %zu bytes: %.1f MB/s\n", threads, expert_bytes,
              static_cast<double>(experts) * static_cast<double>(expert_bytes) / took / 1e6);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 6 && std::strcmp(argv[1], "run") == 0)
    return run(argv[2], argv[3], std::atoll(argv[4]), std::atoi(argv[5]));
  if (argc == 5 && std::strcmp(argv[1], "read") == 0)
    return read(argv[2], std::atoi(argv[3]), std::atof(argv[4]));
  std::fprintf(stderr,
               "usage: paging_bench run CHECKPOINT TRACE TOKENS ROUNDS\n"
               "       paging_bench read CHECKPOINT THREADS SECONDS\n");
  return 2;
}
