// A folder made from another one: its tensors where they should be, complete or absent whatever
// fails.
#include "checkpoint/write_checkpoint.h"

#include <filesystem>
#include <map>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "failing_calls.h"

using namespace moe;
using namespace moe::test;
namespace fs = std::filesystem;

namespace {

int files_in(const std::string& folder) {
  return static_cast<int>(std::distance(fs::directory_iterator(folder), {}));
}

// A synthetic checkpoint at "in" of its folder.
struct Source {
  Source() {
    REQUIRE(write_synthetic(
                {.experts = 4, .top_k = 2, .hidden = 24, .intermediate = 10, .seed = test::seed()},
                folder / "in")
                .ok());
    auto opened = Checkpoint::open(folder / "in");
    REQUIRE(opened.ok());
    checkpoint.emplace(std::move(*opened));
  }

  // All of it as it is.
  NewCheckpoint copy() const {
    NewCheckpoint made{.from = *checkpoint->impl(), .what = "copying"};
    for (const auto& tensor : checkpoint->tensors()) made.runs.push_back({copy_of(tensor)});
    return made;
  }

  TemporaryDirectory folder;
  std::optional<Checkpoint> checkpoint;
};

// `count` runs of tensors that are made, whose bytes `contents` keeps by name.
std::vector<TensorRun> random_runs(int count, std::map<std::string, std::string>* contents) {
  constexpr DType kTypes[] = {DType::u8, DType::bf16, DType::f32, DType::i64, DType::f8_e4m3};
  std::mt19937 random(test::seed());
  std::vector<TensorRun> runs(static_cast<size_t>(count));
  int64_t key = 0;
  for (TensorRun& run : runs) {
    const uint64_t digests = random() % 2;
    for (size_t n = 1 + random() % 5; n > 0; --n) {
      const DType type = kTypes[random() % 5];
      const auto elements = static_cast<int64_t>(random() % 999);
      const auto bytes = static_cast<uint64_t>(elements * bits_of(type) / 8);
      const std::string name = "made." + std::to_string(key);
      std::string& content = (*contents)[name];
      for (uint64_t i = 0; i < bytes; ++i) content += static_cast<char>(random());
      run.push_back({name, type, {elements}, bytes, digests, nullptr, key++});
    }
  }
  return runs;
}

}  // namespace

TEST_CASE("made and copied tensors lie where they should, and hold what they should",
          "[checkpoint][mission-84]") {
  const Source source;
  std::map<std::string, std::string> contents;
  NewCheckpoint made = source.copy();
  const std::vector<TensorRun> runs = random_runs(60, &contents);
  made.runs.insert(made.runs.begin(), runs.begin(), runs.end());
  made.make = [&](const NewTensor& tensor, std::string* bytes) {
    *bytes = contents.at(tensor.name);
    return Status();
  };
  made.config = read_file(source.folder / "in/config.json") + " ";
  const Status status = write_checkpoint(made, source.folder / "out", nullptr, nullptr);
  INFO(status.message());
  REQUIRE(status.ok());
  CHECK(read_file(source.folder / "out/config.json") == made.config);
  const auto read = Checkpoint::open(source.folder / "out");
  REQUIRE(read.ok());
  for (const auto& tensor : read->tensors())
    CHECK(tensor.offset % static_cast<uint64_t>(bits_of(tensor.dtype) / 8) == 0);
  for (const TensorRun& run : runs) {
    uint64_t first = UINT64_MAX, last = 0, bytes = 0;
    for (const NewTensor& tensor : run) {
      const auto found = read->find(tensor.name);
      REQUIRE(found.ok());
      CHECK((found->dtype == tensor.dtype && found->shape == tensor.shape));
      std::string content(found->bytes, '?');
      REQUIRE(read->read_raw(*found, content.data()).ok());
      CHECK(content == contents.at(tensor.name));
      first = std::min(first, found->offset);
      last = std::max(last, found->offset + found->bytes);
      bytes += found->bytes;
    }
    CHECK(last - first == bytes);
    if (run[0].digests > 0) CHECK(first % 4096 == 0);
  }
  for (const auto& tensor : source.checkpoint->tensors()) {
    const auto copied = read->find(tensor.name);
    REQUIRE(copied.ok());
    std::string one(tensor.bytes, 'a'), other(tensor.bytes, 'b');
    REQUIRE(source.checkpoint->read_raw(tensor, one.data()).ok());
    REQUIRE(read->read_raw(*copied, other.data()).ok());
    CHECK(one == other);
  }
}

TEST_CASE("the n-th write, sync or rename fails: no new folder, and nothing of it",
          "[checkpoint][mission-93]") {
  const Source source;
  int failed = 0;
  for (int nth = 1;; ++nth) {
    FailingCalls calls(nth, nullptr, size_t{1} << 20);
    NewCheckpoint made = source.copy();
    made.calls = &calls;
    const Status status = write_checkpoint(made, source.folder / "out", nullptr, nullptr);
    CAPTURE(nth, status.message());
    CHECK(status.ok() == !calls.reached());
    CHECK(fs::exists(source.folder / "out") == status.ok());
    CHECK(files_in(source.folder.path()) == 1 + status.ok());
    if (status.ok()) break;
    ++failed;
    CHECK((status.code() == StatusCode::resource_exhausted ||
           status.code() == StatusCode::unavailable));
    CHECK(status.place().file.starts_with(source.folder.path()));
  }
  CHECK(failed > 20);
  CHECK(Checkpoint::open(source.folder / "out").ok());
}

TEST_CASE("a maker that fails, or runs out of memory, leaves nothing", "[checkpoint][mission-93]") {
  const Source source;
  NewCheckpoint made = source.copy();
  made.runs.push_back({{"made", DType::u8, {3}, 3, 1, nullptr, 0}});
  const auto code = [&](auto make) {
    made.make = make;
    const StatusCode code = write_checkpoint(made, source.folder / "out", nullptr, nullptr).code();
    CHECK(files_in(source.folder.path()) == 1);
    return code;
  };
  CHECK(code([](const NewTensor&, std::string*) {
          return Status(StatusCode::data_loss, "torn");
        }) == StatusCode::data_loss);
  CHECK(code([](const NewTensor&, std::string*) -> Status { throw std::bad_alloc(); }) ==
        StatusCode::resource_exhausted);
}
