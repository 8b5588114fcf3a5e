"""What the device can do, measured: bytes per second of a copy, read and written, and operations per second of a
product of bf16 matrices of random numbers. Run as a program, so that nothing of it stays on the device: prints JSON.

  limits.py cpu|cuda
"""

import json
import subprocess
import sys
import time
from statistics import median

ROUNDS = 11


def measure(device):
    """In a process of its own."""
    return json.loads(subprocess.check_output([sys.executable, __file__, device], text=True))


def seconds(torch, device, work, repeat):
    """The median time of one call, in rounds of several."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(ROUNDS + 2):
        wait()
        started = time.perf_counter()
        for _ in range(repeat):
            work()
        wait()
        times.append((time.perf_counter() - started) / repeat)
    return median(times[2:])  # the first warm up


def main(device):
    import torch

    gpu = device == "cuda"
    length, side = (2 << 30, 8192) if gpu else (64 << 20, 512)
    source = torch.randint(0, 255, (length,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    one, other = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    repeat = 10 if gpu else 1
    copy = seconds(torch, device, lambda: target.copy_(source), repeat)
    product = seconds(torch, device, lambda: one @ other, repeat)
    print(json.dumps({"bandwidth": 2 * length / copy, "rate": 2 * side**3 / product}))


if __name__ == "__main__":
    main(sys.argv[1])
