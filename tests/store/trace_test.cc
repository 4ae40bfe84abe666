// Traces: what is written is read back, and what is wrong is named with its line.
#include "moe/trace.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>

#include <unistd.h>

#include "catch.h"
#include "store/traces.h"

using namespace moe;

namespace {

// A new empty folder that goes with the test.
struct Folder {
  Folder() {
    char name[] = "/tmp/moe_trace_XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const char* name) const { return (path / name).string(); }
  bool empty() const { return std::filesystem::is_empty(path); }
  std::filesystem::path path;
};

RoutingTrace random_trace(std::mt19937_64& rng, bool weights) {
  RoutingTrace trace{.top_k = 1 + static_cast<int32_t>(rng() % 5)};
  trace.layers = {{1, 7}, {4, 300}, {9, 5}};
  const size_t rows = 3 + rng() % 50;
  for (size_t r = 0; r < rows; ++r) {
    const LayerExperts layer = trace.layers[r % 3];
    trace.rows.push_back({static_cast<int64_t>(rng()), static_cast<int64_t>(r),
                          static_cast<int64_t>(rng() % 100), layer.layer});
    int32_t id = static_cast<int32_t>(rng() % static_cast<size_t>(layer.experts));
    for (int32_t k = 0; k < trace.top_k; ++k) {
      const bool none = rng() % 8 == 0;
      trace.experts.push_back(none ? -1 : id);
      id = (id + 1) % layer.experts;
      const float w = std::ldexp(static_cast<float>(rng() % 1000003), -20);
      if (weights) trace.weights.push_back(none ? 0 : w);
    }
  }
  return trace;
}

bool equal(const RoutingTrace& a, const RoutingTrace& b) {
  if (a.top_k != b.top_k || a.layers != b.layers || a.experts != b.experts ||
      a.weights != b.weights || a.rows.size() != b.rows.size())
    return false;
  for (size_t r = 0; r < a.rows.size(); ++r) {
    const TraceRow &x = a.rows[r], &y = b.rows[r];
    if (x.seq != y.seq || x.step != y.step || x.token_pos != y.token_pos || x.layer != y.layer)
      return false;
  }
  return true;
}

}  // namespace

TEST_CASE("a written trace is read back equal", "[trace]") {
  std::mt19937_64 rng(test::seed());
  Folder folder;
  for (int i = 0; i < 40; ++i) {
    const RoutingTrace trace = random_trace(rng, i % 2 == 0);
    const std::string path = folder.file("trace.csv");
    REQUIRE(write_trace(trace, path).ok());
    const auto read = read_trace(path);
    REQUIRE(read.ok());
    CHECK(equal(*read, trace));
    CHECK_FALSE(std::filesystem::exists(path + ".partial"));
  }
}

TEST_CASE("the recorded trace, packed by gzip, is read whole", "[trace]") {
  if (!test::have_shared()) return test::skip("../shared is absent");
  const auto trace = read_trace(test::gptoss_path());
  REQUIRE(trace.ok());
  CHECK(trace->top_k == 4);
  CHECK(trace->weights.empty());
  REQUIRE(trace->layers.size() == 24);
  for (int32_t layer = 0; layer < 24; ++layer)
    CHECK(trace->layers[static_cast<size_t>(layer)] == LayerExperts{layer, 32});
  REQUIRE(trace->rows.size() == 130368);
  CHECK(trace->rows[25].step == 1);
  CHECK(trace->rows[25].token_pos == 147);
  CHECK(trace->experts[25 * 4 + 1] == 28);
}

TEST_CASE("a packed file that ends early is data_loss", "[trace]") {
  if (!test::have_shared()) return test::skip("../shared is absent");
  Folder folder;
  std::ifstream in(test::gptoss_path(), std::ios::binary);
  std::string bytes(100000, '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  std::ofstream(folder.file("cut.gz"), std::ios::binary) << bytes;
  CHECK(read_trace(folder.file("cut.gz")).status().code() == StatusCode::data_loss);
}

TEST_CASE("text in any pieces gives one trace", "[trace]") {
  const auto trace = parse_trace("layer,note,e0,e1\r\n 3 ,hello, 4,\r\n\r\n3,,-1,2");
  REQUIRE(trace.ok());
  CHECK(trace->layers == std::vector<LayerExperts>{{3, 5}});
  CHECK(trace->experts == std::vector<int32_t>{4, -1, -1, 2});
}

TEST_CASE("a wrong trace is refused with its line", "[trace]") {
  struct Wrong {
    const char* text;
    const char* message;
  };
  const Wrong wrong[] = {
      {"", "empty"},
      {"layer,e0\n", "no rows"},
      {"step,e0\n0,1\n", "line 1"},
      {"layer,e0,e2\n0,1,2\n", "line 1"},
      {"layer,e0,e0\n0,1,2\n", "line 1"},
      {"layer,e0,e1,w0\n0,1,2,3\n", "line 1"},
      {"layer,e0\n0,1\n0,x\n", "line 3: field 2 is 'x'"},
      {"layer,e0\n0,1\n0\n", "line 3: 1 fields; the header has 2"},
      {"layer,e0\n0,1\n0,1,2\n", "line 3: 3 fields; the header has 2"},
      {"layer,e0\n0,1\n\n0,99999999999\n", "line 4"},
      {"layer,e0\n-1,1\n", "line 2: layer is -1"},
      {"layer,e0\n65536,1\n", "line 2: layer is 65536"},
      {"layer,e0\n0,-2\n", "line 2: e0 is -2"},
      {"layer,e0,e1\n0,3,3\n", "line 2: expert 3 is chosen twice"},
      {"layer,experts,e0\n0,4,3\n0,4,4\n", "line 3: e0 is 4; layer 0 has 4 experts"},
      {"layer,experts,e0\n0,4,3\n0,5,4\n", "line 3: layer 0 has 5 experts here and 4 before"},
      {"layer,experts,e0\n0,0,\n", "line 2"},
      {"layer,e0,w0\n0,3,nan\n", "line 2: w0 is not finite"},
      {"layer,e0,w0\n0,3,0x\n", "line 2: field 3"},
  };
  for (const Wrong& each : wrong) {
    INFO(each.text);
    const auto trace = parse_trace(each.text, "some.csv");
    CHECK(trace.status().code() == StatusCode::invalid_argument);
    INFO(trace.status().message());
    CHECK(trace.status().message().find(each.message) != std::string_view::npos);
    CHECK(trace.status().place().file == "some.csv");
  }
  CHECK(parse_trace("layer,e0\n" + std::string(3 << 20, '1')).status().code() ==
        StatusCode::invalid_argument);
  CHECK(read_trace("/nonexistent/trace.csv").status().code() == StatusCode::not_found);
}

TEST_CASE("a recording appears complete or not at all", "[trace]") {
  Folder folder;
  const std::vector<LayerExperts> layers = {{0, 8}, {3, 8}};
  int32_t ids[] = {1, 2, 5, -1};
  float weights[] = {.75f, .25f, 1, 0};
  const Routing routing{2, 2, ids, weights};
  {
    auto writer = TraceWriter::create(folder.file("a.csv"), layers, 2);
    REQUIRE(writer.ok());
    REQUIRE(writer->append({.layer = 0}, routing).ok());
  }
  CHECK(folder.empty());

  auto writer = TraceWriter::create(folder.file("a.csv"), layers, 3);
  REQUIRE(writer.ok());
  REQUIRE(writer->append({.seq = 4, .step = 7, .token_pos = 10, .layer = 3}, routing).ok());
  ids[2] = 8;
  CHECK(writer->append({.layer = 0}, routing).code() == StatusCode::invalid_argument);
  CHECK(writer->append({.layer = 1}, routing).code() == StatusCode::invalid_argument);
  CHECK(writer->append({.layer = 0}, {1, 4, ids, weights}).code() == StatusCode::invalid_argument);
  CHECK(writer->append({.layer = 0}, {1, 2, ids, nullptr}).code() == StatusCode::invalid_argument);
  REQUIRE(writer->finish().ok());
  CHECK(writer->append({.layer = 0}, routing).code() == StatusCode::failed_precondition);
  CHECK(writer->finish().code() == StatusCode::failed_precondition);

  const auto trace = read_trace(folder.file("a.csv"));
  REQUIRE(trace.ok());
  CHECK(trace->layers == std::vector<LayerExperts>{{3, 8}});
  REQUIRE(trace->rows.size() == 2);
  CHECK(trace->rows[1].token_pos == 11);
  CHECK(trace->experts == std::vector<int32_t>{1, 2, -1, 5, -1, -1});
  CHECK(trace->weights == std::vector<float>{.75f, .25f, 0, 1, 0, 0});

  CHECK_FALSE(TraceWriter::create("/nonexistent/a.csv", layers, 2).ok());
  CHECK_FALSE(TraceWriter::create(folder.file("b.csv"), layers, 0).ok());
  CHECK_FALSE(TraceWriter::create(folder.file("b.csv"), {}, 2).ok());
}
