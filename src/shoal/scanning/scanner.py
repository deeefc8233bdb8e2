"""scan(): ablate every block, branch and kernel of a network, one at a time. The network is left as it was."""

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from torch import nn

from shoal.arguments import flag, names_of, real_number, whole_number
from shoal.batches import Batch, Repeatable, batches, check_one_purpose, device_of
from shoal.blocks import BlockGraph, analyze
from shoal.blocks.prefix_cache import PrefixCache, restart_notes
from shoal.deprecated import Keywords, former_keywords
from shoal.errors import (
    DataError,
    FolderError,
    UsageError,
    check_no_overlap,
    expect_type,
    naming_memory_shortage,
)
from shoal.files.reading import refusing
from shoal.intake import check_network
from shoal.measure import Accumulator, Reading, machine, wilson
from shoal.measure.classes import no_better_than_chance
from shoal.preserve import evaluating
from shoal.progress import Callbacks, Journal, ProgressCallback, as_callbacks, former_callbacks
from shoal.record import Ablation, Baseline, ScannedBlock, ScannedLayer, ScanRecord, ScoreQuality, SecondData
from shoal.scanning.candidates import Candidate, KernelLayer, block_candidates, kernel_layers, layer_candidates
from shoal.scanning.means import branch_means
from shoal.scanning.scorer import AblationScorer, Portion, PortionSums, split_by_cost
from shoal.scanning.scores import SCORES
from shoal.scanning.scores.collect import block_scores
from shoal.scanning.scores.correlation import rank_correlation
from shoal.scanning.verdicts import ablation_of, channel_change_hypothesis, verdict_of
from shoal.tasks import OutputRequest, Task, dense_copy
from shoal.workers import Workers, WorkerTask, as_workers, working

# An early verdict needs this many samples, and holds at 95 % for all candidates and all interim analyses together.
_MIN_SAMPLES = 64
# The key of the unchanged network among those of candidates.
_UNCHANGED = ""
# Candidates in a task of this process: so many are lost where it is killed.
_AT_A_TIME = 32
# Tasks for each of several workers: with more of them, the last to finish keeps the others waiting less.
_PER_WORKER = 4


@dataclass(frozen=True)
class ScanRunInfo:
    """Where the scan came from, for the record; `also` names the second data set."""

    model: str = "given in Python"
    data: str = "given in Python"
    seed: int = 0
    command: str = "shoal.scan(...)"
    split: str = "test"
    also: str = "given in Python"


@dataclass(frozen=True)
class ScanConfig:
    """How to scan.

    Args:
        tolerance: the equivalence margin, in points of top-1; None means 1.0, or 0.01 nat of loss without labels, or
            0.01 of the variance of outputs other than class scores.
        fast: stop measuring a candidate once its verdict is clear.
        stack: how many candidates share a forward (see `batched_candidates`); 1 is exact to the bit.
        layers: whether to ablate every kernel.
        scores: whether to compute scores.
        output: names of the outputs that count (`logits`, `[1]`, `aux`); all tensors by default.
        run_info: where model and data came from, for the record.
        task: what the network is for, see `shoal.tasks`; by default it is recognised.
        workers: who runs the ablations: so many processes here, or `shoal.RayWorkers`; by default this process. The
            record is the same.
    """

    tolerance: float | None = None
    fast: bool = False
    stack: int = 1
    layers: bool = True
    scores: bool = True
    output: str | Sequence[str] | None = None
    run_info: ScanRunInfo = field(default_factory=ScanRunInfo)
    task: Task | str | None = None
    workers: Workers | int | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 < real_number("the tolerance", self.tolerance, "Try 1.0.") <= 100:
            raise UsageError(f"the tolerance is {self.tolerance}, expected more than 0 and at most 100", "Try 1.0.")
        whole_number("stack", self.stack, 1, "1 runs each candidate alone.")
        for name in ("fast", "layers", "scores"):
            flag(name, getattr(self, name))
        if self.output is not None:
            names_of("output", self.output)
        OutputRequest(self.output, self.task)
        as_workers(self.workers)


FORMER_KEYWORDS = ("settings", "origin", "also_name", "journal", "progress")


def from_former_keywords(former: Keywords, keywords: Keywords) -> Keywords:
    """Today's keywords of scan() for those of version 0.1.0: a configuration and callbacks.

    Raises:
        UsageError: former and new ones for the same.
    """
    typed: Keywords = {}
    config, info = former.get("settings") or ScanConfig(), former.get("origin") or ScanRunInfo()
    if "also_name" in former:
        info = replace(info, also=former["also_name"])
    if former.keys() & {"settings", "origin", "also_name"}:
        typed["config"] = replace(config, run_info=info)
    typed |= former_callbacks(former)
    check_no_overlap(typed, keywords)
    return {**keywords, **typed}


@former_keywords(
    FORMER_KEYWORDS,
    from_former_keywords,
    "write scan(model, loader, also=..., config=shoal.ScanConfig(...), callbacks=...)",
)
@naming_memory_shortage()
def scan(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    also: Iterable[Any] | None = None,
    config: ScanConfig | None = None,
    callbacks: Callbacks | ProgressCallback | None = None,
) -> ScanRecord:
    """Ablate every block, branch and kernel of `model`, one at a time, and score the blocks.

    Args:
        model: any network; it is left as it was.
        loader: mini-batches to measure on; it is read three times (means, scores, ablations), so an
            iterator is kept in memory.
        also: a second data set for the same ablations.
        config: how to scan; for the record, where model and data came from.
        callbacks: progress, and a journal that stores finished mini-batches, so that a later call resumes after them;
            a function is called with (stage, done, total).

    Raises:
        UsageError: `config` is of another kind; an output that is not there.
        DataError: no data, labels out of range, or nothing to ablate in the network.
        NonFiniteError, ModelRaisedError: weights, data or model at fault.
    """
    started = time.perf_counter()
    check_network(model)
    config = expect_type(
        ScanConfig() if config is None else config, ScanConfig, "config", "Like shoal.ScanConfig(layers=False)."
    )
    callbacks, info = as_callbacks(callbacks), config.run_info
    check_one_purpose(first=loader, second=also)
    loader = Repeatable(loader)
    also = Repeatable(also, "second data") if also is not None else None
    example = next(batches(loader, device_of(model)), None)
    if example is None:
        raise DataError("there is no data to scan on", "Give a loader with at least one mini-batch.")
    callbacks.progress("tracing", 0, 1)
    request = OutputRequest(config.output, config.task)
    model = dense_copy(request.known(model).task, model)
    graph = analyze(model, example.take(2))
    task = request.choose(model, example)
    reading = request.read(task, model, loader)
    reading.check_labels(batches(loader))
    scanner = _Scanner(graph, config, reading, callbacks, as_workers(config.workers))
    first = scanner.run(loader, "first")
    second = scanner.second_data(first, also, info.also) if also is not None else None
    callbacks.progress("scores", 0, 1)
    scores, warned = _scores(graph, loader, reading) if config.scores else ({}, [])
    blocks, layers = scanner.blocks(first, scores), scanner.layers(first)
    return ScanRecord(
        command=info.command,
        model=info.model,
        data=info.data,
        seed=info.seed,
        tolerance=first.tolerance,
        metric=first.metric,
        comparisons=len(scanner.candidates),
        baseline=first.baseline(info.split),
        blocks=blocks,
        layers=layers,
        scores=_qualities(blocks) if config.scores and blocks else [],
        claim=channel_change_hypothesis(layers),
        also=second,
        early_stopped=sorted(first.stopped),
        outputs=reading.to_record(task=task.name),
        notes=[*_notes(graph, first, config), *reading.warnings(), *first.warnings(), *warned],
        machine=machine(device_of(model)),
        seconds=time.perf_counter() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _scores(
    graph: BlockGraph, loader: Iterable[Any], reading: Reading
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The scores of every block, and notes about scores that could not be computed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        scores = block_scores(graph, loader, reading=reading)
    warned = [caution.message for caution in caught if issubclass(caution.category, UserWarning)]
    return scores, [str(message).splitlines()[0] for message in warned]


class _Scanner:
    """The candidates of one network, run on one data set after another."""

    def __init__(
        self,
        graph: BlockGraph,
        config: ScanConfig,
        reading: Reading,
        callbacks: Callbacks,
        workers: Workers,
    ) -> None:
        self.graph, self.config, self.reading, self.callbacks = graph, config, reading, callbacks
        self.workers, self.finished = workers, 0
        self.kernel_layers: list[KernelLayer] = kernel_layers(graph) if config.layers else []
        self.candidates: list[Candidate] = []

    def run(self, loader: Iterable[Any], name: str) -> "ScanAccumulator":
        """Every ablation on every mini-batch of `loader`.

        Raises:
            DataError: there is none.
        """
        first = next(batches(loader, device_of(self.graph.model)), None)
        if first is None:
            raise DataError("there is no data to measure on", "Give a loader with at least one mini-batch.")
        self.finished = 0
        self.callbacks.progress("mean of every branch", 0, 1)
        means = branch_means(self.graph, loader)
        self.candidates = [
            *block_candidates(self.graph, means),
            *layer_candidates(self.graph, self.kernel_layers),
        ]
        if not self.candidates:
            raise DataError("the network has nothing to ablate: no residual block, no convolution or linear layer", "")
        sums = ScanAccumulator(name, self.config, self.reading, len(self.candidates), self.callbacks.journal)
        sums.resume()
        with evaluating(self.graph.model):  # here, so that workers need not, and the record can tell
            PrefixCache(self.graph).find_restarts(first)
        scorer = AblationScorer(self.graph, self.reading, self.candidates, self.config.stack)
        with working(self.workers, scorer) as results:
            for part in self._parts(loader):
                for portion, scored in results(self._tasks(sums, part, _length(loader))):
                    sums.add(portion, scored)
                    self._report(sums, portion, _length(loader))
        return sums

    def _parts(self, loader: Iterable[Any]) -> Iterator[Iterable[tuple[int, Batch]]]:
        """Mini-batches whose tasks may run at the same time: all, or with `fast`, which decides after each, one."""
        numbered = enumerate(batches(loader))
        if not self.config.fast:
            yield numbered
            return
        for item in numbered:
            yield [item]

    def _tasks(self, sums: "ScanAccumulator", part: Iterable[tuple[int, Batch]], length: int) -> Iterator[WorkerTask]:
        """Portions of the candidates on every mini-batch, as far as they are not in the journal."""
        together = 1 if self.config.fast else max(1, length)
        for index, batch in part:
            if index < sums.batches_done:
                continue
            missing = sums.missing(index, self.candidates)
            if missing is None:
                continue
            if self.workers.count == 1:
                parts = math.ceil(len(missing) / max(_AT_A_TIME, self.config.stack))
            else:
                parts = math.ceil(_PER_WORKER * self.workers.count / together)
            portions = split_by_cost(self.graph, missing, max(1, parts)) or [[]]
            for portion in portions:
                yield WorkerTask(Portion(index, tuple(candidate.key for candidate in portion)), batch)

    def _report(self, sums: "ScanAccumulator", portion: Portion, length: int) -> None:
        count = len(self.candidates)
        self.finished += len(portion.keys)
        done = max(self.finished, sums.batches_done * count)
        self.callbacks.progress(f"{count} ablations", done, max(length * count, done))

    def second_data(self, first: "ScanAccumulator", loader: Iterable[Any], name: str) -> SecondData:
        """The same ablations on a second data set."""
        second = self.run(loader, "also")
        return SecondData(
            data=name,
            baseline=second.baseline("test"),
            blocks=self.blocks(second, {}),
            layers=self.layers(second),
            differing=_differing(first, second),
        )

    def blocks(self, sums: "ScanAccumulator", scores: dict[str, dict[str, float]]) -> list[ScannedBlock]:
        """The chain with the ablations and scores of each block."""
        blocks = []
        for block in self.graph.chain:
            ablations = {
                candidate.ablation: sums.ablation(candidate.key)
                for candidate in self.candidates
                if candidate.path == block.path and candidate.ablation != "kernel"
            }
            # Removing a block is F = 0 with the activation kept: one run serves both.
            if "block" in ablations and block.units:
                ablations["branch"] = ablations["block"]
            blocks.append(
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
        return blocks

    def layers(self, sums: "ScanAccumulator") -> list[ScannedLayer]:
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
                ablations={"kernel": sums.ablation(f"kernel:{layer.path}")},
            )
            for layer in self.kernel_layers
        ]


@dataclass
class ScanAccumulator:
    """Paired sums of every candidate on one data set: journalled as they come, merged in the order of the mini-batches.

    So the figures are the same to the bit, whatever the order in which workers hand in what they did.
    """

    name: str
    config: ScanConfig
    reading: Reading
    comparisons: int
    journal: Journal
    by_candidate: dict[str, Accumulator] = field(default_factory=dict)
    unchanged: Accumulator = field(default_factory=Accumulator)
    stopped: set[str] = field(default_factory=set)
    classes: int | None = None
    batches_done: int = 0
    _scored: dict[int, dict[str, Accumulator]] = field(default_factory=dict)
    _expected: dict[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def metric(self) -> Literal["top1", "loss", "kl", "mse", "damage"]:
        """The figure that verdicts are about."""
        if self.reading.classes is None:
            return "mse" if all(output.task == "values" for output in self.reading.outputs) else "damage"
        if self.unchanged.top1 is not None:
            return "top1"
        return "loss" if self.unchanged.labelled == self.unchanged.n else "kl"

    @property
    def tolerance(self) -> float:
        """The equivalence margin: a fraction of top-1, nats, or a share of the variance."""
        if self.config.tolerance is not None:
            return self.config.tolerance / 100 if self.metric == "top1" else self.config.tolerance
        return 0.01

    def resume(self) -> int:
        """Restore what the journal holds; returns the number of mini-batches that are merged already."""
        with refusing(FolderError, "the journal of the scan is damaged", "Choose a new --out."):
            for event in self.journal.measured():
                if event.get("name") == self.name and event.get("kind") == "scan":
                    self._restore_merged(event)
                elif event.get("name") == self.name and event.get("kind") == "scored":
                    sums = {key: Accumulator.from_dict(plain) for key, plain in event["sums"].items()}
                    self._scored.setdefault(int(event["batch"]), {}).update(sums)
                    self.classes = event["classes"]
        return self.batches_done

    def _restore_merged(self, event: dict[str, Any]) -> None:
        """A line of version 0.1.0, which holds all sums so far."""
        self.by_candidate = {key: Accumulator.from_dict(plain) for key, plain in event["tallies"].items()}
        self.unchanged = Accumulator.from_dict(event["own"])
        self.stopped, self.batches_done = set(event["stopped"]), int(event["batches"])

    def missing(self, index: int, candidates: Sequence[Candidate]) -> list[Candidate] | None:
        """What is still to be run on a mini-batch, of the candidates whose verdict is open; None: nothing at all."""
        active = [candidate for candidate in candidates if candidate.key not in self.stopped]
        self._expected[index] = (_UNCHANGED, *(candidate.key for candidate in active))
        scored = self._scored.get(index, {})
        if all(key in scored for key in self._expected[index]):
            self._merge_complete()
            return None
        return [candidate for candidate in active if candidate.key not in scored]

    def add(self, portion: Portion, scored: PortionSums) -> None:
        """Keep what a portion gave."""
        sums = {_UNCHANGED: scored.unchanged, **scored.by_candidate}
        plain = {key: value.to_dict() for key, value in sums.items()}
        event = {"kind": "scored", "name": self.name, "batch": portion.index, "classes": scored.classes}
        self.journal.append({**event, "sums": plain})
        self.classes = scored.classes
        self._scored.setdefault(portion.index, {}).update(sums)
        self._merge_complete()

    def _merge_complete(self) -> None:
        """Merge every mini-batch that is complete, and all those before it; then stop clear candidates."""
        while (keys := self._expected.get(self.batches_done)) is not None:
            scored = self._scored.get(self.batches_done, {})
            if not all(key in scored for key in keys):
                return
            self.unchanged.merge(scored[_UNCHANGED])
            for key in keys[1:]:
                self.by_candidate.setdefault(key, Accumulator()).merge(scored[key])
            del self._scored[self.batches_done], self._expected[self.batches_done]
            self.batches_done += 1
            if self.config.fast:
                self._stop_clear()

    def warnings(self) -> list[str]:
        """Reasons to doubt the figures."""
        sums = self.unchanged
        return no_better_than_chance(sums.right, sums.n, self.classes) if sums.top1 is not None else []

    def _stop_clear(self) -> None:
        # Bonferroni over candidates, and over interim analyses by 1/(k(k+1)), which sums to 1 however many there are.
        share = 1 / (self.batches_done * (self.batches_done + 1))
        confidence = 1 - 0.05 / self.comparisons * share
        for key, sums in self.by_candidate.items():
            if key not in self.stopped and sums.n >= _MIN_SAMPLES and self._is_clear(sums, confidence):
                self.stopped.add(key)

    def _is_clear(self, sums: Accumulator, confidence: float) -> bool:
        drop = sums.top1_drop
        if drop is not None:
            interval = sums.drop_interval(confidence)
            return interval is not None and verdict_of(interval, drop, self.tolerance) != "undecided"
        mean = sums.increase / sums.n
        return verdict_of(sums.increase_interval(confidence), mean, self.tolerance) != "undecided"

    def ablation(self, key: str) -> Ablation:
        """The figures of one candidate."""
        counted = self.reading.classes is not None
        sums = self.by_candidate[key]
        return ablation_of(sums, tolerance=self.tolerance, comparisons=self.comparisons, counted=counted)

    def baseline(self, split: str) -> Baseline:
        """The figures of the unchanged network."""
        sums, top1 = self.unchanged, self.unchanged.top1
        return Baseline(
            top1=top1,
            top1_interval=wilson(sums.right, sums.n) if top1 is not None else None,
            loss=sums.loss / sums.n if sums.labelled == sums.n else None,
            n=sums.n,
            split=split,
        )


def _differing(first: ScanAccumulator, second: ScanAccumulator) -> list[str]:
    """The candidates with different verdicts on two data sets."""
    return [key for key in first.by_candidate if first.ablation(key).verdict != second.ablation(key).verdict]


def _qualities(blocks: Sequence[ScannedBlock]) -> list[ScoreQuality]:
    damage = {
        block.path: (block.ablations.get("block") or block.ablations["branch"]).kl
        for block in blocks
        if "block" in block.ablations or "branch" in block.ablations
    }
    qualities = []
    for name, score in SCORES.items():
        values = {block.path: block.scores[name] for block in blocks if name in block.scores and block.path in damage}
        correlation, interval = rank_correlation(values, damage, score.high_means)
        qualities.append(
            ScoreQuality(
                name=name,
                source=score.source,
                high_means=score.high_means,
                correlation=correlation,
                correlation_interval=interval,
                blocks=len(values),
            )
        )
    return qualities


def _notes(graph: BlockGraph, sums: ScanAccumulator, config: ScanConfig) -> list[str]:
    m = sums.comparisons
    notes = [
        f"{m} ablations were compared with the whole network; each interval is 95 % for its own comparison, so about "
        f"{0.05 * m:.0f} of {m} may miss; `familywise` verdicts use Bonferroni's correction and hold together at 95 %"
    ]
    if graph.chain.note:
        notes.append(graph.chain.note)
    notes += restart_notes(graph)
    if sums.stopped:
        notes.append(
            f"{len(sums.stopped)} ablations were clear early and were not measured on all {sums.unchanged.n} samples; "
            "each states its n"
        )
    if config.stack > 1:
        notes.append(
            f"up to {config.stack} removals shared a forward, where figures agree with single runs to rounding"
        )
    return notes


def _length(loader: Iterable[Any]) -> int:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return 0
