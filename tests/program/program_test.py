"""The program `moe` from the outside: program_test.py MOE SHARED CASE."""
import array
import gzip
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

MOE, SHARED, CASE = sys.argv[1:]
TMP = tempfile.TemporaryDirectory()


def moe(*arguments, code=0):
    """Runs it; checks the exit code and that an error leaves nothing on stdout."""
    done = subprocess.run([MOE, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, (arguments, done.returncode, done.stderr)
    assert code == 0 or done.stdout == "", done.stdout
    return done


def moe_json(*arguments):
    answer = json.loads(moe(*arguments, "--json").stdout)
    assert answer["schema_version"] == 1
    return answer


def small_model():
    folder = os.path.join(TMP.name, "model")
    moe("synth", folder, "--layers", 2, "--experts", 6, "--top-k", 2, "--hidden", 40,
        "--intermediate", 24, "--seed", 7)
    return folder


def usage():
    moe("--help"), moe("--version"), moe("run", "--help")
    moe(code=2)
    assert "Did you mean 'synth'?" in moe("sinth", code=2).stderr
    assert "Did you mean '--rows'?" in moe("run", "x", "--row", "3", code=2).stderr
    assert "Did you mean 'olmoe-1b-7b'?" in moe("synth", "x", "--like", "olmo-1b-7b", code=2).stderr
    assert "usage" not in moe("info").stderr
    moe("synth", code=2)
    moe("run", "x", "--input", "y", code=2)
    moe("run", "x", "--device", "gpu", code=2)
    moe("bench", "--dtype", "bf17", code=2)
    moe("bench", "--tokens", "0", code=2)
    assert any(row["available"] for row in moe_json("info")["expert_gemm"])
    quiet = dict(os.environ, NO_COLOR="1")
    assert "\033" not in subprocess.run([MOE, "x"], capture_output=True, text=True, env=quiet).stderr


def old_driver():
    """Under a driver of CUDA 11.4, which old_driver.cc plays."""
    sentence = "cuda:0: the driver serves CUDA 11.4 and this build needs 13."
    rows = [row for row in moe_json("info")["expert_gemm"] if row["device"] == "cuda"]
    assert rows
    for row in rows:
        assert not row["available"] and sentence in row["reason"], row
        assert "install a newer driver" in row["reason"]
    folder = small_model()
    assert sentence in moe("run", folder, "--device", "cuda:0", code=1).stderr
    assert all(layer["right"] for layer in moe_json("run", folder)["layers"])  # the CPU still works


def repack_and_page():
    folder, repacked = small_model(), os.path.join(TMP.name, "repacked")
    assert moe_json("repack", folder, repacked)["layers"] == 2
    moe("repack", folder, repacked, code=1)  # it is there already
    moe("repack", folder, os.path.join(folder, "inside"), code=1)
    assert os.path.exists(os.path.join(repacked, "moe.manifest.json"))
    trace, usage = os.path.join(TMP.name, "trace.csv"), os.path.join(TMP.name, "usage.json")
    run = moe_json("run", repacked, "--rows", 3, "--expert-memory", "40KiB", "--policy", "llru",
                   "--record-trace", trace, "--record-usage", usage)
    for layer in run["layers"]:
        paging = layer["paging"]
        assert layer["right"] and paging["policy"] == "llru" and paging["misses"] > 0
        assert paging["bytes"] > 0 and paging["stall_us"] > 0 and paging["slots"] < 6
    assert "paging" not in moe_json("run", repacked, "--rows", 3)["layers"][0]
    simulated = moe_json("simulate", "--trace", trace, "--slots", 12)
    forwards = 6  # of each layer, the warm-up included
    assert simulated["rows"] == 3 * 2 * forwards and simulated["layers"] == 2
    chosen = sum(rows > 0 for layer in run["layers"] for rows in layer["expert_rows"])
    assert all(r["hits"] + r["misses"] == chosen * forwards for r in simulated["results"])
    with open(usage) as file:
        recorded = json.load(file)
    assert recorded["format"] == "moe-usage-1" and recorded["top_k"] == 2
    for seen, layer in zip(recorded["layers"], run["layers"], strict=True):
        assert seen["layer"] == layer["layer"] and seen["steps"] == layer["expert_rows"] * forwards
        assert seen["tokens"] == [forwards * rows for rows in layer["expert_rows"]]
        assert sum(entry[-1] for entry in seen["sets"]) == 3 * forwards
    plans = [moe_json("plan", "--usage", file, "--ranks", 2, "--tokens-per-step", 1)["plans"]
             for file in (trace, usage)]  # the same usage, whoever counted it
    assert plans[0] == plans[1] and len(plans[0][0]["layers"]) == 2
    moe("run", repacked, "--record-usage", os.path.join(usage, "inside"), code=1)
    assert "no policy is called 'nobody'" in moe("run", repacked, "--policy", "nobody", code=2).stderr


def quantize():
    folder, made = small_model(), os.path.join(TMP.name, "int4")
    answer = moe_json("quantize", folder, made, "--format", "int4", "--group", 32)
    assert [layer["layer"] for layer in answer["layers"]] == [0, 1]
    for layer in answer["layers"]:
        assert [expert["expert"] for expert in layer["experts"]] == list(range(6))
        assert all(0 < expert["weight_error"] < 0.2 for expert in layer["experts"])
        assert all(0 < expert["output_error"] < 0.5 for expert in layer["experts"])
    assert "int4" in moe("inspect", made).stdout
    assert all(layer["right"] for layer in moe_json("run", made, "--rows", 3)["layers"])
    moe("quantize", folder, made, code=1)  # it is there already
    moe("quantize", made, made + "-again", code=1)  # int4 already
    moe("quantize", folder, made + "-bad", "--format", "int5", code=2)
    moe("quantize", folder, made + "-bad", "--group", 48, code=1)
    assert "outputs" in moe("quantize", folder, made + "-8", "--format", "int8").stdout
    assert sorted(os.listdir(TMP.name)) == ["int4", "int4-8", "model"]


def live_and_simulated():
    """What paging did is what moe simulate says of the recorded trace. Not `pin`: the simulator knows
    the popularity of the whole trace beforehand, a run knows none."""
    folder, trace = small_model(), os.path.join(TMP.name, "trace.csv")
    for policy in "lru", "lru-per-layer", "lfu", "llru", "hybrimoe", "moe-infinity":
        for memory in "36KiB", "40KiB", "46KiB":
            run = moe_json("run", folder, "--layer", 1, "--rows", 2, "--expert-memory", memory,
                           "--policy", policy, "--record-trace", trace)
            paging = run["layers"][0]["paging"]
            simulated = moe_json("simulate", "--trace", trace, "--policy", policy,
                                 "--slots", paging["slots"])["results"][0]
            assert (paging["hits"], paging["misses"]) == (simulated["hits"], simulated["misses"])
            assert paging["slots"] < 6 and paging["misses"] > 0
            os.remove(trace)


def synth_and_run():
    folder = small_model()
    seen = moe_json("inspect", folder)
    assert [layer["experts"] for layer in seen["layers"]] == [6, 6]
    assert seen["layers"][0]["hidden"] == 40 and seen["layers"][0]["top_k"] == 2
    assert any(b["fits"] for b in seen["layers"][0]["backends"])
    assert "family" in moe("inspect", folder).stdout

    ran = moe_json("run", folder, "--rows", 33)
    assert len(ran["layers"]) == 2 and all(layer["right"] for layer in ran["layers"])
    assert all(sum(layer["expert_rows"]) == 66 for layer in ran["layers"])
    assert "right" in moe("run", folder, "--layer", 1, "--threads", 1).stdout
    paged = moe_json("run", folder, "--expert-memory", "40KiB")
    assert all(layer["right"] for layer in paged["layers"])
    assert "already_exists" in moe("synth", folder, code=1).stderr


def bad_input():
    assert "config.json" in moe("inspect", "/nonexistent", code=1).stderr
    folder = small_model()
    assert "layer 9" in moe("run", folder, "--layer", 9, code=1).stderr
    moe("run", folder, "--backend", "nonesuch", code=1)
    out = os.path.join(TMP.name, "out")
    moe("run", folder, "--input", "/nonexistent", "--output", out, code=1)
    wrong = write(os.path.join(TMP.name, "in"), {"layers.0.x": ("F32", [2, 39])})
    assert "(rows, 40)" in moe("run", folder, "--input", wrong, "--output", out, code=1).stderr
    shard = next(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    os.truncate(os.path.join(folder, shard), 5000)
    assert shard in moe("run", folder, code=1).stderr
    assert not os.path.exists(out)


def write(path, tensors):
    """A safetensors file of zeros."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


def read(path):
    """{name: (dtype, shape, values)} of the F32 and I64 tensors."""
    with open(path, "rb") as file:
        data = file.read()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, info in json.loads(data[8:begin]).items():
        if name != "__metadata__" and info["dtype"] in ("F32", "I64"):
            first, last = (begin + offset for offset in info["data_offsets"])
            values = array.array("f" if info["dtype"] == "F32" else "q", data[first:last])
            out[name] = (info["dtype"], info["shape"], values)
    return out


def relative_error(got, wanted):
    difference = sum((a - b) ** 2 for a, b in zip(got, wanted))
    return math.sqrt(difference / sum(b * b for b in wanted))


def golden():
    if not os.path.isdir(SHARED):
        print("SKIPPED: ../shared is absent")
        sys.exit(77)
    folder = os.path.join(SHARED, "goldens/a/deepseek_v3")
    answers = os.path.join(folder, "golden.safetensors")
    out = os.path.join(TMP.name, "out.safetensors")
    done = moe("run", folder, "--input", answers, "--output", out)
    assert "skipped logits" in done.stderr
    wanted, got = read(answers), read(out)
    for x, y in [("input", "output"), ("x1", "y1"), ("x5", "y5"), ("x65", "y65")]:
        assert relative_error(got["layers.1." + x][2], wanted["layers.1." + y][2]) < 2e-6, x
    kind, shape, ids = got["layers.1.input.topk_ids"]
    assert kind == "I64" and shape == wanted["layers.1.topk_ids"][1]
    assert got["layers.1.input.topk_weights"][0] == "F32"
    k = shape[1]
    for row in range(shape[0]):
        here = slice(row * k, row * k + k)
        assert set(ids[here]) == set(wanted["layers.1.topk_ids"][2][here]), row


def bench():
    answer = moe_json("bench", "--experts", 4, "--top-k", 2, "--hidden", 64, "--intermediate", 48,
                      "--tokens", "1,5", "--threads", 1)
    assert answer["limits"]["dram_read_gbs"] > 0 and answer["limits"]["fma_gflops"] > 0
    assert [point["tokens"] for point in answer["points"]] == [1, 5]
    for point in answer["points"]:
        for field in ("us", "gflops", "weight_gbs", "dram_fraction", "fma_fraction",
                      "roofline_fraction"):
            assert point[field] > 0, field
        assert point["dtype"] == "bf16" and isinstance(point["like"], str)
    answer = moe_json("bench", "--experts", 4, "--top-k", 2, "--hidden", 64, "--intermediate", 48,
                      "--tokens", 3, "--threads", 2, "--row-type", "bf16")
    assert answer["row_type"] == "bf16" and answer["points"][0]["us"] > 0
    moe("bench", "--row-type", "int8", code=2)
    for dtype, options in (("f32", ()), ("f16", ()), ("bf16", ("--dtype", "f32")), ("fp8", ()),
                           ("int8", ()), ("int4", ("--group", 64))):
        answer = moe_json("bench", "--experts", 4, "--top-k", 2, "--hidden", 64, "--intermediate",
                          64, "--tokens", "3", "--threads", 2, "--format", dtype, *options)
        assert answer["limits"]["int8_dot_gops"] >= 0 and answer["limits"]["int4_dot_gops"] >= 0
        kind = "fp8_block" if dtype == "fp8" else dtype
        assert [point["dtype"] for point in answer["points"]] == [kind]
        assert answer["points"][0]["weight_gbs"] > 0
        assert answer["group"] == {"fp8": 128, "int4": 64}.get(dtype, 0)
    for dtype, group in (("int8", 0), ("int8", 32), ("int4", 32), ("int4", 128)):
        for precision in ("automatic", "exact"):
            answer = moe_json("bench", "--experts", 4, "--top-k", 2, "--hidden", 128,
                              "--intermediate", 128, "--tokens", "1,16", "--threads", 2, "--format",
                              dtype, "--group", group, "--row-precision", precision)
            assert answer["group"] == group and answer["row_precision"] == precision
            peak = answer["limits"]["fma_gflops"]
            if precision != "exact":  # rows in q8 meet the weights in dot products
                peak = answer["limits"][f"{dtype}_dot_gops"] or peak
            for point in answer["points"]:
                limit = max(point["gflops"] / peak, point["dram_fraction"])
                assert abs(point["roofline_fraction"] / limit - 1) < 1e-3, (dtype, precision, point)
    moe("bench", "--format", "int5", code=2)
    moe("bench", "--group", "32", code=2)
    moe("bench", "--format", "f16", "--group", "32", code=2)


def plan():
    pairs = {(a, b): 100 if (a, b) in ((0, 1), (2, 3), (4, 5), (6, 7)) else 1
             for a in range(8) for b in range(a + 1, 8)}
    usage = os.path.join(TMP.name, "pairs.csv")
    with open(usage, "w") as file:
        file.write("layer,expert_a,expert_b,count\n")
        for layer in (3, 7):
            for (a, b), count in pairs.items():
                file.write(f"{layer},{a},{b},{count * layer if a == 0 else count}\n")
    tokens = {layer: [sum((count * layer if a == 0 else count) for (a, b), count in pairs.items()
                          if e in (a, b)) for e in range(8)] for layer in (3, 7)}

    answer = moe_json("plan", "--usage", usage, "--ranks", 2, "--slots", 5, "--strategy", "linear",
                      "--strategy", "eplb", "--strategy", "subset", "--tokens-per-step", 1)
    assert answer["objective"] == "active"
    plans = {one["strategy"]: one for one in answer["plans"]}
    assert list(plans) == ["linear", "eplb", "subset", "auto"]  # auto is always among the answers
    for name, one in plans.items():
        means = maxima = 0
        assert [layer["layer"] for layer in one["layers"]] == [3, 7], name
        for layer in one["layers"]:
            slots = layer["expert_of_slot"]
            assert len(slots) == 10 and set(slots) - {-1} == set(range(8)), name
            shares = [tokens[layer["layer"]][e] / slots.count(e) if e >= 0 else 0 for e in slots]
            ranks = [sum(shares[:5]), sum(shares[5:])]
            means += sum(ranks) / 2
            maxima += max(ranks)
        assert abs(one["balancedness"] - means / maxima) < 1e-9, name  # vLLM's
        assert one["predicted_us"] > 0
        assert plans["auto"]["objective"] <= one["objective"] + 1e-9, name
    assert plans["linear"]["objective"] > plans["auto"]["objective"] + 0.1

    # From linear to the best: the moves lead there, and say what they cost.
    before, picture = os.path.join(TMP.name, "before.json"), os.path.join(TMP.name, "plan.html")
    with open(before, "w") as file:
        json.dump({"layers": plans["linear"]["layers"]}, file)
    moved = moe_json("plan", "--usage", usage, "--ranks", 2, "--slots", 5, "--tokens-per-step", 1,
                     "--previous", before, "--picture", picture)
    layers = {layer["layer"]: layer["expert_of_slot"] for layer in plans["linear"]["layers"]}
    copies = 0
    for t in moved["migration"]["transfers"]:
        layers[t["layer"]] = list(layers[t["layer"]])
        layers[t["layer"]][t["to_slot"]] = t["expert"]
        copies += t["from_rank"] != t["to_rank"]
    for layer in moved["plans"][-1]["layers"]:
        for was, wanted in zip(layers[layer["layer"]], layer["expert_of_slot"]):
            assert wanted in (-1, was)
    assert 0 < copies == moved["migration"]["moved_copies"]
    assert moved["migration"]["moved_bytes"] == copies * 44040192
    page = open(picture).read()
    assert page.count("<svg") == 2 and page.count("<rect") == 2 * 2 * 2  # layers x ranks, twice
    assert "http" not in page and "<script" not in page and "in place" in page

    # Unequal ranks, a costly link, and what makes no sense.
    uneven = moe_json("plan", "--usage", usage, "--ranks", 3, "--slots", "2,3,5")
    assert len(uneven["plans"][0]["layers"][0]["expert_of_slot"]) == 10
    refused = moe_json("plan", "--usage", usage, "--ranks", 3, "--slots", "2,3,5", "--strategy",
                       "eplb", "--strategy", "round-robin", "--strategy", "linear")
    assert [one["strategy"] for one in refused["plans"]] == ["linear", "auto"]
    assert [one["strategy"] for one in refused["refused"]] == ["eplb", "round-robin"]
    assert "equal numbers of slots" in refused["refused"][0]["reason"]
    links = os.path.join(TMP.name, "links.json")
    with open(links, "w") as file:
        json.dump({"rack": {"bytes_per_second": 1e6}}, file)
    slow = moe_json("plan", "--usage", usage, "--ranks", 2, "--nodes", 2, "--links", links)
    fast = moe_json("plan", "--usage", usage, "--ranks", 2, "--nodes", 2)
    assert slow["objective"] == "traffic"
    assert slow["plans"][-1]["predicted_us"] > 100 * fast["plans"][-1]["predicted_us"]
    assert "balancedness" in moe("plan", "--usage", usage, "--ranks", 2).stdout
    moe("plan", "--usage", usage, "--ranks", 3, "--slots", "2,3", code=2)
    moe("plan", "--usage", usage, "--ranks", 2, "--strategy", "best", code=2)
    moe("plan", "--usage", usage, "--ranks", 2, "--objective", "money", code=2)
    assert "8 experts" in moe("plan", "--usage", usage, "--ranks", 1, "--slots", 3, code=1).stderr
    moe("plan", "--usage", usage + "x", "--ranks", 2, code=1)
    empty = os.path.join(TMP.name, "empty.json")
    open(empty, "w").close()
    assert "the usage is empty" in moe("plan", "--usage", empty, "--ranks", 2, code=1).stderr
    moe("plan", "--usage", usage, "--ranks", 2, "--links", empty, code=1)
    packed = usage + ".gz"
    with gzip.open(packed, "wb") as file:
        file.write(open(usage, "rb").read())
    few = moe_json("plan", "--usage", packed, "--ranks", 2, "--coverage", 0.8)
    assert len(few["plans"][0]["layers"]) == 2
    moe("plan", "--usage", usage, "--ranks", 2, "--links", usage, code=1)
    moe("plan", "--usage", usage, "--ranks", 4, "--previous", before, code=1)


globals()[CASE]()
