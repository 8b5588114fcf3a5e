"""Whatever dies, hangs or is cut off: 32 mixed streams go on with the very bytes of the undisturbed run."""

import ctypes
import json
import os
import signal
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mixed import Mix, differences
from network import Loopback, Network
from test_resume import resume
from volley import BINARY, RUNNING, Cluster, Process, eventually, free_port

SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000  # of ptrace and waitpid


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

    def scheduler(self):
        return self.part("scheduler", "--step-deadline=8")

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

    def member(self, part):
        """What etcd has of a part: its id, and its lease."""
        members = self.etcd.entries(part.name + "s").items()
        return next((id, lease) for id, (member, lease) in members if json.loads(member)["address"] == part.url)

    def schedulers(self):
        """The one with one worker, and the one with two."""
        return sorted(self.all("scheduler"), key=lambda one: self.of("volley_scheduler_workers", [one]))

    def workers_of(self, scheduler):
        id, claims = self.member(scheduler)[0], self.etcd.entries("claims")
        return [one for one in self.all("worker") if claims[self.member(one)[0]][0] == id]

    def moves(self):
        """How often streams have moved, by who moved them."""
        here = {router: self.metric("volley_router_moves_total", [router.admin]) for router in self.all("router")}
        return here | {one: self.metric("volley_scheduler_moves_total", [one.admin]) for one in self.all("scheduler")}

    def moved(self, before):
        return any(moves > before.get(part, 0) for part, moves in self.moves().items())

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


@pytest.fixture(autouse=True)
def restored(full, undisturbed):
    """Before a test and after it the cluster is whole, and holds nothing of anyone's."""
    full.complete()
    yield
    full.complete()


def streams_stay_exact(full, undisturbed, strike):
    """All streams are under way when it strikes, and say what they say undisturbed; some had to move."""
    mix = full.mix().under_way()
    before = full.moves()
    strike()
    assert not differences(mix.results(), undisturbed)
    eventually(lambda: full.moved(before), "moved", full.parts, seconds=5)


@contextmanager
def hanging(part):
    part.child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        part.child.send_signal(signal.SIGCONT)


@contextmanager
def hanging_steps(worker):
    """Stops the thread that runs steps, as a debugger does; the process goes on, and answers pings."""
    tasks = Path(f"/proc/{worker.child.pid}/task")
    thread = next(int(task.name) for task in tasks.iterdir() if (task / "comm").read_text() == "volley-step\n")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    for request in SEIZE, INTERRUPT:
        if libc.ptrace(request, thread, None, None):
            pytest.skip(f"may not trace: {os.strerror(ctypes.get_errno())}")
    os.waitpid(thread, WALL)
    try:
        yield
    finally:
        libc.ptrace(DETACH, thread, None, None)


@contextmanager
def cut(full, one, other):
    if isinstance(full.network, Loopback):
        pytest.skip("needs network namespaces: root, and iproute2")
    full.network.cut(one.host, other.host)
    try:
        yield
    finally:
        full.network.mend(one.host, other.host)


# --- Deaths -------------------------------------------------------------------------------------------------


def test_a_worker_dies(full, undisturbed):
    streams_stay_exact(full, undisturbed, lambda: full.kill(full.all("worker")[0]))


def test_a_scheduler_dies(full, undisturbed):
    streams_stay_exact(full, undisturbed, lambda: full.kill(full.schedulers()[1]))


@pytest.mark.full
def test_a_scheduler_and_the_only_worker_of_the_other_die(full, undisturbed):
    small, large = full.schedulers()

    def strike():
        full.kill(large)
        full.kill(full.workers_of(small)[0])

    streams_stay_exact(full, undisturbed, strike)


def test_etcd_dies_and_comes_back_and_meanwhile_a_worker_dies(full, undisturbed):
    def strike():
        full.etcd.kill()
        full.kill(full.all("worker")[0])
        full.etcd.start()

    streams_stay_exact(full, undisturbed, strike)


def test_a_router_dies_and_its_streams_go_on_from_the_other(full, undisturbed):
    dying, other = full.all("router")
    mix = Mix([dying.url, other.url], lambda url, *ask: resume.events([url, other.url], *ask)).under_way()
    full.kill(dying)
    assert not differences(mix.results(), undisturbed)


def test_a_scheduler_that_is_asked_to_go_hands_its_streams_over(full, undisturbed):
    def strike():
        leaving = full.schedulers()[1]
        full.gone(leaving)
        assert leaving.child.returncode == 0

    streams_stay_exact(full, undisturbed, strike)


def test_the_benchmark_goes_on_at_another_router(full, tmp_path):
    def bench(*urls, meanwhile=lambda: None):
        process = Process("bench", BINARY, "bench", *urls, *"-c 8 -n 8 --max-tokens 100 --seed 1".split(),
                          "--json", tmp_path / "figures.json")  # fmt: skip
        meanwhile()
        RUNNING.remove(process)
        assert process.child.wait(120) == 0, process.output()
        return json.loads((tmp_path / "figures.json").read_text())[0]

    dying, other = full.all("router")

    def kill():
        before = full.metric("volley_router_tokens_total", [dying.admin])
        told = lambda: full.metric("volley_router_tokens_total", [dying.admin]) > before + 50  # noqa: E731
        eventually(told, "streams under way", full.parts)
        full.kill(dying)

    undisturbed = bench(other.url)
    figures = bench(dying.url, other.url, meanwhile=kill)
    assert (figures["ok"], figures["errors"]) == (8, 0) and figures["resumed"] > 0, figures
    assert figures["text_sha256"] == undisturbed["text_sha256"]


# --- Hangs --------------------------------------------------------------------------------------------------


def test_a_worker_hangs(full, undisturbed):
    with ExitStack() as until:
        streams_stay_exact(full, undisturbed, lambda: until.enter_context(hanging(full.all("worker")[0])))


@pytest.mark.full
def test_the_steps_of_a_worker_hang(full, undisturbed):
    with ExitStack() as until:
        streams_stay_exact(full, undisturbed, lambda: until.enter_context(hanging_steps(full.all("worker")[0])))


def test_a_scheduler_hangs(full, undisturbed):
    stopped, other = full.schedulers()
    with ExitStack() as until:
        mix = full.mix().under_way()
        until.enter_context(hanging(stopped))
        assert not differences(mix.results(), undisturbed)
        eventually(lambda: full.of("volley_scheduler_workers", [other]) == [3], "taken over", [other])


# --- Cuts: packets are lost, in both directions, and nobody is told ------------------------------------------


def test_a_scheduler_is_cut_off_from_etcd(full, undisturbed):
    lonely, other = full.schedulers()
    with ExitStack() as until:

        def strike():
            until.enter_context(cut(full, lonely, full.etcd))
            full.etcd.expire(full.member(lonely)[1])

        streams_stay_exact(full, undisturbed, strike)
        assert full.of("volley_scheduler_workers", [lonely, other]) == [0, 3]
        assert "superseded" in lonely.output(), "its workers told it that they obey another"


@pytest.mark.full
def test_a_scheduler_is_cut_off_from_a_worker(full, undisturbed):
    scheduler = full.schedulers()[0]
    worker = full.workers_of(scheduler)[0]
    with ExitStack() as until:
        streams_stay_exact(full, undisturbed, lambda: until.enter_context(cut(full, scheduler, worker)))


def test_a_router_is_cut_off_from_a_scheduler(full, undisturbed):
    router, scheduler = full.all("router")[0], full.schedulers()[1]
    with ExitStack() as until:
        streams_stay_exact(full, undisturbed, lambda: until.enter_context(cut(full, router, scheduler)))
