"""Batch norms of a cut network: their statistics estimated anew on calibration data."""

from collections.abc import Sequence

from torch import nn

from shoal.batches import Batch, call
from shoal.preserve import evaluating


def recalibrate_(model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
    """Estimate the statistics of every batch norm anew on `batches`, in place; nothing else changes.

    Mini-batches count by their samples. Source: Li et al. 2020, EagleEye, arXiv:2007.02491, Sec. 3.3.
    """
    norms = [
        one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.track_running_stats
    ]
    momenta = [one.momentum for one in norms]
    try:
        with evaluating(model):
            for one in norms:
                one.reset_running_stats()
                one.training = True
            seen = 0
            for batch in batches:
                seen += batch.size
                for one in norms:
                    one.momentum = batch.size / seen
                call(model, batch)
    finally:
        for one, momentum in zip(norms, momenta, strict=True):
            one.momentum = momentum
    return model
