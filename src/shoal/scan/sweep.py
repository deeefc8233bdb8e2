"""The ablation sweep: what the network's outputs become when one block is taken out, for every block, cheaply.

Exact leave-one-out: no approximation but the sample of images. Each mini-batch runs once whole, then once for every
candidate from that block on (see `blocks.prefix`), which halves the work.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shoal.batches import Batch, batches, check_logits, device_of, logits_of
from shoal.blocks import Anatomy
from shoal.blocks.prefix import Prefix
from shoal.errors import DataError
from shoal.measure import kl_per_sample, log_probabilities, mean_interval
from shoal.preserve import evaluating
from shoal.record import Interval

# (log-probabilities of the original, outputs of the candidate, the batch) -> damage per sample, shape (samples,)
Damage = Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]
Ticker = Callable[[int, int], None]


@dataclass(frozen=True)
class Worth:
    """What taking one block out does to the outputs: mean damage per sample (KL in nats by default), 95 % interval."""

    path: str
    damage: float
    interval: Interval
    n: int


def divergence(original: torch.Tensor, other: torch.Tensor, batch: Batch) -> torch.Tensor:
    """KL(original || other) in nats for each sample: the default damage. Labels are not needed."""
    return kl_per_sample(original, other)


def removal_sweep(
    anatomy: Anatomy,
    loader: Iterable[Any],
    candidates: Sequence[str],
    *,
    removed: Sequence[str] = (),
    damage: Damage = divergence,
    tick: Ticker | None = None,
) -> list[Worth]:
    """The worth of every candidate block, given that the blocks in `removed` are gone already.

    Damage is measured against the whole original network, on the same samples for every candidate.

    Args:
        anatomy: the original network, dissected; it is left as it was.
        loader: mini-batches; re-iterated by the caller's choice, read once here.
        candidates: block paths.
        removed: block paths that are gone in every run.
        damage: what to measure.
        tick: called with (runs done, runs in this mini-batch).

    Returns:
        One `Worth` a candidate, in the order given.

    Raises:
        DataError: the loader is empty.
        NonFiniteError, ModelRaisedError: as the network behaves.
    """
    base = {path: anatomy.remainders[path].forward for path in removed}
    found: dict[str, list[torch.Tensor]] = {path: [] for path in candidates}
    with evaluating(anatomy.model):
        whole, current = Prefix(anatomy), Prefix(anatomy, base)
        for batch in batches(loader, device_of(anatomy.model)):
            original = _original(whole, batch)
            if removed:
                current.capture(batch)
            prefix = current if removed else whole
            for done, path in enumerate(candidates):
                output = logits_of(prefix.without(path, anatomy.remainders[path]))
                check_logits(output)
                found[path].append(damage(original, output, batch).cpu())
                if tick is not None:
                    tick(done + 1, len(candidates))
    return [_worth(path, parts) for path, parts in found.items()]


def _original(whole: Prefix, batch: Batch) -> torch.Tensor:
    output = logits_of(whole.capture(batch))
    check_logits(output)
    return log_probabilities(output, batch.target)


def _worth(path: str, parts: list[torch.Tensor]) -> Worth:
    if not parts:
        raise DataError("there is no data to measure on", "Give a loader with at least one mini-batch.")
    values = np.asarray(torch.cat(parts).double())
    return Worth(path, float(values.mean()), mean_interval(values), len(values))
