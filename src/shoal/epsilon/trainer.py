"""Training with gates: closed gates are counted in each epoch, blocks that stay closed are pruned on the way."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.batches import Batch, batches, call, logits_of
from shoal.blocks import analyze
from shoal.epsilon.attach import attach_gates_, watches_additions
from shoal.epsilon.controller import (
    AUTO,
    DEFAULT_SHARE,
    Auto,
    EpsilonPlan,
    EpsilonSchedule,
    ShareController,
    checked_share,
    read_epsilon,
)
from shoal.epsilon.monitor import GateMonitor
from shoal.epsilon.prunable import PrunableNetwork, PrunableSGD, decayed_parameters, largest_ending_weight
from shoal.epsilon.recipes import RECIPES, Recipe, fine_tuning, recipe_for
from shoal.epsilon.samples import training_samples
from shoal.epsilon.side import supervised
from shoal.errors import DataError, NonFiniteError, UsageError, naming_memory_shortage
from shoal.files.jsonl import JsonlFile
from shoal.files.locking import lock_folder
from shoal.fingerprint import check_fingerprint
from shoal.measure.classes import check_labels
from shoal.preserve import evaluating
from shoal.progress import ProgressCallback, no_progress
from shoal.recover.losses import divergence_loss
from shoal.sources import Data
from shoal.store.checkpoint import CHECKPOINT, check_same_network, load_checkpoint, resuming, save_checkpoint
from shoal.surgery import model_digest, signature_of
from shoal.training.engine import Engine
from shoal.training.loop import LoopState, TrainingLoop
from shoal.training.metrics import MetricsLog
from shoal.training_record import EpochRow

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class EpsilonConfig:
    """How to train.

    Args:
        recipe: learning rate, decay, augmentation, sizes.
        epsilon: of the gates; 0 trains the plain network, without any gate; 'auto': held so that the share `lose` of
            the blocks is lost.
        lose: that share, of all residual blocks; only with epsilon 'auto', where it is 0.3 by default.
        hold: epochs with epsilon 0 before the gates begin to work; with 'auto' by default a quarter of those with
            gates.
        rise: epochs in which epsilon then rises; with 'auto' the number of closed blocks, by default in half of them.
        side: side supervision in the middle.
        freeze_after: a block closed on every step of so many epochs in a row is taken out; None: the faithful mode,
            which waits until its last weights have died.
        seed: of side head, order and augmentation.
        precision: 'fp32', or 'bf16' for mixed precision.
        channels_last: keep images with the channels last in memory.
        compile: run the network through torch.compile.
        checkpoint_every: epochs between two checkpoints.
    """

    recipe: Recipe
    epsilon: float | Auto
    hold: int = 0
    rise: int = 0
    side: bool = True
    freeze_after: int | None = 10
    seed: int = 0
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    checkpoint_every: int = 1
    lose: float | None = None

    def __post_init__(self) -> None:
        read_epsilon(self.epsilon)
        if self.lose is not None:
            checked_share(self.lose)
            if self.epsilon != AUTO:
                raise UsageError(
                    f"epsilon is {self.epsilon}, and {self.lose} of the blocks are to be lost: one decides the other",
                    "Leave out one of them; a share goes with epsilon 'auto'.",
                )
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"the precision is '{self.precision}', expected fp32 or bf16", "Leave it out for fp32.")
        for name, low in (("freeze_after", 1), ("hold", 0), ("rise", 0), ("checkpoint_every", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}, expected at least {low}", "Leave it out for the recipe's.")
        if self.recipe.epochs < 1 or self.recipe.batch_size < 2:
            raise UsageError(
                f"{self.recipe.epochs} epochs of mini-batches of {self.recipe.batch_size}",
                "Expected at least one epoch, and mini-batches of two (batch norm needs them).",
            )

    @classmethod
    def by_recipe(cls, name: str, **changes: Any) -> "EpsilonConfig":
        """The configuration of a recipe.

        Args:
            name: of a recipe, or the specification of data: the recipe for it.
            changes: fields of the configuration or of its recipe (`epochs`, `batch_size`, `rate`), with other values.
        """
        recipe = RECIPES.get(name) or recipe_for(name)
        settings = {entry.name for entry in fields(cls)}
        recipe = replace(recipe, **{key: value for key, value in changes.items() if key not in settings})
        epsilon = recipe.epsilon if changes.get("lose") is None else AUTO
        values = {"epsilon": epsilon, "freeze_after": recipe.freeze_after}
        return cls(recipe, **{**values, **{key: value for key, value in changes.items() if key in settings}})

    @classmethod
    def fine_tuning(cls, name: str, epochs: int | None = None, **changes: Any) -> "EpsilonConfig":
        """The configuration for a trained network that loses blocks while it learns from a teacher.

        Args:
            name: of a recipe, or the specification of data: augmentation and mini-batches are those of its recipe.
            epochs: of the run; 10 by default.
            changes: fields of the configuration with other values.
        """
        plan = fine_tuning(RECIPES.get(name) or recipe_for(name), epochs)
        return cls(plan, **{"epsilon": AUTO, "side": False, "freeze_after": plan.freeze_after, **changes})

    @property
    def gated(self) -> bool:
        """Whether the network has gates."""
        return self.epsilon == AUTO or self.epsilon > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON gives it back."""
        return json.loads(json.dumps(asdict(self)))


@dataclass
class EpsilonState(LoopState):
    """How far a run is at the end of an epoch, besides tensors.

    Args:
        epoch: epochs that are done.
        lost_at: the latest epoch in which a block was lost, from 0.
        closed_before: blocks closed or pruned at the end of the last epoch.
        largest: the largest response of each block in the last epoch.
    """

    epoch: int = 0
    lost_at: int | None = None
    closed_before: int = 0
    largest: dict[str, float] = field(default_factory=dict)


# In the faithful mode a block counts as dead when its last weights are this much smaller than they began.
_DEAD = 1e-3
_CHECK_EVERY = 50  # steps between two readings of the loss


class EpsilonTrainer(TrainingLoop):
    """One training run; an epoch ends with an evaluation.

    Args:
        model: any network with residual blocks; it is left as it was, the run works on a copy.
        data: for training and test.
        settings: how.
        folder: for checkpoint and metrics, or None to keep neither.
        device: where it runs.
        progress: called with (stage, done, total).
        teacher: the network learns from its answers and not from the labels; None: from the labels.

    Raises:
        UsageError: epsilon is negative or NaN; a teacher of other classes.
        SurgeryError: no block can be gated.
        WeightsError: the folder holds a checkpoint of another network or of other settings.
    """

    state: EpsilonState

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        settings: EpsilonConfig,
        *,
        folder: Path | None = None,
        device: str = "cpu",
        progress: ProgressCallback = no_progress,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(EpsilonState(), progress)
        self.data, self.settings, self.recipe = data, settings, settings.recipe
        self.engine = Engine(
            device, settings.precision, compile_=settings.compile, channels_last=settings.channels_last
        )
        self.gating_epochs = self.recipe.rate.gating_epochs(self.recipe.epochs)
        self._setup_network(model)
        self._setup_teacher(teacher)
        self.schedule = self._schedule()
        self.samples = training_samples(
            data,
            self.recipe.augmentation,
            max(2, self.recipe.batch_size // self.engine.processes),
            settings.seed,
            self.engine.device,
            (self.engine.rank, self.engine.processes),
        )
        self.samples_seen = self.samples.size or 0
        self.batches: Iterator[Batch] = iter(())
        self.upcoming: Batch | None = None
        self.folder = folder if self.engine.is_main else None
        self.lock = lock_folder(self.folder, shared=True) if self.folder is not None else None
        file = JsonlFile(self.folder / METRICS) if self.folder is not None else None
        self.metrics = MetricsLog(EpochRow, "epoch", file)
        self.checkpoint = folder / CHECKPOINT if folder is not None else None
        self.resumed = self._resume()

    def _setup_network(self, model: nn.Module) -> None:
        """A copy of the network with gates and side head, its optimizer and the monitor of its gates."""
        settings = self.settings
        network = self.engine.placed(model)
        self.example = self.engine.moved(self.data.example(2))
        graph = analyze(network.eval(), self.example)
        signature = signature_of(network, graph.chain)
        self.network_state, self.chain_lines = signature.state, signature.chain
        decayed = decayed_parameters(graph)
        # A run that holds epsilon itself begins with open gates.
        self.gates = (
            attach_gates_(graph, 0.0 if settings.epsilon == AUTO else settings.epsilon) if settings.gated else []
        )
        self._check_compile(network)
        self.prunable = PrunableNetwork(graph)
        self.weights_before = {block.path: self.last_weight(block.path) for block in graph.chain.removable}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            logits = logits_of(self._eval_output(network))
            _labels(self.example, logits)
            classes = int(logits.shape[1])
            self.supervised = supervised(network, graph.chain, classes, side=settings.side).to(self.engine.device)
        self.supervised.attach_hook()
        recipe = self.recipe
        self.optimizer = PrunableSGD(self.supervised, decayed, recipe.momentum, nesterov=recipe.nesterov)
        self.monitor = GateMonitor(self.gates, self.engine)

    def _setup_teacher(self, teacher: nn.Module | None) -> None:
        """A frozen copy of the teacher, and the settings by which a checkpoint knows this run."""
        self.teacher: nn.Module | None = None
        self.fingerprint: dict[str, Any] = {**self.settings.to_dict(), "teacher": None}
        if teacher is None:
            return
        self.teacher = frozen = self.engine.placed(teacher).eval().requires_grad_(False)
        self.fingerprint["teacher"] = model_digest(teacher)[:16]
        taught, own = (logits_of(self._eval_output(model)).shape for model in (frozen, self.prunable.model))
        if taught != own:
            raise UsageError(
                f"the teacher answers two samples with shape {tuple(taught)}, the network with {tuple(own)}",
                "Give a teacher of the same classes, like the trained network itself.",
            )

    def _schedule(self) -> EpsilonSchedule:
        settings = self.settings
        if settings.epsilon != AUTO:
            return EpsilonPlan(settings.epsilon, settings.hold, settings.rise)
        chain, share = self.prunable.graph.chain, settings.lose or DEFAULT_SHARE
        target = min(max(1, round(share * len(chain))), len(chain.removable))
        return ShareController.within(self.gating_epochs, target, settings.hold, settings.rise)

    def _check_compile(self, network: nn.Module) -> None:
        if self.settings.compile and watches_additions(network):
            raise UsageError(
                "the branches of this network end in code, not in a module: its gates do not go through torch.compile",
                "Train without --compile.",
            )

    @naming_memory_shortage()
    def train(self) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            NonFiniteError: the loss is NaN or Inf; the checkpoint of the last good epoch is kept.
            ModelRaisedError: the network raised on a mini-batch.
            FolderError: a checkpoint cannot be written; the one before is kept.
        """
        with torch.random.fork_rng():
            self._seed_run()
            self.run()
        self.state.seconds, self.started = self.elapsed, time.perf_counter()
        self.supervised.detach_hook()

    @property
    def rows(self) -> list[EpochRow]:
        """Every epoch so far."""
        return self.metrics.rows

    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return self.state.epoch >= self.recipe.epochs

    def report_progress(self) -> None:
        """At the end of each epoch."""
        if self.upcoming is None:
            total = len(self.prunable.graph.chain.removable)
            alive = f", {len(self.prunable.alive)} of {total} blocks alive" if self.gates else ""
            self.on_progress(f"training{alive}", self.state.epoch, self.recipe.epochs)

    # One epoch

    def begin_epoch(self) -> Batch:
        """Set rates and gates, open the data of the epoch, and return its first mini-batch.

        Raises:
            DataError: there is no mini-batch.
        """
        epoch, recipe = self.state.epoch, self.recipe
        self.epoch_started = time.perf_counter()
        self.lr = recipe.rate.rate(epoch, recipe.epochs, self.state.lost_at)
        responses, num_removed = self.state.largest, len(self.prunable.removed)
        gating = epoch < self.gating_epochs
        self.current_epsilon = self.schedule.epsilon(epoch, responses, num_removed) if gating else 0.0
        for gate in self.monitor.gates:
            gate.epsilon, gate.means = self.current_epsilon, False
        self.supervised.train()
        self.sums = torch.zeros(3, device=self.engine.device, dtype=torch.float64)
        self.batches = iter(self.samples.epoch(epoch))
        first = next(self.batches, None)
        if first is None:
            raise DataError("the training data is empty", "Give at least one mini-batch of two samples.")
        return first

    def train_step(self) -> int:
        """One mini-batch; returns its number of samples."""
        batch = self.upcoming if self.upcoming is not None else self.begin_epoch()
        self.upcoming = next(self.batches, None)
        if self.upcoming is None:
            for gate in self.monitor.gates:
                gate.means = True
        self.decay = self.recipe.decay.decay(self.state.step)
        self.sums += self._learn(self.engine.runner(self.supervised), self.engine.moved(batch))
        self.monitor.update()
        return batch.size

    def _learn(self, runner: nn.Module, batch: Batch) -> Tensor:
        """Sums of this mini-batch: loss, correct answers, samples."""
        with self.engine.autocast():
            output, side_logits = call(runner, batch)
        logits = logits_of(output).float()
        target = _labels(batch, logits)
        loss = F.cross_entropy(logits, target)
        if self.teacher is not None:
            loss = self._divergence(self.teacher, logits, batch)
        total = loss
        if side_logits is not None:
            total = loss + self.recipe.side_weight * F.cross_entropy(side_logits.float(), target)
        self.engine.backward(total)
        self.optimizer.step(self.lr, self.decay)
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == target).sum()
            size = torch.tensor(batch.size).to(loss)
            return torch.stack([loss.double() * batch.size, correct.double(), size.double()])

    def _divergence(self, teacher: nn.Module, logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad(), self.engine.autocast():
            taught = logits_of(call(teacher, batch))
        return divergence_loss(taught, logits, batch)

    def after_step(self) -> None:
        """Check the loss, now and then."""
        if self.state.step % _CHECK_EVERY == 0 or self.upcoming is None:
            self._check_loss(self.sums[0])

    def _check_loss(self, total: Tensor) -> None:
        if torch.isfinite(self.engine.summed(total.clone())):  # all processes stop, or none
            return
        epoch = self.state.epoch
        kept = self.checkpoint is not None and self.checkpoint.exists()
        last = f"the checkpoint of epoch {epoch} is kept" if kept else "there is no checkpoint yet"
        raise NonFiniteError(
            f"the loss became NaN or Inf in epoch {epoch + 1}; {last}",
            "Start again with a lower --lr (a new --out); a resumed run would end the same way.",
        )

    def is_evaluation_due(self) -> bool:
        """At the end of an epoch."""
        return self.upcoming is None

    def evaluate(self) -> None:
        """End the epoch: prune blocks, measure the test error, log, save."""
        state = self.state
        self.metrics.append(self._end_epoch())
        if state.epoch % self.settings.checkpoint_every == 0 or self.is_finished():
            self._save()

    def _end_epoch(self) -> EpochRow:
        state, recipe = self.state, self.recipe
        sums = self.engine.summed(self.sums)
        summary = self.monitor.end_epoch(gates_work=self.current_epsilon > 0)
        num_closed = len(summary.closed) + len(self.prunable.removed)
        lost = num_closed > state.closed_before
        state.closed_before = num_closed
        if lost and recipe.rate.counts(state.epoch, recipe.epochs):
            state.lost_at = state.epoch
        alive = len(self.prunable.alive)
        pruned = self._ready_to_prune(summary.largest, last=state.epoch + 1 == self.gating_epochs)
        self._prune(pruned)
        state.largest = {path: value for path, value in summary.largest.items() if path not in pruned}
        state.epoch += 1
        measured = state.epoch % recipe.evaluate_every == 0 or self.is_finished()
        return EpochRow(
            epoch=state.epoch,
            rate=self.lr,
            decay=self.decay,
            epsilon=self.current_epsilon,
            loss=float(sums[0] / sums[2]),
            train_error=float(1 - sums[1] / sums[2]),
            test_error=self.test_error() if measured else None,
            alive=alive,
            closed=summary.closed,
            taken_out=pruned,
            lost=lost,
            shares=summary.shares,
            largest=summary.largest,
            means=summary.means,
            seconds=time.perf_counter() - self.epoch_started,
        )

    # Pruning

    def _ready_to_prune(self, largest: Mapping[str, float], *, last: bool) -> list[str]:
        """The blocks to prune now, in order; when the gates end, all that were closed on every step of the epoch.

        Where a number of blocks is to be lost, no more go than that, those with the smallest responses first. When the
        gates end and epochs with open gates follow, the rest of that number goes too, even if a gate opened at times.

        Args:
            largest: responses of this epoch.
            last: whether the gates end with this epoch.
        """
        ready = self._closed_for_good(last=last)
        allowed = self.schedule.num_allowed(len(self.prunable.removed))
        if allowed is None:
            return ready
        settles = last and self.gating_epochs < self.recipe.epochs
        candidates = self.prunable.alive if settles else ready
        chosen = sorted(candidates, key=lambda path: (path not in ready, largest[path]))[:allowed]
        return [path for path in candidates if path in chosen]

    def _closed_for_good(self, *, last: bool) -> list[str]:
        if last:
            return self.monitor.closed_epochs(1)
        if self.settings.freeze_after is not None:
            return self.monitor.closed_epochs(self.settings.freeze_after)
        return [
            path
            for path in self.monitor.closed_epochs(1)
            if self.last_weight(path) <= _DEAD * self.weights_before[path]
        ]

    def _prune(self, paths: list[str]) -> None:
        if not paths:
            return
        self.prunable.remove(paths)
        self.monitor.forget(paths)
        self.supervised.attach_hook()
        self.optimizer.drop_stale_params()
        self.engine.changed()

    def last_weight(self, path: str) -> float:
        """The largest of the weights that keep a block alive, see `decay.largest_ending_weight`."""
        block = self.prunable.graph.chain[path]
        return max(largest_ending_weight(self.prunable.holder(path), unit.branch) for unit in block.units)

    # Evaluation

    def test_error(self) -> float:
        """Error on test of the network as it would come out now: closed blocks shut, all others open."""
        closed = set(self.monitor.closed_epochs(1))
        for gate in self.monitor.gates:
            gate.mode = "shut" if gate.block in closed else "open"
        try:
            return self._error(self.data.test())
        finally:
            for gate in self.monitor.gates:
                gate.mode = "live"

    def _error(self, loader: Iterable[Any]) -> float:
        wrong, count = 0, 0
        network = self.prunable.model
        with evaluating(network), self.engine.autocast():
            for batch in batches(loader, self.engine.device):
                logits = logits_of(call(network, self.engine.moved(batch)))
                wrong += int((logits.argmax(dim=1) != _labels(batch, logits)).sum())
                count += batch.size
        return wrong / max(count, 1)

    def _eval_output(self, network: nn.Module) -> Any:
        with evaluating(network):
            return call(network, self.example)

    # Checkpoints

    def _save(self) -> None:
        if self.checkpoint is None or not self.engine.is_main:
            return
        tensors = {**self.prunable.tensors(), **self.optimizer.tensors(), **self._side(), **self.engine.random_state()}
        state = {
            "network": self.network_state,
            "settings": self.fingerprint,
            "gone": list(self.prunable.removed),
            "streaks": self.monitor.streaks,
            "state": {**asdict(self.state), "seconds": self.elapsed},
        }
        save_checkpoint(self.checkpoint, tensors, state)

    def _side(self) -> dict[str, Tensor]:
        side = self.supervised.side
        return {f"side.{name}": tensor for name, tensor in side.state_dict().items()} if side is not None else {}

    def _resume(self) -> bool:
        if self.checkpoint is None or not self.checkpoint.exists():
            self.metrics.resume(-1)
            return False
        tensors, state = load_checkpoint(self.checkpoint)
        with resuming(self.checkpoint):
            check_same_network(self.checkpoint, state, self.network_state)
            self._check_settings(state["settings"])
            self.prunable.restore(tensors, state["gone"])
            self.monitor.forget(state["gone"])
            self.monitor.streaks.update(state["streaks"])
            self.supervised.attach_hook()
            if self.supervised.side is not None:
                self.supervised.side.load_state_dict(
                    {name: tensors[f"side.{name}"] for name in self.supervised.side.state_dict()}
                )
            self.optimizer.drop_stale_params()
            self.optimizer.load(tensors)
            self.engine.set_random_state(tensors)
            self.state = EpsilonState(**state["state"])
        self.metrics.resume(self.state.epoch, count=self.state.epoch)
        return True

    def _check_settings(self, theirs: dict[str, Any]) -> None:
        check_fingerprint(
            theirs,
            self.fingerprint,
            message=f"'{self.checkpoint}' belongs to a run with other settings",
            hint="Repeat the command that began it, or choose a new --out.",
            error=UsageError,
        )

    def _seed_run(self) -> None:
        """Random numbers of the network itself (dropout): from the seed, or where the checkpoint left them."""
        if self.resumed:
            self.engine.apply_random_state()
        else:
            torch.manual_seed(self.settings.seed)


def _labels(batch: Batch, logits: Tensor) -> Tensor:
    if batch.target is None:
        raise DataError("a mini-batch has no labels, training needs them", "Give data with labels.")
    check_labels(batch.target, logits.shape[1])
    return batch.target


def with_overrides(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with everything changed that is not None."""
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})
