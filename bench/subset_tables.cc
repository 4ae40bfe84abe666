// Marchal's experiments on expert subsets: expected time of a token against memory.
//   subset_tables [PAIRS]    Mixtral's pairs (any usage file with sets of 8 experts); without it,
//                            made-up ones. DBRX's shape is always made up.
#include <cstdio>

#include "placement/subset_cases.h"

namespace {
using namespace moe;
using namespace moe::test;

template <class T>
T must(Result<T> result) {
  if (result.ok()) return *std::move(result);
  std::fprintf(stderr, "%s\n", result.status().message().data());
  std::exit(1);
}

double mean_of_random(const UsageTrace& usage, const Cluster& cluster) {
  constexpr int kDraws = 100;
  placement::Random random(1);
  double sum = 0;
  for (int i = 0; i < kDraws; ++i)
    sum += mean_time(usage, cluster, random_placement(usage, cluster, random));
  return sum / kDraws;
}

void print_time_against_memory(const char* title, const UsageTrace& usage, int32_t ranks) {
  const int32_t experts = usage.layers[0].experts();
  std::printf("\n%s: %zu layers, %d experts, %d ranks; expected time of a token in experts\n",
              title, usage.layers.size(), experts, ranks);
  std::printf("%14s%8s%10s%10s%10s%10s%10s\n", "experts/rank", "memory", "random", "linear", "EPLB",
              "greedy", "subset");
  const int32_t least = (experts + ranks - 1) / ranks, step = std::max(1, (experts - least) / 6);
  for (int32_t slots = least; slots <= experts; slots += step) {
    const Cluster cluster = must(Cluster::uniform(ranks, slots));
    const auto time = [&](const Placement& p) { return mean_time(usage, cluster, p); };
    std::printf(
        "%14d%8.2f%10.4f%10.4f%10.4f%10.4f%10.4f\n", slots,
        static_cast<double>(slots) * ranks / experts, mean_of_random(usage, cluster),
        time(must(place_linear({usage, cluster}))), time(must(place_eplb_global({usage, cluster}))),
        time(greedy_placement(usage, cluster)), time(must(subset_placement(usage, cluster))));
    std::fflush(stdout);
  }
}

void print_variance(const UsageTrace& pairs) {
  std::printf("\nhigh to low variance of the pairs (counts to a power), 2 ranks x 4 experts\n");
  std::printf("%14s%10s%10s%10s%10s\n", "power", "CV", "linear", "EPLB", "subset");
  const Cluster cluster = must(Cluster::uniform(2, 4));
  for (double power : {3.0, 2.0, 1.0, 0.5, 0.0}) {
    const UsageTrace usage = sharpened(pairs, power);
    double cv = 0;
    for (const LayerUsage& layer : usage.layers) {
      const auto n = static_cast<double>(layer.sets.size());
      const double mean = layer.sets.total() / n;
      double squares = 0;
      for (double count : layer.sets.counts) squares += (count - mean) * (count - mean);
      cv += std::sqrt(squares / n) / mean / static_cast<double>(usage.layers.size());
    }
    std::printf("%14.1f%10.2f%10.4f%10.4f%10.4f\n", power, cv,
                mean_time(usage, cluster, must(place_linear({usage, cluster}))),
                mean_time(usage, cluster, must(place_eplb_global({usage, cluster}))),
                mean_time(usage, cluster, must(subset_placement(usage, cluster))));
  }
}

void print_coverage(const UsageTrace& usage) {
  std::printf("\ncoverage: planned with the most frequent subsets only, scored on all 1,820\n");
  std::printf("%14s%10s%10s%10s%10s\n", "coverage", "subsets", "4 x 4", "4 x 6", "4 x 8");
  for (double coverage : {0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0}) {
    UsageTrace pruned = usage;
    pruned.layers[0].sets = prune(usage.layers[0].sets, coverage);
    std::printf("%14.2f%10lld", coverage, static_cast<long long>(pruned.layers[0].sets.size()));
    for (int32_t slots : {4, 6, 8}) {
      const Cluster cluster = must(Cluster::uniform(4, slots));
      std::printf("%10.4f", mean_time(usage, cluster, must(subset_placement(pruned, cluster))));
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

UsageTrace made_up_pairs() {
  placement::Random random(1);
  ExpertSets sets;
  for (int32_t a = 0; a < 8; ++a)
    for (int32_t b = a + 1; b < 8; ++b)
      sets.add(std::vector<int32_t>{a, b}, std::exp(3 * random.uniform()));
  return with_sets(std::move(sets), 8, 2);
}

}  // namespace

int main(int argc, char** argv) {
  const UsageTrace pairs = argc > 1 ? must(read_usage(argv[1])) : made_up_pairs();
  print_time_against_memory(argc > 1 ? argv[1] : "made-up pairs", pairs, 2);
  print_variance(pairs);
  const UsageTrace dbrx = dbrx_like(1);
  print_time_against_memory("made up, of DBRX's shape", dbrx, 4);
  print_coverage(dbrx);
}
