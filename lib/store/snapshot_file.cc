#include "store/snapshot_file.h"

#include <charconv>
#include <limits>
#include <optional>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace moe {
namespace {

constexpr std::string_view kFormat = "moe-store-1";
constexpr std::string_view kBegin = "{\"format\":\"moe-store-";
constexpr std::string_view kTail = ",\"digest\":\"0123456789abcdef\"}\n";  // the digits vary
constexpr size_t kDigits = 16;

std::string hexadecimal(uint64_t digest) { return fmt::format("{:016x}", digest); }

std::optional<uint64_t> parse_digest(std::string_view text) {
  uint64_t digest = 0;
  const char* const end = text.data() + text.size();
  if (text.size() != kDigits || std::from_chars(text.data(), end, digest, 16).ptr != end) return {};
  return digest;
}

// The object, but for its end.
std::string text_of(const StoreSnapshot& snapshot) {
  JsonWriter json;
  json.begin_object().key("format").value(kFormat).key("source").value(snapshot.source);
  json.key("layers").begin_array();
  for (const StoreSnapshot::Layer& layer : snapshot.layers) {
    json.begin_object().key("layer").value(layer.layer).key("layout").value(layer.layout);
    json.key("bytes").value(layer.bytes).key("uses").begin_array();
    for (const int64_t uses : layer.uses) json.value(uses);
    json.end_array().end_object();
  }
  json.end_array().key("residents").begin_array();
  for (const StoreSnapshot::Resident& resident : snapshot.residents)
    json.begin_array()
        .value(resident.id.layer)
        .value(resident.id.expert)
        .value(int64_t{resident.version})
        .value(hexadecimal(resident.digest))
        .end_array();
  json.end_array().key("policies").begin_array();
  for (const StoreSnapshot::Policy& policy : snapshot.policies) {
    json.begin_object().key("name").value(policy.name).key("layers").begin_array();
    for (const int32_t layer : policy.layers) json.value(layer);
    json.end_array().key("memory").begin_object();
    for (const PolicyMemory::Part& part : policy.memory.parts) {
      json.key(part.name).begin_array();
      for (const double value : part.values) json.value(value);
      json.end_array();
    }
    json.end_object().end_object();
  }
  json.end_array();
  return json.text();
}

// Reads what text_of() wrote; `wrong` names the first member that is not so.
class Reader {
 public:
  const char* wrong = nullptr;

  StoreSnapshot snapshot(const Json& json) {
    StoreSnapshot snapshot{.source = string(json, "source")};
    for (const Json& layer : array(json, "layers")) snapshot.layers.push_back(layer_from(layer));
    for (const Json& resident : array(json, "residents"))
      snapshot.residents.push_back(resident_from(resident));
    for (const Json& policy : array(json, "policies"))
      snapshot.policies.push_back(policy_from(policy));
    return snapshot;
  }

 private:
  static constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  static constexpr int64_t kMostIndex = std::numeric_limits<int32_t>::max();

  template <class T>
  T or_wrong(const std::optional<T>& value, const char* what) {
    if (!value && !wrong) wrong = what;
    return value.value_or(T());
  }
  const Json& member(const Json& object, const char* key) {
    static const Json kNull;
    const Json* found = object.find(key);
    return found ? *found : kNull;
  }
  int64_t integer(const Json& value, const char* what, int64_t least, int64_t most) {
    auto number = value.integer();
    if (number && (*number < least || *number > most)) number.reset();
    return or_wrong(number, what);
  }
  int32_t index(const Json& value, const char* what) {
    return static_cast<int32_t>(integer(value, what, 0, kMostIndex));
  }
  std::string string(const Json& object, const char* key) {
    return std::string(or_wrong(member(object, key).string(), key));
  }
  const std::vector<Json>& array(const Json& object, const char* key) {
    const Json& value = member(object, key);
    if (!value.is_array()) or_wrong<bool>({}, key);
    return value.items();
  }

  StoreSnapshot::Layer layer_from(const Json& json) {
    StoreSnapshot::Layer layer{index(member(json, "layer"), "layer"),
                               string(json, "layout"),
                               integer(member(json, "bytes"), "bytes", 0, kMost),
                               {}};
    for (const Json& uses : array(json, "uses"))
      layer.uses.push_back(integer(uses, "uses", 0, kMost));
    return layer;
  }

  StoreSnapshot::Resident resident_from(const Json& json) {
    constexpr const char* kWhat = "residents";
    const std::vector<Json>& items = json.items();
    StoreSnapshot::Resident resident;
    if (items.size() != 4) return or_wrong<bool>({}, kWhat), resident;
    resident.id = {index(items[0], kWhat), index(items[1], kWhat)};
    resident.version = static_cast<uint32_t>(integer(items[2], kWhat, 1, kMostIndex));
    resident.digest = or_wrong(parse_digest(or_wrong(items[3].string(), kWhat)), kWhat);
    return resident;
  }

  StoreSnapshot::Policy policy_from(const Json& json) {
    StoreSnapshot::Policy policy{string(json, "name"), {}, {}};
    for (const Json& layer : array(json, "layers")) policy.layers.push_back(index(layer, "layers"));
    const Json& memory = member(json, "memory");
    if (!memory.is_object()) or_wrong<bool>({}, "memory");
    for (const auto& [name, values] : memory.members()) {
      auto& part = policy.memory.parts.emplace_back(PolicyMemory::Part{name, {}});
      if (!values.is_array()) or_wrong<bool>({}, "memory");
      for (const Json& value : values.items())
        part.values.push_back(or_wrong(value.number(), "memory"));
    }
    return policy;
  }
};

// Whether the text is all that was written.
Status check_digest(std::string_view text, const std::string& path) {
  const Place place{.file = path};
  if (!text.starts_with(kBegin))
    return invalid_argument(place, "{}: not a snapshot of a store; wanted one of format {}", path,
                            kFormat);
  const std::string_view version = text.substr(kBegin.size(), 2);
  if (version.size() == 2 && version != "1\"")
    return error(StatusCode::unimplemented, place,
                 "{}: a snapshot of a later format than {}; use the version of the library that "
                 "wrote it, or start without it",
                 path, kFormat);
  std::optional<uint64_t> wanted;
  if (text.size() >= kTail.size()) {
    const std::string_view tail = text.substr(text.size() - kTail.size());
    const size_t digits = kTail.find('0');
    if (tail.starts_with(kTail.substr(0, digits)) && tail.ends_with(kTail.substr(digits + kDigits)))
      wanted = parse_digest(tail.substr(digits, kDigits));
  }
  if (!wanted)
    return error(StatusCode::data_loss, place,
                 "{}: the snapshot has {} bytes and no digest at its end: it was cut short; start "
                 "without it",
                 path, text.size());
  const uint64_t got = XXH3_64bits(text.data(), text.size() - kTail.size());
  if (got == *wanted) return {};
  return error(StatusCode::data_loss, place,
               "{}: the snapshot has digest {:016x}, but it says {:016x}: it was damaged; start "
               "without it",
               path, got, *wanted);
}

}  // namespace

Status write_snapshot(const StoreSnapshot& snapshot, const std::string& path, FileCalls* calls) {
  std::string text = text_of(snapshot);
  const uint64_t digest = XXH3_64bits(text.data(), text.size());
  text += fmt::format(",\"digest\":\"{}\"}}\n", hexadecimal(digest));
  MOE_ASSIGN_OR_RETURN(NewFile file, NewFile::create(path, calls));
  MOE_RETURN_IF_ERROR(file.write(text));
  return file.commit();
}

Result<StoreSnapshot> read_snapshot(const std::string& path) {
  constexpr uint64_t kMostBytes = uint64_t{1} << 30;
  MOE_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, kMostBytes));
  MOE_RETURN_IF_ERROR(check_digest(text, path));
  MOE_ASSIGN_OR_RETURN(const Json json, Json::parse(text, {.file = path}));
  Reader reader;
  StoreSnapshot snapshot = reader.snapshot(json);
  if (!reader.wrong) return snapshot;
  return invalid_argument({.file = path}, "{}: the snapshot's \"{}\" is not as a store writes it",
                          path, reader.wrong);
}

}  // namespace moe
