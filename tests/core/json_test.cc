#include "core/json.h"

#include <cmath>
#include <limits>

#include "catch.h"

using namespace moe;

namespace {
Result<Json> parse(std::string_view text) { return Json::parse(text, {.file = "config.json"}); }
}  // namespace

TEST_CASE("Json keeps kinds, values and order", "[core]") {
  auto json =
      parse(R"({"b": [1, -2.5, "x\u00e9\n", true, null], "a": {"c": 9223372036854775807}})");
  REQUIRE(json.ok());
  REQUIRE(json->members().size() == 2);
  CHECK(json->members()[0].first == "b");
  const auto& items = json->find("b")->items();
  REQUIRE(items.size() == 5);
  CHECK(items[0].integer() == 1);
  CHECK(items[0].number() == 1.0);
  CHECK(items[1].number() == -2.5);
  CHECK_FALSE(items[1].integer());
  CHECK(items[2].string() == "x\u00e9\n");
  CHECK(items[3].boolean() == true);
  CHECK(items[4].is_null());
  CHECK(json->find("a")->find("c")->integer() == std::numeric_limits<int64_t>::max());
  CHECK_FALSE(json->find("c"));
  CHECK_FALSE(items[0].find("c"));
}

TEST_CASE("Json members by key: absent, null and of the wrong kind", "[core]") {
  auto json = parse(R"({"experts": 8, "rate": 0.5, "name": "x", "flag": false, "none": null})");
  REQUIRE(json.ok());
  CHECK(*json->integer("experts") == 8);
  CHECK(*json->number("experts") == 8.0);
  CHECK(*json->number("rate") == 0.5);
  CHECK(*json->string("name") == "x");
  CHECK(*json->boolean("flag") == false);
  CHECK(*json->integer("none", 3) == 3);
  CHECK(*json->integer("absent", 3) == 3);
  CHECK(*json->integer("experts", 3) == 8);

  const Status missing = json->integer("absent").status();
  CHECK(missing.code() == StatusCode::invalid_argument);
  CHECK(missing.message() == "\"absent\" is missing; an integer is expected");
  CHECK(json->integer("rate").status().message() ==
        "\"rate\" is of kind number; an integer is expected");
  CHECK_FALSE(json->integer("name", 3).ok());  // a wrong kind is never taken for absence
  CHECK_FALSE(json->integer("none").ok());
}

TEST_CASE("Json refuses what is not JSON, with the file", "[core][mission-12]") {
  for (const char* text : {"",
                           " ",
                           "{",
                           "{}{}",
                           "{'a':1}",
                           "{\"a\":1,}",
                           "[1,]",
                           "[01]",
                           "[NaN]",
                           "[Infinity]",
                           "[-]",
                           "[1.]",
                           "// x\n{}",
                           "{\"a\":1,\"a\":2}",
                           "{\"a\":1,\"\\u0061\":2}",
                           "[18446744073709551616]",
                           "[9223372036854775808]",
                           "[1e999]",
                           "\"\xff\"",
                           "[\"\\ud800\"]",
                           "[\"\\q\"]",
                           "[\"a\nb\"]",
                           "nul",
                           "[tru]",
                           "{\"a\"}",
                           "{1:2}"}) {
    CAPTURE(text);
    auto json = parse(text);
    REQUIRE_FALSE(json.ok());
    CHECK(json.status().code() == StatusCode::invalid_argument);
    CHECK(json.status().place().file == "config.json");
    CHECK(json.status().message().find("config.json: ") == 0);
  }
}

TEST_CASE("Json limits depth", "[core]") {
  const auto nested = [](int depth) {
    return parse(std::string(depth, '[') + std::string(depth, ']')).ok();
  };
  CHECK(nested(64));
  CHECK_FALSE(nested(66));
  CHECK_FALSE(nested(100'000));
}

TEST_CASE("JsonWriter writes what Json reads", "[core]") {
  JsonWriter writer;
  writer.begin_object();
  writer.key("a\"\\\n\x01").begin_array().value(1).value(-2.0).value(0.1).value("x").null();
  writer.begin_object().end_object().begin_array().end_array().end_array();
  writer.key("u").value(std::numeric_limits<uint64_t>::max());
  writer.key("n").value(std::nan("")).key("t").value(true).end_object();
  CHECK(writer.text() ==
        "{\"a\\\"\\\\\\n\\u0001\":[1,-2.0,0.1,\"x\",null,{},[]],"
        "\"u\":18446744073709551615,\"n\":null,\"t\":true}");

  JsonWriter small;
  small.begin_array().value(1e300).value(int64_t{-7}).value("\t\u00e9").end_array();
  auto back = parse(small.text());
  REQUIRE(back.ok());
  CHECK(back->items()[0].number() == 1e300);
  CHECK(back->items()[1].integer() == -7);
  CHECK(back->items()[2].string() == "\t\u00e9");
}
