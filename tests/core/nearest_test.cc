#include "core/nearest.h"

#include <algorithm>
#include <random>

#include "catch.h"

using namespace moe;

namespace {
// The definition, without any of the shortcuts.
int slow_distance(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return static_cast<int>(a.size() + b.size());
  const std::string x = a.substr(1), y = b.substr(1);
  if (a[0] == b[0]) return slow_distance(x, y);
  return 1 + std::min({slow_distance(x, b), slow_distance(a, y), slow_distance(x, y)});
}
}  // namespace

TEST_CASE("edit_distance equals its definition", "[core]") {
  std::mt19937_64 random(test::seed());
  const auto word = [&] {
    std::string text(random() % 7, ' ');
    for (char& c : text) c = "abc"[random() % 3];
    return text;
  };
  for (int i = 0; i < 300; ++i) {
    const std::string a = word(), b = word();
    const int limit = static_cast<int>(random() % 8);
    CAPTURE(a, b, limit);
    CHECK(edit_distance(a, b, limit) == std::min(slow_distance(a, b), limit + 1));
  }
}

TEST_CASE("NearestName suggests what is near, and nothing else", "[core]") {
  NearestName nearest("num_expert_per_tok");
  for (const char* name : {"num_local_experts", "num_experts_per_tok", "num_hidden_layers"})
    nearest.offer(name);
  CHECK(nearest.suggestion() == "; did you mean \"num_experts_per_tok\"?");
  NearestName far("hidden_size");
  far.offer("vocab");
  CHECK(far.suggestion().empty());
}
