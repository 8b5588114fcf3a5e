"""The newest Node SDK, streaming and not: `sdk.test.ts` holds the tests themselves."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from volley import MODEL, NODE, TARGET


def run_node(server, where):
    script = shutil.copy(Path(__file__).parent / "sdk.test.ts", where)
    env = {**os.environ, "VOLLEY_BASE": server.base, "VOLLEY_MODEL": MODEL}
    done = subprocess.run([NODE, "--test", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_newest_node_sdk(server):
    run_node(server, TARGET / "e2e/node")


@pytest.mark.full
def test_the_node_sdk_of_its_fourth_version(server):
    run_node(server, TARGET / "e2e/node-4")
