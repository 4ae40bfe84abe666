// Which memory nodes our threads sit on, and memory spread over them.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <sched.h>

namespace moe {

// The nodes, ascending, with a core of `cores`. Nodes without cores (memory on a bus) are left out;
// none where the system does not say. `root` is the system's folder of nodes, or a test's.
std::vector<int> nodes_of(const cpu_set_t& cores,
                          const std::string& root = "/sys/devices/system/node");

// The same for all cores that this process may use.
std::vector<int> own_nodes();

// Asks that untouched pages of [start, start + bytes) come from `nodes` in turn. Whoever touches
// them first does not matter then, and every node's memory channels serve a forward, whose threads
// take any panel of any expert. False, and nothing done: fewer than two nodes, a host that chose a
// policy of its own (numactl, set_mempolicy), or a system that refuses.
bool spread(void* start, size_t bytes, const std::vector<int>& nodes);

}  // namespace moe
