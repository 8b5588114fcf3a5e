"""Starting, and the commands around the server."""

import http.client
import json
import os
import re
import signal
import subprocess
from pathlib import Path

from volley import BINARY, HOME, MODEL, Serve, eventually


def volley(*arguments, **options):
    done = subprocess.run(
        [BINARY, *arguments], capture_output=True, text=True, timeout=300, **({"stdin": subprocess.DEVNULL} | options)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_that_start_together_download_the_model_once(tmp_path):
    pull = [BINARY, "models", "pull", "smollm2-135m-instruct", "--home", tmp_path]
    both = [subprocess.Popen(pull, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [one.communicate(timeout=300) for one in both]
    assert [one.returncode for one in both] == [0, 0], ends
    assert len({path for path, _ in ends}) == 1
    assert ["another process is downloading" in said for _, said in ends].count(True) == 1
    assert list(tmp_path.rglob(".incoming*")) == []
    assert "smollm2-135m-instruct" in volley("models", "--home", tmp_path).split("Here:")[1]


def test_bench_prints_a_table_and_json(server, tmp_path):
    figures = tmp_path / "figures.json"
    load = ["--concurrency", "1,4", "--requests", "4", "--max-tokens", "8", "--health", "--json", figures]
    table = volley("bench", server.url, *load)
    assert "tok/s" in table and "TTFT p50" in table
    one, four = json.loads(figures.read_text())
    assert (one["concurrency"], four["concurrency"]) == (1, 4)
    for row in (one, four):
        assert row["ok"] == 4 and row["errors"] == 0 and row["output_tokens"] == 32
        assert row["output_tok_s"] > 0 and row["ttft_p50_ms"] <= row["ttft_p99_ms"]


def test_chat_answers_one_question(server):
    ask = ["chat", server.url, "--model", MODEL, "--max-tokens", "8", "--temperature", "0"]
    assert volley(*ask, stdin=None, input="What is the capital of France?\n").strip()


def test_the_curl_line_that_serve_prints_works_when_pasted():
    serve = Serve()
    try:
        printed = lambda: re.search(r"^curl .*\n", serve.process.output(), re.MULTILINE)
        line = eventually(printed, "a curl line", [serve.process])[0]
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and '"choices"' in done.stdout, done.stderr
        assert serve.base in serve.process.output()
    finally:
        serve.close()


def test_a_server_that_is_asked_to_go_finishes_its_streams():
    serve = Serve()
    connection = http.client.HTTPConnection("127.0.0.1", serve.port)
    body = {"model": MODEL, "prompt": "On and on", "max_tokens": 300, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    serve.process.ask()
    *_, last, done = [line for line in response.read().split(b"\n\n") if line]
    assert done == b"data: [DONE]"
    assert json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"] == 300
    serve.close()


def test_what_its_users_chose_is_no_warning():
    serve = Serve("--grace", "0")
    body = {"model": MODEL, "prompt": "On and on", "max_tokens": 8000, "ignore_eos": True, "stream": True}

    def stream(**headers):
        connection = http.client.HTTPConnection("127.0.0.1", serve.port)
        headers = {"content-type": "application/json", **headers}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return connection.getresponse()

    def rest(response):
        try:
            return response.read()
        except http.client.IncompleteRead as cut:
            return cut.partial

    assert b"DEADLINE_EXCEEDED" in rest(stream(**{"x-volley-timeout-ms": "300"}))
    running = stream()
    assert running.readline().startswith(b"data: ")
    assert serve.process.end(signal.SIGINT) == 0
    assert b"shutting down" in rest(running)
    assert "WARN" not in serve.process.output(), serve.process.output()


def children(serve):
    tasks = Path(f"/proc/{serve.process.child.pid}/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def test_serve_keeps_its_workers_alive():
    serve = Serve("--workers=2", "--threads=1")
    ask = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    try:
        both = lambda: serve.metric("volley_scheduler_workers") == 2
        eventually(both, "two workers", [serve.process])
        first, _ = children(serve)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(children(serve) - {first}) == 2 and both(), "two workers again", [serve.process])
        eventually(lambda: serve.request("POST", "/v1/completions", ask)[0] == 200, "an answer", [serve.process])
        last = children(serve)
    finally:
        serve.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in last)


def test_a_broken_model_file_is_named(tmp_path):
    [whole] = (HOME / "models").rglob("*.gguf")
    broken = tmp_path / "broken.gguf"
    with whole.open("rb") as source:
        broken.write_bytes(source.read(3_000_000))
    done = subprocess.run(
        [BINARY, "serve", "--listen=127.0.0.1:0", "--model", broken], capture_output=True, text=True
    )
    assert done.returncode == 1 and "broken.gguf" in done.stderr and "panicked" not in done.stderr
