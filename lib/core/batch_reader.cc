#include "core/batch_reader.h"

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include <unistd.h>

#include "core/error.h"

namespace moe {
namespace {

constexpr unsigned kDepth = 16;                       // pieces of one caller in flight
constexpr uint64_t kPiece = uint64_t{512} << 10;      // small enough that one expert fills a queue
constexpr uint64_t kWhole = uint64_t{1} << 30;        // without a ring: as few calls as may be
constexpr uint64_t kKeptBytes = uint64_t{256} << 20;  // more memory is not kept for the next call

constexpr uint64_t down(uint64_t bytes) { return bytes / kDirectAlignment * kDirectAlignment; }
constexpr uint64_t up(uint64_t bytes) { return down(bytes + kDirectAlignment - 1); }

// One read for each piece of the blocks that hold `range`, whose first byte goes to `to`.
void cut(const FileRange& range, int descriptor, std::byte* to, uint64_t most,
         std::vector<RingRead>* pieces) {
  const uint64_t begin = down(range.offset), end = up(range.offset + range.bytes);
  std::byte* const base = to - (range.offset - begin);
  for (uint64_t at = begin; at < end; at += most)
    pieces->push_back({.descriptor = descriptor,
                       .offset = at,
                       .bytes = static_cast<uint32_t>(std::min(most, end - at)),
                       .to = base + (at - begin)});
}

// Whether `piece` has all that `range` wants of it: the file may end before the last block does.
bool complete(const RingRead& piece, const FileRange& range) {
  const uint64_t wanted = std::min(piece.offset + piece.bytes, range.offset + range.bytes);
  return piece.got >= 0 && piece.offset + static_cast<uint64_t>(piece.got) >= wanted;
}

void pread_one(RingRead& piece) noexcept {
  do {
    const ssize_t got =
        ::pread(piece.descriptor, piece.to, piece.bytes, static_cast<off_t>(piece.offset));
    piece.got = got < 0 ? -errno : got;
  } while (piece.got == -EINTR);
}

}  // namespace

void BatchReader::Lane::Free::operator()(std::byte* bytes) const {
  ::operator delete(bytes, std::align_val_t(kDirectAlignment));
}

std::byte* BatchReader::Lane::at_least(uint64_t bytes) {
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(
        static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kDirectAlignment))));
    capacity = bytes;
  }
  return memory.get();
}

BatchReader::Loan::~Loan() {
  if (lane_) reader_.give_back(std::move(lane_));
}

std::unique_ptr<BatchReader::Lane> BatchReader::borrow() {
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto lane = std::move(idle_.back());
      idle_.pop_back();
      return lane;
    }
  }
  auto lane = std::make_unique<Lane>();
  lane->ring = ring_(kDepth);
  return lane;
}

void BatchReader::give_back(std::unique_ptr<Lane> lane) noexcept {
  if (lane->capacity > kKeptBytes) {
    lane->memory.reset();
    lane->capacity = 0;
  }
  std::lock_guard lock(mutex_);
  try {
    idle_.push_back(std::move(lane));
  } catch (const std::bad_alloc&) {  // the next caller makes its own
  }
}

Result<BatchReader::Loan> BatchReader::read(std::span<const FileRange> ranges) {
  Loan loan(*this, borrow());
  Lane& lane = *loan.lane_;
  const uint64_t most = lane.ring ? kPiece : kWhole;
  lane.places.clear();
  lane.pieces.clear();
  uint64_t bytes = 0;
  for (const FileRange& range : ranges) {
    lane.places.push_back({bytes + range.offset % kDirectAlignment, 0});
    bytes += up(range.offset % kDirectAlignment + range.bytes);
  }
  std::byte* const memory = lane.at_least(std::max(bytes, kDirectAlignment));
  for (size_t r = 0; r < ranges.size(); ++r) {
    int descriptor = ranges[r].file->descriptor(direct_);
    if (descriptor < 0) descriptor = ranges[r].file->descriptor(false);
    const size_t before = lane.pieces.size();
    if (descriptor >= 0)
      cut(ranges[r], descriptor, memory + lane.places[r].start, most, &lane.pieces);
    lane.places[r].pieces = lane.pieces.size() - before;
  }
  if (lane.ring)
    lane.ring->read(lane.pieces);
  else
    std::for_each(lane.pieces.begin(), lane.pieces.end(), pread_one);

  // Whatever went wrong, read_exactly() puts right or knows what to say about.
  auto piece = lane.pieces.begin();
  for (size_t r = 0; r < ranges.size(); ++r) {
    const FileRange& range = ranges[r];
    const auto [start, pieces] = lane.places[r];
    const auto next = piece + static_cast<ptrdiff_t>(pieces);
    const bool whole = pieces > 0 && std::all_of(piece, next, [&](const RingRead& read) {
                         return complete(read, range);
                       });
    const Status status =
        whole ? range.file->check_unchanged()
              : read_exactly(*range.file, range.offset, range.bytes, memory + start);
    if (!status.ok()) return status.at({.file = range.file->path(), .tensor = range.tensor});
    piece = next;
  }
  return loan;
}

}  // namespace moe
