"""Runs the built binary in its two forms, `serve` and separate processes with etcd, on free loopback ports."""

import base64
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from network import Loopback

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
BINARY = TARGET / "release/volley"
HOME = TARGET / "e2e/home"  # VOLLEY_HOME: the model is downloaded once, however often the tests run
LOGS = TARGET / "e2e/logs"
NODE = TARGET / "e2e/python/bin/node"

MODEL = "accounts/fireworks/models/smollm2-135m-instruct"
# The models of the original page, so that its examples run verbatim.
ALIASES = {
    f"accounts/fireworks/models/{name}": "smollm2-135m-instruct"
    for name in ("llama-v2-7b", "llama-v2-7b-chat", "starcoder-16b-w8a16")
}
ALIAS_FLAGS = [f"--alias={alias}={model}" for alias, model in ALIASES.items()]

PORTS = itertools.islice(itertools.cycle(range(10_000, 32_000)), os.getpid() * 97 % 22_000, None)
RUNNING = []  # every live process, for the report of a failing test


def free_port():
    """A port that nobody listens at and that no outgoing connection is given meanwhile: it lies below the range from
    which the kernel takes those. Each is handed out once; runs side by side begin at different ones."""
    for port in PORTS:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass  # in use
    raise AssertionError("no free port")


def eventually(condition, what, processes=(), seconds=60):
    """Waits until `condition()` is true; fails at once when one of `processes` ends."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except OSError:
            pass  # nobody listens yet
        assert time.monotonic() < deadline, f"after {seconds} s: not {what}"
        for process in processes or RUNNING[-1:]:
            process.pause()


def spent(usage):
    """Usage apart from what the prefix cache had of the prompt, which depends on what was asked before."""
    return {name: count for name, count in dict(usage).items() if name != "prompt_tokens_details"}


class Process:
    """A process whose output goes to a log that a failing test shows."""

    def __init__(self, name, *command, env=None):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.name, self.command = name, [str(part) for part in command]
        self.env = {**os.environ, "VOLLEY_HOME": str(HOME), **(env or {})}
        self.log = tempfile.NamedTemporaryFile("w+b", dir=LOGS, prefix=f"{name}-", suffix=".log", delete=False)
        self.start()

    def start(self):
        self.child = subprocess.Popen(
            self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT
        )
        self.asked = False
        RUNNING.append(self)

    def ask(self):
        """Asks it to go, once: a second signal means at once."""
        if not self.asked:
            self.asked = True
            self.child.terminate()

    def pause(self):
        """Gives the process a moment; fails if it ends instead."""
        try:
            code = self.child.wait(0.02)
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(f"{self.name} ended with {code}:\n{self.output()}")

    def output(self):
        return Path(self.log.name).read_text(errors="replace")

    def end(self, how=signal.SIGTERM, seconds=30):
        """Ends it and returns its exit status; what doesn't go when asked is killed, and that is a failure."""
        if self in RUNNING:
            RUNNING.remove(self)
        self.ask() if how is signal.SIGTERM else self.child.send_signal(how)
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"{self.name} was still there {seconds} s after {how.name}:\n{self.output()}")

    def kill(self):
        self.end(signal.SIGKILL)


class Server:
    """Something that answers the API at `url`; `admin` lists the ports that serve metrics, `hosts` has the addresses
    of those that are not on the loopback."""

    def __init__(self, port, admin=()):
        self.port, self.admin, self.hosts = port, [port, *admin], {}
        self.url = f"http://127.0.0.1:{port}"
        self.base = f"{self.url}/inference/v1"

    def request(self, method, path, body=None, headers=None, port=None):
        """(status, headers, body); a JSON body is parsed, one given as a value is sent as JSON."""
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
        port = port or self.port
        connection = http.client.HTTPConnection(self.hosts.get(port, "127.0.0.1"), port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.headers.get("content-type", "").startswith("application/json"):
            content = json.loads(content) if content else content
        return response.status, response.headers, content

    def post(self, path, body):
        status, _, answer = self.request("POST", f"/inference/v1/{path}", body)
        assert status == 200, answer
        return answer

    def ready(self):
        return self.request("GET", "/ready")[0] == 200

    def metric(self, name, ports=None):
        """The sum of a metric over its labels and over the processes."""
        total = 0.0
        for port in ports or self.admin:
            status, _, text = self.request("GET", "/metrics", port=port)
            assert status == 200
            total += sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", text.decode(), re.MULTILINE)))
        return total


class Serve(Server):
    """`volley serve`: everything in one process."""

    def __init__(self, *flags, env=None):
        super().__init__(free_port())
        self.process = Process(
            "serve", BINARY, "serve", "--listen", f"127.0.0.1:{self.port}", *ALIAS_FLAGS, *flags, env=env
        )
        eventually(self.ready, "ready", [self.process], 300)

    def close(self):
        status = self.process.end()
        assert status == 0, status


class Etcd(Process):
    """A real etcd with one member; starting it again finds its data."""

    def __init__(self, host=Loopback().host()):
        self.data = tempfile.TemporaryDirectory(prefix="volley-etcd-")  # 123 MB; goes with this object
        self.host, self.client, peer = host, free_port(), free_port()
        self.url, peers = (f"http://{host.ip}:{port}" for port in (self.client, peer))
        super().__init__(
            "etcd", *host.enter, "etcd", "--data-dir", self.data.name,
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--initial-cluster", f"default={peers}", "--logger", "zap",
        )  # fmt: skip

    def start(self):
        super().start()
        eventually(lambda: self.ask("GET", "/health")[0] == 200, "healthy", [self])

    def ask(self, method, path, body=None):
        server = Server(self.client)
        server.hosts[self.client] = self.host.ip
        return server.request(method, path, body)

    def entries(self, folder):
        """What Volley keeps in a folder: values and leases, by name."""
        name = lambda text: base64.b64encode(text.encode()).decode()  # noqa: E731
        asked = {"key": name(f"/volley/{folder}/"), "range_end": name(f"/volley/{folder}0")}
        found = self.ask("POST", "/v3/kv/range", asked)[2].get("kvs", [])
        read = lambda text: base64.b64decode(text).decode()  # noqa: E731
        return {read(kv["key"]).split("/")[-1]: (read(kv["value"]), kv["lease"]) for kv in found}

    def expire(self, lease):
        """Ends a lease, as if its time were over."""
        assert self.ask("POST", "/v3/lease/revoke", {"ID": lease})[0] == 200


class Cluster(Server):
    """Routers, schedulers and workers as separate processes that find each other through etcd."""

    def __init__(self, network=Loopback()):
        super().__init__(free_port())
        self.network, self.etcd, self.parts = network, Etcd(network.host()), []

    def part(self, role, *flags):
        host, port, admin = self.network.host(), free_port(), free_port()
        listen = ["--admin-listen", f"{host.ip}:{admin}"]
        if role == "router":
            port, listen = self.port, []
            admin = port
        listen += ["--listen", f"{host.ip}:{port}"]
        process = Process(role, *host.enter, BINARY, role, "--etcd", self.etcd.url, *listen, *flags)
        process.host, process.admin, process.url = host, admin, f"http://{host.ip}:{port}"
        self.hosts[admin] = host.ip
        if admin not in self.admin:
            self.admin.append(admin)
        self.parts.append(process)
        return process

    def router(self, *flags):
        return self.part("router", *ALIAS_FLAGS, *flags)

    def scheduler(self):
        return self.part("scheduler")

    def worker(self, *flags):
        return self.part("worker", "--model", "smollm2-135m-instruct", *flags)

    def gone(self, part, kill=False):
        """Ends a part and forgets its metrics."""
        self.parts.remove(part)
        if part.admin in self.admin:
            self.admin.remove(part.admin)
        part.kill() if kill else part.end()
        self.network.leave(part.host)

    def wait(self, seconds=120):
        eventually(self.ready, "ready", self.parts, seconds)
        return self

    def close(self):
        for part in self.parts:
            part.ask()
        try:
            ends = {part.name: part.end() for part in self.parts}
            assert not any(ends.values()), ends
        finally:
            self.etcd.kill()
