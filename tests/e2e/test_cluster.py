"""Parts start in any order, come and go; the service goes on."""

import pytest

from volley import MODEL, eventually

ORDERS = ["router scheduler worker", "worker router scheduler", "scheduler worker router"]


def complete(cluster):
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    status, _, answer = cluster.request("POST", "/v1/completions", body)
    return status == 200 and answer["choices"][0]["text"]


def serving(cluster, seconds=30):
    assert eventually(lambda: complete(cluster), "a completion", cluster.parts, seconds).startswith(" Paris.")


@pytest.fixture
def running(cluster):
    """A cluster of one router, one scheduler and one worker, in service."""
    cluster.first_worker, cluster.first_scheduler = cluster.worker(), cluster.scheduler()
    cluster.router()
    return cluster.wait()


@pytest.mark.parametrize("order", ORDERS)
def test_parts_may_start_in_any_order(cluster, order):
    for role in order.split():
        getattr(cluster, role)()
    serving(cluster.wait())


def test_a_model_is_not_ready_rather_than_unknown_before_the_first_worker(cluster):
    cluster.scheduler(), cluster.router()
    ask = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    linked = lambda: cluster.metric("volley_router_links") == 1
    eventually(linked, "a link to the scheduler", cluster.parts)
    status, headers, answer = cluster.request("POST", "/inference/v1/completions", ask)
    assert (status, answer["error"]["code"]) == (503, "DEPLOYMENT_SCALING_UP") and "retry-after" in headers, answer


def test_etcd_may_start_last(cluster):
    cluster.etcd.kill()
    cluster.router(), cluster.scheduler(), cluster.worker()
    cluster.etcd.start()
    serving(cluster.wait())


def test_a_killed_worker_is_replaced_by_one_that_joined_later(running):
    serving(running)
    second = running.worker()
    eventually(lambda: running.metric("volley_scheduler_workers") == 2, "two workers claimed", running.parts)
    running.gone(running.first_worker, kill=True)
    serving(running)
    running.gone(second)
    eventually(lambda: not running.ready(), "unready without a worker", running.parts)
    status, headers, answer = running.request("POST", "/v1/completions", {"model": MODEL, "prompt": "x"})
    assert status == 503 and 1 <= float(headers["retry-after"]) <= 60 and answer["error"]["message"]
    running.worker()
    serving(running.wait())


def test_a_new_scheduler_takes_over_from_a_killed_one(running):
    running.gone(running.first_scheduler, kill=True)
    running.scheduler()
    serving(running)


def test_a_scheduler_that_is_asked_to_go_hands_its_workers_over(running):
    running.scheduler()
    running.gone(running.first_scheduler)
    serving(running)


def test_the_service_goes_on_without_etcd_and_changes_again_with_it(running):
    running.etcd.kill()
    for _ in range(3):
        assert complete(running)
    running.etcd.start()
    assert complete(running)
    running.worker()
    eventually(lambda: running.metric("volley_scheduler_workers") == 2, "the late worker claimed", running.parts)
    running.gone(running.first_worker, kill=True)
    serving(running)
