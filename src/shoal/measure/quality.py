"""How good is a network, and how far is it from another one, sample by sample on the same data?

Log-probabilities are kept with the classes last: (samples, classes), or (samples, positions..., classes)
where the network answers at every position of a sample (tokens, pixels). The sample stays the unit: positions
are averaged, those of padding (an attention mask of 0) left out.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal import record
from shoal.batches import IGNORED, Batch, batches, call, check_logits, device_of, logits_of
from shoal.errors import DataError, UsageError
from shoal.measure.intervals import mcnemar, mean_interval, paired_drop, ratio_interval, wilson
from shoal.measure.sequences import Sequences, at, joined, sequences_of, some_positions
from shoal.preserve import evaluating

_CHUNK = 2**24  # values handled at once in float64, so that a large vocabulary does not need gigabytes


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says about every sample of a loader, on the CPU.

    Args:
        log_probs: float32, (samples, classes) or (samples, positions..., classes).
        target: int64 class indices, shape of `log_probs` without its classes; None where there are no labels,
            or where they are no class indices of this shape (multi-label, soft labels, numbers to be
            predicted).
        inputs: checksum of the samples in their order, to tell whether two passes saw the same ones; None if
            unknown.
        counted: which answers of `log_probs` are no padding, of the shape of `target`; None where all are.
        sequences: the answers at every position, where `log_probs` and `target` keep only some of them (see
            `measure.sequences`); None with a single answer a sample.
    """

    log_probs: Tensor
    target: Tensor | None = None
    inputs: int | None = None
    counted: Tensor | None = None
    sequences: Sequences | None = None

    @property
    def n(self) -> int:
        """How many samples."""
        return int(self.log_probs.shape[0])

    @property
    def classes(self) -> int:
        """How many classes."""
        return int(self.log_probs.shape[-1])


def predictions(model: nn.Module, loader: Iterable[Any], device: torch.device | str | None = None) -> Predictions:
    """Run a network in eval mode over a loader, once; the network comes back as it was.

    Memory: 4 bytes per sample, position and class, and no more than about 1 MB for each sequence of tokens.

    Args:
        model: returns logits, see `log_probabilities` for the shapes.
        loader: yields `(inputs, target)`, `inputs`, or a dict of tensors.
        device: where the mini-batches go; by default where the model is. The model itself is not moved.

    Raises:
        DataError: no samples, labels out of range, outputs that are no logits of at least two classes.
        NonFiniteError: NaN or Inf in the outputs.
        ModelRaisedError: the model raised.
    """
    return paired_predictions([model], loader, device)[0]


def paired_predictions(
    models: Sequence[nn.Module], loader: Iterable[Any], device: torch.device | str | None = None
) -> list[Predictions]:
    """Run several networks over the very same mini-batches, in one pass.

    For loaders that shuffle or augment this is the only way to compare networks sample by sample.

    Args:
        models: the networks, each on its own device unless `device` is given.
        loader: as for `predictions`.
        device: where the mini-batches go; by default where each model is.

    Returns:
        One `Predictions` per network, in order.

    Raises:
        UsageError: no networks.
        DataError: as for `predictions`.
        NonFiniteError: NaN or Inf in the outputs.
        ModelRaisedError: a model raised.
    """
    if not models:
        raise UsageError("no networks to evaluate", "Give at least one.")
    gathered = [_Gathered() for _ in models]
    checksum = 0
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for item in loader:
            batch = next(batches([item]))
            checksum = _checksum(batch, checksum)
            for model, parts in zip(models, gathered, strict=True):
                parts.add(model, batch.to(device if device is not None else device_of(model)))
    return [parts.joined(checksum) for parts in gathered]


class _Gathered:
    """The parts of one `Predictions`, mini-batch by mini-batch."""

    def __init__(self) -> None:
        self.parts: list[Predictions] = []
        self.shapes: set[tuple[int, ...]] = set()

    def add(self, model: nn.Module, batch: Batch) -> None:
        logits = logits_of(call(model, batch))
        check_logits(logits)
        check_samples(logits, batch)
        log_probs = log_probabilities(logits, batch.target).cpu()
        self.shapes.add(tuple(log_probs.shape[1:]))
        self.parts.append(_reduced(log_probs, checked_labels(batch.target, log_probs), batch))

    def joined(self, checksum: int) -> Predictions:
        if not self.parts:
            raise DataError(
                "the loader yielded no mini-batch",
                "Check the data set and its filter; a generator can be read only once.",
            )
        shapes = sorted(self.shapes)
        if len(shapes) > 1:
            raise DataError(
                f"the output's shape changes between mini-batches: {shapes[0]} and {shapes[1]} per sample",
                "Bring all samples to one size (pad or cut the texts, resize the images).",
            )
        labelled = [part.target for part in self.parts if part.target is not None]
        if labelled and len(labelled) < len(self.parts):
            missing = len(self.parts) - len(labelled)
            raise DataError(
                f"{missing} of {len(self.parts)} mini-batches have no usable labels, the others do",
                "Give labels for all samples, or for none.",
            )
        log_probs = torch.cat([part.log_probs for part in self.parts])
        sequences = [part.sequences for part in self.parts if part.sequences is not None]
        whole = joined(sequences) if sequences else None
        masked = whole is not None and whole.counted is not None and whole.counted.shape == log_probs.shape[:-1]
        return Predictions(
            log_probs,
            torch.cat(labelled) if labelled else None,
            checksum,
            whole.counted if masked and whole is not None else None,
            whole,
        )


def _reduced(log_probs: Tensor, target: Tensor | None, batch: Batch) -> Predictions:
    """The answers to one mini-batch, those at positions thinned out where there are too many."""
    if log_probs.dim() < 3:
        return Predictions(log_probs, target)
    counted = batch.counted(log_probs.shape[:-1])
    counted = counted.cpu() if counted is not None else None
    sequences = sequences_of(log_probs, target, counted)
    positions = some_positions(log_probs, counted)
    if positions is None:
        return Predictions(log_probs, target, sequences=sequences)
    return Predictions(
        at(log_probs, positions), at(target, positions) if target is not None else None, None, None, sequences
    )


def _checksum(batch: Batch, before: int) -> int:
    """CRC of the first input, continued from `before`: the same however samples are cut into mini-batches."""
    values = batch.tensors[0].detach().cpu().reshape(-1)
    return zlib.crc32(values.view(torch.uint8).numpy().tobytes(), before)


def check_samples(logits: Tensor, batch: Batch) -> None:
    """Refuse answers that have no row for each sample, as those of a detector.

    Raises:
        DataError: with the shape.
    """
    if logits.dim() < 2 or logits.shape[0] != batch.size:
        raise DataError(
            f"the model returned shape {tuple(logits.shape)} for {batch.size} samples,"
            " expected (samples, classes) or (samples, positions, classes)",
            "Wrap the model so that it returns one row of logits per sample.",
        )


def log_probabilities(logits: Tensor, target: Tensor | None = None) -> Tensor:
    """Log-softmax over the classes, with the classes moved to the end.

    The classes are axis 1 of (samples, classes). With more axes the target's shape decides, if there is one:
    (B, T, V) goes with (B, T), (B, C, H, W) with (B, H, W). Where it cannot, three axes are read as (samples,
    positions, classes), as language models have it, and four or more as (samples, classes, height, width).

    Args:
        logits: floating-point, two or more axes.
        target: class indices, used for their shape only.

    Returns:
        float32, (samples, classes) or (samples, positions..., classes).

    Raises:
        DataError: fewer than two axes, or a single class: softmax of one value is 1 whatever it is.
    """
    if logits.dim() < 2:
        raise DataError(f"logits of shape {tuple(logits.shape)}", "Expected (samples, classes).")
    last = _classes_last(logits, target)
    if last.shape[-1] < 2:
        raise DataError(
            f"the model returned shape {tuple(logits.shape)}, a single value per sample or position",
            "Probabilities need two classes: wrap a binary classifier so that it returns two logits, (0, x).",
        )
    return torch.log_softmax(last.float(), dim=-1)


def _classes_last(logits: Tensor, target: Tensor | None) -> Tensor:
    if logits.dim() == 2:
        return logits
    second = logits.movedim(1, -1)
    fits_last = target is not None and target.shape == logits.shape[:-1]
    fits_second = target is not None and target.shape == second.shape[:-1]
    if fits_last != fits_second:
        return logits if fits_last else second
    return logits if logits.dim() == 3 else second


def checked_labels(target: Tensor | None, log_probs: Tensor) -> Tensor | None:
    """The target as int64 of the answers' shape on the CPU; None where it is no class index per answer."""
    if target is None:
        return None
    if target.dim() == 0 or target.shape[0] != log_probs.shape[0]:
        raise DataError(
            f"labels of shape {tuple(target.shape)} for {log_probs.shape[0]} samples",
            "A loader must yield as many labels as samples.",
        )
    shape = log_probs.shape[:-1]
    # A column of labels, (samples, 1), is a common way to write (samples,).
    if target.shape == (*shape, 1):
        target = target.reshape(shape)
    target = target.detach().cpu()
    if target.shape != shape or (target.is_floating_point() and not torch.equal(target, target.round())):
        return None
    labels = target.long()
    _check_labels(labels, log_probs.shape[-1])
    return labels


def _check_labels(labels: Tensor, classes: int) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if labels.dim() > 1:
        wrong &= labels != IGNORED
    if wrong.any():
        label = int(labels[wrong][0])
        raise DataError(
            f"label {label} does not fit a model with {classes} classes (0 to {classes - 1});"
            f" {int(wrong.sum())} of {labels.numel()} labels are out of range",
            "Check that data and model belong together, and that the labels start at 0.",
        )


def quality(predictions: Predictions, split: str) -> record.Quality:
    """How good: `top1` with its Wilson interval, and the mean cross-entropy in nats.

    With one label per position there is no `top1`, since positions of one sample are not independent; the
    loss is the mean over the labelled positions (label -100 and padding are skipped), with its exponential, the
    perplexity, and intervals that take the samples as independent. Targets must stand at the position that answers
    them: `as_batch` moves those of a language model.

    Args:
        predictions: of one network.
        split: which part of the data it was: train, validation, test.

    Raises:
        DataError: no samples, or labels that do not fit.
    """
    _check_predictions(predictions)
    hits = _hits(predictions)
    if hits is None:
        return record.Quality(split=split, n=predictions.n, **_per_token(predictions))
    right = int(hits.sum())
    return record.Quality(
        split=split,
        n=predictions.n,
        top1=right / predictions.n,
        top1_interval=wilson(right, predictions.n),
        loss=_loss(predictions),
    )


def _per_token(given: Predictions) -> dict[str, Any]:
    """Loss and perplexity over all labelled positions; nothing without any."""
    whole = _sequences(given)
    if whole is None or whole.loss is None or not whole.tokens:
        return {}
    loss = float(whole.loss.sum()) / whole.tokens
    low, high = ratio_interval(whole.loss, whole.labelled)
    low = max(0.0, low)  # a cross-entropy is never negative
    return {
        "loss": loss,
        "loss_interval": (low, high),
        "tokens": whole.tokens,
        "perplexity": _exp(loss),
        "perplexity_interval": (_exp(low), _exp(high)),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _sequences(given: Predictions) -> Sequences | None:
    """The answers at all positions; None with a single answer a sample."""
    if given.sequences is not None or given.log_probs.dim() < 3:
        return given.sequences
    return sequences_of(given.log_probs, given.target, given.counted)


def _check_predictions(given: Predictions) -> None:
    if given.log_probs.dim() < 2 or given.n == 0:
        raise DataError(
            f"predictions of shape {tuple(given.log_probs.shape)}",
            "Expected (samples, classes), at least one sample.",
        )
    if given.target is None:
        return
    if given.target.shape != given.log_probs.shape[:-1]:
        raise DataError(
            f"predictions of shape {tuple(given.log_probs.shape)} with labels of {tuple(given.target.shape)}",
            "Expected one label for each answer.",
        )
    _check_labels(given.target, given.classes)


def _hits(given: Predictions) -> Tensor | None:
    """Which samples are right, (samples,); None without one label per sample."""
    if given.target is None or given.target.dim() != 1:
        return None
    return given.log_probs.argmax(dim=-1) == given.target


def _loss(given: Predictions) -> float | None:
    if given.target is None:
        return None
    counted = given.target != IGNORED
    picked = given.log_probs.gather(-1, given.target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -float(picked[counted].double().mean())


def compare(original: Predictions, other: Predictions, split: str) -> record.Comparison:
    """One network against the original, sample by sample.

    Agreement is the share of samples with the same most likely class, with a Wilson interval (with positions:
    the mean share of positions, the interval still for n samples); `kl` the mean of KL(original || other) in
    nats with a t interval, cut at 0; the drop in top-1 has Tango's interval, McNemar's p, and the counts
    `lost` and `won`. With a label per position there is the increase of the loss instead, its interval paired by
    sample. Padding does not count.

    Args:
        original: what the original says.
        other: what the other network says about the same samples in the same order.
        split: which part of the data it was.

    Raises:
        DataError: different samples, shapes or labels.
    """
    _check_pair(original, other)
    n = original.n
    agreeing = float(_agreement(original, other).sum())
    divergence = _kl(original.log_probs, other.log_probs, original.counted)
    low, high = mean_interval(divergence)
    return record.Comparison(
        split=split,
        n=n,
        agreement=agreeing / n,
        agreement_interval=wilson(min(agreeing, n), n),
        kl=float(divergence.mean()),
        kl_interval=(max(0.0, low), high),
        **_drop(original, other),
        **_increase(original, other),
    )


def _agreement(original: Predictions, other: Predictions) -> Tensor:
    """The share of positions of each sample with the same most likely class."""
    before, after = _sequences(original), _sequences(other)
    if before is None or after is None:
        return (original.log_probs.argmax(dim=-1) == other.log_probs.argmax(dim=-1)).double()
    return mean_over((before.answers == after.answers).double(), before.counted)


def _increase(original: Predictions, other: Predictions) -> dict[str, Any]:
    before, after = _sequences(original), _sequences(other)
    if before is None or after is None or before.loss is None or after.loss is None or not before.tokens:
        return {}
    risen = after.loss - before.loss
    interval = ratio_interval(risen, before.labelled)
    return {"loss_increase": float(risen.sum()) / before.tokens, "loss_increase_interval": interval}


def mean_over(values: Tensor, counted: Tensor | None) -> Tensor:
    """The mean over the positions of each sample that count; 0 for a sample of padding alone."""
    flat = values.reshape(len(values), -1)
    if counted is None:
        return flat.mean(dim=1)
    weights = counted.to(flat).reshape(len(flat), -1)
    return (flat * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _drop(original: Predictions, other: Predictions) -> dict[str, Any]:
    before, after = _hits(original), _hits(other)
    if before is None or after is None:
        return {}
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return {
        "top1_drop": (lost - won) / original.n,
        "top1_drop_interval": paired_drop(original.n, lost, won),
        "p_value": mcnemar(lost, won),
        "lost": lost,
        "won": won,
    }


def _check_pair(original: Predictions, other: Predictions) -> None:
    _check_predictions(original)
    _check_predictions(other)
    if original.log_probs.shape != other.log_probs.shape:
        raise DataError(
            f"predictions of shapes {tuple(original.log_probs.shape)} and {tuple(other.log_probs.shape)}",
            "Both networks must answer about the same samples with the same classes.",
        )
    one, two = original.target, other.target
    same_labels = torch.equal(one, two) if one is not None and two is not None else one is two
    same_inputs = original.inputs is None or other.inputs is None or original.inputs == other.inputs
    if not (same_labels and same_inputs):
        raise DataError(
            "the two networks were not shown the same samples in the same order",
            "Use a loader that neither shuffles nor augments, or `paired_predictions` for both at once.",
        )


def kl_per_sample(original_logprobs: Tensor, other_logits: Tensor, counted: Tensor | None = None) -> Tensor:
    """KL(original || other) of every sample, in nats; the mean over the positions where there are any.

    Never negative, and exactly 0 for the logits that `original_logprobs` was made of, on the same device.
    Computed on the device of `other_logits`, in float64 where it has it.

    Args:
        original_logprobs: (samples, classes) or (samples, positions..., classes), as from
            `log_probabilities`.
        other_logits: logits or log-probabilities of the same shape, or as the model returned them (classes
            second).
        counted: (samples, positions...), which positions the mean is over; all where None.

    Returns:
        (samples,), float64 (float32 on devices without it).

    Raises:
        DataError: the shapes do not fit.
    """
    last = _like(original_logprobs, other_logits)
    # Rounded as log_probabilities rounds, so that a network has no distance from itself.
    narrow = last if last.dtype == torch.float64 else last.float()
    counted = counted.to(last.device) if counted is not None else None
    return _kl(original_logprobs.to(last.device), torch.log_softmax(narrow, dim=-1), counted)


def _like(original: Tensor, other: Tensor) -> Tensor:
    """`other` with its classes where `original` has them."""
    readings = [other] if other.dim() < 3 else [other, other.movedim(1, -1)]
    # Where all axes are equally long both readings fit; then the rule for logits without a target holds.
    if other.dim() > 3:
        readings.reverse()
    for reading in readings:
        if original.dim() >= 2 and reading.shape == original.shape:
            return reading
    raise DataError(
        f"log-probabilities of shape {tuple(original.shape)} against logits of shape {tuple(other.shape)}",
        "Both networks must answer about the same samples with the same classes.",
    )


def _kl(original: Tensor, other: Tensor, counted: Tensor | None) -> Tensor:
    rows = max(1, _CHUNK // max(1, original[0].numel())) if len(original) else 1
    masks = counted.split(rows) if counted is not None else [None] * len(original.split(rows))
    parts = zip(original.split(rows), other.split(rows), masks, strict=True)
    return torch.cat([_kl_rows(one, two, mask) for one, two, mask in parts])


def _kl_rows(original: Tensor, other: Tensor, counted: Tensor | None) -> Tensor:
    wide = torch.float32 if original.device.type == "mps" else torch.float64
    log_p = torch.log_softmax(original.to(wide), dim=-1)
    log_q = torch.log_softmax(other.to(wide), dim=-1)
    p = log_p.exp()
    # p log(p/q) - p + q sums to the same and is never negative term by term: rounding cannot make it less
    # than zero.
    terms = (p * (log_p - log_q) - p + log_q.exp()).clamp(min=0)
    return mean_over(terms.sum(dim=-1), counted)
