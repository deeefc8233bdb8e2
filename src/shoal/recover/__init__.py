"""Win back what a cut has lost: the student learns from the original."""

from shoal.recover.budget import Budget, read_budget
from shoal.recover.distil import Distilled, distil
from shoal.recover.settings import DistilSettings
from shoal.recover.trainable import make_plain_, make_trainable_

__all__ = [
    "Budget",
    "DistilSettings",
    "Distilled",
    "distil",
    "make_plain_",
    "make_trainable_",
    "read_budget",
]
