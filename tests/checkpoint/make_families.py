#!/usr/bin/env python3
"""Writes one tiny checkpoint per family and layout into DIR, with what a reader must find.

Names, shapes and orders of elements are spelled out here, from the families' published files, without
the library under test. Every element tells where it belongs (`code`), so that the test can compute the
canonical tensor by itself. Only the standard library is used.
"""
import json
import os
import struct
import sys

H, I, E, K = 6, 5, 4, 2  # hidden, intermediate, experts, choices
S = 3  # width of a shared expert where it differs from I
KINDS = ["router_weight", "router_bias", "router_selection_bias", "router_per_expert_scale",
         "router_input_scale", "router_token_experts", "shared_gate", "gate", "up", "down",
         "gate_bias", "up_bias", "down_bias"]
SHARED = 7  # stands for the expert's index


def code(kind, layer, expert, row, column=0):
    """A whole number below 2^19: exact in f32."""
    return (((KINDS.index(kind) * 16 + layer) * 8 + expert) * 16 + row) * 16 + column


class Model:
    """Tensors and expectations of one checkpoint."""

    def __init__(self, **config):
        self.config = config
        self.tensors = {}
        self.layers = []

    def add(self, name, shape, value, dtype="F32"):
        """value(*index) for every index of `shape`, the last one fastest."""
        assert name not in self.tensors, name
        flat = []
        index = [0] * len(shape)
        total = 1
        for extent in shape:
            total *= extent
        for _ in range(total):
            flat.append(value(*index))
            for axis in reversed(range(len(shape))):
                index[axis] += 1
                if index[axis] < shape[axis]:
                    break
                index[axis] = 0
        self.tensors[name] = (dtype, list(shape), flat)

    def expect(self, layer, router, kinds=(), experts=E, top_k=K, intermediate=I, shared=0,
               activation="silu", **extra):
        self.layers.append(dict(layer=layer, router=router, kinds=list(kinds), experts=experts,
                                top_k=top_k, intermediate=intermediate, shared=shared,
                                activation=activation, **extra))

    # The shapes that most families share: every Linear is (out, in).
    def router(self, name, layer, candidates=E):
        self.add(name, (candidates, H), lambda c, h: code("router_weight", layer, 0, c, h))

    def selection_bias(self, name, layer, candidates=E):
        self.add(name, (candidates,), lambda c: code("router_selection_bias", layer, 0, c))

    def matrices(self, layer, expert, gate, up, down, width=I):
        if gate:
            self.add(gate, (width, H), lambda r, c: code("gate", layer, expert, r, c))
        self.add(up, (width, H), lambda r, c: code("up", layer, expert, r, c))
        self.add(down, (H, width), lambda r, c: code("down", layer, expert, r, c))

    def projections(self, prefix, layer, expert, width=I):
        self.matrices(layer, expert, prefix + "gate_proj.weight", prefix + "up_proj.weight",
                      prefix + "down_proj.weight", width)

    def w123(self, prefix, layer, expert):
        self.matrices(layer, expert, prefix + "w1.weight", prefix + "w3.weight",
                      prefix + "w2.weight")

    def fused(self, gate_up, down, layer):
        """(experts, out, in), gate's rows first."""
        self.add(gate_up, (E, 2 * I, H), lambda e, r, c: code("gate" if r < I else "up", layer, e,
                                                              r % I, c))
        self.add(down, (E, H, I), lambda e, r, c: code("down", layer, e, r, c))

    def fused_transposed(self, gate_up, down, layer):
        """(experts, in, out), gate's columns first."""
        self.add(gate_up, (E, H, 2 * I), lambda e, r, c: code("gate" if c < I else "up", layer, e,
                                                              c % I, r))
        self.add(down, (E, I, H), lambda e, r, c: code("down", layer, e, c, r))


CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


# ---- Mixtral's names

def block_sparse_moe(model, layer):
    model.router(f"model.layers.{layer}.block_sparse_moe.gate.weight", layer)
    for e in range(E):
        model.w123(f"model.layers.{layer}.block_sparse_moe.experts.{e}.", layer, e)


@case
def mixtral():
    m = Model(model_type="mixtral", hidden_size=H, intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=K, num_hidden_layers=2, hidden_act="silu",
              router_jitter_noise=0.0)
    for layer in range(2):
        block_sparse_moe(m, layer)
        m.expect(layer, "softmax score sum+0")
    return m


@case
def minimax_text_01():
    m = Model(model_type="minimax_text_01", hidden_size=H, intermediate_size=I,
              num_local_experts=E, num_experts_per_tok=K, num_hidden_layers=1,
              shared_intermediate_size=0)
    block_sparse_moe(m, 0)
    m.expect(0, "softmax score sum+0")
    return m


@case
def minimax_m2():
    m = Model(model_type="minimax_m2", hidden_size=H, intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=K, num_hidden_layers=1, scoring_func="sigmoid",
              use_routing_bias=True)
    block_sparse_moe(m, 0)
    m.selection_bias("model.layers.0.block_sparse_moe.e_score_correction_bias", 0)
    m.expect(0, "sigmoid score sum+0", ["router_selection_bias"])
    return m


@case
def phimoe():
    m = Model(model_type="phimoe", hidden_size=H, intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=2, num_hidden_layers=1, router_jitter_noise=0.01)
    block_sparse_moe(m, 0)
    m.expect(0, "softmax score none sparsemixer:0.01")
    return m


@case
def arctic():
    m = Model(model_type="arctic", hidden_size=H, intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=K, num_hidden_layers=4, moe_layer_frequency=2)
    for layer in (1, 3):
        block_sparse_moe(m, layer)
        m.expect(layer, "softmax score sum+0")
    return m


@case
def kimi_linear():
    m = Model(model_type="kimi_linear", hidden_size=H, moe_intermediate_size=I, num_experts=E,
              num_experts_per_token=K, num_shared_experts=1, num_hidden_layers=2,
              first_k_dense_replace=1, moe_layer_freq=1, routed_scaling_factor=2.446,
              moe_router_activation_func="sigmoid", moe_renormalize=True, use_grouped_topk=True,
              num_expert_group=1, topk_group=1)
    block_sparse_moe(m, 1)
    m.selection_bias("model.layers.1.block_sparse_moe.gate.e_score_correction_bias", 1)
    m.projections("model.layers.1.block_sparse_moe.shared_experts.", 1, SHARED)
    m.expect(1, "sigmoid score sum+1e-20 x2.446", ["router_selection_bias"], shared=I)
    return m


@case
def grok_1():
    m = Model(model_type="grok-1", hidden_size=H, intermediate_size=I, num_experts=E,
              num_experts_per_tok=K, num_hidden_layers=1)
    p = "model.layers.0.moe_block."
    m.router(p + "gate.weight", 0)
    for e in range(E):
        m.matrices(0, e, f"{p}experts.{e}.linear.weight", f"{p}experts.{e}.linear_v.weight",
                   f"{p}experts.{e}.linear_1.weight")
    m.expect(0, "softmax score none softcap:30", activation="gelu")
    return m


@case
def grok_2():
    m = Model(model_type="git", architectures=["Grok1ForCausalLM"], hidden_size=H,
              intermediate_size=S, moe_intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=K, num_hidden_layers=1, residual_moe=True,
              router_logit_softcapping=30.0, hidden_act="gelu")
    block_sparse_moe(m, 0)
    m.projections("model.layers.0.mlp.", 0, SHARED, S)
    m.expect(0, "softmax score none softcap:30", shared=S, activation="gelu",
             scales=[0.70710678, 0.70710678])
    return m


# ---- mlp.experts.{e}.{gate,up,down}_proj

def mlp_experts(model, layer, prefix="model.layers.", experts=E, width=I):
    for e in range(experts):
        model.projections(f"{prefix}{layer}.mlp.experts.{e}.", layer, e, width)


def gated_shared(model, layer, prefix="model.layers."):
    model.projections(f"{prefix}{layer}.mlp.shared_expert.", layer, SHARED, S)
    model.add(f"{prefix}{layer}.mlp.shared_expert_gate.weight", (1, H),
              lambda r, c: code("shared_gate", layer, 0, r, c))


@case
def qwen2_moe():
    m = Model(model_type="qwen2_moe", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
              shared_expert_intermediate_size=S, num_experts=E, num_experts_per_tok=K,
              num_hidden_layers=1, norm_topk_prob=False, decoder_sparse_step=1)
    m.router("model.layers.0.mlp.gate.weight", 0)
    mlp_experts(m, 0)
    gated_shared(m, 0)
    m.expect(0, "softmax score none", ["shared_gate"], shared=S)
    return m


@case
def qwen3_moe():
    """Dense: 1 (mlp_only_layers), and 0, 2, 4 (decoder_sparse_step)."""
    m = Model(model_type="qwen3_moe", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
              num_experts=E, num_experts_per_tok=K, num_hidden_layers=6, norm_topk_prob=True,
              decoder_sparse_step=2, mlp_only_layers=[1])
    for layer in (3, 5):
        m.router(f"model.layers.{layer}.mlp.gate.weight", layer)
        mlp_experts(m, layer)
        m.expect(layer, "softmax score sum+0")
    return m


@case
def qwen3_moe_defaults():
    """norm_topk_prob absent means false; num_local_experts is the older name."""
    m = Model(model_type="qwen3_moe", hidden_size=H, moe_intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=K, num_hidden_layers=1)
    m.router("model.layers.0.mlp.gate.weight", 0)
    m.fused("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj", 0)
    m.expect(0, "softmax score none")
    return m


@case
def qwen3_vl_moe():
    m = Model(model_type="qwen3_vl_moe", vision_config={"hidden_size": 99},
              text_config=dict(model_type="qwen3_vl_moe_text", hidden_size=H,
                               moe_intermediate_size=I, num_experts=E, num_experts_per_tok=K,
                               num_hidden_layers=1, norm_topk_prob=True))
    p = "model.language_model.layers.0.mlp."
    m.router(p + "gate.weight", 0)
    m.fused_transposed(p + "experts.gate_up_proj", p + "experts.down_proj", 0)
    m.expect(0, "softmax score sum+0")
    return m


@case
def qwen3_5_moe():
    m = Model(model_type="qwen3_5_moe",
              text_config=dict(model_type="qwen3_5_moe_text", hidden_size=H,
                               moe_intermediate_size=I, shared_expert_intermediate_size=S,
                               num_experts=E, num_experts_per_tok=K, num_hidden_layers=1))
    p = "model.language_model.layers."
    m.router(p + "0.mlp.gate.weight", 0)
    m.fused(p + "0.mlp.experts.gate_up_proj", p + "0.mlp.experts.down_proj", 0)
    gated_shared(m, 0, p)
    m.expect(0, "softmax score sum+0", ["shared_gate"], shared=S)
    return m


@case
def qwen3_omni_moe():
    m = Model(model_type="qwen3_omni_moe",
              thinker_config=dict(model_type="qwen3_omni_moe_thinker",
                                  text_config=dict(model_type="qwen3_omni_moe_text", hidden_size=H,
                                                   moe_intermediate_size=I, num_experts=E,
                                                   num_experts_per_tok=K, num_hidden_layers=1,
                                                   norm_topk_prob=True)))
    m.router("thinker.model.layers.0.mlp.gate.weight", 0)
    mlp_experts(m, 0, "thinker.model.layers.")
    m.expect(0, "softmax score sum+0")
    return m


@case
def olmoe():
    m = Model(model_type="olmoe", hidden_size=H, intermediate_size=I, num_experts=E,
              num_experts_per_tok=K, num_hidden_layers=1, norm_topk_prob=False)
    m.router("model.layers.0.mlp.gate.weight", 0)
    mlp_experts(m, 0)
    m.expect(0, "softmax score none")
    return m


# ---- DeepSeek's names

def deepseek_layer(model, layer, bias=True, shared=I, prefix="model.layers."):
    p = f"{prefix}{layer}.mlp."
    model.router(p + "gate.weight", layer)
    if bias:
        model.selection_bias(p + "gate.e_score_correction_bias", layer)
    mlp_experts(model, layer, prefix)
    if shared:
        model.projections(p + "shared_experts.", layer, SHARED, shared)


def deepseek_config(**extra):
    return dict(hidden_size=H, moe_intermediate_size=I, intermediate_size=9, n_routed_experts=E,
                num_experts_per_tok=K, **extra)


@case
def deepseek_v2_lite():
    m = Model(model_type="deepseek_v2", **deepseek_config(
        n_shared_experts=2, num_hidden_layers=2, first_k_dense_replace=1, moe_layer_freq=1,
        topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0, n_group=1,
        topk_group=1, scoring_func="softmax"))
    deepseek_layer(m, 1, bias=False, shared=2 * I)
    m.expect(1, "softmax score none", shared=2 * I)
    return m


@case
def deepseek_v2():
    m = Model(model_type="deepseek_v2", **deepseek_config(
        n_shared_experts=2, num_hidden_layers=2, first_k_dense_replace=1,
        topk_method="group_limited_greedy", norm_topk_prob=False, routed_scaling_factor=16.0,
        n_group=2, topk_group=1))
    deepseek_layer(m, 1, bias=False, shared=2 * I)
    m.expect(1, "softmax score none x16 groups:2/1/max", shared=2 * I)
    return m


@case
def deepseek_v2_normalised():
    """Either normalised or scaled, never both."""
    m = Model(model_type="deepseek_v2", **deepseek_config(
        num_hidden_layers=1, topk_method="greedy", norm_topk_prob=True,
        routed_scaling_factor=16.0))
    deepseek_layer(m, 0, bias=False, shared=0)
    m.expect(0, "softmax score sum+1e-20")
    return m


@case
def deepseek_vl2():
    m = Model(model_type="deepseek_vl_v2",
              language_config=dict(model_type="deepseek_v2", **deepseek_config(
                  n_shared_experts=2, num_hidden_layers=1, topk_method="noaux_tc",
                  scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.0,
                  n_group=1, topk_group=1)))
    deepseek_layer(m, 0, shared=2 * I, prefix="language.model.layers.")
    m.expect(0, "sigmoid score sum+1e-20 x2", ["router_selection_bias"], shared=2 * I)
    return m


@case
def deepseek_v3():
    m = Model(model_type="deepseek_v3", **deepseek_config(
        n_shared_experts=1, num_hidden_layers=3, first_k_dense_replace=1, moe_layer_freq=1,
        topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True,
        routed_scaling_factor=2.5, n_group=2, topk_group=1, num_nextn_predict_layers=1))
    for layer in (1, 2):
        deepseek_layer(m, layer)
        m.expect(layer, "sigmoid score sum+1e-20 x2.5 groups:2/1/top2_sum",
                 ["router_selection_bias"], shared=I)
    m.router("model.layers.3.mlp.gate.weight", 3)  # of the multi-token-prediction layer
    return m


@case
def kimi_k2():
    m = Model(model_type="kimi_k2", **deepseek_config(
        n_shared_experts=1, num_hidden_layers=2, first_k_dense_replace=1, n_group=1, topk_group=1,
        topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True,
        routed_scaling_factor=2.827))
    deepseek_layer(m, 1)
    m.expect(1, "sigmoid score sum+1e-20 x2.827", ["router_selection_bias"], shared=I)
    return m


@case
def glm4v_moe():
    m = Model(model_type="glm4v_moe", text_config=dict(
        model_type="glm4v_moe_text", **deepseek_config(
            n_shared_experts=1, num_hidden_layers=2, first_k_dense_replace=1, n_group=1,
            topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.5)))
    deepseek_layer(m, 1, prefix="model.language_model.layers.")
    m.expect(1, "sigmoid score sum+1e-20 x1.5", ["router_selection_bias"], shared=I)
    return m


@case
def dots1():
    m = Model(model_type="dots1", **deepseek_config(
        n_shared_experts=1, num_hidden_layers=2, first_k_dense_replace=1, n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=2.5))
    deepseek_layer(m, 1)
    m.expect(1, "sigmoid score sum+1e-20 x2.5", ["router_selection_bias"], shared=I)
    return m


@case
def mimo_v2_flash():
    """As published: moe_layer_freq is a flag per layer, and factors may be null."""
    m = Model(model_type="mimo_v2_flash", **deepseek_config(
        n_shared_experts=None, num_hidden_layers=3, moe_layer_freq=[0, 1, 1], n_group=1,
        topk_group=1, norm_topk_prob=True, routed_scaling_factor=None))
    for layer in (1, 2):
        deepseek_layer(m, layer, shared=0)
        m.expect(layer, "sigmoid score sum+1e-20", ["router_selection_bias"])
    return m


@case
def deepseek_v4():
    m = Model(model_type="deepseek_v4", hidden_size=H, moe_intermediate_size=I, n_routed_experts=E,
              n_shared_experts=1, num_experts_per_tok=K, num_hidden_layers=2,
              scoring_func="sqrtsoftplus", num_hash_layers=1, routed_scaling_factor=1.5)
    for layer in range(2):
        p = f"layers.{layer}.ffn."
        m.router(p + "gate.weight", layer)
        for e in range(E):
            m.w123(f"{p}experts.{e}.", layer, e)
        m.w123(p + "shared_experts.", layer, SHARED)
    m.add("layers.0.ffn.gate.tid2eid", (10, K),
          lambda t, k: code("router_token_experts", 0, 0, t, k), "I64")
    m.selection_bias("layers.1.ffn.gate.bias", 1)
    m.expect(0, "sqrt_softplus score sum+1e-20 x1.5 token_lookup", ["router_token_experts"],
             shared=I)
    m.expect(1, "sqrt_softplus score sum+1e-20 x1.5", ["router_selection_bias"], shared=I)
    return m


# ---- gpt-oss, Llama 4, DBRX, Granite, JetMoE: fused

@case
def gpt_oss():
    m = Model(model_type="gpt_oss", hidden_size=H, intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=K, num_hidden_layers=1, swiglu_limit=7.0)
    p = "model.layers.0.mlp."
    m.router(p + "router.weight", 0)
    m.add(p + "router.bias", (E,), lambda c: code("router_bias", 0, 0, c))
    m.add(p + "experts.gate_up_proj", (E, H, 2 * I),
          lambda e, h, j: code("up" if j % 2 else "gate", 0, e, j // 2, h))
    m.add(p + "experts.gate_up_proj_bias", (E, 2 * I),
          lambda e, j: code("up_bias" if j % 2 else "gate_bias", 0, e, j // 2))
    m.add(p + "experts.down_proj", (E, I, H), lambda e, i, h: code("down", 0, e, h, i))
    m.add(p + "experts.down_proj_bias", (E, H), lambda e, h: code("down_bias", 0, e, h))
    m.expect(0, "identity softmax_of_selected_logits none", ["router_bias"],
             activation="swiglu_oai", bias=True)
    return m


@case
def gpt_oss_original():
    m = Model(model_type="gpt_oss", hidden_size=H, intermediate_size=I, num_experts=E,
              experts_per_token=K, num_hidden_layers=1, swiglu_limit=7.0)
    p = "block.0.mlp."
    m.router(p + "gate.weight", 0)
    m.add(p + "gate.bias", (E,), lambda c: code("router_bias", 0, 0, c))
    m.add(p + "mlp1_weight", (E, 2 * I, H),
          lambda e, j, h: code("up" if j % 2 else "gate", 0, e, j // 2, h))
    m.add(p + "mlp1_bias", (E, 2 * I),
          lambda e, j: code("up_bias" if j % 2 else "gate_bias", 0, e, j // 2))
    m.add(p + "mlp2_weight", (E, H, I), lambda e, h, i: code("down", 0, e, h, i))
    m.add(p + "mlp2_bias", (E, H), lambda e, h: code("down_bias", 0, e, h))
    m.expect(0, "identity softmax_of_selected_logits none", ["router_bias"],
             activation="swiglu_oai", bias=True)
    return m


def llama4_layer(model, layer, prefix):
    p = f"{prefix}{layer}.feed_forward."
    model.router(p + "router.weight", layer)
    model.fused_transposed(p + "experts.gate_up_proj", p + "experts.down_proj", layer)
    model.projections(p + "shared_expert.", layer, SHARED)
    model.expect(layer, "identity sigmoid_of_logit none on_input", top_k=1, shared=I)


@case
def llama4():
    m = Model(model_type="llama4", text_config=dict(
        model_type="llama4_text", hidden_size=H, intermediate_size=I, intermediate_size_mlp=9,
        num_local_experts=E, num_experts_per_tok=1, num_hidden_layers=4,
        interleave_moe_layer_step=2))
    for layer in (1, 3):
        llama4_layer(m, layer, "language_model.model.layers.")
    return m


@case
def llama4_text():
    m = Model(model_type="llama4_text", hidden_size=H, intermediate_size=I,
              intermediate_size_mlp=9, num_local_experts=E, num_experts_per_tok=1,
              num_hidden_layers=2, interleave_moe_layer_step=2, moe_layers=[0])
    llama4_layer(m, 0, "model.layers.")
    return m


@case
def dbrx():
    m = Model(model_type="dbrx", d_model=H, n_layers=1,
              ffn_config=dict(moe_num_experts=E, moe_top_k=K, ffn_hidden_size=I,
                              moe_normalize_expert_weights=1, ffn_act_fn={"name": "silu"}))
    p = "transformer.blocks.0.ffn."
    m.router(p + "router.layer.weight", 0)
    m.add(p + "experts.mlp.w1", (E * I, H), lambda r, c: code("gate", 0, r // I, r % I, c))
    m.add(p + "experts.mlp.v1", (E * I, H), lambda r, c: code("up", 0, r // I, r % I, c))
    m.add(p + "experts.mlp.w2", (E * I, H), lambda r, c: code("down", 0, r // I, c, r % I))
    m.expect(0, "softmax score p_norm:1")
    return m


@case
def dbrx_not_normalised():
    m = dbrx()
    m.config["ffn_config"]["moe_normalize_expert_weights"] = None
    m.layers[0]["router"] = "softmax score none"
    return m


@case
def granitemoehybrid():
    m = Model(model_type="granitemoehybrid", hidden_size=H, intermediate_size=I,
              num_local_experts=E, num_experts_per_tok=K, num_hidden_layers=1,
              shared_intermediate_size=S)
    p = "model.layers.0."
    m.router(p + "block_sparse_moe.router.layer.weight", 0)
    m.fused(p + "block_sparse_moe.input_linear.weight", p + "block_sparse_moe.output_linear.weight",
            0)
    m.add(p + "shared_mlp.input_linear.weight", (2 * S, H), lambda r, c: 0)
    m.add(p + "shared_mlp.output_linear.weight", (H, S), lambda r, c: 0)
    m.expect(0, "identity softmax_of_selected_logits none")
    return m


@case
def jetmoe():
    m = Model(model_type="jetmoe", hidden_size=H, intermediate_size=I, num_local_experts=E,
              num_experts_per_tok=K, num_hidden_layers=1, activation_function="silu")
    p = "model.layers.0.mlp."
    m.router(p + "router.layer.weight", 0)
    m.fused(p + "input_linear.weight", p + "output_linear.weight", 0)
    # One bias for the sum; every expert has it, and the weights sum to one.
    m.add(p + "bias", (H,), lambda h: code("down_bias", 0, 0, h))
    m.expect(0, "identity softmax_of_selected_logits none", bias=True, one_down_bias=True)
    return m


# ---- others

@case
def jamba():
    m = Model(model_type="jamba", hidden_size=H, intermediate_size=I, num_experts=E,
              num_experts_per_tok=K, num_hidden_layers=4, expert_layer_period=2,
              expert_layer_offset=1)
    for layer in (1, 3):
        p = f"model.layers.{layer}.feed_forward."
        m.router(p + "router.weight", layer)
        for e in range(E):
            m.projections(f"{p}experts.{e}.", layer, e)
        m.expect(layer, "softmax score none")
    return m


@case
def lfm2_moe():
    m = Model(model_type="lfm2_moe", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
              num_experts=E, num_experts_per_tok=K, num_hidden_layers=3, num_dense_layers=2,
              use_expert_bias=True, norm_topk_prob=True, routed_scaling_factor=1.0)
    p = "model.layers.2.feed_forward."
    m.router(p + "gate.weight", 2)
    m.selection_bias(p + "expert_bias", 2)
    for e in range(E):
        m.w123(f"{p}experts.{e}.", 2, e)
    m.expect(2, "sigmoid score sum+1e-06", ["router_selection_bias"])
    return m


@case
def ernie4_5_moe():
    m = Model(model_type="ernie4_5_moe", hidden_size=H, intermediate_size=9,
              moe_intermediate_size=I, moe_num_experts=E, moe_k=K, moe_num_shared_experts=2,
              num_hidden_layers=3, moe_layer_start_index=1, moe_layer_end_index=-1,
              moe_layer_interval=1, moe_norm_min=1e-12)
    for layer in (1, 2):
        p = f"model.layers.{layer}.mlp."
        m.router(p + "gate.weight", layer)
        m.add(p + "moe_statics.e_score_correction_bias", (1, E),
              lambda _, c: code("router_selection_bias", layer, 0, c))
        mlp_experts(m, layer)
        m.projections(p + "shared_experts.", layer, SHARED, 2 * I)
        m.expect(layer, "softmax score max(sum,1e-12)", ["router_selection_bias"], shared=2 * I)
    return m


@case
def ernie4_5_moe_vl():
    """Text experts come first; the vision router and experts are not read."""
    m = Model(model_type="ernie4_5_moe_vl", hidden_size=H, intermediate_size=9,
              moe_intermediate_size=[I, 3], moe_num_experts=[E, E], moe_k=K,
              moe_num_shared_experts=2, num_hidden_layers=2, moe_layer_start_index=[1, 1],
              moe_layer_end_index=[1, 1], moe_layer_interval=1)
    p = "model.layers.1.mlp."
    m.add(p + "gate.weight", (H, E), lambda h, c: code("router_weight", 1, 0, c, h))
    m.add(p + "gate.weight_1", (H, E), lambda h, c: 0)
    m.add(p + "moe_statics.e_score_correction_bias", (2, E),
          lambda v, c: 0 if v else code("router_selection_bias", 1, 0, c))
    mlp_experts(m, 1)
    for e in range(E, 2 * E):
        m.projections(f"{p}experts.{e}.", 1, 0, 3)
    m.projections(p + "shared_experts.", 1, SHARED, 2 * I)
    m.expect(1, "softmax score max(sum,1e-12)", ["router_selection_bias"], shared=2 * I)
    return m


@case
def hunyuan_v1_moe():
    """Sizes per layer, as the A13B model gives them."""
    m = Model(model_type="hunyuan_v1_moe", hidden_size=H, intermediate_size=S,
              moe_intermediate_size=[I, I - 1], num_experts=E, moe_topk=[1, 2],
              num_shared_expert=[1, 1], use_mixed_mlp_moe=True, num_hidden_layers=2)
    for layer, width, top_k in ((0, I, 1), (1, I - 1, 2)):
        m.router(f"model.layers.{layer}.mlp.gate.wg.weight", layer)
        mlp_experts(m, layer, width=width)
        m.projections(f"model.layers.{layer}.mlp.shared_mlp.", layer, SHARED, S)
        m.expect(layer, "softmax score sum+0", top_k=top_k, intermediate=width, shared=S)
    return m


@case
def hy_v3():
    """As transformers omits it: the first layer is dense, the factor 2.826."""
    m = Model(model_type="hy_v3", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
              num_experts=E, num_experts_per_tok=K, num_shared_experts=1, num_hidden_layers=2)
    p = "model.layers.1.mlp."
    m.router(p + "router.gate.weight", 1)
    m.selection_bias(p + "expert_bias", 1)
    mlp_experts(m, 1)
    m.projections(p + "shared_mlp.", 1, SHARED)
    m.expect(1, "sigmoid score sum+1e-20 x2.826", ["router_selection_bias"], shared=I)
    return m


@case
def longcat_flash():
    """Zero experts have a router row but no weights."""
    m = Model(model_type="longcat_flash", hidden_size=H, expert_ffn_hidden_size=I,
              ffn_hidden_size=9, n_routed_experts=E, zero_expert_num=2,
              zero_expert_type="identity", moe_topk=K, num_layers=1, num_hidden_layers=2,
              routed_scaling_factor=6.0)
    p = "model.layers.0.mlp."
    m.router(p + "router.classifier.weight", 0, E + 2)
    m.selection_bias(p + "router.e_score_correction_bias", 0, E + 2)
    mlp_experts(m, 0)
    m.expect(0, "softmax score none x6 zero:2", ["router_selection_bias"])
    return m


@case
def afmoe():
    m = Model(model_type="afmoe", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
              num_experts=E, num_experts_per_tok=K, num_shared_experts=1, num_dense_layers=1,
              num_hidden_layers=2, route_scale=2.448)
    p = "model.layers.1.mlp."
    m.router(p + "router.gate.weight", 1)
    m.selection_bias(p + "expert_bias", 1)
    mlp_experts(m, 1)
    m.projections(p + "shared_experts.", 1, SHARED)
    m.expect(1, "sigmoid score sum+1e-20 x2.448", ["router_selection_bias"], shared=I)
    return m


@case
def bailing_moe():
    m = Model(model_type="bailing_moe", hidden_size=H, intermediate_size=9,
              moe_intermediate_size=I, num_experts=E, num_experts_per_tok=K, num_shared_experts=2,
              num_hidden_layers=1, norm_topk_prob=True, first_k_dense_replace=0)
    m.router("model.layers.0.mlp.gate.weight", 0)
    mlp_experts(m, 0)
    m.projections("model.layers.0.mlp.shared_experts.", 0, SHARED, 2 * I)
    m.expect(0, "softmax score sum+1e-20", shared=2 * I)
    return m


@case
def bailing_moe_v2():
    m = Model(model_type="bailing_moe_v2", hidden_size=H, intermediate_size=9,
              moe_intermediate_size=I, num_experts=E, num_experts_per_tok=K, num_shared_experts=1,
              num_hidden_layers=2, norm_topk_prob=True, first_k_dense_replace=1,
              score_function="sigmoid", moe_router_enable_expert_bias=True, n_group=2,
              topk_group=1, routed_scaling_factor=2.5)
    m.router("model.layers.1.mlp.gate.weight", 1)
    m.selection_bias("model.layers.1.mlp.gate.expert_bias", 1)
    mlp_experts(m, 1)
    m.projections("model.layers.1.mlp.shared_experts.", 1, SHARED)
    m.expect(1, "sigmoid score sum+1e-20 x2.5 groups:2/1/top2_sum", ["router_selection_bias"],
             shared=I)
    return m


@case
def nemotron_h():
    """As published: a letter per layer, and no gate projection. Infinity is Python's."""
    m = Model(model_type="nemotron_h", hidden_size=H, intermediate_size=9,
              moe_intermediate_size=I, n_routed_experts=E, num_experts_per_tok=K,
              n_shared_experts=1, moe_shared_expert_intermediate_size=S, mlp_hidden_act="relu2",
              n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.5,
              num_hidden_layers=4, hybrid_override_pattern="ME*E",
              time_step_limit=[0.0, float("inf")])
    for layer in (1, 3):
        p = f"backbone.layers.{layer}.mixer."
        m.router(p + "gate.weight", layer)
        m.selection_bias(p + "gate.e_score_correction_bias", layer)
        for e in range(E):
            m.matrices(layer, e, None, f"{p}experts.{e}.up_proj.weight",
                       f"{p}experts.{e}.down_proj.weight")
        m.matrices(layer, SHARED, None, p + "shared_experts.up_proj.weight",
                   p + "shared_experts.down_proj.weight", S)
        m.expect(layer, "sigmoid score sum+1e-20 x2.5", ["router_selection_bias"], shared=S,
                 activation="relu2", gated=False)
    return m


@case
def cohere2_moe():
    m = Model(model_type="cohere2_moe", hidden_size=H, intermediate_size=I, num_experts=E,
              num_experts_per_tok=K, num_shared_experts=1, num_hidden_layers=2,
              mlp_layer_types=["dense", "sparse"], expert_selection_fn="softmax",
              shared_expert_combination_strategy="average")
    m.router("model.layers.1.mlp.gate.weight", 1)
    mlp_experts(m, 1)
    m.projections("model.layers.1.mlp.shared_experts.", 1, SHARED)
    m.expect(1, "identity softmax_of_selected_logits none", shared=I, scales=[0.5, 0.5])
    return m


@case
def gemma4():
    m = Model(model_type="gemma4", text_config=dict(
        model_type="gemma4_text", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
        num_experts=E, top_k_experts=K, num_hidden_layers=1, enable_moe_block=True,
        hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6))
    p = "model.language_model.layers.0."
    m.router(p + "router.proj.weight", 0)
    m.add(p + "router.scale", (H,), lambda h: code("router_input_scale", 0, 0, h))
    m.add(p + "router.per_expert_scale", (E,), lambda c: code("router_per_expert_scale", 0, 0, c))
    m.fused(p + "experts.gate_up_proj", p + "experts.down_proj", 0)
    m.expect(0, "softmax score sum+0 normalize_input", ["router_input_scale",
                                                        "router_per_expert_scale"],
             activation="gelu_tanh")
    return m


@case
def gemma4_older():
    m = gemma4()
    for new, old in (("router.per_expert_scale", "moe.per_expert_scale"),
                     ("experts.gate_up_proj", "moe.experts.gate_up_proj"),
                     ("experts.down_proj", "moe.experts.down_proj")):
        p = "model.language_model.layers.0."
        m.tensors[p + old] = m.tensors.pop(p + new)
    return m


def step_layer(model, layer):
    p = f"model.layers.{layer}."
    model.router(p + "moe.gate.weight", layer)
    model.add(p + "moe.gate_proj.weight", (E, I, H), lambda e, r, c: code("gate", layer, e, r, c))
    model.add(p + "moe.up_proj.weight", (E, I, H), lambda e, r, c: code("up", layer, e, r, c))
    model.add(p + "moe.down_proj.weight", (E, H, I), lambda e, r, c: code("down", layer, e, r, c))
    model.projections(p + "share_expert.", layer, SHARED, S)


@case
def step3_vl():
    m = Model(model_type="step3_vl", text_config=dict(
        model_type="step3_text", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
        moe_num_experts=E, moe_top_k=K, share_expert_dim=S, num_hidden_layers=14,
        norm_expert_weight=False, moe_layers_enum="3,13"))
    for layer in (3, 13):
        step_layer(m, layer)
        m.expect(layer, "softmax score none", shared=S)
    return m


@case
def step3p5():
    m = Model(model_type="step3p5", hidden_size=H, intermediate_size=9, moe_intermediate_size=I,
              moe_num_experts=E, moe_top_k=K, share_expert_dim=S, num_hidden_layers=2,
              norm_expert_weight=True, moe_layers_enum=[1], moe_router_activation="sigmoid",
              use_moe_router_bias=True, moe_router_scaling_factor=3.0, swiglu_limits=[0.0, 7.0])
    step_layer(m, 1)
    m.selection_bias("model.layers.1.moe.router_bias", 1)
    m.expect(1, "sigmoid score sum+0 x3", ["router_selection_bias"], shared=S,
             activation="swiglu_step")
    return m


@case
def switch_transformers():
    """Encoder layers 1 and 3, decoder layer 1, which is layer 4 + 1 here."""
    m = Model(model_type="switch_transformers", d_model=H, d_ff=I, num_experts=E, num_layers=4,
              num_decoder_layers=2, encoder_sparse_step=2, decoder_sparse_step=2,
              expert_capacity=64)
    for layer, p in ((1, "encoder.block.1.layer.1.mlp."), (3, "encoder.block.3.layer.1.mlp."),
                     (5, "decoder.block.1.layer.2.mlp.")):
        m.router(p + "router.classifier.weight", layer)
        for e in range(E):
            m.matrices(layer, e, None, f"{p}experts.expert_{e}.wi.weight",
                       f"{p}experts.expert_{e}.wo.weight")
        m.expect(layer, "softmax score none capacity:64", top_k=1, activation="relu", gated=False)
    return m


# ---- files

def packed(dtype, value):
    if dtype == "F32":
        return struct.pack("<f", value)
    if dtype == "F16":
        return struct.pack("<e", value)
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    return struct.pack("<q", value)


def write_file(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        blob = b"".join(packed(dtype, value) for value in values)
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def write_model(directory, model, dtype="F32", shards=1):
    os.makedirs(directory)
    tensors = {name: (dtype if kind == "F32" else kind, shape, values)
               for name, (kind, shape, values) in model.tensors.items()}
    names = list(tensors)
    if shards == 1:
        write_file(os.path.join(directory, "model.safetensors"), tensors)
    else:  # dealt out, so that one expert's tensors lie in different files
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            write_file(os.path.join(directory, file), {n: tensors[n] for n in names[shard::shards]})
            weight_map.update({n: file for n in names[shard::shards]})
        with open(os.path.join(directory, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": {}, "weight_map": weight_map}, file)
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(model.config, file)
    with open(os.path.join(directory, "expect.json"), "w") as file:
        json.dump({"dtype": dtype, "layers": model.layers}, file)


def main(directory):
    for name, make in CASES.items():
        write_model(os.path.join(directory, name), make())
    write_model(os.path.join(directory, "mixtral_sharded"), mixtral(), shards=3)
    for dtype, most in (("BF16", 256), ("F16", 2048)):  # whole numbers up to here are exact
        for make in (qwen2_moe, gpt_oss):
            model = make()
            model.tensors = {n: (kind, shape, [v % most for v in values])
                             for n, (kind, shape, values) in model.tensors.items()}
            write_model(os.path.join(directory, f"{make.__name__}_{dtype.lower()}"), model, dtype)


if __name__ == "__main__":
    main(sys.argv[1])
