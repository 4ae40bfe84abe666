#include <algorithm>
#include <numeric>

#include <fmt/ranges.h>

#include "core/error.h"
#include "moe/placement.h"

namespace moe {
namespace {
constexpr int32_t kMaxRanks = 65536;

struct DeviceRow {
  const char* name;
  DeviceRates rates;  // dense FP8 (BF16 where there is none), and memory
};
constexpr DeviceRow kDevices[] = {
    {"h200", {1979e12, 4.8e12}}, {"h100", {1979e12, 3.35e12}},  {"b200", {4500e12, 8e12}},
    {"a100", {312e12, 2.0e12}},  {"rtx4090", {330e12, 1.0e12}}, {"cpu", {3e12, 0.2e12}},
};

// Equal blocks; the first `items % parts` are one larger.
std::vector<int32_t> blocks(int32_t items, int32_t parts) {
  std::vector<int32_t> sizes(parts, items / parts);
  for (int32_t i = 0; i < items % parts; ++i) ++sizes[i];
  return sizes;
}

Result<Cluster> make(int32_t ranks, int32_t nodes, std::vector<int32_t> (*slots)(int32_t, int32_t),
                     int32_t count) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<Cluster> {
    if (ranks < 1 || ranks > kMaxRanks)
      return invalid_argument({}, "{} ranks; wanted 1 to {}", ranks, kMaxRanks);
    if (nodes < 1 || ranks % nodes != 0)
      return invalid_argument({}, "{} ranks do not divide evenly among {} nodes", ranks, nodes);
    if (count < 1) return invalid_argument({}, "{} slots or experts; wanted 1 or more", count);
    Cluster cluster;
    cluster.slots = slots(ranks, count);
    for (int32_t r = 0; r < ranks; ++r) cluster.node_of_rank.push_back(r / (ranks / nodes));
    return cluster;
  });
}

// Ascending from 0 without gaps.
Status validate_blocks(const std::vector<int32_t>& values, size_t size, const char* what) {
  if (values.empty()) return {};
  if (values.size() != size)
    return invalid_argument({}, "{} has {} entries; wanted {}", what, values.size(), size);
  int32_t last = 0;
  for (int32_t value : values) {
    if (value != last && value != last + 1)
      return invalid_argument({}, "{} must ascend from 0 without gaps; got {} after {}", what,
                              value, last);
    last = value;
  }
  if (values.front() != 0) return invalid_argument({}, "{} must begin at 0", what);
  return {};
}

Status validate_link(const Link& link, LinkClass name) {
  if (link.bytes_per_second > 0 && link.seconds >= 0) return {};
  return invalid_argument({}, "the {} link has {} B/s and {} s; wanted > 0 and >= 0",
                          to_string(name), link.bytes_per_second, link.seconds);
}
}  // namespace

Result<DeviceRates> device_rates(std::string_view name) {
  std::vector<std::string_view> names;
  for (const DeviceRow& row : kDevices) {
    if (name == row.name) return row.rates;
    names.push_back(row.name);
  }
  return error(StatusCode::not_found, {}, "unknown device \"{}\"; known: {}", name,
               fmt::join(names, ", "));
}

const char* to_string(LinkClass link) {
  constexpr const char* kNames[] = {"self", "node", "rack", "cross_rack"};
  return kNames[static_cast<int>(link)];
}

Result<Cluster> Cluster::uniform(int32_t ranks, int32_t slots_per_rank, int32_t nodes) {
  return make(
      ranks, nodes, [](int32_t r, int32_t s) { return std::vector<int32_t>(r, s); },
      slots_per_rank);
}

Result<Cluster> Cluster::exact(int32_t ranks, int32_t experts, int32_t nodes) {
  return make(
      ranks, nodes, [](int32_t r, int32_t e) { return blocks(e, r); }, experts);
}

int64_t Cluster::total_slots() const {
  return std::accumulate(slots.begin(), slots.end(), int64_t{0});
}

LinkClass Cluster::link(int32_t from, int32_t to) const {
  if (from == to) return LinkClass::self;
  const int32_t a = node(from), b = node(to);
  if (a == b) return LinkClass::node;
  if (rack_of_node.empty() || rack_of_node[a] == rack_of_node[b]) return LinkClass::rack;
  return LinkClass::cross_rack;
}

double Cluster::byte_seconds(int32_t from, int32_t to) const {
  if (from == to) return 0;
  if (!seconds_per_byte.empty())
    return seconds_per_byte[static_cast<size_t>(from) * slots.size() + to];
  switch (link(from, to)) {
    case LinkClass::self: return 0;
    case LinkClass::node: return 1 / node_link.bytes_per_second;
    case LinkClass::rack: return 1 / rack_link.bytes_per_second;
    case LinkClass::cross_rack: return 1 / cross_link.bytes_per_second;
  }
  return 0;
}

std::vector<int32_t> Cluster::rank_of_slot() const {
  std::vector<int32_t> rank;
  for (int32_t r = 0; r < ranks(); ++r) rank.insert(rank.end(), slots[r], r);
  return rank;
}

Status validate(const Cluster& cluster) {
  const size_t ranks = cluster.slots.size();
  if (ranks < 1 || ranks > kMaxRanks)
    return invalid_argument({}, "the cluster has {} ranks; wanted 1 to {}", ranks, kMaxRanks);
  for (int32_t r = 0; r < cluster.ranks(); ++r)
    if (cluster.slots[r] < 0)
      return invalid_argument({.rank = r}, "{} slots; wanted 0 or more", cluster.slots[r]);
  if (cluster.total_slots() > INT32_MAX)
    return invalid_argument({}, "{} slots per layer; at most {} are supported",
                            cluster.total_slots(), INT32_MAX);
  MOE_RETURN_IF_ERROR(validate_blocks(cluster.node_of_rank, ranks, "node_of_rank"));
  MOE_RETURN_IF_ERROR(validate_blocks(cluster.rack_of_node, cluster.nodes(), "rack_of_node"));
  MOE_RETURN_IF_ERROR(validate_link(cluster.node_link, LinkClass::node));
  MOE_RETURN_IF_ERROR(validate_link(cluster.rack_link, LinkClass::rack));
  MOE_RETURN_IF_ERROR(validate_link(cluster.cross_link, LinkClass::cross_rack));
  if (!cluster.seconds_per_byte.empty() && cluster.seconds_per_byte.size() != ranks * ranks)
    return invalid_argument({}, "seconds_per_byte has {} entries; wanted {} x {}",
                            cluster.seconds_per_byte.size(), ranks, ranks);
  for (double cost : cluster.seconds_per_byte)
    if (!(cost >= 0 && cost < 1e9)) return invalid_argument({}, "seconds_per_byte holds {}", cost);
  if (!(cluster.device.flops_per_second > 0 && cluster.device.bytes_per_second > 0))
    return invalid_argument({}, "the device has {} flop/s and {} B/s; wanted > 0",
                            cluster.device.flops_per_second, cluster.device.bytes_per_second);
  return {};
}

}  // namespace moe
