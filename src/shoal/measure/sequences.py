"""What a network says at every position of a sequence, reduced before memory runs out.

The log-probabilities of a language model take megabytes a sequence. The loss and the most likely token are kept for
every position; the log-probabilities, which only the divergence needs, for some positions where all would be too many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.batches import IGNORED

_KEPT = 2**18  # log-probabilities kept of one sequence, 1 MB
_LEAST = 4  # positions kept however large the vocabulary is


@dataclass(frozen=True, eq=False)
class SequencePredictions:
    """The answers at all positions of some sequences, on the CPU.

    Args:
        loss: summed cross-entropy of each sequence in nats, float64, (samples,); None without labels.
        labelled: how many positions of each sequence have a label and are no padding, (samples,).
        answers: the most likely class at each position, int32, (samples, positions...).
        counted: which positions are no padding, of the shape of `answers`; None where all are.
    """

    loss: Tensor | None
    labelled: Tensor
    answers: Tensor
    counted: Tensor | None

    @property
    def tokens(self) -> int:
        """How many positions have a label."""
        return int(self.labelled.sum())


def reduce_sequences(log_probs: Tensor, target: Tensor | None, counted: Tensor | None) -> SequencePredictions:
    """Reduce one mini-batch: (samples, positions..., classes), labels and mask of the same shape without classes.

    The log-probabilities are read where they are; labels and mask are on the CPU, as is what comes back.
    """
    answers = log_probs.argmax(dim=-1).int().cpu()
    if target is None:
        return SequencePredictions(None, torch.zeros(len(answers), dtype=torch.int64), answers, counted)
    labelled = target != IGNORED if counted is None else (target != IGNORED) & counted
    places = target.clamp(min=0).unsqueeze(-1).to(log_probs.device)
    picked = log_probs.gather(-1, places).squeeze(-1).cpu().double()
    loss = -(picked * labelled).flatten(1).sum(dim=1)
    return SequencePredictions(loss, labelled.flatten(1).sum(dim=1), answers, counted)


def concatenate(parts: Sequence[SequencePredictions]) -> SequencePredictions:
    """Mini-batches in one, in order; positions behind the shorter ones do not count."""
    if len({part.answers.shape[1:] for part in parts}) > 1:
        length = max(part.answers.shape[1] for part in parts)
        parts = [_padded(part, length) for part in parts]
    losses = [part.loss for part in parts if part.loss is not None]
    masked = any(part.counted is not None for part in parts)
    masks = [
        torch.ones_like(part.answers, dtype=torch.bool) if part.counted is None else part.counted for part in parts
    ]
    return SequencePredictions(
        torch.cat(losses) if len(losses) == len(parts) else None,
        torch.cat([part.labelled for part in parts]),
        torch.cat([part.answers for part in parts]),
        torch.cat(masks) if masked else None,
    )


def lengthened(values: Tensor, length: int, fill: float) -> Tensor:
    """(samples, positions, ...) with so many positions, the further ones filled."""
    further = values.new_full((len(values), length - values.shape[1], *values.shape[2:]), fill)
    return torch.cat([values, further], dim=1)


def _padded(part: SequencePredictions, length: int) -> SequencePredictions:
    counted = torch.ones_like(part.answers, dtype=torch.bool) if part.counted is None else part.counted
    return replace(part, answers=lengthened(part.answers, length, 0), counted=lengthened(counted, length, fill=False))


def sample_positions(log_probs: Tensor, counted: Tensor | None) -> Tensor | None:
    """Evenly spread positions of each sequence, padding left out, (samples, few); None where all can be kept.

    The same ones for every network, so that they can be compared.
    """
    if log_probs.dim() != 3 or log_probs[0].numel() <= _KEPT:
        return None
    samples, length, classes = log_probs.shape
    few = min(length, max(_LEAST, _KEPT // classes))
    mask = torch.ones(samples, length, dtype=torch.bool) if counted is None else counted
    real_first = (~mask).long().argsort(dim=1, stable=True)
    spread = (torch.arange(few) + 0.5) / few
    chosen = (mask.sum(dim=1, keepdim=True).clamp(min=1) * spread).long()
    return real_first.gather(1, chosen)


def gather_positions(values: Tensor, positions: Tensor) -> Tensor:
    """The rows of (samples, positions, ...) at these positions of each sample."""
    return values[torch.arange(len(values), device=values.device).unsqueeze(1), positions]
