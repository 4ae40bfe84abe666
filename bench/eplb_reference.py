# DeepSeek's eplb.py beside a NumPy port of the same rule, on the shape that placement_bench times.
#   python3 eplb_reference.py USAGE.json EPLB_DIR    (EPLB_DIR holds DeepSeek's eplb.py)
import heapq, json, sys, time
import numpy as np


def replicate(w, slots):
    expert = np.arange(slots)
    count = np.ones(len(w), dtype=np.float32)
    for i in range(len(w), slots):
        expert[i] = np.argmax(w / count)
        count[expert[i]] += 1
    return expert, count


def pack(w, packs):
    room, heap, out = len(w) // packs, [(np.float32(0), p) for p in range(packs)], []
    used, slots = [0] * packs, np.empty(len(w), dtype=np.int64)
    for item in np.argsort(-w, kind="stable"):
        load, p = heapq.heappop(heap)
        slots[p * room + used[p]] = item
        used[p] += 1
        if used[p] < room:
            heapq.heappush(heap, (load + w[item], p))
    return slots


def eplb_numpy(weight, slots, ranks):
    out = []
    for w in weight:
        expert, count = replicate(w, slots)
        out.append(expert[pack((w / count)[expert], ranks)])
    return np.array(out)


def timed(name, call):
    times = []
    for _ in range(5):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    print(f"{name}: {sorted(times)[2]:.4f} s CPU (median of 5)")


weight = np.array(json.load(open(sys.argv[1]))["logical_count"], dtype=np.float32)
weight = weight[weight.sum(1) > 0]
timed("NumPy port", lambda: eplb_numpy(weight, 320, 64))
if len(sys.argv) > 2:
    sys.path.insert(0, sys.argv[2])
    import torch, eplb
    torch.set_num_threads(1)
    tensor = torch.from_numpy(weight)
    timed("DeepSeek's PyTorch", lambda: eplb.rebalance_experts(tensor, 320, 1, 1, 64))
