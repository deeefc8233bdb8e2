"""Win back what a cut has lost: the student learns from the original."""

from shoal.recover.budget import TrainingBudget, read_budget
from shoal.recover.config import DistillConfig
from shoal.recover.distill import DistillResult, distill
from shoal.recover.trainable import make_plain_, make_trainable_

__all__ = [
    "DistillConfig",
    "DistillResult",
    "TrainingBudget",
    "distill",
    "make_plain_",
    "make_trainable_",
    "read_budget",
]
