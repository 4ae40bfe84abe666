// Which expert leaves when another one needs its slot. An EvictionPolicy is told what happens to
// the experts of one pool, and answers one question: who may go. A host may bring its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/export.h"
#include "moe/status.h"

namespace moe {

// One routed expert of one layer.
struct ExpertId {
  int32_t layer = -1;   // the checkpoint's own index
  int32_t expert = -1;  // logical index; -1: none

  friend bool operator==(const ExpertId&, const ExpertId&) = default;
};

// How many experts a layer has.
struct LayerExperts {
  int32_t layer = -1;   // the checkpoint's own index
  int32_t experts = 0;  // routed ones

  friend bool operator==(const LayerExperts&, const LayerExperts&) = default;
};

// What one forward of one layer needs, whether it is resident or not. Told once per forward,
// however many waves it takes, before anything is evicted or inserted for it.
struct ExpertAccess {
  int32_t layer = -1;                // the checkpoint's own index
  std::span<const int32_t> experts;  // distinct; a later one counts as used more recently

  // (experts of the layer): mean over the rows of the router's weight, 0 where it is not known.
  // Empty: not known at all.
  std::span<const float> probabilities;
};

// What a policy has learnt, as numbers under names of its own, so that another one goes on from
// there.
struct PolicyMemory {
  // One array of them.
  struct Part {
    std::string name;            // "uses"
    std::vector<double> values;  // finite

    friend bool operator==(const Part&, const Part&) = default;
  };
  std::vector<Part> parts;  // in the policy's own order

  friend bool operator==(const PolicyMemory&, const PolicyMemory&) = default;
};

// The resident experts that may go now: not those that the forward still needs, nor leased ones.
class MOE_API EvictionCandidates {
 public:
  // True if `id` may go.
  virtual bool contains(ExpertId id) const noexcept = 0;

 protected:
  ~EvictionCandidates() = default;
};

// Serves one pool. Deterministic: the same calls give the same victims. Not thread-safe: its owner
// calls it under one lock. Experts that it was not made for are ignored.
class MOE_API EvictionPolicy {
 public:
  virtual ~EvictionPolicy();

  // "lru"; never null, lives as long as the policy.
  virtual const char* name() const noexcept = 0;

  // A forward begins.
  virtual void accessed(const ExpertAccess& access) noexcept = 0;

  // The expert holds a slot from now on: after a miss, or because somebody expects to need it.
  virtual void inserted(ExpertId id) noexcept = 0;

  // The expert holds no slot any more, whether victim() named it or not.
  virtual void evicted(ExpertId id) noexcept = 0;

  // The resident expert to evict, so that `incoming` can have its slot, or {} if none of the
  // candidates is known. incoming.expert is -1 when the pool shrinks. Evicts nothing by itself:
  // evicted() follows if the owner does so.
  virtual ExpertId victim(ExpertId incoming, const EvictionCandidates& candidates) noexcept = 0;

  // Most slots that experts of `layer` may hold in a pool of `slots`. A layer that holds as many
  // evicts one of its own, though others may be free.
  virtual int64_t limit(int32_t layer, int64_t slots) const noexcept;

  // A sequence (prompt and answer) is over; the next forward belongs to another.
  virtual void sequence_ended() noexcept;

  // Everything that decides about victims, but for who is resident. A policy that says nothing here
  // begins anew after a restart. Throws std::bad_alloc.
  virtual PolicyMemory memory() const;

  // Goes on where the policy of the same name and for the same experts was that gave `memory`; who
  // is resident stays as it is. invalid_argument, and no change, if it is no such memory.
  virtual Status restore(const PolicyMemory& memory);
};

// What the built-in policies are made from.
struct EvictionOptions {
  std::vector<LayerExperts> layers;  // of the pool, in the order of a forward; ascending

  // `pin`: how often each expert is used; layer after layer, as in `layers`. Empty: all alike.
  std::vector<double> popularity;

  // `hybrimoe`: how fast a score follows the router, in (0, 1), and how many of a layer's most
  // probable experts are scored.
  double hybrimoe_rate = 0.5;
  int32_t hybrimoe_top = 12;  // at least 1
};

// One factory per policy. Each makes it, or says which option is wrong.

// Least recently used.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_lru(const EvictionOptions& options);
// Every layer has an equal share of the slots and its own LRU (Mixtral-offloading, arXiv
// 2312.17238). A remainder goes to the first layers, one slot each.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_lru_per_layer(const EvictionOptions& options);
// Least frequently used. Counts survive eviction; equal counts go to the least recent.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_lfu(const EvictionOptions& options);
// As lru-per-layer, by frequency.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_lfu_per_layer(const EvictionOptions& options);
// Layer-aware LRU: the most rounds without use as of the layer's next turn; then the layer whose
// turn comes last; then the lower index. Our reconstruction of "LLRU" (layered paging, arXiv
// 2509.02408), whose definition is not public. Equals LRU when there is one layer, but for ties
// among experts of one forward.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_llru(const EvictionOptions& options);
// The lowest score; s <- rate * p + (1 - rate) * s at each forward of the layer, p being the
// router's probability of the layer's `hybrimoe_top` most probable experts and 0 for the others
// (HybriMoE). Equal scores go to the least recent. Without probabilities the experts of a forward
// share 1.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_hybrimoe(const EvictionOptions& options);
// The lowest (1 - d / (L + 1)) * (n + 1) / (N + E) * f (after MoE-Infinity, arXiv 2401.14361): d
// layers until the layer's next turn, n of the sequence's N uses in this layer of E experts, f uses
// in all sequences, this one included. Equal scores go to the least recent.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_moe_infinity(const EvictionOptions& options);
// The least popular, by EvictionOptions::popularity; equal ones go to the least recent.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_pin(const EvictionOptions& options);

// A row of the table of built-in policies.
struct EvictionPolicyRow {
  const char* name;         // what make_eviction_policy() takes
  const char* description;  // one line for people
  // The policy, or what is wrong with the options.
  Result<std::unique_ptr<EvictionPolicy>> (*make)(const EvictionOptions& options);
};

// Every built-in policy, the default first.
MOE_API std::span<const EvictionPolicyRow> eviction_policy_rows();

// The policy called `name` ("" is the default), or not_found with the list of names.
MOE_API Result<std::unique_ptr<EvictionPolicy>> make_eviction_policy(
    std::string_view name, const EvictionOptions& options);

}  // namespace moe
