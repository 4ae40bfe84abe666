#include "core/numa.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace moe {
namespace {

constexpr int kMostNodes = 1024;
constexpr int kWordBits = 8 * sizeof(unsigned long);

// Whether a list as the kernel writes it, "0-3,8,10-11", has a core of `cores`.
bool meets(const std::string& list, const cpu_set_t& cores) {
  const char* at = list.data();
  const char* const end = at + list.size();
  while (at < end) {
    int first = 0;
    auto read = std::from_chars(at, end, first);
    if (read.ec != std::errc()) return false;
    int last = first;
    if (read.ptr < end && *read.ptr == '-') read = std::from_chars(read.ptr + 1, end, last);
    if (read.ec != std::errc()) return false;
    for (int core = std::max(first, 0); core <= std::min(last, CPU_SETSIZE - 1); ++core)
      if (CPU_ISSET(core, &cores)) return true;
    at = read.ptr + 1;  // behind the comma
  }
  return false;
}

// The number of a folder called "node7"; -1 for others.
int node_number(const std::string& name) {
  int number = -1;
  if (!name.starts_with("node")) return -1;
  const char* const end = name.data() + name.size();
  const auto read = std::from_chars(name.data() + 4, end, number);
  return read.ec == std::errc() && read.ptr == end && number < kMostNodes ? number : -1;
}

bool has_own_policy() {
  int mode = MPOL_DEFAULT;
  return ::syscall(SYS_get_mempolicy, &mode, nullptr, 0UL, nullptr, 0UL) != 0 ||
         mode != MPOL_DEFAULT;
}

}  // namespace

std::vector<int> nodes_of(const cpu_set_t& cores, const std::string& root) {
  std::vector<int> nodes;
  std::error_code failed;
  for (std::filesystem::directory_iterator entry(root, failed), end; !failed && entry != end;
       entry.increment(failed)) {
    const int node = node_number(entry->path().filename().string());
    std::string list;
    if (node >= 0 && std::getline(std::ifstream(entry->path() / "cpulist"), list) &&
        meets(list, cores))
      nodes.push_back(node);
  }
  std::sort(nodes.begin(), nodes.end());
  return nodes;
}

std::vector<int> own_nodes() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return {};
  return nodes_of(cores);
}

bool spread(void* start, size_t bytes, const std::vector<int>& nodes) {
  if (nodes.size() < 2 || has_own_policy()) return false;
  unsigned long mask[kMostNodes / kWordBits] = {};
  for (const int node : nodes) mask[node / kWordBits] |= 1UL << node % kWordBits;
  return ::syscall(SYS_mbind, start, bytes, static_cast<unsigned long>(MPOL_INTERLEAVE), mask,
                   static_cast<unsigned long>(kMostNodes + 1), 0U) == 0;
}

}  // namespace moe
