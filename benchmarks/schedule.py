"""How long a scan takes with 1, 2 and 4 workers: predicted by a simulation of the schedule, and measured.

    python benchmarks/schedule.py --out benchmarks/results/schedule.json
    python benchmarks/schedule.py --paper

A round measures each number of workers once; the figures are medians over rounds. What the tasks of a single worker
took, and what the processes around them computed meanwhile, is all that the simulation knows; one worker is bound to
one core. CPU seconds are kept next to the wall clock, since other processes slow the latter down: the CPU time of a
schedule is that of its busiest worker. The first tasks of each worker warm it up and do not count. With --out, every
measurement is written as it is made, and the same command goes on from there. `--paper` simulates a network of 80
layers on 8 and 64 GPUs instead.
"""

import argparse
import heapq
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
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


@dataclass(frozen=True)
class TaskTimes:
    """Of one task: the process it ran in, and seconds; `prefix` are those of recording its mini-batch, if it was."""

    process: int
    cpu: float
    wall: float
    prefix_cpu: float
    prefix_wall: float


@dataclass(eq=False)
class Timed:
    """A scorer that returns who it was and how long a task took; a worker of one is bound to one core."""

    scorer: AblationScorer
    pinned: bool

    def __call__(self, portion: Portion, batch: Batch) -> TaskTimes:
        """The times of a portion, and of recording its mini-batch where the last one was another."""
        if self.pinned:
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        began, cpu = time.perf_counter(), time.process_time()
        self.scorer(Portion(portion.index, ()), batch)
        prefix_wall, prefix_cpu = time.perf_counter() - began, time.process_time() - cpu
        self.scorer(portion, batch)
        return TaskTimes(os.getpid(), time.process_time() - cpu, time.perf_counter() - began, prefix_cpu, prefix_wall)


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
    """Run the tasks by so many workers, after some each to warm up."""
    with working(RayWorkers(count), Timed(scorer, pinned=count == 1)) as results:
        began = time.perf_counter()
        list(results(tasks[:1] * (4 * count)))
        started, by_worker, by_task = time.perf_counter(), defaultdict(float), {}
        computed = cpu_of_all()
        for portion, times in results(tasks):
            by_worker[times.process] += times.cpu
            by_task[portion] = times
        seconds, computed = time.perf_counter() - started, cpu_of_all() - computed
    return {
        "workers": count,
        "start_seconds": started - began,
        "wall_seconds": seconds,
        "busiest_cpu_seconds": max(by_worker.values()),
        "total_cpu_seconds": sum(by_worker.values()),
        "other_cpu_seconds": max(0.0, computed - sum(by_worker.values())),
        "tasks": [asdict(by_task[task.own]) for task in tasks],
    }


def cpu_of_all() -> float:
    """CPU seconds so far of this process and all that it started, Ray's own among them."""
    mine = psutil.Process()
    times = [process.cpu_times() for process in [mine, *mine.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


def predicted(tasks: Sequence[WorkerTask], alone: Mapping[str, Any], workers: int, clock: str) -> Schedule:
    """The schedule of so many workers, by what the tasks of a single one took.

    Args:
        tasks: in order.
        alone: the measurement of one worker.
        workers: how many.
        clock: 'wall' or 'cpu'; by the wall clock a task also takes its share of what is between tasks.
    """
    times = alone["tasks"]
    between = max(0.0, alone["wall_seconds"] - sum(task["wall"] for task in times)) / len(times)
    prefix = sum(task[f"prefix_{clock}"] for task in times) / len({task.own.index for task in tasks})
    jobs = [
        Job(task.own.index, took[clock] - took[f"prefix_{clock}"] + (between if clock == "wall" else 0.0))
        for task, took in zip(tasks, times, strict=True)
    ]
    return simulate(jobs, workers, prefix)


def predicted_wall(tasks: Sequence[WorkerTask], alone: Mapping[str, Any], workers: int, cores: int) -> float:
    """Seconds by the clock: those of the schedule, or those that the cores need for all there is to compute.

    Where workers leave a core idle, what hands out tasks runs there; where they do not, it takes its time from theirs.
    """
    schedule = predicted(tasks, alone, workers, "wall")
    everything = sum(predicted(tasks, alone, workers, "cpu").busy) + alone["other_cpu_seconds"]
    return max(schedule.seconds, everything / cores)


def summary(tasks: Sequence[WorkerTask], runs: Sequence[Mapping[str, Any]], cores: int) -> list[dict[str, Any]]:
    """By number of workers the medians over rounds, with what the simulation says and how far off it is."""
    counts = sorted({run["workers"] for run in runs})
    by_count = {count: [run for run in runs if run["workers"] == count] for count in counts}
    rows = []
    for count in counts:
        row: dict[str, Any] = {"workers": count, "rounds": len(by_count[count])}
        for name in ("start_seconds", "wall_seconds", "busiest_cpu_seconds", "total_cpu_seconds"):
            row[name] = median(run[name] for run in by_count[count])
        row["predicted_wall_seconds"] = median(predicted_wall(tasks, alone, count, cores) for alone in by_count[1])
        row["predicted_cpu_seconds"] = median(max(predicted(tasks, alone, count, "cpu").busy) for alone in by_count[1])
        for clock, name in (("wall", "wall_seconds"), ("cpu", "busiest_cpu_seconds")):
            row[f"error_{clock}"] = row[f"predicted_{clock}_seconds"] / row[name] - 1
            row[f"speedup_{clock}"] = median(run[name] for run in by_count[1]) / row[name]
        rows.append(row)
    return rows


def forwards(scorer: AblationScorer) -> float:
    """What all candidates cost on a mini-batch by the model: of each the share of the network behind its start."""
    prefix = PrefixCache(scorer.graph)
    places = {segment: place for place, segment in enumerate(prefix.order)}
    starts = (prefix.segment_of(candidate.path) for candidate in scorer.candidates)
    return sum(1 - places[prefix.restarts.get(start, start)] / len(places) for start in starts)


def cost_of_a_forward(runs: Sequence[Mapping[str, Any]], modelled: float) -> float:
    """CPU seconds of the candidates by those of as many recorded forwards as the model says; a median over rounds."""
    ratios = []
    for run in runs:
        recorded = [task["prefix_cpu"] for task in run["tasks"]]
        ratios.append((sum(task["cpu"] for task in run["tasks"]) - sum(recorded)) / (sum(recorded) * modelled))
    return median(ratios)


def compared(counts: Sequence[int], size: int, parts: int, rounds: int, out: Path | None) -> dict[str, Any]:
    """Measured and predicted; what `out` holds of the same settings is not measured again."""
    torch.set_num_threads(1)
    scorer, data = prepared(size)
    tasks = tasks_for(scorer, data, parts)
    cores = len(os.sched_getaffinity(0))
    document: dict[str, Any] = {
        "network": "digits-resnet",
        "batch_size": size,
        "parts": parts,
        "num_tasks": len(tasks),
        "cores": cores,
        "machine": machine(torch.device("cpu")).model_dump(),
    }
    earlier = json.loads(out.read_text()) if out is not None and out.exists() else {}
    same = all(earlier.get(name) == value for name, value in document.items())
    runs: list[dict[str, Any]] = earlier["runs"] if same else []
    for number in range(rounds):
        for count in counts:
            if sum(run["workers"] == count for run in runs) > number:
                continue
            runs.append(measure(scorer, tasks, count))
            alone = [run for run in runs if run["workers"] == 1]
            document |= {
                "summary": summary(tasks, runs, cores),
                "modelled_forwards": forwards(scorer),
                "cost_of_a_forward": cost_of_a_forward(alone, forwards(scorer)),
                "runs": runs,
            }
            if out is not None:
                out.write_text(written(document))
    return document


def written(document: Mapping[str, Any]) -> str:
    """The document as JSON, each measurement on a line of its own."""
    lines = [json.dumps(run) for run in document["runs"]]
    outer = json.dumps({**document, "runs": []}, indent=1)
    return outer.replace('"runs": []', '"runs": [\n  ' + ",\n  ".join(lines) + "\n ]") + "\n"


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
    parser.add_argument("--workers", default="1,2,4", help="one worker is measured first in any case")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=30)
    parser.add_argument("--parts", type=int, default=4, help="portions of a mini-batch")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.paper:
        document: dict[str, Any] = {"paper": on_paper()}
        if options.out is not None:
            options.out.write_text(json.dumps(document, indent=1) + "\n")
    else:
        counts = sorted({1, *(int(count) for count in options.workers.split(","))})
        document = compared(counts, options.batch_size, options.parts, options.rounds, options.out)
    print(json.dumps({name: value for name, value in document.items() if name not in ("runs", "machine")}, indent=1))


if __name__ == "__main__":
    main()
