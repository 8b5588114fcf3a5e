"""The examples of the original page (`page/`) run as they stand there, but for the address."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from volley import NODE, TARGET

PAGE = Path(__file__).parent / "page"
OLD_PYTHON = TARGET / "e2e/openai-0.28.1/bin/python"
NODE_MODULES = TARGET / "e2e/node"


@pytest.fixture
def run(server, tmp_path):
    def run(example, *command, where=tmp_path):
        text = (PAGE / example).read_text()
        assert "https://api.fireworks.ai" in text
        script = where / example
        script.write_text(text.replace("https://api.fireworks.ai", server.url))
        env = {**os.environ, "PYTHON": str(OLD_PYTHON), "API_KEY": "key"}
        done = subprocess.run([*command, script], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("example", ["globals.py", "one_request.py"])
def test_the_old_python_sdk_completes(run, example):
    assert run(example, OLD_PYTHON).strip()


def test_the_old_python_sdk_takes_its_address_from_the_environment(run):
    assert run("environment.sh", "bash").strip()


def one_usage(values):
    """The page's rule: null on every chunk but the very last."""
    *before, last = values
    assert before and all(value is None for value in before)
    assert last["total_tokens"] == last["prompt_tokens"] + last["completion_tokens"]
    return last


def test_the_old_python_sdk_streams_with_usage_in_the_last_chunk(run):
    chunks = re.split(r"\n(?=null|None|\{)", run("usage.py", OLD_PYTHON).strip())
    usage = one_usage([None if chunk == "None" else json.loads(chunk) for chunk in chunks])
    assert 0 < usage["completion_tokens"] <= 16


def test_curl_streams_with_usage_in_the_last_chunk(run):
    *events, done, rest = run("usage.sh", "bash").split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert one_usage([chunk["usage"] for chunk in chunks])["prompt_tokens"] == 7
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["usage"]] in (["stop"], ["length"])
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks[:-1])
    assert "".join(c["choices"][0]["text"] for c in chunks)


def test_typescript_streams_with_usage_in_the_last_chunk(run):
    output = run("usage.ts", NODE, where=NODE_MODULES)
    before, last = output.split("{", 1)
    assert set(before.split()) == {"null"}
    assert re.search(r"completion_tokens: \d+", last)
