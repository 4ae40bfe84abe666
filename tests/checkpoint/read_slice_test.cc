// read_slice() takes the right elements, and no byte of another expert.
#include "checkpoint/read_slice.h"

#include <cstring>
#include <random>
#include <vector>

#include "catch.h"
#include "checkpoint/axes.h"

using namespace moe;

namespace {

struct Layout {
  const char* axes;
  char row, column;
  bool pair;
};

constexpr Layout kLayouts[] = {
    {"e (g i) h", 'i', 'h', true}, {"e h (g i)", 'i', 'h', true}, {"e h (i g)", 'i', 'h', true},
    {"e (i g) h", 'i', 'h', true}, {"e h i", 'h', 'i', false},    {"e i h", 'h', 'i', false},
    {"(e i) h", 'i', 'h', false},  {"(e i) h", 'h', 'i', false},  {"i h", 'i', 'h', false},
};

// A stored tensor whose element n is n.
struct Stored {
  int64_t lowest = INT64_MAX, highest = 0, bytes = 0;

  Status read(int64_t offset, int64_t count, void* out) {
    lowest = std::min(lowest, offset);
    highest = std::max(highest, offset + count);
    bytes += count;
    REQUIRE(offset % 4 == 0);
    REQUIRE(count % 4 == 0);
    for (int64_t i = 0; i < count / 4; ++i)
      static_cast<uint32_t*>(out)[i] = static_cast<uint32_t>(offset / 4 + i);
    return {};
  }
};

void check(const Layout& layout, const Extents& extents, int64_t expert, int64_t half) {
  const StoredLayout stored = stored_layout(layout.axes, extents);
  const int64_t rows = layout.row == 'i' ? extents.intermediate : extents.hidden;
  const int64_t columns = layout.column == 'i' ? extents.intermediate : extents.hidden;
  TensorSlice slice{.stored = stored, .shape = {rows, columns}};
  slice.base = expert * stored.step('e') + half * stored.step('g');
  slice.row_step = stored.step(layout.row);
  slice.column_step = stored.step(layout.column);

  Stored file;
  std::vector<uint32_t> out(static_cast<size_t>(rows * columns), 0xffffffff);
  const Status status = read_slice(
      slice, [&](int64_t offset, int64_t bytes, void* to) { return file.read(offset, bytes, to); },
      {out.data(), DType::f32, {rows, columns}});
  REQUIRE(status.ok());
  int64_t wrong = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      wrong += out[static_cast<size_t>(r * columns + c)] !=
               slice.base + r * slice.row_step + c * slice.column_step;
  CHECK(wrong == 0);
  const int64_t of_expert = extents.hidden * extents.intermediate * (layout.pair ? 2 : 1) * 4;
  const int64_t first = std::string_view(layout.axes).front() == 'i' ? 0 : expert * of_expert;
  CHECK(file.lowest >= first);
  CHECK(file.highest <= first + of_expert);
  CHECK(file.bytes <= of_expert);
}

}  // namespace

TEST_CASE("one expert is read without a byte of the others", "[checkpoint][mission-12]") {
  std::mt19937_64 random(test::seed());
  for (int round = 0; round < 40; ++round) {
    const bool large = round == 0;  // several pieces of 1 MiB
    const auto extent = [&] { return static_cast<int64_t>(1 + random() % (large ? 900 : 40)); };
    const Extents extents{.candidates = 1,
                          .hidden = large ? 700 : extent(),
                          .intermediate = large ? 900 : extent(),
                          .experts = 1 + static_cast<int64_t>(random() % 5),
                          .top_k = 1};
    for (const Layout& layout : kLayouts) {
      INFO(layout.axes << " hidden " << extents.hidden << " intermediate " << extents.intermediate);
      for (int64_t half = 0; half <= (layout.pair ? 1 : 0); ++half)
        check(layout, extents, extents.experts - 1, half);
    }
  }
}

TEST_CASE("axes describe shapes and steps", "[checkpoint]") {
  const Extents extents{.candidates = 9, .hidden = 6, .intermediate = 5, .experts = 4, .top_k = 2};
  const StoredLayout fused = stored_layout("e h (i g)", extents);
  CHECK(shape_text(fused.shape) == "[4, 6, 10]");
  CHECK(fused.step('e') == 60);
  CHECK(fused.step('h') == 10);
  CHECK(fused.step('i') == 2);
  CHECK(fused.step('g') == 1);
  CHECK(fused.step('c') == 0);
  CHECK(shape_text(stored_layout("2 c", extents).shape) == "[2, 9]");
  CHECK(stored_layout("2 c", extents).step('c') == 1);
  CHECK(shape_text(stored_layout("(e i) h", extents).shape) == "[20, 6]");
  CHECK(stored_layout("v k", extents).shape[0] == kAnyExtent);
  CHECK(stored_layout("v k", extents).step('v') == 2);
}
