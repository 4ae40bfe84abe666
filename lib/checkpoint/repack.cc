// Another order for the same tensors: an expert is a run of tensors that nobody else uses.
#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/packed_names.h"
#include "checkpoint/write_checkpoint.h"
#include "core/error.h"

namespace moe {
namespace {

using Tensor = Checkpoint::Tensor;

// The tensors of the experts, by expert; then each tensor that experts share; then all others.
class Planner {
 public:
  explicit Planner(const Checkpoint::Impl& from) : from_(from) {}

  Result<std::vector<TensorRun>> runs() {
    for (const LayerTensors& layer : from_.layers.layers()) MOE_RETURN_IF_ERROR(add_layer(layer));
    for (const Tensor& tensor : from_.files.tensors())
      if (!placed_.contains(tensor.name)) runs_.push_back({copy_of(tensor)});
    return std::move(runs_);
  }

 private:
  // The stored tensors of one expert.
  std::vector<const Tensor*> tensors_of(const LayerTensors& layer, int32_t expert) const {
    std::vector<const Tensor*> found;
    std::string name;
    const auto add = [&] {
      const Tensor* tensor = name.empty() ? nullptr : from_.files.find(name);
      if (tensor && std::find(found.begin(), found.end(), tensor) == found.end())
        found.push_back(tensor);
    };
    for (const Part& part : layer.parts()) {
      if (part.owner != Owner::routed || !is_expert_kind(part.kind)) continue;
      layer.name(part, expert, &name);
      add();
      if (role_of(part.kind) != Role::matrix) continue;
      for (Role role : {Role::scale, Role::zero, Role::group}) {
        layer.name(part, role, expert, &name);
        add();
      }
      const Packing packing = layer.quant(part.owner).packing;
      if (packing == Packing::none) continue;
      layer.name(part, Role::matrix, expert, &name);
      name.resize(name.size() - packed_names(packing).values.size());
      name += packed_names(packing).extents;
      add();
    }
    return found;
  }

  Status add_layer(const LayerTensors& layer) {
    const int32_t experts = layer.spec().router.num_experts;
    std::vector<std::vector<const Tensor*>> all;
    std::unordered_map<const Tensor*, uint64_t> users;
    std::vector<const Tensor*> shared;  // by several experts
    for (int32_t e = 0; e < experts; ++e) {
      all.push_back(tensors_of(layer, e));
      for (const Tensor* tensor : all.back())
        if (++users[tensor] == 2) shared.push_back(tensor);
    }
    for (const auto& tensors : all) {
      TensorRun run;
      for (const Tensor* tensor : tensors)
        if (users[tensor] == 1 && placed_.insert(tensor->name).second)
          run.push_back(copy_of(*tensor, 1));
      if (!run.empty()) runs_.push_back(std::move(run));
    }
    for (const Tensor* tensor : shared) {
      const bool even = tensor->bytes % users[tensor] == 0;
      if (placed_.insert(tensor->name).second)
        runs_.push_back({copy_of(*tensor, even ? users[tensor] : 1)});
    }
    return {};
  }

  const Checkpoint::Impl& from_;
  std::unordered_set<std::string_view> placed_;
  std::vector<TensorRun> runs_;
};

}  // namespace

Status repack(std::string_view from, std::string_view to, Progress progress, void* argument) {
  return guarded({.file = to}, [&]() -> Status {
    MOE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(from));
    NewCheckpoint made{.from = *checkpoint.impl(), .what = "repacking"};
    MOE_ASSIGN_OR_RETURN(made.runs, Planner(made.from).runs());
    return write_checkpoint(made, to, progress, argument);
  });
}

}  // namespace moe
