"""One lesson: the teacher answers a mini-batch, the student answers it too, and learns from the difference."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

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
from shoal.recover.trainable import forward_in_format, match_dtype
from shoal.replace import build_segments
from shoal.training.engine import Engine
from shoal.training.optim import ClippedOptimizer

_PRIME = 7_368_787  # tells the blends of a step from what loaders draw with the same seed


class DistillStep:
    """What one step does; the same random numbers for the same step, whatever came before.

    Args:
        teacher: on the device, in eval mode.
        paths: of the blocks whose features are compared.
        settings: weights of the other parts of the loss.
        engine: device and precision.
        features: weight of the features' error; 0 for answers alone.
        reading: how outputs are read.
        unlabelled: some mini-batches are meant to have no labels: those of extra data.
    """

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
    ) -> None:
        self.teacher, self.settings, self.engine = teacher, settings, engine
        self.features, self.reading, self.unlabelled = features, reading, unlabelled
        self.paths = list(paths) if features else []

    def gradients(self, student: nn.Module, given: Batch, step: int) -> Tensor:
        """Add the gradients of one mini-batch to the student's; the loss comes back, without them."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed + _PRIME * (step + 1))
        torch.manual_seed(settings.seed + _PRIME * (step + 1))  # for what the network itself draws
        batch, blend = mixup(self.engine.moved(given), settings.blends, generator)
        with torch.no_grad(), capture_outputs(self.teacher, self.paths) as wanted, self.engine.autocast():
            said = read_outputs(forward_in_format(self.teacher, batch)).tensors
        set_train_mode_(student, batch.size, settings.norm_batch)
        with torch.enable_grad():  # whoever calls may have switched gradients off
            with capture_outputs(student, self.paths) as own, self.engine.autocast():
                answered = read_outputs(forward_in_format(student, batch)).tensors
            loss = output_loss(self.reading, said, answered, batch, settings.temperature)
            if own:
                loss = loss + self.features * feature_loss(wanted, own, batch)
            if settings.labels and (given.target is not None or not self.unlabelled):
                # Labels as they were given: on the CPU they are checked without waiting for the device.
                loss = loss + settings.labels * self._label_loss(answered, given, blend)
            self.engine.backward(loss)
        return loss.detach()

    def _label_loss(self, answered: Mapping[str, Tensor], given: Batch, blend: Mixup | None) -> Tensor:
        scores = [label_loss(answered[one.name], given, blend) for one in self.reading.outputs if one.task == "classes"]
        if not scores:
            raise DataError(
                "the outputs are no scores of classes, and the loss was asked to use labels",
                "Set `labels` to 0: distillation needs none.",
            )
        return torch.stack(scores).mean()

    def teach(self, student: nn.Module, stepping: ClippedOptimizer, batch: Batch, step: int, rate: float) -> Tensor:
        """One whole step; returns the loss before it."""
        loss = self.gradients(student, batch, step)
        stepping.step(rate)
        return loss


_BatchNorm = nn.modules.batchnorm._BatchNorm


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is any batch norm with statistics of its own."""
    return any(isinstance(one, _BatchNorm) and one.track_running_stats for one in model.modules())


def set_train_mode_(model: nn.Module, samples: int, enough: int) -> nn.Module:
    """Eval mode, but batch norms learn their statistics where a mini-batch has `enough` samples; in place.

    Statistics of a few samples are noise: there the running ones are kept, and gamma and beta still learn.
    """
    model.eval()
    if samples >= enough:
        for one in model.modules():
            if isinstance(one, _BatchNorm):
                one.training = True
    return model


def matching_blocks(
    teacher: nn.Module, student: nn.Module, example: Batch, replaced: Sequence[Replace] = ()
) -> list[str]:
    """The paths of the teacher's blocks (layers, where it has none) that the student has kept, in order.

    Kept means: the same class with parameters of the same names at the same path (fewer of them inside will do), and
    features of the same shape. What stands for a span is not among them: a student may be a copy of the block it stands
    at, and learns best when it is left free (held against the end of its span it came out slightly further off). A
    network that cannot be traced has none, and is distilled by its answers alone.

    Args:
        teacher: left as it was.
        student: left as it was.
        example: a mini-batch to run both on.
        replaced: of the student's plan.
    """
    spans = {path for one in replaced for path in one.paths}
    try:
        line = build_segments(analyze(copied(teacher).eval(), match_dtype(teacher, example)))
        whole = [step.paths for step in line.segments if spans.isdisjoint(step.paths)]
        kept = [paths[-1] for paths in whole if all(_kept(teacher, student, path) for path in paths)]
        with evaluating(teacher), evaluating(student):
            with capture_outputs(teacher, kept) as wanted:
                forward_in_format(teacher, example)
            with capture_outputs(student, kept) as own:
                forward_in_format(student, example)
    except ShoalError:
        return []
    return [path for path in kept if path in wanted and path in own and wanted[path].shape == own[path].shape]


def _kept(teacher: nn.Module, student: nn.Module, path: str) -> bool:
    try:
        one, other = teacher.get_submodule(path), student.get_submodule(path)
    except AttributeError:
        return False
    return type(one) is type(other) and _names(one) == _names(other)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@contextmanager
def capture_outputs(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at these paths return, by path, as the network runs; no hook stays behind.

    Copies are kept: a layer behind may work in place.
    """
    heard: dict[str, Tensor] = {}

    def keep(path: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor):
                heard[path] = first.clone()

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]  # type: ignore[arg-type]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
