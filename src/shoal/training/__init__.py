"""What every training of Shoal shares: the loop, its budget, data that can be resumed, optimizers, metrics."""

from shoal.training.budget import TrainingBudget, read_budget

__all__ = ["TrainingBudget", "read_budget"]
