"""Two hosts on this machine: network namespaces that only a cable joins, which can be cut."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace with a loopback interface and one end of the cable."""

    name: str
    interface: str
    """Name of its end of the cable."""
    address: str

    def command(self, *words: object) -> list[str]:
        """Return the command that runs `words` on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def cut(self) -> None:
        """Cut the cable at this host: what either sends gets lost, and nobody is told."""
        _ip("-n", self.name, "link", "set", self.interface, "down")

    def mend(self) -> None:
        """Join the cable again."""
        _ip("-n", self.name, "link", "set", self.interface, "up")

    def retry(self, times: int) -> None:
        """Have the kernel send so many times what is not answered, and then end the connection.

        7 times take 51 s, and 15 times, its default, about 15 minutes.
        """
        write = f"echo {times} > /proc/sys/net/ipv4/tcp_retries2"
        subprocess.run(self.command("sh", "-c", write), check=True, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts, for as long as the context is open. Skips the test where that cannot be done."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces take `ip`, of the package iproute2")
    tag = f"sf{os.getpid() % 100_000}"
    hosts = [Host(f"{tag}-{number}", f"{tag}v{number}", f"10.213.7.{number}") for number in (1, 2)]
    made: list[Host] = []
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.name)
                made.append(host)
            first, second = hosts
            ends: Sequence[str] = ("peer", "name", second.interface, "netns", second.name)
            _ip("-n", first.name, "link", "add", first.interface, "type", "veth", *ends)
            for host in hosts:
                _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
                _ip("-n", host.name, "link", "set", "lo", "up")
                host.mend()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces: `{' '.join(error.cmd)}` says {error.stderr.strip()}")
        yield first, second
    finally:
        for host in made:
            _ip("netns", "delete", host.name)
