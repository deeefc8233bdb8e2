"""Win back what a cut has lost: the student learns from the original."""

from shoal.recover.config import DistillConfig
from shoal.recover.distill import DistillResult, distill
from shoal.recover.trainable import make_plain_, make_trainable_
from shoal.training.budget import TrainingBudget, read_budget

__all__ = [
    "DistillConfig",
    "DistillResult",
    "TrainingBudget",
    "distill",
    "make_plain_",
    "make_trainable_",
    "read_budget",
]
