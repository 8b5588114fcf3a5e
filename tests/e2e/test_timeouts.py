"""A client that says how long it has use for an answer isn't kept waiting longer, and leaves nothing running."""

import http.client
import json

import pytest

from volley import MODEL, eventually

LONG = {"max_tokens": 8000, "ignore_eos": True, "temperature": 1, "seed": 3}
CHAT = {"messages": [{"role": "user", "content": "Tell me everything."}], **LONG}
SOON = {"x-volley-timeout-ms": "300"}
# What goes on for thousands of tokens: minutes on the machines that run this.
ASKS = [
    ("chat/completions", CHAT),
    ("chat/completions", {**CHAT, "n": 3}),
    ("completions", {"prompt": ["One.", "Two."], **LONG}),
]


def nothing_runs(server):
    runs = ("volley_router_active_requests", "volley_scheduler_running", "volley_scheduler_waiting", "volley_worker_slots_in_use")
    eventually(lambda: [server.metric(metric) for metric in runs] == [0] * len(runs), "nothing left running")


@pytest.mark.parametrize("path, body", ASKS)
def test_an_answer_that_takes_too_long_is_a_504(server, path, body):
    status, _, answer = server.request("POST", f"/v1/{path}", {"model": MODEL, **body}, SOON)
    assert (status, answer["error"]["code"]) == (504, "DEADLINE_EXCEEDED"), answer
    nothing_runs(server)


@pytest.mark.parametrize("path, body", ASKS)
def test_a_stream_that_takes_too_long_ends_with_the_error(server, path, body):
    body = {"model": MODEL, "stream": True, **body}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", f"/v1/{path}", json.dumps(body), {"content-type": "application/json", **SOON})
    response = connection.getresponse()
    try:
        read = response.read()
    except http.client.IncompleteRead as cut:
        read = cut.partial
    connection.close()
    # A machine so slow that nothing was said by then answers 504 instead; the error is the same.
    assert response.status in (200, 504) and b"DEADLINE_EXCEEDED" in read, read[-500:]
    nothing_runs(server)


def test_who_has_time_is_answered_and_a_time_that_is_none_is_refused(server):
    ask = {"model": MODEL, "prompt": "Hi", "max_tokens": 4}
    assert server.request("POST", "/v1/completions", ask, {"x-volley-timeout-ms": "600000"})[0] == 200
    status, _, answer = server.request("POST", "/v1/completions", ask, {"x-volley-timeout-ms": "soon"})
    assert (status, answer["error"]["param"]) == (400, "x-volley-timeout-ms")
