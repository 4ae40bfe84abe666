// Which tensors a quantised checkpoint has, and how one expert's are made.
#include "moe/quantize.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/packed_names.h"
#include "checkpoint/write_checkpoint.h"
#include "core/error.h"
#include "gemm/read_matrix.h"
#include "model/quantize_error.h"
#include "model/quantized_config.h"
#include "quant/half.h"

namespace moe {
namespace {

// gate, up or down of one expert.
struct Matrix {
  WeightKind kind;
  std::string module;  // the name without ".weight"
  PackedMatrix packed;
};

struct Expert {
  const LayerTensors* layer;
  Owner owner;
  int32_t index;  // kSharedExpert for Owner::shared
  std::vector<Matrix> matrices;

  const ExpertSpec& spec() const {
    return owner == Owner::shared ? layer->spec().shared->expert : layer->spec().expert;
  }
};

Format format_for(const ExpertSpec& from, const QuantizeOptions& options) {
  const FormatKind kind = from.format.kind;
  const DType scale = kind == FormatKind::f32   ? DType::f32
                      : kind == FormatKind::f16 ? DType::f16
                                                : DType::bf16;
  return {.kind = options.format, .group = options.group, .scale = scale};
}

// The canonical tensors of one expert, quantised, as a WeightSource and as stored.
class QuantisedExpert {
 public:
  QuantisedExpert(LayerSpec spec, const Expert& expert, const Format& format)
      : expert_(expert), format_(format), weights_({std::move(spec)}) {}

  Status make(const WeightSource& source) {
    const int32_t layer = expert_.layer->spec().layer;
    buffers_.resize(expert_.matrices.size());
    scales_.resize(expert_.matrices.size());
    for (size_t i = 0; i < expert_.matrices.size(); ++i) {
      const Matrix& matrix = expert_.matrices[i];
      const int64_t rows = matrix.packed.rows, columns = matrix.packed.columns;
      const WeightId id{layer, matrix.kind, expert_.index};
      MOE_ASSIGN_OR_RETURN(const std::vector<float> values,
                           read_dequantised(source, id, rows, columns));
      Result<QuantBuffer> made = quantise(values, format_, rows, columns);
      if (!made.ok())
        return made.status().at({.file = source.name(),
                                 .tensor = to_string(matrix.kind),
                                 .layer = layer,
                                 .expert = expert_.index});
      buffers_[i] = std::move(*made);
      add_error(values, buffers_[i].view());
      MOE_RETURN_IF_ERROR(set(id, i));
    }
    return expert_.spec().bias ? set_biases(source, layer) : Status();
  }

  const WeightSource& weights() const { return weights_; }
  double error() const { return norm_ > 0 ? std::sqrt(difference_ / norm_) : 0; }

  // The stored tensor `part` of matrix `i`: 0 words, 1 scales, 2 extents.
  void store(size_t i, int part, std::string* out) const {
    const PackedMatrix& packed = expert_.matrices[i].packed;
    if (part == 1) return void(out->assign(scales_[i].begin(), scales_[i].end()));
    if (part == 2) {
      const int64_t extents[] = {packed.rows, packed.columns};
      out->assign(reinterpret_cast<const char*>(extents), sizeof extents);
      return;
    }
    out->assign(static_cast<size_t>(packed_values(packed).elements()) * 4, '\0');
    pack_compressed(buffers_[i].view(), reinterpret_cast<std::byte*>(out->data()), nullptr);
  }

 private:
  void add_error(const std::vector<float>& values, const QuantMatrix& matrix) {
    const std::vector<float> back = dequantise(matrix);
    for (size_t k = 0; k < values.size(); ++k) {
      difference_ += std::pow(static_cast<double>(back[k]) - values[k], 2);
      norm_ += std::pow(static_cast<double>(values[k]), 2);
    }
  }

  Status set(const WeightId& id, size_t i) {
    const QuantBuffer& buffer = buffers_[i];
    const Dims shape = scale_shape(format_, buffer.rows, buffer.columns);
    scales_[i].resize(buffer.scales.size() * static_cast<size_t>(bits_of(format_.scale) / 8));
    for (size_t k = 0; k < buffer.scales.size(); ++k)
      store_float(format_.scale, reinterpret_cast<std::byte*>(scales_[i].data()),
                  static_cast<int64_t>(k), buffer.scales[k]);
    MOE_RETURN_IF_ERROR(weights_.set(id, {buffer.values.data(), value_type(format_),
                                          value_shape(format_, buffer.rows, buffer.columns)}));
    return weights_.set({id.layer, companion(id.kind, Role::scale), id.expert},
                        {scales_[i].data(), format_.scale, shape});
  }

  Status set_biases(const WeightSource& source, int32_t layer) {
    using enum WeightKind;
    for (WeightKind kind : {gate_bias, up_bias, down_bias}) {
      if (kind == gate_bias && !expert_.spec().gated) continue;
      const WeightId id{layer, kind, expert_.index};
      MOE_ASSIGN_OR_RETURN(const TensorShape shape, source.describe(id));
      auto& bytes = biases_.emplace_back(static_cast<size_t>(shape.shape.elements()) *
                                         static_cast<size_t>(bits_of(shape.dtype) / 8));
      MOE_RETURN_IF_ERROR(source.read(id, {bytes.data(), shape.dtype, shape.shape}));
      MOE_RETURN_IF_ERROR(weights_.set(id, {bytes.data(), shape.dtype, shape.shape}));
    }
    return {};
  }

  const Expert& expert_;
  const Format format_;
  MemoryWeights weights_;
  std::vector<QuantBuffer> buffers_;
  std::vector<std::vector<char>> scales_, biases_;
  double difference_ = 0, norm_ = 0;
};

class Quantizer {
 public:
  Quantizer(const Checkpoint& source, const QuantizeOptions& options)
      : source_(source), from_(*source.impl()), options_(options) {}

  Result<std::vector<LayerErrors>> write(std::string_view to, Progress progress, void* argument) {
    NewCheckpoint made{.from = from_, .what = "quantising"};
    for (const LayerTensors& layer : from_.layers.layers()) {
      for (int32_t e = 0; e < layer.spec().router.num_experts; ++e)
        MOE_RETURN_IF_ERROR(plan(layer, Owner::routed, e, &made));
      if (layer.spec().shared)
        MOE_RETURN_IF_ERROR(plan(layer, Owner::shared, kSharedExpert, &made));
    }
    if (experts_.empty())
      return error(StatusCode::failed_precondition, {.file = source_.name()},
                   "{} has no MoE layers; there is nothing to quantise", source_.name());
    MOE_RETURN_IF_ERROR(add_rest(&made));
    made.make = [this](const NewTensor& tensor, std::string* bytes) {
      return make(tensor.key, bytes);
    };
    MOE_RETURN_IF_ERROR(write_checkpoint(made, to, progress, argument));
    return std::move(errors_);
  }

 private:
  // The name that the family's packed `part` has.
  Status name_module(const LayerTensors& layer, const Part& part, int32_t expert,
                     std::string* module) const {
    const Family* family = find_family(from_.family);
    const bool down = part.kind == WeightKind::down;
    for (size_t i = 0; family && i < family->rules.size(); ++i) {
      const TensorRule& rule = family->rules[i];
      if (rule.kind != part.kind || rule.owner != part.owner || !rule.name.ends_with(kWeight) ||
          rule.axes != (down ? "h i" : "i h") || per_expert(rule) != (part.owner == Owner::routed))
        continue;
      layer.name(rule, expert, module);
      rename_weight("", module);
      return {};
    }
    std::string stored;
    layer.name(layer.rule(part), expert, &stored);
    return error(StatusCode::unimplemented, {.tensor = stored, .layer = layer.spec().layer},
                 "{} is one tensor for several matrices, and models of family {} have no names for "
                 "packed ones; quantise it when it is loaded (ModelOptions::format)",
                 stored, from_.family);
  }

  Status check(const LayerTensors& layer, const Expert& expert) const {
    const ExpertSpec& spec = expert.spec();
    const FormatKind kind = spec.format.kind;
    if (kind != FormatKind::fp8_block && is_quantised(kind))
      return error(StatusCode::unimplemented, {.layer = layer.spec().layer},
                   "the experts of {} are {} already; quantise a version in f32, f16, bf16 or fp8",
                   source_.name(), format_name(spec.format));
    ExpertSpec wanted = spec;
    wanted.format = format_for(spec, options_);
    return OutputError::make(spec, wanted).status();
  }

  Status plan(const LayerTensors& layer, Owner owner, int32_t index, NewCheckpoint* made) {
    Expert expert{&layer, owner, index, {}};
    if (index <= 0) MOE_RETURN_IF_ERROR(check(layer, expert));
    const Format format = format_for(expert.spec(), options_);
    TensorRun run;
    const auto add = [&](std::string name, DType type, const Dims& shape) {
      const auto bytes = static_cast<uint64_t>(shape.elements()) * (bits_of(type) / 8);
      run.push_back(
          {std::move(name), type, shape, bytes, 1, nullptr, static_cast<int64_t>(keys_.size())});
      keys_.push_back({experts_.size(), run.size() - 1});
    };
    for (WeightKind kind : {WeightKind::gate, WeightKind::up, WeightKind::down}) {
      const Part part{kind, owner};
      if (!layer.has(part)) continue;
      const Dims shape = canonical_shape(layer.spec(), part);
      Matrix matrix{kind, {}, {Packing::compressed, format, shape[0], shape[1]}};
      MOE_RETURN_IF_ERROR(name_module(layer, part, index, &matrix.module));
      if (Status status = check_packed(matrix.packed); !status.ok())
        return status.at({.tensor = matrix.module, .layer = layer.spec().layer});
      const PackedNames& names = packed_names(Packing::compressed);
      add(fmt::format("{}{}", matrix.module, names.values), DType::i32,
          packed_values(matrix.packed));
      add(fmt::format("{}{}", matrix.module, names.scales), format.scale,
          scale_shape(format, shape[0], shape[1]));
      add(fmt::format("{}{}", matrix.module, names.extents), DType::i64, {2});
      replace(layer, part, index, matrix.module);
      expert.matrices.push_back(std::move(matrix));
    }
    made->runs.push_back(std::move(run));
    experts_.push_back(std::move(expert));
    return {};
  }

  // What the new tensors stand in for.
  void replace(const LayerTensors& layer, const Part& part, int32_t expert,
               const std::string& module) {
    std::string name;
    for (Role role : {Role::matrix, Role::scale}) {
      layer.name(part, role, expert, &name);
      replaced_.insert(name);
    }
    replaced_.insert(module + ".input_scale");  // of fp8 rows
  }

  // Everything else, copied.
  Status add_rest(NewCheckpoint* made) const {
    MOE_ASSIGN_OR_RETURN(const Json config, Json::read(from_.directory + "/config.json"));
    const std::string fp8 = "hf_quant_config.json";
    const bool quantised = config.find("quantization_config") ||
                           config.find("compression_config") ||
                           std::filesystem::exists(from_.directory + "/" + fp8);
    std::vector<std::string> ignored;
    for (const Checkpoint::Tensor& tensor : from_.files.tensors()) {
      if (replaced_.contains(std::string(tensor.name))) continue;
      if (quantised && bits_of(tensor.dtype) <= 8)
        return error(StatusCode::unimplemented, {.file = tensor.file, .tensor = tensor.name},
                     "{} in {} is quantised ({}) and belongs to no expert; one model cannot say "
                     "both. Quantise a version in f32, f16 or bf16",
                     tensor.name, tensor.file, to_safetensors(tensor.dtype));
      if (tensor.shape.rank == 2 && tensor.name.ends_with(kWeight))
        ignored.emplace_back(tensor.name.substr(0, tensor.name.size() - kWeight.size()));
      made->runs.push_back({copy_of(tensor)});
    }
    made->dropped = {fp8};
    made->config = quantized_config(config, format_for(experts_[0].spec(), options_), ignored);
    return {};
  }

  Status make(int64_t key, std::string* bytes) {
    const auto [expert, place] = keys_[static_cast<size_t>(key)];
    if (!current_ || place == 0) MOE_RETURN_IF_ERROR(begin(experts_[expert]));
    current_->store(place / 3, static_cast<int>(place % 3), bytes);
    return {};
  }

  Status begin(const Expert& expert) {
    LayerSpec spec = expert.layer->spec();
    const Format format = format_for(expert.spec(), options_);
    ExpertSpec wanted = expert.spec();
    wanted.format = format;
    (expert.owner == Owner::shared ? spec.shared->expert : spec.expert) = wanted;
    current_ = std::make_unique<QuantisedExpert>(spec, expert, format);
    MOE_RETURN_IF_ERROR(current_->make(source_));
    MOE_ASSIGN_OR_RETURN(const OutputError error, OutputError::make(expert.spec(), wanted));
    MOE_ASSIGN_OR_RETURN(const double outputs,
                         error.of(source_, current_->weights(), spec.layer, expert.index));
    if (errors_.empty() || errors_.back().layer != spec.layer) errors_.push_back({spec.layer, {}});
    errors_.back().experts.push_back({expert.index, current_->error(), outputs});
    return {};
  }

  struct Key {
    size_t expert, place;  // of the tensor in the expert's run
  };

  const Checkpoint& source_;
  const Checkpoint::Impl& from_;
  const QuantizeOptions options_;
  std::vector<Expert> experts_;
  std::vector<Key> keys_;
  std::unordered_set<std::string> replaced_;
  std::unique_ptr<QuantisedExpert> current_;
  std::vector<LayerErrors> errors_;
};

Status check_options(const QuantizeOptions& options) {
  if (options.format != FormatKind::int4 && options.format != FormatKind::int8)
    return invalid_argument({}, "format is {}, wanted int4 or int8", to_string(options.format));
  if (options.group < 0 || options.group % 32 != 0)
    return invalid_argument({}, "group is {}, wanted a multiple of 32, or 0 for whole rows",
                            options.group);
  return {};
}

}  // namespace

Result<std::vector<LayerErrors>> quantize(std::string_view from, std::string_view to,
                                          const QuantizeOptions& options, Progress progress,
                                          void* argument) {
  return guarded({.file = to}, [&]() -> Result<std::vector<LayerErrors>> {
    MOE_RETURN_IF_ERROR(check_options(options));
    MOE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(from));
    return Quantizer(checkpoint, options).write(to, progress, argument);
  });
}

}  // namespace moe
