#include <limits>
#include <numeric>

#include "placement/assignment.h"

namespace moe::placement {
namespace {

// One change: slots a and b exchanged, or slot a overwritten by `expert`.
struct Move {
  int32_t a = -1, b = -1, expert = -1;
  double peak = std::numeric_limits<double>::infinity();  // of the ranks it touches
  double gain = 0;                                        // per copy moved
};

class Search {
 public:
  Search(Assignment& assignment, bool frugal) : a_(assignment), frugal_(frugal) {
    // Large layers look only at the lightest ranks: their neighbourhoods are rich enough.
    partners_ = a_.slots() > 2048 ? std::min(a_.ranks() - 1, 8) : a_.ranks() - 1;
  }

  void run(double target) {
    const double mean = a_.mean();
    // Far more than ever seen; a bound all the same.
    for (int64_t steps = 8 * int64_t{a_.slots()}; steps > 0; --steps) {
      busiest_ = a_.busiest();
      if (a_.load(busiest_) <= target * mean * (1 + 1e-12)) return;
      const Move move = best_move();
      if (move.a < 0) return;
      if (move.b >= 0)
        a_.swap(move.a, move.b);
      else
        a_.put(move.a, move.expert);
    }
  }

 private:
  Move best_move() {
    order_.resize(a_.ranks());
    std::iota(order_.begin(), order_.end(), 0);
    std::erase(order_, busiest_);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t x, int32_t y) { return a_.load(x) < a_.load(y); });
    order_.resize(partners_);
    Move best;
    for (int32_t a = a_.begin(busiest_); a < a_.end(busiest_); ++a)
      if (a_.expert(a) >= 0) try_swaps(a, best);
    if (best.a >= 0 && !frugal_) return best;
    for (int32_t a = a_.begin(busiest_); a < a_.end(busiest_); ++a) {
      if (a_.expert(a) < 0) continue;
      try_copies_elsewhere(a, best);
      try_replacing(a, best);
    }
    return best;
  }

  void offer(const Move& move, int copies, Move& best) {
    const double now = a_.load(busiest_), gain = (now - move.peak) / copies;
    if (gain <= 1e-9 * now || gain <= best.gain) return;
    best = move;
    best.gain = gain;
  }

  void try_swaps(int32_t a, Move& best) {
    const double now = a_.load(busiest_), mine = a_.share(a_.expert(a));
    for (int32_t rank : order_) {
      for (int32_t b = a_.begin(rank); b < a_.end(rank); ++b) {
        const double shift = mine - a_.share(a_.expert(b));
        if (shift <= 0) continue;
        const double peak = std::max(now - shift, a_.load(rank) + shift);
        const int copies = a_.expert(b) < 0 ? 1 : 2;
        if ((now - peak) / copies <= best.gain || !a_.may_swap(a, b)) continue;
        offer({a, b, -1, peak}, copies, best);
      }
    }
  }

  // Another copy of the busy rank's expert, over some replica that can be spared.
  void try_copies_elsewhere(int32_t a, Move& best) {
    const int32_t e = a_.expert(a);
    for (int32_t rank : order_) {
      if (a_.holds(rank, e)) continue;
      for (int32_t b = a_.begin(rank); b < a_.end(rank); ++b)
        if (spare(a_.expert(b))) try_overwriting(b, e, best);
    }
  }

  // Its copy of a replicated expert gives way to one more copy of a lighter expert.
  void try_replacing(int32_t a, Move& best) {
    if (!spare(a_.expert(a)) || a_.slots() > 2048) return;
    for (int32_t f = 0; f < a_.experts(); ++f)
      if (!a_.holds(busiest_, f)) try_overwriting(a, f, best);
  }

  void try_overwriting(int32_t slot, int32_t expert, Move& best) {
    const double there = a_.load(a_.rank(slot)) - a_.share(a_.expert(slot)) +
                         a_.weight(expert) / (a_.copies(expert) + 1);
    const double now = a_.load(busiest_);
    if (now - there > std::max(best.gain, 1e-9 * now))
      offer({slot, -1, expert, peak_after(slot, expert)}, 1, best);
  }

  bool spare(int32_t expert) const { return expert < 0 || a_.copies(expert) > 1; }

  // Highest load among the ranks that putting `in` into `slot` touches, the busiest included.
  double peak_after(int32_t slot, int32_t in) const {
    const int32_t out = a_.expert(slot), rank = a_.rank(slot);
    const double share = a_.weight(in) / (a_.copies(in) + 1);  // of a copy of `in` then
    const auto less = [&](int32_t r) { return a_.holds(r, in) ? a_.share(in) - share : 0; };
    double peak = a_.load(rank) + share - a_.share(out);
    if (busiest_ != rank) peak = std::max(peak, a_.load(busiest_) - less(busiest_));
    if (out < 0) return peak;
    const double more = a_.weight(out) / (a_.copies(out) - 1) - a_.share(out);
    for (int32_t r : a_.holders(out))
      if (r != rank) peak = std::max(peak, a_.load(r) + more - less(r));
    return peak;
  }

  Assignment& a_;
  bool frugal_;
  int32_t partners_;
  int32_t busiest_ = 0;
  std::vector<int32_t> order_;
};

}  // namespace

void relieve_busiest(Assignment& assignment, double target, bool frugal) {
  if (assignment.ranks() > 1) Search(assignment, frugal).run(target);
}

}  // namespace moe::placement
