// main() of every test program: Catch2, plus --write-ctest FILE, --shared DIR and --seed N.
#define CATCH_CONFIG_RUNNER
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "catch.h"

namespace moe::test {
namespace {
std::string shared = MOE_SHARED_DEFAULT;
uint64_t run_seed =
    static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
int skipped = 0;

std::string quoted(const std::string& text) { return "[==[" + text + "]==]"; }

// Commands of the plain add_test(name program argument) kind that CTest itself reads.
template <class Case>
void write_test(std::ofstream& file, const std::string& program, const Case& info) {
  std::string filter = info.name;  // Catch splits at commas and reads brackets as tags
  for (const char* special : {"\\", ",", "[", "]"})
    for (size_t at = 0; (at = filter.find(special, at)) != std::string::npos; at += 2)
      filter.insert(at, "\\");
  std::string labels;
  for (const auto& tag : info.tags) {
    std::string name;
    if constexpr (requires { tag.original; })
      name = std::string(tag.original.begin(), tag.original.end());
    else
      name = tag;
    if (name == "." || name == "!hide") return;
    labels += (labels.empty() ? "" : ";") + name;
  }
  file << "add_test(" << quoted(info.name) << " " << quoted(program) << " " << quoted(filter)
       << ")\nset_tests_properties(" << quoted(info.name)
       << " PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 900 LABELS " << quoted(labels) << ")\n";
}

int write_ctest(const Catch::Session& session, const std::string& program, const char* path) {
  std::ofstream file(path);
#if __has_include(<catch2/catch_all.hpp>)
  (void)session;
  for (const auto* info : Catch::getRegistryHub().getTestCaseRegistry().getAllInfos())
    write_test(file, program, *info);
#else
  (void)session;
  for (const auto& test : Catch::getRegistryHub().getTestCaseRegistry().getAllTests())
    write_test(file, program, test.getTestCaseInfo());
#endif
  return file ? 0 : 1;
}
}  // namespace

void skip(const std::string& reason) {
  ++skipped;
  std::printf("SKIPPED: %s\n", reason.c_str());
  SUCCEED(reason);
}
const std::string& shared_dir() { return shared; }
bool have_shared() { return std::filesystem::exists(shared); }
uint64_t seed() { return run_seed; }
}  // namespace moe::test

int main(int argc, char** argv) {
  using namespace moe::test;
  Catch::Session session;
  std::vector<char*> rest = {argv[0]};
  const char* list = nullptr;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const bool has_value = i + 1 < argc;
    if (option == "--write-ctest" && has_value)
      list = argv[++i];
    else if (option == "--shared" && has_value)
      shared = argv[++i];
    else if (option == "--seed" && has_value)
      run_seed = std::strtoull(argv[++i], nullptr, 0);
    else
      rest.push_back(argv[i]);
  }
  if (list) return write_ctest(session, std::filesystem::absolute(argv[0]).string(), list);
  if (int wrong = session.applyCommandLine(static_cast<int>(rest.size()), rest.data()))
    return wrong;
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed()));
  const int failed = session.run();
  if (skipped > 0) std::printf("%d test case(s) skipped\n", skipped);
  return failed ? 1 : skipped > 0 ? 77 : 0;
}
