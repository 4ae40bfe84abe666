// The header parser against the reference's own cases and the corpus of malformed files.
#include "checkpoint/safetensors.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include <unistd.h>

#include "catch.h"
#include "checkpoint/memory_file.h"
#include "core/json.h"

using namespace moe;
using namespace moe::test;

namespace {

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return bytes;
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  REQUIRE(file);
  return content.str();
}

// A file with this header, padded, and `data` zero bytes.
std::string safetensors(std::string header, size_t data) {
  header.append((8 - header.size() % 8) % 8, ' ');
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i));
  return bytes + header + std::string(data, '\0');
}

// Like File::path(): what is left when the rest of a message is taken away.
bool names(const Status& status, std::string_view part) {
  return status.message().find(part) != std::string_view::npos;
}

}  // namespace

TEST_CASE("the reference's own header cases", "[checkpoint][mission-12]") {
  if (!have_shared()) return skip("../shared is absent");
  auto vectors = Json::read(shared_dir() + "/vectors/safetensors_cases.json");
  REQUIRE(vectors.ok());
  const Json* cases = vectors->find("cases");
  REQUIRE(cases);
  CHECK(cases->items().size() == 20);
  for (const Json& c : cases->items()) {
    const std::string name(*c.string("name"));
    CAPTURE(name);
    const MemoryFile file(from_hex(*c.string("hex")));
    auto header = read_safetensors_header(file, "file");
    const Json* expect = c.find("expect");
    // The one case where the format's text is stricter than the reference.
    const bool accept = *expect->boolean("ok") && name != "ws_leading";
    CAPTURE(header.status().message());
    REQUIRE(header.ok() == accept);
    if (!accept) {
      if (auto rule = expect->string("error"); rule.ok()) CHECK(names(header.status(), *rule));
      continue;
    }
    const auto& tensors = expect->find("tensors")->members();
    REQUIRE(header->tensors.size() == tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Checkpoint::Tensor& tensor = header->tensors[i];
      const auto& want = tensors[i].second.items();
      CHECK(tensor.name == tensors[i].first);
      CHECK(to_safetensors(tensor.dtype) == *want[0].string());
      REQUIRE(tensor.shape.rank == static_cast<int>(want[1].items().size()));
      for (int axis = 0; axis < tensor.shape.rank; ++axis)
        CHECK(tensor.shape[axis] == *want[1].items()[axis].integer());
      CHECK(static_cast<int64_t>(tensor.bytes) == *want[2].integer());
      CHECK(tensor.offset + tensor.bytes == file.size());
    }
  }
}

namespace {

// The corpus, written once into a directory of its own. Empty if there is no python3.
const std::string& corpus() {
  static const std::string directory = [] {
    const auto path =
        std::filesystem::temp_directory_path() / ("moe-corpus-" + std::to_string(::getpid()));
    const std::string command = "python3 '" + shared_dir() + "/safetensors-corpus/make.py' '" +
                                path.string() + "' > /dev/null";
    return std::system(command.c_str()) == 0 ? path.string() : std::string();
  }();
  return directory;
}

// What a refusal of a corpus file must name: a rule, and the tensor where one is to blame.
struct Refusal {
  const char *file, *rule, *tensor;
};

}  // namespace

TEST_CASE("the corpus of malformed files", "[checkpoint][mission-12]") {
  if (!have_shared()) return skip("../shared is absent");
  if (std::system("python3 -c '' 2> /dev/null") != 0) return skip("python3 is absent");
  REQUIRE_FALSE(corpus().empty());
  auto rows = Json::read(corpus() + "/corpus.json");
  REQUIRE(rows.ok());
  int accepted = 0, refused = 0;
  for (const Json& row : rows->items()) {
    const std::string name(*row.string("file"));
    const std::string path = corpus() + "/" + name + ".safetensors";
    auto file = open_file(path, FileMode::stay_open);
    REQUIRE(file.ok());
    auto header = read_safetensors_header(**file, name);
    CAPTURE(name, std::string(*row.string("why")), header.status().message());
    CHECK(header.ok() == (row.string("moe").value() == "accept"));
    if (header.ok()) {
      ++accepted;
      continue;
    }
    ++refused;
    const Status& status = header.status();
    CHECK(names(status, path));
    CHECK(status.place().file == path);
    CHECK(names(status, "]; "));
  }
  CHECK(accepted == 17);
  CHECK(refused == 53);
  std::filesystem::remove_all(corpus());
}
