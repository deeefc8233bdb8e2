"""How compress() works: what is measured, and how the network is changed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from shoal.arguments import flag, names_of, path_or_none, positive_number, real_number, whole_number
from shoal.errors import UsageError, expect_type
from shoal.pipeline.candidate_table import DEFAULT_KINDS, LONGEST, STUDENT_BUDGET, check_kinds
from shoal.recover import read_budget
from shoal.scanning import DamageFunction
from shoal.tasks import OutputRequest, Task
from shoal.workers import Workers, as_workers

# Calibration samples by default: a plan fits replacements on them, a removal only ranks blocks.
PLAN_IMAGES, REMOVAL_IMAGES = 2048, 512


@dataclass(frozen=True)
class MeasureConfig:
    """How candidates are measured.

    Args:
        images: calibration samples, at most; None: 2,048 for a plan, whose replacements are fitted on them, 512 for a
            removal.
        judged_share: the share of the calibration samples that damage is measured on, where there is no validation.
        judge_images: samples that damage is measured on, at most: of validation where there is any.
        validation_images: validation samples, at most.
        stand_ins: the kinds of replacement to try. The students among them ('block', 'narrow', 'narrow1/4') are
            trained.
        longest: the steps of the longest span that is replaced. A few folds of up to half the network are tried
            as well, unless this is set below the default.
        table_refit: measure the damage of a change after a refit of the next maps behind it, and that of some pairs;
            without, tables take less than half the time and their sums are a worse guide.
        screening: fit and measure a part of the spans of a chain of more than 128 blocks, chosen by one recorded
            forward; without, all of them, which takes time that grows with the square of the depth.
        student_budget: how long all students together are trained: a time, or a number of mini-batches.
        channels_last: time images with the channels last in memory.
        latency_seconds: how long each network is timed for the record.
        latency_batch_sizes: the batch sizes that latency is timed at; a budget of latency has to be met at each. By
            default that of the calibration mini-batches. Mini-batches that are too small are repeated.
    """

    images: int | None = None
    judged_share: float = 0.15
    judge_images: int = 128
    validation_images: int = 2048
    stand_ins: tuple[str, ...] = DEFAULT_KINDS
    longest: int = LONGEST
    table_refit: bool = True
    screening: bool = True
    student_budget: str | int = STUDENT_BUDGET
    channels_last: bool = False
    latency_seconds: float = 1.0
    latency_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.images is not None:
            object.__setattr__(self, "images", whole_number("images", self.images, 1, "Leave it out."))
        for name in ("judge_images", "longest", "validation_images"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1, "Leave it out."))
        positive_number("latency_seconds", self.latency_seconds, "Leave it out.")
        if not 0 < real_number("judged_share", self.judged_share, "Leave it out.") < 1:
            raise UsageError(f"judged_share is {self.judged_share}, expected more than 0 and less than 1", "Try 0.15.")
        flag("channels_last", self.channels_last)
        object.__setattr__(self, "latency_batch_sizes", batch_sizes(self.latency_batch_sizes))
        flag("table_refit", self.table_refit)
        flag("screening", self.screening)
        object.__setattr__(self, "stand_ins", names_of("stand_ins", self.stand_ins))
        check_kinds(self.stand_ins)
        if read_budget(self.student_budget) is None:
            raise UsageError("students without a budget learn nothing", "Ask for no students in `stand_ins`.")

    def num_images(self, *, by_plan: bool) -> int:
        """How many calibration samples are used at most."""
        return self.images or (PLAN_IMAGES if by_plan else REMOVAL_IMAGES)


def batch_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Each once, the largest first.

    Raises:
        UsageError: no whole numbers from 1.
    """
    hint = "Like (1, 128): the batch sizes that latency is timed at."
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise UsageError(f"latency_batch_sizes is {sizes!r}, expected whole numbers", hint)
    return tuple(sorted({whole_number("latency_batch_sizes", size, 1, hint) for size in sizes}, reverse=True))


_MEASURED = tuple(field_.name for field_ in fields(MeasureConfig))


@dataclass(frozen=True)
class RunInfo:
    """Where a run came from, for the record: specs, seed, command. `model` is None for a module made in Python."""

    model: str | None = None
    data: str = "given in Python"
    seed: int = 0
    command: str = "shoal.compress(...)"
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CompressConfig(MeasureConfig):
    """How compress() works; the fields of `MeasureConfig`, and these.

    Args:
        fold: afterwards fold batch norms, constants and chains of linear maps: exact algebra in eval mode, the same
            outputs up to rounding, so the certificate is *equal* at best. Not for a network that is trained further.
        refit: after a removal, fit the last linear maps of the blocks that stay, in closed form, and norms, where that
            does less damage to samples held back; a plan is refitted in any case.
        damage: what the choice minimises, `damage(original, candidate, batch)`: both are what the networks returned,
            unchanged (the tensor itself where there is one or `output` names one); it returns one number a sample. By
            default KL(original || candidate) of scores of classes, else the squared error relative to the variance of
            the original's output, and the mean over several outputs: `record.outputs` says which and why.
        output: names of the outputs that count (`logits`, `[1]`, `aux`); all tensors by default. The
            certificate looks at all of them in any case.
        latency_from: latencies of another device: a table by `shoal latency`, or 'FILE.py:FUNCTION', which runs that
            file; by default they are measured here.
        tables: a folder for the tables of a plan. What it holds already, for the same network, data and configuration,
            is not measured again, so that another goal takes seconds.
        run_info: where model and data came from, for the record.
        task: what the network is for, one of `shoal.tasks.TASKS` or a `Task` of yours: it says how outputs are read,
            and brings the metrics that are reported and that a `MaxDrop` is about. By default it is recognised from the
            network's class and the labels.
        workers: who measures the candidates of a plan: so many processes here, or `shoal.RayWorkers`; by default this
            process. The plan is the same. Latencies are timed by this process, while no worker is there.
    """

    fold: bool = False
    refit: bool = False
    damage: DamageFunction | str | None = None
    output: str | Sequence[str] | None = None
    latency_from: str | Path | None = None
    tables: str | Path | None = None
    run_info: RunInfo = field(default_factory=RunInfo)
    task: Task | str | None = None
    workers: Workers | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        flag("fold", self.fold)
        flag("refit", self.refit)
        if self.damage is not None and not isinstance(self.damage, str) and not callable(self.damage):
            raise UsageError(
                f"damage is {self.damage!r}, expected a function or the name of a metric",
                "Like damage=lambda original, candidate, batch: (original - candidate).square().mean(1).",
            )
        if self.output is not None:
            names_of("output", self.output)
        OutputRequest(self.output, self.task)
        path_or_none("latency_from", self.latency_from)
        path_or_none("tables", self.tables)
        as_workers(self.workers)
        expect_type(self.run_info, RunInfo, "run_info", "Leave it out.")

    @property
    def outputs(self) -> OutputRequest:
        """What is said about the network's outputs."""
        return OutputRequest(self.output, self.task)

    @property
    def measure(self) -> MeasureConfig:
        """How candidates are measured, alone."""
        return MeasureConfig(**{name: getattr(self, name) for name in _MEASURED})

    @classmethod
    def of(cls, measure: MeasureConfig | None = None, **more: Any) -> "CompressConfig":
        """A configuration that measures as `measure` does."""
        measured = {name: getattr(measure, name) for name in _MEASURED} if measure else {}
        return cls(**measured, **more)
