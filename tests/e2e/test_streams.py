"""Many streams at once give what each gives alone."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from volley import MODEL, spent

STREAMS = 64
WAVE = 16  # arrive together; the next wave comes when this one's first stream is under way


def request(i):
    """The i-th of 64 requests of many kinds."""
    words = " ".join(f"{word} {i}" for word in ("river", "stone", "winter", "engine", "letter"))
    body = {
        "model": MODEL,
        "stream": True,
        "seed": i,
        "max_tokens": 24 + (i * 7) % 60,
        "temperature": [0, 0.5, 0.8, 1.0, 1.3][i % 5],
        "top_p": [1, 0.9, 0.5][i % 3],
        "top_k": [0, 40, 0, 5][i % 4],
        "min_p": 0.05 if i % 7 == 0 else 0,
        "ignore_eos": i % 2 == 0,
    }
    if i % 6 == 0:
        body["stop"] = [" the", "ing"]
    if i % 4 == 1:
        body |= {"frequency_penalty": 0.4, "repetition_penalty": 1.1, "logit_bias": {"28": -5, "30": 1.5}}
    if i % 9 == 2:
        body |= {"mirostat_target": 3, "presence_penalty": 0.3}
    if i % 5 == 1:
        body["logprobs"] = 2
    if i % 2 == 0:
        body["prompt_cache_max_len"] = 0  # computed whole each time; the others find their prompts
    if i % 3 == 0:
        return "chat/completions", body | {"messages": [{"role": "user", "content": f"Tell me about {words}."}]}
    long = (i % 8 == 1) * 150  # longer than the rows of one step
    return "completions", body | {"prompt": f"A story of {words}: " + f"once {i} and again, " * long}


def stream(server, i, first=None):
    """Text, token log-probabilities, finish reason and usage of a request; sets `first` at its first text."""
    path, body = request(i)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.request("POST", f"/v1/{path}", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    text, logprobs, end = "", [], None
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        if first:
            first.set()
        chunk = json.loads(line.removeprefix(b"data: "))
        assert "error" not in chunk, chunk
        choice = chunk["choices"][0]
        text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        logprobs.append(choice.get("logprobs"))
        end = choice["finish_reason"] and (choice["finish_reason"], spent(chunk["usage"]))
    connection.close()
    assert end, "the stream ended without a finish reason"
    return text, [entry for entry in logprobs if entry], end


def merged(logprobs):
    """Log-probabilities regardless of how tokens were grouped into chunks."""
    return [pair for entry in logprobs for pair in values(entry)]


def values(entry):
    if "content" in entry:
        return [(token["token"], token["logprob"]) for token in entry["content"]]
    return list(zip(entry["tokens"], entry["token_logprobs"], map(json.dumps, entry["top_logprobs"])))


def test_64_concurrent_streams_are_what_each_is_alone(server):
    alone = [stream(server, i) for i in range(STREAMS)]
    under_way = [Event() for _ in range(STREAMS // WAVE)]

    def arrive(i):
        wave = i // WAVE
        if wave:
            assert under_way[wave - 1].wait(120)
        return stream(server, i, under_way[wave])

    with ThreadPoolExecutor(STREAMS) as pool:
        together = list(pool.map(arrive, range(STREAMS)))
    for one, other in zip(alone, together):
        assert (one[0], merged(one[1]), one[2]) == (other[0], merged(other[1]), other[2])
    assert max(usage["prompt_tokens"] for _, _, (_, usage) in alone) > 512
    assert server.metric("volley_worker_step_sequences_max") >= 32
