"""Workers whose GPU is the twin: the CUDA backend and its kernels, run on the CPU, behind router and scheduler."""

import http.client
import json
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from threading import Event

import pytest

from twins import Twins
from volley import Serve, eventually

STREAMS, TOKENS = 9, 64
# What bf16 on one side and float32 on the other make of a log-probability at most, and usually.
TOLERANCE, USUAL = 0.25, 0.03


def body(i, **more):
    """The i-th request: prompts of a token to several steps; greedy, drawn, and in between."""
    numbers = random.Random(i)
    prompt = [numbers.randrange(4, 288) for _ in range(1 + i * 17)]
    kinds = [{"temperature": 0}, {"temperature": 1}, {"temperature": 0.8, "top_k": 20, "frequency_penalty": 0.5}]
    kind = kinds[i % 3] | {"seed": i, "logprobs": 2, "ignore_eos": True, "return_token_ids": True}
    return {"model": "twin", "prompt": prompt, "max_tokens": TOKENS, **kind, **more}


def stream(server, i, under_way=None):
    """What the i-th stream says, to the bit: its text, its tokens and their log-probabilities."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    asked = json.dumps(body(i, stream=True))
    connection.request("POST", "/v1/completions", asked, {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    said = []
    for line in response:
        if line.startswith(b"data: {"):
            chunk = json.loads(line.removeprefix(b"data: "))
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                logprobs = choice["logprobs"] or {"token_ids": [], "token_logprobs": [], "top_logprobs": []}
                each = zip(logprobs["token_ids"], logprobs["token_logprobs"], logprobs["top_logprobs"])
                said += [choice["text"], *each]
            if under_way and len(said) > 4:
                under_way.set()
    connection.close()
    text = "".join(part for part in said if isinstance(part, str))
    return text, [part for part in said if not isinstance(part, str)]


def test_greedy_streams_of_the_twin_take_what_the_cpu_finds_best_or_as_good(tmp_path):
    cluster = Twins(tmp_path)
    cpu = Serve("--model", cluster.model, "--model-name=cpu", "--device=cpu", "--activations=f32")
    try:
        cluster.twin()
        cluster.workers(1)
        greedy = lambda i: cluster.post("completions", body(i, temperature=0, frequency_penalty=0))["choices"][0]
        with ThreadPoolExecutor(STREAMS) as pool:
            answers = list(pool.map(greedy, range(STREAMS)))
        errors = []
        for i, answer in enumerate(answers):
            prompt, said = body(i)["prompt"], answer["logprobs"]
            assert said["token_ids"] == answer["token_ids"] and len(answer["token_ids"]) == TOKENS
            forced = {"model": "cpu", "prompt": prompt + answer["token_ids"], "max_tokens": 0, "echo": True}
            scored = cpu.post("completions", forced | {"logprobs": 1})["choices"][0]["logprobs"]
            for at, (token, logprob) in enumerate(zip(said["token_ids"], said["token_logprobs"]), len(prompt)):
                assert scored["token_ids"][at] == token
                best = max(scored["top_logprobs"][at].values())
                assert scored["token_logprobs"][at] >= best - TOLERANCE, (i, at)
                errors.append(abs(scored["token_logprobs"][at] - logprob))
        assert max(errors) < TOLERANCE and median(errors) < USUAL
    finally:
        cpu.close()
        cluster.close()


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    running = Twins(tmp_path_factory.mktemp("twins"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def alone(twins):
    """What each stream says on a worker of its own."""
    worker = twins.twin("--deterministic", "true")
    twins.workers(1)
    said = [stream(twins, i) for i in range(STREAMS)]
    assert all(len(tokens) == TOKENS for _, tokens in said)
    twins.gone(worker)
    return said


def test_deterministic_streams_say_together_what_each_says_alone_and_again(twins, alone):
    worker = twins.twin("--deterministic", "true")
    twins.workers(1)
    for _ in range(2):
        with ThreadPoolExecutor(STREAMS) as pool:
            assert list(pool.map(lambda i: stream(twins, i), range(STREAMS))) == alone
    twins.gone(worker)


FAULTS = {
    "is killed": (signal.SIGKILL, -signal.SIGKILL, ""),
    "hangs": (signal.SIGUSR1, 1, "has not ended after 5 s on the GPU"),
    "fails": (signal.SIGUSR2, 1, "the twin has broken down"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_streams_of_a_gpu_that_fails_go_on_at_another_with_the_same_bytes(twins, alone, fault):
    sent, status, says = FAULTS[fault]
    # Another order of threads in each: what is the same has been computed alike, not merely repeated.
    workers = [twins.twin("--deterministic", "true", "--step-limit", 5, "--schedule", n) for n in (2, 7)]
    twins.workers(2)
    moves, events = twins.moves(), [Event() for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        running = [pool.submit(stream, twins, i, event) for i, event in enumerate(events)]
        assert all(event.wait(60) for event in events)
        struck = workers.pop()
        twins.parts.remove(struck)
        assert struck.end(sent) == status and says in struck.output(), struck.output()
        assert [one.result() for one in running] == alone
    assert twins.moves() > moves
    for worker in workers:
        twins.gone(worker)
