// What Json accepts, JsonWriter writes again, and that reads back.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/json.h"

namespace {

void write(const moe::Json& json, moe::JsonWriter* out) {
  using Kind = moe::Json::Kind;
  switch (json.kind()) {
    case Kind::null: out->null(); break;
    case Kind::boolean: out->value(*json.boolean()); break;
    case Kind::integer: out->value(*json.integer()); break;
    case Kind::number: out->value(*json.number()); break;
    case Kind::string: out->value(*json.string()); break;
    case Kind::array:
      out->begin_array();
      for (const moe::Json& item : json.items()) write(item, out);
      out->end_array();
      break;
    case Kind::object:
      out->begin_object();
      for (const auto& [key, value] : json.members()) write(value, &out->key(key));
      out->end_object();
      break;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = moe::Json::parse(text, {.file = "f"});
  if (!json.ok()) return 0;
  moe::JsonWriter first, second;
  write(*json, &first);
  const auto again = moe::Json::parse(first.text(), {.file = "f"});
  if (!again.ok()) std::abort();
  write(*again, &second);
  if (first.text() != second.text()) std::abort();
  return 0;
}
