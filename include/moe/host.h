// What a host may bring: memory, threads, time, and a place for messages. Null means the library's
// own. All of them are per model; nothing here is global.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "moe/export.h"
#include "moe/status.h"

namespace moe {

// Memory of one kind: pageable host, pinned host, or one device.
// Must be safe for concurrent use and must not throw.
class MOE_API Allocator {
 public:
  virtual ~Allocator();

  // At least `bytes` at a multiple of `alignment` (a power of two), or null if there is none.
  virtual void* allocate(size_t bytes, size_t alignment) noexcept = 0;

  // `bytes` and `alignment` are those of the allocation. Never called with null.
  virtual void deallocate(void* memory, size_t bytes, size_t alignment) noexcept = 0;
};

// Threads to compute on. One executor may serve several models at once.
class MOE_API Executor {
 public:
  virtual ~Executor();

  // One piece of a parallel job: index in [0, tasks), worker in [0, concurrency()). No two pieces
  // of one job run with the same worker at once, so `worker` may index scratch memory.
  using Task = void (*)(void* argument, int64_t index, int worker);

  // Most pieces of one job that may run at once; at least 1, and constant.
  virtual int concurrency() const noexcept = 0;

  // Runs task(argument, i, worker) once for every i, and returns when all have ended. Pieces do not
  // throw and do not call run() of the same executor. Safe for concurrent use: jobs of several
  // callers may interleave, or queue.
  virtual void run(int64_t tasks, Task task, void* argument) noexcept = 0;
};

// Our own: `threads` includes the calling thread; 0 means one per core this process may use.
// Workers spin briefly after a job and then sleep. They keep off the core of the thread that called
// run(), which sets their affinity within what the process had. Destroying it joins them.
MOE_API Result<std::unique_ptr<Executor>> make_executor(int threads = 0);

// Monotonic time. Tests bring one that they move by hand.
class MOE_API Clock {
 public:
  virtual ~Clock();
  virtual int64_t now_ns() const noexcept = 0;  // from any fixed moment; never goes back
};

// How much a message matters.
enum class LogLevel : int32_t { debug, info, warning, error };

// Receives what the library has to say. Called from any thread, never under one of its locks.
class MOE_API LogSink {
 public:
  virtual ~LogSink();
  // `message` is one line and valid during the call.
  virtual void log(LogLevel level, std::string_view message) noexcept = 0;
};

// Called now and then by what takes long; `done` and `total` in bytes. Returning false stops it
// with `cancelled`.
using Progress = bool (*)(void* argument, int64_t done, int64_t total);

// The host's services for one model. The library owns none of them; each must outlive the model.
struct HostServices {
  Allocator* memory = nullptr;         // host memory; null: operator new
  Allocator* device_memory = nullptr;  // null: the device's own allocator
  Executor* executor = nullptr;        // null: make_executor() of our own, per model
  const Clock* clock = nullptr;        // null: std::chrono::steady_clock
  LogSink* log = nullptr;              // null: silent
};

}  // namespace moe
