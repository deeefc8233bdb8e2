"""Choose the blocks to remove: those named, the strict identities, or greedily with true re-scoring after each step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import nn

from shoal.batches import Batch
from shoal.blocks import Block, BlockGraph
from shoal.blocks.module_replacements import module_replacements, normalize_removals, removable_units
from shoal.errors import FolderError, NotReachedError, SurgeryError
from shoal.files.reading import refusing
from shoal.measure import Reading, reading_of
from shoal.offloaded import is_offloaded
from shoal.pipeline.goals import Blocks, ExactOnly, Goal, MaxDrop, RemoveBlocks, by_units, points_text
from shoal.pipeline.judging import Judge
from shoal.pipeline.removal_screen import RemovalScreen
from shoal.plan import Remove
from shoal.preserve import patched
from shoal.progress import Journal, NullJournal, ProgressCallback, no_progress
from shoal.record import BlockAction, Comparison, Planning, RemovalStep, metric_drop
from shoal.scanning import DamageFunction, OutputDamage, RemovalDamage, RemovalSweeps, responses
from shoal.surgery import check_removable, strict_identities
from shoal.tasks import Task
from shoal.workers import LocalWorkers, Workers

# Two steps beyond the limit in a row end the search: the drop is not monotone in the number of blocks.
_PATIENCE = 2
# Of activations and outputs that are kept from one step to the next.
_KEPT_BYTES = 2**30


@dataclass(frozen=True)
class RemovalChoice:
    """The blocks to remove and how they were found.

    `removed` are paths of blocks and names of single units (`layer.3#1`), in the order of the chain; of `bare` blocks
    the norms behind their additions go too.
    """

    removed: list[str]
    worths: dict[str, RemovalDamage]
    ratios: dict[str, float]
    reached: bool
    message: str
    steps: list[RemovalStep] = field(default_factory=list)
    validation: Comparison | None = None
    replaced: list[list[str]] = field(default_factory=list)
    planning: Planning | None = None
    bare: list[str] = field(default_factory=list)

    @property
    def removals(self) -> list[Remove]:
        """What to remove, as actions of a plan."""
        named = [Remove.named(name) for name in self.removed]
        return [Remove(path=removal.path, norms="drop") if removal.path in self.bare else removal for removal in named]

    def units_gone(self, path: str) -> list[int]:
        """The single units that a block has lost."""
        return [removal.unit for removal in self.removals if removal.path == path and removal.unit is not None]

    def action_of(self, path: str) -> BlockAction:
        """What became of a block."""
        if path in self.removed:
            return "removed"
        return "replaced" if any(path in span for span in self.replaced) else "kept"


@dataclass
class GreedyRemoval:
    """Everything the choice needs: the analysed original, mini-batches, task and journal, and who runs the removals."""

    graph: BlockGraph
    goal: Goal
    calibration: Sequence[Batch]
    validation: Sequence[Batch]
    damage: DamageFunction | None = None
    task: Task | None = None
    journal: Journal = field(default_factory=NullJournal)
    progress: ProgressCallback = no_progress
    workers: Workers = field(default_factory=LocalWorkers)

    def __post_init__(self) -> None:
        damage = self.damage or OutputDamage(reading_of(self.graph.model, self.calibration))
        memory = 0 if is_offloaded(self.graph.model) else _KEPT_BYTES
        self.sweeps = RemovalSweeps(self.graph, damage, memory, self.workers)
        self.screen = RemovalScreen()

    @property
    def units(self) -> bool:
        """Whether the additions of a block are removed separately."""
        return by_units(self.goal)

    @property
    def reading(self) -> Reading | None:
        """How outputs are read, where the damage knows."""
        return self.damage.reading if isinstance(self.damage, OutputDamage) else None

    def choose(self) -> RemovalChoice:
        """The choice; nothing of the network is changed.

        Raises:
            NotReachedError: there is nothing to remove at all; what was nearest stands in the message.
            UnknownBlockError, SurgeryError: a named block or pattern does not fit.
        """
        with self.sweeps.open():
            return self._choice()

    def _choice(self) -> RemovalChoice:
        if isinstance(self.goal, Blocks):
            check_removable(self.graph.chain, self.goal.paths)
            named = normalize_removals(self.graph, [Remove.named(name) for name in self.goal.paths])
            return self._known(named, f"{self._counted(named)} removed as named")
        if isinstance(self.goal, ExactOnly):
            return self._exact([block.path for block in self.graph.chain.select(self.goal.include, self.goal.exclude)])
        candidates = self._candidates()
        if not candidates:
            raise NotReachedError(nothing_removable(self.graph), "`shoal trace` gives the reason for each block.")
        return self._greedy(candidates)

    def _candidates(self) -> list[str]:
        """The names of everything that may be tried, in the order of the chain."""
        if not self.units:
            blocks = self.graph.chain.select(self.goal.include, self.goal.exclude)
            return [name for block in blocks for name in self._whole(block)]
        selected = self.graph.chain.select_units(self.goal.include, self.goal.exclude)
        names = []
        for path, units in selected.items():
            block = self.graph.chain[path]
            if len(block.removable_units) > 1:
                removable = removable_units(self.graph, block)
                names += [Remove(path=path, unit=unit).name for unit in units if unit in removable]
            elif block.removable:
                names += self._whole(block)
        return names

    def _whole(self, block: Block) -> list[str]:
        """The names of removing a block: with the norms behind its additions, too, where there are any."""
        bare = [Remove(path=block.path, norms="drop").name] if block.path in self.graph.shortcuts_without_norms else []
        return [block.path, *bare]

    def _left(self, candidates: list[str], removed: list[str]) -> list[str]:
        """The candidates that can still go beside what is gone."""
        removals = [Remove.named(name) for name in removed]
        places = {(removal.path, removal.unit) for removal in removals}
        return [name for name in candidates if _place(name) not in places and self._goes_with(name, removals)]

    def _goes_with(self, name: str, removals: list[Remove]) -> bool:
        candidate = Remove.named(name)
        in_block = [removal for removal in removals if removal.path == candidate.path]
        try:
            module_replacements(self.graph, [*in_block, candidate])
        except SurgeryError:  # each of two units can go, but not both
            return False
        return True

    def _counted(self, pieces: Sequence[Remove]) -> str:
        """How many blocks and units, in words."""
        units = sum(piece.unit is not None for piece in pieces)
        blocks = len(pieces) - units
        if not units:
            return _blocks(blocks)
        count = f"{units} unit" if units == 1 else f"{units} units"
        return f"{_blocks(blocks)} and {count}" if blocks else count

    def _known(self, pieces: list[Remove], message: str) -> RemovalChoice:
        blocks = [piece.path for piece in pieces if piece.unit is None]
        return self._chosen(pieces, self._first_worths(blocks) if blocks else {}, True, message)

    def _chosen(
        self,
        pieces: list[Remove],
        worths: dict[str, RemovalDamage],
        reached: bool,
        message: str,
        steps: Sequence[RemovalStep] = (),
        validation: Comparison | None = None,
    ) -> RemovalChoice:
        removed = [piece.path if piece.unit is None else piece.name for piece in pieces]
        bare = [piece.path for piece in pieces if piece.norms == "drop"]
        return RemovalChoice(removed, worths, self._ratios(), reached, message, list(steps), validation, bare=bare)

    def _exact(self, candidates: list[str]) -> RemovalChoice:
        proofs = strict_identities(self.graph)
        paths = [path for path in candidates if path in proofs]
        if paths:
            pieces = [Remove(path=path) for path in paths]
            return self._known(pieces, f"{_blocks(len(paths))} removed, each proved to do nothing")
        ratios = {path: ratio for path, ratio in self._ratios().items() if path in candidates}
        nearest = sorted(ratios.items(), key=lambda item: item[1])[:5]
        listed = ", ".join(f"{path} ({ratio:.3g})" for path, ratio in nearest) or "none"
        raise NotReachedError(
            f"no block is a strict identity; the nearest by max |F| / mean |x|: {listed}",
            "Use --remove or --max-drop to remove blocks that do little; nothing was written.",
        )

    def _ratios(self) -> dict[str, float]:
        return {path: response.ratio for path, response in responses(self.graph, self.calibration).items()}

    def _first_worths(self, candidates: list[str]) -> dict[str, RemovalDamage]:
        """What each of these removals is worth alone, from the journal if it stands there."""
        with refusing(FolderError, "the journal of the run is damaged", "Choose a new --out."):
            for line in self.journal.measured():
                if line["kind"] == "worths" and {entry["path"] for entry in line["worths"]} == set(candidates):
                    return {entry["path"]: _worth(entry) for entry in line["worths"]}
        damages = self._sweep(candidates, [], "what each block is worth")
        plain = [{"path": w.path, "damage": w.damage, "interval": w.interval, "n": w.n} for w in damages]
        self.journal.append({"kind": "worths", "worths": plain})
        return {entry.path: entry for entry in damages}

    def _sweep(self, candidates: Sequence[str], removed: Sequence[str], stage: str) -> list[RemovalDamage]:
        total = len(candidates) * len(self.calibration)

        def on_progress(done: int, known: int) -> None:
            self.progress(stage, done, total)

        return self.sweeps.measure(self.calibration, candidates, removed, on_progress)

    def _greedy(self, candidates: list[str]) -> RemovalChoice:
        every = dict.fromkeys([*(block.path for block in self.graph.chain.removable), *candidates])
        worths = self._first_worths(list(every))
        # Metrics may be slow, and only a drop is about them.
        task = self.task if isinstance(self.goal, MaxDrop) else None
        judge = Judge(self.graph.model, self.validation, self.reading, task)
        with refusing(FolderError, "the journal of the run is damaged", "Choose a new --out."):
            lines = [line for line in self.journal.measured() if line["kind"] == "step"]
            steps = [RemovalStep.model_validate(line["step"]) for line in lines]
            if len({step.removed for step in steps}) < len(steps):
                raise ValueError("it holds a step twice")
            self.screen = RemovalScreen.read(lines[-1].get("screen")) if lines else RemovalScreen.of(worths.values())
        while not self._finished(steps) and self._left(candidates, [step.removed for step in steps]):
            step = self._step(steps, candidates, worths, judge)
            self.journal.append({"kind": "step", "step": step.model_dump(mode="json"), "screen": asdict(self.screen)})
            steps.append(step)
        count = self._best_length(steps)
        removed = [step.removed for step in steps[:count]]
        pieces = normalize_removals(self.graph, [Remove.named(name) for name in removed])
        reached, message = self._judge(count, steps, pieces)
        validation = steps[count - 1].validation if count else None
        return self._chosen(pieces, worths, reached, message, steps, validation)

    def _step(
        self, steps: list[RemovalStep], candidates: list[str], worths: dict[str, RemovalDamage], judge: Judge
    ) -> RemovalStep:
        start = time.perf_counter()
        removed = [step.removed for step in steps]
        remaining = self._left(candidates, removed)
        tried = (
            self.screen.measure(
                remaining, lambda names: self._sweep(names, removed, self._stage(len(steps), names, remaining))
            )
            if steps
            else [worths[name] for name in remaining]
        )
        best = min(tried, key=lambda candidate: candidate.damage)
        disabled = partial(blocks_disabled, self.graph, [*removed, best.path])
        validation = judge.compare(self.graph.model, disabled)
        return RemovalStep(
            removed=best.path,
            kl=best.damage,
            kl_interval=best.interval,
            candidates=len(remaining),
            measured=len(tried),
            n=best.n,
            validation=validation,
            seconds=time.perf_counter() - start,
        )

    def _stage(self, steps: int, names: Sequence[str], remaining: Sequence[str]) -> str:
        total = str(len(remaining)) if self.units else _blocks(len(remaining))
        return f"step {steps + 1}: {total if len(names) == len(remaining) else f'{len(names)} of {total}'} tried"

    def _finished(self, steps: list[RemovalStep]) -> bool:
        if isinstance(self.goal, RemoveBlocks):
            return len(steps) >= self.goal.count
        beyond = [not self._within(step) for step in steps[-_PATIENCE:]]
        return len(beyond) == _PATIENCE and all(beyond)

    def _within(self, step: RemovalStep) -> bool:
        if not isinstance(self.goal, MaxDrop) or step.validation is None:
            return False
        return 100 * metric_drop(step.validation) <= self.goal.points + 1e-9

    def _best_length(self, steps: list[RemovalStep]) -> int:
        if isinstance(self.goal, RemoveBlocks):
            return len(steps)
        return max((number for number, step in enumerate(steps, 1) if self._within(step)), default=0)

    def _judge(self, count: int, steps: list[RemovalStep], pieces: Sequence[Remove]) -> tuple[bool, str]:
        counted = self._counted(pieces)
        if isinstance(self.goal, RemoveBlocks):
            reached = count >= self.goal.count
            more = "" if reached else f" of the {self.goal.count} asked for; no other can be removed"
            return reached, f"{counted} removed{more}"
        limit = self.goal.points if isinstance(self.goal, MaxDrop) else 0.0
        if count:
            return True, f"{counted} removed within {points_text(limit)} on validation"
        first = 100 * metric_drop(steps[0].validation) if steps and steps[0].validation else float("nan")
        return False, f"no block can go within {points_text(limit)}: the first already costs {first:.2f}"


@contextmanager
def blocks_disabled(graph: BlockGraph, paths: Sequence[str]) -> Iterator[nn.Module]:
    """The network with these blocks and units, by the names of `plan.Remove`, taken out for the time being."""
    swaps = module_replacements(graph, [Remove.named(name) for name in paths])
    forwards = {graph.model.get_submodule(path): module.forward for path, module in swaps.items()}
    with patched(forwards):
        yield graph.model


def _worth(plain: dict[str, Any]) -> RemovalDamage:
    low, high = plain["interval"]
    return RemovalDamage(plain["path"], plain["damage"], (low, high), plain["n"])


def _place(name: str) -> tuple[str, int | None]:
    removal = Remove.named(name)
    return removal.path, removal.unit


def _blocks(count: int) -> str:
    return f"{count} block" if count == 1 else f"{count} blocks"


def nothing_removable(graph: BlockGraph) -> str:
    """Why there is nothing to take out."""
    if graph.chain.note:
        return graph.chain.note
    if not graph.chain.removable:
        return "no block of the network can be taken out"
    return "no removable block is left by --include and --exclude"
