// Reads that the kernel has in flight together (io_uring). ring_uring.cc has liburing; no_ring.cc
// is linked without it. A kernel may refuse rings too, as many containers do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace moe {

struct RingRead {
  int descriptor = -1;
  uint64_t offset = 0;
  uint32_t bytes = 0;
  std::byte* to = nullptr;
  int64_t got = 0;  // out: bytes read, fewer than asked if need be; or -errno
};

// For one thread at a time.
class Ring {
 public:
  virtual ~Ring() = default;

  // Does all of `reads`, at most the ring's depth at once, and returns when none is in flight.
  virtual void read(std::span<RingRead> reads) noexcept = 0;
};

// A ring that keeps `depth` reads in flight; null where there is none.
std::unique_ptr<Ring> make_ring(unsigned depth) noexcept;

}  // namespace moe
