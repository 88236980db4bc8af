"""cuBLAS (through PyTorch) on the shapes of skinny_linear: us and GB/s, weights rotated beyond the L2, in a CUDA graph."""

import torch

SHAPES = [(24576, 8192), (8192, 8192), (49152, 8192), (8192, 24576), (152064, 8192), (12288, 4096), (4096, 4096),
          (22016, 4096), (4096, 11008), (6144, 2048), (2048, 2048), (11008, 2048), (2048, 5504)]


def graph_ms(record, repeats=5):
    record()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        record()
    times = []
    for _ in range(repeats + 2):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        graph.replay()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times[2:])[repeats // 2]


def main():
    pool = torch.empty(6 * 2**30, dtype=torch.bfloat16, device="cuda").normal_(0, 0.011)
    read = graph_ms(lambda: torch.sum(pool[: 2**32].view(torch.float32)))
    print(f"torch.sum: {2**33 / read / 1e6:.0f} GB/s")
    for n, k in SHAPES:
        count = max(4, min(100, pool.numel() // (n * k)))
        weights = [pool[i * n * k:(i + 1) * n * k].view(n, k) for i in range(pool.numel() // (n * k))][:count]
        for rows in (1, 8):
            x = torch.randn(rows, k, dtype=torch.bfloat16, device="cuda")
            out = torch.empty(rows, n, dtype=torch.bfloat16, device="cuda")
            ms = graph_ms(lambda: [torch.mm(x, w.t(), out=out) for w in weights]) / len(weights)
            print(f"cuBLAS {n:6d} x {k:5d}, rows {rows}: {ms * 1e3:7.1f} us {n * k * 2 / ms / 1e6:5.0f} GB/s")


main()
