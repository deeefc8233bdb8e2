"""Refit a cut network: its stand-ins on the student's own activations to the teacher's targets, and its batch norms."""

from collections.abc import Sequence

import torch
from torch import nn

from shoal.batches import Batch, call
from shoal.blocks import Anatomy
from shoal.preserve import evaluating
from shoal.replace.fitting import Fitted, SpanSums, SumsKey, Wanted
from shoal.replace.recording import recording


class _Reached(Exception):  # noqa: N818 - no error: the stand-in was reached, the rest of the forward is not needed
    """Carries what enters the stand-in."""


def refit_(teacher: Anatomy, student: nn.Module, one: Fitted, batches: Sequence[Batch], *, seed: int = 1) -> None:
    """Fit a stand-in of `student` again, in place, from what really enters it to the teacher's sum at its end.

    Called for one stand-in after the other, from input to output, so that errors do not pile up.

    Args:
        teacher: the original, dissected.
        student: the cut network; the stand-in is at the first path of its span.
        one: which stand-in.
        batches: calibration mini-batches.
        seed: of the positions drawn.
    """
    span, module = one.span, student.get_submodule(one.span.paths[0])
    samples = sum(batch.size for batch in batches)
    key = SumsKey(span.paths[0], span.stride, one.stand_in.kernel)
    sums = SpanSums(key, [Wanted(span, one.kind, one.stand_in.rank)], samples, seed)
    with evaluating(teacher.model), evaluating(student), recording(teacher, [span.paths[-1]]) as seen:
        for batch in batches:
            call(teacher.model, batch)
            sums.add({span.paths[0]: _entering(student, module, batch)}, seen.sums)
    again = sums.solved(next(module.parameters()))[0]
    module.load_state_dict(again.module.state_dict())


def _entering(student: nn.Module, module: nn.Module, batch: Batch) -> torch.Tensor:
    caught: list[torch.Tensor] = []

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        caught.append(args[0])
        raise _Reached

    handle = module.register_forward_pre_hook(hook)
    try:
        given = batch.cloned()  # a network that normalises its input in place must not change the mini-batch
        student(*given.args, **given.kwargs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]


def recalibrate_(model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
    """Estimate the statistics of every batch norm anew on `batches`, in place; nothing else changes.

    Source: Li et al. 2020, EagleEye, arXiv:2007.02491, Sec. 3.3.
    """
    norms = [
        one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.track_running_stats
    ]
    momenta = [one.momentum for one in norms]
    try:
        with evaluating(model):
            for one in norms:
                one.reset_running_stats()
                one.momentum, one.training = None, True
            for batch in batches:
                call(model, batch)
    finally:
        for one, momentum in zip(norms, momenta, strict=True):
            one.momentum = momentum
    return model
