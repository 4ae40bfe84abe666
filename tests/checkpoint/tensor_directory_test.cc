// Directories: which files count, and what is refused when they do not fit together.
#include "checkpoint/tensor_directory.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <string>

#include "catch.h"
#include "checkpoint/files.h"

using namespace moe;
using namespace moe::test;
namespace fs = std::filesystem;

namespace {

constexpr const char* kIndex = "model.safetensors.index.json";

// A directory of two shards, "a" and "b" in the first and "c" in the second, and its index.
struct Sharded : TemporaryDirectory {
  Sharded() {
    write_file(*this / "model-00001-of-00002.safetensors",
               safetensors(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                           R"("b":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}})",
                           "aabbb"));
    write_file(*this / "model-00002-of-00002.safetensors", one_tensor("c", "cccc"));
    index(R"("a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors",)"
          R"("c":"model-00002-of-00002.safetensors")");
  }
  void index(const std::string& weight_map, const std::string& total_size = "9") {
    write_file(*this / kIndex, R"({"metadata":{"total_size":)" + total_size +
                                   R"(},"weight_map":{)" + weight_map + "}}");
  }
  void remove(std::string_view name) { fs::remove(*this / name); }
};

std::string names(const TensorDirectory& directory) {
  std::string all;
  for (const auto& tensor : directory.tensors()) all += std::string(tensor.name) + " ";
  return all;
}

std::string content(const TensorDirectory& directory, std::string_view name) {
  const auto* tensor = directory.find(name);
  REQUIRE(tensor);
  std::string bytes(tensor->bytes, '?');
  const Status status = directory.read(*tensor, 0, bytes.size(), bytes.data());
  CAPTURE(status.message());
  REQUIRE(status.ok());
  return bytes;
}

// The refusal of a directory, with the directory and what is at fault in its message.
Status refusal(const TemporaryDirectory& directory, StatusCode code) {
  auto opened = TensorDirectory::open(directory.path(), nullptr);
  REQUIRE_FALSE(opened.ok());
  CAPTURE(opened.status().message());
  CHECK(opened.status().code() == code);
  CHECK(says(opened.status(), directory.path()));
  CHECK(opened.status().place().phase == Phase::open);
  return opened.status();
}

}  // namespace

TEST_CASE("shards with an index", "[checkpoint]") {
  const Sharded files;
  Notebook notes;
  auto opened = TensorDirectory::open(files.path(), &notes);
  REQUIRE(opened.ok());
  const TensorDirectory directory = std::move(*opened);  // views survive the move
  CHECK(names(directory) == "a b c ");
  CHECK(directory.bytes() == 9);
  CHECK(content(directory, "a") == "aa");
  CHECK(content(directory, "b") == "bbb");
  CHECK(content(directory, "c") == "cccc");
  CHECK(directory.find("c")->file == "model-00002-of-00002.safetensors");
  CHECK(notes.text.empty());
}

TEST_CASE("parts of a tensor, and reads beyond it", "[checkpoint]") {
  const Sharded files;
  auto directory = TensorDirectory::open(files.path(), nullptr);
  REQUIRE(directory.ok());
  const auto& b = *directory->find("b");
  char two[2];
  REQUIRE(directory->read(b, 1, 2, two).ok());
  CHECK(std::string(two, 2) == "bb");
  CHECK(directory->read(b, 3, 0, two).ok());
  CHECK(directory->read(b, 2, 2, two).code() == StatusCode::out_of_range);
  CHECK(directory->read(b, 4, 0, two).code() == StatusCode::out_of_range);
  CHECK(directory->read(b, 1, ~uint64_t{0}, two).code() == StatusCode::out_of_range);
  auto foreign = b;
  foreign.file = "other";
  CHECK(directory->read(foreign, 0, 1, two).code() == StatusCode::invalid_argument);
}

TEST_CASE("an unknown tensor is answered with the nearest name", "[checkpoint][mission-12]") {
  TemporaryDirectory files;
  write_file(files / "model.safetensors", one_tensor("model.layers.0.mlp.gate.weight", "x"));
  auto directory = TensorDirectory::open(files.path(), nullptr);
  REQUIRE(directory.ok());
  CHECK_FALSE(directory->find("model.layers.0.mlp.gates.weight"));
  const Status status = directory->not_found("model.layers.0.mlp.gates.weight");
  CHECK(status.code() == StatusCode::not_found);
  CHECK(status.place().tensor == "model.layers.0.mlp.gates.weight");
  CHECK(says(status, "did you mean \"model.layers.0.mlp.gate.weight\"?"));
  CHECK_FALSE(says(directory->not_found("x"), "did you mean"));
}

TEST_CASE("one file, shards without an index, any files", "[checkpoint]") {
  Notebook notes;
  TemporaryDirectory files;
  const auto found = [&] {
    notes.text.clear();
    auto directory = TensorDirectory::open(files.path(), &notes);
    CAPTURE(directory.status().message());
    REQUIRE(directory.ok());
    return names(*directory);
  };
  write_file(files / "y.safetensors", one_tensor("y", "1"));
  write_file(files / "x.safetensors", one_tensor("x", "1"));
  write_file(files / ".z.safetensors", "half a download");
  CHECK(found() == "x y ");
  CHECK(notes.text.empty());

  write_file(files / "m-00002-of-00002.safetensors", one_tensor("m2", "1"));
  write_file(files / "m-00001-of-00002.safetensors", one_tensor("m1", "1"));
  CHECK(found() == "m1 m2 ");
  CHECK(says(Status(StatusCode::unknown, notes.text), "x.safetensors, y.safetensors"));

  write_file(files / "model.safetensors", one_tensor("model", "1"));
  CHECK(found() == "model ");
  CHECK(says(Status(StatusCode::unknown, notes.text), "m-00002-of-00002.safetensors"));
}

// reliability: the folder cases that the format does not cover.

TEST_CASE("folder: every missing shard is named", "[checkpoint][mission-12]") {
  Sharded files;
  files.index(R"("a":"one.safetensors","b":"two.safetensors","b2":"two.safetensors")");
  const Status status = refusal(files, StatusCode::not_found);
  CHECK(says(status, "2 of its files are missing: one.safetensors, two.safetensors"));

  files.remove(kIndex);
  files.remove("model-00001-of-00002.safetensors");
  write_file(files / "model-00003-of-00004.safetensors", one_tensor("d", "d"));
  CHECK(says(refusal(files, StatusCode::not_found),
             "4 of its files are missing: model-00001-of-00002.safetensors, "
             "model-00001-of-00004.safetensors, model-00002-of-00004.safetensors, "
             "model-00004-of-00004.safetensors"));
}

TEST_CASE("folder: a link into the void is a missing shard", "[checkpoint][mission-12]") {
  Sharded files;
  files.remove("model-00002-of-00002.safetensors");
  fs::create_symlink("nowhere", files / "model-00002-of-00002.safetensors");
  CHECK(says(refusal(files, StatusCode::not_found), "missing: model-00002-of-00002.safetensors"));
}

TEST_CASE("folder: a stale index is refused though other shards are there",
          "[checkpoint][mission-12]") {
  Sharded files;
  files.index(R"("a":"old-00001-of-00001.safetensors")");
  CHECK(says(refusal(files, StatusCode::not_found), "old-00001-of-00001.safetensors"));
}

TEST_CASE("folder: stray shards are ignored with a note", "[checkpoint]") {
  const Sharded files;
  write_file(files / "model.safetensors", one_tensor("a", "stray"));
  write_file(files / "broken.safetensors", "not even a header");
  Notebook notes;
  auto directory = TensorDirectory::open(files.path(), &notes);
  REQUIRE(directory.ok());
  CHECK(content(*directory, "a") == "aa");
  CHECK(notes.text == files.path() +
                          ": not part of the checkpoint and ignored: "
                          "broken.safetensors, model.safetensors\n");
}

TEST_CASE("folder: a tensor in two shards", "[checkpoint][mission-12]") {
  Sharded files;
  write_file(files / "model-00002-of-00002.safetensors",
             safetensors(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                         R"("c":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                         "bc"));
  for (bool with_index : {true, false}) {
    if (!with_index) files.remove(kIndex);
    const Status status = refusal(files, StatusCode::invalid_argument);
    CHECK(status.place().tensor == "b");
    CHECK(says(status, "model-00001-of-00002.safetensors"));
    CHECK(says(status, "model-00002-of-00002.safetensors"));
  }
}

TEST_CASE("folder: tensors that are not where the index says", "[checkpoint][mission-12]") {
  Sharded files;
  files.index(R"("a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors",)"
              R"("c":"model-00002-of-00002.safetensors","d":"model-00002-of-00002.safetensors")");
  const Status status = refusal(files, StatusCode::invalid_argument);
  CHECK(says(status,
             "b (in model-00001-of-00002.safetensors, not in "
             "model-00002-of-00002.safetensors), d (not in "
             "model-00002-of-00002.safetensors)"));
}

TEST_CASE("folder: tensors that the index does not name are kept with a note", "[checkpoint]") {
  Sharded files;
  files.index(R"("a":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors")");
  Notebook notes;
  auto directory = TensorDirectory::open(files.path(), &notes);
  REQUIRE(directory.ok());
  CHECK(names(*directory) == "a b c ");
  CHECK(says(Status(StatusCode::unknown, notes.text), "1 tensors are in the shards but not in"));
}

TEST_CASE("folder: a truncated shard", "[checkpoint][mission-12]") {
  const Sharded files;
  const std::string path = files / "model-00002-of-00002.safetensors";
  const auto whole = fs::file_size(path);
  for (uintmax_t size = whole; size-- > 0;) {
    fs::resize_file(path, size);
    const Status status = refusal(files, StatusCode::data_loss);
    CHECK(status.place().file == path);
  }
}

TEST_CASE("folder: total_size that differs is a note", "[checkpoint]") {
  Sharded files;
  for (const char* size : {"10", "9.0", "null", "\"9\"", "-1"}) {
    files.index(R"("a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors",)"
                R"("c":"model-00002-of-00002.safetensors")",
                size);
    Notebook notes;
    CAPTURE(size);
    CHECK(TensorDirectory::open(files.path(), &notes).ok());
    const bool integer = std::string_view(size) == "10" || std::string_view(size) == "-1";
    CHECK((notes.text.find("total_size") != std::string::npos) == integer);
  }
}

TEST_CASE("folder: index entries are bare file names", "[checkpoint][mission-12]") {
  Sharded files;
  fs::create_directory(files / "sub");
  fs::copy_file(files / "model-00001-of-00002.safetensors", files / "sub/x.safetensors");
  for (const char* file :
       {R"("../x.safetensors")", R"("/etc/passwd")", R"("sub/x.safetensors")", R"("")", R"(".")",
        R"("..")", R"("sub\\x.safetensors")", R"("a\u0000b")", "7", "null", "[]", "{}"}) {
    CAPTURE(file);
    files.index("\"a\":" + std::string(file));
    const Status status = refusal(files, StatusCode::invalid_argument);
    CHECK(status.place().tensor == "a");
    CHECK(status.place().file == files / kIndex);
  }
}

TEST_CASE("folder: malformed indexes", "[checkpoint][mission-12]") {
  const Sharded files;
  for (const char* text :
       {"", "{", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":"b",)",
        R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})",
        R"({"weight_map":{"a":"x"},"weight_map":{}})"}) {
    CAPTURE(text);
    write_file(files / kIndex, text);
    CHECK(refusal(files, StatusCode::invalid_argument).place().file == files / kIndex);
  }
}

TEST_CASE("folder: symbolic links as in a download cache", "[checkpoint]") {
  const Sharded blobs;
  TemporaryDirectory snapshot;
  for (const auto& entry : fs::directory_iterator(blobs.path()))
    fs::create_symlink(entry.path(), snapshot / entry.path().filename().string());
  auto directory = TensorDirectory::open(snapshot.path(), nullptr);
  REQUIRE(directory.ok());
  CHECK(content(*directory, "c") == "cccc");
}

TEST_CASE("folder: no folder, no weights, weights of another format", "[checkpoint][mission-12]") {
  TemporaryDirectory files;
  CHECK(says(refusal(files, StatusCode::not_found), "there is no *.safetensors file"));
  write_file(files / "pytorch_model.bin", "pickle");
  CHECK(says(refusal(files, StatusCode::not_found), "convert pytorch_model.bin to safetensors"));
  const auto code = [](const std::string& path) {
    return TensorDirectory::open(path, nullptr).status().code();
  };
  CHECK(code(files / "none") == StatusCode::not_found);
  CHECK(code(files / "pytorch_model.bin") == StatusCode::invalid_argument);
  CHECK(code("") == StatusCode::not_found);
  fs::create_directory(files / "model.safetensors");
  CHECK(code(files.path()) == StatusCode::invalid_argument);
}

TEST_CASE("more shards than may stay open", "[checkpoint]") {
  TemporaryDirectory files;
  constexpr int kShards = 300;
  for (int i = 0; i < kShards; ++i)
    write_file(files / ("s" + std::to_string(i) + ".safetensors"),
               one_tensor("t" + std::to_string(i), std::to_string(i)));
  auto directory = TensorDirectory::open(files.path(), nullptr);
  REQUIRE(directory.ok());
  const auto open_files = std::distance(fs::directory_iterator("/proc/self/fd"), {});
  CHECK(open_files < 290);
  for (int i = 0; i < kShards; ++i)
    CHECK(content(*directory, "t" + std::to_string(i)) == std::to_string(i));
}

namespace {

// A model of 100,000 tensors of one byte. In an order that is not that of the names.
void write_many(const TemporaryDirectory& files, int shards, bool index) {
  constexpr int kTensors = 100'000;
  std::string weight_map;
  for (int shard = 0; shard < shards; ++shard) {
    char file[64];
    std::snprintf(file, sizeof file, "model-%05d-of-%05d.safetensors", shard + 1, shards);
    std::string header = "{";
    const int count = kTensors / shards;
    for (int i = 0; i < count; ++i) {
      const int id = (i * 7919 + shard) % count * shards + shard;
      const std::string name = "model.layers." + std::to_string(id / 1536) + ".mlp.experts." +
                               std::to_string(id / 6 % 256) + ".projection_" +
                               std::to_string(id % 6) + ".weight";
      header += (i ? ",\"" : "\"") + name + R"(":{"dtype":"U8","shape":[1,1],"data_offsets":[)" +
                std::to_string(i) + "," + std::to_string(i + 1) + "]}";
      if (index) weight_map += (weight_map.empty() ? "\"" : ",\"") + name + "\":\"" + file + "\"";
    }
    write_file(files / file, safetensors(header + "}", std::string(count, 'x')));
  }
  if (index) write_file(files / kIndex, "{\"weight_map\":{" + weight_map + "}}");
}

}  // namespace

// The promise is 0.3 s on a quiet machine.
TEST_CASE("100,000 tensors open in a moment", "[checkpoint]") {
  for (const auto& [shards, index] : {std::pair(1, false), {50, true}, {500, true}}) {
    TemporaryDirectory files;
    write_many(files, shards, index);
    double best = 1e9;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const std::clock_t start = std::clock();
      auto directory = TensorDirectory::open(files.path(), nullptr);
      const double took = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      CAPTURE(directory.status().message());
      REQUIRE(directory.ok());
      CHECK(directory->tensors().size() == 100'000);
      CHECK(std::is_sorted(directory->tensors().begin(), directory->tensors().end(),
                           [](const auto& a, const auto& b) { return a.name < b.name; }));
      best = std::min(best, took);
    }
    std::printf("100,000 tensors in %d file(s): opened in %.3f s of CPU time\n", shards, best);
    CHECK(best < 3.0);
  }
}
