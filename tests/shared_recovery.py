"""A compression with recovery that is small, and the same in every process that imports it."""

from unittest.mock import patch

import torch

import shoal
import tiny
from shoal.pipeline import plan_race
from shoal.recover import DistillConfig

_generator = torch.Generator().manual_seed(0)
_images = torch.randn(41, 1, 8, 8, generator=_generator)
# Mini-batches of 12 and a last one of 5: two processes get 2 and 3 of its samples.
data = [_images[start : start + 12] for start in range(0, 41, 12)]
validation = [torch.randn(24, 1, 8, 8, generator=_generator)]
# Batch norms keep their statistics, so that a mini-batch may be divided; so do features, which are not compared.
learning = DistillConfig(rate=0.02, features=0.0, looks=2, norm_batch=1000)


def compressed(folder, budget=60, race=2, training=None):
    """A network of a plan that recovers, begun by a race of plans."""
    recovery = shoal.RecoveryConfig(budget, learning, training=training, folder=folder, race=race)
    config = shoal.CompressConfig(stand_ins=("identity", "conv3"), latency_seconds=0.02)
    with patch.object(plan_race, "FIRST_RUNG", 3):  # a race that this budget has room for
        return shoal.compress(
            tiny.noisy(), data, shoal.Budget(params=0.7), validation=validation, test=validation, recovery=recovery,
            config=config,
        )  # fmt: skip
