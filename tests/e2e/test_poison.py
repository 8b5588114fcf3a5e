"""A request that kills every worker that runs it fails, and costs its neighbours nothing."""

from concurrent.futures import ThreadPoolExecutor

from test_moves import STREAMS, all_under_way, stream
from volley import MODEL, Serve, eventually

POISON = [4242, 17, 4242, 99, 4242]


def test_a_request_that_kills_workers_takes_two_with_it_and_one_alone():
    serve = Serve("--workers=3", "--threads=1", env={"VOLLEY_TEST_ABORT_ON_TOKENS": ",".join(map(str, POISON))})
    try:
        eventually(lambda: serve.metric("volley_scheduler_workers") == 3, "three workers", [serve.process])
        alone = [stream(serve, i, tokens=150) for i in range(STREAMS)]
        with ThreadPoolExecutor(STREAMS) as pool:
            running = all_under_way(pool, serve, tokens=150)
            ask = {"model": MODEL, "prompt": POISON, "max_tokens": 20}
            status, _, answer = serve.request("POST", "/v1/completions", ask)
            assert status == 503 and "workers die of this request" in answer["error"]["message"], answer
            assert [one.result() for one in running] == alone
        assert serve.process.output().count("a worker process died") == 3
        eventually(lambda: serve.metric("volley_scheduler_moves_total") > 0, "moves", [serve.process])
        eventually(lambda: serve.metric("volley_scheduler_workers") == 3, "three workers again", [serve.process])
    finally:
        serve.close()
