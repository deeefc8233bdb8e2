"""A scan by Ray workers that note what they do: was anything lost, or done twice for nothing?"""

import os
import resource
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from small import network

import shoal
from shoal.workers import RayWorkers, WorkerTask

_VOLATILE = {"seconds", "created"}
# A line for every task that a worker begins, and for every result that comes back.
_LOG = "tasks.log"


def prepare_clusters() -> None:
    """Have every cluster that is started here ask for a token of its own, in no file; its workers are not nice."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_worker_niceness", "0")


@contextmanager
def one_cluster(count: int) -> Iterator[None]:
    """A cluster on this machine with room for so many workers, which all scans share."""
    ray = import_module("ray")
    ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Campaign:
    """What all runs have in common.

    Args:
        batches: mini-batches; each is a task.
        pause: seconds that a task takes at least, so that it can be hit.
        partition: seconds that a worker or a line is away.
        kills: at random moments, over all numbers of workers.
        seed: of these moments.
        expected: the record of one process.
    """

    batches: int
    pause: float
    partition: float
    kills: int = 0
    seed: int = 0
    expected: Any = None


@dataclass
class Watched:
    """A function of workers that notes where it runs, and which tasks.

    Args:
        function: what the workers run.
        folder: where it notes.
        pause: in seconds.
        starved: one worker can write no file any more, and notes nothing.
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
        elif not self.starved:
            _note(self.folder, "begun", task)
        time.sleep(self.pause)
        return self.function(task, shared)

    def _is_first(self) -> bool:
        """Whether this worker is the one that is starved."""
        try:
            (self.folder / "starved").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _note(folder: Path, event: str, task: Any) -> None:
    with (folder / _LOG).open("a") as file:
        file.write(f"{event} {task}\n")


@dataclass
class WatchedWorkers(RayWorkers):
    """Ray workers that are watched."""

    folder: Path = Path()
    pause: float = 0.0
    starved: bool = False

    def start(self, function: Callable[[Any, Any], Any]) -> None:
        """Give them the function, watched."""
        super().start(Watched(function, self.folder, self.pause, self.starved))

    def results(self, tasks: Iterable[WorkerTask]) -> Iterator[tuple[Any, Any]]:
        """As they come, noted."""
        for task, result in super().results(tasks):
            _note(self.folder, "came", task)
            yield task, result


def _repeated(lines: list[str]) -> int:
    """How often a task was begun whose result was there already."""
    came, count = set[str](), 0
    for line in lines:
        event, _, task = line.partition(" ")
        count += event == "begun" and task in came
        if event == "came":
            came.add(task)
    return count


def scanned(batches: int, workers: Any = None) -> dict[str, Any]:
    """The record of a scan of always the same mini-batches, without what no two runs share."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(batches)]
    config = shoal.ScanConfig(scores=False, layers=False, workers=workers)
    return shoal.scan(network(), data, config=config).model_dump(exclude=_VOLATILE)


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


def compared(campaign: Campaign, workers: WatchedWorkers) -> dict[str, Any]:
    """A scan by these workers against that of one process."""
    began = time.monotonic()
    record = scanned(campaign.batches, workers)
    log = workers.folder / _LOG
    lines = log.read_text().splitlines() if log.exists() else []
    return {
        "same": record == campaign.expected,
        "tasks": campaign.batches,
        "begun": sum(line.startswith("begun") for line in lines),
        "begun_for_nothing": _repeated(lines),
        "seconds": round(time.monotonic() - began, 1),
    }
