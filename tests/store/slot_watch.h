// Looks at a store's own state after every step of an interleaving: no slot may be reused while
// somebody may still use it. Knows who may from what readers did, not from the store's own waits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "store/store_impl.h"

namespace moe::test {

// Not for use by several threads; no lock of the store is held. `store` and the readers outlive it.
class SlotWatch {
 public:
  explicit SlotWatch(ExpertStore::Impl& store) : store_(store) {}

  // Before the reader enters for the first time.
  void add(const EpochReader& reader) { readers_.push_back({&reader, 0, {}}); }

  // Call after every step. Which slot is reused although
  //   - a table names it that was the newest at some time since a reader, still inside, entered;
  //   - it has the shared expert of versions that a forward holds between its waves;
  //   - somebody leases it.
  // Empty: none.
  std::string look() {
    see_new_tables();
    std::string wrong = look_at_readers();
    if (wrong.empty()) wrong = look_at_held();
    if (wrong.empty()) wrong = look_at_leases();
    return wrong;
  }

  // Looks that found a slot named by a pinned table although its copy was about to leave: nothing
  // but the wait for readers kept it there.
  int64_t kept() const { return kept_; }

 private:
  // What a slot has to hold.
  struct Named {
    CopyRef ref;
    int32_t layer, expert;
    uint32_t version;
  };
  using Names = std::shared_ptr<const std::vector<Named>>;  // of one table
  struct Reader {
    const EpochReader* reader;
    uint64_t entered;
    std::vector<Names> tables;  // that it may use
  };
  struct Newest {
    uint64_t epoch = 0;
    Names names;
  };
  struct Held {
    const StoreLayer* layer;
    std::weak_ptr<const LayerVersions> versions;
  };

  const ExpertCopy* find(CopyRef ref) const {
    const auto& copies = store_.classes[ref.slot_class].copies;
    return static_cast<size_t>(ref.slot) < copies.size() ? &copies[static_cast<size_t>(ref.slot)]
                                                         : nullptr;
  }
  bool holds(const Named& named) const {
    const ExpertCopy* copy = find(named.ref);
    return copy && copy->layer == named.layer && copy->expert == named.expert &&
           copy->version == named.version &&
           (copy->state == CopyState::ready || copy->state == CopyState::draining);
  }
  std::string reused(const Named& named, const char* although) const {
    const ExpertCopy* copy = find(named.ref);
    return "slot " + std::to_string(named.ref.slot) + " of expert " + std::to_string(named.expert) +
           " of layer " + std::to_string(named.layer) + ", version " +
           std::to_string(named.version) + ", is reused (" +
           (copy ? to_string(copy->state) : "gone") + ") although " + although;
  }

  static Named shared_of(const StoreLayer& layer, const LayerBlock& block) {
    return {{layer.shared.slot_class, block.shared_slot},
            static_cast<int32_t>(layer.index),
            kSharedExpert,
            block.version};
  }
  static Names names_of(const StoreLayer& layer, const ExpertTable& table) {
    auto all = std::make_shared<std::vector<Named>>();
    for (const Serving* serving : {static_cast<const Serving*>(&table), &table.candidate}) {
      if (!serving->versions) continue;
      for (size_t e = 0; e < serving->experts.size(); ++e)
        if (const TableCopy& copy = serving->experts[e]; copy.slot)
          all->push_back({{layer.routed.slot_class, copy.slot_index},
                          static_cast<int32_t>(layer.index),
                          static_cast<int32_t>(e),
                          copy.version});
      if (serving->block->shared_slot >= 0) all->push_back(shared_of(layer, *serving->block));
    }
    return all;
  }

  void see_new_tables() {
    newest_.resize(store_.layers.size());
    for (const auto& layer : store_.layers) {
      const ExpertTable& table = *layer->table.load();
      Newest& newest = newest_[layer->index];
      if (newest.epoch == table.epoch) continue;
      newest = {table.epoch, names_of(*layer, table)};
      for (Reader& reader : readers_) reader.tables.push_back(newest.names);
      for (const auto& versions : {table.versions, table.candidate.versions})
        if (versions) held_[versions.get()] = {layer.get(), versions};
    }
    for (Reader& reader : readers_) {
      const uint64_t entered = reader.reader->entered.load();
      if (std::exchange(reader.entered, entered) != entered) {  // it saw no table before
        reader.tables.clear();
        for (const Newest& newest : newest_) reader.tables.push_back(newest.names);
      }
      if (reader.reader->exited.load() == entered) reader.tables.clear();
    }
  }

  std::string look_at_readers() {
    bool kept = false;
    for (const Reader& reader : readers_)
      for (const Names& table : reader.tables)
        for (const Named& named : *table) {
          if (!holds(named)) return reused(named, "a pinned epoch's table names it");
          kept = kept || find(named.ref)->state == CopyState::draining;
        }
    kept_ += kept;
    return {};
  }

  std::string look_at_held() {
    std::erase_if(held_, [](const auto& held) { return held.second.versions.expired(); });
    for (const auto& [key, held] : held_) {
      const auto versions = held.versions.lock();
      if (versions->holders.count.load() == 0 || versions->block->shared_slot < 0) continue;
      const Named named = shared_of(*held.layer, *versions->block);
      if (!holds(named)) return reused(named, "a forward holds versions that name it");
    }
    return {};
  }

  // No step ends a lease and frees the slot: another critical section does that.
  std::string look_at_leases() {
    for (const Named& before : leased_)
      if (!holds(before)) return reused(before, "it is leased");
    leased_.clear();
    for (size_t c = 0; c < store_.classes.size(); ++c)
      for (size_t i = 0; i < store_.classes[c].copies.size(); ++i) {
        const ExpertCopy& copy = store_.classes[c].copies[i];
        const Named what{{c, static_cast<int64_t>(i)}, copy.layer, copy.expert, copy.version};
        if (copy.leases < 0) return reused(what, "its lease had not ended");
        if (copy.leases > 0) leased_.push_back(what);
      }
    return {};
  }

  ExpertStore::Impl& store_;
  std::vector<Reader> readers_;
  std::vector<Newest> newest_;                 // by store layer
  std::map<const LayerVersions*, Held> held_;  // all that tables named, and that live
  std::vector<Named> leased_;                  // when it looked last
  int64_t kept_ = 0;
};

}  // namespace moe::test
