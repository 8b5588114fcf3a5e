"""A client whose router dies goes on from another one, with the bytes of the undisturbed stream."""

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from volley import MODEL, ROOT, eventually, free_port

SCRIPT = ROOT / "deploy/examples/resume.py"
QUESTION = "Why is the sky blue?"  # the model ends its answer by itself
spec = importlib.util.spec_from_file_location("resume", SCRIPT)
resume = importlib.util.module_from_spec(spec)
spec.loader.exec_module(resume)

STORY = {"model": MODEL, "stream": True, "max_tokens": 250, "ignore_eos": True, "stream_options": {"include_usage": True}}
TEXT = STORY | {"prompt": "Once upon a time", "seed": 7}
CHAT = STORY | {"messages": [{"role": "user", "content": "Tell me a story."}], "seed": 8}
TOOL = {"type": "function", "function": {"name": "save", "parameters": {
    "type": "object", "properties": {"story": {"type": "string", "minLength": 400}}, "required": ["story"]}}}  # fmt: skip
STREAMS = {
    "plain": ("/v1/completions", TEXT),
    "seeded by the router": ("/v1/completions", {key: value for key, value in TEXT.items() if key != "seed"}),
    "three choices": ("/v1/completions", TEXT | {"n": 3, "max_tokens": 120}),
    "echo and log-probabilities": ("/v1/completions", TEXT | {"echo": True, "logprobs": 3}),
    "penalties": ("/v1/chat/completions", CHAT | {"frequency_penalty": 0.5, "repetition_penalty": 1.2}),
    "mirostat": ("/v1/chat/completions", CHAT | {"mirostat_target": 3}),
    "a stop string": ("/v1/chat/completions", CHAT | {"stop": ["\n\n\n"]}),
    "a call": ("/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 300}),
    "a regular expression": ("/v1/chat/completions", CHAT | {"guided_regex": "[a-z ]{300}"}),
}


def whole(chunks):
    """What a stream said, choice by choice, with everything but the answer's id and time; and its usage."""
    said, usage = {}, None
    for chunk in chunks:
        usage = chunk["usage"] or usage
        for choice in chunk["choices"]:
            said.setdefault(choice["index"], []).append(choice)
    for choices in said.values():
        for choice in choices:
            for call in choice.get("delta", {}).get("tool_calls", []):
                call.pop("id", None)  # of the answer's id
    return said, {key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}


def script(*routers):
    """The example, as a user runs it."""
    command = [sys.executable, SCRIPT, *routers, QUESTION]
    return subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def said(process, before=b""):
    """All that it prints, behind what was read of it before."""
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b""), errors
    return before + output


def two_routers(cluster):
    """Starts a small cluster; its routers."""
    cluster.scheduler(), cluster.worker()
    first = cluster.router()
    cluster.wait()
    cluster.port = free_port()
    second = cluster.router()
    cluster.wait()
    return first, second


def test_the_example_prints_the_answer(server):
    turn = {"role": "user", "content": QUESTION}
    answer = server.post("chat/completions", {"model": MODEL, "messages": [turn], "temperature": 0})
    assert said(script(server.url)).decode() == answer["choices"][0]["message"]["content"] + "\n"


def test_the_example_outlives_its_router(cluster):
    dying, staying = two_routers(cluster)
    running = script(dying.url, staying.url)
    begun = running.stdout.read(1)
    cluster.gone(dying, kill=True)
    disturbed = said(running, begun)
    assert cluster.metric("volley_router_tokens_total", [staying.admin]) > 0, "the rest came from the other"
    assert disturbed == said(script(staying.url))


def test_the_example_says_why_it_gave_up(keyed):
    refused = script(keyed.url)
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 1 and errors.startswith(b"resume.py: HTTP Error 401"), errors


def test_streams_go_on_from_another_router(cluster):
    dying, other = two_routers(cluster)
    dying_address, staying = dying.url, other.url
    under_way = Barrier(len(STREAMS) + 1, timeout=120)

    def disturbed(path, body):
        chunks, ids = [], set()
        for chunk in resume.events([dying_address, staying], path, body):
            chunks.append(chunk)
            ids.add((chunk["id"], chunk["created"]))
            if len(chunks) == 12:
                under_way.wait()  # for all to run, and then for the router's death
                under_way.wait()
        assert len(ids) == 1, "one answer"
        return chunks

    with ThreadPoolExecutor(len(STREAMS)) as pool:
        running = {name: pool.submit(disturbed, *ask) for name, ask in STREAMS.items()}
        under_way.wait()
        cluster.gone(dying, kill=True)
        under_way.wait()
        for name, (path, body) in STREAMS.items():
            if name == "seeded by the router":
                running[name].result()
                continue
            alone = list(resume.events([staying], path, body))
            assert json.dumps(whole(running[name].result())) == json.dumps(whole(alone)), name
    scheduler = [part.admin for part in cluster.parts if part.name == "scheduler"]
    free = lambda: [cluster.metric(f"volley_kv_blocks_{which}", scheduler) for which in ("free", "total")]  # noqa: E731
    eventually(lambda: len(set(free())) == 1, "all blocks free", cluster.parts)
