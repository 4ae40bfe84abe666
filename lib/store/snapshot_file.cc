#include "store/snapshot_file.h"

#include <charconv>
#include <limits>
#include <optional>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "moe/weights.h"

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

void write_table(JsonWriter& json, const char* key, const StoreSnapshot::Table& table) {
  json.key(key).begin_object().key("router").value(int64_t{table.router});
  json.key("digest").value(hexadecimal(table.digest)).key("experts").begin_array();
  for (const uint32_t version : table.experts) json.value(int64_t{version});
  json.end_array().end_object();
}

void write_layer(JsonWriter& json, const StoreSnapshot::Layer& layer) {
  json.begin_object().key("layer").value(layer.layer).key("layout").value(layer.layout);
  json.key("bytes").value(layer.bytes).key("uses").begin_array();
  for (const int64_t uses : layer.uses) json.value(uses);
  json.end_array();
  write_table(json, "serving", layer.serving);
  if (layer.candidate) write_table(json, "candidate", *layer.candidate);
  if (layer.previous) write_table(json, "previous", *layer.previous);
  json.end_object();
}

void write_policy(JsonWriter& json, const StoreSnapshot::Policy& policy) {
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

// The object, but for its end.
std::string text_of(const StoreSnapshot& snapshot) {
  JsonWriter json;
  json.begin_object().key("format").value(kFormat).key("versions").begin_array();
  for (const SnapshotVersion& version : snapshot.versions)
    json.begin_object()
        .key("version")
        .value(int64_t{version.version})
        .key("source")
        .value(version.source)
        .end_object();
  json.end_array().key("newest").value(int64_t{snapshot.newest});
  json.key("share").value(snapshot.share).key("layers").begin_array();
  for (const StoreSnapshot::Layer& layer : snapshot.layers) write_layer(json, layer);
  json.end_array().key("experts").begin_array();
  for (const StoreSnapshot::Expert& expert : snapshot.experts)
    json.begin_array()
        .value(expert.id.layer)
        .value(expert.id.expert)
        .value(int64_t{expert.version})
        .value(hexadecimal(expert.digest))
        .value(expert.resident)
        .end_array();
  json.end_array().key("policies").begin_array();
  for (const StoreSnapshot::Policy& policy : snapshot.policies) write_policy(json, policy);
  json.end_array();
  return json.text();
}

// Reads what text_of() wrote; `wrong` names the first member that is not so.
class Reader {
 public:
  const char* wrong = nullptr;

  StoreSnapshot snapshot(const Json& json) {
    StoreSnapshot snapshot;
    for (const Json& item : array(json, "versions"))
      snapshot.versions.push_back(
          {version(member(item, "version"), "version"), string(item, "source")});
    snapshot.newest = version(member(json, "newest"), "newest");
    snapshot.share = or_wrong(member(json, "share").number(), "share");
    for (const Json& layer : array(json, "layers")) snapshot.layers.push_back(layer_from(layer));
    for (const Json& expert : array(json, "experts"))
      snapshot.experts.push_back(expert_from(expert));
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
  uint32_t version(const Json& value, const char* what) {
    return static_cast<uint32_t>(integer(value, what, 1, kMostIndex));
  }
  uint64_t digest(const Json& value, const char* what) {
    return or_wrong(parse_digest(or_wrong(value.string(), what)), what);
  }
  std::string string(const Json& object, const char* key) {
    return std::string(or_wrong(member(object, key).string(), key));
  }
  const std::vector<Json>& array(const Json& object, const char* key) {
    const Json& value = member(object, key);
    if (!value.is_array()) or_wrong<bool>({}, key);
    return value.items();
  }

  StoreSnapshot::Table table_from(const Json& json) {
    StoreSnapshot::Table table{
        version(member(json, "router"), "router"), digest(member(json, "digest"), "digest"), {}};
    for (const Json& of_expert : array(json, "experts"))
      table.experts.push_back(version(of_expert, "experts"));
    return table;
  }

  StoreSnapshot::Layer layer_from(const Json& json) {
    StoreSnapshot::Layer layer;
    layer.layer = index(member(json, "layer"), "layer");
    layer.layout = string(json, "layout");
    layer.bytes = integer(member(json, "bytes"), "bytes", 0, kMost);
    for (const Json& uses : array(json, "uses"))
      layer.uses.push_back(integer(uses, "uses", 0, kMost));
    layer.serving = table_from(member(json, "serving"));
    if (const Json* candidate = json.find("candidate")) layer.candidate = table_from(*candidate);
    if (const Json* previous = json.find("previous")) layer.previous = table_from(*previous);
    return layer;
  }

  StoreSnapshot::Expert expert_from(const Json& json) {
    constexpr const char* kWhat = "experts";
    const std::vector<Json>& items = json.items();
    StoreSnapshot::Expert expert;
    if (items.size() != 5) return or_wrong<bool>({}, kWhat), expert;
    expert.id.layer = index(items[0], kWhat);
    expert.id.expert = static_cast<int32_t>(integer(items[1], kWhat, kSharedExpert, kMostIndex));
    expert.version = version(items[2], kWhat);
    expert.digest = digest(items[3], kWhat);
    expert.resident = or_wrong(items[4].boolean(), kWhat);
    return expert;
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
