"""Refit a cut network: its stand-ins on the student's own activations to the teacher's targets, and its batch norms."""

from collections.abc import Sequence

import torch
from torch import nn

from shoal.batches import Batch, call
from shoal.blocks import Anatomy
from shoal.preserve import evaluating
from shoal.regress import Moments, fit
from shoal.replace.fitting import ROWS_PER_UNKNOWN, Fitted
from shoal.replace.neighbourhoods import patches, picked, positions_of
from shoal.replace.recording import recording
from shoal.replace.stand_ins import fill_

_HELD_OUT = 0.2


class _Reached(Exception):  # noqa: N818 - no error: the stand-in was reached, the rest of the forward is not needed
    """Carries what enters the stand-in."""


def refit_(teacher: Anatomy, student: nn.Module, one: Fitted, batches: Sequence[Batch], *, seed: int = 1) -> None:
    """Fit a stand-in of `student` again, in place, from what really enters it to the teacher's sum at its end.

    Called for one stand-in after the other, from input to output, so that errors do not pile up.

    Args:
        teacher: the original, dissected.
        student: the cut network; the stand-in is at the first path of its span.
        one: which stand-in; a low-rank one is left as it is.
        batches: calibration mini-batches.
        seed: of the positions drawn.
    """
    if one.stand_in.rank is not None:
        return
    module = student.get_submodule(one.span.paths[0])
    first = one.span.layout == "channels_first"
    unknowns = one.span.in_channels * (one.stand_in.kernel**2 if first else 1)
    samples = sum(batch.size for batch in batches)
    most = max(8, -(-ROWS_PER_UNKNOWN * unknowns // samples))
    train, held_out = (Moments(unknowns, one.span.out_channels, joint=False) for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    with evaluating(teacher.model), evaluating(student), recording(teacher, [one.span.paths[-1]]) as seen:
        for batch in batches:
            call(teacher.model, batch)
            x, y = _entering(student, module, batch), seen.sums[one.span.paths[-1]]
            held = max(1, round(_HELD_OUT * len(x)))
            for moments, part in ((held_out, slice(0, held)), (train, slice(held, None))):
                moments.add(*_rows(one, x[part], y[part], most, generator))
    target = _shortcut(one, unknowns) if one.span.keeps_shape else None
    found = fit(train, held_out, target=target)
    fill_(module, one.stand_in, found.weight, found.bias)


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


def _rows(
    one: Fitted, x: torch.Tensor, y: torch.Tensor, most: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    if one.span.layout == "channels_last":
        keep = torch.randperm(x[..., 0].numel(), generator=generator)[: most * len(x)].to(x.device)
        return x.reshape(-1, x.shape[-1])[keep].double(), y.reshape(-1, y.shape[-1])[keep].double()
    positions = positions_of(y.shape[2:], most, generator)
    rows = patches(x, positions, kernel=one.stand_in.kernel, stride=one.stand_in.stride)
    return rows.double(), picked(y, positions).double()


def _shortcut(one: Fitted, unknowns: int) -> torch.Tensor:
    width = unknowns // one.span.in_channels
    target = torch.zeros(one.span.out_channels, unknowns, dtype=torch.float64)
    for channel in range(one.span.in_channels):
        target[channel, channel * width + width // 2] = 1.0
    return target


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
