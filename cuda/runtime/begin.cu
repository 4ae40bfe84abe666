#include "runtime/enter.cuh"
#include "runtime/launch.cuh"
#include "runtime/note.h"
#include "runtime/ptx.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 512;

// A kernel of one block: where nothing else is the first of a forward.
__global__ void __launch_bounds__(kThreads) begin(const BeginArgs args) {
  __shared__ Beginning s;
  begin_forward(args, &s);
  is_last_block(args.counters);
}

// The next kernel may not start meanwhile, since it may enter.
__global__ void leave(EpochCounters* counters) {
  wait_for_previous_kernel();
  *static_cast<volatile uint64_t*>(&counters->exited) = counters->entered;
}

}  // namespace

cudaError_t launch_begin(const BeginArgs& args, cudaStream_t stream) {
  return launch(begin, 1, kThreads, 0, stream, args);
}

cudaError_t launch_leave(EpochCounters* counters, cudaStream_t stream) {
  return launch(leave, 1, 1, 0, stream, counters);
}

}  // namespace moe::cuda
