// parallel_for(executor, n, body): body(index, worker) for every index, without allocating.
#pragma once

#include <cstdint>
#include <type_traits>

#include "moe/host.h"

namespace moe {

// Null executor: the calling thread, worker 0.
template <class Body>
void parallel_for(Executor* executor, int64_t count, Body&& body) {
  if (!executor) {
    for (int64_t index = 0; index < count; ++index) body(index, 0);
    return;
  }
  using Plain = std::remove_reference_t<Body>;
  executor->run(
      count,
      [](void* argument, int64_t index, int worker) {
        (*static_cast<Plain*>(argument))(index, worker);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

inline int concurrency_of(const Executor* executor) {
  return executor ? executor->concurrency() : 1;
}

}  // namespace moe
