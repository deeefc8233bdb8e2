"""Workers that are killed, starved, cut off and left without their head: `python scripts/faults/workers.py --help`.

A scan by Ray workers has to come to the very record of one process, whatever happens to them, and no task that was
finished may run again. The results are written as JSON.
"""

import argparse
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compare import differences, journal, repeated
from hosts import Hosts, available, end_node, inside, start_node, two_hosts
from small import network

import shoal
from shoal.workers import RayWorkers

_SMALL = Path(__file__).with_name("small.py").resolve()
_VOLATILE = {"seconds", "created"}
# A line of it for each task that a worker has finished.
_FINISHED = "finished.log"


@dataclass
class Watched:
    """A function of workers that notes where it runs, and what was finished; `pause` makes a task long enough to hit.

    Args:
        function: what the workers run.
        folder: where it notes.
        pause: in seconds.
        starved: one worker can write no file any more.
    """

    function: Callable[[Any, Any], Any]
    folder: Path
    pause: float
    starved: bool

    def __call__(self, task: Any, shared: Any) -> Any:
        """Run a task."""
        (self.folder / str(os.getpid())).touch()
        if self.starved and self._is_first():
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        time.sleep(self.pause)
        result = self.function(task, shared)
        if not self.starved:
            with (self.folder / _FINISHED).open("a") as file:
                file.write(f"{task}\n")
        return result

    def _is_first(self) -> bool:
        """Whether this worker is the one that is starved."""
        try:
            (self.folder / "starved").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass
class WatchedWorkers(RayWorkers):
    """Ray workers that are watched."""

    folder: Path = Path()
    pause: float = 0.0
    starved: bool = False

    def start(self, function: Callable[[Any, Any], Any]) -> None:
        """Give them the function, watched."""
        super().start(Watched(function, self.folder, self.pause, self.starved))


def data(batches: int) -> list[torch.Tensor]:
    """Always the same mini-batches; each is a task."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(batches)]


def scanned(batches: int, workers: Any = None) -> dict[str, Any]:
    """The record of a scan, without what no two runs share."""
    config = shoal.ScanConfig(scores=False, layers=False, workers=workers)
    return shoal.scan(network(), data(batches), config=config).model_dump(exclude=_VOLATILE)


def processes(folder: Path) -> list[int]:
    """The workers that have run a task and are alive."""
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


@contextmanager
def disturbing(disturb: Callable[[threading.Event], None]) -> Iterator[None]:
    """Have something done to the workers in the meantime."""
    over = threading.Event()
    thread = threading.Thread(target=disturb, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def killed(count: int, kills: int, options: argparse.Namespace) -> dict[str, Any]:
    """Workers that are killed at random moments."""
    chance, done = random.Random(options.seed + count), 0

    def kill(over: threading.Event) -> None:
        nonlocal done
        while done < kills and not over.wait(chance.uniform(0.05, 2 * options.pause)):
            alive = processes(folder)
            if alive:
                os.kill(chance.choice(alive), signal.SIGKILL)
                done += 1

    with tempfile.TemporaryDirectory() as name, disturbing(kill):
        folder = Path(name)
        result = _compared(options, WatchedWorkers(count, folder=folder, pause=options.pause), folder)
    return {"what": "killed at random moments", "workers": count, "kills": done, **result}


def starved(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One worker can write no file any more, as on a full disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workers = WatchedWorkers(count, folder=folder, pause=options.pause, starved=True)
        result = _compared(options, workers, folder)
        hit = (folder / "starved").exists()
    return {"what": "one worker that can write no file (a limit, in place of a full disk)", "hit": hit, **result}


def stopped(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One worker that answers nobody for a while, as behind a broken line."""

    def stop(over: threading.Event) -> None:
        while not over.wait(0.1):
            alive = processes(folder)
            if alive:
                os.kill(alive[0], signal.SIGSTOP)
                time.sleep(options.partition)
                os.kill(alive[0], signal.SIGCONT)
                return

    with tempfile.TemporaryDirectory() as name, disturbing(stop):
        folder = Path(name)
        result = _compared(options, WatchedWorkers(count, folder=folder, pause=options.pause), folder)
    return {"what": f"one worker stopped for {options.partition:g} s (in place of a partition)", **result}


def _compared(options: argparse.Namespace, workers: WatchedWorkers, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    record = scanned(options.batches, workers)
    log = folder / _FINISHED
    finished = log.read_text().splitlines() if log.exists() else []
    return {
        "same": record == options.expected,
        "finished": len(finished),
        "finished_again": len(finished) - len(set(finished)),
        "seconds": time.monotonic() - began,
    }


def headless(options: argparse.Namespace) -> dict[str, Any]:
    """The head of a cluster dies in the middle of a command, is started again, and so is the command."""
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
        lost = [*differences(home / "expected", home / "run"), *repeated(before, journal(lines.parent, lines.name))]
    return {
        "what": "a head that dies and is started again, with the command",
        "same": expected and again == 0 and not lost,
        "first_exit": code,
        "kept": len(before),
        "lost": lost,
    }


def _command(out: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shoal", *words, "--seed", "0", "--out", str(out), "--json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _head(address: str) -> subprocess.Popen[bytes]:
    """A head of its own, once it answers."""
    host, _, port = address.partition(":")
    head = start_node("", "--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=2")
    while head.poll() is None:
        try:
            RayWorkers(2, address)
            return head
        except shoal.errors.UsageError:
            time.sleep(0.2)
    raise SystemExit("the head of the cluster does not start")


def partitioned(options: argparse.Namespace) -> dict[str, Any]:
    """Two hosts with a worker each, in network namespaces, between which the line is cut for a while."""
    if not available():
        return {"what": "a partition of two hosts: not allowed here", "same": True}
    with two_hosts() as hosts, tempfile.TemporaryDirectory() as name:
        (here, there), port = hosts.addresses, 6399
        nodes = [start_node(hosts.first, "--head", f"--node-ip-address={here}", f"--port={port}", "--num-cpus=1")]
        try:
            time.sleep(options.patience)
            join = f"--address={here}:{port}"
            nodes.append(start_node(hosts.second, join, f"--node-ip-address={there}", "--num-cpus=1"))
            time.sleep(options.patience)
            out = Path(name) / "result.json"
            words = ["--inside", f"{here}:{port}", "--other", hosts.second, "--out", str(out)]
            words += ["--partition", str(options.partition), "--batches", str(options.batches)]
            command = [sys.executable, __file__, *words, "--pause", str(options.pause)]
            subprocess.run(inside(hosts.first, command), check=False, timeout=1200)
            result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"same": False}
        finally:
            for node in nodes:
                end_node(node)
    return {"what": f"a partition of {options.partition:g} s between two hosts (network namespaces)", **result}


def _run_inside(options: argparse.Namespace) -> None:
    """On the first of two hosts: a scan by both, whose line is cut once the other one works."""
    hosts, cuts = Hosts("", options.other, ("", "")), 0

    def cut(over: threading.Event) -> None:
        nonlocal cuts
        while not over.wait(0.1):
            if len(processes(folder)) > 1:
                hosts.cut()
                cuts += 1
                time.sleep(options.partition)
                hosts.mend()
                return

    with tempfile.TemporaryDirectory() as name, disturbing(cut):
        folder = Path(name)
        workers = WatchedWorkers(2, options.inside, folder=folder, pause=options.pause)
        result = _compared(options, workers, folder)
    options.out.write_text(json.dumps({"cuts": cuts, **result}))


def main() -> None:
    """Carry out the campaign; exit code 1 where a record differs, or a finished task ran again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="over all numbers of workers")
    parser.add_argument("--workers", default="2,4", help="how many, separated by commas")
    parser.add_argument("--partition", type=float, default=20.0, help="seconds")
    parser.add_argument("--batches", type=int, default=120, help="mini-batches, a task each")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds that a task takes at least")
    parser.add_argument("--only", default="killed,starved,stopped,partitioned,headless")
    parser.add_argument("--patience", type=float, default=15.0, help="seconds that a node may take to start")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--other", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/worker-faults.json"))
    options = parser.parse_args()
    counts = [int(count) for count in options.workers.split(",")]
    options.expected = scanned(options.batches)
    if options.inside:
        _run_inside(options)
        return
    campaign: dict[str, list[Callable[[], dict[str, Any]]]] = {
        "killed": [
            lambda count=count: killed(count, options.kills // len(counts), options)  # type: ignore[misc]
            for count in counts
        ],
        "starved": [lambda: starved(counts[0], options)],
        "stopped": [lambda: stopped(counts[0], options)],
        "partitioned": [lambda: partitioned(options)],
        "headless": [lambda: headless(options)],
    }
    results = []
    for name in options.only.split(","):
        for run in campaign[name]:
            results.append(run())
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(not all(result["same"] and not result.get("finished_again") for result in results))


if __name__ == "__main__":
    main()
