"""A stream whose worker dies goes on elsewhere with the very bytes that it would have had, or says that it can't."""

import http.client
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from test_start import children
from volley import MODEL, Serve, eventually

STREAMS = 4
# A part that lost its worker must not be waited for: a read that takes longer than this is a stall.
STALL = 20


class Broken(Exception):
    """The stream's last event was an error."""


def stream(server, i, under_way=None, tokens=300):
    """The text and the usage of the i-th stream; sets `under_way` when some of it is there."""
    body = {"model": MODEL, "prompt": f"Story {i}: once upon a time", "stream": True, "ignore_eos": True}
    body |= {"max_tokens": tokens, "temperature": 1, "seed": i}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=STALL)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    text, usage, chunks = "", None, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line.removeprefix(b"data: "))
        if "error" in chunk:
            try:
                rest = response.read()
            except http.client.IncompleteRead:
                raise Broken(chunk["error"])
            raise AssertionError(f"the connection was not cut after {chunk}: {rest}")
        text += chunk["choices"][0]["text"]
        usage, chunks = chunk["usage"], chunks + 1
        if under_way and chunks == 10:
            under_way.set()
    connection.close()
    return text, usage


def all_under_way(pool, server, **options):
    """Starts the streams and waits until each has said something."""
    events = [Event() for _ in range(STREAMS)]
    running = [pool.submit(stream, server, i, event, **options) for i, event in enumerate(events)]
    assert all(event.wait(60) for event in events)
    return running


def test_streams_go_on_with_another_schedulers_worker(cluster):
    schedulers = [cluster.scheduler(), cluster.scheduler()]
    cluster.router()
    eventually(lambda: cluster.metric("volley_router_links") == 2, "two links", cluster.parts)
    workers = [cluster.worker("--threads=1"), cluster.worker("--threads=1")]
    on_each = lambda metric: [cluster.metric(metric, [scheduler.admin]) for scheduler in schedulers]
    eventually(lambda: on_each("volley_scheduler_workers") == [1, 1], "a worker each", cluster.parts)
    cluster.wait()
    alone = [stream(cluster, i) for i in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        running = all_under_way(pool, cluster)
        assert min(on_each("volley_scheduler_running")) >= 1, "both workers have streams"
        cluster.gone(workers[0], kill=True)
        # It stays dead until all streams have ended.
        assert [one.result() for one in running] == alone
    assert sorted(on_each("volley_scheduler_workers")) == [0, 1]
    assert cluster.metric("volley_router_moves_total") == cluster.metric("volley_scheduler_handed_back_total") > 0


def test_a_scheduler_that_joins_gets_its_share_of_the_workers_under_load(cluster):
    schedulers = [cluster.scheduler()]
    cluster.router()
    cluster.worker("--threads=1"), cluster.worker("--threads=1")
    at_work = lambda: [cluster.metric("volley_scheduler_workers", [s.admin]) for s in schedulers]
    eventually(lambda: at_work() == [2], "both workers claimed", cluster.parts)
    cluster.wait()
    alone = [stream(cluster, i) for i in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        running = all_under_way(pool, cluster)
        schedulers.append(cluster.scheduler())
        assert [one.result() for one in running] == alone
    eventually(lambda: at_work() == [1, 1], "a worker each", cluster.parts)
    assert [stream(cluster, i) for i in range(STREAMS)] == alone


@pytest.mark.parametrize("ranks", [1, 3])
def test_streams_wait_for_a_worker_process_that_is_restarted(ranks):
    serve = Serve("--workers=2", "--threads=1", f"--tensor-parallel={ranks}")
    try:
        eventually(lambda: serve.metric("volley_scheduler_workers") == 2, "two workers", [serve.process])
        alone = [stream(serve, i) for i in range(STREAMS)]
        with ThreadPoolExecutor(STREAMS) as pool:
            running = all_under_way(pool, serve)
            for worker in children(serve):
                os.kill(worker, signal.SIGKILL)
            assert [one.result() for one in running] == alone
        assert serve.metric("volley_router_moves_total") >= 1
    finally:
        serve.close()


def test_streams_whose_last_worker_stays_dead_end_with_an_error(cluster):
    worker = cluster.worker()
    cluster.scheduler(), cluster.router("--move-deadline=1")
    cluster.wait()
    with ThreadPoolExecutor(STREAMS) as pool:
        running = all_under_way(pool, cluster, tokens=2000)
        cluster.gone(worker, kill=True)
        errors = [one.exception() for one in running]
    for error in errors:
        assert isinstance(error, Broken), error
        assert error.args[0]["code"] == "UNAVAILABLE" and "no worker" in error.args[0]["message"], error
    status, headers, answer = cluster.request("POST", "/v1/completions", {"model": MODEL, "prompt": "x"})
    assert status == 503 and headers["retry-after"], answer
