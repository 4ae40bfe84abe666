// How much one token slows down when another process keeps one of our two cores busy.
//   taskset -c A,B cpu_busy_bench [shape] [format] [rounds]
// Quiet and busy rounds take turns; in a busy one a child process spins on the second core that we
// may use. A round is 64 forwards, one after the other, of one token each through cold weights.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cpu_bench.h"

using namespace moe;
using namespace moe::bench;

namespace {

constexpr int kForwards = 64;

// Another process that never sleeps, on one core.
class Hog {
 public:
  explicit Hog(int core) : child_(fork()) {
    if (child_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
    for (;;) asm volatile("");
  }
  ~Hog() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }

 private:
  pid_t child_;
};

// The `index`-th core of this process, or -1.
int core_of(int index) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return -1;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set) && index-- == 0) return core;
  return -1;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void print(const char* what, std::vector<double> quiet, std::vector<double> busy) {
  std::printf("%-8s mean %8.1f -> %8.1f us (%.2fx), median %8.1f -> %8.1f us (%.2fx)\n", what,
              mean(quiet), mean(busy), mean(busy) / mean(quiet), median(quiet), median(busy),
              median(busy) / median(quiet));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view only = argc > 1 ? argv[1] : "olmoe";
  const std::string_view format = argc > 2 ? argv[2] : "bf16";
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
  const Shape* shape = find_shape(only);
  const int core = core_of(1);
  auto executor = make_executor(2);
  if (!shape || core < 0 || !executor.ok()) return 2;
  const ExpertSpec spec = expert_spec(*shape, format);
  const auto gemm = make_expert_gemm({}, spec);
  if (!gemm.ok()) return 1;
  const size_t slot = (*gemm)->layout(spec).bytes;
  const auto layers = std::max<size_t>(1, kColdBytes / (slot * shape->experts));
  const Mapping memory(slot * shape->experts * layers, true);
  fill_small(memory);

  std::vector<double> times[2], reads[2];
  for (int round = 0; round < 2 * rounds; ++round) {
    const bool is_busy = round % 2 == 1;
    const std::unique_ptr<Hog> hog = is_busy ? std::make_unique<Hog>(core) : nullptr;
    usleep(20'000);
    for (int i = 0; i < 16; ++i) reads[is_busy].push_back(1e3 / read_gbs(**executor, memory));
    for (int i = 0; i < kForwards; ++i) {
      Batch batch = make_batch(*shape, 1, i, DType::f32);
      for (ExpertGroup& group : batch.groups)
        group.slot = memory.data() + (i % layers * shape->experts + group.expert) * slot;
      const Scratch scratch(
          (*gemm)->workspace_bytes(spec, batch.pairs.size(), batch.groups.size(), 2));
      const ExpertBatch job = job_of(batch, *shape, 1, DType::f32, **executor, scratch);
      const double begin = seconds();
      if (!(*gemm)->run(spec, job).ok()) return 1;
      times[is_busy].push_back(1e6 * (seconds() - begin));
    }
  }
  std::printf("%s %s, core %d kept busy\n", shape->name, format.data(), core);
  print("M=1", times[0], times[1]);
  print("1 MB read", reads[0], reads[1]);
}
