"""The common ground: one network, one set of unlabelled calibration images, one mini-batch to time, for every method.

Shoal's planner fits on most of the calibration images and judges on the rest, with blends behind them. The rivals get
that very split, so that nobody chooses on better data than the others.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shoal.batches import Batch, batches, call, logits_of
from shoal.blocks import BlockGraph, analyze
from shoal.errors import UsageError
from shoal.measure import kl_per_sample, log_probabilities
from shoal.measure.latency_ratio import latency_beside
from shoal.pipeline import MeasureConfig
from shoal.pipeline.data_splits import DataSplits, split_samples_for_plan, with_mixup
from shoal.pipeline.plan_race import Race
from shoal.preserve import evaluating
from shoal.record import Latency

# Up to this factor a point counts as met; the planner's own slack, the same for every method.
SLACK = 1.01
# Of these parts of the time for a network, pairs beside the original take all but one, at most.
_RATIO_PART = 3


def say_nothing(stage: str, done: int, total: int) -> None:
    """No progress."""


@dataclass
class Ground:
    """What every method starts from.

    Args:
        model: the original, in eval mode; nobody changes it.
        calibration: mini-batches without labels.
        folder: where methods keep intermediate results.
        channels_last: how networks are timed.
        progress: called with (stage, done, total).
        adaptor_steps: of PRACTISE, for each block.
        gate_steps: of TinyFusion's gates, for each point.
        longest: blocks in the longest span that Shoal may replace.
        mixed: learn gates in mixed precision.
        small: the network people would take instead; None where there is none.
        trial: begins a race of Shoal's plans, a new one for each point; None for no recovery.
    """

    model: nn.Module
    calibration: list[Batch]
    folder: Path
    channels_last: bool = False
    progress: Callable[[str, int, int], None] = say_nothing
    adaptor_steps: int = 100
    gate_steps: int = 150
    longest: int = 9
    mixed: bool = False
    small: nn.Module | None = None
    trial: Callable[[], Race] | None = None

    def __post_init__(self) -> None:
        if len(self.calibration) < 2:
            raise UsageError("one calibration mini-batch cannot be fitted on and judged on", "Give more --images.")

    @cached_property
    def labelled(self) -> list[Batch]:
        """The calibration mini-batches with the original's own answers as labels: so outputs are seen to be classes."""
        with evaluating(self.model):
            return [
                Batch(batch.args, batch.kwargs, logits_of(call(self.model, batch)).argmax(-1))
                for batch in self.calibration
            ]

    @property
    def timed(self) -> Batch:
        """The mini-batch that everything is timed on; the planner times on the first one too."""
        return self.calibration[0]

    @cached_property
    def _parts(self) -> DataSplits:
        settings = MeasureConfig()
        return split_samples_for_plan(self.calibration, None, settings.judge_images, settings.judged_share)

    @property
    def fit_on(self) -> list[Batch]:
        """What is fitted and recalibrated on."""
        return self._parts.fit

    @cached_property
    def judge_on(self) -> list[Batch]:
        """What networks are chosen by, as the planner does: samples held back, and behind them their blends."""
        return with_mixup(self._parts.damage)

    @cached_property
    def graph(self) -> BlockGraph:
        """A traced copy of the original."""
        return analyze(copy.deepcopy(self.model).eval(), self.timed.take(2))

    @cached_property
    def _original_outputs(self) -> list[Tensor]:
        with evaluating(self.model):
            return [log_probabilities(logits_of(call(self.model, batch)), None) for batch in self.judge_on]

    def damage(self, network: nn.Module) -> float:
        """Mean KL(original || network) on the samples held back for judging."""
        total = 0.0
        with evaluating(network):
            for batch, expected in zip(self.judge_on, self._original_outputs, strict=True):
                total += float(kl_per_sample(expected, logits_of(call(network, batch))).sum())
        return total / sum(batch.size for batch in self.judge_on)

    def times(self, networks: dict[str, nn.Module], seconds: float) -> dict[str, Latency]:
        """The original and these networks, in pairs within milliseconds; some `seconds` for each."""
        models = {"original": self.model} | networks
        part = seconds / _RATIO_PART
        return latency_beside(models, self.timed, reference="original", channels_last=self.channels_last, seconds=part)

    def share(self, network: nn.Module, seconds: float) -> float:
        """The network's share of the original's latency, timed in pairs."""
        return share_of(self.times({"cut": network}, seconds)["cut"])


def share_of(times: Latency) -> float:
    """The share of the original's latency in whose company a network was timed."""
    if times.ratio is None:
        raise ValueError("timed without the original")
    return times.ratio.ratio


def unlabelled(loaders: Iterable[Iterable[Any]], images: int) -> list[Batch]:
    """The first `images` samples of the loaders, one after the other, without labels."""
    samples: list[Batch] = []
    count = 0
    for loader in loaders:
        for batch in batches(loader):
            if count >= images:
                return samples
            part = batch.take(images - count)
            samples.append(Batch(part.args, part.kwargs))
            count += part.size
    return samples
