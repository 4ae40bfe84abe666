// Residents ordered by a key, least first. Memory is taken once.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace moe {

// A binary heap that knows where everybody is. Holds indices of [first, first + count); equal keys
// are ordered by index.
template <class Key>
class VictimHeap {
 public:
  struct Node {
    Key key;
    int32_t index;
    bool operator<(const Node& other) const {
      return key < other.key || (key == other.key && index < other.index);
    }
  };

  VictimHeap(int32_t first, int32_t count) : first_(first) {
    place_.assign(static_cast<size_t>(count), -1);
    heap_.reserve(static_cast<size_t>(count));
  }

  void insert(int32_t index, const Key& key) {
    heap_.push_back({key, index});
    up(heap_.size() - 1, {key, index});
  }

  // Nothing happens if `index` is not in.
  void update(int32_t index, const Key& key) {
    if (place(index) >= 0) put(static_cast<size_t>(place(index)), {key, index});
  }

  void erase(int32_t index) {
    const size_t hole = static_cast<size_t>(std::exchange(place(index), -1));
    const Node last = heap_.back();
    heap_.pop_back();
    if (last.index != index) put(hole, last);
  }

  // Changes all keys at once: change(index, key).
  template <class Change>
  void rekey(Change change) {
    for (Node& node : heap_) change(node.index, node.key);
    for (size_t at = heap_.size(); at-- > 0;) down(at, heap_[at]);
  }

  // The least node that `may_go`, or null. Looks below a node only if that one may not go, so it
  // costs what stands in front, not what is in.
  template <class MayGo>
  const Node* least(const MayGo& may_go) const {
    const Node* best = nullptr;
    search(0, may_go, &best);
    return best;
  }

 private:
  int32_t& place(int32_t index) { return place_[static_cast<size_t>(index - first_)]; }

  void set(size_t at, const Node& node) {
    heap_[at] = node;
    place(node.index) = static_cast<int32_t>(at);
  }
  void put(size_t at, const Node& node) {
    if (at > 0 && node < heap_[(at - 1) / 2])
      up(at, node);
    else
      down(at, node);
  }
  void up(size_t at, const Node& node) {
    for (; at > 0 && node < heap_[(at - 1) / 2]; at = (at - 1) / 2) set(at, heap_[(at - 1) / 2]);
    set(at, node);
  }
  void down(size_t at, Node node) {
    for (size_t child; (child = 2 * at + 1) < heap_.size(); at = child) {
      if (child + 1 < heap_.size() && heap_[child + 1] < heap_[child]) ++child;
      if (!(heap_[child] < node)) break;
      set(at, heap_[child]);
    }
    set(at, node);
  }

  template <class MayGo>
  void search(size_t at, const MayGo& may_go, const Node** best) const {
    if (at >= heap_.size() || (*best && !(heap_[at] < **best))) return;
    if (may_go(heap_[at].index)) {
      *best = &heap_[at];
      return;
    }
    search(2 * at + 1, may_go, best);
    search(2 * at + 2, may_go, best);
  }

  int32_t first_;
  std::vector<int32_t> place_;  // in heap_, by index; -1: not in
  std::vector<Node> heap_;
};

}  // namespace moe
