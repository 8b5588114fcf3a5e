"""Starting, and the commands around the server."""

import json
import os
import shutil
import subprocess

from volley import BINARY, HOME, MODEL, Serve


def volley(*arguments):
    done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_servers_that_start_together_download_the_model_once(tmp_path):
    pass


def test_bench_prints_a_table_and_json(server):
    pass


def test_chat_answers_one_question(server):
    pass
