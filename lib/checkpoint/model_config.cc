#include "checkpoint/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "core/error.h"

namespace moe {
namespace {

// Where models of several parts keep the language model.
constexpr std::string_view kTextConfigs[] = {"text_config", "language_config", "llm_config",
                                             "thinker_config.text_config"};

const Json* walk(const Json& scope, std::string_view path) {
  const size_t dot = path.find('.');
  const Json* value = scope.find(path.substr(0, dot));
  if (!value || value->is_null()) return nullptr;
  return dot == std::string_view::npos ? value : walk(*value, path.substr(dot + 1));
}

// Python's json module writes NaN, Infinity and -Infinity, which JSON does not know.
void nullify_non_finite(std::string* text) {
  bool quoted = false;
  for (size_t i = 0; i < text->size(); ++i) {
    const char c = (*text)[i];
    if (c == '"') quoted = !quoted;
    if (c == '\\' && quoted) ++i;
    if (quoted || (c != 'N' && c != 'I' && c != '-')) continue;
    for (std::string_view word : {"NaN", "-Infinity", "Infinity"})
      if (text->compare(i, word.size(), word) == 0) text->replace(i, word.size(), "null");
  }
}

std::string text_of(const Json& value) {
  if (auto number = value.number()) return fmt::format("{}", *number);
  if (auto text = value.string()) return fmt::format("\"{}\"", *text);
  return to_string(value.kind());
}

std::optional<int64_t> whole_number(const Json& value) {
  if (auto integer = value.integer()) return integer;
  const auto number = value.number();  // 8.0
  if (number && std::abs(*number) < 9e15 && *number == std::trunc(*number))
    return static_cast<int64_t>(*number);
  return std::nullopt;
}

}  // namespace

Result<ModelConfig> ModelConfig::parse(std::string text, std::string_view file) {
  nullify_non_finite(&text);
  const Place place{.file = file, .phase = Phase::open};
  ModelConfig config;
  config.file_ = file;
  MOE_ASSIGN_OR_RETURN(config.root_, Json::parse(text, place));
  if (!config.root_.is_object())
    return invalid_argument(place, "{} is {}, wanted an object", file,
                            to_string(config.root_.kind()));
  for (std::string_view key : kTextConfigs)
    if (const Json* part = walk(config.root_, key); part && part->is_object() && !config.text_)
      config.text_ = part;
  return config;
}

std::string_view ModelConfig::model_type() const {
  const Json* value = root_.find("model_type");
  return value ? value->string().value_or("") : "";
}

std::string_view ModelConfig::text_model_type() const {
  const Json* value = text().find("model_type");
  return value ? value->string().value_or("") : "";
}

std::string_view ModelConfig::architecture() const {
  const Json* value = root_.find("architectures");
  return value && !value->items().empty() ? value->items()[0].string().value_or("") : "";
}

const Json* ModelConfig::quantization() const {
  for (const Json* scope : {&root_, &text()})
    for (std::string_view key : {"quantization_config", "compression_config"})
      if (const Json* value = scope->find(key); value && !value->is_null()) return value;
  return nullptr;
}

ModelConfig::Found ModelConfig::find(Keys keys) const {
  for (std::string_view key : keys)
    if (const Json* value = walk(text(), key)) return {value, key};
  return {nullptr, *keys.begin()};
}

const Json& ModelConfig::element(const Json& value, int32_t layer) {
  const auto& items = value.items();
  if (items.empty()) return value;
  return items[std::min<size_t>(static_cast<size_t>(layer), items.size() - 1)];
}

int64_t ModelConfig::whole(Found found, int64_t least, int32_t layer) {
  const Json& value = element(*found.value, layer);
  const auto number = whole_number(value);
  if (number && *number >= least && *number <= kMost) return *number;
  refuse(found.key, text_of(value), fmt::format("a whole number from {} to {}", least, kMost));
  return 1;
}

int64_t ModelConfig::count(Keys keys, int32_t layer) {
  const Found found = find(keys);
  if (found.value) return whole(found, 1, layer);
  refuse(found.key, "nothing", "a whole number");
  return 1;
}

int64_t ModelConfig::count_or(Keys keys, int64_t otherwise, int32_t layer) {
  const Found found = find(keys);
  return found.value ? whole(found, 0, layer) : otherwise;
}

int64_t ModelConfig::whole_or(Keys keys, int64_t otherwise) {
  const Found found = find(keys);
  return found.value ? whole(found, -kMost, 0) : otherwise;
}

float ModelConfig::number_or(Keys keys, float otherwise, int32_t layer) {
  const Found found = find(keys);
  if (!found.value) return otherwise;
  const Json& value = element(*found.value, layer);
  if (value.is_null()) return otherwise;
  if (auto number = value.number()) return static_cast<float>(*number);
  refuse(found.key, text_of(value), "a number");
  return otherwise;
}

bool ModelConfig::flag_or(Keys keys, bool otherwise) {
  const Found found = find(keys);
  if (!found.value) return otherwise;
  if (auto flag = found.value->boolean()) return *flag;
  refuse(found.key, text_of(*found.value), "true or false");
  return otherwise;
}

std::string_view ModelConfig::text_or(Keys keys, std::string_view otherwise) {
  const Found found = find(keys);
  if (!found.value) return otherwise;
  if (auto text = found.value->string()) return *text;
  refuse(found.key, text_of(*found.value), "a text");
  return otherwise;
}

std::optional<bool> ModelConfig::lists(Keys keys, int64_t value) {
  const Found found = find(keys);
  if (!found.value || !found.value->is_array()) return std::nullopt;
  for (const Json& item : found.value->items())
    if (whole_number(item) == value) return true;
  return false;
}

std::optional<int64_t> ModelConfig::length(Keys keys) {
  const Found found = find(keys);
  if (!found.value) return std::nullopt;
  if (auto text = found.value->string()) return static_cast<int64_t>(text->size());
  if (found.value->is_array()) return static_cast<int64_t>(found.value->items().size());
  return std::nullopt;
}

std::optional<std::string_view> ModelConfig::word(Keys keys, int64_t index) {
  const Found found = find(keys);
  if (!found.value || !found.value->is_array()) return std::nullopt;
  const auto& items = found.value->items();
  if (index >= static_cast<int64_t>(items.size())) return "";
  return items[static_cast<size_t>(index)].string().value_or("");
}

Activation ModelConfig::activation(Keys keys, Activation otherwise) {
  constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"silu", Activation::silu},
      {"swish", Activation::silu},
      {"swiglu", Activation::silu},
      {"gelu", Activation::gelu},
      {"gelu_pytorch_tanh", Activation::gelu_tanh},
      {"gelu_new", Activation::gelu_tanh},
      {"gelu_fast", Activation::gelu_tanh},
      {"relu", Activation::relu},
      {"relu2", Activation::relu2},
  };
  const Found found = find(keys);
  if (!found.value) return otherwise;
  const auto name = found.value->string();
  for (const auto& [known, activation] : kNames)
    if (name == known) return activation;
  refuse(found.key, text_of(*found.value), "silu, gelu, gelu_pytorch_tanh, relu or relu2");
  return otherwise;
}

void ModelConfig::refuse(std::string_view key, std::string_view got, std::string_view wanted) {
  if (!status_.ok()) return;
  status_ = invalid_argument({.file = file_, .phase = Phase::open}, "{} of {} is {}, wanted {}",
                             key, file_, got, wanted);
}

void ModelConfig::unsupported(std::string_view what) {
  if (!status_.ok()) return;
  status_ = error(StatusCode::unimplemented, {.file = file_, .phase = Phase::open},
                  "{} calls for {}, which is not supported", file_, what);
}

}  // namespace moe
