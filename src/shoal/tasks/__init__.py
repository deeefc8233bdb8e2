"""What networks are for: each task says how outputs are read, which metrics count, and how it is recognised.

To add a task: a file with a `Task`, a line in `TASKS`, its tests. Another distribution adds its own by an entry point
in the group `shoal.tasks` that refers to a `Task`.
"""

from shoal.tasks.choice import TASKS, OutputRequest, TaskChoice, choose_task, task_named
from shoal.tasks.dense import dense_copy, restore_usual, usual_outputs
from shoal.tasks.evaluation import check_annotations, check_metrics, compare_metrics
from shoal.tasks.seq2seq import seq2seq
from shoal.tasks.task import Metric, Reference, Task

__all__ = [
    "TASKS",
    "Metric",
    "OutputRequest",
    "Reference",
    "Task",
    "TaskChoice",
    "check_annotations",
    "check_metrics",
    "choose_task",
    "compare_metrics",
    "dense_copy",
    "restore_usual",
    "seq2seq",
    "task_named",
    "usual_outputs",
]
