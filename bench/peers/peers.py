"""Times the peers' MoE layers on this card, so that ratios come from one machine in one hour.

    python3 bench/peers/peers.py --vllm DIR [--format bf16|fp8] [--shapes a,b] [--tokens 1,16] > points.csv
    gpu_layer --peers points.csv

DIR is an unpacked vLLM wheel; from it come vLLM's Triton kernel with its launch rules and shipped
tunings, and the triton_kernels that vLLM vendors. torch is PyTorch's own grouped product. Nothing
of theirs is kept here. Rows are printed as gpu_layer reads them: shape,M,peer,variant,us,...

What is timed, in graphs of back-to-back layers on different rows and routings, as gpu_layer does:
  triton_kernels   the whole layer: routing, GEMM with SwiGLU, GEMM with weights, sum
  vllm             GEMM, SwiGLU, GEMM with weights, sum; top-k and alignment are done before (they
                   cost it 5 to 26 us more), so its time is a lower bound
  torch            the two GEMMs alone, on rows that are permuted and padded already
Each is first compared with PyTorch in fp32 on 16 tokens.
"""
import argparse
import ast
import importlib.util
import json
import os
import sys
import tempfile
import types

import torch
import triton
import triton.language as tl

SHAPES = {  # experts, top_k, hidden, intermediate
    "mixtral": (8, 2, 4096, 14336),
    "qwen3": (128, 8, 2048, 768),
    "dsv3": (256, 8, 7168, 2048),
    "olmoe": (64, 8, 2048, 1024),
    "gptoss": (128, 4, 2880, 2880),
}
BLOCK = 128  # of fp8 scales


# ---- work

class Layer:
    """Random weights of one layer, and `copies` batches with their routings."""

    def __init__(self, name, fp8):
        self.name, self.fp8 = name, fp8
        self.experts, self.top_k, self.hidden, self.intermediate = SHAPES[name]
        self.up = self.weights(2 * self.intermediate, self.hidden)
        self.down = self.weights(self.hidden, self.intermediate)
        self.up_scale = self.down_scale = None
        if fp8:
            self.up, self.up_scale = quantise_blocks(self.up)
            self.down, self.down_scale = quantise_blocks(self.down)

    def weights(self, rows, columns):
        out = torch.empty(self.experts, rows, columns, dtype=torch.bfloat16, device="cuda")
        for expert in out:
            expert.normal_().mul_(columns ** -0.5)
        return out

    def batch(self, tokens):
        rows = torch.randn(tokens, self.hidden, device="cuda", dtype=torch.bfloat16)
        logits = torch.randn(tokens, self.experts, device="cuda", dtype=torch.float32)
        values, ids = logits.topk(self.top_k)
        return Batch(rows, logits.to(torch.bfloat16), ids.to(torch.int32), values.softmax(-1))


class Batch:
    def __init__(self, rows, logits, ids, weights):
        self.rows, self.logits, self.ids, self.weights = rows, logits, ids, weights


def quantise_blocks(weight):
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device="cuda")
    scales = torch.empty(weight.shape[0], -(-weight.shape[1] // BLOCK), -(-weight.shape[2] // BLOCK),
                         device="cuda")
    for expert, out, scale in zip(weight, values, scales):
        blocks = expert.float().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
        scale.copy_(blocks.abs().amax(dim=(1, 3)) / 448)
        out.copy_((blocks / scale[:, None, :, None]).flatten(2, 3).flatten(0, 1))
    return values, scales


def reference(layer, batch, oai):
    """In fp32 on the weights as they are; `oai`: interleaved gates, silu(g) * (u + 1)."""
    def dense(weight, scale, expert):
        full = weight[expert].float()
        if scale is None:
            return full
        return full * scale[expert].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)

    out = torch.zeros(batch.rows.shape, device="cuda")
    for token in range(batch.rows.shape[0]):
        for place in range(layer.top_k):
            expert = int(batch.ids[token, place])
            both = dense(layer.up, layer.up_scale, expert) @ batch.rows[token].float()
            gate, up = (both[::2], both[1::2] + 1) if oai else both.chunk(2)
            row = dense(layer.down, layer.down_scale, expert) @ (torch.nn.functional.silu(gate) * up)
            out[token] += batch.weights[token, place] * row
    return out


def layers_per_graph(tokens):
    return 8 if tokens <= 64 else 4 if tokens <= 256 else 2 if tokens <= 4096 else 1


def median_us(prepared):
    """Microseconds a layer, median of graph replays; `prepared` has one function per layer."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for run in prepared:
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for run in prepared:
                run()
        times = []
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(15):
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3 / len(prepared))
    return sorted(times)[len(times) // 2]


# ---- vLLM's Triton kernel

@triton.jit
def silu_kernel(gate_up, out, width: tl.constexpr, block: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    keep = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=keep).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=keep).to(tl.float32)
    tl.store(out + row * width + column, gate / (1 + tl.exp(-gate)) * up, mask=keep)


@triton.jit
def quantise_kernel(rows, out, scales, width: tl.constexpr):
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = group * 128 + tl.arange(0, 128)
    x = tl.load(rows + row * width + column).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x)), 1e-10) / 448
    tl.store(out + row * width + column, (x / scale).to(tl.float8e4nv))
    tl.store(scales + row * (width // 128) + group, scale)


def quantise_rows(rows, out, scales):
    quantise_kernel[(rows.shape[0], rows.shape[1] // 128)](rows, out, scales, rows.shape[1])


def load_vllm(root):
    """Functions of fused_moe.py that need nothing else of vLLM."""
    path = f"{root}/vllm/model_executor/layers/fused_moe/fused_moe.py"
    wanted = ("write_zeros_to_output", "fused_moe_kernel", "get_default_config")
    text = open(path).read()
    parts = [ast.get_source_segment(text, node) for node in ast.parse(text).body
             if isinstance(node, ast.FunctionDef) and node.name in wanted]
    jits = ["@triton.jit\n" if "tl." in part else "" for part in parts]
    file = tempfile.NamedTemporaryFile("w", suffix=".py", delete=False)
    file.write("import torch, triton, triton.language as tl\nfrom types import SimpleNamespace\n"
               "envs = SimpleNamespace(VLLM_BATCH_INVARIANT=False)\n"
               "current_platform = SimpleNamespace(is_rocm=lambda: False)\n")
    for jit, part in zip(jits, parts):
        file.write("\n\n" + jit + part + "\n")
    file.close()
    spec = importlib.util.spec_from_file_location("vllm_moe", file.name)
    module = importlib.util.module_from_spec(spec)
    sys.modules["vllm_moe"] = module
    spec.loader.exec_module(module)
    return module


def vllm_configs(module, root, layer, tokens):
    """Its default, and what it ships for this shape on any Hopper card."""
    dtype = "fp8_w8a8" if layer.fp8 else None
    block = [BLOCK, BLOCK] if layer.fp8 else None
    configs = {"default": module.get_default_config(tokens, layer.experts, layer.intermediate,
                                                    layer.hidden, layer.top_k, dtype, block)}
    for card in ("NVIDIA_H100_80GB_HBM3", "NVIDIA_H200"):
        suffix = ",dtype=fp8_w8a8,block_shape=[128,128]" if layer.fp8 else ""
        path = (f"{root}/vllm/model_executor/layers/fused_moe/configs/"
                f"E={layer.experts},N={layer.intermediate},device_name={card}{suffix}.json")
        if os.path.exists(path):
            table = {int(k): v for k, v in json.load(open(path)).items() if k.isdigit()}
            configs[card] = table[min(table, key=lambda m: abs(m - tokens))]
    return configs


def align(ids, block, experts):
    """Pairs by expert, each expert's count padded to `block`; ids past the end are padding."""
    flat = ids.flatten().long()
    counts = torch.bincount(flat, minlength=experts)
    padded = (counts + block - 1) // block * block
    ends, starts = padded.cumsum(0), counts.cumsum(0) - counts
    total = int(ends[-1])
    order = flat.argsort(stable=True)
    place = torch.arange(flat.numel(), device="cuda") - starts[flat[order]] + (ends - padded)[flat[order]]
    out = torch.full((total,), flat.numel(), dtype=torch.int32, device="cuda")
    out[place] = order.int()
    owner = torch.repeat_interleave(torch.arange(experts, device="cuda"), padded // block).int()
    return out, owner, torch.tensor([total], dtype=torch.int32, device="cuda")


def vllm_layer(module, layer, batch, config):
    tokens, pairs = batch.rows.shape[0], batch.ids.numel()
    config = {k: v for k, v in config.items() if k != "SPLIT_K"}
    block_k = min(config.pop("BLOCK_SIZE_K"), BLOCK) if layer.fp8 else config.pop("BLOCK_SIZE_K")
    if pairs * 4 <= layer.experts:
        order, owner = None, batch.ids.flatten()
        total = torch.tensor([pairs * config["BLOCK_SIZE_M"]], dtype=torch.int32, device="cuda")
        blocks = pairs
    else:
        order, owner, total = align(batch.ids, config["BLOCK_SIZE_M"], layer.experts)
        blocks = owner.numel()
    both = torch.empty(tokens, layer.top_k, 2 * layer.intermediate, dtype=torch.bfloat16, device="cuda")
    active = torch.empty(pairs, layer.intermediate, dtype=torch.bfloat16, device="cuda")
    rows = torch.empty(tokens, layer.top_k, layer.hidden, dtype=torch.bfloat16, device="cuda")
    out = torch.empty(tokens, layer.hidden, dtype=torch.bfloat16, device="cuda")
    weights = batch.weights.float().contiguous()

    def quantised(source):
        if not layer.fp8:
            return lambda: (source, None)
        values = torch.empty(source.shape, dtype=torch.float8_e4m3fn, device="cuda")
        scales = torch.empty(source.shape[0], source.shape[1] // BLOCK, device="cuda")

        def run():
            quantise_rows(source, values, scales)
            return values, scales
        return run

    def gemm(a, a_scale, b, b_scale, c, weighted, top_k):
        grid = (blocks * triton.cdiv(b.shape[1], config["BLOCK_SIZE_N"]),)
        module.fused_moe_kernel[grid](
            a, b, c, None, a_scale, b_scale, weights, order, owner, total, b.shape[1], b.shape[2],
            blocks * config["BLOCK_SIZE_M"], pairs, a.stride(0), a.stride(1), b.stride(0),
            b.stride(2), b.stride(1), c.stride(1), c.stride(2),
            a_scale.stride(0) if layer.fp8 else 0, a_scale.stride(1) if layer.fp8 else 0,
            b_scale.stride(0) if layer.fp8 else 0, b_scale.stride(2) if layer.fp8 else 0,
            b_scale.stride(1) if layer.fp8 else 0, 0, 0, BLOCK if layer.fp8 else 0,
            BLOCK if layer.fp8 else 0, MUL_ROUTED_WEIGHT=weighted, top_k=top_k,
            compute_type=tl.bfloat16, use_fp8_w8a8=layer.fp8, use_int8_w8a8=False,
            use_int8_w8a16=False, per_channel_quant=False, naive_block_assignment=order is None,
            HAS_BIAS=False, BLOCK_SIZE_K=block_k, SPLIT_K=1,
            SWAP_AB=layer.fp8 and config["BLOCK_SIZE_M"] < 64 and config["BLOCK_SIZE_N"] >= 64,
            USE_TD=False, **config)

    first, second = quantised(batch.rows), quantised(active)

    def run():
        gemm(*first(), layer.up, layer.up_scale, both, False, layer.top_k)
        silu_kernel[(pairs, triton.cdiv(layer.intermediate, 1024))](both, active, layer.intermediate, 1024)
        gemm(*second(), layer.down, layer.down_scale, rows, True, 1)
        torch.sum(rows, dim=1, out=out)
        return out
    return run


# ---- triton_kernels

def load_triton_kernels(root):
    sys.path.insert(0, f"{root}/vllm/third_party")
    import triton_kernels.matmul_ogs as ogs
    import triton_kernels.routing as routing
    import triton_kernels.swiglu as swiglu
    return types.SimpleNamespace(ogs=ogs, routing=routing, swiglu=swiglu)


def triton_kernels_layer(kernels, layer, batch):
    specs = kernels.ogs.FnSpecs("swiglu", kernels.swiglu.swiglu_fn, ("alpha", "limit"))
    act = kernels.ogs.FusedActivation(specs, (1.0, 1e9), 2)
    up, down = layer.up.transpose(1, 2), layer.down.transpose(1, 2)

    def run():
        data, gather, scatter = kernels.routing.routing(batch.logits, layer.top_k)
        rows = kernels.ogs.matmul_ogs(batch.rows, up, None, data, gather_indx=gather, fused_activation=act)
        return kernels.ogs.matmul_ogs(rows, down, None, data, scatter_indx=scatter, gammas=data.gate_scal)
    return run


# ---- PyTorch's grouped product

def torch_gemms(layer, batch):
    counts = torch.bincount(batch.ids.flatten().long(), minlength=layer.experts)
    ends = ((counts + 15) // 16 * 16).cumsum(0).int()
    rows = torch.randn(int(ends[-1]), layer.hidden, device="cuda").to(layer.up.dtype)
    active = torch.randn(int(ends[-1]), layer.intermediate, device="cuda").to(layer.up.dtype)
    up, down = layer.up.transpose(1, 2), layer.down.transpose(1, 2)
    if not layer.fp8:
        return lambda: (torch._grouped_mm(rows, up, offs=ends), torch._grouped_mm(active, down, offs=ends))
    row_scale = torch.ones(rows.shape[0], device="cuda")
    up_scale = torch.ones(layer.experts, up.shape[2], device="cuda")
    down_scale = torch.ones(layer.experts, down.shape[2], device="cuda")

    def one(a, b, scale):
        return torch._scaled_grouped_mm(a, b, row_scale, scale, offs=ends, out_dtype=torch.bfloat16,
                                        use_fast_accum=True)
    return lambda: (one(rows, up, up_scale), one(active, down, down_scale))


# ---- all of it

def report(layer, tokens, peer, variant, us):
    print(f"{layer.name},{tokens},{peer},{variant},{us:.2f}", flush=True)


def error(got, want):
    return float((got.float() - want).norm() / want.norm())


def bench(layer, tokens, module, kernels, root):
    batches = [layer.batch(tokens) for _ in range(layers_per_graph(tokens))]
    suffix = "fp8" if layer.fp8 else "bf16"

    def point(peer, variant, make):
        try:
            report(layer, tokens, peer, variant, median_us([make(b) for b in batches]))
        except Exception as problem:  # one peer's failure must not hide the others
            print(f"# {layer.name} {tokens} {peer} {variant}: {type(problem).__name__} {problem}"[:200],
                  file=sys.stderr)

    for variant, config in vllm_configs(module, root, layer, tokens).items():
        point(f"vllm_{suffix}", variant, lambda b: vllm_layer(module, layer, b, config))
    if not layer.fp8:
        point("tkoss_bf16", "vendored", lambda b: triton_kernels_layer(kernels, layer, b))
    if tokens >= 64:
        point(f"torch {suffix} GEMMs", "grouped", lambda b: torch_gemms(layer, b))


def check(layer, module, kernels, root):
    batch = layer.batch(16)
    config = vllm_configs(module, root, layer, 16)["default"]
    errors = [error(vllm_layer(module, layer, batch, config)(), reference(layer, batch, False))]
    if not layer.fp8:
        rounded = Batch(batch.rows, batch.logits, None, None)
        values, ids = batch.logits.float().topk(layer.top_k)
        rounded.ids, rounded.weights = ids, values.softmax(-1)
        errors.append(error(triton_kernels_layer(kernels, layer, rounded)(), reference(layer, rounded, True)))
    print(f"# {layer.name}: error against fp32 {errors}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--format", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default="1,4,16,64,256,1024,4096,16384")
    options = parser.parse_args()
    torch.manual_seed(1)
    module, kernels = load_vllm(options.vllm), load_triton_kernels(options.vllm)
    print("shape,M,peer,variant,us")
    for name in options.shapes.split(","):
        if options.format == "fp8" and SHAPES[name][2] % BLOCK:
            continue  # vLLM's kernel wants whole blocks
        layer = Layer(name, options.format == "fp8")
        check(layer, module, kernels, options.vllm)
        for tokens in map(int, options.tokens.split(",")):
            bench(layer, tokens, module, kernels, options.vllm)
        del layer
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
