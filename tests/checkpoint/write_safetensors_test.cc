// What is written: the reference's bytes, complete or not at all.
#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "catch.h"
#include "checkpoint/files.h"
#include "core/new_file.h"
#include "moe/checkpoint.h"

using namespace moe;
using namespace moe::test;
namespace fs = std::filesystem;

namespace {

size_t entries_of(const std::string& directory) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(directory), {}));
}

Status write(const std::string& path, const std::string& name, TensorView view) {
  return write_safetensors(path, {{name, view}});
}

}  // namespace

TEST_CASE("a written file, byte for byte", "[checkpoint]") {
  TemporaryDirectory files;
  const float f32[] = {1, -2};
  const uint16_t bf16[] = {0x3f80};
  const uint8_t u8[] = {7, 8, 9};
  const std::vector<NamedTensor> tensors = {{"b", TensorView(u8, DType::u8, {3})},
                                            {"z", TensorView(f32, DType::f32, {2, 1})},
                                            {"a\"\n", TensorView(bf16, DType::bf16, {})},
                                            {"c", TensorView(nullptr, DType::f32, {0, 5})}};
  REQUIRE(write_safetensors(files / "x", tensors).ok());
  const std::string header = R"({"c":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
                             R"("z":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                             R"("a\"\n":{"dtype":"BF16","shape":[],"data_offsets":[8,10]},)"
                             R"("b":{"dtype":"U8","shape":[3],"data_offsets":[10,13]}})";
  std::string padded = header;
  padded.resize((header.size() + 7) / 8 * 8, ' ');
  CHECK(read_file(files / "x") ==
        safetensors(padded, std::string("\0\0\x80\x3f\0\0\0\xc0\x80\x3f\x07\x08\x09", 13)));
  CHECK(entries_of(files.path()) == 1);

  REQUIRE(write_safetensors(files / "none", {}).ok());
  CHECK(read_file(files / "none") == safetensors("{}      "));
}

TEST_CASE("random tensors survive being written and read", "[checkpoint]") {
  std::mt19937_64 random(seed());
  TemporaryDirectory files;
  for (int round = 0; round < 50; ++round) {
    std::map<std::string, std::string> data;
    std::vector<NamedTensor> tensors;
    for (uint64_t left = random() % 20; left > 0; --left) {
      std::string name;
      for (uint64_t length = random() % 12; length > 0; --length)
        name += static_cast<char>(random() % 128);
      if (data.contains(name)) continue;
      NamedTensor tensor{name, {}};
      tensor.view.dtype = static_cast<DType>(random() % 22);
      Dims shape;
      shape.rank = static_cast<int32_t>(random() % 5);
      for (int axis = 0; axis < shape.rank; ++axis)
        shape[axis] = static_cast<int64_t>(random() % 6);
      const auto bits = shape.elements() * bits_of(tensor.view.dtype);
      if (bits % 8 != 0) continue;
      std::string& bytes = data[name];
      bytes.resize(static_cast<size_t>(bits) / 8);
      std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
      tensor.view = TensorView(bytes.data(), tensor.view.dtype, shape);
      tensors.push_back(std::move(tensor));
    }
    REQUIRE(write_safetensors(files / "x", tensors).ok());
    auto file = TensorFile::open(files / "x");
    CAPTURE(file.status().message());
    REQUIRE(file.ok());
    REQUIRE(file->tensors().size() == tensors.size());
    for (const NamedTensor& want : tensors) {
      const auto got = std::find_if(file->tensors().begin(), file->tensors().end(),
                                    [&](const auto& tensor) { return tensor.name == want.name; });
      REQUIRE(got != file->tensors().end());
      CHECK(got->file == "x");
      CHECK(got->dtype == want.view.dtype);
      CHECK(got->shape == want.view.shape);
      REQUIRE(got->bytes == data[want.name].size());
      std::string bytes(got->bytes, '?');
      REQUIRE(file->read(*got, bytes.data()).ok());
      CHECK(bytes == data[want.name]);
    }
  }
}

namespace {

// A file of the reference writer as it would be without "__metadata__", which we do not write.
std::string without_metadata(const std::string& file) {
  uint64_t length;
  std::memcpy(&length, file.data(), 8);
  std::string header = file.substr(8, length);
  const size_t begin = header.find("\"__metadata__\"");
  if (begin != std::string::npos) header.erase(begin, header.find("},", begin) + 2 - begin);
  header.resize(header.find_last_not_of(' ') + 1);
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return safetensors(header, file.substr(8 + length));
}

}  // namespace

TEST_CASE("golden files are written as the reference wrote them", "[checkpoint]") {
  if (!have_shared()) return skip("../shared is absent");
  TemporaryDirectory files;
  int files_compared = 0;
  for (const auto& golden : fs::directory_iterator(shared_dir() + "/goldens/a")) {
    const std::string path = (golden.path() / "golden.safetensors").string();
    auto file = TensorFile::open(path);
    CAPTURE(path, file.status().message());
    REQUIRE(file.ok());
    std::vector<std::string> data;
    std::vector<NamedTensor> tensors;
    data.reserve(file->tensors().size());
    for (const auto& tensor : file->tensors()) {
      std::string& bytes = data.emplace_back(tensor.bytes, '?');
      REQUIRE(file->read(tensor, bytes.data()).ok());
      tensors.push_back(
          {std::string(tensor.name), TensorView(bytes.data(), tensor.dtype, tensor.shape)});
    }
    std::reverse(tensors.begin(), tensors.end());
    REQUIRE(write_safetensors(files / "x", tensors).ok());
    CHECK((read_file(files / "x") == without_metadata(read_file(path))));
    ++files_compared;
  }
  CHECK(files_compared == 19);
}

TEST_CASE("tensors that cannot be written are refused, and nothing is", "[checkpoint]") {
  TemporaryDirectory files;
  const std::string path = files / "x";
  const float data[6] = {};
  const TensorView good(data, DType::f32, {2, 3});
  const auto refused = [&](const std::string& name, const TensorView& view) {
    const Status status = write(path, name, view);
    CAPTURE(status.message());
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(status.place().tensor == name);
    CHECK(status.place().file == path);
    CHECK(entries_of(files.path()) == 0);
  };
  refused("t", TensorView(nullptr, DType::f32, {2, 3}));
  refused("t", TensorView(data, DType::f32, {2, -3}));
  refused("t", TensorView(data, DType::f4, {3}));
  refused("t", TensorView(data, DType::f32, {2, 3}, Dims{1, 2}, Device::cpu()));
  refused("t", TensorView(data, DType::f32, {2, 3}, Device::cuda(0)));
  refused("t", TensorView(data, DType::u8, {int64_t{1} << 62, 8}, Dims{8, 1}, Device::cpu()));
  refused("__metadata__", good);
  refused("\xff", good);
  const Status twice = write_safetensors(path, {{"t", good}, {"t", good}});
  CHECK(says(twice, "the name appears twice"));
  CHECK(entries_of(files.path()) == 0);

  CHECK(write(files / "no/such/x", "t", good).code() == StatusCode::not_found);
  CHECK(write(files.path(), "t", good).code() == StatusCode::invalid_argument);
  CHECK(entries_of(files.path()) == 0);
}

TEST_CASE("a write that fails leaves the old file and no other", "[checkpoint][mission-93]") {
  TemporaryDirectory files;
  const std::string path = files / "x";
  const std::string data(1 << 20, 'd');
  const TensorView small(data.data(), DType::u8, {16});
  const TensorView large(data.data(), DType::u8, {1 << 20});
  REQUIRE(write(path, "t", small).ok());
  const std::string old = read_file(path);

  rlimit before;
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{1 << 19, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  const Status status = write(path, "t", large);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);

  CHECK(status.code() == StatusCode::resource_exhausted);
  CHECK(says(status, path));
  CHECK(read_file(path) == old);
  CHECK(entries_of(files.path()) == 1);
  REQUIRE(write(path, "t", large).ok());
  CHECK(read_file(path).size() > data.size());
}

TEST_CASE("a crash while writing leaves the old file", "[checkpoint][mission-93]") {
  TemporaryDirectory files;
  const std::string path = files / "x";
  write_file(path, "old");
  const pid_t child = ::fork();
  if (child == 0) {
    auto file = NewFile::create(path);
    if (file.ok() && file->write("half of the new").ok()) ::raise(SIGKILL);
    ::_exit(1);
  }
  int state = 0;
  ::waitpid(child, &state, 0);
  CHECK(WIFSIGNALED(state));
  CHECK(read_file(path) == "old");
  auto next = NewFile::create(path);  // what the crash left behind is in nobody's way
  REQUIRE(next.ok());
  REQUIRE(next->write("new").ok());
  REQUIRE(next->commit().ok());
  CHECK(read_file(path) == "new");
}
