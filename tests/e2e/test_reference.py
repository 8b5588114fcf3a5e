"""The served model against reference numbers of a float32 engine, at every position, through the public API."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest

from volley import MODEL, ROOT, Serve

REFERENCE = json.loads((ROOT / "tests/reference/smollm2-135m-instruct.json").read_text())["items"]


@pytest.fixture(scope="module", params=[1, 3])
def f32(request):
    """The debugging mode: weights and activations in float32, on one rank and shared out among three."""
    running = Serve("--activations=f32", f"--tensor-parallel={request.param}")
    yield running
    running.close()


def ask(server, prompt, **parameters):
    answer = server.post("completions", {"model": MODEL, "prompt": prompt, "temperature": 0, **parameters})
    return answer["choices"][0]


def forced(server):
    """Each reference item with its continuation scored, position by position: (is it the top token?, logprob)."""

    def score(item):
        prompt, continuation = item["prompt_ids"], item["gen_ids"]
        scored = ask(server, prompt + continuation, echo=True, logprobs=1, max_tokens=0)["logprobs"]
        assert scored["token_ids"] == prompt + continuation
        positions = range(len(prompt), len(prompt) + len(continuation))
        return item, [
            (scored["token_logprobs"][i] >= max(scored["top_logprobs"][i].values()), scored["token_logprobs"][i])
            for i in positions
        ]

    with ThreadPoolExecutor(len(REFERENCE)) as pool:
        return list(pool.map(score, REFERENCE))


def logprob_errors(scored):
    """|Δ log-probability| where the reference has one: the greedy token of the first steps."""
    return [
        abs(logprob - top[0][1])
        for item, positions in scored
        for (_, logprob), top in zip(positions, item["top5_first8"])
    ]


def test_teacher_forced_tokens_and_logprobs_agree(server):
    scored = forced(server)
    agree = [(top, margin) for item, positions in scored for (top, _), margin in zip(positions, item["margins"])]
    assert len(agree) == 48 * len(REFERENCE)
    assert [margin for top, margin in agree if margin >= 0.65 and not top] == []
    assert sum(top for top, _ in agree) >= 0.9 * len(agree)
    assert median(logprob_errors(scored)) <= 0.1


def test_in_float32_every_logprob_agrees(f32):
    errors = logprob_errors(forced(f32))
    assert len(errors) == 8 * len(REFERENCE) and max(errors) <= 1e-3


def test_in_float32_every_greedy_text_is_the_reference_text(f32):
    def text(item):
        return ask(f32, item["prompt_ids"], max_tokens=48, ignore_eos=True, logprobs=0)

    with ThreadPoolExecutor(len(REFERENCE)) as pool:
        answers = list(pool.map(text, REFERENCE))
    assert [answer["logprobs"]["token_ids"] for answer in answers] == [item["gen_ids"] for item in REFERENCE]


def test_prompts_become_the_reference_tokens(server):
    for item in REFERENCE:
        echo = ask(server, item["prompt_text"], echo=True, logprobs=0, max_tokens=0)
        assert echo["logprobs"]["token_ids"] == item["prompt_ids"]
        assert echo["text"] == item["prompt_text"]


def test_chat_messages_become_the_reference_tokens(server):
    for item in REFERENCE:
        if item["kind"] != "chat":
            continue
        body = {"model": MODEL, "messages": item["messages"], "max_tokens": 0, "echo": True}
        answer = server.post("chat/completions", body)
        assert answer["choices"][0]["message"]["content"] == item["prompt_text"]
        assert answer["usage"]["prompt_tokens"] == len(item["prompt_ids"])


def test_log_probabilities_are_those_of_a_distribution(server):
    scored = ask(server, "The capital of France is", max_tokens=1, logprobs=5)["logprobs"]
    top = scored["top_logprobs"][0]
    assert 5 <= len(top) <= 6 and sum(math.exp(value) for value in top.values()) <= 1
    assert scored["token_logprobs"][0] == max(top.values())
