#include "store/staging.h"

#include "runtime/scope.h"

namespace moe::cuda {
namespace {

Status grow(Staging& piece, size_t bytes) {
  if (piece.bytes >= bytes) return {};
  if (piece.host) (void)cudaFreeHost(piece.host);
  piece.host = nullptr;
  piece.bytes = 0;
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) != cudaSuccess) {
    return error(StatusCode::resource_exhausted, {.phase = Phase::load},
                 "no pinned host memory to load experts through: asked {} bytes", bytes);
  }
  piece.host = static_cast<std::byte*>(memory);
  piece.bytes = bytes;
  return {};
}

Result<std::unique_ptr<Staging>> make() {
  auto piece = std::make_unique<Staging>();
  const Place place = {.phase = Phase::load};
  MOE_RETURN_IF_ERROR(check(cudaStreamCreateWithFlags(&piece->stream, cudaStreamNonBlocking),
                            "make a stream", place));
  MOE_RETURN_IF_ERROR(check(cudaMalloc(reinterpret_cast<void**>(&piece->sum), sizeof(uint64_t)),
                            "allocate 8 bytes", place));
  MOE_RETURN_IF_ERROR(check(cudaHostAlloc(reinterpret_cast<void**>(&piece->sum_back),
                                          sizeof(uint64_t), cudaHostAllocDefault),
                            "allocate 8 pinned bytes", place));
  return piece;
}

}  // namespace

Staging::~Staging() {
  const ErrorScope errors;
  if (stream) (void)cudaStreamDestroy(stream);
  if (host) (void)cudaFreeHost(host);
  if (sum) (void)cudaFree(sum);
  if (sum_back) (void)cudaFreeHost(sum_back);
}

Result<std::unique_ptr<Staging>> StagingPool::take(size_t bytes) {
  std::unique_ptr<Staging> piece;
  {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [&] { return !idle_.empty() || made_ < kMost; });
    if (!idle_.empty()) {
      piece = std::move(idle_.back());
      idle_.pop_back();
    } else {
      idle_.reserve(kMost);
      ++made_;
    }
  }
  Status status;
  if (!piece) {
    auto made = make();
    if (made.ok())
      piece = *std::move(made);
    else
      status = made.status();
  }
  if (status.ok()) status = grow(*piece, bytes);
  if (status.ok()) return piece;
  give_back(std::move(piece));
  return status;
}

void StagingPool::give_back(std::unique_ptr<Staging> piece) {
  {
    std::lock_guard lock(mutex_);
    if (piece)
      idle_.push_back(std::move(piece));
    else
      --made_;
  }
  returned_.notify_one();
}

}  // namespace moe::cuda
