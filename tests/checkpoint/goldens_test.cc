// The goldens' checkpoints open, and their specs are plausible.
#include <filesystem>

#include "catch.h"
#include "moe/checkpoint.h"

namespace fs = std::filesystem;

TEST_CASE("every golden checkpoint opens", "[checkpoint][mission-12]") {
  if (!moe::test::have_shared()) return moe::test::skip("../shared is absent");
  int opened = 0;
  for (const char* set : {"a", "b", "c"})
    for (const auto& entry :
         fs::directory_iterator(fs::path(moe::test::shared_dir()) / "goldens" / set)) {
      auto checkpoint = moe::Checkpoint::open(entry.path().native());
      INFO(entry.path() << ": " << checkpoint.status().message());
      CHECK(checkpoint.ok());
      if (checkpoint.ok()) ++opened;
    }
  CHECK(opened == 48);
}
