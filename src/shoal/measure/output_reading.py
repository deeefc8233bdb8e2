"""How a network's outputs are read (as class scores, or as values), and the distance of two networks' outputs.

Nothing is inferred silently. An output is scores of classes where the labels are class indices that fit it, or where
the network's own class says so; then its damage is the divergence of the probabilities. Any other output is values:
images, regression, embeddings, features. Their damage is the squared error, relative to the variance of the original's
output: a softmax would be blind to a shift of all values. Integers and booleans (predicted classes, masks) are the same
or not: their damage is the share of elements that differ. Where a task says that an output is an embedding, its
direction counts: damage is one minus the cosine. A `Reading` says which was taken and why.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal import record
from shoal.batches import Batch, batches, call, device_of
from shoal.errors import DataError, NonFiniteError, UsageError, count_of
from shoal.measure.classes import (
    HOW_TO_MARK,
    VOID,
    WHITE_MASKS,
    MaskValues,
    binary_scores,
    check_samples,
    class_indices,
    kl_per_sample,
    log_probabilities,
    mean_over,
)
from shoal.outputs import Outputs, check_numbers, chosen_outputs, named_outputs, read_outputs, shown
from shoal.preserve import evaluating

_HEADS = re.compile(
    r"For\w*(Classification|LM|Generation|QuestionAnswering|MultipleChoice|NextSentencePrediction|Segmentation"
    r"|ObjectDetection|CTC)$|LMHeadModel$|DoubleHeadsModel$"
)
Task = Literal["classes", "values", "exact", "direction"]
_SCORES = ("logits", "start_logits", "end_logits")
_CLASSIFIERS = re.compile(r"torchvision\.models\.(?!detection|segmentation|optical_flow)")


@dataclass(frozen=True)
class Expectation:
    """How outputs of real numbers are read where the user, or the model's class, says what its task is.

    Args:
        task: its name, for the record.
        kind: scores of classes, values, or directions (embeddings).
        axis: of the classes; ignored for the others.
        names: of the outputs that it is about; None for all. Others are read as labels and the network's class tell.
        binary: whether a single score at each position is the logit of the second of two classes; else it is values.
    """

    task: str
    kind: Literal["classes", "values", "direction"]
    axis: int = -1
    names: tuple[str, ...] | None = None
    binary: bool = False

    def covers(self, name: str) -> bool:
        """Whether it says how the output of this name is read."""
        return self.names is None or name in self.names

    def read(self, name: str, tensor: Tensor, *, rows: bool) -> "OutputReading":
        """How a tensor of real numbers is read; one without a row for each sample, or with no classes, is values."""
        why = f"the task is {self.task}"
        if not rows or tensor.dim() < 2:
            return OutputReading(name, "values", why if rows else "no row for each sample", rows=rows)
        if self.kind != "classes":
            return OutputReading(name, self.kind, why, rows=True)
        if self.binary and tensor.dim() > 2 and tensor.shape[self.axis] == 1:
            why = f"{why}, and its single score is the logit of class 1 against class 0"
            return OutputReading(name, "classes", why, self.axis, classes=2, binary=True)
        if tensor.shape[self.axis] < 2:
            return OutputReading(name, "values", f"{why}, and it has a single class", rows=True)
        axis = -1 if self.axis % tensor.dim() == tensor.dim() - 1 else self.axis
        return OutputReading(name, "classes", why, axis, classes=int(tensor.shape[axis]))


@dataclass(frozen=True)
class OutputReading:
    """How one tensor of the output is read.

    Args:
        name: see `shoal.outputs`; empty for a network that returns one tensor.
        task: `classes`, `values`, `direction` of embeddings, or `exact` of integers and booleans, whose elements are
            the same or not.
        why: the reason, for the record.
        axis: of the classes.
        rows: whether it has a row for each sample; what has none counts as a whole, the same for each sample.
        scale: what squared errors of values are divided by; None until it was measured.
        classes: how many; None of values.
        binary: whether the axis of the classes holds a single score, the logit of the second of two.
    """

    name: str
    task: Task
    why: str
    axis: int = -1
    rows: bool = True
    scale: float | None = None
    classes: int | None = None
    binary: bool = False

    def scores(self, tensor: Tensor) -> Tensor:
        """Of an output that is scores of classes: a score for each of them."""
        return binary_scores(tensor, self.axis) if self.binary else tensor


@dataclass(frozen=True)
class Reading:
    """The tensors of an output that count, and how each is read.

    Args:
        outputs: in the order they are returned.
        names: those that the user named; empty for all.
        labelled: whether labels were available.
        expected: what the task says about outputs; None where it is inferred from labels and the network's class.
    """

    outputs: tuple[OutputReading, ...]
    names: tuple[str, ...] = ()
    labelled: bool = True
    expected: Expectation | None = None

    @property
    def classes(self) -> OutputReading | None:
        """The only output that counts, where it is scores of classes."""
        return self.outputs[0] if len(self.outputs) == 1 and self.outputs[0].task == "classes" else None

    @property
    def identity(self) -> str:
        """Equal, also across processes, for outputs that are read alike."""
        return "; ".join(
            f"{head.name} {head.task} {head.axis}{' binary' if head.binary else ''}" for head in self.outputs
        )

    @property
    def scaled(self) -> bool:
        """Whether all scales are known."""
        return all(head.task != "values" or head.scale is not None for head in self.outputs)

    def differentiable(self) -> "Reading":
        """The outputs that a loss can be computed from: integers have no gradient.

        Raises:
            DataError: there are none.
        """
        outputs = tuple(head for head in self.outputs if head.task != "exact")
        if not outputs:
            raise DataError(
                "all outputs that count are integers or booleans, which have no gradient to learn from",
                "Return the scores that they are computed from as well, or leave out the recovery.",
            )
        return replace(self, outputs=outputs)

    @property
    def learning_warnings(self) -> list[str]:
        """The outputs that nothing can be learned from, where there are any."""
        exact = [head for head in self.outputs if head.task == "exact"]
        if not exact:
            return []
        return [f"{_listed(exact)} not learned from: integers and booleans have no gradient; other outputs are"]

    def informed_by(self, model: nn.Module, output: Any, batch: Batch) -> "Reading":
        """The reading updated with the labels of this mini-batch, where there were none before; scales stay."""
        if self.labelled or batch.target is None:
            return self
        scales = {head.name: head.scale for head in self.outputs if head.scale is not None}
        informed = inferred(model, output, batch, self.names, self.expected)
        values = [head for head in informed.outputs if head.task == "values"]
        return with_scales(informed, scales) if all(head.name in scales for head in values) else informed

    def check_labels(self, data: Iterable[Batch]) -> None:
        """Refuse labels out of range, and masks whose foreground is 255, before anything is measured on them.

        Raises:
            DataError: with the label and the number of classes.
        """
        head, most = self.classes, max((head.classes or 0 for head in self.outputs), default=0)
        if not most:
            return
        values = MaskValues()
        for batch in data:
            target = batch.target
            if target is None or not target.numel() or target.dim() == 0:
                continue
            if head is not None and not target.is_floating_point():
                class_indices(target, most)
            if target.dim() > 2 and most <= VOID:
                values.add(target)
        if values.are_white:
            raise DataError(WHITE_MASKS, HOW_TO_MARK)

    def tensors(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """What counts of an output, by name; checked for numbers, and for a row for each sample.

        Raises:
            NonFiniteError: NaN or +Inf, with the name.
            DataError: an output is missing, or has no row for each sample though it had before.
        """
        tensors = read_outputs(output).tensors
        chosen = {}
        for head in self.outputs:
            tensor = tensors.get(head.name)
            if tensor is None:
                raise DataError(f"the network does not return {shown(head.name)} any more", _PAIRING)
            chosen[head.name] = tensor
        check_numbers(chosen)
        for head in self.outputs:
            if head.rows and (chosen[head.name].dim() == 0 or len(chosen[head.name]) != batch.size):
                check_samples(chosen[head.name], batch, head.name)
        return chosen

    def view(self, output: Any) -> Any:
        """An output as it is passed to a user's function.

        The tensor where only one is returned or was named; several named ones by name; else what the network returned.
        """
        tensors = read_outputs(output).tensors
        if not self.names and len(tensors) == 1:
            return next(iter(tensors.values()))
        return named_outputs(output, self.names)

    def damage(self, original: Any, changed: Any, batch: Batch) -> Tensor:
        """The damage of each sample, (samples,): the mean over the outputs, in whichever order they are returned.

        Args:
            original: what the original returned, raw.
            changed: what the changed network returned.
            batch: what both were called with.
        """
        before, after = self.tensors(original, batch), self.tensors(changed, batch)
        return self.damage_between(before, after, batch)

    def damage_from(self, original: Any, batch: Batch) -> Callable[[Any], Tensor]:
        """As `damage`, of many changed networks: what it takes of the original is computed once."""
        before = self.tensors(original, batch)
        classes = [head for head in self.outputs if head.task == "classes"]
        log_probs = {head.name: log_probabilities(head.scores(before[head.name]), axis=head.axis) for head in classes}
        return lambda changed: self.damage_between(before, self.tensors(changed, batch), batch, log_probs)

    def damage_between(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        batch: Batch,
        log_probs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As `damage`, from the results of `tensors`; `log_probs` of the original, where they are known."""
        known = log_probs or {}
        parts = [
            damage_of(head, before[head.name], after[head.name], batch, known.get(head.name)) for head in self.outputs
        ]
        # Sorted, so that the sum is the same to the bit in whichever order the outputs come.
        return torch.stack(parts).sort(dim=0).values.mean(dim=0) if len(parts) > 1 else parts[0]

    def scaled_by(self, output: Any, batch: Batch) -> "Reading":
        """The reading with scales measured on this one output, where they are not known."""
        if self.scaled:
            return self
        spreads = {name: Spread() for name in self.tensors(output, batch)}
        for name, tensor in self.tensors(output, batch).items():
            spreads[name].add(tensor, padding_of(tensor, batch))
        return with_scales(self, {name: spread.scale for name, spread in spreads.items()})

    def to_record(self, damage: str | None = None, task: str | None = None) -> record.OutputsRead:
        """As plain data, with a description of the damage and the task of the network."""
        return record.OutputsRead(
            outputs=[
                record.OutputRead(name=head.name, task=head.task, why=head.why, scale=head.scale)
                for head in self.outputs
            ],
            damage=damage or _describe_damage(self),
            task=task,
        )

    def warnings(self) -> list[str]:
        """How to read the figures where not all outputs are class scores, or there are several."""
        messages = []
        values = [head for head in self.outputs if head.task == "values"]
        if values:
            messages.append(
                f"{_listed(values)} read as values, not as scores of classes ({values[0].why}): damage is the mean"
                " squared error relative to the variance of the original's output, and without a metric of a task a"
                " point of drop is one per cent of it"
            )
        directions = [head for head in self.outputs if head.task == "direction"]
        if directions:
            messages.append(
                f"{_listed(directions)} read as directions ({directions[0].why}): damage is one minus the cosine with"
                " the original's output, and without a metric of a task a point of drop is one per cent of it"
            )
        exact = [head for head in self.outputs if head.task == "exact"]
        if exact:
            messages.append(
                f"{_listed(exact)} read as exact values ({exact[0].why}): damage is the share of elements that differ"
                " from the original's, and without a metric of a task a point of drop is one per cent of them"
            )
        if len(self.outputs) > 1:
            messages.append(
                f"the network returns {len(self.outputs)} outputs that count ({', '.join(map(_label, self.outputs))}):"
                " damage is the mean over them, and without a metric of a task a drop is that of the worst; name those"
                " that matter (output=, --output)"
            )
        return messages


_PAIRING = "Outputs that come and go cannot be paired: name the outputs to look at (output=, --output)."


def _label(head: OutputReading) -> str:
    return head.name or "the output"


def _listed(outputs: Sequence[OutputReading]) -> str:
    return f"{', '.join(map(_label, outputs))} {'is' if len(outputs) == 1 else 'are'}"


def _describe_damage(reading: Reading) -> str:
    tasks = {head.task for head in reading.outputs}
    descriptions = {
        "classes": "KL(original || network) in nats",
        "values": "mean squared error relative to the variance of the original's output",
        "direction": "one minus the cosine with the original's output",
        "exact": "share of elements that differ from the original's",
    }
    text = " and ".join(description for task, description in descriptions.items() if task in tasks)
    return text if len(reading.outputs) == 1 else f"{text}, the mean over {len(reading.outputs)} outputs"


def damage_of(
    head: OutputReading, original: Tensor, changed: Tensor, batch: Batch, log_probs: Tensor | None = None
) -> Tensor:
    """The damage to one output, (samples,), in float64; `log_probs` of the original, where they are known.

    Raises:
        DataError: the shapes differ, as those of a detector's boxes may.
        NonFiniteError: one is -Inf where the other is not.
    """
    changed = changed.to(original.device)
    check_pairing(head, original, changed)
    if head.task == "classes":
        log_probs = log_probabilities(head.scores(original), axis=head.axis) if log_probs is None else log_probs
        scores = head.scores(changed).movedim(head.axis, -1)
        return kl_per_sample(log_probs, scores, batch.counted(log_probs.shape[:-1]))
    if head.task == "direction":
        return cosine_distance(original, changed, padding_of(original, batch))
    if head.task == "exact":
        if not head.rows:
            return share_differing(original[None], changed[None]).expand(batch.size)
        return share_differing(original, changed, padding_of(original, batch))
    if not head.rows:
        return squared_error(original[None], changed[None]).expand(batch.size) / (head.scale or 1.0)
    return squared_error(original, changed, padding_of(original, batch)) / (head.scale or 1.0)


def check_pairing(head: OutputReading, original: Tensor, changed: Tensor) -> None:
    """Refuse to compare an output that is of another shape, or masked elsewhere, with a change than without.

    Raises:
        DataError, NonFiniteError: see `damage_of`.
    """
    if original.shape != changed.shape:
        raise DataError(
            f"{shown(head.name)} is of shape {tuple(original.shape)} and, with the change, {tuple(changed.shape)}:"
            " the two cannot be paired",
            "Name the outputs to compare (output=, --output), or pass a damage function (damage=).",
        )
    if not _same_masked(original, changed.to(original.device)):
        raise NonFiniteError(
            f"{shown(head.name)} is -Inf at other places with the change than without",
            "Scores may be masked, but the mask must not depend on what is removed.",
        )


def _same_masked(original: Tensor, changed: Tensor) -> bool:
    """Whether both are -Inf at the same places; where neither is anywhere, the smallest values tell."""
    if original.is_floating_point() and original.dtype.itemsize > 1 and original.numel():
        smallest = float(original.detach().min()), float(changed.detach().min())
        if min(smallest) > -math.inf:
            return True
    return torch.equal(torch.isneginf(original), torch.isneginf(changed))


def padding_of(values: Tensor, batch: Batch) -> Tensor | None:
    """Which positions of (samples, positions, ...) count; None where all do.

    Real numbers of (samples, values) have no positions; integers, such as predicted tokens, may.
    """
    positions = values.dim() > (2 if values.is_floating_point() else 1)
    counted = batch.counted(values.shape[:2]) if positions else None
    return counted.to(values.device) if counted is not None else None


def squared_error(original: Tensor, changed: Tensor, counted: Tensor | None = None) -> Tensor:
    """The mean squared error of each row, (samples,); -Inf is no distance from itself, and padding does not count."""
    wide = torch.float32 if original.device.type == "mps" else torch.float64
    error = torch.where(original == changed, 0.0, original.to(wide) - changed.to(wide)).square()
    if not error.numel():
        return error.new_zeros(len(error))
    if counted is not None:
        return mean_over(error.reshape(*counted.shape, -1).mean(dim=2), counted)
    return error.flatten(1).mean(dim=1) if error.dim() > 1 else error


def cosine_distance(original: Tensor, changed: Tensor, counted: Tensor | None = None) -> Tensor:
    """One minus the cosine of the last axis, 0 to 2, the mean over positions, (samples,); padding does not count.

    The direction of a vector of zeros is none: it is at distance 0 from another one, and at 1 from all others.
    """
    wide = torch.float32 if original.device.type == "mps" else torch.float64
    before, after = (tensor.to(wide).reshape(len(tensor), -1, tensor.shape[-1]) for tensor in (original, changed))
    lengths = before.norm(dim=-1) * after.norm(dim=-1)
    both_zero = (before == 0).all(dim=-1) & (after == 0).all(dim=-1)
    cosine = (before * after).sum(dim=-1) / lengths.clamp(min=torch.finfo(wide).tiny)
    distance = torch.where(both_zero, 0.0, (1 - cosine).clamp(min=0.0))
    return mean_over(distance, counted if counted is not None and counted.shape == distance.shape else None)


def share_differing(original: Tensor, changed: Tensor, counted: Tensor | None = None) -> Tensor:
    """The share of the elements of each row that are not the same, (samples,); padding does not count."""
    return squared_error((original != changed).float(), torch.zeros(original.shape, device=original.device), counted)


def reading_of(
    model: nn.Module,
    data: Iterable[Any],
    names: tuple[str, ...] = (),
    labelled: Iterable[Batch] = (),
    expected: Expectation | None = None,
) -> Reading:
    """How the outputs of a network are read, with the scale of each output of values over these mini-batches.

    Args:
        model: the original; it is left as it was.
        data: mini-batches; at least one. They are read more than once.
        names: of the outputs that count; all tensors by default.
        labelled: further mini-batches of the same kind, whose labels decide where `data` has none.
        expected: what a task says about outputs.

    Raises:
        UsageError: there is no such output.
        DataError: there is no tensor in the output, or labels are out of range.
    """
    device = device_of(model)
    first = next(batches(data, device), None)
    if first is None:
        raise DataError("there is no data to measure on", "Give a loader with at least one mini-batch.")
    if first.target is None:
        first = next((batch for batch in batches(labelled, device) if batch.target is not None), first)
    with evaluating(model), torch.no_grad():
        reading = inferred(model, call(model, first), first, names, expected)
        _check_logits(model, reading, batches(data, device))
        if reading.scaled:
            return reading
        spreads = {head.name: Spread() for head in reading.outputs if head.task == "values"}
        for batch in batches(data, device):
            tensors = reading.tensors(call(model, batch), batch)
            for name, spread in spreads.items():
                spread.add(tensors[name], padding_of(tensors[name], batch))
    return with_scales(reading, {name: spread.scale for name, spread in spreads.items()})


def _check_logits(model: nn.Module, reading: Reading, data: Iterable[Batch]) -> None:
    """Refuse a single score that seems to be a probability: all of its values are from 0 to 1.

    Those of logits hardly ever are: every answer would be the second class, and none of them sure.

    Raises:
        UsageError: with the name of the output.
    """
    suspects = [head for head in reading.outputs if head.binary]
    for batch in data if suspects else ():
        tensors = reading.tensors(call(model, batch), batch)
        suspects = [head for head in suspects if not ((tensors[head.name] < 0) | (tensors[head.name] > 1)).any()]
        if not suspects:
            return
    if suspects:
        raise UsageError(
            f"{shown(suspects[0].name)} of {type(model).__name__} is a single score, which is read as a logit, but all"
            " of its values are from 0 to 1, as those of probabilities are",
            "Return what the sigmoid is applied to. If these are logits all the same, return two scores, (0, x).",
        )


def with_scales(reading: Reading, scales: Mapping[str, float]) -> Reading:
    """The reading with the scale of each output of values."""
    outputs = [
        replace(head, scale=scales[head.name]) if head.task == "values" and head.scale is None else head
        for head in reading.outputs
    ]
    return replace(reading, outputs=tuple(outputs))


class Spread:
    """The variance of a stream of values, and a substitute where it is zero.

    Of vectors (samples, numbers) it is the mean variance of a number: numbers of other means do not make it larger.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = (torch.zeros(0, dtype=torch.float64) for _ in range(3))

    def add(self, values: Tensor, counted: Tensor | None = None) -> None:
        """One mini-batch; padding and -Inf do not count."""
        values = (values if counted is None else values[counted]).detach().cpu().double()
        table = values if values.dim() == 2 and counted is None else values.reshape(-1, 1)
        if not len(self.count):
            self.count, self.mean, self.squares = (torch.zeros(table.shape[1], dtype=torch.float64) for _ in range(3))
        elif len(self.count) != table.shape[1]:  # texts of another length
            self._pool()
            table = table.reshape(-1, 1)
        finite = torch.isfinite(table)
        table, added = table.where(finite, 0.0), finite.sum(0).double()
        mean = table.sum(0) / added.clamp(min=1)
        self._absorb(added, mean, (table - mean).square().where(finite, 0.0).sum(0))

    @property
    def scale(self) -> float:
        """The variance; of a constant output its square, of one that is zero 1."""
        # What rounding leaves of a constant is no variance.
        varies = self.squares > 1e-12 * self.count * self.mean.square()
        count = float(self.count.sum())
        if varies.any():
            return float(self.squares[varies].sum()) / count
        return float((self.count * self.mean.square()).sum()) / max(count, 1.0) or 1.0

    def _absorb(self, count: Tensor, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        shift, share = mean - self.mean, count / total.clamp(min=1)
        self.squares = self.squares + squares + shift.square() * self.count * share
        self.mean, self.count = self.mean + shift * share, total

    def _pool(self) -> None:
        """All numbers in one."""
        parts = list(zip(*(each.split(1) for each in (self.count, self.mean, self.squares)), strict=True))
        self.count, self.mean, self.squares = parts[0]
        for part in parts[1:]:
            self._absorb(*part)


def inferred(
    model: nn.Module | None,
    output: Any,
    batch: Batch,
    names: tuple[str, ...] = (),
    expected: Expectation | None = None,
) -> Reading:
    """How an output is read, inferred from a few samples; scales of values are not measured yet.

    Args:
        model: its class may tell what its outputs are.
        output: raw.
        batch: what the model was called with, with its labels.
        names: of the outputs that count.
        expected: what a task says about outputs of real numbers.

    Raises:
        UsageError, DataError: see `reading_of`.
    """
    outputs = read_outputs(output)
    tensors = chosen_outputs(outputs, names)
    if not tensors:
        raise DataError(
            f"the model returned {_type_name(output, outputs)} without a tensor",
            "Wrap the model so that it returns its logits.",
        )
    if not any(tensor.dim() > 0 and len(tensor) == batch.size for tensor in tensors.values()):
        name, tensor = next(iter(tensors.items()))
        check_samples(tensor, batch, name)
    check_rows(batch)
    fitting = _labels_fit(
        {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}, batch.target
    )
    read = []
    for name, tensor in tensors.items():
        rows = tensor.dim() > 0 and len(tensor) == batch.size
        if not tensor.is_floating_point():
            why = f"its dtype is {str(tensor.dtype).removeprefix('torch.')}"
            read.append(OutputReading(name, "exact", why, rows=rows))
            continue
        if expected is not None and expected.covers(name):
            _check_axis(expected, name, tensor, batch)
            read.append(expected.read(name, tensor, rows=rows))
            continue
        axis, why = _classes(model, name, tensor, batch.target, fitting) if rows else (None, "no row for each sample")
        task: Task = "values" if axis is None else "classes"
        classes = int(tensor.shape[axis]) if axis is not None else None
        read.append(OutputReading(name, task, why, axis if axis is not None else -1, rows, classes=classes))
    return Reading(tuple(read), names, batch.target is not None, expected)


def _check_axis(expected: Expectation, name: str, tensor: Tensor, batch: Batch) -> None:
    """Refuse a single score for each pixel without an axis of classes: that of the height would be taken for it.

    Raises:
        DataError: with the shapes.
    """
    first = batch.tensors[0]
    if expected.binary and tensor.dim() == 3 and tensor.shape == (*first.shape[:1], *first.shape[2:]):
        raise DataError(
            f"{shown(name)} is of shape {tuple(tensor.shape)} for inputs of shape {tuple(first.shape)}: one score for"
            f" each pixel, without the axis of classes that the task {expected.task} expects as the second",
            f"Return {(tensor.shape[0], 1, *tensor.shape[1:])}: leave out `squeeze(1)`, or add `unsqueeze(1)`.",
        )


def check_rows(batch: Batch) -> None:
    """Refuse a number of labels or targets that is not that of the samples.

    Raises:
        DataError: with the shape.
    """
    if batch.target is not None and (batch.target.dim() == 0 or len(batch.target) != batch.size):
        raise DataError(
            f"labels of shape {tuple(batch.target.shape)} for {count_of(batch.size, 'sample')}",
            "A loader must yield as many labels as samples.",
        )


def _type_name(output: Any, outputs: Outputs) -> str:
    return type(output).__name__ if not outputs.tensors else "an output"


def _labels_fit(floating: Mapping[str, Tensor], target: Tensor | None) -> dict[str, int | None]:
    """The axis of the classes of every output that the labels fit; None for all where they fit several widths."""
    axes = {name: axis for name, tensor in floating.items() if (axis := _axis(tensor, target)) is not None}
    widths = {int(floating[name].shape[axis]) for name, axis in axes.items()}
    if len(widths) < 2:
        return dict(axes)
    logits = [name for name in axes if name.split(".")[-1] == "logits"]
    return {name: axis if name in logits else None for name, axis in axes.items()}


def _axis(tensor: Tensor, target: Tensor | None) -> int | None:
    """The axis of the classes that the labels index; None where they index none."""
    if target is None or tensor.dim() < 2:
        return None
    whole = not target.is_floating_point() or (tensor.dim() == 2 and torch.equal(target, target.round()))
    if not whole or target.is_complex():
        return None
    if tensor.dim() == 2:
        return -1 if tensor.shape[1] > 1 and tuple(target.shape) in (tensor.shape[:1], (len(tensor), 1)) else None
    last = tensor.shape[-1] > 1 and target.shape == tensor.shape[:-1]
    second = tensor.shape[1] > 1 and target.shape == tensor.movedim(1, -1).shape[:-1]
    if last and second:
        return -1 if tensor.dim() == 3 else 1
    return (-1 if last else 1) if last or second else None


def _classes(
    model: nn.Module | None, name: str, tensor: Tensor, target: Tensor | None, fitting: Mapping[str, int | None]
) -> tuple[int | None, str]:
    """The axis of the classes, None for values, and why."""
    head = _head(model, name, tensor)
    # The letters of a transcript may be as many as those of the alphabet: then the network's class knows better.
    if fitting.get(name) is not None and head in (None, fitting[name]):
        return fitting[name], "the labels are class indices that fit it"
    if target is not None and target.is_floating_point() and target.shape == tensor.shape:
        if tensor.dim() > 1 and tensor.shape[-1] > 1 and are_probabilities(target):
            return -1, "the labels are probabilities of its classes"
        return None, "the targets are numbers of its shape"
    if head is not None:
        return head, f"{type(model).__name__} returns scores of classes"
    if name in fitting:
        return None, "the labels fit several outputs of different width; name the one of classes (output=, --output)"
    if target is None:
        return None, "there are no labels, and nothing says that they are classes"
    return None, f"the labels of shape {tuple(target.shape)} index no axis of it"


def are_probabilities(target: Tensor) -> bool:
    """Whether targets say how likely each class is: none below 0, and their sum over the last axis is 1."""
    return bool((target >= 0).all()) and bool(torch.isclose(target.sum(dim=-1), target.new_ones(())).all())


def _head(model: nn.Module | None, name: str, tensor: Tensor) -> int | None:
    """The axis of the classes where the network's own class says that this output has some."""
    if model is None or tensor.dim() < 2:
        return None
    base = getattr(model, "get_base_model", None)
    model = base() if callable(base) else getattr(model, "_orig_mod", model)
    homes = [f"{module.__module__}." for module in type(model).__mro__]
    if any(home.startswith("transformers.") for home in homes):
        return _transformers_head(model, name, tensor)
    if tensor.dim() != 2 or tensor.shape[1] < 2 or name:
        return None
    if any(home.startswith("timm.models.") for home in homes):
        return -1 if getattr(model, "num_classes", None) == tensor.shape[1] else None
    if any(_CLASSIFIERS.match(home) for home in homes):
        last = [module for module in model.modules() if not any(True for _ in module.children())][-1]
        return -1 if isinstance(last, nn.Linear) and last.out_features == tensor.shape[1] else None
    return None


def _transformers_head(model: Any, name: str, tensor: Tensor) -> int | None:
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    named = any(_HEADS.search(base.__name__) for base in type(model).__mro__)
    if not named or name not in _SCORES or problem in ("regression", "multi_label_classification"):
        return None
    axis = 1 if tensor.dim() > 3 else -1
    return axis if tensor.shape[axis] > 1 else None
