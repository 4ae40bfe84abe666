// config.json as a family reads it: typed values with defaults, and one error for whatever was
// missing or wrong, so that family code reads straight down.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "core/json.h"
#include "moe/status.h"
#include "moe/weights.h"

namespace moe {

class ModelConfig {
 public:
  // `text` is config.json, `file` its name for messages. The language model's part is `text_config`
  // or one of its kin where a model has several. NaN and Infinity, which Python writes, are nulls.
  static Result<ModelConfig> parse(std::string text, std::string_view file);

  // model_type of the whole, and of the language model alone; "" if absent.
  std::string_view model_type() const;
  std::string_view text_model_type() const;
  std::string_view architecture() const;  // the first of "architectures"
  std::string_view file() const { return file_; }

  // Names of one value, best first; dots lead into objects. A null counts as absent.
  using Keys = std::initializer_list<std::string_view>;
  bool has(Keys keys) const { return find(keys).value != nullptr; }

  // A whole number from 1 to kMost. A list stands for its element `layer` (or its last). Absent or
  // wrong: noted, and 1.
  static constexpr int64_t kMost = int64_t{1} << 30;
  int64_t count(Keys keys, int32_t layer = 0);
  // The same, but 0 is allowed and `otherwise` stands for an absent one.
  int64_t count_or(Keys keys, int64_t otherwise, int32_t layer = 0);
  // The same, but negative values are allowed too.
  int64_t whole_or(Keys keys, int64_t otherwise);

  // A list stands for its element `layer`, as above.
  float number_or(Keys keys, float otherwise, int32_t layer = 0);
  bool flag_or(Keys keys, bool otherwise);
  std::string_view text_or(Keys keys, std::string_view otherwise);

  // Whether the list of whole numbers holds `value`; nothing if there is no list.
  std::optional<bool> lists(Keys keys, int64_t value);
  // Length of a list or text; nothing if there is none.
  std::optional<int64_t> length(Keys keys);
  // Element `index` of a list of words ("" beyond its end); nothing if there is no list.
  std::optional<std::string_view> word(Keys keys, int64_t index);

  // hidden_act and its kin: "silu", "gelu_pytorch_tanh", ...
  Activation activation(Keys keys, Activation otherwise);

  // Notes that the value of `key` will not do; the first note stands.
  void refuse(std::string_view key, std::string_view got, std::string_view wanted);
  // Notes that the model needs something that this library cannot do.
  void unsupported(std::string_view what);
  const Status& status() const { return status_; }

  // quantization_config, or null.
  const Json* quantization() const;

 private:
  struct Found {
    const Json* value = nullptr;
    std::string_view key;
  };
  ModelConfig() = default;
  const Json& text() const { return text_ ? *text_ : root_; }
  Found find(Keys keys) const;
  static const Json& element(const Json& value, int32_t layer);
  int64_t whole(Found found, int64_t least, int32_t layer);

  std::string file_;
  Json root_;
  const Json* text_ = nullptr;  // inside root_; null: root_ itself
  Status status_;
};

}  // namespace moe
