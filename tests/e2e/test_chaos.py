"""Whatever dies, hangs or is cut off: 32 mixed streams go on with the very bytes of the undisturbed run."""

import pytest

from mixed import Mix
from network import Loopback, Network
from volley import Cluster, eventually, free_port


class Full(Cluster):
    """Two routers, two schedulers, three workers and etcd; a test restores what it took."""

    def __init__(self, network):
        super().__init__(network)
        self.admin.clear()  # each router has a port of its own
        for start in self.router, self.scheduler, self.worker:
            start()
        self.complete()

    def router(self):
        self.port = free_port()
        return super().router()

    def worker(self):
        return super().worker("--threads=1")

    def all(self, role):
        return [part for part in self.parts if part.name == role]

    def of(self, metric, parts):
        return [self.metric(metric, [part.admin]) for part in parts]

    def kill(self, part):
        self.gone(part, kill=True)

    def complete(self):
        """Starts what is missing, and waits until every part does its share and has nothing left of the test before."""
        for role, count in ("router", 2), ("scheduler", 2), ("worker", 3):
            for _ in range(count - len(self.all(role))):
                getattr(self, role)()
        eventually(self.is_complete, "two links per router, all workers shared out", self.parts)
        eventually(self.is_idle, "nothing left", self.parts)

    def is_complete(self):
        linked = self.of("volley_router_links", self.all("router")) == [2, 2]
        return linked and sorted(self.of("volley_scheduler_workers", self.all("scheduler"))) == [1, 2]

    def is_idle(self):
        """No request, sequence, slot or block is held by anyone."""
        free, total = (self.metric(f"volley_kv_blocks_{which}") for which in ("free", "total"))
        held = "volley_router_active_requests", "volley_scheduler_running", "volley_scheduler_waiting", "volley_worker_slots_in_use"
        return free == total and not any(map(self.metric, held))

    def mix(self):
        return Mix([router.url for router in self.all("router")])


@pytest.fixture(scope="module")
def network():
    try:
        made = Network()
    except OSError:
        yield Loopback()
        return
    yield made
    made.close()


@pytest.fixture(scope="module")
def full(network):
    running = Full(network)
    yield running
    running.close()


@pytest.fixture(scope="module")
def undisturbed(full):
    """What each stream says when nothing happens."""
    return full.mix().under_way().results()


@pytest.fixture
def disturbed(full, undisturbed):
    """The cluster, whole and idle, before and after."""
    full.complete()
    yield full
    full.complete()


def test_a_worker_dies(disturbed, undisturbed):
    mix = disturbed.mix().under_way()
    disturbed.kill(disturbed.all("worker")[0])
    assert mix.results() == undisturbed
