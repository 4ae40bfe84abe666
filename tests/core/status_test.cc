#include "moe/status.h"

#include <memory>

#include "catch.h"
#include "core/error.h"

using namespace moe;

TEST_CASE("a status keeps its own copy of message and place", "[core][mission-121]") {
  Status status;
  {
    std::string file = "model-00001.safetensors";
    status = invalid_argument({.file = file, .layer = 3}, "got {}, wanted {}", 1, 2);
  }
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(status.message() == "got 1, wanted 2");
  CHECK(status.place().file == "model-00001.safetensors");
  CHECK(status.place().layer == 3);
  CHECK(status.place().expert == -1);
  Status copy = status;
  status = {};
  CHECK(status.ok());
  CHECK(status.message().empty());
  CHECK(copy.message() == "got 1, wanted 2");
}

TEST_CASE("at() fills only what is unset", "[core]") {
  Status inner(StatusCode::data_loss, "bad", {.tensor = "t", .layer = 1});
  const Status filled = inner.at({.file = "f", .layer = 9, .expert = 4, .phase = Phase::load});
  const Place place = filled.place();
  CHECK(place.file == "f");
  CHECK(place.tensor == "t");
  CHECK(place.layer == 1);
  CHECK(place.expert == 4);
  CHECK(place.phase == Phase::load);
  CHECK(Status().at({.layer = 1}).ok());
}

TEST_CASE("a result holds a value or a status, and moves what only moves", "[core]") {
  Result<std::unique_ptr<int>> good = std::make_unique<int>(7);
  REQUIRE(good.ok());
  std::unique_ptr<int> taken = *std::move(good);
  CHECK(*taken == 7);
  Result<std::unique_ptr<int>> bad = Status(StatusCode::not_found, "no such thing");
  CHECK_FALSE(bad.ok());
  CHECK(bad.status().code() == StatusCode::not_found);
}

TEST_CASE("guarded() turns exceptions into statuses", "[core][mission-93]") {
  CHECK(guarded({}, []() -> Status { throw std::bad_alloc(); }).code() ==
        StatusCode::resource_exhausted);
  CHECK(guarded({}, []() -> Status { throw 1; }).code() == StatusCode::internal);
  CHECK(guarded({}, []() -> Status { return {}; }).ok());
}
