"""Who runs independent tasks: this process, or many processes through Ray. The code that asks does not know which.

Three calls: `start` hands every worker the function, with the network and the data in it, once; `results` runs tasks
and yields what comes back, in any order; `stop` ends it. A task is pure data, so it can be run again where a worker is
lost. Timing is done while no other task runs: by `timing_workers`.
"""

from shoal.errors import UsageError
from shoal.workers.on_ray import RayWorkers
from shoal.workers.protocol import LocalWorkers, Results, TaskFunction, Workers, WorkerTask, working

__all__ = [
    "LocalWorkers",
    "RayWorkers",
    "Results",
    "TaskFunction",
    "WorkerTask",
    "Workers",
    "as_workers",
    "timing_workers",
    "working",
]


def as_workers(workers: Workers | int | None) -> Workers:
    """Workers from what a caller passes: a number is that many processes of this machine; 1 and None: this process.

    Raises:
        UsageError: neither.
    """
    if workers is None or (type(workers) is int and workers == 1):
        return LocalWorkers()
    if type(workers) is int:
        return RayWorkers(workers)
    if isinstance(workers, int) or not all(callable(getattr(workers, name, None)) for name in ("start", "results")):
        raise UsageError(
            f"workers is {workers!r}, expected a whole number from 1 or workers",
            "Like workers=4, or shoal.RayWorkers(address='10.0.0.1:6379').",
        )
    return workers


def timing_workers(workers: Workers) -> Workers:
    """Who times, since nothing may run next to what is timed: on a cluster a worker on each node, with all of it.

    On a single machine that is this process; its workers are gone by then.
    """
    return workers.on_whole_nodes() if isinstance(workers, RayWorkers) and workers.address else LocalWorkers()
