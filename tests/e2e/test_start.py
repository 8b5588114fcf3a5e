"""Starting, and the commands around the server."""

import json
import subprocess

from volley import BINARY, MODEL


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
