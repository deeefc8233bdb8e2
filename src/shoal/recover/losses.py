"""The losses of distillation: how far a student's outputs and features are from the teacher's."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.batches import IGNORED, Batch
from shoal.errors import DataError
from shoal.measure import Reading, log_probabilities
from shoal.measure.classes import checked_labels, mean_over
from shoal.measure.output_reading import cosine_distance, padding_of, squared_error
from shoal.recover.mixup import Mixup

_MASKS = ("attention_mask", "decoder_attention_mask")
_MIN_VARIANCE = 1e-6  # of a feature's variance, so that a dead feature does not divide by zero


def divergence_loss(
    teacher: Tensor, student: Tensor, batch: Batch, temperature: float = 1.0, axis: int | None = None
) -> Tensor:
    """KL(teacher || student) in nats, the mean over samples; positions of padding do not count.

    Source: Hinton et al. 2015, arXiv:1503.02531; times the square of the temperature, as there.

    Args:
        teacher: logits, see `measure.log_probabilities` for the shapes.
        student: logits of the same shape.
        batch: the inputs of both.
        temperature: both logits are divided by it.
        axis: of the classes, if it is known.
    """
    expected = log_probabilities(teacher.float() / temperature, batch.target, axis)
    predicted = log_probabilities(student.float() / temperature, batch.target, axis)
    # A masked class, of probability 0, adds nothing.
    by_class = F.kl_div(predicted, expected, reduction="none", log_target=True).masked_fill(expected == -torch.inf, 0.0)
    by_position = by_class.sum(dim=-1)
    return mean_over(by_position, batch.counted(by_position.shape)).mean() * temperature**2


def output_loss(
    reading: Reading,
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    batch: Batch,
    temperature: float = 1.0,
) -> Tensor:
    """How far a student's outputs are from the teacher's, the mean over samples and over the outputs.

    Of scores of classes it is the divergence, of values the squared error relative to their variance, of directions one
    minus the cosine.

    Args:
        reading: how outputs are read, with their scales.
        teacher: outputs by name.
        student: likewise.
        batch: the inputs of both.
        temperature: of the divergence.
    """
    losses = []
    for output in reading.outputs:
        before, after = teacher[output.name], student[output.name]
        if output.task == "classes":
            scores = output.scores(before), output.scores(after)
            losses.append(divergence_loss(*scores, batch, temperature, output.axis))
        elif output.task == "direction":
            losses.append(cosine_distance(before, after, padding_of(before, batch)).mean().float())
        else:
            padding = padding_of(before, batch) if output.rows else None
            losses.append(squared_error(before.float(), after.float(), padding).mean().float() / (output.scale or 1.0))
    return torch.stack(losses).mean()


def feature_loss(
    teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], batch: Batch | None = None, sigmas: float = 0.0
) -> Tensor:
    """The squared error of the features, as a share of the teacher's variance; the mean over the blocks of both.

    Positions of padding do not count where features have the shape (samples, positions, values), as the mask does.

    Source: Romero et al. 2015, arXiv:1412.6550, here without a regressor, since the shapes are the same; the mask of
    Fang et al. 2025, TinyFusion, arXiv:2412.01199: a few activations are so large that they would be all of the loss.

    Args:
        teacher: features by path, (samples, ...); at least one.
        student: of the same paths and shapes.
        batch: the inputs of both; None where nothing is padding.
        sigmas: what the teacher has farther than so many standard deviations from the mean does not count; 0: all does.
    """
    shares = []
    for path, features in student.items():
        expected, actual = teacher[path].float(), features.float()
        counted = _counted(expected, batch)
        if counted is not None:
            expected, actual = expected[counted], actual[counted]
        if sigmas:
            near = (expected - expected.mean()).abs() <= sigmas * expected.std(correction=0)
            expected, actual = expected[near], actual[near]
        variance = expected.var(correction=0).clamp(min=_MIN_VARIANCE)
        shares.append((actual - expected).square().mean() / variance)
    return torch.stack(shares).mean()


def _counted(features: Tensor, batch: Batch | None) -> Tensor | None:
    """Which positions of (samples, positions, values) are not padding; None where all count, or no single mask fits.

    Of a network with an encoder and a decoder, features of either may be compared: the shape tells whose mask it is.
    """
    if batch is None or features.dim() != 3:
        return None
    values = [batch.kwargs.get(name) for name in _MASKS]
    masks = [value for value in values if isinstance(value, Tensor) and value.shape == features.shape[:2]]
    if len(masks) != 1:
        return None
    counted = masks[0] != 0
    return counted if counted.any() and not counted.all() else None


def label_loss(student: Tensor, batch: Batch, mixture: Mixup | None, partners: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels; of mixed samples with both labels, by their weights.

    Args:
        student: logits.
        batch: with a target: class indices of the answers' shape, on any device; -100 is skipped.
        mixture: of the samples, or None.
        partners: the labels of the samples that these were mixed with, where they are not among these.

    Raises:
        DataError: there are no labels, not one for each answer, or of classes that the network does not have.
    """
    if batch.target is None:
        raise DataError(
            "a mini-batch has no labels, and the loss was asked to use them",
            "Give data with labels, or set `labels` to 0: distillation needs none.",
        )
    log_probs = log_probabilities(student.float(), batch.target)
    target = _class_indices(batch.target, log_probs).to(log_probs.device)
    loss = _cross_entropy(log_probs, target)
    if mixture is None:
        return loss.mean()
    weight = mixture.weight.to(loss)
    if partners is not None:
        others = _class_indices(partners, log_probs).to(log_probs.device)
    else:
        others = target[mixture.partner]
    return (weight * loss + (1 - weight) * _cross_entropy(log_probs, others)).mean()


def _class_indices(target: Tensor, log_probs: Tensor) -> Tensor:
    """int64, on the CPU, of the answers' shape; whatever integer dtype they had, and also as a column."""
    target = target.detach().cpu()
    skipped = target.long() == IGNORED
    labels = checked_labels(target.masked_fill(skipped, 0), log_probs)
    if labels is None:
        raise DataError(
            f"labels of shape {tuple(target.shape)} and {target.dtype} for answers of shape"
            f" {tuple(log_probs.shape[:-1])}",
            "Give one class index for each output, or set `labels` to 0.",
        )
    return labels.masked_fill(skipped.reshape(labels.shape), IGNORED)


def _cross_entropy(log_probs: Tensor, target: Tensor) -> Tensor:
    """(samples,): the mean over the positions that have a label."""
    counted = target != IGNORED
    picked = log_probs.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return mean_over(-picked, counted if target.dim() > 1 else None) * (1 if target.dim() > 1 else counted)
