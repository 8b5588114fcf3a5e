"""Kills one of two workers on the device while it streams: what clients hear must be the bytes of the run in which
nothing was killed, and of a stream that is alone.

  tests/gpu/run failover
"""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoints
import server
from stage import run

STREAMS = 16
TOKENS = 1024  # enough of them that the kill strikes in the middle
ALONE = 3  # streams that are asked for by themselves, too
HEARD = 8  # events that every stream has brought when a worker is killed
BACK = 120  # seconds in which the dead worker's place must be taken


def children(parent):
    """The processes that a process started, by id."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            # After the name, which may hold anything: state, parent.
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(entry.name))
        except OSError:
            pass  # ended meanwhile
    return sorted(found)


def prompts():
    words = "The old clock in the hall began to strike and everyone in the house stood still to hear it".split()
    return [" ".join(words[n:] + words[:n]) for n in range(STREAMS)]


def fields(number):
    """Every other stream draws its tokens."""
    return {"temperature": 1, "seed": number} if number % 2 else {}


def streams(serving, strike=lambda: None):
    """(all texts, of streams side by side; how many ran when each had brought something; what `strike` says, which was
    called then)"""
    heard, lock = [0] * STREAMS, threading.Lock()
    ready = threading.Event()

    def hear(number):
        with lock:
            heard[number] += 1
            if min(heard) >= HEARD:
                ready.set()

    with ThreadPoolExecutor(STREAMS + 1) as pool:
        asked = [
            pool.submit(serving.stream, prompt, TOKENS, lambda number=number: hear(number), **fields(number))
            for number, prompt in enumerate(prompts())
        ]
        while not ready.wait(0.05) and not all(one.done() for one in asked):
            pass
        running = sum(not one.done() for one in asked)
        struck = pool.submit(strike)
        return [one.result() for one in asked], running, struck.result()


def kill(serving, worker):
    """Kills it; seconds until another has its place, None if none ever has."""
    os.kill(worker, signal.SIGKILL)
    started = time.monotonic()
    while time.monotonic() < started + BACK:
        there = children(serving.process.pid)
        if len(there) == 2 and worker not in there and serving.metrics().get("volley_scheduler_workers") == 2:
            return time.monotonic() - started
        time.sleep(0.05)
    return None


def body(stage):
    model = checkpoints.directory(stage, "1b")
    flags = ["--workers", 2, "--deterministic", "--max-sequences", STREAMS, "--speculation", "off"]
    flags += ["--prefix-cache", "off"]
    with server.volley(stage, model, *flags) as serving:
        undisturbed, *_ = streams(serving)
        alone = [serving.stream(prompt, TOKENS, **fields(n)) for n, prompt in enumerate(prompts()[:ALONE])]
        workers = children(serving.process.pid)
        if len(workers) != 2:
            raise RuntimeError(f"{len(workers)} processes under volley serve, not two workers: {workers}")
        before = serving.metrics()
        disturbed, running, seconds = streams(serving, lambda: kill(serving, workers[0]))
        moved = serving.metrics().get("volley_scheduler_moves_total", 0) - before.get("volley_scheduler_moves_total", 0)
        other = sum(one != two for one, two in zip(undisturbed, disturbed))
        stage.row(
            f"kill -9 of one of two workers on the device, {STREAMS} streams of {TOKENS} tokens, --deterministic",
            **{"streams running then": running, "moved": int(moved), "other bytes": other},
            **{f"other bytes of {ALONE} alone": sum(one != two for one, two in zip(undisturbed, alone))},
            **{"worker is back after, s": seconds},
        )
        if undisturbed[:ALONE] != alone:
            stage.fail("a stream has other bytes alone than beside others")
        if not moved:
            stage.fail("nothing moved: the kill struck no running stream")
        if other:
            stage.fail(f"{other} of {STREAMS} streams have other bytes than in the undisturbed run")
        if seconds is None:
            stage.fail(f"after {BACK} s there was no second worker again")


if __name__ == "__main__":
    run("failover", body)
