"""Where the parts of a cluster run: all on the loopback, or each on a host of its own whose wires can be cut."""

import itertools
import os
import subprocess
from dataclasses import dataclass

NOBODY = "02:00:00:00:00:00"  # a hardware address that no host has


@dataclass(frozen=True)
class Host:
    ip: str
    name: str = ""

    @property
    def enter(self):
        """What begins the command line of a process that is to run there."""
        return ["nsenter", f"--net=/run/netns/{self.name}"] if self.name else []


class Loopback:
    """One host for all."""

    def host(self):
        return Host("127.0.0.1")

    def leave(self, host):
        pass


class Network:
    """Hosts as network namespaces, joined by a bridge on which the tests are too. Needs root and iproute2."""

    def __init__(self):
        self.name, self.numbers = f"volley{os.getpid()}", itertools.count(2)
        self.subnet = f"198.18.{os.getpid() % 256}"  # of the range that is set aside for tests of networks
        self.hosts = []
        # An address of its own: otherwise it has that of one of its wires, and another when that host leaves.
        ip("link", "add", self.name, "address", "02:00:00:00:00:01", "type", "bridge")
        ip("address", "add", f"{self.subnet}.1/24", "dev", self.name)
        ip("link", "set", self.name, "up")

    def host(self):
        number = next(self.numbers)
        host, wire = Host(f"{self.subnet}.{number}", f"{self.name}-{number}"), f"v{os.getpid()}-{number}"
        ip("netns", "add", host.name)
        self.hosts.append(host)
        ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        ip("link", "set", wire, "master", self.name, "up")
        ip("-n", host.name, "address", "add", f"{host.ip}/24", "dev", "eth0")
        for device in "eth0", "lo":
            ip("-n", host.name, "link", "set", device, "up")
        return host

    def leave(self, host):
        self.hosts.remove(host)
        ip("netns", "delete", host.name)

    def cut(self, one, other):
        """What either sends the other is lost from now on, without a word."""
        for here, there in (one, other), (other, one):
            to = there.ip, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0"
            ip("-n", here.name, "neighbour", "replace", *to)

    def mend(self, one, other):
        for here, there in (one, other), (other, one):
            ip("-n", here.name, "neighbour", "delete", there.ip, "dev", "eth0")

    def close(self):
        for host in list(self.hosts):
            self.leave(host)
        ip("link", "delete", self.name)


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr}")
