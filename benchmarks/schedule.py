"""How long a scan takes with 1, 2 and 4 workers: predicted by a simulation of the schedule, and measured.

    python benchmarks/schedule.py --workers 1,2,4 --out benchmarks/results/schedule.json
    python benchmarks/schedule.py --paper

One worker is measured first; what its tasks took is all that the simulation knows. CPU seconds are kept beside the wall
clock, since other processes slow the latter down: the CPU time of a schedule is that of its busiest worker. The first
task of each worker warms it up and does not count. `--paper` simulates a network of 80 layers on 8 and 64 GPUs instead.
"""

import argparse
import heapq
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shoal.batches import Batch, batches
from shoal.blocks import analyze
from shoal.blocks.prefix_cache import PrefixCache
from shoal.measure import machine
from shoal.preserve import evaluating
from shoal.scanning.candidates import block_candidates, kernel_layers, layer_candidates
from shoal.scanning.means import branch_means
from shoal.scanning.scorer import AblationScorer, Portion, split_by_cost
from shoal.sources import load_data
from shoal.store import open_model
from shoal.tasks import OutputRequest
from shoal.workers import RayWorkers, WorkerTask, working


@dataclass(frozen=True)
class Job:
    """A task: the mini-batch it is about, and what its candidates take behind the prefix."""

    batch: int
    seconds: float


@dataclass
class Schedule:
    """What a simulation gives: when the last worker is done, and how long each was busy."""

    seconds: float
    busy: list[float] = field(default_factory=list)


def simulate(
    jobs: Sequence[Job], workers: int, prefix: float, lost: Sequence[tuple[float, int]] = (), restart: float = 0.0
) -> Schedule:
    """Jobs in order, each taken by the first worker that is free.

    Args:
        jobs: in the order they are handed out.
        workers: how many.
        prefix: what a worker pays to record a mini-batch that is not the one it had before.
        lost: (time, worker): then this worker is lost with what it does; its task starts over when it is back.
        restart: how long that takes.
    """
    free = [(0.0, number) for number in range(workers)]
    recorded: list[int | None] = [None] * workers
    busy, finished = [0.0] * workers, 0.0
    losses = sorted(lost)
    for job in jobs:
        begins, worker = heapq.heappop(free)
        while True:
            took = job.seconds + (prefix if recorded[worker] != job.batch else 0.0)
            hit = next((loss for loss in losses if loss[1] == worker and begins <= loss[0] < begins + took), None)
            if hit is None:
                break
            losses.remove(hit)
            busy[worker] += hit[0] - begins
            begins, recorded[worker] = hit[0] + restart, None
        recorded[worker] = job.batch
        busy[worker] += took
        finished = max(finished, begins + took)
        heapq.heappush(free, (begins + took, worker))
    return Schedule(finished, busy)


@dataclass(eq=False)
class Timed:
    """A scorer that returns who it was and how long a task took; a worker of one is bound to one core."""

    scorer: AblationScorer
    pinned: bool

    def __call__(self, portion: Portion, batch: Batch) -> tuple[int, float, float]:
        """Process, CPU seconds, wall seconds."""
        if self.pinned:
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        began, cpu = time.perf_counter(), time.process_time()
        self.scorer(portion, batch)
        return os.getpid(), time.process_time() - cpu, time.perf_counter() - began


def prepared(size: int) -> tuple[AblationScorer, list[Batch]]:
    """Every ablation of the built-in network, and its test data in mini-batches."""
    model = open_model("digits-resnet", None).model
    data = list(batches(load_data("digits", batch_size=size).test()))
    graph = analyze(model, data[0].take(2))
    request = OutputRequest(None, None)
    reading = request.read(request.choose(model, data[0]), model, data)
    with evaluating(model):
        PrefixCache(graph).find_restarts(data[0])
    candidates = [*block_candidates(graph, branch_means(graph, data)), *layer_candidates(graph, kernel_layers(graph))]
    return AblationScorer(graph, reading, candidates), data


def tasks_for(scorer: AblationScorer, data: Sequence[Batch], parts: int) -> list[WorkerTask]:
    """Portions of all candidates on every mini-batch."""
    portions = split_by_cost(scorer.graph, scorer.candidates, parts)
    keys = [tuple(candidate.key for candidate in portion) for portion in portions]
    return [WorkerTask(Portion(index, part), batch) for index, batch in enumerate(data) for part in keys]


def measure(scorer: AblationScorer, tasks: Sequence[WorkerTask], count: int) -> dict[str, Any]:
    """Run the tasks by so many workers, after one each to warm up."""
    with working(RayWorkers(count), Timed(scorer, pinned=count == 1)) as results:
        began = time.perf_counter()
        list(results(tasks[:1] * (4 * count)))
        started, by_worker, by_task = time.perf_counter(), defaultdict(float), {}
        for portion, (process, cpu, _) in results(tasks):
            by_worker[process] += cpu
            by_task[portion] = cpu
        seconds = time.perf_counter() - started
    return {
        "workers": count,
        "tasks": len(tasks),
        "start_seconds": started - began,
        "wall_seconds": seconds,
        "busiest_cpu_seconds": max(by_worker.values()),
        "total_cpu_seconds": sum(by_worker.values()),
        "by_task": [by_task[task.own] for task in tasks],
    }


def compared(counts: Sequence[int], size: int, parts: int) -> dict[str, Any]:
    """Measured and predicted, by the tasks of one worker."""
    torch.set_num_threads(1)
    scorer, data = prepared(size)
    tasks = tasks_for(scorer, data, parts)
    runs = [measure(scorer, tasks, count) for count in counts]
    alone = runs[0]
    # One worker records each mini-batch with its first portion: what that took beyond its like is the prefix.
    first, later = alone["by_task"][::parts], [alone["by_task"][at] for at in range(len(tasks)) if at % parts]
    prefix = max(0.0, sum(first) / len(first) - sum(later) / max(1, len(later))) if parts > 1 else 0.0
    jobs = [
        Job(task.own.index, seconds - (prefix if at % parts == 0 else 0.0))
        for at, (task, seconds) in enumerate(zip(tasks, alone["by_task"], strict=True))
    ]
    for run in runs:
        predicted = max(simulate(jobs, run["workers"], prefix).busy)
        run["predicted_cpu_seconds"] = predicted
        run["error"] = predicted / run["busiest_cpu_seconds"] - 1
        run["speedup_cpu"] = alone["busiest_cpu_seconds"] / run["busiest_cpu_seconds"]
        run["speedup_wall"] = alone["wall_seconds"] / run["wall_seconds"]
        del run["by_task"]
    return {"network": "digits-resnet", "batch_size": size, "prefix_seconds": prefix, "runs": runs}


def on_paper() -> list[dict[str, Any]]:
    """A decoder of 70e9 weights, 80 layers and 160 units; 512 sequences of 2,048 tokens; no time was measured.

    A forward is two operations a weight and token; 400e12 of them a second are taken to be what a GPU reaches. The
    weights in bfloat16 take two of the GPUs of 80 GB, so a worker is a pair of GPUs.
    """
    weights, layers, rate = 70e9, 80, 400e12
    sequences, length, size = 512, 2048, 8
    forward = 2 * weights * size * length / (2 * rate)  # of one mini-batch, on two GPUs
    rows = []
    for gpus in (8, 64):
        workers = gpus // 2
        jobs = []
        for batch in range(sequences // size):
            starts = [unit / (2 * layers) for unit in range(2 * layers)] + [layer / layers for layer in range(layers)]
            starts.sort()
            parts = max(1, -(-4 * workers * size // sequences))
            for part in range(parts):
                chunk = starts[part * len(starts) // parts : (part + 1) * len(starts) // parts]
                jobs.append(Job(batch, sum(forward * (1 - start) for start in chunk)))
        whole = simulate(jobs, workers, forward)
        hour = 3600.0
        lost = [(hour * number / 4, number % workers) for number in range(1, int(4 * whole.seconds / hour))]
        failing = simulate(jobs, workers, forward, lost, restart=300.0)
        rows.append(
            {
                "gpus": gpus,
                "workers": workers,
                "tasks": len(jobs),
                "weight_bytes_of_a_worker": 2 * weights,
                "stream_bytes_of_a_mini_batch": 2 * 8192 * size * length * min(2 * layers, 64),
                "operations": 2 * rate * sum(whole.busy),
                "hours": whole.seconds / hour,
                "busy": sum(whole.busy) / workers / whole.seconds,
                "hours_with_a_loss_every_quarter": failing.seconds / hour,
            }
        )
    return rows


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--batch-size", type=int, default=30)
    parser.add_argument("--parts", type=int, default=4, help="portions of a mini-batch")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.paper:
        document: dict[str, Any] = {"paper": on_paper()}
    else:
        counts = [int(count) for count in options.workers.split(",")]
        document = compared(counts, options.batch_size, options.parts)
        document["machine"] = machine(torch.device("cpu")).model_dump()
    print(json.dumps(document, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
