// Memory below addresses that stay.
#include "store/address_range.h"

#include <vector>

#include "catch.h"
#include "cuda/host.h"

namespace {

using namespace moe;
using namespace moe::cuda::test;
using moe::cuda::AddressRange;
using moe::test::skip;

std::vector<char> read(const AddressRange& range, size_t offset, size_t bytes) {
  std::vector<char> out(bytes);
  MOE_CHECK(cudaMemcpy(out.data(), range.base() + offset, bytes, cudaMemcpyDeviceToHost));
  return out;
}

}  // namespace

TEST_CASE("memory comes and goes below addresses that stay", "[cuda][moving]") {
  if (!have_gpu()) return skip(kNoGpu);
  constexpr size_t kStep = 3'000'000;  // parts share granules
  MOE_CHECK(cudaFree(nullptr));
  const size_t free = free_on_device();
  {
    AddressRange range = must(AddressRange::reserve(0, size_t{1} << 40));  // more than any GPU has
    CHECK(range.committed_bytes() == 0);
    std::byte* const base = range.base();
    for (size_t part : {0, 1, 2, 5}) {
      must(range.commit(part * kStep, kStep));
      MOE_CHECK(cudaMemset(base + part * kStep, static_cast<int>(part) + 1, kStep));
    }
    const size_t all = range.committed_bytes();
    CHECK(all >= 4 * kStep);
    CHECK(all % range.granule() == 0);
    MOE_CHECK(cudaDeviceSynchronize());
    range.decommit(kStep, kStep);  // its neighbours keep what they share with it
    CHECK(read(range, 0, kStep) == std::vector<char>(kStep, 1));
    CHECK(read(range, 2 * kStep, kStep) == std::vector<char>(kStep, 3));
    CHECK(read(range, 5 * kStep, kStep) == std::vector<char>(kStep, 6));
    range.decommit(2 * kStep, kStep);
    CHECK(range.committed_bytes() < all);
    must(range.commit(kStep, 2 * kStep));
    MOE_CHECK(cudaMemset(base + kStep, 9, 2 * kStep));
    CHECK(read(range, kStep, 2 * kStep) == std::vector<char>(2 * kStep, 9));
    CHECK(read(range, 0, kStep) == std::vector<char>(kStep, 1));
    CHECK(range.base() == base);

    const Buffer<std::byte> rest(static_cast<int64_t>(free_on_device() - (size_t{100} << 20)));
    const Status full = range.commit(size_t{1} << 36, size_t{1} << 28);
    CHECK(full.code() == StatusCode::resource_exhausted);
    CHECK(full.message().find("asked 268435456 bytes, free") != std::string_view::npos);
    CHECK(range.committed_bytes() == all);  // nothing of it stayed
    CHECK(cudaPeekAtLastError() == cudaSuccess);
  }
  // A sanitizer takes memory of its own at times.
  CHECK(free_on_device() + (size_t{64} << 20) >= free);
}
