"""What parameters do to a real model's text. Everything is greedy or seeded, so each is a plain comparison."""

import gzip
import http.client
import json
import re
import statistics
from collections import Counter

import pytest

from volley import MODEL, Serve, eventually

PROMPT = "Write a list of animals: cat, dog, cat, dog,"


def ask(server, **parameters):
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 24, "return_token_ids": True}
    return server.post("completions", body | parameters)


def tokens(server, **parameters):
    return ask(server, **parameters)["choices"][0]["token_ids"]


def test_a_bias_forces_and_forbids(server):
    first = tokens(server)[0]
    assert first not in tokens(server, logit_bias={str(first): -100})
    assert tokens(server, logit_bias={"1000": 100}, max_tokens=5) == [1000] * 5


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty", "repetition_penalty"])
def test_a_penalty_makes_repetition_rarer(server, penalty):
    most = lambda ids: Counter(ids).most_common(1)[0][1]  # noqa: E731
    assert most(tokens(server, **{penalty: 2}, ignore_eos=True)) < most(tokens(server, ignore_eos=True))


def test_the_best_of_several_is_the_likeliest(server):
    alone = {"temperature": 1, "seed": 7, "max_tokens": 12}
    candidates = ask(server, n=4, logprobs=0, **alone)["choices"]
    best = max(candidates, key=lambda choice: statistics.mean(choice["logprobs"]["token_logprobs"]))
    answer = ask(server, best_of=4, **alone)
    assert [choice["text"] for choice in answer["choices"]] == [best["text"]]
    generated = sum(len(choice["token_ids"]) for choice in candidates)
    assert answer["usage"]["completion_tokens"] == generated


def test_the_end_of_the_prompt_is_echoed(server):
    answer = ask(server, echo_last=3, logprobs=0, max_tokens=2)
    choice, prompt = answer["choices"][0], answer["prompt_token_ids"]
    assert choice["logprobs"]["token_ids"] == prompt[-3:] + choice["token_ids"]
    assert choice["text"].startswith(", dog,") and None not in choice["logprobs"]["token_logprobs"]
    whole = ask(server, echo=True, logprobs=0, max_tokens=2)["choices"][0]["logprobs"]
    assert whole["token_logprobs"][-5:] == choice["logprobs"]["token_logprobs"]


def test_min_tokens_holds_off_the_end(server):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say yes."}], "temperature": 0}
    short = server.post("chat/completions", body)["usage"]["completion_tokens"]
    longer = server.post("chat/completions", body | {"min_tokens": short + 5, "max_tokens": short + 50})
    assert longer["usage"]["completion_tokens"] >= short + 5


def test_raw_output_and_performance(server):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    answer = server.post("chat/completions", body | {"raw_output": True, "perf_metrics_in_response": True})
    raw = answer["choices"][0]["raw_output"]
    assert raw["prompt_fragments"][0].endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert len(raw["completion_token_ids"]) == answer["usage"]["completion_tokens"]
    assert answer["perf_metrics"]["prompt-tokens"] == answer["usage"]["prompt_tokens"] == len(raw["prompt_token_ids"])


def test_a_compressed_body_is_read(server):  # 13
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    path = "/inference/v1/completions"
    assert server.request("POST", path, gzip.compress(json.dumps(body).encode()), headers)[0] == 200
    assert server.request("POST", path, gzip.compress(b" " * (16 << 20)), headers)[0] == 413


def test_a_keys_rate_is_limited_and_told():  # 29
    running = Serve("--limit-requests=1", "--limit-generated-tokens=100")
    try:
        body = {"model": MODEL, "prompt": "Hi", "max_tokens": 2, "ignore_eos": True}
        status, headers, _ = running.request("POST", "/v1/completions", body)
        assert (status, headers["x-ratelimit-remaining-tokens-generated"]) == (200, "98")
        status, headers, answer = running.request("POST", "/v1/completions", body)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(headers["retry-after"]) <= 60 and headers["x-ratelimit-over-limit"] == "yes"
    finally:
        running.close()


def events(server, body):
    """The events of a streamed completion."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = json.dumps(body | {"stream": True})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def slots_in_use(cluster, worker):
    metrics = cluster.request("GET", "/metrics", port=worker.admin)[2].decode()
    return float(re.search(r"^volley_worker_slots_in_use (\S+)", metrics, re.MULTILINE)[1])


def test_a_sampler_with_state_goes_on_exactly_when_its_worker_dies(cluster):
    workers = [cluster.worker(), cluster.worker()]
    cluster.scheduler(), cluster.router()
    cluster.wait()
    eventually(lambda: cluster.metric("volley_scheduler_workers") == 2, "two workers claimed", cluster.parts)
    body = {"temperature": 1, "seed": 3, "max_tokens": 300, "ignore_eos": True, "mirostat_target": 4,
            "mirostat_lr": 0.3, "frequency_penalty": 0.5, "repetition_penalty": 1.1}  # fmt: skip
    undisturbed = ask(cluster, **body)["choices"][0]["token_ids"]
    stream, ids = events(cluster, {"model": MODEL, "prompt": PROMPT, "return_token_ids": True} | body), []
    for event in stream:
        ids += event["choices"][0].get("token_ids", [])
        if workers and len(ids) >= 20:
            [busy] = [worker for worker in workers if slots_in_use(cluster, worker)]
            cluster.gone(busy, kill=True)
            workers.clear()
    assert not workers and ids == undisturbed
