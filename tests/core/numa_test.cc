// Nodes read from a machine that a test makes up, and memory spread over them.
#include "core/numa.h"

#include <filesystem>
#include <fstream>
#include <string>

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "catch.h"
#include "temporary_directory.h"

using namespace moe;

namespace {

cpu_set_t cores_of(std::initializer_list<int> cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(core, &set);
  return set;
}

// A folder of nodes as Linux shows them.
class Machine {
 public:
  void add(const std::string& node, const std::string& cpulist) {
    std::filesystem::create_directories(folder_ / node);
    std::ofstream(folder_ / (node + "/cpulist")) << cpulist << "\n";
  }
  std::vector<int> nodes(std::initializer_list<int> cores) const {
    return nodes_of(cores_of(cores), folder_.path());
  }

 private:
  test::TemporaryDirectory folder_;
};

}  // namespace

TEST_CASE("the nodes of our cores, and no others", "[core]") {
  Machine machine;
  machine.add("node0", "0-3,16-19");
  machine.add("node1", "4-7,20");
  machine.add("node10", "8,9");
  machine.add("node2", "");      // memory on a bus
  machine.add("nodes", "0-63");  // no node
  machine.add("node3", "nonsense");
  CHECK(machine.nodes({0, 1}) == std::vector{0});
  CHECK(machine.nodes({19, 20}) == std::vector{0, 1});
  CHECK(machine.nodes({9, 3, 4}) == std::vector{0, 1, 10});
  CHECK(machine.nodes({15}).empty());
  CHECK(machine.nodes({}).empty());
  CHECK(nodes_of(cores_of({0}), "/nonexistent").empty());
}

TEST_CASE("memory is spread over several nodes, and left alone on one", "[core]") {
  constexpr size_t kBytes = size_t{1} << 20;
  void* memory = mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  const auto policy = [&] {
    int mode = -1;
    return syscall(SYS_get_mempolicy, &mode, nullptr, 0UL, memory, MPOL_F_ADDR) == 0 ? mode : -1;
  };
  const int before = policy();
  CHECK_FALSE(spread(memory, kBytes, {}));
  CHECK_FALSE(spread(memory, kBytes, {0}));
  CHECK(policy() == before);
  // The kernel drops nodes that do not exist; it accepts the call for those that do.
  if (spread(memory, kBytes, {0, 1023})) CHECK(policy() == MPOL_INTERLEAVE);
  CHECK(mprotect(memory, kBytes, PROT_READ | PROT_WRITE) == 0);
  static_cast<char*>(memory)[kBytes / 2] = 1;
  munmap(memory, kBytes);
}
