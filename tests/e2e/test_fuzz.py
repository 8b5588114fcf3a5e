"""Requests that nobody wrote: from the served OpenAPI document, and almost good ones. No 5xx, no hang, no crash.

Both run longer by hand: `tests/bench/fuzz SECONDS`."""

import json
import os
import subprocess

import pytest

from conftest import router
from volley import MODEL, TARGET

SCHEMATHESIS = TARGET / "e2e/python/bin/schemathesis"
SIMULATED = TARGET / "release/examples/simulated"


def schemathesis(server, *options):
    """Runs schemathesis over every operation, with requests that are valid by the document and requests that aren't."""
    command = [SCHEMATHESIS, "run", f"{server.url}/openapi.json", "--url", server.url, "--checks", "not_a_server_error",
               "--request-timeout", "60", "--suppress-health-check", "all", "--no-color", *options]  # fmt: skip
    env = {**os.environ, "COLUMNS": "120"}
    return subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, cwd=TARGET)


def almost(server, seconds, seed=1, connections=8):
    """Sends almost good bodies to a router that has a simulated scheduler behind it; gives the figures."""
    flags = {"etcd": server.etcd.url, "router": f"127.0.0.1:{server.port}", "pid": server.parts[0].child.pid,
             "streams": connections, "seconds": seconds, "seed": seed}  # fmt: skip
    command = [SIMULATED, "fuzz", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + server.parts[0].output()[-4000:]
    return json.loads(done.stdout)


@pytest.fixture
def lone():
    running = router()
    yield running
    running.close()


def test_what_the_document_describes_never_ends_in_a_server_error(server):
    done = schemathesis(server, "--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.post("completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 1})


def test_almost_good_bodies_are_refused_or_served(lone):
    figures = almost(lone, seconds=10)
    assert figures["statuses"]["200"] and figures["statuses"]["400"], figures
    assert figures["peak_mib"] < 1024, figures
