"""What came out of a training run: a plain network, certified against the one with frozen gates, measured, saved."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.batches import batches, call
from shoal.blocks import Chain
from shoal.epsilon.attach import gates_of
from shoal.epsilon.gate import Gate
from shoal.epsilon.trainer import EpsilonTrainer
from shoal.errors import ExportError, FolderError
from shoal.files.reading import refusing
from shoal.files.writing import write_text
from shoal.measure import compare, cost, latency_beside, machine, paired_predictions, quality, within_noise
from shoal.measure.quality import Predictions
from shoal.plan import NetworkSignature, Plan, Remove
from shoal.preserve import evaluating
from shoal.record import BlockRecord, Latency, Network
from shoal.report import render_training
from shoal.store import CardFigures, export_program, save
from shoal.store.folder import PROGRAM, RECORD, REPORT
from shoal.surgery import certify, input_specs
from shoal.training_record import BaselineRun, EpochRow, FinalNetworks, LiveGates, PrunedBlock, TrainRecord


@dataclass(frozen=True)
class TrainRunInfo:
    """Where a run came from, for the record."""

    model: str | None = None
    data: str = "given in Python"
    command: str = "shoal.train(...)"
    runs_code: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Args:
        model: the plain network, in eval mode, an ordinary module on its own.
        whole: the network it is certified against: lost blocks in place, their gates frozen shut.
        plan: rebuilds the plain network's structure from the original factory.
        record: every number.
        predictions: what the plain network says about every test sample.
    """

    model: nn.Module
    whole: nn.Module
    plan: Plan
    record: TrainRecord
    predictions: Predictions

    def compare_with(self, others: Sequence[BaselineRun]) -> "TrainResult":
        """The same run, held against other runs of as many epochs."""
        return replace(self, record=self.record.model_copy(update={"beside": list(others)}))

    def save(self, folder: str | Path, signature_batch: Any) -> TrainRecord:
        """Write weights, plan, program, report and record into a folder, created if missing; the record last.

        Args:
            folder: where to.
            signature_batch: a mini-batch of two samples, which the program is exported with.

        Raises:
            FolderError: not writable, or the disk is full.
        """
        folder, record = Path(folder), self.record
        with refusing(FolderError, f"cannot use '{folder}' as the output folder", "Choose another folder."):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            export_program(self.model, signature_batch, folder / PROGRAM)
        except ExportError as error:
            record = record.model_copy(update={"warnings": [*record.warnings, f"no model.pt2: {error.message}"]})
        settled = record.settled
        measured = CardFigures(
            record.data, record.seed, settled.whole.quality, settled.plain.quality, settled.comparison
        )
        save(folder, self.model, self.plan, measured=measured)
        write_text(folder / REPORT, render_training(record))
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
        return record


def finish(run: EpsilonTrainer, origin: TrainRunInfo, *, seconds: float = 1.0) -> TrainResult:
    """Turn a run that has trained to its end into a plain network with its record.

    Args:
        run: after `train`.
        origin: for the record.
        seconds: how long each network is timed.
    """
    whole, plain = run.prunable.with_frozen_gates().eval(), run.prunable.pruned().eval()
    chain = run.prunable.graph.chain
    test = run.data.test()
    before, after = paired_predictions([whole, plain], test)
    lost, live = _lost(run, whole, test, after)
    networks = _networks(run, {"whole": whole, "plain": plain}, {"whole": before, "plain": after}, seconds)
    settled = FinalNetworks(
        whole=networks["whole"],
        plain=networks["plain"],
        comparison=compare(before, after, "test"),
        certificate=certify(whole, plain, test),
        live=live,
    )
    record = TrainRecord(
        command=origin.command,
        model=origin.model or type(plain).__name__,
        data=origin.data,
        seed=run.settings.seed,
        recipe=run.recipe.name,
        settings=run.fingerprint,
        samples=run.samples_seen,
        steps=run.state.step,
        blocks=_chain_records(chain, set(run.prunable.removed)),
        gated=len({gate.block for gate in run.gates}),
        target=run.schedule.num_allowed(0),
        rows=run.rows,
        lost=lost,
        settled=settled,
        machine=machine(run.engine.device),
        warnings=[*origin.warnings, *_remarks(run, lost, settled)],
        seconds=run.state.seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    removed_paths = [path for path in chain.paths if path in run.prunable.removed]
    plan = Plan(
        model=origin.model,
        inputs=input_specs(run.example),
        network=NetworkSignature(state=run.network_state, chain=run.chain_lines),
        actions=[Remove(path=path) for path in removed_paths],
    )
    return TrainResult(plain, whole, plan, record, after)


def _networks(
    run: EpsilonTrainer, models: dict[str, nn.Module], answers: dict[str, Predictions], seconds: float
) -> dict[str, Network]:
    first = next(batches(run.data.test(), run.engine.device))
    times: dict[str, list[Latency]] = {name: [] for name in models}
    for part in [first.take(1), first] if first.size > 1 else [first]:
        timed = latency_beside(
            models, part, reference="whole", channels_last=run.settings.channels_last, seconds=seconds
        )
        for name, timing in timed.items():
            times[name].append(timing)
    total, num_removed = len(run.prunable.graph.chain), len(run.prunable.removed)
    return {
        name: Network(
            quality=quality(answers[name], "test"),
            latency=times[name],
            cost=cost(models[name], first.take(1)),
            blocks=total - (num_removed if name == "plain" else 0),
        )
        for name in models
    }


def _lost(
    run: EpsilonTrainer, whole: nn.Module, test: Iterable[Any], after: Predictions
) -> tuple[list[PrunedBlock], LiveGates | None]:
    """Every lost block, with what its gate would do on test if it were live, and what that would change."""
    gates = gates_of(whole)
    if not gates:
        return [], None
    opened: dict[str, int] = {}
    largest: dict[str, float] = {}
    count, size, with_opening = 0, 0, 0
    epsilons = {path: row.epsilon for row in run.rows for path in row.taken_out}
    _set(gates, "live", epsilons)
    try:
        with evaluating(whole), torch.no_grad():
            for batch in batches(test, run.engine.device):
                call(whole, batch)
                count, size = count + 1, max(size, batch.size)
                here = {gate.block for gate in gates if not gate.closed}
                with_opening += bool(here)
                for gate in gates:
                    seen = float(gate.largest) if gate.largest is not None else 0.0
                    largest[gate.block] = max(seen, largest.get(gate.block, 0.0))
                for path in here:
                    opened[path] = opened.get(path, 0) + 1
        answers = paired_predictions([whole], test)[0]
    finally:
        _set(gates, "shut", epsilons)
    live = LiveGates(
        quality=quality(answers, "test"),
        comparison=compare(answers, after, "test"),
        batches=count,
        batch_size=size,
        batches_with_an_opening=with_opening,
    )
    return [_lost_block(run, path, opened, largest, count) for path in run.prunable.removed], live


def _lost_block(
    run: EpsilonTrainer, path: str, opened: dict[str, int], largest: dict[str, float], count: int
) -> PrunedBlock:
    row = next(row for row in run.rows if path in row.taken_out)
    return PrunedBlock(
        path=path,
        stage=run.prunable.graph.chain[path].stage,
        epoch=row.epoch,
        at_end=row.epoch == run.recipe.epochs,
        largest=row.largest.get(path, 0.0),
        weight_before=run.weights_before[path],
        weight_left=run.last_weight(path),
        opens_on_test=opened.get(path, 0) / max(count, 1),
        largest_on_test=largest.get(path, 0.0),
    )


def _set(gates: list[Gate], mode: Any, epsilons: dict[str, float]) -> None:
    """Every gate in this mode, with the epsilon under which its block was lost."""
    for gate in gates:
        gate.mode, gate.epsilon = mode, epsilons[gate.block]


def _chain_records(chain: Chain, removed_paths: set[str]) -> list[BlockRecord]:
    return [block.record(action="removed" if block.path in removed_paths else "kept") for block in chain]


def _remarks(run: EpsilonTrainer, lost: list[PrunedBlock], settled: FinalNetworks) -> list[str]:
    remarks = []
    alive = [block for block in lost if block.weight_left > 0.01 * block.weight_before]
    if alive:
        remarks.append(
            f"{len(alive)} of {len(lost)} lost blocks were frozen before their last weights had died (largest left: "
            f"{max(block.weight_left for block in alive):.2g}): without their frozen gates they would act again"
        )
    open_still = [path for row in run.rows for path in row.taken_out if path not in row.closed]
    if open_still:
        remarks.append(
            f"{len(open_still)} of {len(lost)} lost blocks were taken out when the gates ended, though their gates "
            f"still opened on some steps: {', '.join(open_still[:5])}"
        )
    last = run.rows[-1] if run.rows else None
    unsure = _undecided(last) if last is not None and last.epsilon > 0 else {}
    if unsure:
        remarks.append(
            f"{len(unsure)} gates opened on some steps of the last epoch and not on others; they are kept open: "
            + ", ".join(f"{path} ({100 * share:.0f} %)" for path, share in list(unsure.items())[:5])
        )
    pairs = zip(settled.whole.latency, settled.plain.latency, strict=True)
    noisy = [str(a.batch) for a, b in pairs if within_noise(a, b)]
    if lost and noisy:
        remarks.append(f"the change in latency is within the noise at batch {', '.join(noisy)}")
    target = run.schedule.num_allowed(0)
    if target is not None and len(lost) < target:
        remarks.append(
            f"{len(lost)} of {target} blocks that were asked for were lost: train for more epochs, or let the number "
            "of closed blocks rise sooner (rise)"
        )
    elif run.gates and not lost:
        remarks.append(
            "no block was lost: a larger epsilon or a stronger weight decay makes branches fall under epsilon"
        )
    return remarks


def _undecided(row: EpochRow) -> dict[str, float]:
    return {path: share for path, share in row.shares.items() if 0 < share < 1}
