"""Thirty-two streams of every kind at once, and what each of them said."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from threading import Event
from urllib.parse import urlsplit

from volley import MODEL, spent

# What was lost is noticed within seconds: a stream that says nothing for longer than this has been forgotten.
STALL = 40
# So many streams with so many events each are the middle of it: others are still to get their first.
BEGUN = 12, 3
# Streams more, at each router, whose clients leave in the middle of it.
LEAVE = 2

ALL = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 110}
STORY = {"type": "object", "required": ["story"], "properties": {"story": {"type": "string", "minLength": 300}}}
TOOL = {"type": "function", "function": {"name": "save", "parameters": STORY}}


def text(number, **more):
    prompt = f"Story {number}. Once upon a time, there was"
    return "/v1/completions", {**ALL, "prompt": prompt, "seed": number, "ignore_eos": True, **more}


def chat(number, **more):
    messages = [{"role": "user", "content": f"Tell me story {number}, of a king."}]
    return "/v1/chat/completions", {**ALL, "messages": messages, "seed": number, "ignore_eos": True, **more}


def streams():
    """By name: the path and the body of each stream."""
    kinds = {
        "greedy": lambda i: text(i, temperature=0),
        "seeded": lambda i: text(i, temperature=1.2, top_p=0.9),
        "greedy chat": lambda i: chat(i, temperature=0),
        "seeded chat": lambda i: chat(i, temperature=1, top_k=40, min_p=0.02),
        "schema": lambda i: chat(i, response_format={"type": "json_schema", "json_schema": {
            "name": "story", "schema": STORY}}),
        "expression": lambda i: text(i, guided_regex="([a-z]{2,9} ){150}"),
        "call": lambda i: chat(i, tools=[TOOL], tool_choice="required"),
        "two choices": lambda i: (text if i % 2 else chat)(i, n=2),
        "penalties": lambda i: text(i, frequency_penalty=0.6, presence_penalty=0.3, repetition_penalty=1.1),
        "mirostat": lambda i: chat(i, mirostat_target=3),
        "log-probabilities": lambda i: chat(i, logprobs=True, top_logprobs=3),
        "old log-probabilities": lambda i: text(i, logprobs=2),
        "stop": lambda i: text(i, stop=["\n\n\n", "castle"], temperature=1),
        "echo": lambda i: text(i, echo=True, logprobs=1),
    }  # fmt: skip
    wanted = [name for name in kinds for _ in range(3 if name in ("seeded", "schema", "call", "stop") else 2)]
    return {f"{name} {i}": kinds[name](i) for i, name in enumerate(wanted)}


def request(url, path, body):
    """A connection on which a stream was asked for."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=STALL)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection


def events(url, path, body):
    """The data of each event of a stream; it ends without an error, or this fails."""
    connection = request(url, path, body)
    try:
        response = connection.getresponse()
        assert response.status == 200, response.read()
        heard = time.monotonic()
        for line in response:
            assert time.monotonic() - heard < STALL, "nothing but signs of life"
            if line.startswith(b"data: {"):
                heard = time.monotonic()
                event = json.loads(line.removeprefix(b"data: "))
                assert "error" not in event, event
                yield event
            elif line.startswith(b"data: [DONE]"):
                return
        raise AssertionError("the stream ended early")
    finally:
        connection.close()


def said(events):
    """All that a stream's events have but the answer's id and time: each choice's, in order, and the usage."""
    choices, usage = {}, None
    for event in events:
        usage = event["usage"] or usage
        for choice in event["choices"]:
            for call in choice.get("delta", {}).get("tool_calls", []):
                call.pop("id", None)  # made of the answer's
            choices.setdefault(choice["index"], []).append(choice)
    return {index: choices[index] for index in sorted(choices)}, spent(usage)


class Mix:
    """The streams, begun at the routers in turn, and some whose clients will leave."""

    def __init__(self, urls, events=events):
        self.asks = streams()
        self.begun, self.in_the_middle = set(), Event()
        self.leaving = [request(url, *ask) for url, ask in zip(urls * LEAVE, self.asks.values())]
        self.pool = ThreadPoolExecutor(len(self.asks))
        self.running = {
            name: self.pool.submit(self.hear, name, events(urls[i % len(urls)], *ask))
            for i, (name, ask) in enumerate(self.asks.items())
        }

    def hear(self, name, events):
        heard = []
        try:
            for event in events:
                heard.append(event)
                if len(heard) == BEGUN[1]:
                    self.begun.add(name)
                    if len(self.begun) == BEGUN[0]:
                        self.in_the_middle.set()
            return said(heard)
        except BaseException:
            self.in_the_middle.set()  # nobody waits for what doesn't come: the result says why
            raise

    def under_way(self):
        """Waits until many streams have said something."""
        assert self.in_the_middle.wait(120)
        return self

    def results(self):
        """What each stream said. The clients that were to leave do so now."""
        for connection in self.leaving:
            connection.close()
        try:
            return {name: stream.result() for name, stream in self.running.items()}
        finally:
            self.pool.shutdown()


def differences(results, expected):
    """Of each stream that isn't what it should be: the first events that differ, and the usage."""
    different = {name: (results[name], said) for name, said in expected.items() if results[name] != said}
    first = lambda one, other: next(((a, b) for a, b in zip_longest(one, other) if a != b), None)  # noqa: E731
    return {
        name: [*(first(got[choice], said[choice]) for choice in said), usage, wanted]
        for name, ((got, usage), (said, wanted)) in different.items()
    }
