"""Each family's log-probabilities, asked for over HTTP, beside transformers' on the same device: in float32, which is
taken as exact, and in bf16, whose error is the measure of ours. Prompts of many lengths are scored and continued side
by side, so prefill, mixed and decode steps all take part.

  tests/gpu/run models
"""

import random
from concurrent.futures import ThreadPoolExecutor

import torch
import transformers

import checkpoints
import compare
import server
from stage import run

FAMILIES = ["llama", "qwen2", "qwen3", "phi3", "phi4-mini", "gemma2", "gemma3", "olmo2", "gpt-bigcode", "starcoder2"]
LENGTHS = [1, 2, 15, 16, 17, 100, 129, 300, 700, 1500]
TOKENS = 48  # that continue each prompt
TOP = 5
# Long prompts are cut, and steps have rows of several prompts.
STEP = 256


def prompts(vocab, lengths):
    rng = random.Random(3)
    return [[rng.randrange(2, vocab) for _ in range(length)] for length in lengths]


def ask(serving, prompt):
    """(all ids, [(position, id, log-probability)], [(position, best id)], where the continuation begins)"""
    answer = serving.complete(prompt, TOKENS, echo=True, logprobs=True, top_logprobs=TOP, return_token_ids=True)
    choice = answer["choices"][0]
    content = choice["logprobs"]["content"]
    ids = [entry["token_id"] for entry in content]
    if ids[: len(prompt)] != prompt or len(ids) != len(prompt) + TOKENS:
        raise RuntimeError(f"{len(prompt)} tokens and {TOKENS} more were asked for, {len(ids)} came: {ids[:20]}")
    values, best = [], []
    for position, entry in enumerate(content[1:], 1):
        tops = [(top["token_id"], top["logprob"]) for top in entry["top_logprobs"]]
        all_values = dict([(entry["token_id"], entry["logprob"]), *tops])
        values += [(position, token, value) for token, value in all_values.items()]
        best.append((position, max(tops, key=lambda top: top[1])[0]))
    return ids, values, best, len(prompt)


def exact_and_bf16(folder, device, answers):
    """Per answer and type, the log-probabilities of all tokens at all positions: a tensor `[positions, vocabulary]`,
    whose row n is of token n + 1."""
    found = {}
    torch.set_float32_matmul_precision("highest")
    # Eager attention is plain products: nothing in it is rounded to less than float32. No other has Gemma 2's soft caps.
    usual = "eager" if folder.name == "gemma2" else "sdpa"
    for dtype, attention in ((torch.float32, "eager"), (torch.bfloat16, usual)):
        settings = {"dtype": dtype, "device_map": device, "attn_implementation": attention}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
        with torch.inference_mode():
            for n, (ids, *_) in enumerate(answers):
                logits = model(torch.tensor([ids], device=device)).logits[0, :-1].float()
                found[n, dtype] = torch.log_softmax(logits, -1).cpu()
        del model
    return [(found[n, torch.float32], found[n, torch.bfloat16]) for n in range(len(answers))]


def differences(answers, references, part):
    """(ours, bf16's) of one part of all answers: `prompt` or `decode`."""
    ours, theirs, exact = [], [], []
    chosen, chosen_theirs, best = [], [], []
    for (_, values, tops, begin), (f32, bf16) in zip(answers, references):
        here = lambda position: (position >= begin) == (part == "decode")  # noqa: E731, B023
        for position, token, value in values:
            if here(position):
                ours.append(value)
                exact.append(f32[position - 1, token].item())
                theirs.append(bf16[position - 1, token].item())
        for position, token in tops:
            if here(position):
                row = f32[position - 1]
                chosen.append(row[token].item())
                chosen_theirs.append(row[bf16[position - 1].argmax()].item())
                best.append(row.max().item())
    return (
        compare.difference(ours, exact, chosen, best),
        compare.difference(theirs, exact, chosen_theirs, best),
    )


def check(stage, family, flags):
    folder = checkpoints.directory(stage, family)
    vocab = checkpoints.config(family, stage.cpu).vocab_size
    lengths = [length for length in LENGTHS if not stage.cpu or length <= 300]
    mode = "deterministic" if "--deterministic" in flags else "fast"
    try:
        serving = server.volley(stage, folder, "--prefix-cache", "off", "--max-batch-tokens", STEP, *flags)
    except server.Ended as ended:
        reason = str(ended).strip().splitlines()[-1]
        if "is not supported" not in reason:
            raise
        stage.note(f"{family}: left out, this binary does not serve it: {reason.rsplit('.json: ', 1)[-1]}")
        return
    with serving, ThreadPoolExecutor(len(lengths)) as pool:
        answers = list(pool.map(lambda prompt: ask(serving, prompt), prompts(vocab, lengths)))
    references = exact_and_bf16(folder, stage.device, answers)
    for part in ("prompt", "decode"):
        ours, theirs = differences(answers, references, part)
        wrong = compare.complaints(ours, theirs)
        row = {"model": family, "mode": mode, "part": part, "values": ours.count}
        row |= {"RMS": ours.rms, "RMS of bf16": theirs.rms, "RMS ratio": ours.rms / max(theirs.rms, compare.LEAST)}
        row |= {"max": ours.max, "max of bf16": theirs.max}
        row |= {"given up": ours.given_up, "given up by bf16": theirs.given_up}
        stage.row("Log-probabilities beside transformers in float32", **row, verdict="wrong" if wrong else "right")
        for problem in wrong:
            stage.fail(f"{family}, {mode}, {part}: {problem}")


def body(stage):
    stage.note(
        f"A model is wrong beyond {compare.RMS_MULTIPLE:g} × transformers' own error in bf16 (root mean square), or "
        f"{compare.MAX_MULTIPLE:g} × its largest; differences are of log-probabilities, from float32's."
    )
    for family in FAMILIES:
        # The CPU is always deterministic.
        for flags in [[]] if stage.cpu else [[], ["--deterministic"]]:
            try:
                check(stage, family, flags)
            except Exception as problem:  # the other families are still to be checked
                stage.fail(f"{family} {' '.join(flags)}: {type(problem).__name__}: {problem}")


if __name__ == "__main__":
    run("models", body)
