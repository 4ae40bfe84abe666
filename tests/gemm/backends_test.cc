#include "catch.h"
#include "gemm/problems.h"

using namespace moe;
using namespace moe::test;

TEST_CASE("the table is visible, ordered, and one row of it can be forced", "[gemm][mission-38]") {
  const auto rows = expert_gemm_rows();
  REQUIRE_FALSE(rows.empty());
  CHECK(std::string_view(rows.back().name) == "reference");
  const ExpertSpec spec{.hidden = 8, .intermediate = 8};
  const auto best = make_expert_gemm(Device::cpu(), spec);
  REQUIRE(best.ok());
  const auto forced = make_expert_gemm(Device::cpu(), spec, "reference");
  REQUIRE(forced.ok());
  CHECK(std::string_view((*forced)->name()) == "reference");
}

TEST_CASE("a failure names each row and its reason", "[gemm][mission-121]") {
  ExpertSpec spec{.hidden = 8, .intermediate = 8, .format = {FormatKind::mxfp4, 32}};
  const auto unserved = make_expert_gemm(Device::cpu(), spec);
  REQUIRE_FALSE(unserved.ok());
  CHECK(unserved.status().code() == StatusCode::unimplemented);
  CHECK(unserved.status().message().find(
            "reference: weights are mxfp4 (group 32); reference computes from f32, f16 and bf16") !=
        std::string_view::npos);
  const auto unknown = make_expert_gemm(Device::cpu(), spec, "abacus");
  CHECK(unknown.status().code() == StatusCode::not_found);
  CHECK(unknown.status().message().find("\"abacus\"") != std::string_view::npos);
  CHECK(unknown.status().message().find("reference (cpu)") != std::string_view::npos);
}
