"""Batch norms of a cut network: their statistics estimated anew on calibration data."""

from collections.abc import Sequence

from torch import nn

from shoal.batches import Batch, call
from shoal.preserve import evaluating


def has_statistics(model: nn.Module) -> bool:
    """Whether there is a batch norm that `recalibrate_` would estimate anew."""
    return bool(_norms(model))


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    batch_norm = nn.modules.batchnorm._BatchNorm
    return [norm for norm in model.modules() if isinstance(norm, batch_norm) and norm.track_running_stats]


def recalibrate_(model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
    """Estimate the statistics of every batch norm anew on `batches`, in place; nothing else changes.

    Mini-batches count by their samples. Source: Li et al. 2020, EagleEye, arXiv:2007.02491, Sec. 3.3.
    """
    norms = _norms(model)
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.training = True
            seen = 0
            for batch in batches:
                seen += batch.size
                for norm in norms:
                    norm.momentum = batch.size / seen
                call(model, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model
