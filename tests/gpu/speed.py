"""How fast a model of random numbers is served, beside what the device can do, measured in the same run: start, memory,
loads of many streams, the first token of a long prompt.

  tests/gpu/run speed-8b | speed-1b | speed-1b-plain | speed-w8 | speed-w4 | speed-deterministic
"""

import checkpoints
import limits
import loads
import server
import watch
from stage import run

# choice: checkpoint, weights, the goals of one stream: (share of the device's bandwidth, tokens a second) or None; flags
MODELS = {
    "8b": ("8b", "bf16", 0.8, 160),
    "1b": ("1b", "bf16", 0.7, None),
    "1b-plain": ("1b", "bf16", None, None, "--no-cuda-graphs"),
    "w8": ("8b", "w8a16", None, 280),
    "w4": ("8b", "w4a16", None, 450),
    "deterministic": ("8b", "bf16", None, None, "--deterministic"),
}
FRACTION = 0.9
SLACK = 1e9  # bytes that the driver may take beyond what was planned


def goal(stage, what, measured, unit, target, met, limit=None):
    """A row of the table of goals; `limit` is the best that the device could do."""
    share = None
    if limit and measured:
        share = limit / measured if unit == "s" else measured / limit
    verdict = "-" if stage.cpu else "met" if met else "missed"
    row = {"what": what, "measured": measured, "unit": unit, "limit": limit, "share of it": share}
    stage.row("Goals", **row, goal=target, verdict=verdict)


def start(stage, path, shape, more):
    """Starts twice: the second time the hash of the weights is kept, and they are in the page cache.
    Returns the server, and the bytes of the GPU that were in use before."""
    size = loads.size(stage.cpu)
    before = watch.now()
    flags = ["--max-sequences", max(size["streams"]), "--max-batch-tokens", size["step"], "--speculation", "off"]
    flags += ["--gpu-memory-fraction", FRACTION, "--prefix-cache", "off", *more]
    first = server.volley(stage, path, *flags)
    first.end()
    return server.volley(stage, path, *flags), first.first_token_seconds, before


def started(serving, first, before, shape):
    """A row of what the start came to, and the bytes of the GPU that may be in use."""
    ready = watch.now()
    row = {"first start to first token, s": first}
    row |= {"second start, ready, s": serving.ready_seconds, "to first token, s": serving.first_token_seconds}
    blocks = serving.metrics().get("volley_kv_blocks_total", 0)
    row |= {"KV cache, GB": blocks * 16 * shape.kv_bytes / 1e9}
    most = None
    if before and ready:
        row |= {"may use, GB": FRACTION * ready[2] / 1e9, "uses, GB": (ready[1] - before[1]) / 1e9}
        most = before[1] + FRACTION * ready[2] + SLACK
    return row, most


def load(stage, serving, label, streams, size):
    serving.bench(streams, *loads.WARM)
    before = serving.metrics()
    with watch.Watch() as gpu:
        row = serving.bench(streams, size["prompt"], size["output"], max(streams, 2))
    after = serving.metrics()
    spent = lambda name: after.get(name, 0) - before.get(name, 0)  # noqa: E731
    computing, waiting = spent("volley_step_seconds_sum"), spent("volley_step_wait_seconds_sum")
    share = 100 * waiting / (computing + waiting) if computing else None
    more = {"between steps, %": share, "GPU idle, %": gpu.idle, "GPU memory, GB": gpu.peak and gpu.peak / 1e9}
    loads.row(stage, "Volley", label, streams, row, **more)
    return row, gpu


def one_stream(stage, label, row, limit, share, rate):
    """Between tokens: what comes before the first is another goal."""
    seconds = (row["e2e_p50_ms"] - row["ttft_p50_ms"]) / 1e3
    alone = (row["max_tokens"] - 1) / seconds
    if share:
        goal(stage, f"{label}, one stream", alone, "tok/s", f"{share:.0%} of the limit", alone >= share * limit, limit)
    if rate:
        goal(stage, f"{label}, one stream", alone, "tok/s", f"{rate} tok/s", alone >= rate, limit)


def many_streams(stage, label, row, idle, floor):
    """By the time model, which takes `floor` seconds."""
    what, reached, limit = f"{label}, {row['concurrency']} streams", row["output_tok_s"], row["output_tokens"] / floor
    goal(stage, what, reached, "tok/s", "80% of the limit", reached >= 0.8 * limit, limit)
    goal(stage, f"{what}: GPU idle", idle, "%", "< 2 %", idle is not None and idle < 2)


def long_prompt(stage, label, row, floor):
    what, seconds = f"{label}, first token of a prompt of {row['prompt_tokens']:.0f}", row["ttft_p50_ms"] / 1e3
    goal(stage, what, seconds, "s", "1.5 × the limit at most", seconds <= 1.5 * floor, floor)


def body(stage, choice):
    name, weight, share, tokens, *more = MODELS[choice]
    size, shape, label = loads.size(stage.cpu), checkpoints.shape(name, stage.cpu), f"{name}, {weight}"
    path = checkpoints.directory(stage, name) if weight == "bf16" else checkpoints.file(stage, name, weight)
    label = ", ".join([label, *more])
    can = limits.measure(stage.device)
    bandwidth, rate = can["bandwidth"], can["rate"]
    stage.row("The device", model=label, **{"copy, TB/s": bandwidth / 1e12, "bf16 product, TFLOP/s": rate / 1e12})
    serving, first, before = start(stage, path, shape, more)
    with serving:
        row, most = started(serving, first, before, shape)
        to_first_token = row["to first token, s"]
        stage.row("Start and memory", model=label, **row)
        for streams in size["streams"]:
            row, gpu = load(stage, serving, label, streams, size)
            if most and gpu.peak and gpu.peak > most:
                stage.fail(
                    f"{label}, {streams} streams: {gpu.peak / 1e9:.1f} GB in use, beyond the planned {most / 1e9:.1f}"
                )
            prompt, output = row["prompt_tokens"], row["max_tokens"]
            if streams == 1:
                limit = 1 / shape.stream_seconds(weight, prompt + output / 2, bandwidth)
                one_stream(stage, label, row, limit, share, tokens)
            elif choice == "8b" and streams == size["streams"][-1]:
                many_streams(stage, label, row, gpu.idle, shape.load_seconds(streams, prompt, output, bandwidth, rate))
        if choice == "8b":
            row = serving.bench(1, size["long"], 2, 3)
            long_prompt(stage, label, row, shape.prefill_operations(row["prompt_tokens"]) / rate)
            goal(stage, f"{label}, start to first token", to_first_token, "s", "< 15 s", to_first_token < 15)


if __name__ == "__main__":
    run("speed", body, tuple(MODELS))
