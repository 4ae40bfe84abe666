// The keys of a quantization_config, read strictly: a key that means something and is not
// understood is refused, by name. The first refusal stands, so that code reads straight down.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/json.h"

namespace moe {

// [128, 128] as 128; nothing for what is absent or not square.
std::optional<int32_t> square_block(const Json* block);

class QuantKeys {
 public:
  // `path` leads to `object`, for messages: "weights".
  explicit QuantKeys(const Json& object, std::string path = {})
      : object_(object), path_(std::move(path)) {}

  // The value of `key`; `otherwise` where it is absent or null. A value of another kind is refused.
  int64_t whole(std::string_view key, int64_t otherwise);
  bool flag(std::string_view key, bool otherwise);
  std::string text(std::string_view key, std::string_view otherwise);  // in lower case
  // The object called `key`; null where it is absent, null or empty. Another kind is refused.
  const Json* object(std::string_view key);

  // group_size: -1 (a whole row) becomes 0.
  int32_t group(int64_t otherwise);

  void refuse(std::string_view key, std::string_view got, std::string_view wanted);
  // Takes over what another object's keys were refused for.
  void take(const QuantKeys& other) {
    if (problem_.empty()) problem_ = other.problem_;
  }

  // "weights.num_bits is 3, wanted 4 or 8"; empty: nothing was refused.
  const std::string& problem() const { return problem_; }

 private:
  const Json* find(std::string_view key) const;
  void refuse_kind(std::string_view key, const Json& got, std::string_view wanted);

  const Json& object_;
  std::string path_;
  std::string problem_;
};

}  // namespace moe
