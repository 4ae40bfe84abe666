// Every family's names and layouts, in files that make_families.py writes without this library.
// Each element tells where it belongs, so a tensor read from the wrong place cannot go unnoticed.
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "catch.h"
#include "core/json.h"
#include "moe/checkpoint.h"
#include "quant/half.h"
#include "temporary_directory.h"

using namespace moe;

namespace {

constexpr int kSharedCode = 7;  // make_families.py's SHARED

// make_families.py's code().
int64_t code(WeightKind kind, int64_t layer, int64_t expert, int64_t row, int64_t column) {
  return (((static_cast<int64_t>(kind) * 16 + layer) * 8 + expert) * 16 + row) * 16 + column;
}

// The rule in the words of make_families.py.
std::string text_of(const RouterSpec& r) {
  constexpr const char* kScoring[] = {"softmax", "sigmoid", "sqrt_softplus", "identity"};
  constexpr const char* kWeighting[] = {"score", "softmax_of_selected_logits", "sigmoid_of_logit"};
  std::string text = fmt::format("{} {} ", kScoring[static_cast<int>(r.scoring)],
                                 kWeighting[static_cast<int>(r.weighting)]);
  switch (r.normalize) {
    case Normalize::none: text += "none"; break;
    case Normalize::sum_plus_epsilon: text += fmt::format("sum+{}", r.epsilon); break;
    case Normalize::sum_at_least_epsilon: text += fmt::format("max(sum,{})", r.epsilon); break;
    case Normalize::p_norm: text += fmt::format("p_norm:{}", r.norm_power); break;
  }
  if (r.scaling != 1) text += fmt::format(" x{}", r.scaling);
  if (r.num_groups != 1)
    text += fmt::format(" groups:{}/{}/{}", r.num_groups, r.top_groups,
                        r.group_score == GroupScore::max ? "max" : "top2_sum");
  if (r.selection == Selection::sparsemixer)
    text += fmt::format(" sparsemixer:{}", r.sparsemixer_epsilon);
  if (r.selection == Selection::token_lookup) text += " token_lookup";
  if (r.softcap != 0) text += fmt::format(" softcap:{}", r.softcap);
  if (r.num_zero_experts != 0) text += fmt::format(" zero:{}", r.num_zero_experts);
  if (r.normalize_input) text += " normalize_input";
  if (r.capacity != 0) text += fmt::format(" capacity:{}", r.capacity);
  if (r.weight_on_input) text += " on_input";
  return text;
}

int64_t number(const Json& json, const char* key, int64_t otherwise = 0) {
  auto value = json.integer(key, otherwise);
  REQUIRE(value.ok());
  return *value;
}

bool flag(const Json& json, const char* key, bool otherwise) {
  auto value = json.boolean(key, otherwise);
  REQUIRE(value.ok());
  return *value;
}

std::string_view text(const Json& json, const char* key) {
  auto value = json.string(key);
  REQUIRE(value.ok());
  return *value;
}

bool lists(const Json& json, const char* key, std::string_view wanted) {
  for (const Json& item : json.find(key)->items())
    if (item.string() == wanted) return true;
  return false;
}

// Element `index` of dense memory as a whole number.
int64_t element(const std::vector<char>& bytes, DType type, int64_t index) {
  if (type == DType::i64) return reinterpret_cast<const int64_t*>(bytes.data())[index];
  return static_cast<int64_t>(load_float(type, bytes.data(), index));
}

class Case {
 public:
  Case(const Checkpoint& checkpoint, const Json& expected)
      : checkpoint_(checkpoint), dtype_(text(expected, "dtype")) {}

  void check_layer(const LayerSpec& spec, const Json& wanted) {
    wanted_ = &wanted;
    CHECK(spec.layer == number(wanted, "layer"));
    CHECK(text_of(spec.router) == text(wanted, "router"));
    CHECK(spec.router.num_experts == number(wanted, "experts"));
    CHECK(spec.router.top_k == number(wanted, "top_k"));
    CHECK(spec.hidden() == 6);
    CHECK(spec.expert.intermediate == number(wanted, "intermediate"));
    CHECK(to_string(spec.expert.activation) == text(wanted, "activation"));
    CHECK(spec.expert.gated == flag(wanted, "gated", true));
    CHECK(spec.expert.bias == flag(wanted, "bias", false));
    CHECK(to_string(spec.expert.format.kind) == dtype_name());
    const int64_t shared = number(wanted, "shared");
    REQUIRE(spec.shared.has_value() == (shared > 0));
    if (spec.shared) check_shared(spec, shared);
    check_tensors(spec);
  }

  int tensors() const { return tensors_; }

 private:
  std::string dtype_name() const {
    return dtype_ == "F32" ? "f32" : dtype_ == "F16" ? "f16" : "bf16";
  }

  void check_shared(const LayerSpec& spec, int64_t width) {
    CHECK(spec.shared->expert.intermediate == width);
    CHECK(spec.shared->sigmoid_gate == lists(*wanted_, "kinds", "shared_gate"));
    const Json* scales = wanted_->find("scales");
    CHECK(spec.shared->routed_scale == (scales ? float(*scales->items()[0].number()) : 1.0f));
    CHECK(spec.shared->shared_scale == (scales ? float(*scales->items()[1].number()) : 1.0f));
  }

  // Every kind is there and right, or not there.
  void check_tensors(const LayerSpec& spec) {
    for (int kind = 0; kind <= static_cast<int>(WeightKind::down_scale); ++kind) {
      const auto id = static_cast<WeightKind>(kind);
      if (id < WeightKind::gate) {
        check({spec.layer, id},
              id == WeightKind::router_weight || lists(*wanted_, "kinds", to_string(id)));
        continue;
      }
      for (int32_t expert = -1; expert < spec.router.num_experts; ++expert)
        check({spec.layer, id, expert}, expected_of_expert(spec, id, expert));
      CHECK_FALSE(checkpoint_.describe({spec.layer, id, spec.router.num_experts}).ok());
    }
  }

  static bool expected_of_expert(const LayerSpec& spec, WeightKind kind, int32_t expert) {
    if (kind >= WeightKind::gate_scale) return false;
    if (expert == kSharedExpert && !spec.shared) return false;
    const ExpertSpec& e = expert == kSharedExpert ? spec.shared->expert : spec.expert;
    if (!e.gated && (kind == WeightKind::gate || kind == WeightKind::gate_bias)) return false;
    return kind <= WeightKind::down || e.bias;
  }

  void check(const WeightId& id, bool expected) {
    INFO("layer " << id.layer << " " << to_string(id.kind) << " expert " << id.expert);
    auto shape = checkpoint_.describe(id);
    if (!expected) {
      CHECK(shape.status().code() == StatusCode::not_found);
      return;
    }
    INFO(shape.status().message());
    REQUIRE(shape.ok());
    const bool matrix = shape->shape.rank == 2;
    const int64_t rows = shape->shape[0], columns = matrix ? shape->shape[1] : 1;
    const auto bytes = read(id, *shape);
    int wrong = 0;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < columns; ++column)
        wrong += element(bytes, shape->dtype, row * columns + column) !=
                 expected_element(id, shape->dtype, row, column);
    CHECK(wrong == 0);
    ++tensors_;
  }

  // Dense, and again with room between rows and elements, which must stay untouched.
  std::vector<char> read(const WeightId& id, const TensorShape& shape) {
    const int64_t size = bits_of(shape.dtype) / 8, count = shape.shape.elements();
    std::vector<char> dense(static_cast<size_t>(count * size), '\x55');
    Status status = checkpoint_.read(id, {dense.data(), shape.dtype, shape.shape});
    INFO(status.message());
    REQUIRE(status.ok());

    const int64_t columns = shape.shape.rank == 2 ? shape.shape[1] : 1;
    Dims strides = shape.shape.rank == 2 ? Dims{2 * columns + 3, 2} : Dims{3};
    std::vector<char> wide(static_cast<size_t>((shape.shape[0] + 1) * (2 * columns + 3) * size),
                           '\x55');
    status = checkpoint_.read(id, {wide.data(), shape.dtype, shape.shape, strides, {}});
    REQUIRE(status.ok());
    std::vector<char> expected(wide.size(), '\x55');
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i / columns * strides[0] + (strides.rank == 2 ? i % columns * 2 : 0);
      std::copy_n(&dense[static_cast<size_t>(i * size)], size,
                  &expected[static_cast<size_t>(at * size)]);
    }
    CHECK(wide == expected);
    return dense;
  }

  int64_t expected_element(const WeightId& id, DType type, int64_t row, int64_t column) const {
    int64_t expert = id.kind < WeightKind::gate ? 0 : id.expert;
    if (expert == kSharedExpert) expert = kSharedCode;
    if (flag(*wanted_, "one_down_bias", false)) {
      if (id.kind == WeightKind::gate_bias || id.kind == WeightKind::up_bias) return 0;
      if (id.kind == WeightKind::down_bias) expert = 0;
    }
    const int64_t value = code(id.kind, id.layer, expert, row, column);
    return type == DType::bf16 ? value % 256 : type == DType::f16 ? value % 2048 : value;
  }

  const Checkpoint& checkpoint_;
  const std::string dtype_;
  const Json* wanted_ = nullptr;
  int tensors_ = 0;
};

}  // namespace

TEST_CASE(
    "every family's tensors are where the published files keep them",
    "[checkpoint][mission-2][mission-3][mission-5][mission-6][mission-7][mission-8][mission-9]"
    "[mission-12]") {
  test::TemporaryDirectory directory;
  const std::string command =
      fmt::format("\"{}\" \"{}\" \"{}\"", MOE_PYTHON, MOE_MAKE_FAMILIES, directory.path());
  if (std::string(MOE_PYTHON).empty()) return test::skip("make_families.py: no python3");
  REQUIRE(std::system(command.c_str()) == 0);
  int cases = 0, tensors = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
    INFO(entry.path().filename());
    auto checkpoint = Checkpoint::open(entry.path().native());
    INFO(checkpoint.status().message());
    REQUIRE(checkpoint.ok());
    auto expected = Json::read(entry.path() / "expect.json");
    REQUIRE(expected.ok());
    const auto& layers = expected->find("layers")->items();
    REQUIRE(checkpoint->layers().size() == layers.size());
    Case test(*checkpoint, *expected);
    for (size_t i = 0; i < layers.size(); ++i) test.check_layer(checkpoint->layers()[i], layers[i]);
    tensors += test.tensors();
    ++cases;
  }
  CHECK(cases >= 55);
  CHECK(tensors > 55 * 13);
}
