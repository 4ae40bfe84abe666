// Makes the experts of a quantised checkpoint, and measures what that cost each.
#include "moe/quantize.h"

#include <memory>
#include <optional>
#include <utility>

#include "core/error.h"
#include "model/quantize_error.h"
#include "model/quantize_plan.h"

namespace moe {
namespace {

class Quantizer {
 public:
  Quantizer(const Checkpoint& source, const QuantizeOptions& options)
      : source_(source), options_(options), plan_(source, options) {}

  Result<std::vector<LayerErrors>> write(std::string_view to, Progress progress, void* argument) {
    NewCheckpoint made{.from = *source_.impl(), .what = "quantising"};
    MOE_RETURN_IF_ERROR(plan_.add_all(&made));
    made.make = [this](const NewTensor& tensor, std::string* bytes) {
      const QuantizePlan::Key& key = plan_.key(tensor.key);
      MOE_RETURN_IF_ERROR(begin(plan_.experts()[key.expert]));
      current_->store(key.matrix, key.part, bytes);
      return Status();
    };
    MOE_RETURN_IF_ERROR(write_checkpoint(made, to, progress, argument));
    return std::move(errors_);
  }

 private:
  Status begin(const NewExpert& expert) {
    if (expert_ == &expert) return {};
    LayerSpec spec = expert.layer->spec();
    ExpertSpec& wanted = expert.owner == Owner::shared ? spec.shared->expert : spec.expert;
    wanted = quantised_spec(wanted, options_);
    if (!expert_ || expert_->layer != expert.layer || expert_->owner != expert.owner) {
      MOE_ASSIGN_OR_RETURN(output_error_, OutputError::make(expert.spec(), wanted));
    }
    current_.emplace(spec, expert, wanted.format);
    expert_ = &expert;
    MOE_RETURN_IF_ERROR(current_->make(source_));
    MOE_ASSIGN_OR_RETURN(const double outputs,
                         output_error_->of(source_, current_->weights(), spec.layer, expert.index));
    if (errors_.empty() || errors_.back().layer != spec.layer) errors_.push_back({spec.layer, {}});
    errors_.back().experts.push_back({expert.index, current_->error(), outputs});
    return {};
  }

  const Checkpoint& source_;
  const QuantizeOptions options_;
  QuantizePlan plan_;
  const NewExpert* expert_ = nullptr;  // current_'s
  std::optional<QuantisedExpert> current_;
  std::optional<OutputError> output_error_;  // of the layer's experts, or its shared one
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
