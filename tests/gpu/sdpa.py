"""Times PyTorch's scaled_dot_product_attention in bf16: for each argument batch,heads,kv_heads,queries,keys,dim a line
with the argument and the seconds of a call (median of 11 replays of a graph of 10 calls)."""

import sys

import torch


def seconds(batch, heads, kv_heads, queries, keys, dim):
    def make(heads, tokens):
        return torch.randn(batch, heads, tokens, dim, device="cuda", dtype=torch.bfloat16)

    q, k, v = make(heads, queries), make(kv_heads, keys), make(kv_heads, keys)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=queries > 1, enable_gqa=heads != kv_heads)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            attend()
    times = []
    for i in range(14):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) / 1e3 / 10)
    return sorted(times)[len(times) // 2]


for shape in sys.argv[1:]:
    try:
        print(shape, f"{seconds(*map(int, shape.split(','))):.9f}", flush=True)
    except RuntimeError as problem:
        print(f"PyTorch at {shape}: {problem}", file=sys.stderr)
