"""The training run: epochs of steps, gates that are watched, blocks that are taken out, a checkpoint an epoch."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.batches import Batch, batches, call, logits_of
from shoal.blocks import analyze
from shoal.epsilon.attach import attach_gates_, watches_additions
from shoal.epsilon.monitor import GateMonitor
from shoal.epsilon.prunable import PrunableNetwork, PrunableSGD, decayed_parameters, largest_ending_weight
from shoal.epsilon.recipes import EpsilonPlan, Recipe
from shoal.epsilon.samples import training_samples
from shoal.epsilon.side import supervised
from shoal.errors import DataError, NonFiniteError, UsageError, naming_memory_shortage
from shoal.files.jsonl import JsonlFile
from shoal.files.locking import lock_folder
from shoal.fingerprint import check_fingerprint
from shoal.preserve import evaluating
from shoal.sources import Data
from shoal.store.checkpoint import CHECKPOINT, check_same_network, load_checkpoint, resuming, save_checkpoint
from shoal.surgery import signature_of
from shoal.training.engine import Engine
from shoal.training.metrics import MetricsLog
from shoal.training_record import EpochRow

METRICS = "metrics.jsonl"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EpsilonConfig:
    """How to train.

    Args:
        recipe: learning rate, decay, augmentation, sizes.
        epsilon: of the gates; 0 trains the plain network, without any gate.
        hold: epochs with epsilon 0 before the gates begin to work.
        rise: epochs in which epsilon then rises.
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
    epsilon: float
    hold: int = 0
    rise: int = 0
    side: bool = True
    freeze_after: int | None = 10
    seed: int = 0
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON gives it back."""
        return json.loads(json.dumps(asdict(self)))


@dataclass
class _State:
    """What a run knows at the end of an epoch, besides tensors."""

    epoch: int = 0
    step: int = 0
    lost_at: int | None = None
    closed_before: int = 0
    seconds: float = 0.0


# In the faithful mode a block counts as dead when its last weights are this much smaller than they began.
_DEAD = 1e-3


class EpsilonTrainer:
    """One training run.

    Args:
        model: any network with residual blocks; it is left as it was, the run works on a copy.
        data: what it is trained and looked at on.
        settings: how.
        folder: for checkpoint and metrics, or None to keep neither.
        device: where it runs.
        progress: called with (stage, done, total).

    Raises:
        UsageError: epsilon is negative or NaN.
        SurgeryError: no block can be gated.
        WeightsError: the folder holds a checkpoint of another network or of other settings.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        settings: EpsilonConfig,
        *,
        folder: Path | None = None,
        device: str = "cpu",
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.data, self.settings, self.recipe, self.progress = data, settings, settings.recipe, progress
        self.engine = Engine(
            device, settings.precision, compile_=settings.compile, channels_last=settings.channels_last
        )
        network = self.engine.placed(model)
        self.example = self.engine.moved(data.example(2))
        anatomy = analyze(network.eval(), self.example)
        signature = signature_of(network, anatomy.chain)
        self.network_state, self.chain_lines = signature.state, signature.chain
        decayed = decayed_parameters(anatomy)
        self.gates = attach_gates_(anatomy, settings.epsilon) if settings.epsilon > 0 else []
        self._check_compile(network)
        self.epsilon = EpsilonPlan(settings.epsilon, settings.hold, settings.rise)
        self.shrinking = PrunableNetwork(anatomy)
        self.weights_before = {block.path: self.last_weight(block.path) for block in anatomy.chain.removable}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            classes = int(logits_of(self._eval_output(network)).shape[1])
            self.pair = supervised(network, anatomy.chain, classes, side=settings.side).to(self.engine.device)
        self.pair.listen()
        self.descent = PrunableSGD(self.pair, decayed, self.recipe.momentum, nesterov=self.recipe.nesterov)
        self.samples = training_samples(
            data,
            self.recipe.augmentation,
            max(2, self.recipe.batch_size // self.engine.processes),
            settings.seed,
            self.engine.device,
            (self.engine.rank, self.engine.processes),
        )
        self.state = _State()
        self.watch = GateMonitor(self.gates, self.engine)
        self.samples_seen = self.samples.size or 0
        self.folder = folder if self.engine.is_main else None
        self.lock = lock_folder(self.folder, shared=True) if self.folder is not None else None
        file = JsonlFile(self.folder / METRICS) if self.folder is not None else None
        self.metrics = MetricsLog(EpochRow, "epoch", file)
        self.checkpoint = folder / CHECKPOINT if folder is not None else None
        self.resumed = self._resume()

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
        epochs = self.recipe.epochs
        with torch.random.fork_rng():
            self._seed_epoch()
            while self.state.epoch < epochs:
                row = self._epoch()
                self.metrics.append(row)
                if self.state.epoch % self.settings.checkpoint_every == 0 or self.state.epoch == epochs:
                    self._save()
                self.progress(self._stage(), self.state.epoch, epochs)
        self.pair.be_deaf()

    def _stage(self) -> str:
        total = len(self.shrinking.anatomy.chain.removable)
        return f"training, {len(self.shrinking.alive)} of {total} blocks alive" if self.gates else "training"

    @property
    def rows(self) -> list[EpochRow]:
        """Every epoch so far."""
        return self.metrics.rows

    # One epoch

    def _epoch(self) -> EpochRow:
        started, state, epochs = time.perf_counter(), self.state, self.recipe.epochs
        epoch = state.epoch
        rate = self.recipe.rate.rate(epoch, epochs, state.lost_at)
        deciding = epochs - self.recipe.rate.settle if self.recipe.rate.settle < epochs else epochs
        epsilon = self.epsilon.epsilon(epoch) if epoch < deciding else 0.0
        for gate in self.watch.gates:
            gate.epsilon, gate.means = epsilon, False
        loss, error, decay = self._steps(epoch, rate)
        seen = self.watch.finish(gates_work=epsilon > 0)
        lost = len(seen.closed) + len(self.shrinking.gone) > state.closed_before
        state.closed_before = len(seen.closed) + len(self.shrinking.gone)
        if lost and self.recipe.rate.counts(epoch, epochs):
            state.lost_at = epoch
        alive = len(self.shrinking.alive)
        taken_out = self._ready_to_go(last=epoch + 1 == deciding)
        self._take_out(taken_out)
        state.epoch += 1
        look = state.epoch % self.recipe.evaluate_every == 0 or state.epoch == epochs
        test_error = self.test_error() if look else None
        seconds = time.perf_counter() - started
        state.seconds += seconds
        return EpochRow(
            epoch=state.epoch,
            rate=rate,
            decay=decay,
            epsilon=epsilon,
            loss=loss,
            train_error=error,
            test_error=test_error,
            alive=alive,
            closed=seen.closed,
            taken_out=taken_out,
            lost=lost,
            shares=seen.shares,
            largest=seen.largest,
            means=seen.means,
            seconds=seconds,
        )

    def _steps(self, epoch: int, rate: float) -> tuple[float, float, float]:
        """All steps of an epoch: mean loss, error on the augmented training samples, the decay of the last step."""
        self.pair.train()
        runner = self.engine.runner(self.pair)
        sums = torch.zeros(3, device=self.engine.device, dtype=torch.float64)
        decay, upcoming = 0.0, iter(self.samples.epoch(epoch))
        batch = next(upcoming, None)
        while batch is not None:
            following = next(upcoming, None)
            if following is None:
                for gate in self.watch.gates:
                    gate.means = True
            decay = self.recipe.decay.decay(self.state.step)
            sums += self._step(runner, batch, rate, decay)
            self.watch.note()
            self.state.step += 1
            if self.state.step % 50 == 0 or following is None:
                self._check_loss(sums[0], epoch)
            batch = following
        total = self.engine.summed(sums)
        return float(total[0] / total[2]), float(1 - total[1] / total[2]), decay

    def _step(self, runner: nn.Module, batch: Batch, rate: float, decay: float) -> Tensor:
        batch = self.engine.moved(batch)
        with self.engine.autocast():
            output, aside = call(runner, batch)
        logits, target = logits_of(output).float(), _labels(batch)
        loss = F.cross_entropy(logits, target)
        whole = loss if aside is None else loss + self.recipe.side_weight * F.cross_entropy(aside.float(), target)
        self.engine.backward(whole)
        self.descent.step(rate, decay)
        with torch.no_grad():
            hits = (logits.argmax(dim=1) == target).sum()
            return torch.stack([loss.double() * batch.size, hits.double(), torch.tensor(batch.size).to(loss).double()])

    def _check_loss(self, total: Tensor, epoch: int) -> None:
        if torch.isfinite(self.engine.summed(total.clone())):  # all processes stop, or none
            return
        kept = self.checkpoint is not None and self.checkpoint.exists()
        last = f"the checkpoint of epoch {self.state.epoch} is kept" if kept else "there is no checkpoint yet"
        raise NonFiniteError(
            f"the loss became NaN or Inf in epoch {epoch + 1}; {last}",
            "Start again with a lower --lr (a new --out); a resumed run would end the same way.",
        )

    # Blocks that go

    def _ready_to_go(self, *, last: bool) -> list[str]:
        """The blocks to take out now, in order; when the gates end, all that were closed on every step of the epoch."""
        if last:
            return self.watch.closed_for(1)
        if self.settings.freeze_after is not None:
            return self.watch.closed_for(self.settings.freeze_after)
        return [
            path for path in self.watch.closed_for(1) if self.last_weight(path) <= _DEAD * self.weights_before[path]
        ]

    def _take_out(self, paths: list[str]) -> None:
        if not paths:
            return
        self.shrinking.take_out(paths)
        self.watch.forget(paths)
        self.pair.listen()
        self.descent.forget_missing()
        self.engine.changed()

    def last_weight(self, path: str) -> float:
        """The largest of the weights that keep a block alive, see `decay.largest_ending_weight`."""
        block = self.shrinking.anatomy.chain[path]
        return max(largest_ending_weight(self.shrinking.holder(path), unit.branch) for unit in block.units)

    # Looking at the network

    def test_error(self) -> float:
        """Error on test of the network as it would come out now: closed blocks shut, all others open."""
        closed = set(self.watch.closed_for(1))
        for gate in self.watch.gates:
            gate.mode = "shut" if gate.block in closed else "open"
        try:
            return self._error(self.data.test())
        finally:
            for gate in self.watch.gates:
                gate.mode = "live"

    def _error(self, loader: Iterable[Any]) -> float:
        wrong, count = 0, 0
        network = self.shrinking.model
        with evaluating(network), self.engine.autocast():
            for batch in batches(loader, self.engine.device):
                answer = logits_of(call(network, self.engine.moved(batch))).argmax(dim=1)
                wrong += int((answer != _labels(batch)).sum())
                count += batch.size
        return wrong / max(count, 1)

    def _eval_output(self, network: nn.Module) -> Any:
        with evaluating(network):
            return call(network, self.example)

    # Checkpoints

    def _save(self) -> None:
        if self.checkpoint is None or not self.engine.is_main:
            return
        tensors = {**self.shrinking.tensors(), **self.descent.tensors(), **self._side(), **self.engine.random_state()}
        state = {
            "network": self.network_state,
            "settings": self.settings.to_dict(),
            "gone": list(self.shrinking.gone),
            "streaks": self.watch.streaks,
            "state": asdict(self.state),
        }
        save_checkpoint(self.checkpoint, tensors, state)

    def _side(self) -> dict[str, Tensor]:
        return {f"side.{name}": t for name, t in self.pair.side.state_dict().items()} if self.pair.side else {}

    def _resume(self) -> bool:
        if self.checkpoint is None or not self.checkpoint.exists():
            self.metrics.resume(-1)
            return False
        tensors, state = load_checkpoint(self.checkpoint)
        with resuming(self.checkpoint):
            check_same_network(self.checkpoint, state, self.network_state)
            self._check_settings(state["settings"])
            self.shrinking.restore(tensors, state["gone"])
            self.watch.forget(state["gone"])
            self.watch.streaks.update(state["streaks"])
            self.pair.listen()
            if self.pair.side is not None:
                self.pair.side.load_state_dict({name: tensors[f"side.{name}"] for name in self.pair.side.state_dict()})
            self.descent.forget_missing()
            self.descent.load(tensors)
            self.engine.set_random_state(tensors)
            self.state = _State(**state["state"])
        self.metrics.resume(self.state.epoch, count=self.state.epoch)
        return True

    def _check_settings(self, theirs: dict[str, Any]) -> None:
        check_fingerprint(
            theirs,
            self.settings.to_dict(),
            message=f"'{self.checkpoint}' belongs to a run with other settings",
            hint="Repeat the command that began it, or choose a new --out.",
            error=UsageError,
        )

    def _seed_epoch(self) -> None:
        """Random numbers of the network itself (dropout): from the seed, or where the checkpoint left them."""
        if self.resumed:
            self.engine.apply_random_state()
        else:
            torch.manual_seed(self.settings.seed)


def _labels(batch: Batch) -> Tensor:
    if batch.target is None:
        raise DataError("a mini-batch has no labels, training needs them", "Give data with labels.")
    return batch.target


def with_overrides(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with everything changed that is not None."""
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})
