#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include <simdjson.h>

#include "core/error.h"
#include "core/json.h"

namespace moe {
namespace {

namespace ondemand = simdjson::ondemand;
using Tensor = Checkpoint::Tensor;

constexpr uint64_t kPrefixBytes = 8;
constexpr std::string_view kMetadata = "__metadata__";

// Rules by the names of the reference's errors; the last three are the format text's.
constexpr const char* kHeaderTooSmall = "HeaderTooSmall";
constexpr const char* kHeaderTooLarge = "HeaderTooLarge";
constexpr const char* kInvalidHeaderLength = "InvalidHeaderLength";
constexpr const char* kInvalidHeader = "InvalidHeader";
constexpr const char* kInvalidHeaderDeserialization = "InvalidHeaderDeserialization";
constexpr const char* kInvalidOffset = "InvalidOffset";
constexpr const char* kValidationOverflow = "ValidationOverflow";
constexpr const char* kMisalignedSlice = "MisalignedSlice";
constexpr const char* kTensorInvalidInfo = "TensorInvalidInfo";
constexpr const char* kMetadataIncompleteBuffer = "MetadataIncompleteBuffer";
constexpr const char* kHeaderStart = "HeaderStart";
constexpr const char* kDuplicateKey = "DuplicateKey";

// The part of a name that fits into a message.
std::string shown(std::string_view name) {
  constexpr size_t kMost = 200;
  return name.size() <= kMost ? json_quoted(name) : json_quoted(name.substr(0, kMost)) + "...";
}

// Words refusals of one file.
class Refusals {
 public:
  explicit Refusals(std::string_view path) : path_(path) {}

  template <class... Args>
  Status file(const char* rule, fmt::format_string<Args...> format, Args&&... args) const {
    return say(StatusCode::invalid_argument, {}, rule, kRewrite,
               fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  Status tensor(std::string_view name, const char* rule, fmt::format_string<Args...> format,
                Args&&... args) const {
    return say(StatusCode::invalid_argument, name, rule, kRewrite,
               fmt::format(format, std::forward<Args>(args)...));
  }
  // The file ends too early.
  template <class... Args>
  Status truncated(std::string_view tensor, const char* rule, fmt::format_string<Args...> format,
                   Args&&... args) const {
    return say(StatusCode::data_loss, tensor, rule, "truncated download? fetch the file again",
               fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  static constexpr const char* kRewrite =
      "not what the safetensors format allows; fetch the file again or write it anew";

  Status say(StatusCode code, std::string_view tensor, const char* rule, const char* next,
             const std::string& what) const {
    const Place place{.file = path_, .tensor = tensor, .phase = Phase::open};
    const bool named = tensor.data() != nullptr;  // a name may be empty
    return error(code, place, "{}: {}{}{} [{}]; {}", path_, named ? "tensor " + shown(tensor) : "",
                 named ? ": " : "", what, rule, next);
  }

  std::string_view path_;
};

// Walks the JSON once, front to back, with simdjson's on-demand parser. That parser checks only
// what is asked for, so every value is visited, also those that the format ignores.
class HeaderParser {
 public:
  HeaderParser(const Refusals& refuse, std::string_view file, char* json, size_t bytes)
      : refuse_(refuse), file_(file), json_(json), bytes_(bytes) {}

  Result<std::vector<Tensor>> parse() {
    // No more tensors than there are braces, nor than the shortest entries that fit.
    constexpr size_t kShortestEntry = 48;
    tensors_.reserve(
        std::min<size_t>(std::count(json_, json_ + bytes_, '{'), bytes_ / kShortestEntry + 1));
    ondemand::document document;
    ondemand::object root;
    if (auto failure =
            parser_.iterate(json_, bytes_, bytes_ + simdjson::SIMDJSON_PADDING).get(document))
      return bad_json(failure);
    if (auto failure = document.get_object().get(root)) return bad_json(failure);
    MOE_RETURN_IF_ERROR(each_field(root, [&](std::string_view key, ondemand::value& value) {
      return key == kMetadata ? metadata(value) : tensor(key, value);
    }));
    // Beyond the last brace there must be nothing: the error is what we hope for.
    if (document.current_location().error() != simdjson::OUT_OF_BOUNDS)
      return refuse_.file(kInvalidHeaderDeserialization, "something follows the JSON object");
    return std::move(tensors_);
  }

 private:
  static constexpr int kMaxDepth = 128;

  Status bad_json(simdjson::error_code failure) const {
    if (failure == simdjson::MEMALLOC) throw std::bad_alloc();
    return refuse_.file(kInvalidHeaderDeserialization, "the header is not valid JSON: {}",
                        simdjson::error_message(failure));
  }

  // The string whose first character is at `raw`, with escapes resolved in place: that never takes
  // more room than the escaped form. simdjson refuses unknown escapes and lone surrogates.
  Result<std::string_view> unescape(ondemand::raw_json_string raw) {
    char* const begin = json_ + (raw.raw() - json_);
    char* end = begin;
    bool escaped = false;
    for (; *end != '"'; ++end)
      if (*end == '\\') escaped = true, ++end;
    if (!escaped) return std::string_view(begin, end - begin);
    scratch_.resize(end - begin + simdjson::SIMDJSON_PADDING);
    auto* to = reinterpret_cast<uint8_t*>(scratch_.data());
    std::string_view text;
    if (auto failure = parser_.unescape(raw, to).get(text)) return bad_json(failure);
    std::memcpy(begin, text.data(), text.size());
    return std::string_view(begin, text.size());
  }

  // body(key, value) for every field.
  template <class Body>
  Status each_field(ondemand::object& object, Body&& body) {
    for (auto next : object) {
      ondemand::field field;
      if (auto failure = std::move(next).get(field)) return bad_json(failure);
      MOE_ASSIGN_OR_RETURN(const std::string_view key, unescape(field.key()));
      MOE_RETURN_IF_ERROR(body(key, field.value()));
    }
    return {};
  }

  Status metadata(ondemand::value& value) {
    if (std::exchange(has_metadata_, true))
      return refuse_.file(kDuplicateKey, "the key \"__metadata__\" appears twice");
    if (value.type().value_unsafe() == ondemand::json_type::null) return ignore(value, 1);
    ondemand::object entries;
    if (value.get_object().get(entries))
      return refuse_.file(kInvalidHeaderDeserialization,
                          "\"__metadata__\" is not an object of strings");
    std::vector<std::string_view> keys;
    MOE_RETURN_IF_ERROR(each_field(entries, [&](std::string_view key, ondemand::value& entry) {
      keys.push_back(key);
      ondemand::raw_json_string text;
      if (entry.get_raw_json_string().get(text))
        return refuse_.file(kInvalidHeaderDeserialization,
                            "\"__metadata__\": the value of {} is not a string", shown(key));
      return unescape(text).status();
    }));
    std::sort(keys.begin(), keys.end());
    if (auto twice = std::adjacent_find(keys.begin(), keys.end()); twice != keys.end())
      return refuse_.file(kDuplicateKey, "\"__metadata__\": the key {} appears twice",
                          shown(*twice));
    return {};
  }

  // One entry: what the format knows of a tensor, and fields to ignore.
  Status tensor(std::string_view name, ondemand::value& value) {
    ondemand::object info;
    if (value.get_object().get(info))
      return refuse_.tensor(name, kInvalidHeaderDeserialization,
                            "its entry is not an object with dtype, shape and data_offsets");
    Entry entry{.name = name};
    MOE_RETURN_IF_ERROR(each_field(info, [&](std::string_view key, ondemand::value& field) {
      if (key == "dtype") return dtype(&entry, field);
      if (key == "shape") return shape(&entry, field);
      if (key == "data_offsets") return data_offsets(&entry, field);
      return ignore(field, 2);
    }));
    for (const auto& [has, field] : {std::pair(entry.has_dtype, "dtype"),
                                     {entry.has_shape, "shape"},
                                     {entry.has_offsets, "data_offsets"}})
      if (!has) return refuse_.tensor(name, kInvalidHeaderDeserialization, "it has no {}", field);
    return add(entry);
  }

  struct Entry {
    std::string_view name;
    bool has_dtype = false, has_shape = false, has_offsets = false;
    DType dtype = DType::u8;
    Dims shape;
    uint64_t elements = 1;
    uint64_t begin = 0, end = 0;
  };

  Status once(const Entry& entry, bool& has, const char* field) const {
    if (std::exchange(has, true))
      return refuse_.tensor(entry.name, kDuplicateKey, "the field {} appears twice", field);
    return {};
  }

  Status dtype(Entry* entry, ondemand::value& value) {
    MOE_RETURN_IF_ERROR(once(*entry, entry->has_dtype, "dtype"));
    ondemand::raw_json_string raw;
    if (value.get_raw_json_string().get(raw))
      return refuse_.tensor(entry->name, kInvalidHeaderDeserialization, "dtype is not a string");
    MOE_ASSIGN_OR_RETURN(const std::string_view text, unescape(raw));
    auto type = dtype_from_safetensors(text);
    if (!type.ok())
      return refuse_.tensor(entry->name, kInvalidHeaderDeserialization,
                            "the dtype {} is unknown (types are written like \"BF16\")",
                            shown(text));
    entry->dtype = *type;
    return {};
  }

  // Multiplies from left to right, as the reference does: an overflow before a 0 is one.
  Status shape(Entry* entry, ondemand::value& value) {
    MOE_RETURN_IF_ERROR(once(*entry, entry->has_shape, "shape"));
    uint64_t positive = 1;  // product of the axes that are not 0: bounds every stride
    bool fits = true;
    Dims dims;
    MOE_RETURN_IF_ERROR(each_integer(*entry, "shape", value, [&](uint64_t extent) {
      if (__builtin_mul_overflow(entry->elements, extent, &entry->elements))
        return refuse_.tensor(entry->name, kValidationOverflow,
                              "the number of elements does not fit into 64 bits");
      if (extent != 0) fits &= !__builtin_mul_overflow(positive, extent, &positive);
      fits &= positive <= std::numeric_limits<int64_t>::max() && dims.rank < kMaxRank;
      if (fits) dims[dims.rank++] = static_cast<int64_t>(extent);
      return Status();
    }));
    if (!fits) dims.rank = -1;
    entry->shape = dims;
    return {};
  }

  Status data_offsets(Entry* entry, ondemand::value& value) {
    MOE_RETURN_IF_ERROR(once(*entry, entry->has_offsets, "data_offsets"));
    int count = 0;
    MOE_RETURN_IF_ERROR(each_integer(*entry, "data_offsets", value, [&](uint64_t offset) {
      (count == 0 ? entry->begin : entry->end) = offset;
      if (++count <= 2) return Status();
      return refuse_.tensor(entry->name, kInvalidHeaderDeserialization,
                            "data_offsets has more than two values");
    }));
    if (count == 2) return {};
    return refuse_.tensor(entry->name, kInvalidHeaderDeserialization,
                          "data_offsets has {} values where two are expected", count);
  }

  template <class Body>
  Status each_integer(const Entry& entry, const char* field, ondemand::value& value, Body&& body) {
    const auto refusal = [&] {
      return refuse_.tensor(entry.name, kInvalidHeaderDeserialization,
                            "{} is not a list of integers in [0, 2^64)", field);
    };
    ondemand::array array;
    if (value.get_array().get(array)) return refusal();
    for (auto next : array) {
      uint64_t integer;
      if (next.get_uint64().get(integer)) return refusal();
      MOE_RETURN_IF_ERROR(body(integer));
    }
    return {};
  }

  Status add(const Entry& entry) {
    uint64_t bits;
    if (__builtin_mul_overflow(entry.elements, static_cast<uint64_t>(bits_of(entry.dtype)), &bits))
      return refuse_.tensor(entry.name, kValidationOverflow,
                            "{} elements of {} are more bits than 64 bits can count",
                            entry.elements, to_safetensors(entry.dtype));
    if (bits % 8 != 0)
      return refuse_.tensor(entry.name, kMisalignedSlice,
                            "{} elements of {} do not fill a whole number of bytes", entry.elements,
                            to_safetensors(entry.dtype));
    if (entry.begin > entry.end)
      return refuse_.tensor(entry.name, kInvalidOffset, "data_offsets [{}, {}) run backwards",
                            entry.begin, entry.end);
    if (entry.end - entry.begin != bits / 8)
      return refuse_.tensor(entry.name, kTensorInvalidInfo,
                            "dtype and shape need {} bytes but data_offsets [{}, {}) hold {}",
                            bits / 8, entry.begin, entry.end, entry.end - entry.begin);
    tensors_.push_back({.name = entry.name,
                        .file = file_,
                        .dtype = entry.dtype,
                        .shape = entry.shape,
                        .offset = entry.begin,
                        .bytes = bits / 8});
    return {};
  }

  // A value without meaning here must still be JSON.
  Status ignore(ondemand::value& value, int depth) {
    if (depth > kMaxDepth)
      return refuse_.file(kInvalidHeaderDeserialization, "the JSON is nested more than {} deep",
                          kMaxDepth);
    ondemand::json_type type;
    if (auto failure = value.type().get(type)) return bad_json(failure);
    switch (type) {
      case ondemand::json_type::object: return ignore_object(value, depth);
      case ondemand::json_type::array: return ignore_array(value, depth);
      case ondemand::json_type::string: {
        ondemand::raw_json_string text;
        if (auto failure = value.get_raw_json_string().get(text)) return bad_json(failure);
        return unescape(text).status();
      }
      case ondemand::json_type::number: return scalar(value.get_number().error());
      case ondemand::json_type::boolean: return scalar(value.get_bool().error());
      case ondemand::json_type::null: {
        bool null = false;
        if (auto failure = value.is_null().get(null)) return bad_json(failure);
        return scalar(null ? simdjson::SUCCESS : simdjson::N_ATOM_ERROR);
      }
    }
    return bad_json(simdjson::TAPE_ERROR);
  }
  Status ignore_object(ondemand::value& value, int depth) {
    ondemand::object object;
    if (auto failure = value.get_object().get(object)) return bad_json(failure);
    return each_field(
        object, [&](std::string_view, ondemand::value& field) { return ignore(field, depth + 1); });
  }
  Status ignore_array(ondemand::value& value, int depth) {
    ondemand::array array;
    if (auto failure = value.get_array().get(array)) return bad_json(failure);
    for (auto next : array) {
      ondemand::value item;
      if (auto failure = next.get(item)) return bad_json(failure);
      MOE_RETURN_IF_ERROR(ignore(item, depth + 1));
    }
    return {};
  }
  Status scalar(simdjson::error_code failure) const {
    return failure ? bad_json(failure) : Status();
  }

  const Refusals& refuse_;
  std::string_view file_;
  char* json_;
  size_t bytes_;
  bool has_metadata_ = false;
  std::string scratch_;
  ondemand::parser parser_;
  std::vector<Tensor> tensors_;
};

// Sorts a file's tensors by their bytes, which must tile the data without a hole or an overlap.
Status check_tiling(const Refusals& refuse, uint64_t data_bytes, std::vector<Tensor>* tensors) {
  const auto by_place = [](const Tensor& a, const Tensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  };
  if (!std::is_sorted(tensors->begin(), tensors->end(), by_place))
    std::sort(tensors->begin(), tensors->end(), by_place);
  uint64_t end = 0;
  for (const Tensor& tensor : *tensors) {
    if (tensor.offset != end)
      return refuse.tensor(tensor.name, kInvalidOffset,
                           "its bytes begin at {} but those of the tensor before end at {}",
                           tensor.offset, end);
    end += tensor.bytes;
    if (end > data_bytes)
      return refuse.truncated(tensor.name, kMetadataIncompleteBuffer,
                              "header wants data bytes [{}, {}) but the file's data ends at {}",
                              tensor.offset, end, data_bytes);
  }
  if (end != data_bytes)
    return refuse.file(kMetadataIncompleteBuffer,
                       "the tensors end at data byte {} but the file's data at {}", end,
                       data_bytes);
  return {};
}

Status check_unique(const Refusals& refuse, const std::vector<Tensor>& tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const Tensor& tensor : tensors) names.push_back(tensor.name);
  if (!std::is_sorted(names.begin(), names.end())) std::sort(names.begin(), names.end());
  if (auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
    return refuse.tensor(*twice, kDuplicateKey, "the name appears twice in the header");
  return {};
}

}  // namespace

Result<SafetensorsHeader> read_safetensors_header(const File& file, std::string_view name) {
  const Refusals refuse(file.path());
  if (file.size() < kPrefixBytes)
    return refuse.truncated({}, kHeaderTooSmall,
                            "the file has {} bytes; the header's length alone takes {}",
                            file.size(), kPrefixBytes);
  unsigned char prefix[kPrefixBytes];
  MOE_RETURN_IF_ERROR(read_exactly(file, 0, kPrefixBytes, prefix));
  uint64_t bytes = 0;
  for (int i = 7; i >= 0; --i) bytes = bytes << 8 | prefix[i];
  if (bytes > kMaxSafetensorsHeader)
    return refuse.file(kHeaderTooLarge, "the header's length is {}; at most {} is allowed", bytes,
                       kMaxSafetensorsHeader);
  if (bytes > file.size() - kPrefixBytes)
    return refuse.truncated({}, kInvalidHeaderLength,
                            "the header's length is {} but only {} bytes follow", bytes,
                            file.size() - kPrefixBytes);

  auto json = std::make_unique_for_overwrite<char[]>(bytes + simdjson::SIMDJSON_PADDING);
  MOE_RETURN_IF_ERROR(read_exactly(file, kPrefixBytes, bytes, json.get()));
  std::memset(json.get() + bytes, 0, simdjson::SIMDJSON_PADDING);
  if (bytes == 0) return refuse.file(kInvalidHeaderDeserialization, "the header is empty");
  if (!simdjson::validate_utf8(json.get(), bytes))
    return refuse.file(kInvalidHeader, "the header is not UTF-8");
  if (json[0] != '{') return refuse.file(kHeaderStart, "the header does not begin with '{{'");

  const uint64_t data_begin = kPrefixBytes + bytes;
  std::vector<Tensor> tensors;
  {
    HeaderParser parser(refuse, name, json.get(), bytes);
    MOE_ASSIGN_OR_RETURN(tensors, parser.parse());
  }
  MOE_RETURN_IF_ERROR(check_unique(refuse, tensors));
  MOE_RETURN_IF_ERROR(check_tiling(refuse, file.size() - data_begin, &tensors));
  for (Tensor& tensor : tensors) tensor.offset += data_begin;
  return SafetensorsHeader{std::move(json), std::move(tensors)};
}

}  // namespace moe
