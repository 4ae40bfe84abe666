// Many ranges of files in one go: past the page cache where the file system allows (O_DIRECT), in
// flight together where the kernel allows (io_uring), one after the other by pread(2) otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/ring.h"
#include "moe/status.h"

namespace moe {

// Bytes [offset, offset + bytes) of a file.
struct FileRange {
  const File* file = nullptr;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  std::string_view tensor;  // for messages
};

// Safe for concurrent use; every concurrent caller gets a ring and memory of its own, kept for the
// next one.
class BatchReader {
 public:
  using MakeRing = std::unique_ptr<Ring> (*)(unsigned depth) noexcept;

  explicit BatchReader(bool direct, MakeRing ring = make_ring) : direct_(direct), ring_(ring) {}

 private:
  // What one caller at a time uses.
  struct Lane {
    struct Free {
      void operator()(std::byte* memory) const;
    };
    std::byte* at_least(uint64_t bytes);

    std::unique_ptr<Ring> ring;
    std::unique_ptr<std::byte, Free> memory;
    uint64_t capacity = 0;
    std::vector<RingRead> pieces;
    struct Place {
      uint64_t start;  // in memory
      size_t pieces;
    };
    std::vector<Place> places;  // of each range
  };

 public:
  // The bytes that were read; lent until it is destroyed, before the reader is.
  class Loan {
   public:
    Loan(Loan&&) = default;
    ~Loan();
    const std::byte* data(size_t range) const {
      return lane_->memory.get() + lane_->places[range].start;
    }

   private:
    friend BatchReader;
    Loan(BatchReader& reader, std::unique_ptr<Lane> lane)
        : reader_(reader), lane_(std::move(lane)) {}
    BatchReader& reader_;
    std::unique_ptr<Lane> lane_;
  };

  // All of `ranges`, each in one piece of memory. Otherwise the Status of read_exactly() for the
  // first range that failed, with its tensor; it may be tried again. Throws std::bad_alloc.
  Result<Loan> read(std::span<const FileRange> ranges);

 private:
  std::unique_ptr<Lane> borrow();
  void give_back(std::unique_ptr<Lane> lane) noexcept;

  bool direct_;
  MakeRing ring_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> idle_;
};

}  // namespace moe
