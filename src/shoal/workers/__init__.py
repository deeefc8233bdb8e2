"""Who runs independent tasks: this process, or many processes through Ray. The code that asks does not know which.

Three calls: `start` hands every worker the function, with the network and the data in it, once; `results` runs tasks
and yields what comes back, in any order; `stop` ends it. A task is pure data, so it can be run again where a worker is
lost. Timing is no such task: it is done by the process that asks, while no worker is at work.
"""

from shoal.errors import UsageError
from shoal.workers.on_ray import RayWorkers
from shoal.workers.protocol import LocalWorkers, Results, TaskFunction, Workers, WorkerTask, working

__all__ = ["LocalWorkers", "RayWorkers", "Results", "TaskFunction", "WorkerTask", "Workers", "as_workers", "working"]


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
