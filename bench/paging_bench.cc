// Experts that do not fit into memory, under one cap for everybody (a memory cgroup each):
//   store     moe::Model with expert_memory, reading the checkpoint
//   mmap      the same kernels on a mapped file of slots that are packed already
//   willneed  that, with MADV_WILLNEED on the experts that a row was routed to
// Each is a process of its own. They take turns of a few tokens, in changing order, so that
// whatever else the machine does hits all alike; while one computes the others sleep. The cap is
// expert_memory plus kOverhead; page cache counts against it.
//
//   paging_bench run CHECKPOINT TRACE.csv[.gz] TOKENS ROUNDS [POLICY]   TOKENS of each in each
//   round paging_bench store CHECKPOINT TRACE.csv[.gz] TOKENS [POLICY]        the store alone, no
//   cap paging_bench read CHECKPOINT THREADS SECONDS                        whole experts; for fio
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "paging_runners.h"

namespace {

using namespace moe;
using namespace moe::paging_bench;
namespace fs = std::filesystem;

constexpr size_t kOverhead = size_t{128} << 20;  // of the process, beside experts
constexpr size_t kPage = 4096;
constexpr int64_t kWarmUp = 64;  // tokens before the clock starts

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
    static int made = 0;
    const bool v1 = fs::exists("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    path_ = std::string(v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup") + "/moe-paging-bench-" +
            std::to_string(::getpid()) + "-" + std::to_string(++made);
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

// What one turn took.
struct Turn {
  double seconds = 0, cpu_seconds = 0, read_mb = 0;
  int64_t misses = 0, hits = 0, stall_ns = 0;
};

double cpu_seconds() {
  rusage used;
  ::getrusage(RUSAGE_SELF, &used);
  const auto in_seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return in_seconds(used.ru_utime) + in_seconds(used.ru_stime);
}

// From the disk, whoever asked: what the block layer was given for this process.
double read_mb() {
  std::ifstream io("/proc/self/io");
  std::string key;
  for (double value; io >> key >> value;)
    if (key == "read_bytes:") return value / 1e6;
  return 0;
}

// Computes the next `count` tokens of the trace from `first` on.
Turn compute_turn(const Setup& setup, Runner& runner, int64_t first, int64_t count) {
  const PagingStats paging = runner.paging();
  const double start = seconds(), cpu = cpu_seconds(), read = read_mb();
  for (int64_t token = first; token < first + count; ++token)
    for (size_t i = 0; i < setup.layers(); ++i) runner.forward(token, i);
  const PagingStats now = runner.paging();
  return {seconds() - start,          cpu_seconds() - cpu,    read_mb() - read,
          now.misses - paging.misses, now.hits - paging.hits, now.stall_ns - paging.stall_ns};
}

enum Mode { kStore, kMmap, kWillNeed };
constexpr const char* kNames[] = {"store", "mmap", "willneed"};

std::unique_ptr<Runner> make_runner(const Setup& setup, Mode mode) {
  if (mode == kStore) return std::make_unique<StoreRunner>(setup);
  return std::make_unique<MapRunner>(setup, mode == kWillNeed);
}

// A runner in a process of its own, under the cap.
class Worker {
 public:
  Worker(const Setup& setup, Mode mode) : cap_(setup.memory() + kOverhead) {
    int to[2], from[2];
    if (::pipe2(to, O_CLOEXEC) != 0 || ::pipe2(from, O_CLOEXEC) != 0) fail("pipe");
    child_ = ::fork();
    if (child_ == 0) {
      ::close(to[1]);
      cap_.enter();
      serve(setup, mode, to[0], from[1]);
    }
    ::close(to[0]);
    ::close(from[1]);
    to_ = to[1];
    from_ = from[0];
  }
  ~Worker() {
    ::close(to_);
    ::close(from_);
    ::waitpid(child_, nullptr, 0);
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  Turn compute(int64_t count) {
    Turn turn;
    if (::write(to_, &count, sizeof count) != sizeof count ||
        ::read(from_, &turn, sizeof turn) != sizeof turn)
      fail("a run died; was it killed for memory?");
    return turn;
  }

 private:
  [[noreturn]] static void serve(const Setup& setup, Mode mode, int in, int out) {
    {
      const auto runner = make_runner(setup, mode);
      int64_t next = 0;
      for (int64_t count; ::read(in, &count, sizeof count) == sizeof count; next += count) {
        const Turn turn = compute_turn(setup, *runner, next, count);
        if (::write(out, &turn, sizeof turn) != sizeof turn) break;
      }
    }
    std::_Exit(0);
  }

  Cap cap_;
  pid_t child_ = -1;
  int to_ = -1, from_ = -1;
};

void drop_cache(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  (void)::fsync(file);
  (void)::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ::close(file);
}

void write_packed(const Setup& setup) {
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

Setup set_up(const Checkpoint& checkpoint, const RoutingTrace& trace, const char* policy) {
  Setup setup{checkpoint, trace, policy ? policy : "",
              std::string(checkpoint.directory()) + ".packed", nullptr};
  if (trace.layers.size() != setup.layers() ||
      trace.layers[0].experts != setup.layer(0).router.num_experts)
    fail("the trace and the checkpoint have other layers or experts");
  setup.gemm = take(make_expert_gemm({}, setup.layer(0).expert));
  const size_t bytes = setup.gemm->layout(setup.layer(0).expert).bytes;
  setup.stride = (bytes + kPage - 1) / kPage * kPage;
  return setup;
}

void print(int round, Mode mode, const Turn& turn, int64_t tokens) {
  const double each = 1e3 / static_cast<double>(tokens);
  std::printf("round %2d  %-9s %7.3f tokens/s; ms a token: %6.1f, CPU %6.1f; MB a token %6.1f",
              round, kNames[mode], static_cast<double>(tokens) / turn.seconds, turn.seconds * each,
              turn.cpu_seconds * each, turn.read_mb / static_cast<double>(tokens));
  if (mode == kStore)
    std::printf("; misses a token %.1f, stalled %.1f ms",
                static_cast<double>(turn.misses) * each / 1e3,
                static_cast<double>(turn.stall_ns) * 1e-9 * each);
  std::printf("\n");
  std::fflush(stdout);
}

// The store and `other` in turns. Two mappings of one file would share their pages, so only one
// runs at a time.
void compare(const Setup& setup, Mode other, int64_t tokens, int rounds) {
  drop_cache(setup.packed);
  for (const auto& entry : fs::directory_iterator(std::string(setup.checkpoint.directory())))
    drop_cache(entry.path());
  Worker store(setup, kStore), mapping(setup, other);
  (void)store.compute(kWarmUp);
  (void)mapping.compute(kWarmUp);
  std::vector<double> ratios;
  for (int round = 0; round < rounds; ++round) {
    double store_took = 0, other_took = 0;
    for (const bool first : {true, false}) {
      const bool stores = first == (round % 2 == 0);
      const Turn turn = (stores ? store : mapping).compute(tokens);
      (stores ? store_took : other_took) = turn.seconds;
      print(round, stores ? kStore : other, turn, tokens);
    }
    ratios.push_back(other_took / store_took);
  }
  std::printf("store / %s: median %.2fx, worst round %.2fx\n", kNames[other], median(ratios),
              *std::min_element(ratios.begin(), ratios.end()));
}

int run(const char* directory, const char* trace_file, int64_t tokens, int rounds,
        const char* policy) {
  const Checkpoint checkpoint = take(Checkpoint::open(directory));
  const RoutingTrace trace = take(read_trace(trace_file));
  const Setup setup = set_up(checkpoint, trace, policy);
  write_packed(setup);
  std::printf(
      "%zu layers of %zu experts of %.2f MB, %.0f MB in all; expert_memory %.0f MB, cap "
      "%.0f MB; top %d, %lld tokens a round after %lld\n",
      setup.layers(), setup.experts(), static_cast<double>(setup.stride) / 1e6,
      static_cast<double>(setup.packed_bytes()) / 1e6, static_cast<double>(setup.memory()) / 1e6,
      static_cast<double>(setup.memory() + kOverhead) / 1e6, trace.top_k,
      static_cast<long long>(tokens), static_cast<long long>(kWarmUp));
  for (const Mode other : {kWillNeed, kMmap}) compare(setup, other, tokens, rounds);
  return 0;
}

int run_store(const char* directory, const char* trace_file, int64_t tokens, const char* policy) {
  const Checkpoint checkpoint = take(Checkpoint::open(directory));
  const RoutingTrace trace = take(read_trace(trace_file));
  const Setup setup = set_up(checkpoint, trace, policy);
  StoreRunner runner(setup);
  (void)compute_turn(setup, runner, 0, kWarmUp);
  print(0, kStore, compute_turn(setup, runner, kWarmUp, tokens), tokens);
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
  const auto is = [&](const char* name, int least, int most) {
    return argc >= least && argc <= most && std::strcmp(argv[1], name) == 0;
  };
  if (is("run", 6, 7))
    return run(argv[2], argv[3], std::atoll(argv[4]), std::atoi(argv[5]), argv[6]);
  if (is("store", 5, 6)) return run_store(argv[2], argv[3], std::atoll(argv[4]), argv[5]);
  if (is("read", 5, 5)) return read(argv[2], std::atoi(argv[3]), std::atof(argv[4]));
  std::fprintf(stderr,
               "usage: paging_bench run CHECKPOINT TRACE TOKENS ROUNDS [POLICY]\n"
               "       paging_bench store CHECKPOINT TRACE TOKENS [POLICY]\n"
               "       paging_bench read CHECKPOINT THREADS SECONDS\n");
  return 2;
}
