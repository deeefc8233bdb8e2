"""One step of distillation: teacher and student run on a mini-batch, and the student learns from the difference."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, ShoalError
from shoal.measure import Reading
from shoal.outputs import read_outputs
from shoal.plan import Replace
from shoal.preserve import copied, evaluating
from shoal.recover.config import DistillConfig
from shoal.recover.losses import feature_loss, label_loss, output_loss
from shoal.recover.mixup import Mixup, mixup
from shoal.recover.recompute import recomputing
from shoal.recover.teacher_cache import TeacherCache
from shoal.recover.trainable import forward_in_format, match_dtype
from shoal.replace import build_segments
from shoal.training.engine import Engine
from shoal.training.optim import ClippedOptimizer

_PRIME = 7_368_787  # keeps the mixtures of a step apart from what loaders draw with the same seed
_BatchNorm = nn.modules.batchnorm._BatchNorm


class DistillStep:
    """What a step does; the same random numbers for the same step, whatever came before.

    Args:
        teacher: on the device, in eval mode.
        paths: of the blocks whose features are compared.
        settings: weights of the other parts of the loss.
        engine: device and precision.
        features: weight of the features' error; 0 for outputs alone.
        reading: how outputs are read.
        unlabelled: some mini-batches are expected to have no labels: those of extra data.
        cache: of the teacher's outputs; None: the teacher runs each time.
    """

    recomputed: Sequence[str] = ()
    """Paths of the student's blocks that are computed once more in the backward pass."""

    def __init__(
        self,
        teacher: nn.Module,
        paths: Sequence[str],
        settings: DistillConfig,
        engine: Engine,
        *,
        features: float,
        reading: Reading,
        unlabelled: bool = False,
        cache: TeacherCache | None = None,
    ) -> None:
        self.cache = cache
        self.teacher, self.settings, self.engine = teacher, settings, engine
        self.features, self.reading, self.unlabelled = features, reading, unlabelled
        self.paths = list(paths) if features else []
        self.sigmas = settings.mask_of_features(reading.expected.task if reading.expected is not None else None)

    def backward(self, student: nn.Module, batch: Batch, index: int) -> Tensor:
        """Add the gradients of one mini-batch to the student's; returns the loss, detached.

        Args:
            student: on the device.
            batch: anywhere.
            index: of the step, from 0.
        """
        torch.manual_seed(self.settings.seed + _PRIME * (index + 1))  # for what the network itself draws
        parts = self.parts(batch, index)
        set_train_mode_(student, batch.size // self.engine.processes, self.settings.norm_batch)
        total = torch.zeros((), device=self.engine.device)
        for number, part in enumerate(parts, 1):
            # Whoever calls may have switched gradients off.
            with torch.enable_grad(), self.engine.holding_gradients(last=number == len(parts)):
                loss = part.share * self._loss(student, part)
                # Over processes gradients are averaged, and the shares sum up to 1 over all of them.
                self.engine.backward(loss * self.engine.processes)
            total += loss.detach()
        self.engine.average_statistics_(student)
        return self.engine.summed(total)

    def keep_outputs(self, batch: Batch, index: int) -> None:
        """Have the teacher's outputs for what this process will learn from in step `index` in the cache."""
        for part in self.parts(batch, index):
            if self.cache is not None:
                self.cache.keep(part.mixed)

    def parts(self, batch: Batch, index: int) -> list["_StepPart"]:
        """What this process learns from in turn, in step `index`."""
        generator = torch.Generator().manual_seed(self.settings.seed + _PRIME * (index + 1))
        mixed, mixture = mixup(self.engine.moved(batch), self.settings.blends, generator)
        if self.engine.processes == self.settings.accumulate == 1:
            return [_StepPart(mixed, batch, mixture, None, 1.0)]

        def shares(whole: Batch) -> list[tuple[Batch, float]]:
            return self.engine.shares(whole, self.settings.accumulate)

        inputs, labels = shares(mixed), shares(batch)
        if mixture is None:
            mixtures: list[Mixup | None] = [None] * len(inputs)
        else:
            pairs = shares(Batch((mixture.weight, mixture.partner)))
            mixtures = [Mixup(*pair.args) for pair, _ in pairs]
        return [
            _StepPart(part, labelled, among, batch.target, share)
            for (part, share), (labelled, _), among in zip(inputs, labels, mixtures, strict=True)
        ]

    def _loss(self, student: nn.Module, part: "_StepPart") -> Tensor:
        """How far the student is from the teacher on a part of a mini-batch."""
        settings, mixed = self.settings, part.mixed
        expected, teacher_outputs = self._expected(mixed)
        recompute = recomputing(student, self.recomputed)
        with recompute, capture_outputs(student, self.paths) as features, self.engine.autocast():
            outputs = read_outputs(forward_in_format(self.engine.learner(student), mixed)).tensors
        loss = output_loss(self.reading, teacher_outputs, outputs, mixed, settings.temperature)
        if features:
            loss = loss + self.features * feature_loss(expected, features, mixed, self.sigmas)
        if settings.labels and (part.batch.target is not None or not self.unlabelled):
            loss = loss + settings.labels * self._label_loss(outputs, part)
        return loss

    def _expected(self, mixed: Batch) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The teacher's features and outputs; of a cache the outputs alone."""
        if self.cache is not None:
            return {}, self.cache.outputs(mixed)
        with torch.no_grad(), capture_outputs(self.teacher, self.paths) as features, self.engine.autocast():
            outputs = read_outputs(forward_in_format(self.teacher, mixed)).tensors
        return features, outputs

    def step(self, student: nn.Module, optimizer: ClippedOptimizer, batch: Batch, index: int, lr: float) -> Tensor:
        """One whole step; returns the loss before it."""
        loss = self.backward(student, batch, index)
        optimizer.step(lr)
        return loss

    def _label_loss(self, outputs: Mapping[str, Tensor], part: "_StepPart") -> Tensor:
        scores = [output.scores(outputs[output.name]) for output in self.reading.outputs if output.task == "classes"]
        if not scores:
            raise DataError(
                "the outputs are no scores of classes, and the loss was asked to use labels",
                "Set `labels` to 0: distillation needs none.",
            )
        losses = [label_loss(each, part.batch, part.mixture, part.partner_labels) for each in scores]
        return torch.stack(losses).mean()


@dataclass(frozen=True, eq=False)
class _StepPart:
    """A part of a mini-batch, and its share of all samples.

    `batch` is the part before it was mixed, with its labels as they came: on the CPU they are checked without waiting
    for the device. `labels` are those of the whole mini-batch, among which the partners of `mixture` are.
    """

    mixed: Batch
    batch: Batch
    mixture: Mixup | None
    labels: Tensor | None
    share: float

    @property
    def partner_labels(self) -> Tensor | None:
        """Of the samples that these were mixed with; None where these are the whole mini-batch."""
        if self.mixture is None or self.labels is None:
            return None
        return self.labels[self.mixture.partner.to(self.labels.device)]


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is any batch norm with running statistics."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


def set_train_mode_(model: nn.Module, num_samples: int, min_samples: int) -> nn.Module:
    """Eval mode, but batch norms learn their statistics where a mini-batch has `min_samples` samples; in place.

    Statistics of a few samples are noise: there the running ones are kept, and gamma and beta still learn. Dropout
    stays off: the targets are the teacher's outputs, of which there is no end, so there is nothing to overfit in a
    short run. And networks that return something else in training mode (auxiliary heads) keep to one output.
    """
    model.eval()
    if num_samples >= min_samples:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.training = True
    return model


def matching_blocks(
    teacher: nn.Module, student: nn.Module, example: Batch, replaced: Sequence[Replace] = ()
) -> list[str]:
    """The paths of the teacher's blocks (layers, where it has none) that the student has kept, in order.

    Kept means: the same class with parameters of the same names at the same path (fewer of them inside will do), and
    features of the same shape. Replacements are not among them: a student may be a copy of the block at whose path it
    is, and learns best when it is left free (compared with the end of its span it came out slightly further off). A
    network that cannot be traced has none, and is distilled by its outputs alone.

    Args:
        teacher: left as it was.
        student: left as it was.
        example: a mini-batch to run both on.
        replaced: of the student's plan.
    """
    replaced_paths = {path for action in replaced for path in action.paths}
    try:
        chain = build_segments(analyze(copied(teacher).eval(), match_dtype(teacher, example)))
        intact = [segment.paths for segment in chain.segments if replaced_paths.isdisjoint(segment.paths)]
        paths = [group[-1] for group in intact if all(_is_kept(teacher, student, path) for path in group)]
        with evaluating(teacher), evaluating(student):
            with capture_outputs(teacher, paths) as expected:
                forward_in_format(teacher, example)
            with capture_outputs(student, paths) as features:
                forward_in_format(student, example)
    except ShoalError:
        return []
    both = [path for path in paths if path in expected and path in features]
    return [path for path in both if expected[path].shape == features[path].shape]


def _is_kept(teacher: nn.Module, student: nn.Module, path: str) -> bool:
    try:
        original, current = teacher.get_submodule(path), student.get_submodule(path)
    except AttributeError:
        return False
    return type(original) is type(current) and _parameter_names(original) == _parameter_names(current)


def _parameter_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@contextmanager
def capture_outputs(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at these paths return, by path, as the network runs; no hook stays behind.

    Copies are kept: a later layer may work in place.
    """
    outputs: dict[str, Tensor] = {}

    def capture(path: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor):
                outputs[path] = first.clone()

        return hook

    handles = [model.get_submodule(path).register_forward_hook(capture(path)) for path in paths]  # type: ignore[arg-type]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
