// Reading a header takes at most 1 MiB + 8 x its size, whatever it says of itself.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>

#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "catch.h"
#include "checkpoint/files.h"
#include "checkpoint/memory_file.h"
#include "checkpoint/safetensors.h"

namespace {
std::atomic<int64_t> allocated{0}, peak{0};
}  // namespace

// Every allocation of this program is counted, those of simdjson too. All forms are replaced, as
// sanitizers bring their own of each.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  void* memory = std::malloc(bytes ? bytes : 1);
  const int64_t now = allocated += static_cast<int64_t>(malloc_usable_size(memory));
  for (int64_t seen = peak; now > seen && !peak.compare_exchange_weak(seen, now);) {
  }
  return memory;
}
void* operator new(size_t bytes) {
  void* memory = operator new(bytes, std::nothrow);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t& tag) noexcept {
  return operator new(bytes, tag);
}
void operator delete(void* memory) noexcept {
  allocated -= static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, size_t) noexcept { operator delete(memory); }

using namespace moe;
using namespace moe::test;

namespace {

int64_t peak_growth(const File& file) {
  const int64_t before = allocated;
  peak = before;
  { auto header = read_safetensors_header(file, "f"); }
  return peak - before;
}

int64_t allowed(size_t header) { return (int64_t{1} << 20) + 8 * static_cast<int64_t>(header); }

// The header of a model with `count` tensors, as published ones look.
std::string published(int count) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
  for (int i = 0; i < count; ++i)
    header += ",\"model.layers." + std::to_string(i / 768) + ".mlp.experts." +
              std::to_string(i / 3 % 256) + "." + std::to_string(i % 3) +
              "_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[2048,0],\"data_offsets\":[0,0]}";
  return header + "}";
}

// `unit` again and again, between `begin` and `end`.
std::string repeated(std::string begin, std::string_view unit, int count, std::string_view end) {
  for (int i = 0; i < count; ++i) begin += unit;
  return begin.append(end);
}

// Bytes of memory that a process touches to read the file, beyond what a tiny file takes.
int64_t touched(const File& file) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto resident = [] {
      rusage usage{};
      ::getrusage(RUSAGE_SELF, &usage);
      return int64_t{usage.ru_maxrss} * 1024;
    };
    { auto warm = read_safetensors_header(MemoryFile(safetensors(published(3))), "f"); }
    const int64_t before = resident();
    { auto header = read_safetensors_header(file, "f"); }
    const int64_t growth = resident() - before;
    const bool told = ::write(ends[1], &growth, sizeof growth) == sizeof growth;
    ::_exit(told ? 0 : 1);
  }
  ::close(ends[1]);
  int64_t growth = -1;
  CHECK(::read(ends[0], &growth, sizeof growth) == sizeof growth);
  int state = 0;
  ::waitpid(child, &state, 0);
  CHECK(state == 0);
  ::close(ends[0]);
  return growth;
}

}  // namespace

TEST_CASE("a published header takes 8 times its size at most", "[checkpoint][mission-12]") {
  const std::string header = published(30'000);
  const MemoryFile file(safetensors(header));
  REQUIRE(read_safetensors_header(file, "f").ok());
  const int64_t growth = peak_growth(file);
  std::printf("header %.1f MB, peak %.1f MB\n", header.size() / 1e6, growth / 1e6);
  CHECK(growth <= allowed(header.size()));
}

TEST_CASE("sizes that a file only claims are not allocated", "[checkpoint][mission-12]") {
  for (const std::string& bytes :
       {std::string("\x00\xe1\xf5\x05\0\0\0\0{}", 10),
        std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10),
        safetensors(
            R"({"a":{"dtype":"F64","shape":[1099511627776],"data_offsets":[0,8796093022208]}})")}) {
    const MemoryFile file(bytes);
    CHECK_FALSE(read_safetensors_header(file, "f").ok());
    CHECK(peak_growth(file) < int64_t{1} << 20);
  }
}

// Headers that blow up the tables of a parser: as many tokens, entries or keys as fit.
TEST_CASE("hostile headers touch 8 times their size at most", "[checkpoint][mission-12]") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return skip("sanitizers use memory of their own");
#endif
  std::string shortest = "{", keys = "{\"__metadata__\":{";
  for (int i = 0; i < 60'000; ++i) {
    const std::string comma = i ? "," : "";
    shortest += comma + "\"" + std::to_string(i) +
                "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
    keys += comma + "\"" + std::to_string(i) + "\":\"\"";
  }
  const std::string entry = "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":[";
  for (const std::string& header :
       {shortest + "}", keys + "}}", repeated(entry, "1,", 2'000'000, "1]}}"),
        repeated(entry, "[],", 1'000'000, "1]}}"), repeated("{", "{", 3'000'000, ""),
        repeated("{\"a\":{\"shape\":[", "0,", 2'000'000, "0]}}"),
        repeated("{\"", "\\u0061", 500'000, "\":1}")}) {
    const int64_t growth = touched(MemoryFile(safetensors(header)));
    CAPTURE(header.substr(0, 60), header.size(), growth);
    std::printf("header %.1f MB, touched %.1f MB\n", header.size() / 1e6, growth / 1e6);
    CHECK(growth >= 0);
    CHECK(growth <= allowed(header.size()));
  }
}
