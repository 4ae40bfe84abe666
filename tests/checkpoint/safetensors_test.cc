// The header parser against the reference's own cases, the corpus of malformed files, and what
// simdjson leaves to us.
#include "checkpoint/safetensors.h"

#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>

#include <simdjson.h>

#include "catch.h"
#include "checkpoint/files.h"
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
      if (auto rule = expect->string("error"); rule.ok()) CHECK(says(header.status(), *rule));
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

// Every refused file of the corpus by the rule that its message must name. Where a tensor is to
// blame it is "a", unless said otherwise.
const std::multimap<std::string, std::string> kRefused = [] {
  std::multimap<std::string, std::string> rows;
  const auto add = [&](const char* rule, std::initializer_list<const char*> files) {
    for (const char* file : files) rows.emplace(file, rule);
  };
  add("HeaderTooSmall", {"r_empty_file", "r_7_bytes"});
  add("HeaderTooLarge", {"r_n_100MB_plus_1", "r_n_u64max", "r_n_i64min"});
  add("InvalidHeaderLength", {"r_n_beyond_file"});
  add("InvalidHeader", {"r_not_utf8"});
  add("HeaderStart", {"lead_ws", "r_bom", "r_array_root"});
  add("InvalidHeaderDeserialization",
      {"r_n_zero",        "r_not_json",         "r_nul_padding",     "r_trailing_json",
       "r_deep_nesting",  "r_lone_surrogate",   "r_metadata_number", "r_metadata_nested",
       "r_missing_dtype", "r_missing_shape",    "r_missing_offsets", "r_metadata_as_tensor",
       "r_dtype_unknown", "r_dtype_case",       "r_dtype_number",    "r_shape_negative",
       "r_shape_float",   "r_shape_exp",        "r_shape_2_64",      "r_offsets_len3",
       "r_offsets_len1",  "r_offsets_negative", "q_info_as_array",   "q_dtype_as_map"});
  add("DuplicateKey", {"dup_same_offsets", "dup_via_escape", "r_dup_next_offsets", "r_dup_metadata",
                       "q_dup_field"});
  add("ValidationOverflow", {"r_shape_mul_overflow", "r_bits_mul_overflow", "r_huge_then_zero"});
  add("InvalidOffset", {"r_offsets_reversed", "r_first_not_zero", "r_hole", "r_overlap", "r_alias",
                        "r_empty_inside"});
  add("TensorInvalidInfo", {"r_size_mismatch"});
  add("MisalignedSlice", {"r_f4_odd"});
  add("MetadataIncompleteBuffer", {"r_data_short", "r_data_long", "r_liar_4MB"});
  return rows;
}();

const std::set<std::string> kNoTensorToBlame = {"r_empty_file",
                                                "r_7_bytes",
                                                "r_n_100MB_plus_1",
                                                "r_n_u64max",
                                                "r_n_i64min",
                                                "r_n_beyond_file",
                                                "r_not_utf8",
                                                "lead_ws",
                                                "r_bom",
                                                "r_array_root",
                                                "r_n_zero",
                                                "r_not_json",
                                                "r_nul_padding",
                                                "r_trailing_json",
                                                "r_lone_surrogate",
                                                "r_metadata_number",
                                                "r_metadata_nested",
                                                "r_dup_metadata",
                                                "r_data_long",
                                                "r_metadata_as_tensor"};

std::string tensor_to_blame(const std::string& file) {
  if (file == "r_hole" || file == "r_overlap" || file == "r_alias") return "b";
  return file == "r_empty_inside" ? "e" : "a";
}

}  // namespace

TEST_CASE("the corpus: 17 accepted, 53 refused with file, tensor and rule",
          "[checkpoint][mission-12]") {
  if (!have_shared()) return skip("../shared is absent");
  if (std::system("python3 -c '' 2> /dev/null") != 0) return skip("python3 is absent");
  TemporaryDirectory corpus;
  REQUIRE(std::system(("python3 '" + shared_dir() + "/safetensors-corpus/make.py' '" +
                       corpus.path() + "' > /dev/null")
                          .c_str()) == 0);
  auto rows = Json::read(corpus / "corpus.json");
  REQUIRE(rows.ok());
  int accepted = 0, refused = 0;
  for (const Json& row : rows->items()) {
    const std::string name(*row.string("file"));
    const std::string path = corpus / (name + ".safetensors");
    auto file = open_file(path, FileMode::stay_open);
    REQUIRE(file.ok());
    auto header = read_safetensors_header(**file, name);
    CAPTURE(name, header.status().message());
    REQUIRE(header.ok() == (*row.string("moe") == "accept"));
    if (header.ok()) {
      ++accepted;
      continue;
    }
    ++refused;
    const Status& status = header.status();
    CHECK(status.place().file == path);
    CHECK(status.place().phase == Phase::open);
    CHECK(says(status, path + ": "));
    REQUIRE(kRefused.count(name) == 1);
    CHECK(says(status, "[" + kRefused.find(name)->second + "]; "));
    if (kNoTensorToBlame.contains(name)) continue;
    CHECK(status.place().tensor == tensor_to_blame(name));
    CHECK(says(status, "tensor \"" + tensor_to_blame(name) + "\": "));
  }
  CHECK(accepted == 17);
  CHECK(refused == 53);
}

namespace {
Result<SafetensorsHeader> parse(std::string_view header, size_t data) {
  return read_safetensors_header(MemoryFile(safetensors(header, std::string(data, '\0'))), "f");
}
bool accepts(std::string_view header, size_t data) { return parse(header, data).ok(); }
}  // namespace

TEST_CASE("tensor names are unescaped and kept whole", "[checkpoint]") {
  auto header = parse(
      R"({"a\u0000\"\\b\ud83d\ude00":{"d\u0074ype":"U\u0038","shape":[1],"data_offsets":[0,1]}})",
      1);
  REQUIRE(header.ok());
  REQUIRE(header->tensors.size() == 1);
  CHECK(header->tensors[0].name == std::string_view("a\0\"\\b\xF0\x9F\x98\x80", 9));
  CHECK(header->tensors[0].dtype == DType::u8);
}

TEST_CASE("what is ignored must still be JSON", "[checkpoint]") {
  const auto with = [](const std::string& extra) {
    return accepts(R"({"a":{"dtype":"U8","x":)" + extra + R"(,"shape":[1],"data_offsets":[0,1]}})",
                   1);
  };
  for (const char* good :
       {"1", "-1.5e3", "true", "null", "\"\\n\"", "[]", "{}", "[1,[2],{}]", "{\"shape\":[[]]}"}) {
    CAPTURE(good);
    CHECK(with(good));
  }
  for (const char* bad : {"tru",     "nul",         "nulll",       "truex",      "01",
                          "1.",      "-",           "+1",          "1x",         "[1,]",
                          "[1 2]",   "[,1]",        "{\"a\"}",     "{\"a\":1,}", "{a:1}",
                          "\"\\q\"", "\"\\ud800\"", "\"\\udc00\"", "NaN",        "1 1",
                          "[1}",     "{]",          "\"a\"b",      "'a'",        ""}) {
    CAPTURE(bad);
    CHECK_FALSE(with(bad));
  }
  CHECK(with(std::string(100, '[') + std::string(100, ']')));
  CHECK_FALSE(with(std::string(200, '[') + std::string(200, ']')));
  CHECK_FALSE(with(std::string(100'000, '[') + std::string(100'000, ']')));
}

TEST_CASE("a shape that Dims cannot hold is listed with rank -1", "[checkpoint]") {
  const auto rank = [](const std::string& shape, size_t bytes) {
    auto header = parse(R"({"a":{"dtype":"U8","shape":)" + shape + R"(,"data_offsets":[0,)" +
                            std::to_string(bytes) + "]}}",
                        bytes);
    REQUIRE(header.ok());
    return header->tensors.at(0).shape.rank;
  };
  CHECK(rank("[1,1,1,6]", 6) == 4);
  CHECK(rank("[1,1,1,1,6]", 6) == -1);
  CHECK(rank("[0,4611686018427387904]", 0) == 2);
  CHECK(rank("[0,18446744073709551615]", 0) == -1);
  CHECK(rank("[4611686018427387904,2,0]", 0) == -1);  // the product of two axes would overflow
  CHECK(rank("[0,4611686018427387904,8]", 0) == -1);  // and here a stride
}

TEST_CASE("tensors come in the order of their bytes", "[checkpoint]") {
  auto header = parse(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},)"
                      R"("e":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},)"
                      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}  )",
                      6);
  REQUIRE(header.ok());
  std::string names;
  for (const auto& tensor : header->tensors) names += tensor.name;
  CHECK(names == "aeb");
  const uint64_t data = header->tensors[0].offset;
  CHECK(header->tensors[2].offset == data + 4);
}

// Random damage to a valid header. simdjson's other parser checks whole documents: nothing that it
// refuses may pass, and nothing may crash.
TEST_CASE("damaged headers never pass as something that is not JSON", "[checkpoint][mission-12]") {
  std::mt19937_64 random(seed());
  const std::string valid =
      R"({"__metadata__":{"format":"pt"},"a\u0062":{"dtype":"BF16","shape":[2,3],)"
      R"("data_offsets":[0,12],"x":[1,{"y":null},true]},"c":{"dtype":"U8","shape":[0],)"
      R"("data_offsets":[12,12]}}   )";
  const std::string alphabet = "{}[]:,\"\\ \n0123456789-.eEabtrufnls\xff\xc3\x01";
  REQUIRE(accepts(valid, 12));
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string damaged = valid;
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      const size_t at = random() % damaged.size();
      switch (random() % 3) {
        case 0: damaged[at] = alphabet[random() % alphabet.size()]; break;
        case 1: damaged.erase(at, 1 + random() % 4); break;
        default: damaged.insert(at, 1, alphabet[random() % alphabet.size()]);
      }
    }
    if (!accepts(damaged, 12)) continue;
    ++accepted;
    simdjson::dom::parser parser;
    CAPTURE(damaged);
    REQUIRE(parser.parse(damaged).error() == simdjson::SUCCESS);
  }
  CHECK(accepted > 100);  // or the damage was too great to test anything
}
