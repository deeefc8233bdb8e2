"""Scans by two hosts with a worker each, one of which is cut off, left without room on its disk, and switched off."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hosts import Hosts, end_node, inside, start_node, two_hosts
from watched import Campaign, WatchedWorkers, compared, disturbing, processes, scanned

from shoal.errors import UsageError
from shoal.workers import RayWorkers

_PORT = 6399
_PATIENCE = 120  # seconds that the second node may take to join; all runs together take five times as much at most
_ROOM = "64m"  # of the second host, for the files of Ray


def on_two_hosts(campaign: Campaign) -> list[dict[str, Any]]:
    """Start the cluster, and a process on its first host that runs the scans."""
    with two_hosts() as hosts, tempfile.TemporaryDirectory() as name:
        (here, there), out = hosts.addresses, Path(name) / "results.json"
        address = f"{here}:{_PORT}"
        nodes = [
            start_node(
                hosts.first,
                "--head",
                f"--node-ip-address={here}",
                f"--port={_PORT}",
                "--num-cpus=1",
                "--include-dashboard=false",
            )
        ]
        try:
            join = [f"--address={address}", f"--node-ip-address={there}", "--num-cpus=1"]
            nodes.append(start_node(hosts.second, *join, room=_ROOM))
            request = {"hosts": asdict(hosts), "address": address, "node": nodes[1].pid, "out": str(out)}
            plain = {**asdict(campaign), "expected": None}
            command = [sys.executable, __file__, json.dumps({**request, "campaign": plain})]
            subprocess.run(inside(hosts.first, command), check=False, timeout=5 * _PATIENCE)
            results: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
        finally:
            for node in nodes:
                end_node(node)
    missing = [] if len(results) == len(_FAULTS) else [{"what": "two hosts: the scans ended early", "same": False}]
    return [*results, *missing]


def cut_off(hosts: Hosts, node: int, seconds: float) -> None:
    """The line is cut for a while."""
    hosts.cut()
    time.sleep(seconds)
    hosts.mend()


def fill_disk(hosts: Hosts, node: int, seconds: float) -> None:
    """There is no room left for the files of Ray on the second host; the next run has room again."""
    try:
        with _ballast(node).open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
    except OSError:
        return


def _ballast(node: int) -> Path:
    return Path("/proc", str(node), "root", "tmp", "ray", "ballast")


def switch_off(hosts: Hosts, node: int, seconds: float) -> None:
    """The second host is gone, for good."""
    hosts.kill_second()


_FAULTS: dict[str, Callable[[Hosts, int, float], None]] = {
    "the line between 2 hosts is cut for {seconds:g} s": cut_off,
    "the disk of one of 2 hosts is full": fill_disk,
    "one of 2 hosts dies and does not come back": switch_off,
}


def _run(hosts: Hosts, address: str, node: int, campaign: Campaign, what: str) -> dict[str, Any]:
    """A scan by both, disturbed once both have worked."""
    done = 0

    def disturb(over: threading.Event) -> None:
        nonlocal done
        while not over.wait(0.1):
            if len(processes(folder)) == 2:
                _FAULTS[what](hosts, node, campaign.partition)
                done += 1
                return

    with tempfile.TemporaryDirectory() as name, disturbing(disturb):
        folder = Path(name)
        result = compared(campaign, WatchedWorkers(2, address, folder=folder, pause=campaign.pause))
    if _ballast(node).exists():
        _ballast(node).unlink()
    return {"what": what.format(seconds=campaign.partition), **result, "same": result["same"] and done == 1}


def _await_nodes(address: str) -> None:
    """Wait until a cluster of two CPUs answers."""
    ends = time.monotonic() + _PATIENCE
    while True:
        workers = None
        try:
            workers = RayWorkers(2, address)
            workers.start(lambda task, shared: task)
            return
        except UsageError:
            if time.monotonic() > ends:
                raise
            time.sleep(1)
        finally:
            if workers is not None:
                workers.stop()


def main() -> None:
    """On the first host."""
    request = json.loads(sys.argv[1])
    campaign = Campaign(**request["campaign"])
    campaign = Campaign(**{**asdict(campaign), "expected": scanned(campaign.batches)})
    hosts = Hosts(**request["hosts"])
    _await_nodes(request["address"])
    results = []
    for what in _FAULTS:
        results.append(_run(hosts, request["address"], request["node"], campaign, what))
        Path(request["out"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
