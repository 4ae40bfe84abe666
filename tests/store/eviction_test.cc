// Every eviction policy against its definition, evaluated the slow way.
#include "moe/eviction.h"

#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "catch.h"

using namespace moe;

namespace {

using Rng = std::mt19937_64;

int32_t below(Rng& rng, size_t n) { return static_cast<int32_t>(rng() % n); }

// What is known of one expert. A policy's definition is a key: the least one goes.
struct Expert {
  ExpertId id;
  int32_t position = 0;
  bool resident = false;
  bool leased = false;
  bool needed = false;  // by the forward in progress
  bool missed = false;  // by its last forward, and not inserted since
  uint64_t last_use = 0;
  uint64_t uses = 0;
  uint64_t uses_in_sequence = 0;
  int64_t last_turn = std::numeric_limits<int64_t>::min();  // the forward that used it last
  double score = 0;                                         // HybriMoE's
  double popularity = 0;
};

// A pool in plain arrays, driven at random; every victim is compared with the definition.
class World : public EvictionCandidates {
 public:
  using Key = std::tuple<double, double, double>;
  using Definition = Key (*)(const World&, const Expert&);

  World(Rng& rng, bool cyclic) : rng_(rng), cyclic_(cyclic) {
    const int32_t count = 1 + below(rng, 6);
    for (int32_t p = 0; p < count; ++p) {
      layers.push_back({2 * p + below(rng, 2), 2 + below(rng, 12)});
      for (int32_t e = 0; e < layers.back().experts; ++e) {
        Expert expert;
        expert.id = {layers.back().layer, e};
        expert.position = p;
        expert.popularity = below(rng, 5);
        experts.push_back(expert);
      }
    }
    slots_ = 1 + below(rng, experts.size());
    layer_uses.assign(layers.size(), 0);
    for (int32_t p = 0; p < count; ++p) last_visit_.push_back(p + 1 - count);
  }

  bool contains(ExpertId id) const noexcept override {
    for (const Expert& e : experts)
      if (e.id == id) return e.resident && !e.leased && !e.needed;
    return false;
  }

  EvictionOptions options() const {
    EvictionOptions options{.layers = layers};
    for (const Expert& e : experts) options.popularity.push_back(e.popularity);
    return options;
  }

  // One forward; returns how many experts it asked for, or -1 after a wrong victim.
  int64_t forward(EvictionPolicy& policy, Definition definition) {
    policy_ = &policy;
    definition_ = definition;
    if (rng_() % 64 == 0) end_sequence();
    if (rng_() % 4 == 0) prefetch();
    if (rng_() % 16 == 0) lease();
    const int64_t asked = access();
    for (Expert* e : needed_) {
      if (!e->resident && !make_room(e)) return -1;
    }
    for (Expert& e : experts) e.needed = false;
    if (rng_() % 16 == 0 && held_ > 0 && !shrink()) return -1;
    return asked;
  }

  int32_t distance(const Expert& e) const {
    const int32_t l = static_cast<int32_t>(layers.size());
    const int32_t ahead = ((e.position - current) % l + l) % l;
    return ahead == 0 ? l : ahead;
  }

  std::vector<LayerExperts> layers;
  std::vector<Expert> experts;
  std::vector<uint64_t> layer_uses;  // in this sequence
  int32_t current = 0;
  int64_t turn = 0;
  int64_t evictions = 0;

 private:
  Expert& find(int32_t position, int32_t expert) {
    return *std::find_if(experts.begin(), experts.end(), [&](const Expert& e) {
      return e.position == position && e.id.expert == expert;
    });
  }

  void end_sequence() {
    policy_->sequence_ended();
    for (Expert& e : experts) e.uses_in_sequence = 0;
    layer_uses.assign(layers.size(), 0);
  }

  // A distinct random set, in random order, of one layer.
  int64_t access() {
    if (turn > 0)
      current = static_cast<int32_t>((cyclic_ ? static_cast<size_t>(current) + 1 : rng_()) %
                                     layers.size());
    ++turn;
    const size_t p = static_cast<size_t>(current);
    last_visit_[p] = turn;
    std::vector<int32_t> set(static_cast<size_t>(layers[p].experts));
    for (size_t i = 0; i < set.size(); ++i) set[i] = static_cast<int32_t>(i);
    std::shuffle(set.begin(), set.end(), rng_);
    set.resize(1 + rng_() % std::min<size_t>(set.size(), 4));
    std::vector<float> probabilities;
    if (rng_() % 2) probabilities = random_probabilities(set);
    score(set, probabilities);

    needed_.clear();
    for (int32_t expert : set) {
      Expert& e = find(current, expert);
      e.last_use = ++clock_;
      e.last_turn = turn;
      e.missed = !e.resident;
      ++e.uses;
      ++e.uses_in_sequence;
      ++layer_uses[p];
      e.needed = true;
      needed_.push_back(&e);
    }
    policy_->accessed({layers[p].layer, set, probabilities});
    return static_cast<int64_t>(set.size());
  }

  std::vector<float> random_probabilities(const std::vector<int32_t>& set) {
    std::vector<float> p(static_cast<size_t>(layers[static_cast<size_t>(current)].experts));
    for (int32_t e : set) p[static_cast<size_t>(e)] = static_cast<float>(1 + rng_() % 64) / 64;
    return p;
  }

  void score(const std::vector<int32_t>& set, const std::vector<float>& probabilities) {
    for (Expert& e : experts) {
      if (e.position != current) continue;
      double p = 0;
      if (!probabilities.empty())
        p = probabilities[static_cast<size_t>(e.id.expert)];
      else if (std::find(set.begin(), set.end(), e.id.expert) != set.end())
        p = 1.0 / static_cast<double>(set.size());
      e.score = 0.5 * p + 0.5 * e.score;
    }
  }

  bool make_room(Expert* incoming) {
    if (held_ == slots_ && !evict(incoming->id)) return false;
    if (held_ == slots_) return true;  // nobody may go: it waits for the next wave
    insert(*incoming);
    return true;
  }

  void insert(Expert& e) {
    if (!e.missed || e.last_turn < last_visit_[static_cast<size_t>(e.position)]) {
      e.last_use = ++clock_;
      e.last_turn = last_visit_[static_cast<size_t>(e.position)];
    }
    e.missed = false;
    e.resident = true;
    ++held_;
    policy_->inserted(e.id);
  }

  // False if the policy did not choose as defined.
  bool evict(ExpertId incoming) {
    Expert* least = nullptr;
    for (Expert& e : experts) {
      if (!contains_now(e)) continue;
      if (!least || definition_(*this, e) < definition_(*this, *least)) least = &e;
    }
    const ExpertId chosen = policy_->victim(incoming, *this);
    if (!(chosen == (least ? least->id : ExpertId{}))) {
      UNSCOPED_INFO("chose " << chosen.layer << "." << chosen.expert << ", wanted "
                             << (least ? least->id.layer : -1) << "."
                             << (least ? least->id.expert : -1));
      return false;
    }
    if (!least) return true;
    least->resident = false;
    --held_;
    ++evictions;
    policy_->evicted(least->id);
    return true;
  }

  bool contains_now(const Expert& e) const { return e.resident && !e.leased && !e.needed; }

  bool shrink() { return evict({}); }

  void prefetch() {
    Expert& e = experts[rng_() % experts.size()];
    if (!e.resident && held_ < slots_) insert(e);
  }

  void lease() {
    for (Expert& e : experts) e.leased = rng_() % 8 == 0;
  }

  Rng& rng_;
  bool cyclic_;
  int64_t slots_ = 0, held_ = 0;
  uint64_t clock_ = 0;
  // Per layer, the number of its last forward; before the first, what it would have been.
  std::vector<int64_t> last_visit_;
  std::vector<Expert*> needed_;
  EvictionPolicy* policy_ = nullptr;
  Definition definition_ = nullptr;
};

double number(uint64_t x) { return static_cast<double>(x); }

World::Key lru(const World&, const Expert& e) { return {number(e.last_use), 0, 0}; }
World::Key lfu(const World&, const Expert& e) { return {number(e.uses), number(e.last_use), 0}; }
World::Key pin(const World&, const Expert& e) { return {e.popularity, number(e.last_use), 0}; }
World::Key hybrimoe(const World&, const Expert& e) { return {e.score, number(e.last_use), 0}; }
// The definition to the letter, which needs layers in turn.
World::Key llru(const World& w, const Expert& e) {
  const int64_t layers = static_cast<int64_t>(w.layers.size());
  const int64_t rounds = w.turn + w.distance(e) - e.last_turn;
  return {static_cast<double>(-(rounds / layers)), -w.distance(e), e.id.expert};
}
World::Key moe_infinity(const World& w, const Expert& e) {
  const size_t p = static_cast<size_t>(e.position);
  const double nearness = 1 - w.distance(e) / (static_cast<double>(w.layers.size()) + 1.0);
  const double factor = nearness / (number(w.layer_uses[p]) + w.layers[p].experts);
  return {number((e.uses_in_sequence + 1) * e.uses) * factor, number(e.last_use), 0};
}

void prove(const std::string& name, World::Definition definition, bool cyclic) {
  Rng rng(test::seed());
  int64_t accesses = 0, evictions = 0;
  for (int world = 0; accesses < 1'000'000; ++world) {
    INFO(name << ", world " << world);
    World w(rng, cyclic);
    auto policy = make_eviction_policy(name, w.options());
    REQUIRE(policy.ok());
    CHECK((*policy)->name() == name);
    for (int i = 0; i < 5000; ++i) {
      const int64_t asked = w.forward(**policy, definition);
      if (asked < 0) FAIL("wrong victim at forward " << i);
      accesses += asked;
    }
    evictions += w.evictions;
  }
  CHECK(evictions > 100'000);
}

}  // namespace

TEST_CASE("LRU evicts what its definition says, on 10^6 random accesses", "[mission-82]") {
  prove("lru", lru, false);
}
TEST_CASE("LFU evicts what its definition says, on 10^6 random accesses", "[mission-82]") {
  prove("lfu", lfu, false);
}
TEST_CASE("static popularity evicts what its definition says, on 10^6 random accesses",
          "[mission-82]") {
  prove("pin", pin, false);
}
TEST_CASE("LLRU evicts what its definition says, on 10^6 random accesses", "[mission-85]") {
  prove("llru", llru, true);
}
TEST_CASE("HybriMoE's score evicts what its definition says, on 10^6 random accesses",
          "[mission-82]") {
  prove("hybrimoe", hybrimoe, false);
}
TEST_CASE("MoE-Infinity's score evicts what its definition says, on 10^6 random accesses",
          "[mission-82]") {
  prove("moe-infinity", moe_infinity, false);
}
