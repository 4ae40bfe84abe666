// io_uring by liburing.
#include "core/ring.h"

#include <cerrno>
#include <new>

#include <liburing.h>
#include <unistd.h>

namespace moe {
namespace {

class UringRing final : public Ring {
 public:
  ~UringRing() override {
    if (open_) io_uring_queue_exit(&ring_);
  }
  bool open(unsigned depth) {
    depth_ = depth;
    owner_ = ::getpid();
    return open_ = io_uring_queue_init(depth, &ring_, 0) == 0;
  }

  void read(std::span<RingRead> reads) noexcept override {
    if (open_ && owner_ != ::getpid()) renew();
    for (RingRead& read : reads) read.got = -EAGAIN;
    size_t next = 0, done = 0;
    while (open_ && done < reads.size()) {
      for (; next < reads.size() && next - done < depth_; ++next) prepare(reads[next], next);
      const int submitted = io_uring_submit_and_wait(&ring_, 1);
      done += reap(reads);
      if (submitted < 0 && submitted != -EINTR) return start_over(reads, next - done);
    }
  }

 private:
  void prepare(RingRead& read, size_t index) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);  // never null: at most depth_ are out
    io_uring_prep_read(entry, read.descriptor, read.to, read.bytes, read.offset);
    io_uring_sqe_set_data(entry, reinterpret_cast<void*>(index));
  }

  size_t reap(std::span<RingRead> reads) {
    io_uring_cqe* entry;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&ring_, head, entry) {
      reads[reinterpret_cast<size_t>(io_uring_cqe_get_data(entry))].got = entry->res;
      ++count;
    }
    io_uring_cq_advance(&ring_, count);
    return count;
  }

  // The kernel takes no more: waits for what is in flight of `out` reads, and gives the ring up for
  // a fresh one, which forgets what was never submitted.
  void start_over(std::span<RingRead> reads, size_t out) {
    while (out > io_uring_sq_ready(&ring_)) {
      io_uring_cqe* entry;
      (void)io_uring_wait_cqe(&ring_, &entry);
      out -= reap(reads);
    }
    renew();
  }

  // After a fork the queues are shared with the parent, whose counts of them are its own: a child
  // that used them would take the parent's reads for its own.
  void renew() {
    io_uring_queue_exit(&ring_);
    (void)open(depth_);
  }

  io_uring ring_;
  pid_t owner_ = 0;
  unsigned depth_ = 0;
  bool open_ = false;
};

}  // namespace

std::unique_ptr<Ring> make_ring(unsigned depth) noexcept {
  std::unique_ptr<UringRing> ring(new (std::nothrow) UringRing);
  if (!ring || !ring->open(depth)) return nullptr;
  return ring;
}

}  // namespace moe
