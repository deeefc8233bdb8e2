"""scan(): what is every block, branch and kernel of a network worth, on data? Nothing is changed."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import torch
from torch import nn

from shoal.batches import Batch, Repeatable, batches, check_one_purpose, device_of
from shoal.blocks import BlockGraph, analyze
from shoal.blocks.prefix_cache import restart_notes
from shoal.errors import DataError, FolderError, UsageError, naming_memory_shortage
from shoal.files.reading import refusing
from shoal.measure import Accumulator, Answers, Reading, answers, machine, reading_of, wilson
from shoal.measure.classes import no_better_than_chance
from shoal.measure.output_reading import check_pairing
from shoal.outputs import as_names
from shoal.record import Ablation, Baseline, ScannedBlock, ScannedLayer, ScanRecord, ScoreQuality, SecondData
from shoal.scanning.candidates import Candidate, KernelLayer, block_candidates, layer_candidates, layers_of
from shoal.scanning.means import branch_means
from shoal.scanning.scores import SCORES
from shoal.scanning.scores.collect import block_scores
from shoal.scanning.scores.correlation import rank_correlation
from shoal.scanning.sweep import SweepObserver, sweep
from shoal.scanning.verdicts import ablation_of, channel_change_hypothesis, verdict_of

Progress = Callable[[str, int, int], None]

# An early verdict needs this many samples, and holds at 95 % for all candidates and all looks together.
_LEAST_SAMPLES = 64


class Journal(Protocol):
    """Where finished mini-batches go, so that an interrupted scan resumes."""

    def append(self, line: dict[str, Any]) -> None:
        """Keep one line."""

    def measured(self) -> list[dict[str, Any]]:
        """What earlier attempts kept."""


@dataclass(frozen=True)
class ScanSettings:
    """How to scan.

    Args:
        tolerance: what still counts as nothing: points of top-1; None means 1.0, or 0.01 nat of loss without labels, or
            0.01 of the variance of outputs that are no scores of classes.
        fast: stop trying a candidate once its verdict is clear.
        stack: how many candidates share a forward (see `stacked`); 1 is exact to the bit.
        include: patterns of blocks and layers; all by default.
        layers: whether to try every kernel.
        scores: whether to compute scores.
        output: names of the outputs that count (`logits`, `[1]`, `aux`); all that are floating-point by default.
    """

    tolerance: float | None = None
    fast: bool = False
    stack: int = 1
    layers: bool = True
    scores: bool = True
    output: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 < self.tolerance <= 100:
            raise UsageError(f"the tolerance is {self.tolerance}, expected more than 0 and at most 100", "Try 1.0.")
        if self.stack < 1:
            raise UsageError(f"stack is {self.stack}, expected at least 1", "1 runs each candidate alone.")


@dataclass(frozen=True)
class ScanRunInfo:
    """Where the scan came from, for the record."""

    model: str = "given in Python"
    data: str = "given in Python"
    seed: int = 0
    command: str = "shoal.scan(...)"
    split: str = "test"


@naming_memory_shortage()
def scan(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    also: Iterable[Any] | None = None,
    also_name: str = "given in Python",
    settings: ScanSettings | None = None,
    origin: ScanRunInfo | None = None,
    journal: Journal | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ScanRecord:
    """Ablate every block, branch and kernel of `model`, one at a time, and score the blocks.

    Args:
        model: any network; it is left as it was.
        loader: mini-batches to measure on; it is read three times (means, scores, ablations), so an
            iterator is kept in memory.
        also: a second data set for the same ablations.
        also_name: its name for the record.
        settings: how to scan.
        origin: where model and data came from.
        journal: keeps finished mini-batches, so that a later call goes on from them.
        progress: called with (stage, done, total).

    Raises:
        DataError: no data, labels out of range, or a network without anything to ablate.
        NonFiniteError, ModelRaisedError: weights, data or model at fault.
    """
    started = time.perf_counter()
    settings, origin = settings or ScanSettings(), origin or ScanRunInfo()
    check_one_purpose(first=loader, second=also)
    loader = Repeatable(loader)
    also = Repeatable(also, "second data") if also is not None else None
    example = next(batches(loader, device_of(model)), None)
    if example is None:
        raise DataError("there is no data to scan on", "Give a loader with at least one mini-batch.")
    progress("tracing", 0, 1)
    anatomy = analyze(model, example.take(2))
    reading = reading_of(model, loader, as_names(settings.output))
    reading.check_labels(batches(loader))
    scanner = _Scanner(anatomy, settings, reading, journal, progress)
    first = scanner.run(loader, "first")
    second = None
    if also is not None:
        other = scanner.run(also, "also")
        second = SecondData(
            data=also_name,
            baseline=other.baseline("test"),
            blocks=scanner.blocks(other, {}),
            layers=scanner.layers(other),
            differing=_differing(first, other),
        )
    progress("scores", 0, 1)
    scores, said = _scores(anatomy, loader, reading) if settings.scores else ({}, [])
    blocks, layers = scanner.blocks(first, scores), scanner.layers(first)
    return ScanRecord(
        command=origin.command,
        model=origin.model,
        data=origin.data,
        seed=origin.seed,
        tolerance=first.tolerance,
        metric=first.metric,
        comparisons=len(scanner.candidates),
        baseline=first.baseline(origin.split),
        blocks=blocks,
        layers=layers,
        scores=_qualities(blocks) if settings.scores and blocks else [],
        claim=channel_change_hypothesis(layers),
        also=second,
        early_stopped=sorted(first.stopped),
        outputs=reading.to_record(),
        notes=[*_notes(anatomy, first, settings), *reading.warnings(), *first.remarks(), *said],
        machine=machine(device_of(model)),
        seconds=time.perf_counter() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _scores(
    anatomy: BlockGraph, loader: Iterable[Any], reading: Reading
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The scores of every block, and as notes what could not be scored."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = block_scores(anatomy, loader, reading=reading)
    return found, [str(one.message).splitlines()[0] for one in caught if issubclass(one.category, UserWarning)]


class _Scanner:
    """The candidates of one network and how they are run on one data set after another."""

    def __init__(
        self,
        anatomy: BlockGraph,
        settings: ScanSettings,
        reading: Reading,
        journal: Journal | None,
        progress: Progress,
    ) -> None:
        self.reading = reading
        self.anatomy, self.settings, self.journal, self.progress = anatomy, settings, journal, progress
        self.found_layers: list[KernelLayer] = layers_of(anatomy) if settings.layers else []
        self.candidates: list[Candidate] = []

    def run(self, loader: Iterable[Any], name: str) -> "_Tallies":
        """Every ablation on every mini-batch of `loader`."""
        self.progress("mean of every branch", 0, 1)
        means = branch_means(self.anatomy, loader)
        self.candidates = [
            *block_candidates(self.anatomy, means),
            *layer_candidates(self.anatomy, self.found_layers),
        ]
        if not self.candidates:
            raise DataError("the network has nothing to ablate: no residual block, no convolution or linear layer", "")
        tallies = _Tallies(name, self.settings, self.reading, len(self.candidates), self.journal)
        skip = tallies.resume()
        total = _length(loader) * len(self.candidates)
        seen = skip * len(self.candidates)

        def tick(done: int, of: int) -> None:
            nonlocal seen
            seen += 1
            self.progress(f"{len(self.candidates)} ablations", seen, max(total, seen))

        sweep(self.anatomy, loader, self.candidates, tallies, skip=skip, stack=self.settings.stack, tick=tick)
        return tallies

    def blocks(self, tallies: "_Tallies", scores: dict[str, dict[str, float]]) -> list[ScannedBlock]:
        """The chain with the ablations and scores of each block."""
        found = []
        for block in self.anatomy.chain:
            own = {
                one.ablation: one.key for one in self.candidates if one.path == block.path and one.ablation != "kernel"
            }
            ablations = {name: tallies.ablation(key) for name, key in own.items()}
            if (
                "block" in ablations and block.units
            ):  # taking a block out is F = 0 with the activation kept: one run serves both
                ablations["branch"] = ablations["block"]
            found.append(
                ScannedBlock(
                    path=block.path,
                    kind=block.kind,
                    stage=block.stage,
                    shortcut=block.shortcut or "none",
                    in_shape=list(block.in_shape),
                    out_shape=list(block.out_shape),
                    params=block.params,
                    removable=block.removable,
                    reason=block.reason,
                    ablations=ablations,
                    scores=scores.get(block.path, {}),
                )
            )
        return found

    def layers(self, tallies: "_Tallies") -> list[ScannedLayer]:
        """Every layer with its ablation."""
        return [
            ScannedLayer(
                path=layer.path,
                kind=layer.kind,
                block=layer.block,
                in_channels=layer.in_channels,
                out_channels=layer.out_channels,
                changes_channels=layer.in_channels != layer.out_channels,
                params=layer.params,
                ablations={"kernel": tallies.ablation(f"kernel:{layer.path}")},
            )
            for layer in self.found_layers
        ]


@dataclass
class _Tallies(SweepObserver):
    """Paired sums of every candidate on one data set, kept in the journal after every mini-batch."""

    name: str
    settings: ScanSettings
    reading: Reading
    comparisons: int
    journal: Journal | None
    found: dict[str, Accumulator] = field(default_factory=dict)
    own: Accumulator = field(default_factory=Accumulator)
    stopped: set[str] = field(default_factory=set)
    answers: Answers | None = None
    original: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: int | None = None
    looks: int = 0

    @property
    def metric(self) -> Literal["top1", "loss", "kl", "mse", "damage"]:
        """What verdicts are about."""
        if self.reading.classes is None:
            return "mse" if all(one.task == "values" for one in self.reading.outputs) else "damage"
        if self.own.top1 is not None:
            return "top1"
        return "loss" if self.own.labelled == self.own.n else "kl"

    @property
    def tolerance(self) -> float:
        """As a fraction of top-1, in nats, or as a share of the variance."""
        if self.settings.tolerance is not None:
            return self.settings.tolerance / 100 if self.metric == "top1" else self.settings.tolerance
        return 0.01

    def resume(self) -> int:
        """Take up what the journal holds; returns how many mini-batches are done."""
        lines = [] if self.journal is None else self.journal.measured()
        with refusing(FolderError, "the journal of the scan is damaged", "Choose a new --out."):
            last = next(
                (line for line in reversed(lines) if line.get("kind") == "scan" and line["name"] == self.name), None
            )
            if last is None:
                return 0
            self.found = {key: Accumulator.from_dict(plain) for key, plain in last["tallies"].items()}
            self.own = Accumulator.from_dict(last["own"])
            self.stopped, self.looks = set(last["stopped"]), last["batches"]
            return int(last["batches"])

    def wants(self, candidate: Candidate) -> bool:
        return candidate.key not in self.stopped

    def whole(self, index: int, batch: Batch, output: Any) -> None:
        self.original = self.reading.tensors(output, batch)
        read = self.reading.classes
        if read is not None:
            self.answers = answers(self.original[read.name], batch.target, batch, read.axis)
            self.classes = int(self.answers.log_probs.shape[-1])
        self._add(self.own, self.original, batch)

    def see(self, candidate: Candidate, batch: Batch, output: Any) -> None:
        self._add(self.found.setdefault(candidate.key, Accumulator()), self.reading.tensors(output, batch), batch)

    def _add(self, tally: Accumulator, tensors: dict[str, torch.Tensor], batch: Batch) -> None:
        read = self.reading.classes
        if read is None or self.answers is None:
            tally.add_damage(self.reading.damage_between(self.original, tensors, batch))
        else:
            check_pairing(read, self.original[read.name], tensors[read.name])
            tally.add(self.answers, tensors[read.name], batch.target, batch, read.axis)

    def remarks(self) -> list[str]:
        """What makes the figures doubtful."""
        return no_better_than_chance(self.own.right, self.own.n, self.classes) if self.own.top1 is not None else []

    def done(self, index: int) -> None:
        self.looks = index + 1
        if self.settings.fast:
            self._stop_clear_ones()
        if self.journal is not None:
            tallies = {key: tally.to_dict() for key, tally in self.found.items()}
            line = {"kind": "scan", "name": self.name, "batches": self.looks, "stopped": sorted(self.stopped)}
            self.journal.append({**line, "own": self.own.to_dict(), "tallies": tallies})

    def _stop_clear_ones(self) -> None:
        # Bonferroni over candidates, and over looks by 1/(k(k+1)), which sums to 1 however many there are.
        share = 1 / (self.looks * (self.looks + 1))
        confidence = 1 - 0.05 / self.comparisons * share
        for key, tally in self.found.items():
            if key not in self.stopped and tally.n >= _LEAST_SAMPLES and self._is_clear(tally, confidence):
                self.stopped.add(key)

    def _is_clear(self, tally: Accumulator, confidence: float) -> bool:
        drop = tally.top1_drop
        if drop is not None:
            interval = tally.drop_interval(confidence)
            return interval is not None and verdict_of(interval, drop, self.tolerance) != "undecided"
        mean = tally.increase / tally.n
        return verdict_of(tally.increase_interval(confidence), mean, self.tolerance) != "undecided"

    def ablation(self, key: str) -> Ablation:
        """The figures of one candidate."""
        counted = self.reading.classes is not None
        return ablation_of(self.found[key], tolerance=self.tolerance, comparisons=self.comparisons, counted=counted)

    def baseline(self, split: str) -> Baseline:
        """The whole network."""
        top1 = self.own.top1
        return Baseline(
            top1=top1,
            top1_interval=wilson(self.own.right, self.own.n) if top1 is not None else None,
            loss=self.own.loss / self.own.n if self.own.labelled == self.own.n else None,
            n=self.own.n,
            split=split,
        )


def _differing(first: _Tallies, other: _Tallies) -> list[str]:
    """The candidates whose verdicts on the two data sets contradict each other or are decided in one only."""
    return [key for key in first.found if first.ablation(key).verdict != other.ablation(key).verdict]


def _qualities(blocks: Sequence[ScannedBlock]) -> list[ScoreQuality]:
    damage = {
        block.path: (block.ablations.get("block") or block.ablations["branch"]).kl
        for block in blocks
        if "block" in block.ablations or "branch" in block.ablations
    }
    found = []
    for name, score in SCORES.items():
        own = {block.path: block.scores[name] for block in blocks if name in block.scores and block.path in damage}
        correlation, interval = rank_correlation(own, damage, score.high_means)
        found.append(
            ScoreQuality(
                name=name,
                source=score.source,
                high_means=score.high_means,
                correlation=correlation,
                correlation_interval=interval,
                blocks=len(own),
            )
        )
    return found


def _notes(anatomy: BlockGraph, tallies: _Tallies, settings: ScanSettings) -> list[str]:
    m = tallies.comparisons
    notes = [
        f"{m} ablations were compared with the whole network; each interval is 95 % for its own comparison, so about "
        f"{0.05 * m:.0f} of {m} may miss; `familywise` verdicts use Bonferroni's correction and hold together at 95 %"
    ]
    if anatomy.chain.note:
        notes.append(anatomy.chain.note)
    notes += restart_notes(anatomy)
    if tallies.stopped:
        notes.append(
            f"{len(tallies.stopped)} ablations were clear early and were not measured on all {tallies.own.n} samples; "
            "their n is given"
        )
    if settings.stack > 1:
        notes.append(
            f"up to {settings.stack} removals shared a forward, where figures agree with single runs to rounding"
        )
    return notes


def _length(loader: Iterable[Any]) -> int:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return 0
