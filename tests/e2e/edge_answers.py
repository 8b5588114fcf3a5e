"""Edge cases of what is generated, and of servers that are loaded, limited, or lose their parts."""

import http.client
import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

from edge import post, refused, row, served
from edge_bodies import chat, text, tools
from edge_sockets import connect
from edge_sockets import post as http_post
from volley import eventually

PROMPT = "The capital of France is"
LONG = {"max_tokens": 4000, "ignore_eos": True}
END = 2  # <|im_end|>
MARK = 1  # <|im_start|>


def complete(server, **fields):
    return served(post(server, *text(prompt=PROMPT, temperature=0, **{"max_tokens": 16, **fields})))


def prompt_tokens(server, **fields):
    return post(server, *chat(**fields))[2]["usage"]["prompt_tokens"]


def token_of(server, piece):
    """The ids that spell a text."""
    path, body = text(prompt=piece, max_tokens=0, echo=True, return_token_ids=True)
    return post(server, path, body)[2]["prompt_token_ids"]


class Stream:
    """An open stream; `lines` are its events."""

    def __init__(self, server, path, body, buffer=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        self.connection.connect()
        if buffer:
            self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        headers = {"content-type": "application/json"}
        self.connection.request("POST", f"/v1/{path}", json.dumps(body | {"stream": True}), headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.read()

    def events(self):
        for line in self.response:
            if line.startswith(b"data: "):
                yield line.removeprefix(b"data: ").strip()

    def chunks(self):
        for event in self.events():
            if event == b"[DONE]":
                return
            yield json.loads(event)

    def text(self):
        return "".join(choice["text"] for chunk in self.chunks() for choice in chunk["choices"])

    def drop(self):
        """Leaves without a word."""
        self.response.fp.raw._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.response.close()
        self.connection.close()


# --- What is said -------------------------------------------------------------------------------------------


@row(5)
def of_a_key_given_twice_the_last_counts(server):
    body = json.dumps(text(max_tokens=2)[1]).replace("{", '{"max_tokens": 9, ', 1).encode()
    assert post(server, "completions", body)[2]["usage"]["completion_tokens"] == 2


@row(49)
def special_tokens_in_a_message_are_text_unless_asked_for(server):
    messages = [{"role": "user", "content": "<|im_end|>" * 4}]
    literal, parsed = (prompt_tokens(server, messages=messages, safe_tokenization=safe) for safe in (True, False))
    assert literal > parsed == prompt_tokens(server, messages=[{"role": "user", "content": ""}]) + 4
    assert prompt_tokens(server, messages=messages) == literal


@row(40)
def white_space_is_kept(server):
    bare, spaced = (prompt_tokens(server, messages=[{"role": "user", "content": c}]) for c in ("", " \n\n\n "))
    assert spaced > bare


@row(58)
def nothing_is_generated_where_nothing_may_be(server):
    _, _, body = post(server, *text(prompt=PROMPT, max_tokens=0))
    assert body["choices"][0]["text"] == "" and body["usage"]["completion_tokens"] == 0
    scored = complete(server, max_tokens=0, echo=True, logprobs=0)
    assert scored["text"] == PROMPT and scored["logprobs"]["token_logprobs"][0] is None
    assert all(value < 0 for value in scored["logprobs"]["token_logprobs"][1:])


@row(63)
def filters_that_leave_nothing_leave_the_likeliest(server):
    greedy = complete(server)["text"]
    narrow = served(post(server, *text(prompt=PROMPT, max_tokens=16, temperature=2, top_p=0, min_p=1, top_k=1)))
    assert narrow["text"] == greedy


@row(69)
def the_best_of_two_costs_both(server):
    _, _, body = post(server, *text(prompt=PROMPT, best_of=2, max_tokens=8, ignore_eos=True))
    assert len(body["choices"]) == 1 and body["usage"]["completion_tokens"] == 16


@row(71)
def a_stop_string_is_found_across_tokens_chunks_and_the_bytes_of_a_character(server):
    whole = complete(server, max_tokens=40)["text"]
    for start in range(4, 16):
        stop = whole[start : start + 9]  # wherever tokens begin and end
        end = whole.index(stop) + len(stop)
        stopped = complete(server, max_tokens=40, stop=[stop])
        assert (stopped["text"], stopped["finish_reason"]) == (whole[:end], "stop")
        streamed = Stream(server, *text(prompt=PROMPT, temperature=0, max_tokens=40, stop=[stop]))
        assert streamed.text() == whole[:end]
    forced = {"guided_choice": ["a🎉🎈b"], "max_tokens": 40}
    assert len(token_of(server, "🎉")) > 1
    for excluded, expected in ((False, "a🎉🎈"), (True, "a🎉")):
        ended = complete(server, **forced, stop=["🎈"], include_stop_str_in_output=not excluded)
        assert (ended["text"], ended["finish_reason"]) == (expected, "stop")


@row(72)
def a_stop_string_at_the_first_token_leaves_nothing(server):
    first = complete(server, max_tokens=1)["text"]
    assert complete(server, stop=[first])["text"] == first
    nothing = complete(server, stop=[first], include_stop_str_in_output=False)
    assert (nothing["text"], nothing["finish_reason"]) == ("", "stop")


@row(79)
def without_parallel_calls_there_is_one(server):
    several = tools(tool_choice="required", max_tokens=200, parallel_tool_calls=False)
    choice = served(post(server, *several))
    assert len(choice["message"]["tool_calls"]) == 1 and choice["finish_reason"] == "tool_calls"


@row(80)
def legacy_functions_are_answered_in_their_own_form(server):
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}}}
    ask = chat(functions=[function], function_call={"name": "f"}, max_tokens=60)
    choice = served(post(server, *ask))
    assert choice["finish_reason"] == "function_call" and choice["message"]["function_call"]["name"] == "f"
    json.loads(choice["message"]["function_call"]["arguments"])


@row(89)
def an_end_before_any_token_is_an_empty_text(server):
    ask = chat(logit_bias={str(END): 100}, temperature=0, max_tokens=5)
    _, _, body = post(server, *ask)
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert body["usage"]["completion_tokens"] == 0
    *chunks, last = Stream(server, *ask).chunks()
    assert last["choices"][0]["finish_reason"] == "stop" and last["usage"]["completion_tokens"] == 0
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)


@row(90)
def half_a_character_at_the_end_is_one_replacement_character(server):
    half = token_of(server, "🎉")[0]
    ask = {"logit_bias": {str(half): 100}, "max_tokens": 1}
    assert complete(server, **ask)["text"] == "\ufffd"
    assert Stream(server, *text(prompt=PROMPT, temperature=0, **ask)).text() == "\ufffd"


@row(91)
def special_tokens_alone_are_no_text(server):
    _, _, body = post(server, *text(prompt=PROMPT, logit_bias={str(MARK): 100}, temperature=0, max_tokens=3))
    assert body["choices"][0]["text"] == "" and body["usage"]["completion_tokens"] == 3


@row(88)
def a_retry_is_a_request_like_any_other(server):
    served(post(server, *text(), **{"x-stainless-retry-count": "2"}))


@row(96)
def any_affinity_is_taken(server):
    served(post(server, *text(), **{"x-session-affinity": "x" * 10_000}))


# --- Models and limits --------------------------------------------------------------------------------------


@row(29, server="limited")
def beyond_the_rate_a_client_is_told_when_to_come_back(server):
    answers = [post(server, *text()) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    _, headers, body = answers[-1]
    assert body["error"]["code"] == "rate_limit_exceeded" and 1 <= float(headers["retry-after"]) <= 60


@row(33, server="alone")
def a_model_that_nothing_serves_yet_is_coming(server):
    answer = post(server, *text())
    assert answer[0] == 503 and answer[2]["error"]["code"] == "DEPLOYMENT_SCALING_UP"
    assert 1 <= float(answer[1]["retry-after"]) <= 60


@row(34, server="plain")
def a_chat_needs_a_template(server):
    refused(post(server, *chat(model=server.model)), 400, param="model")
    served(post(server, *text(model=server.model, prompt=[5, 6])))


@row(35, server="embedder")
def an_embedder_does_not_chat(server):
    assert post(server, "embeddings", {"model": server.model, "input": "Hi"})[0] == 200
    refused(post(server, *chat(model=server.model)), 400, param="model")


@row(47, server="strict")
def what_a_template_refuses_is_told_in_its_words(server):
    ask = chat(model=server.model, messages=[{"role": "system", "content": "Be brief."}])
    refused(post(server, *ask), 400, message="only with a question")


@row(94, server="strict")
def a_model_that_always_reasons_can_not_be_told_not_to(server):
    ask = chat(model=server.model, reasoning_effort="none")
    refused(post(server, *ask), 400, message="Invalid reasoning effort: none")


@row(86, server="busy")
def too_much_at_once_is_told_quickly(server):
    path, body = text(**LONG)
    with ThreadPoolExecutor(8) as pool:
        streams = [Stream(server, path, body)]  # runs
        waiting = [pool.submit(lambda: Stream(server, path, body))]  # waits for it
        eventually(lambda: server.metric("volley_scheduler_waiting") == 1, "one that waits", [server.process])
        status, headers, answer = post(server, path, body)
        assert status in (429, 503) and 1 <= float(headers["retry-after"]) <= 60 and answer["error"]["message"]
        streams[0].drop()
        waiting[0].result().drop()


# --- What happens to streams --------------------------------------------------------------------------------


@row(83)
def a_client_that_leaves_is_not_generated_for(server):
    free = lambda: server.metric("volley_kv_blocks_free")  # noqa: E731
    all_blocks = server.metric("volley_kv_blocks_total")
    path, body = text(**LONG)
    for begun in (True, False):
        eventually(lambda: free() == all_blocks, "all blocks free")
        stream = Stream(server, path, body)
        if begun:
            next(stream.chunks())
        stream.drop()
    waiting = http.client.HTTPConnection("127.0.0.1", server.port)
    waiting.request("POST", f"/v1/{path}", json.dumps(body), {"content-type": "application/json"})
    eventually(lambda: free() < all_blocks, "the request under way")
    waiting.close()
    steps = server.metric("volley_worker_step_sequences_count")
    eventually(lambda: free() == all_blocks, "its blocks free", seconds=20)
    assert server.metric("volley_worker_step_sequences_count") - steps < 100  # of 4000


@row(84, server="brisk")
def a_slow_reader_is_waited_for_and_not_run_ahead_of(server):
    n, length = 8, 400  # more than sockets hold, and in more steps than the router keeps
    ask = chat(**LONG | {"max_tokens": length}, n=n, logprobs=True, top_logprobs=20, seed=3)
    before = server.metric("volley_router_pauses_total")
    stream = Stream(server, *ask, buffer=1 << 17)
    eventually(lambda: server.metric("volley_router_pauses_total") > before, "a pause", seconds=240)
    counts = [0] * n
    for chunk in stream.chunks():
        for choice in chunk["choices"]:
            counts[choice["index"]] += len((choice["logprobs"] or {"content": []})["content"])
    assert counts == [length] * n


@row(85, server="cluster")
def a_stream_survives_its_worker_and_says_so_when_it_can_not(cluster):
    path, body = text(prompt=PROMPT, seed=5, **LONG | {"max_tokens": 600})
    first = cluster.worker()
    cluster.scheduler(), cluster.router()
    cluster.wait()
    whole = served(post(cluster, path, body))["text"]
    second = cluster.worker()
    eventually(lambda: cluster.metric("volley_scheduler_workers") == 2, "two workers", cluster.parts)
    streams = [Stream(cluster, path, body) for _ in range(4)]
    rest = [stream.chunks() for stream in streams]
    heads = ["".join(next(chunks)["choices"][0]["text"] for _ in range(3)) for chunks in rest]
    cluster.gone(first, kill=True)
    tails = ["".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) for chunks in rest]
    assert [head + tail for head, tail in zip(heads, tails)] == [whole] * 4
    with connect(cluster) as lost:
        lost.sendall(http_post("content-type: application/json", body=json.dumps(body | LONG | {"stream": True}).encode()))
        received = lost.recv(4096)
        cluster.gone(second, kill=True)
        while more := lost.recv(4096):
            received += more
    last = received.split(b"data: ")[-1]
    assert json.loads(last.splitlines()[0])["error"]["message"]
    assert not received.endswith(b"0\r\n\r\n") and b"[DONE]" not in received  # cut, not ended


@row(87, server="fresh")
def a_server_that_ends_takes_nothing_new_and_finishes_what_runs(server):
    path, body = text(**LONG | {"max_tokens": 300})
    stream = Stream(server, path, body)
    chunks = stream.chunks()
    next(chunks)
    server.process.ask()
    status, headers, _ = eventually(lambda: (got := post(server, *text()))[0] == 503 and got, "closing", [server.process])
    assert headers["retry-after"] == "1"
    *_, last = chunks
    assert last["choices"][0]["finish_reason"] == "length"
