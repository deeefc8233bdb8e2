"""`shoal train`: from the words of the command line to a trained network in an output folder."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.cli.console import Session, rank
from shoal.cli.loading import (
    check_input,
    claim_folder,
    numbers,
    open_data,
    open_network,
    pick_device,
)
from shoal.cli.options import TrainRequest
from shoal.epsilon.controller import AUTO, DEFAULT_SHARE, read_epsilon
from shoal.epsilon.finish import TrainResult, TrainRunInfo, finish
from shoal.epsilon.gate import checked_epsilon
from shoal.epsilon.recipes import fine_tuning, recipe, recipe_for
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer, with_overrides
from shoal.errors import UsageError
from shoal.measure import compare
from shoal.record import network_summary
from shoal.report import show_training
from shoal.sources import Data
from shoal.sources.builtin_networks import digits_resnet
from shoal.surgery import model_digest
from shoal.training_record import BaselineRun, TrainRecord


@dataclass(frozen=True)
class _TrainInputs:
    """What was opened, and where it runs."""

    model: nn.Module
    teacher: nn.Module | None
    data: Data
    origin: TrainRunInfo
    device: str


def run_train(session: Session, request: TrainRequest) -> int:
    """Carry it out; returns the exit code."""
    session.check_launcher("train")
    request, settings = resolve_request(request)
    plans = beside_plans(settings, numbers(request.also_epsilon, "--also-epsilon") or [], plain=request.compare)
    device = pick_device(request.device)
    data = open_data(session, str(request.data), request.data_options)
    spec = with_classes(str(request.model), data)
    model, teacher = _networks(session, spec, request)
    check_input(model, data)
    if request.dry_run:
        return _show_plan(session, spec, settings, data)
    inputs = _TrainInputs(model, teacher, data, TrainRunInfo(spec, data.spec, request.command), device)
    path, folder = claim_folder(session, request.out, "train", _arguments(inputs, request, settings), device)
    with folder or nullcontext(), session.progress() as progress:
        trained = _trained(inputs, settings, path, progress)
        baselines = []
        for name, plan in plans.items():
            on_progress = _named(progress, name)
            other = _trained(inputs, plan, path / name, on_progress, seconds=0.1)
            if trained is not None and other is not None:
                baselines.append(against(trained, other, name, plan))
        if trained is None:
            return 0
        progress("writing model, report and record", 0, 1)
        record = trained.compare_with(baselines).save(path, data.example(2))
    _say(session, record, str(path))
    return 0 if not settings.gated or len(record.lost) >= (record.target or 1) else 1


def resolve_request(request: TrainRequest) -> tuple[TrainRequest, EpsilonConfig]:
    """The request with MODEL, DATA and batch size filled in, and the settings of the run.

    Raises:
        UsageError: an unknown recipe, numbers out of range, or a MODEL without DATA.
    """
    if request.model is not None and request.data is None and request.model != "digits-resnet":
        raise UsageError(f"DATA is missing: '{request.model}' can only be trained on data", "shoal train MODEL DATA")
    data = request.data or "digits"
    plan = recipe(request.recipe) if request.recipe else recipe_for(data)
    model = request.model or plan.model
    if request.teacher is not None:
        plan = fine_tuning(plan, request.epochs)
    is_held = request.lose is not None or request.teacher is not None
    epsilon = read_epsilon(request.epsilon if request.epsilon is not None else AUTO if is_held else plan.epsilon)
    rate = None if request.rate is None else replace(plan.rate, start=request.rate)
    decay = None if request.decay is None else replace(plan.decay, start=request.decay)
    plan = with_overrides(plan, epochs=request.epochs, batch_size=request.batch_size, rate=rate, decay=decay)
    settings = EpsilonConfig(
        plan,
        epsilon,
        hold=request.hold,
        rise=request.rise,
        side=request.side and request.teacher is None,
        freeze_after=None if request.faithful else request.freeze_after or plan.freeze_after,
        seed=request.data_options.seed,
        precision="bf16" if request.bf16 else "fp32",
        channels_last=request.channels_last,
        compile=request.compile,
        checkpoint_every=request.checkpoint_every,
        lose=request.lose,
    )
    return replace(request, model=model, data=data), settings


def with_classes(spec: str, data: Data) -> str:
    """The network's specification with the number of classes the data has, where the specification can say it."""
    words = spec.split(":")
    if words[0] == "cifar-preact-resnet" and len(words) == 2 and data.num_classes not in (None, 10):
        return f"{spec}:{data.num_classes}"
    return spec


def _networks(session: Session, spec: str, request: TrainRequest) -> tuple[nn.Module, nn.Module | None]:
    """The network to train, and its teacher: with one, both have their trained weights."""
    if request.teacher is None:
        if request.teacher_weights is not None:
            raise UsageError("--teacher-weights without --teacher", "Name the teacher: --teacher MODEL.")
        return fresh_network(session, spec, request.weights, request.data_options.seed), None
    weights = request.teacher_weights
    if weights is None and request.teacher == request.model:
        weights = request.weights
    teacher = open_network(session, request.teacher, weights).model
    return open_network(session, spec, request.weights).model, teacher


def fresh_network(session: Session, spec: str, weights: Path | None, seed: int) -> nn.Module:
    """The network to train, with random weights from the seed, or with those that were given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec == "digits-resnet" and weights is None:
            return digits_resnet(pretrained=False)
        return open_network(session, spec, weights).model


def _trained(
    inputs: _TrainInputs, settings: EpsilonConfig, path: Path, progress: Any, seconds: float = 1.0
) -> TrainResult | None:
    """A finished run; None in all processes but the main one, which alone measures and saves."""
    if rank() == 0:
        path.mkdir(exist_ok=True)
    model, data, device, teacher = inputs.model, inputs.data, inputs.device, inputs.teacher
    run = EpsilonTrainer(model, data, settings, folder=path, device=device, progress=progress, teacher=teacher)
    run.train()
    if not run.engine.is_main:
        return None
    progress("measuring on test", 0, 1)
    return finish(run, inputs.origin, seconds=seconds)


def beside_plans(settings: EpsilonConfig, epsilons: list[float], *, plain: bool) -> dict[str, EpsilonConfig]:
    """The runs to hold this one against, all of the same epochs.

    Args:
        settings: of the run itself.
        epsilons: other values of epsilon to try.
        plain: also the plain network, without and with side supervision, and one with a far too large epsilon; to a run
            that holds epsilon itself, the one that was chosen by hand for the recipe.
    """
    plans: dict[str, EpsilonConfig] = {}
    by_hand = replace(settings, epsilon=settings.recipe.epsilon, lose=None)
    if plain:
        plans["plain"] = replace(by_hand, epsilon=0.0, side=False)
        plans["plain-side"] = replace(by_hand, epsilon=0.0, side=True)
        if settings.epsilon == AUTO:
            plans["by-hand"] = replace(by_hand, epsilon=settings.recipe.epsilon)
        else:
            plans["large-epsilon"] = replace(by_hand, epsilon=10 * settings.epsilon)
    for epsilon in epsilons:
        plans[f"epsilon-{epsilon:g}"] = replace(by_hand, epsilon=checked_epsilon(epsilon))
    return plans


def against(trained: TrainResult, other: TrainResult, name: str, settings: EpsilonConfig) -> BaselineRun:
    """Another run, and how much worse the trained network is than it, sample by sample."""
    return BaselineRun(
        name=name,
        epsilon=other.record.epsilon,
        side=settings.side,
        lost=len(other.record.lost),
        quality=other.record.settled.plain.quality,
        comparison=compare(other.predictions, trained.predictions, "test"),
    )


def _say(session: Session, record: TrainRecord, out: str) -> None:
    if session.as_json:
        session.print_json(training_summary(record, out))
    else:
        show_training(record, out, session.console)


def _named(progress: Any, name: str) -> Any:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def training_summary(record: TrainRecord, out: str) -> dict[str, Any]:
    """What `shoal train --json` prints."""
    settled = record.settled
    return {
        "recipe": record.recipe,
        "epsilon": record.epsilon,
        "target": record.target,
        "epochs": len(record.rows),
        "blocks": len(record.blocks),
        "lost": [entry.path for entry in record.lost],
        "share_lost": record.share_lost,
        "original": network_summary(settled.whole),
        "compressed": network_summary(settled.plain),
        "whole": settled.whole.model_dump(mode="json"),
        "plain": settled.plain.model_dump(mode="json"),
        "certificate": settled.certificate.model_dump(mode="json"),
        "live": settled.live.model_dump(mode="json") if settled.live else None,
        "beside": {entry.name: entry.model_dump(mode="json") for entry in record.beside},
        "seconds": record.seconds,
        "warnings": record.warnings,
        "out": out,
    }


def _arguments(inputs: _TrainInputs, request: TrainRequest, settings: EpsilonConfig) -> dict[str, Any]:
    options = request.data_options
    return {
        "model": inputs.origin.model,
        "weights": model_digest(inputs.model)[:16],
        "teacher": model_digest(inputs.teacher)[:16] if inputs.teacher is not None else None,
        "data": request.data,
        "settings": settings.to_dict(),
        "compare": request.compare,
        "also_epsilon": request.also_epsilon,
        "mean": options.mean,
        "std": options.std,
        "size": options.size,
        "limit": options.limit,
        "device": inputs.device,
    }


def _show_plan(session: Session, spec: str, settings: EpsilonConfig, data: Data) -> int:
    plan = settings.recipe
    document = {"dry_run": True, "model": spec, "data": data.describe(), "settings": settings.to_dict()}
    if session.as_json:
        session.print_json(document)
    else:
        session.say(
            f"Would train {spec} for {plan.epochs} epochs with epsilon {_in_words(settings)} "
            f"by the recipe '{plan.name}' on {data.describe()}. Nothing was written."
        )
    return 0


def _in_words(settings: EpsilonConfig) -> str:
    """Epsilon by its value, or by what it is held for."""
    if settings.epsilon != AUTO:
        return f"{settings.epsilon:g}"
    return f"held so that {100 * (settings.lose or DEFAULT_SHARE):g} % of the blocks are lost"
