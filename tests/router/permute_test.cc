#include "router/permute.h"

#include <random>

#include <simdjson.h>

#include "catch.h"

using namespace moe;
using namespace moe::test;

namespace {

void check_grouping(const std::vector<int32_t>& ids, int32_t experts) {
  const int64_t pairs = static_cast<int64_t>(ids.size());
  std::vector<int64_t> first(experts + 1, -7), order(ids.size(), -7);
  const int64_t grouped = group_pairs(ids.data(), pairs, experts, first.data(), order.data());
  REQUIRE(first[0] == 0);
  REQUIRE(first[experts] == grouped);
  std::vector<bool> seen(ids.size());
  for (int32_t e = 0; e < experts; ++e)
    for (int64_t at = first[e]; at < first[e + 1]; ++at) {
      const int64_t p = order[at];
      REQUIRE((p >= 0 && p < pairs));
      REQUIRE_FALSE(seen[p]);  // one to one
      seen[p] = true;
      REQUIRE(ids[p] == e);
      if (at > first[e]) REQUIRE(order[at - 1] < p);  // stable
    }
  for (int64_t p = 0; p < pairs; ++p) REQUIRE(seen[p] == (ids[p] >= 0 && ids[p] < experts));
}

}  // namespace

TEST_CASE("grouping is one to one, by expert, and stable", "[router][mission-21]") {
  std::mt19937_64 random(seed());
  for (int64_t pairs : {0, 1, 2, 17, 1000, 32776})
    for (int32_t experts : {1, 2, 7, 64, 512, 4096}) {
      std::vector<int32_t> ids(pairs);
      for (int32_t& id : ids)  // with zero experts above and -1 below
        id = static_cast<int32_t>(random() % (experts + experts / 4 + 2)) - 1;
      check_grouping(ids, experts);
      check_grouping(std::vector<int32_t>(pairs, experts - 1), experts);
      check_grouping(std::vector<int32_t>(pairs, -1), experts);
    }
}

TEST_CASE("align_block_size equals vLLM's", "[router][mission-29]") {
  if (!have_shared()) return skip("../shared is absent");
  simdjson::dom::parser parser;
  simdjson::dom::element file = parser.load(shared_dir() + "/vectors/moe_align_golden.json");
  const auto numbers = [](simdjson::dom::element list) {
    std::vector<int32_t> out;
    for (auto value : list.get_array()) {
      if (!value.is_array()) out.push_back(static_cast<int32_t>(int64_t(value)));
      if (value.is_array())
        for (int64_t inner : value.get_array()) out.push_back(static_cast<int32_t>(inner));
    }
    return out;
  };
  int cases = 0;
  for (simdjson::dom::element test : file["cases"].get_array()) {
    ++cases;
    const auto ids = numbers(test["topk_ids"]);
    const auto experts = static_cast<int32_t>(int64_t(test["num_experts"]));
    const auto block = static_cast<int32_t>(int64_t(test["block_size"]));
    std::vector<int32_t> map;
    if (test["expert_map"].is_array()) map = numbers(test["expert_map"]);
    const int64_t pairs = static_cast<int64_t>(ids.size());
    const auto wanted_pairs = numbers(test["sorted_token_ids"]);
    const auto wanted_experts = numbers(test["expert_ids"]);

    const int64_t capacity = aligned_capacity(pairs, experts, block);
    REQUIRE(capacity == static_cast<int64_t>(wanted_pairs.size()));
    std::vector<int32_t> sorted(capacity, -7), blocks((capacity + block - 1) / block, -7);
    std::vector<int64_t> scratch(experts);
    AlignedBlocks out{sorted.data(), blocks.data()};
    align_block_size(ids.data(), pairs, experts, block, map.empty() ? nullptr : map.data(),
                     scratch.data(), &out);
    CHECK(out.used == int64_t(test["num_tokens_post_pad"]));
    CHECK(blocks == wanted_experts);
    CHECK(sorted == wanted_pairs);  // ours is stable, as the golden reference is
  }
  CHECK(cases == 6);
}
