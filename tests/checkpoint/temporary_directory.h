// A directory that is gone when the test ends.
#pragma once

#include <filesystem>
#include <string>

#include "catch.h"

namespace moe::test {

struct TemporaryDirectory {
  explicit TemporaryDirectory(const std::string& name)
      : path(std::filesystem::temp_directory_path() /
             ("moe_" + name + "_" + std::to_string(seed()))) {
    std::filesystem::remove_all(path);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::filesystem::path path;
};

}  // namespace moe::test
