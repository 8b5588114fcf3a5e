"""Clients that need an environment of their own: versions from before, and an evaluation harness."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from volley import HOME, MODEL, TARGET

CLIENTS = Path(__file__).parent / "clients"


def run(server, environment, script, *arguments):
    python = TARGET / "e2e" / environment / "bin/python"
    env = {**os.environ, "VOLLEY_BASE": server.base, "VOLLEY_MODEL": MODEL, "HF_HUB_OFFLINE": "1"}
    command = [python, CLIENTS / script, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_old_python_sdk(server):
    run(server, "openai-0.28.1", "openai_old.py")


@pytest.mark.full
def test_the_python_sdk_before_that(server):
    run(server, "openai-0.27.8", "openai_old.py")


@pytest.mark.full
def test_fireworks_old_client(server):
    run(server, "fireworks-0.15.15", "fireworks_old.py")


@pytest.mark.full
def test_lm_eval_scores_choices(server, client, tmp_path):
    [gguf] = (HOME / "models").rglob("*.gguf")
    result = json.loads(run(server, "lm-eval", "lm_eval_local.py", tmp_path, gguf).splitlines()[-1])
    assert result["acc"] == 1.0
    # Its sums are the log-probabilities of the choices' own tokens.
    echo = client.completions.with_raw_response.create(
        model=MODEL, prompt="The capital of France is Paris", max_tokens=0, echo=True, logprobs=1
    )
    last = json.loads(echo.text)["choices"][0]["logprobs"]["token_logprobs"][-1]
    assert math.isclose(result["scores"][0][0], last, rel_tol=1e-3)
