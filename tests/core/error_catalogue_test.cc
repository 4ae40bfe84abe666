// docs/errors.md explains every StatusCode: a cause and a remedy each, and no code that is not
// ours.
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "catch.h"
#include "moe/status.h"

using namespace moe;

namespace {

// The cells of "| a | b | c |", trimmed.
std::vector<std::string> cells(const std::string& line) {
  std::vector<std::string> out;
  for (size_t at = line.find('|'); at != std::string::npos;) {
    const size_t next = line.find('|', at + 1);
    if (next == std::string::npos) break;
    const std::string cell = line.substr(at + 1, next - at - 1);
    const size_t first = cell.find_first_not_of(' ');
    out.push_back(first == std::string::npos
                      ? ""
                      : cell.substr(first, cell.find_last_not_of(' ') - first + 1));
    at = next;
  }
  return out;
}

// code -> {cause, remedy} of the first table.
std::map<std::string, std::vector<std::string>> catalogue() {
  std::ifstream file(MOE_DOCS "/errors.md");
  REQUIRE(file);
  std::map<std::string, std::vector<std::string>> rows;
  for (std::string line; std::getline(file, line) && !line.starts_with("## ");) {
    const std::vector<std::string> row = cells(line);
    if (row.size() != 3 || row[0].size() < 3 || row[0].front() != '`') continue;
    const std::string code = row[0].substr(1, row[0].size() - 2);
    REQUIRE(rows.emplace(code, std::vector{row[1], row[2]}).second);
  }
  return rows;
}

// Codes are dense from 0; the first value without a name of its own ends them.
std::vector<std::string> codes() {
  std::vector<std::string> names;
  for (int value = 0;; ++value) {
    const std::string name = to_string(static_cast<StatusCode>(value));
    if (name == "unknown" && value != static_cast<int>(StatusCode::unknown)) return names;
    names.push_back(name);
  }
}

}  // namespace

TEST_CASE("every status code has a cause and a remedy", "[core][mission-121]") {
  const auto rows = catalogue();
  CHECK(codes().size() == 16);
  for (const std::string& code : codes()) {
    INFO(code);
    REQUIRE(rows.count(code) == 1);
    CHECK(rows.at(code)[0].size() > 10);
    CHECK(rows.at(code)[1].size() >= 5);
  }
  CHECK(rows.size() == codes().size());
}
