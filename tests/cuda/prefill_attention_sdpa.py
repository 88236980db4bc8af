"""Times PyTorch's causal scaled_dot_product_attention, the yardstick of prefill_attention.cu."""
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, HEAD_DIM = 64, 128


def times_ms(run, repeats):
    """Sorted times of single runs; the first is left out."""
    times = []
    for _ in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[1:])


def main():
    print(torch.cuda.get_device_name(), torch.__version__)
    for tokens in (2048, 6144, 14336, 30720):
        q, k, v = (
            torch.randn(1, HEADS, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
            for _ in range(3)
        )
        # rows of different sharpness, as prefill_attention.cu has them
        q *= 0.5 * 2.0 ** (torch.arange(tokens, device="cuda") % 4).bfloat16()[None, None, :, None]
        flops = 4 * HEAD_DIM * HEADS * tokens * (tokens + 1) / 2
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend):

                def run():
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

                times = times_ms(run, max(5, int(1.5e14 / flops)))
            median, p5 = times[len(times) // 2], times[len(times) // 20]
            print(
                f"SDPA {backend.name:16} n={tokens:<6} median {median * 1e3:9.1f} us  p5"
                f" {p5 * 1e3:9.1f}  {flops / median / 1e9:6.1f} TFLOP/s"
            )


main()
