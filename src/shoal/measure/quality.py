"""The quality of a network, and its distance from another one, sample by sample on the same data.

Log-probabilities are kept with the classes last: (samples, classes), or (samples, positions..., classes)
where the network answers at every position of a sample (tokens, pixels). The sample stays the unit: positions
are averaged, those of padding (an attention mask of 0) left out.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal import record
from shoal.batches import IGNORED, Batch, batches, call_in_parts, device_of, items_of
from shoal.errors import DataError, UsageError
from shoal.measure.classes import check_labels, checked_labels, log_probabilities, mean_kl, mean_over
from shoal.measure.intervals import mcnemar, mean_interval, paired_drop, ratio_interval, wilson
from shoal.measure.output_reading import (
    OutputReading,
    Reading,
    Spread,
    cosine_distance,
    inferred,
    padding_of,
    share_differing,
    squared_error,
)
from shoal.measure.sequences import (
    SequencePredictions,
    concatenate,
    gather_positions,
    lengthened,
    reduce_sequences,
    sample_positions,
)
from shoal.preserve import evaluating


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of a network for every sample of a loader, on the CPU: one output, and `others` where there are any.

    Args:
        answers: float32; log-probabilities, (samples, classes) or (samples, positions..., classes), or the values of an
            output that is no scores of classes, (samples, ...).
        target: int64 class indices, shape of `answers` without its classes; None where there are no labels,
            or where they are no class indices of this shape (multi-label, soft labels, numbers to be
            predicted).
        inputs: checksum of the samples in their order, to tell whether two passes saw the same ones; None if
            unknown.
        counted: which answers are no padding, of the shape of `target`, or (samples, positions) of values; None where
            all are.
        sequences: the answers at every position, where `answers` and `target` keep only some of them (see
            `measure.sequences`); None with a single answer a sample.
        output: how the output was read; None for scores of classes.
        others: the same of every other output that counts.
    """

    answers: Tensor
    target: Tensor | None = None
    inputs: int | None = None
    counted: Tensor | None = None
    sequences: SequencePredictions | None = None
    output: OutputReading | None = None
    others: tuple["Predictions", ...] = ()

    @property
    def n(self) -> int:
        """How many samples."""
        return int(self.answers.shape[0])

    @property
    def are_classes(self) -> bool:
        """Whether the answers are log-probabilities."""
        return self.output is None or self.output.task == "classes"

    @property
    def log_probs(self) -> Tensor:
        """The answers of an output that is scores of classes."""
        return self.answers

    @property
    def classes(self) -> int:
        """How many classes."""
        return int(self.answers.shape[-1])

    @property
    def outputs(self) -> tuple["Predictions", ...]:
        """Every output that counts, each by itself."""
        return (replace(self, others=()), *self.others)


def predictions(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    reading: Reading | None = None,
) -> Predictions:
    """Run a network in eval mode over a loader, once; the network comes back as it was.

    Memory: 4 bytes per sample, position and class (or value), and no more than about 1 MB for each sequence of tokens.

    Args:
        model: returns logits, see `log_probabilities` for the shapes, or values.
        loader: yields `(inputs, target)`, `inputs`, or a dict of tensors.
        device: where the mini-batches go; by default where the model is. The model itself is not moved.
        reading: how outputs are read; by default as the first mini-batch and its labels tell.

    Raises:
        DataError: no samples, labels out of range, outputs that have no row for each sample.
        NonFiniteError: NaN or Inf in the outputs.
        ModelRaisedError: the model raised.
    """
    return paired_predictions([model], loader, device, reading)[0]


def paired_predictions(
    models: Sequence[nn.Module],
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    reading: Reading | None = None,
) -> list[Predictions]:
    """Run several networks over the very same mini-batches, in one pass.

    For loaders that shuffle or augment this is the only way to compare networks sample by sample.

    Args:
        models: the networks, each on its own device unless `device` is given.
        loader: as for `predictions`.
        device: where the mini-batches go; by default where each model is.
        reading: how outputs are read; by default as the first network, the first mini-batch and its labels tell.

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
    gathered = [_PredictionCollector() for _ in models]
    checksum = 0
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for item in items_of(loader):
            batch = next(batches([item]))
            checksum = _checksum(batch, checksum)
            for model, parts in zip(models, gathered, strict=True):
                here = batch.to(device if device is not None else device_of(model))
                for part, output in call_in_parts(model, here):
                    if reading is None:
                        reading = inferred(model, output, part)
                    reading = reading.informed_by(model, output, part)
                    parts.add(reading, output, part)
    return [parts.concatenate(checksum) for parts in gathered]


class _PredictionCollector:
    """The parts of one network's predictions, output by output and mini-batch by mini-batch."""

    def __init__(self) -> None:
        self.outputs: dict[str, _OutputCollector] = {}

    def add(self, reading: Reading, output: Any, batch: Batch) -> None:
        tensors = reading.tensors(output, batch)
        for head in reading.outputs:
            self.outputs.setdefault(head.name, _OutputCollector(head)).add(tensors[head.name], batch)

    def concatenate(self, checksum: int) -> Predictions:
        if not self.outputs:
            raise DataError(
                "the loader yielded no mini-batch",
                "Check the data set and its filter; a generator can be read only once.",
            )
        first, *others = [collector.concatenate(checksum) for collector in self.outputs.values()]
        return replace(first, others=tuple(others))


class _OutputCollector:
    """The parts of one output, mini-batch by mini-batch."""

    def __init__(self, output: OutputReading) -> None:
        self.output = output
        self.parts: list[Predictions] = []
        self.shapes: set[tuple[int, ...]] = set()

    def add(self, tensor: Tensor, batch: Batch) -> None:
        if self.output.task != "classes":
            part = _values(self.output, tensor, batch)
            self.shapes.add(tuple(part.answers.shape[1:]))
        else:
            log_probs = log_probabilities(self.output.scores(tensor), axis=self.output.axis)
            self.shapes.add(tuple(log_probs.shape[1:]))
            part = _reduced(log_probs, checked_labels(batch.target, log_probs), batch)
        self.parts.append(part)

    def concatenate(self, checksum: int) -> Predictions:
        shapes = sorted(self.shapes)
        if len(shapes) > 1 and _differ_in_length(self.output, shapes):
            self.parts = [_padded(part, max(shape[0] for shape in shapes)) for part in self.parts]
        elif len(shapes) > 1:
            raise DataError(
                f"the output's shape changes between mini-batches: {shapes[0]} and {shapes[1]} per sample",
                "Bring all samples to one size (pad or cut the texts, resize the images).",
            )
        answers = torch.cat([part.answers for part in self.parts])
        if self.output.task != "classes":
            return Predictions(answers, None, checksum, _joined_masks(self.parts), None, self.output)
        labelled = [part.target for part in self.parts if part.target is not None]
        if labelled and len(labelled) < len(self.parts):
            missing = len(self.parts) - len(labelled)
            raise DataError(
                f"{missing} of {len(self.parts)} mini-batches have no usable labels, the others do",
                "Give labels for all samples, or for none.",
            )
        sequences = [part.sequences for part in self.parts if part.sequences is not None]
        return Predictions(
            answers,
            torch.cat(labelled) if labelled else None,
            checksum,
            _joined_masks(self.parts),
            concatenate(sequences) if sequences else None,
            self.output,
        )


def _differ_in_length(output: OutputReading, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether shapes of a sample differ in the number of positions alone, as texts and sounds do."""
    least = 1 if output.task == "exact" else 2
    return all(len(shape) >= least and shape[1:] == shapes[0][1:] for shape in shapes)


def _padded(part: Predictions, length: int) -> Predictions:
    """The answers to one mini-batch with positions behind them that do not count, up to so many."""
    if part.answers.shape[1] == length:
        return part
    counted = _mask(part)
    return replace(
        part,
        answers=lengthened(part.answers, length, 0),
        target=lengthened(part.target, length, IGNORED) if part.target is not None else None,
        counted=lengthened(counted, length, fill=False),
    )


def _mask(part: Predictions) -> Tensor:
    """Which positions count, also where all do."""
    shape = part.answers.shape[:-1] if part.are_classes else part.answers.shape[:2]
    return torch.ones(shape, dtype=torch.bool) if part.counted is None else part.counted


def _joined_masks(parts: Sequence[Predictions]) -> Tensor | None:
    """Which positions count of all mini-batches; None where all do."""
    if all(part.counted is None for part in parts):
        return None
    return torch.cat([_mask(part) for part in parts])


def _values(output: OutputReading, tensor: Tensor, batch: Batch) -> Predictions:
    """The values of one mini-batch; a tensor without rows stands behind each sample."""
    values = tensor.detach().cpu()
    if output.task != "exact":  # integers as they are: float32 rounds large ones
        values = values.float()
    values = values if output.rows else values.expand(batch.size, *values.shape)
    return Predictions(values, counted=padding_of(values, batch), output=output)


def _reduced(log_probs: Tensor, target: Tensor | None, batch: Batch) -> Predictions:
    """The answers to one mini-batch, those at positions thinned out where there are too many.

    They are thinned out on their device: what a vocabulary says at every position takes longer to move than to compute.
    """
    if log_probs.dim() < 3:
        return Predictions(log_probs.cpu(), target)
    counted = batch.counted(log_probs.shape[:-1])
    counted = counted.cpu() if counted is not None else None
    sequences = reduce_sequences(log_probs, target, counted)
    positions = sample_positions(log_probs, counted)
    if positions is None:
        return Predictions(log_probs.cpu(), target, counted=counted, sequences=sequences)
    return Predictions(
        gather_positions(log_probs, positions.to(log_probs.device)).cpu(),
        gather_positions(target, positions) if target is not None else None,
        None,
        None,
        sequences,
    )


def _checksum(batch: Batch, before: int) -> int:
    """CRC of the first input, continued from `before`: the same however samples are cut into mini-batches."""
    values = batch.tensors[0].detach().cpu().reshape(-1)
    return zlib.crc32(values.view(torch.uint8).numpy().tobytes(), before)


def quality(predictions: Predictions, split: str, output: str | None = None) -> record.Quality:
    """The quality of one network: `top1` with its Wilson interval, and the mean cross-entropy in nats.

    With one label per position there is no `top1`, since positions of one sample are not independent; the
    loss is the mean over the labelled positions (label -100 and padding are skipped), with its exponential, the
    perplexity of a text, and intervals that take the samples as independent. Targets must stand at the position that
    answers them: `as_batch` moves those of a language model.

    Args:
        predictions: of one network.
        split: which part of the data it was: train, validation, test.
        output: which of several outputs the figures are of; by default the first with class scores. `outputs` of the
            result holds all. Values have no figures without the original to compare with.

    Raises:
        DataError: no samples, or labels that do not fit.
    """
    parts = [_quality(part, split) for part in predictions.outputs]
    if len(parts) == 1:
        return parts[0]
    main = next((part for part in parts if output is not None and part.output == output), None)
    by_output = zip(parts, predictions.outputs, strict=True)
    main = main or next((part for part, output_part in by_output if output_part.are_classes), parts[0])
    return main.model_copy(update={"outputs": parts})


def _quality(part: Predictions, split: str) -> record.Quality:
    """Of one output."""
    name = part.output.name if part.output is not None else None
    if not part.are_classes:
        return record.Quality(split=split, n=part.n, output=name or None)
    _check_predictions(part)
    hits = _hits(part)
    if hits is None:
        return record.Quality(split=split, n=part.n, output=name or None, **_per_token(part))
    right = int(hits.sum())
    return record.Quality(
        split=split,
        n=part.n,
        top1=right / part.n,
        top1_interval=wilson(right, part.n),
        loss=_loss(part),
        classes=part.classes,
        output=name or None,
    )


def _per_token(predictions: Predictions) -> dict[str, Any]:
    """Loss and perplexity over all labelled positions; of pixels, which nobody reads in order, the loss alone."""
    whole = _sequences(predictions)
    if whole is None or whole.loss is None or not whole.tokens:
        return {}
    loss = float(whole.loss.sum()) / whole.tokens
    low, high = ratio_interval(whole.loss, whole.labelled)
    low = max(0.0, low)  # a cross-entropy is never negative
    figures = {"loss": loss, "loss_interval": (low, high), "tokens": whole.tokens}
    if predictions.log_probs.dim() > 3:
        return figures
    return figures | {"perplexity": _exp(loss), "perplexity_interval": (_exp(low), _exp(high))}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _sequences(predictions: Predictions) -> SequencePredictions | None:
    """The answers at all positions; None with a single answer a sample."""
    if predictions.sequences is not None or predictions.log_probs.dim() < 3:
        return predictions.sequences
    return reduce_sequences(predictions.log_probs, predictions.target, predictions.counted)


def _check_predictions(predictions: Predictions) -> None:
    if predictions.n == 0 or (predictions.are_classes and predictions.log_probs.dim() < 2):
        raise DataError(
            f"predictions of shape {tuple(predictions.log_probs.shape)}",
            "Expected (samples, classes), at least one sample.",
        )
    if predictions.target is None:
        return
    if predictions.target.shape != predictions.log_probs.shape[:-1]:
        raise DataError(
            f"predictions of shape {tuple(predictions.log_probs.shape)}"
            f" with labels of {tuple(predictions.target.shape)}",
            "Expected one label for each answer.",
        )
    check_labels(predictions.target, predictions.classes)


def _hits(predictions: Predictions) -> Tensor | None:
    """Which samples are right, (samples,); None without one label per sample."""
    if predictions.target is None or predictions.target.dim() != 1:
        return None
    return predictions.log_probs.argmax(dim=-1) == predictions.target


def _loss(predictions: Predictions) -> float | None:
    if predictions.target is None:
        return None
    counted = predictions.target != IGNORED
    picked = predictions.log_probs.gather(-1, predictions.target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -float(picked[counted].double().mean())


def compare(original: Predictions, changed: Predictions, split: str) -> record.Comparison:
    """One network against the original, sample by sample.

    Agreement is the share of samples with the same most likely class, with a Wilson interval (with positions:
    the mean share of positions, the interval still for n samples); `kl` the mean of KL(original || changed) in
    nats with a t interval, cut at 0; the drop in top-1 has Tango's interval, McNemar's p, and the counts
    `lost` and `won`. With a label per position there is the increase of the loss instead, its interval paired by
    sample. Padding does not count.

    An output of values has the mean squared error instead, relative to the variance of the original's output, with a t
    interval; one of integers the mean share of elements that differ. Of several outputs each stands in `outputs`, and
    the whole is that of the one that lost most.

    Args:
        original: predictions of the original.
        changed: those of the changed network for the same samples in the same order.
        split: which part of the data it was.

    Raises:
        DataError: different samples, shapes or labels.
    """
    pairs = list(zip(original.outputs, changed.outputs, strict=True))
    damages = [_damage(before, after) for before, after in pairs]
    parts = [_compared(*pair, damage, split) for pair, damage in zip(pairs, damages, strict=True)]
    if len(parts) == 1:
        return parts[0]
    by_classes = [part for part, (before, _) in zip(parts, pairs, strict=True) if before.are_classes]
    worst = max(by_classes or parts, key=record.metric_drop)
    error = max((part for part in parts if part.mse is not None), key=record.metric_drop, default=worst)
    exact = max((part for part in parts if part.differing is not None), key=record.metric_drop, default=worst)
    damage = torch.stack(damages).sort(dim=0).values.mean(dim=0)
    whole = {"kl": float(damage.mean()), "kl_interval": _interval(damage), "outputs": parts}
    others = {"mse": error.mse, "mse_interval": error.mse_interval}
    others |= {"differing": exact.differing, "differing_interval": exact.differing_interval}
    direction = max((part for part in parts if part.cosine_distance is not None), key=record.metric_drop, default=worst)
    others["cosine_distance"] = direction.cosine_distance
    others["cosine_distance_interval"] = direction.cosine_distance_interval
    return worst.model_copy(update={**whole, **others})


def _damage(original: Predictions, changed: Predictions) -> Tensor:
    """Of one output, for each sample."""
    _check_pair(original, changed)
    if original.are_classes:
        return mean_kl(original.answers, changed.answers, original.counted).double()
    if original.output is not None and original.output.task == "exact":
        return share_differing(original.answers, changed.answers, original.counted)
    if original.output is not None and original.output.task == "direction":
        return cosine_distance(original.answers, changed.answers, original.counted)
    return _relative_error(original, changed)


def _interval(damage: Tensor) -> record.Interval:
    low, high = mean_interval(damage)
    return max(0.0, low), high


def _compared(original: Predictions, changed: Predictions, damage: Tensor, split: str) -> record.Comparison:
    """One output."""
    n, mean, interval = original.n, float(damage.mean()), _interval(damage)
    name = (original.output.name if original.output is not None else "") or None
    if not original.are_classes:
        figures_by_task = {"exact": "differing", "direction": "cosine_distance"}
        figure = figures_by_task.get(original.output.task if original.output is not None else "values", "mse")
        figures = {"kl": mean, "kl_interval": interval, figure: mean, f"{figure}_interval": interval}
        return record.Comparison.model_validate({"split": split, "n": n, "output": name, **figures})
    agreeing = float(_agreement(original, changed).sum())
    return record.Comparison(
        split=split,
        n=n,
        output=name,
        agreement=agreeing / n,
        agreement_interval=wilson(min(agreeing, n), n),
        kl=mean,
        kl_interval=interval,
        **_drop(original, changed),
        **_increase(original, changed),
    )


def _relative_error(original: Predictions, changed: Predictions) -> Tensor:
    """The squared error of each sample as a share of the original's variance: as it was read, else of these samples."""
    scale = original.output.scale if original.output is not None else None
    if scale is None:
        spread = Spread()
        spread.add(original.answers, original.counted)
        scale = spread.scale
    return squared_error(original.answers, changed.answers, original.counted) / scale


def _agreement(original: Predictions, changed: Predictions) -> Tensor:
    """The share of positions of each sample with the same most likely class."""
    before, after = _sequences(original), _sequences(changed)
    if before is None or after is None:
        return (original.log_probs.argmax(dim=-1) == changed.log_probs.argmax(dim=-1)).double()
    return mean_over((before.answers == after.answers).double(), before.counted)


def _increase(original: Predictions, changed: Predictions) -> dict[str, Any]:
    before, after = _sequences(original), _sequences(changed)
    if before is None or after is None or before.loss is None or after.loss is None or not before.tokens:
        return {}
    risen = after.loss - before.loss
    interval = ratio_interval(risen, before.labelled)
    return {"loss_increase": float(risen.sum()) / before.tokens, "loss_increase_interval": interval}


def _drop(original: Predictions, changed: Predictions) -> dict[str, Any]:
    before, after = _hits(original), _hits(changed)
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


def _check_pair(original: Predictions, changed: Predictions) -> None:
    _check_predictions(original)
    _check_predictions(changed)
    if original.log_probs.shape != changed.log_probs.shape:
        raise DataError(
            f"predictions of shapes {tuple(original.log_probs.shape)} and {tuple(changed.log_probs.shape)}",
            "Both networks must answer about the same samples with the same classes.",
        )
    labels, changed_labels = original.target, changed.target
    same_labels = (
        torch.equal(labels, changed_labels)
        if labels is not None and changed_labels is not None
        else labels is changed_labels
    )
    same_inputs = original.inputs is None or changed.inputs is None or original.inputs == changed.inputs
    if not (same_labels and same_inputs):
        raise DataError(
            "the two networks were not shown the same samples in the same order",
            "Use a loader that neither shuffles nor augments, or `paired_predictions` for both at once.",
        )
