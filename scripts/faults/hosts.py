"""Two hosts on one machine: network namespaces with a line between them that can be cut. Needs root, and `ip`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_NETWORK = "10.213.{number}.{host}"


def available() -> bool:
    """Whether namespaces can be made here."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("ip") is not None


@dataclass(frozen=True)
class Hosts:
    """Two namespaces, `first` and `second`, with an address each."""

    first: str
    second: str
    addresses: tuple[str, str]

    def cut(self) -> None:
        """Nothing goes from one to the other any more; neither is told."""
        _ip("netns", "exec", self.second, "ip", "link", "set", "line", "down")

    def mend(self) -> None:
        """The line is back."""
        _raise_line(self.second)

    def kill_second(self) -> None:
        """Kill every process on the second host."""
        listed = subprocess.run(["ip", "netns", "pids", self.second], check=True, capture_output=True, text=True)
        for number in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Both hosts, with their line; everything is removed at the end."""
    number = os.getpid() % 200 + 1
    names = [f"shoal-{os.getpid()}-{host}" for host in ("a", "b")]
    addresses = [_NETWORK.format(number=number, host=host) for host in (1, 2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "line", "netns", names[0], "type", "veth", "peer", "name", "line", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("netns", "exec", name, "ip", "addr", "add", f"{address}/24", "dev", "line")
            _ip("netns", "exec", name, "ip", "link", "set", "lo", "up")
            _raise_line(name)
        yield Hosts(names[0], names[1], (addresses[0], addresses[1]))
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def _raise_line(host: str) -> None:
    _ip("netns", "exec", host, "ip", "link", "set", "line", "up")
    # By its way to the world outside a process finds out which address it has.
    _ip("netns", "exec", host, "ip", "route", "add", "default", "dev", "line")


def start_node(host: str, *options: str, room: str = "") -> subprocess.Popen[bytes]:
    """A node of Ray.

    Args:
        host: the namespace; empty for none.
        options: of `ray start`.
        room: where it joins a head, its files are on a disk of its own of this size, like `64m`.
    """
    command = [str(Path(sys.executable).with_name("ray")), "start", *options, "--block"]
    if room:
        mount = f"mkdir -p /tmp/ray && mount -t tmpfs -o size={room} tmpfs /tmp/ray"
        # Ray gives up where the head is not there yet.
        start = f'{mount} && until "$@"; do sleep 1; done'
        command = ["unshare", "--mount", "sh", "-c", start, "sh", *command]
    return subprocess.Popen(
        inside(host, command) if host else command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_node(node: subprocess.Popen[bytes]) -> None:
    """Kill a node and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()
    time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def inside(host: str, command: Sequence[str]) -> list[str]:
    """The command as it runs in a namespace."""
    return ["ip", "netns", "exec", host, *command]
