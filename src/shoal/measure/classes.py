"""Scores of classes: their probabilities, their labels, and the divergence of two networks' answers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.batches import IGNORED, Batch
from shoal.errors import DataError, NonFiniteError, count_of
from shoal.measure.intervals import wilson
from shoal.outputs import shown

VOID = 255  # in masks of 8 bits, the value of pixels that have no class
WHITE_MASKS = "the masks hold 0 and 255 alone, and 255 means that a pixel has no class"
HOW_TO_MARK = "Is 255 the foreground? Then give it as 1, also in files: `(masks > 0).long()`. If not, mark it -100."
_CHUNK = 2**17  # values handled at once in float64: what fits into a processor's cache is summed several times faster


def check_samples(logits: Tensor, batch: Batch, name: str = "") -> None:
    """Refuse answers that have no row for each sample, as those of a detector.

    Raises:
        DataError: with the shape.
    """
    if logits.dim() == 0 or logits.shape[0] != batch.size:
        raise DataError(
            f"the model returned shape {tuple(logits.shape)} for {count_of(batch.size, 'sample')}"
            f"{f' in {shown(name)}' if name else ''}, expected a row for each sample, such as (samples, classes)",
            "Wrap the model so that it returns one row per sample, or name the outputs that have one (output=).",
        )


def log_probabilities(logits: Tensor, target: Tensor | None = None, axis: int | None = None) -> Tensor:
    """Log-softmax over the classes, with the classes moved to the end.

    The classes are axis 1 of (samples, classes). With more axes the target's shape decides, if there is one:
    (B, T, V) goes with (B, T), (B, C, H, W) with (B, H, W). Where it cannot, three axes are read as (samples,
    positions, classes), as language models have it, and four or more as (samples, classes, height, width).

    Args:
        logits: floating-point, two or more axes.
        target: class indices, used for their shape only.
        axis: of the classes, where it is known.

    Returns:
        float32, (samples, classes) or (samples, positions..., classes).

    Raises:
        DataError: fewer than two axes, or a single class: softmax of one value is 1 whatever it is.
        NonFiniteError: every class of an answer is -Inf.
    """
    if logits.dim() < 2:
        raise DataError(f"logits of shape {tuple(logits.shape)}", "Expected (samples, classes).")
    last = classes_last(logits, target) if axis is None else logits.movedim(axis, -1)
    if last.shape[-1] < 2:
        raise DataError(
            f"the model returned shape {tuple(logits.shape)}, a single value per sample or position",
            "Probabilities need two classes: wrap a binary classifier so that it returns two logits, (0, x).",
        )
    log_probs = torch.log_softmax(last.float(), dim=-1)
    # The sum is NaN where any term is, at a tenth of the time of looking at each.
    if torch.isnan(log_probs.sum()) and not torch.isnan(last).any():
        raise NonFiniteError("every class of an answer is -Inf", "A mask must leave at least one class.")
    return log_probs


def binary_scores(logits: Tensor, axis: int = 1) -> Tensor:
    """The scores of two classes that a single one stands for, the logit of the second: (0, x), whose softmax it is."""
    return torch.cat([torch.zeros_like(logits), logits], dim=axis)


def classes_last(logits: Tensor, target: Tensor | None = None) -> Tensor:
    """Scores with the classes moved to the end, by the rule of `log_probabilities`."""
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
            f"labels of shape {tuple(target.shape)} for {count_of(log_probs.shape[0], 'sample')}",
            "A loader must yield as many labels as samples.",
        )
    shape = log_probs.shape[:-1]
    # A column of labels, (samples, 1), is a common way to write (samples,), and so are masks of one channel.
    if target.shape in ((*shape, 1), (shape[0], 1, *shape[1:])):
        target = target.reshape(shape)
    target = target.detach().cpu()
    if target.shape == log_probs.shape and _is_one_hot(target):
        target = target.argmax(dim=-1)
    if target.shape != shape or (target.is_floating_point() and not torch.equal(target, target.round())):
        return None
    return class_indices(target, log_probs.shape[-1])


def _is_one_hot(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all()) and bool((target.sum(dim=-1) == 1).all())


def class_indices(target: Tensor, classes: int) -> Tensor:
    """Labels as int64 on the CPU, -100 where they say nothing; of pixels 255 says nothing either, as VOC has it.

    Raises:
        DataError: they are out of range.
    """
    labels = target.detach().cpu().long()
    if labels.dim() > 2 and classes <= VOID:
        labels = labels.masked_fill(labels == VOID, IGNORED)
    check_labels(labels, classes)
    return labels


@dataclass
class MaskValues:
    """What masks hold, gathered over all of them: a single one may well have nothing but 0 and 255.

    Args:
        zero: whether some pixel is 0.
        classes: whether some pixel is of another class.
        void: whether some pixel is 255.
    """

    zero: bool = False
    classes: bool = False
    void: bool = False

    def add(self, masks: Tensor) -> None:
        """Take in masks of any shape."""
        void = masks == VOID
        self.zero |= bool((masks == 0).any())
        self.classes |= bool(((masks > 0) & ~void).any())
        self.void |= bool(void.any())

    @property
    def are_white(self) -> bool:
        """Whether by all appearances 255 is the foreground: it would count nowhere, and all else is background."""
        return self.zero and self.void and not self.classes


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse class indices that a network of so many classes does not have; -100 may stand at positions.

    Raises:
        DataError: with the first of them.
    """
    wrong = (labels < 0) | (labels >= classes)
    if labels.dim() > 1:
        wrong &= labels != IGNORED
    if wrong.any():
        label = int(labels[wrong][0])
        raise DataError(
            f"label {label} does not fit a model with {classes} classes (0 to {classes - 1});"
            f" {int(wrong.sum())} of {labels.numel()} labels are out of range",
            _starts_at(labels, classes),
        )


def _starts_at(labels: Tensor, classes: int) -> str:
    kept = labels[labels != IGNORED]
    if kept.numel() and int(kept.max()) == classes and int(kept.min()) >= 1:
        return "The labels seem to start at 1: subtract 1."
    return (
        "Check that data and model belong together, and that the labels start at 0; or name another output (output=)."
    )


def no_better_than_chance(right: int, n: int, classes: int | None) -> list[str]:
    """A warning where a network's answers cannot be told from guessing; nothing where they can."""
    if not classes or not n or wilson(right, n)[0] > 1 / classes:
        return []
    return [
        f"the original is no better than chance: {right} of {n} answers are right, among {classes} classes; figures of"
        " such a network mean little. Are the labels those it was trained with (from 0), its weights loaded, and its"
        " inputs scaled as it expects (--mean, --std)?"
    ]


def mean_over(values: Tensor, counted: Tensor | None) -> Tensor:
    """The mean over the positions of each sample that count; 0 for a sample of padding alone."""
    flat = values.reshape(len(values), -1)
    if counted is None:
        return flat.mean(dim=1)
    weights = counted.to(flat).reshape(len(flat), -1)
    return (flat * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def kl_per_sample(original_logprobs: Tensor, other_logits: Tensor, counted: Tensor | None = None) -> Tensor:
    """KL(original || changed) of every sample, in nats; the mean over the positions where there are any.

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
    return mean_kl(original_logprobs.to(last.device), torch.log_softmax(narrow, dim=-1), counted)


def _like(original: Tensor, changed: Tensor) -> Tensor:
    """`changed` with its classes where `original` has them."""
    readings = [changed] if changed.dim() < 3 else [changed, changed.movedim(1, -1)]
    # Where all axes are equally long both readings fit; then the rule for logits without a target holds.
    if changed.dim() > 3:
        readings.reverse()
    for reading in readings:
        if original.dim() >= 2 and reading.shape == original.shape:
            return reading
    raise DataError(
        f"log-probabilities of shape {tuple(original.shape)} against logits of shape {tuple(changed.shape)}",
        "Both networks must answer about the same samples with the same classes.",
    )


def mean_kl(original: Tensor, changed: Tensor, counted: Tensor | None) -> Tensor:
    """KL(original || changed) of every sample, the mean over the positions that count.

    Args:
        original: log-probabilities, classes last.
        changed: likewise, of the same shape.
        counted: which positions the mean is over; all where None.
    """
    classes = original.shape[-1]
    p, q = original.reshape(-1, classes), changed.reshape(-1, classes)
    rows = max(1, _CHUNK // classes)
    parts = [_kl_rows(*pair) for pair in zip(p.split(rows), q.split(rows), strict=True)]
    return mean_over(torch.cat(parts).reshape(original.shape[:-1]), counted)


def _kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL of each row of log-probabilities, whose sums may be off 1 by rounding: they are normalised in float64 here."""
    wide = torch.float32 if log_p.device.type == "mps" else torch.float64
    log_p, log_q = log_p.to(wide), log_q.to(wide)
    p = log_p.exp()
    # A masked class has no probability: 0 log 0 is 0.
    gap = torch.where(p > 0, log_q - log_p, 0.0)
    total = p.sum(dim=-1)
    # Equal rows give 0 exactly; rounding cannot make it less.
    return (log_q.exp().sum(dim=-1).log() - total.log() - (p * gap).sum(dim=-1) / total).clamp(min=0)
