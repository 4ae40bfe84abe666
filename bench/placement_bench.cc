// Speeds of the planner, in CPU time of one thread, medians of repeats; and a plan of 1,024 ranks.
//   placement_bench [USAGE.json]     DeepSeek-R1 loads; without a file, made-up ones of that shape
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

#include "moe/placement.h"
#include "moe/replica_choice.h"
#include "placement/random.h"

namespace {
using namespace moe;

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Body>
void report(const char* what, int repeats, Body body) {
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double start = cpu_seconds();
    body();
    seconds.push_back(cpu_seconds() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  std::printf("%-58s %12.6f s  (least %.6f, most %.6f)\n", what, seconds[repeats / 2],
              seconds.front(), seconds.back());
  std::fflush(stdout);
}

// A few experts take most, as in the published loads.
UsageTrace skewed(int32_t layers, int32_t experts) {
  placement::Random random(1);
  UsageTrace usage;
  for (int32_t l = 0; l < layers; ++l) {
    LayerUsage layer{l};
    for (int32_t e = 0; e < experts; ++e) {
      const double u = random.uniform();
      layer.tokens.push_back(1000 + 1e6 * u * u * u * u);
    }
    usage.layers.push_back(std::move(layer));
  }
  return usage;
}

// `count` distinct-ish subsets whose counts fall off as real ones do.
UsageTrace subsets(int32_t experts, int32_t k, int count) {
  placement::Random random(2);
  LayerUsage layer{0, std::vector<double>(experts, 0.0)};
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> set;
    while (static_cast<int32_t>(set.size()) < k) {
      const double u = random.uniform();
      const auto e = static_cast<int32_t>(u * u * experts);
      if (std::find(set.begin(), set.end(), e) == set.end()) set.push_back(e);
    }
    std::sort(set.begin(), set.end());
    const double times = 10000.0 / (i + 1) + 1;
    layer.sets.add(set, times);
    for (int32_t e : set) layer.tokens[e] += times;
  }
  return {k, {layer}};
}

void must(const Status& status) {
  if (!status.ok()) std::printf("FAILED: %s\n", status.message().data());
}

void run(const char* what, int repeats, Strategy strategy, const PlacementProblem& problem) {
  report(what, repeats, [&] { must(strategy(problem).status()); });
}

void match_batch() {
  const UsageTrace usage = skewed(1, 256);
  const Cluster cluster = *Cluster::uniform(8, 40);
  const Placement placement = *place_balanced({usage, cluster});
  const ReplicaTable table = *replica_table(placement.layers[0], cluster, 256);
  placement::Random random(3);
  std::vector<int32_t> ids, slots(64 * 8);
  for (int i = 0; i < 64 * 8; ++i) ids.push_back(static_cast<int32_t>(random.below(256)));
  report("matching, 1,000 batches of 64 tokens, 256 experts, 8 ranks", 5, [&] {
    for (int i = 0; i < 1000; ++i)
      must(choose_replicas(ReplicaChoice::matching, table, {ids, 8}, slots));
  });
}

void thousand_ranks(const UsageTrace& usage) {
  const Cluster cluster = *Cluster::uniform(1024, 2, 128);
  for (int64_t tokens : {int64_t{8192}, int64_t{4} << 20}) {
    PlacementProblem problem{usage, cluster};
    problem.workload.groups = 8;
    problem.workload.tokens_per_step = tokens;
    for (const char* name : {"linear", "eplb-global", "balanced", "auto"}) {
      const double start = cpu_seconds();
      const Result<Placement> placement = (*find_strategy(name))(problem);
      if (!placement.ok()) return must(placement.status());
      const double seconds = cpu_seconds() - start;
      const Result<Prediction> p = evaluate(problem, *placement);
      if (!p.ok()) return must(p.status());
      std::printf(
          "1,024 ranks, 128 nodes, %8lld tokens: %-12s %6.2f s  balancedness %.4f  "
          "%s %.4f  predicted %.0f us\n",
          static_cast<long long>(tokens), name, seconds, p->balancedness, to_string(p->objective),
          p->value, p->us);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  UsageTrace usage = skewed(58, 256);
  if (argc > 1) {
    Result<UsageTrace> read = read_usage(argv[1]);
    if (!read.ok()) return std::printf("%s\n", read.status().message().data()), 1;
    usage = *std::move(read);
  }
  const Cluster one = *Cluster::uniform(64, 5), eight = *Cluster::uniform(64, 5, 8);
  run("eplb-global, 58 x 256, 64 ranks x 5", 7, place_eplb_global, {usage, one});
  run("balanced, 58 x 256, 64 ranks x 5", 5, place_balanced, {usage, one});
  run("auto (tokens), 58 x 256, 64 ranks x 5", 5, place_auto, {usage, one});
  PlacementProblem linked{usage, eight};
  linked.workload.groups = 8;
  run("auto (traffic), 58 x 256, 64 ranks x 5, 8 nodes", 3, place_auto, linked);
  PlacementProblem decode{usage, one};
  decode.workload.tokens_per_step = 256;
  run("auto (active, 256 tokens), 58 x 256, 64 ranks x 5", 3, place_auto, decode);
  const UsageTrace large = skewed(61, 4096);
  const Cluster wide = *Cluster::uniform(64, 72);
  run("eplb-global, 61 x 4096, 64 ranks x 72", 3, place_eplb_global, {large, wide});
  run("auto, 61 x 4096, 64 ranks x 72", 1, place_auto, {large, wide});
  const UsageTrace sets = subsets(64, 6, 25000);
  const Cluster few = *Cluster::uniform(8, 10);
  PlacementProblem planned{sets, few};
  planned.workload.tokens_per_step = 1;
  run("subset, 64 experts, 25,000 subsets of 6, 8 ranks x 10", 1, place_subset, planned);
  match_batch();
  thousand_ranks(usage);
}
