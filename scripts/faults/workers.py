"""Workers that are killed, starved, cut off and left without their head: `python scripts/faults/workers.py --help`.

A scan by Ray workers has to come to the very record of one process, whatever happens to them, and no task whose result
had come back may run again. The results are written as JSON.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from compare import differences, journal, repeated
from hosts import available, end_node, start_node
from on_hosts import on_two_hosts
from watched import Campaign, WatchedWorkers, compared, disturbing, one_cluster, prepare_clusters, processes, scanned

import shoal
from shoal.workers import RayWorkers

_SMALL = Path(__file__).with_name("small.py").resolve()


def killed(count: int, kills: int, campaign: Campaign) -> dict[str, Any]:
    """Workers that are killed at random moments, in as many scans as that takes."""
    chance, done, results = random.Random(campaign.seed + count), 0, []

    def kill(over: threading.Event) -> None:
        nonlocal done
        while done < kills and not over.wait(chance.uniform(0.05, 2 * campaign.pause)):
            alive = processes(folder)
            if alive:
                os.kill(chance.choice(alive), signal.SIGKILL)
                done += 1

    while done < kills:
        with tempfile.TemporaryDirectory() as name, disturbing(kill):
            folder = Path(name)
            results.append(compared(campaign, WatchedWorkers(count, folder=folder, pause=campaign.pause)))
    return {
        "what": f"{count} workers, killed at random moments",
        "kills": done,
        "scans": len(results),
        "same": all(result["same"] for result in results),
        **{
            name: sum(result[name] for result in results) for name in ("tasks", "begun", "begun_for_nothing", "seconds")
        },
    }


def starved(campaign: Campaign) -> dict[str, Any]:
    """One worker can write no file any more, as on a full disk; so it notes nothing either."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workers = WatchedWorkers(2, folder=folder, pause=campaign.pause, starved=True)
        result = compared(campaign, workers)
        hit = (folder / "starved").exists()
    return {
        "what": "one of 2 workers can write no file (a limit)",
        "same": result["same"] and hit,
        "seconds": result["seconds"],
    }


def stopped(campaign: Campaign) -> dict[str, Any]:
    """One worker that answers nobody for a while, as behind a broken line."""

    def stop(over: threading.Event) -> None:
        while not over.wait(0.1):
            alive = processes(folder)
            if alive:
                os.kill(alive[0], signal.SIGSTOP)
                time.sleep(campaign.partition)
                os.kill(alive[0], signal.SIGCONT)
                return

    with tempfile.TemporaryDirectory() as name, disturbing(stop):
        folder = Path(name)
        result = compared(campaign, WatchedWorkers(2, folder=folder, pause=campaign.pause))
    return {"what": f"one of 2 workers stopped for {campaign.partition:g} s", **result}


def headless() -> dict[str, Any]:
    """The head of a cluster dies in the middle of a command, is started again, and so is the command."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        words = ["scan", f"{_SMALL}:network", "digits", "--split", "train", "--batch-size", "8", "--limit", "400"]
        expected = _command(home / "expected", words).wait() == 0
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unused.getsockname()[1]}"
        there = [*words, "--workers", "2", "--ray", address, "--send-code"]
        lines = home / "run" / "progress.jsonl"
        head = _head(address)
        command = _command(home / "run", there)
        while command.poll() is None and len(journal(lines.parent, lines.name)) < 20:
            time.sleep(0.02)
        end_node(head)
        code = command.wait()
        before = journal(lines.parent, lines.name)
        head = _head(address)
        again = _command(home / "run", there).wait()
        end_node(head)
        found = differences(home / "expected", home / "run", in_order=False)
        lost = [*found, *repeated(before, journal(lines.parent, lines.name))]
    return {
        "what": "a head that dies and is started again, with the command",
        "same": expected and again == 0 and not lost,
        "first_exit": code,
        "kept": len(before),
        "lost": lost,
        "seconds": round(time.monotonic() - began, 1),
    }


def _command(out: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shoal", *words, "--seed", "0", "--out", str(out), "--json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _head(address: str) -> subprocess.Popen[bytes]:
    """A head of its own, once it answers."""
    host, _, port = address.partition(":")
    head = start_node(
        "", "--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"
    )
    while head.poll() is None:
        try:
            RayWorkers(2, address)
            return head
        except shoal.errors.UsageError:
            time.sleep(0.2)
    raise SystemExit("the head of the cluster does not start")


def runs(name: str, counts: Sequence[int], campaign: Campaign) -> list[dict[str, Any]]:
    """The runs of one kind of fault."""
    simple: dict[str, Callable[[], dict[str, Any]]] = {
        "starved": lambda: starved(campaign),
        "stopped": lambda: stopped(campaign),
        "headless": headless,
    }
    if name == "killed":
        with one_cluster(max(counts)):  # Ray starts once, not with every scan
            return [killed(count, campaign.kills // len(counts), campaign) for count in counts]
    if name != "hosts":
        return [simple[name]()]
    if available():
        return on_two_hosts(campaign)
    return [simple["starved"](), simple["stopped"]()]


def apart(names: Sequence[str], options: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """The results of several kinds of faults, each in a process of its own, so many at a time."""

    def result(name: str, folder: str) -> list[dict[str, Any]]:
        out = Path(folder) / f"{name}.json"
        command = [sys.executable, __file__, *options, "--only", name, "--out", str(out)]
        code = subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode
        results: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
        return (
            results if results and code in (0, 1) else [*results, {"what": f"{name}: exit code {code}", "same": False}]
        )

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for results in pool.map(result, names, repeat(folder)):
            yield from results


def main() -> None:
    """Carry out the campaign; exit code 1 where a record differs, or a task ran again for nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="over all numbers of workers")
    parser.add_argument("--workers", default="2,4", help="that are killed, separated by commas")
    parser.add_argument("--partition", type=float, default=20.0, help="seconds")
    parser.add_argument("--batches", type=int, default=24, help="mini-batches, a task each")
    parser.add_argument("--pause", type=float, default=0.25, help="seconds that a task takes at least")
    parser.add_argument(
        "--only",
        default="hosts,killed,headless",
        help="kinds of faults; hosts: a line that is cut, a full disk, a host that dies, in network namespaces (root;"
        " else starved and stopped, which are kinds as well)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="kinds at a time; most of hosts is waiting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/worker-faults.json"))
    options = parser.parse_args()
    prepare_clusters()
    names, counts = options.only.split(","), [int(count) for count in options.workers.split(",")]
    began, results = time.monotonic(), []
    if len(names) > 1:
        coming = apart(names, _without(sys.argv[1:], "--only", "--out"), options.jobs)
    else:
        campaign = Campaign(
            options.batches, options.pause, options.partition, options.kills, options.seed, scanned(options.batches)
        )
        coming = iter(runs(names[0], counts, campaign))
    for result in coming:
        results.append(result)
        print(json.dumps(result), file=sys.stderr, flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{time.monotonic() - began:.0f} seconds", file=sys.stderr)
    sys.exit(not all(result["same"] and not result.get("begun_for_nothing") for result in results))


def _without(words: Sequence[str], *options: str) -> list[str]:
    """A command line without these options and their values."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(option)
    return parser.parse_known_args(words)[1]


if __name__ == "__main__":
    main()
