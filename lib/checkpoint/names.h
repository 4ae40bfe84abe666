// Tables of tensor names that several families share.
#pragma once

#include "checkpoint/family.h"

namespace moe {

// Qwen, OLMoE, DeepSeek, GLM, ...; and the fused forms that some of them are also saved in.
inline constexpr TensorRule kProjExperts[] = {
    {WeightKind::gate, "mlp.experts.{e}.gate_proj.weight", "i h"},
    {WeightKind::up, "mlp.experts.{e}.up_proj.weight", "i h"},
    {WeightKind::down, "mlp.experts.{e}.down_proj.weight", "h i"},
};

inline constexpr TensorRule kFusedExperts[] = {
    {WeightKind::gate, "mlp.experts.gate_up_proj", "e (g i) h"},
    {WeightKind::down, "mlp.experts.down_proj", "e h i"},
};

// (in, out): Qwen3-VL-MoE.
inline constexpr TensorRule kFusedTransposedExperts[] = {
    {WeightKind::gate, "mlp.experts.gate_up_proj", "e h (g i)"},
    {WeightKind::down, "mlp.experts.down_proj", "e i h"},
};

// Mixtral's names: w1 is gate, w3 is up, w2 is down.
inline constexpr TensorRule kBlockSparseMoe[] = {
    {WeightKind::router_weight, "block_sparse_moe.gate.weight", "c h"},
    {WeightKind::gate, "block_sparse_moe.experts.{e}.w1.weight", "i h"},
    {WeightKind::up, "block_sparse_moe.experts.{e}.w3.weight", "i h"},
    {WeightKind::down, "block_sparse_moe.experts.{e}.w2.weight", "h i"},
};

inline constexpr TensorRule kMlpGate[] = {
    {WeightKind::router_weight, "mlp.gate.weight", "c h"},
};

inline constexpr TensorRule kGatedSharedExpert[] = {
    {WeightKind::shared_gate, "mlp.shared_expert_gate.weight", "1 h"},
    {WeightKind::gate, "mlp.shared_expert.gate_proj.weight", "i h", Owner::shared},
    {WeightKind::up, "mlp.shared_expert.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "mlp.shared_expert.down_proj.weight", "h i", Owner::shared},
};

inline constexpr TensorRule kSharedExperts[] = {
    {WeightKind::gate, "mlp.shared_experts.gate_proj.weight", "i h", Owner::shared},
    {WeightKind::up, "mlp.shared_experts.up_proj.weight", "i h", Owner::shared},
    {WeightKind::down, "mlp.shared_experts.down_proj.weight", "h i", Owner::shared},
};

}  // namespace moe
