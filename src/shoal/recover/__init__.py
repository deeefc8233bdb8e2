"""Win back what a cut has lost: the student learns from the original."""

from shoal.deprecated import former_names
from shoal.recover.config import DistillConfig
from shoal.recover.distill import DistillData, DistillResult, distill
from shoal.recover.trainable import make_plain_, make_trainable_
from shoal.training.budget import TrainingBudget, read_budget

__all__ = [
    "DistillConfig",
    "DistillData",
    "DistillResult",
    "TrainingBudget",
    "distill",
    "make_plain_",
    "make_trainable_",
    "read_budget",
]

__getattr__ = former_names(
    __name__,
    {
        "Budget": "shoal.recover:TrainingBudget; shoal.Budget is another class, a goal of compress()",
        "DistilSettings": "shoal.recover:DistillConfig",
        "Distilled": "shoal.recover:DistillResult",
        "distil": "shoal.recover:distill",
    },
)
