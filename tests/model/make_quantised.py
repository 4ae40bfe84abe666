#!/usr/bin/env python3
"""Writes tiny quantised checkpoints into DIR, one per published layout of int4 and int8, and beside
each a `NAME.reference` with the same weights dequantised to F32.

The layouts are spelled out here bit by bit, from their makers' packers, without the library under
test. Only the standard library is used.
"""
import json
import os
import random
import struct
import sys

H, I, E, K = 64, 96, 5, 2  # hidden, intermediate, experts, choices
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1}


def rounded(value, dtype):
    """`value` as the type can hold it."""
    if dtype == "F16":
        return struct.unpack("<e", struct.pack("<e", value))[0]
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if dtype == "BF16":
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def encode(dtype, flat):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", v)[2:] for v in flat)
    letter = {"F32": "f", "F16": "e", "I32": "i", "I64": "q", "I8": "b"}[dtype]
    return struct.pack("<%d%s" % (len(flat), letter), *flat)


def write_safetensors(path, tensors):
    header, data = {}, []
    at = 0
    for name, (dtype, shape, flat) in sorted(tensors.items(), key=lambda t: (-BYTES[t[1][0]], t[0])):
        part = encode(dtype, flat)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(part)]}
        data.append(part)
        at += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def words(unsigned, bits):
    """Lists of unsigned integers as signed 32-bit words, the first in the lowest bits."""
    per = 32 // bits
    out = []
    for first in range(0, len(unsigned), per):
        word = 0
        for place, q in enumerate(unsigned[first:first + per]):
            assert 0 <= q < 1 << bits
            word |= q << (place * bits)
        out.append(word - (1 << 32) if word >> 31 else word)
    return out


def transposed(rows):
    return [list(column) for column in zip(*rows)]


def flat(rows):
    return [value for row in rows for value in row]


class Scheme:
    """How modules are stored. `method` is awq, gptq, gptq_v2, pack or int."""

    def __init__(self, method, bits=4, group=32, zeros=False, order=False, scale="F16", single=False):
        self.method, self.bits, self.group, self.zeros = method, bits, group, zeros
        self.order, self.scale, self.single = order, scale, single

    def config(self):
        group = self.group if self.group else -1
        if self.method == "awq":
            return {"quant_method": "awq", "bits": self.bits, "group_size": group,
                    "zero_point": True, "version": "gemm", "modules_to_not_convert": ["gate"]}
        if self.method in ("gptq", "gptq_v2"):
            config = {"quant_method": "gptq", "bits": self.bits, "group_size": group,
                      "desc_act": self.order, "sym": not self.zeros, "damp_percent": 0.01}
            if self.method == "gptq_v2":
                config["checkpoint_format"] = "gptq_v2"
            return config
        weights = {"num_bits": self.bits, "type": "int", "symmetric": not self.zeros,
                   "strategy": "group" if self.group else "tensor" if self.single else "channel",
                   "group_size": self.group or None, "dynamic": False,
                   "actorder": "group" if self.order else None, "observer": "minmax"}
        activations = None
        if self.method == "int":
            activations = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
        return {"quant_method": "compressed-tensors",
                "format": "pack-quantized" if self.method == "pack" else "int-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                              "input_activations": activations}},
                "ignore": ["lm_head", "re:.*gate$"], "quantization_status": "compressed"}


def extents(rows, columns, group):
    size = group or columns
    return size, (columns + size - 1) // size


class Checkpoint:
    def __init__(self, scheme, **config):
        self.scheme, self.config = scheme, config
        self.tensors, self.reference = {}, {}
        self.random = random.Random(len(SET) + 1)

    def plain(self, name, rows, columns, spread=0.2, dtype="BF16"):
        values = [rounded(self.random.uniform(-spread, spread), dtype)
                  for _ in range(rows * columns)]
        for tensors in (self.tensors, self.reference):
            tensors[name] = (dtype, [rows, columns], values)

    def groups(self, columns):
        """The group of every input; in act-order each group still has as many."""
        size, count = extents(0, columns, self.scheme.group)
        groups = [k // size for k in range(columns)]
        if self.scheme.order and self.scheme.group:
            self.random.shuffle(groups)
        return groups

    def module(self, name, rows, columns, groups):
        """A Linear of integers, scales and zero points."""
        s = self.scheme
        most = (1 << s.bits) - 1
        middle = 1 << (s.bits - 1)
        _, count = extents(rows, columns, s.group)
        q = [[self.random.randint(0, most) for _ in range(columns)] for _ in range(rows)]
        zero = [[self.random.randint(0, most) if s.zeros else middle for _ in range(count)]
                for _ in range(rows)]
        spread = 0.2 / middle
        scale = [[rounded(self.random.uniform(spread, 2 * spread), s.scale) for _ in range(count)]
                 for _ in range(rows)]
        if s.single:
            scale = [scale[0]] * rows
        dense = [rounded((q[n][k] - zero[n][groups[k]]) * scale[n][groups[k]], "F32")
                 for n in range(rows) for k in range(columns)]
        self.reference[name + ".weight"] = ("F32", [rows, columns], dense)
        {"awq": self.awq, "gptq": self.gptq, "gptq_v2": self.gptq, "pack": self.pack,
         "int": self.int}[s.method](name, rows, columns, groups, q, zero, scale)

    def awq(self, name, rows, columns, groups, q, zero, scale):
        """AutoAWQ: eight outputs in a word, in the order 0 2 4 6 1 3 5 7."""
        def packed(matrix):  # [..][outputs]
            out = []
            for row in matrix:
                for first in range(0, rows, 8):
                    out += words([row[first + j] for j in (0, 2, 4, 6, 1, 3, 5, 7)], 4)
            return out
        count = len(zero[0])
        self.tensors[name + ".qweight"] = ("I32", [columns, rows // 8], packed(transposed(q)))
        self.tensors[name + ".qzeros"] = ("I32", [count, rows // 8], packed(transposed(zero)))
        self.tensors[name + ".scales"] = (self.scheme.scale, [count, rows], flat(transposed(scale)))

    def gptq(self, name, rows, columns, groups, q, zero, scale):
        """AutoGPTQ: inputs side by side in a word; version 1 stores zero points less one."""
        s = self.scheme
        per, count = 32 // s.bits, len(zero[0])
        less = 0 if s.method == "gptq_v2" else 1
        by_output = [words(row, s.bits) for row in q]
        stored = [[(z - less) % (1 << s.bits) for z in row] for row in transposed(zero)]
        self.tensors[name + ".qweight"] = ("I32", [columns // per, rows], flat(transposed(by_output)))
        self.tensors[name + ".qzeros"] = ("I32", [count, rows // per],
                                          flat([words(row, s.bits) for row in stored]))
        self.tensors[name + ".scales"] = (s.scale, [count, rows], flat(transposed(scale)))
        self.tensors[name + ".g_idx"] = ("I32", [columns], groups)

    def scales(self, name, scale):
        shape = [1] if self.scheme.single else [len(scale), len(scale[0])]
        values = scale[0] if self.scheme.single else flat(scale)
        self.tensors[name + ".weight_scale"] = (self.scheme.scale, shape, values)

    def pack(self, name, rows, columns, groups, q, zero, scale):
        """compressed-tensors: q less half the range, stored plus half the range."""
        s = self.scheme
        per, count = 32 // s.bits, len(zero[0])
        packed = [words(row, s.bits) for row in q]
        self.tensors[name + ".weight_packed"] = ("I32", [rows, len(packed[0])], flat(packed))
        self.tensors[name + ".weight_shape"] = ("I64", [2], [rows, columns])
        self.scales(name, scale)
        if s.zeros:
            by_group = [words(column, s.bits) for column in transposed(zero)]
            self.tensors[name + ".weight_zero_point"] = ("I32", [(rows + per - 1) // per, count],
                                                         flat(transposed(by_group)))
        if s.order:
            self.tensors[name + ".weight_g_idx"] = ("I32", [columns], groups)

    def int(self, name, rows, columns, groups, q, zero, scale):
        """compressed-tensors: signed bytes."""
        self.tensors[name + ".weight"] = ("I8", [rows, columns], [v - 128 for v in flat(q)])
        self.scales(name, scale)
        if self.scheme.zeros:
            self.tensors[name + ".weight_zero_point"] = ("I8", [rows, len(zero[0])],
                                                         [z - 128 for z in flat(zero)])

    def expert(self, prefix, gate, up, down, width=I, quantised=True):
        if not quantised:
            self.plain(prefix + gate + ".weight", width, H)
            self.plain(prefix + up + ".weight", width, H)
            self.plain(prefix + down + ".weight", H, width)
            return
        of_hidden = self.groups(H)  # gate and up see the same inputs
        self.module(prefix + gate, width, H, of_hidden)
        self.module(prefix + up, width, H, of_hidden)
        self.module(prefix + down, H, width, self.groups(width))

    def write(self, path):
        for directory, tensors, config in (
                (path, self.tensors, dict(self.config, quantization_config=self.scheme.config())),
                (path + ".reference", self.reference, self.config)):
            os.makedirs(directory)
            write_safetensors(os.path.join(directory, "model.safetensors"), tensors)
            with open(os.path.join(directory, "config.json"), "w") as file:
                json.dump(config, file)


SET = []


def mixtral(name, scheme, intermediate=I):
    c = Checkpoint(scheme, model_type="mixtral", hidden_size=H, intermediate_size=intermediate,
                   num_local_experts=E, num_hidden_layers=1, num_experts_per_tok=K)
    c.plain("model.layers.0.block_sparse_moe.gate.weight", E, H)
    for e in range(E):
        c.expert("model.layers.0.block_sparse_moe.experts.%d." % e, "w1", "w3", "w2", intermediate)
    SET.append((name, c))


def qwen3_two_layers(name, scheme):
    """The second layer is not converted."""
    c = Checkpoint(scheme, model_type="qwen3_moe", hidden_size=H, moe_intermediate_size=I,
                   num_experts=E, num_hidden_layers=2, num_experts_per_tok=K, norm_topk_prob=True)
    for layer in range(2):
        prefix = "model.layers.%d.mlp." % layer
        c.plain(prefix + "gate.weight", E, H)
        for e in range(E):
            c.expert(prefix + "experts.%d." % e, "gate_proj", "up_proj", "down_proj",
                     quantised=layer == 0)
    SET.append((name, c))


def deepseek(name, scheme, shared):
    """`shared`: whether the shared expert is quantised too."""
    c = Checkpoint(scheme, model_type="deepseek_v3", hidden_size=H, moe_intermediate_size=I,
                   n_routed_experts=E, n_shared_experts=1, num_hidden_layers=1,
                   num_experts_per_tok=K, n_group=1, topk_group=1, norm_topk_prob=True,
                   routed_scaling_factor=2.5, first_k_dense_replace=0)
    prefix = "model.layers.0.mlp."
    c.plain(prefix + "gate.weight", E, H)
    bias = ("F32", [E], [0.0] * E)
    c.tensors[prefix + "gate.e_score_correction_bias"] = bias
    c.reference[prefix + "gate.e_score_correction_bias"] = bias
    for e in range(E):
        c.expert(prefix + "experts.%d." % e, "gate_proj", "up_proj", "down_proj")
    c.expert(prefix + "shared_experts.", "gate_proj", "up_proj", "down_proj", quantised=shared)
    SET.append((name, c))


def main(path):
    mixtral("awq", Scheme("awq", zeros=True))
    mixtral("awq-rows", Scheme("awq", group=0, zeros=True, scale="BF16"))
    mixtral("gptq4-sym", Scheme("gptq"))
    mixtral("gptq4-asym", Scheme("gptq", zeros=True))
    mixtral("gptq4-order", Scheme("gptq", order=True))
    mixtral("gptq4-v2-asym-order", Scheme("gptq_v2", zeros=True, order=True))
    mixtral("gptq4-rows-order", Scheme("gptq", group=0, order=True))
    mixtral("gptq8-asym-order", Scheme("gptq", bits=8, zeros=True, order=True))
    mixtral("gptq8-v2-sym", Scheme("gptq_v2", bits=8))
    mixtral("pack4-rows-asym", Scheme("pack", group=0, zeros=True))
    mixtral("pack4-asym-order", Scheme("pack", zeros=True, order=True, scale="BF16"))
    mixtral("pack4-ragged", Scheme("pack", scale="F32"), intermediate=43)
    mixtral("pack8", Scheme("pack", bits=8, scale="BF16"))
    mixtral("pack8-rows-asym", Scheme("pack", bits=8, group=0, zeros=True))
    mixtral("int8-rows", Scheme("int", bits=8, group=0, scale="F32"))
    mixtral("int8-asym", Scheme("int", bits=8, group=0, zeros=True, scale="BF16"))
    mixtral("int8-groups", Scheme("int", bits=8, group=32))
    mixtral("int8-single", Scheme("int", bits=8, group=0, single=True, scale="F32"))
    qwen3_two_layers("awq-one-layer", Scheme("awq", zeros=True))
    deepseek("pack4-plain-shared", Scheme("pack", scale="BF16"), shared=False)
    deepseek("gptq4-shared-too", Scheme("gptq", zeros=True, order=True), shared=True)
    deepseek("int8-shared-too", Scheme("int", bits=8, group=0, scale="BF16"), shared=True)
    for name, checkpoint in SET:
        checkpoint.write(os.path.join(path, name))


if __name__ == "__main__":
    main(sys.argv[1])
