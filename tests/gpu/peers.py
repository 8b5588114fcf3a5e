"""The same loads for others on the same device: transformers' own continuous batching, and llama.cpp's server, which is
built here with CUDA where its source is in the bundle.

  tests/gpu/run peer-transformers | peer-llama | peer-llama-w8 | peer-llama-w4
"""

import os
import random
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path
from statistics import median

import checkpoints
import loads
import server
from stage import BUNDLE, run

SOURCE = BUNDLE / "llama.cpp.tar.xz"
BUILD = [
    "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native",
    "-DGGML_NATIVE=ON", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
]  # fmt: skip


def transformers(stage):
    """Its batch interface, in this process: no HTTP, and no time until its first step, which is in its favour."""
    import torch
    import transformers as library

    size, vocab = loads.size(stage.cpu), checkpoints.shape("8b", stage.cpu).vocab
    folder = checkpoints.directory(stage, "8b")
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=stage.device).eval()
    rng = random.Random(5)

    def generate(streams, prompt, output):
        """What `volley bench` would say of so many requests side by side."""
        settings = library.GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        prompts = [[rng.randrange(2, vocab) for _ in range(prompt)] for _ in range(streams)]
        answers = model.generate_batch(inputs=prompts, generation_config=settings, record_timestamps=True)
        answers = list(answers.values())
        tokens = [len(answer.generated_tokens) for answer in answers]
        if tokens != [output] * streams:
            raise RuntimeError(f"{streams} × {output} tokens were asked for, {tokens} came")
        times = [answer.timestamps for answer in answers]
        begin = min(answer.lifespan[0] for answer in answers)
        gaps = [1e3 * (after - before) for each in times for before, after in zip(each, each[1:])]
        return {
            "output_tok_s": streams * output / (max(each[-1] for each in times) - begin),
            "ttft_p50_ms": 1e3 * median(each[0] - begin for each in times),
            "itl_p50_ms": median(gaps) if gaps else None,
        }

    name = f"transformers {library.__version__}, continuous batching"
    for streams in size["streams"]:
        generate(streams, *loads.WARM)
        row = generate(streams, size["prompt"], size["output"])
        loads.row(stage, name, "8b, bf16", streams, row)
        loads.beside(stage, name, "8b, bf16", streams, row["output_tok_s"])
    row = generate(1, size["long"], 1)
    stage.row("First token of a long prompt", server=name, tokens=size["long"], s=row["ttft_p50_ms"] / 1e3)


def build(stage):
    """llama-server; None where neither a program nor its source is here. What was built before a stop is kept."""
    if given := os.environ.get("LLAMA_SERVER"):
        return Path(given)
    if not SOURCE.exists():
        stage.leave_out(f"{SOURCE.name} is not in the bundle")
        return None
    folder = stage.scratch / "llama.cpp"
    if not folder.exists():
        aside = stage.scratch / "llama.cpp.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        with tarfile.open(SOURCE) as source:
            source.extractall(aside, filter="data")
        (aside / "llama.cpp").rename(folder)
    program = folder / "build/bin/llama-server"
    if not program.exists():
        path = {"PATH": os.environ["PATH"] + ":/usr/local/cuda/bin"}  # nvcc
        log = stage.logs / "llama.cpp-build.log"
        configure = ["cmake", "-S", folder, "-B", folder / "build", *BUILD]
        for command in configure, ["cmake", "--build", folder / "build", "--target", "llama-server"]:
            with open(log, "ab") as told:
                done = subprocess.run(
                    [*map(str, command)], env=os.environ | path, stdout=told, stderr=told, check=False
                )
            if done.returncode:
                raise RuntimeError(f"llama.cpp could not be built:\n{log.read_text(errors='replace')[-2000:]}")
    return program


def llama(stage, weight):
    """Its server over HTTP, by the very client that measures Volley, on the file that Volley had; bf16 in one of the
    same shape."""
    program = build(stage)
    if program is None:
        return
    size, label = loads.size(stage.cpu), f"8b, {weight}"
    counts = size["streams"] if weight == "bf16" else size["streams"][::2]
    slots = max(counts)
    # A slot's share of the cache holds a prompt, what follows, and some tokens more.
    context = slots * (size["prompt"] + size["output"] + 64)
    file, port = checkpoints.file(stage, "8b", weight), server.free_port()
    command = [program, "-m", file, "--host", "127.0.0.1", "--port", port, "-np", slots, "-c", context, "-ngl", 99]
    command += ["--cont-batching", "--no-webui", "-fa", "on"]
    with server.Server(stage, "server", command, port, ready="/health") as serving:
        for streams in counts:
            serving.bench(streams, *loads.WARM)
            row = serving.bench(streams, size["prompt"], size["output"], max(streams, 2))
            loads.row(stage, "llama.cpp", label, streams, row)
            loads.beside(stage, "llama.cpp", label, streams, row["output_tok_s"])
    if weight == "bf16":
        shutil.rmtree(file.parent)  # large, and nobody else's


PEERS = {
    "transformers": transformers,
    "llama": partial(llama, weight="bf16"),
    "llama-w8": partial(llama, weight="w8a16"),
    "llama-w4": partial(llama, weight="w4a16"),
}


def body(stage, choice):
    PEERS[choice](stage)


if __name__ == "__main__":
    run("peer", body, tuple(PEERS))
