"""`shoal compress` and `shoal apply`: what they do between the words of the command line and the pipeline."""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import batches, call, device_of
from shoal.blocks import analyze
from shoal.cli.console import Session
from shoal.cli.loading import (
    check_input,
    check_pair,
    claim_folder,
    names,
    open_data,
    open_network,
    open_task,
    open_workers,
    pick_device,
)
from shoal.cli.options import RACE_PLANS, CompressOptions, DataOptions, WorkerOptions
from shoal.errors import UsageError
from shoal.pipeline import (
    Callbacks,
    CompressConfig,
    ExactOnly,
    Goal,
    Grain,
    MaxDrop,
    MeasureConfig,
    RecoveryConfig,
    RemoveBlocks,
    RunInfo,
    compress,
)
from shoal.pipeline.candidate_table import DEFAULT_KINDS, STUDENT_BUDGET
from shoal.pipeline.config import batch_sizes
from shoal.pipeline.goals import by_units, check_batch_sizes, check_options, parse_goal
from shoal.preserve import evaluating
from shoal.progress import as_callbacks
from shoal.record import summary_of
from shoal.recover import DistillConfig, TrainingBudget, read_budget
from shoal.recover.preflight import check_cacheable
from shoal.report import show
from shoal.sources import Data
from shoal.store import OpenedFolder
from shoal.surgery import model_digest
from shoal.tasks import TASKS, Task, seq2seq
from shoal.training.loaders import LoaderFactory

TABLES = "tables"
# What the cut of a plan recovers for where nothing is said: a budget below the original's latency costs accuracy.
RECOVERY = "5m"


# What folders of version 0.1.0 say of an option that is called otherwise now.
_LEGACY = {"try_plans": 0}


@dataclass(frozen=True)
class CompressRequest:
    """Everything `shoal compress` was asked."""

    model: str
    data: str
    weights: Path | None
    goal: Goal
    data_options: DataOptions
    images: int
    out: Path | None
    device: str
    channels_last: bool
    dry_run: bool
    command: str
    refit: bool = False
    fold: bool = False
    latency_from: str | None = None
    tables: Path | None = None
    recover: str | None = None
    recovery_asked: bool = True
    lora: int = 0
    accumulate: int = 1
    cache_teacher: int = 0
    checkpointing: bool = False
    bf16: bool = False
    unlabelled: str | None = None
    self_data: int = 0
    race: int = RACE_PLANS
    stand_ins: str | None = None
    student_budget: str = STUDENT_BUDGET
    output: list[str] | None = None
    latency_batch_sizes: tuple[int, ...] = ()
    task: str | None = None
    worker_options: WorkerOptions = field(default_factory=WorkerOptions)

    def config(self, **more: Any) -> CompressConfig:
        """How to compress; the task is of `more`, since a file may have to be run for it."""
        return CompressConfig(
            images=self.images,
            channels_last=self.channels_last,
            stand_ins=_kinds(self.stand_ins),
            student_budget=self.student_budget,
            refit=self.refit,
            fold=self.fold,
            latency_from=self.latency_from,
            output=self.output,
            latency_batch_sizes=self.latency_batch_sizes,
            **more,
        )


def compress_request(session: Session, options: CompressOptions) -> CompressRequest:
    """What the options ask for, with the defaults, or with what an earlier run says.

    Raises:
        UsageError: options that do not go together.
    """
    from shoal.cli.previous_request import load_previous_request

    flat = asdict(options.goal)
    lists = {name: names(flat[name]) for name in ("include", "exclude")}
    blocks = names(flat["blocks"]) if flat["blocks"] is not None else None
    goal = parse_goal({**flat, **lists, "blocks": blocks, "grain": _as_grain(options.goal.grain)}, spell=_flag)
    sizes = _batch_sizes(options.batch_size)
    own = {each.name for each in fields(CompressRequest)} & {each.name for each in fields(CompressOptions)}
    request = CompressRequest(
        **{
            **{name: getattr(options, name) for name in own},
            "model": options.model or "",
            "data": options.data or "",
            "goal": goal,
            "data_options": replace(options.data_options, batch_size=sizes[0]),
            "latency_batch_sizes": sizes if len(sizes) > 1 else (),
            "images": MeasureConfig(images=options.images).num_images(by_plan=goal.by_plan),
            "recover": options.recover if options.recover is not None else RECOVERY if goal.by_plan else None,
            "recovery_asked": options.recover is not None
            or options.unlabelled is not None
            or options.self_data > 0
            or options.bf16,
        }
    )
    explicit = session.explicit
    if options.try_plans is not None:
        session.say("--try-plans is called --race now.")
        request, explicit = replace(request, race=options.try_plans), (explicit - {"try_plans"}) | {"race"}
    idle = {"recover"} if read_budget(options.recover) is None else set()
    idle |= {"student_budget"} if options.from_ is not None else set()  # which is checked against that run
    if names(options.track) and read_budget(request.recover) is None:
        raise UsageError("--track is for what learns, and nothing does", "Add --recover 10m, or leave it out.")
    check_options(goal, explicit - idle, request.config().stand_ins, _flag)
    check_batch_sizes(goal, sizes)
    if options.from_ is not None:
        return load_previous_request(options.from_, request, explicit)
    model, data = check_pair(options.model, options.data)
    return replace(request, model=model, data=data)


def _batch_sizes(option: str) -> tuple[int, ...]:
    """What --batch-size names, the largest first: that is the one of the mini-batches that data is read in.

    Raises:
        UsageError: no whole numbers from 1.
    """
    try:
        return batch_sizes([int(text) for text in option.split(",")])
    except (ValueError, UsageError) as error:
        raise UsageError(f"--batch-size is '{option}', expected whole numbers from 1", "Like 128, or 1,128.") from error


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def run_compress(session: Session, request: CompressRequest) -> int:
    """Carry it out; returns the exit code."""
    session.check_launcher("compress")
    if read_budget(request.recover) is None:
        session.check_alone("compress")
    device = pick_device(request.device)
    asked = open_task(session, request.task)
    opened = open_network(session, request.model, request.weights, device)
    data = open_data(session, request.data, request.data_options, opened)
    task = task_of(asked, data)
    check_input(opened.model, data)
    if request.latency_from is not None:
        session.check_consent(request.latency_from)
    budget, extra = _recovery(session, request, opened)
    request.config(task=task)  # refuses what cannot be, before anything is read
    if request.dry_run and request.tables is not None:
        from shoal.cli.dry_run import dry_run_plan

        return dry_run_plan(session, request, task, opened.model, data)
    if request.dry_run:
        return _show_plan(session, request, opened.model, data)
    workers = open_workers(session, request.worker_options, device)
    proof = isinstance(request.goal, ExactOnly)  # which no sample is needed for
    validation = None if proof else data.validation(augment=True)
    arguments = _arguments(request, opened.model, device)
    path, folder = claim_folder(session, request.out, "compress", arguments, device, _LEGACY)
    session.resume_hint = f"The same command with --out {path} resumes this run."
    with folder or nullcontext(), session.progress() as progress:
        result = compress(
            opened.model,
            data.calibration(augment=True),
            request.goal,
            validation=validation,
            test=data.test(),
            recovery=_recover(budget, request, data, extra, path) if budget else None,
            config=request.config(
                tables=(request.tables or path / TABLES) if request.goal.by_plan else None,
                run_info=_provenance(request, opened.spec, data),
                task=task,
                workers=workers,
            ),
            callbacks=Callbacks(progress, folder) if folder is not None else as_callbacks(progress),
        )
        if folder is None:  # one process of several writes
            return 0
        progress("writing model, report and record", 0, 1)
        result = replace(result, record=result.record.model_copy(update={"seconds": folder.seconds}))
        record = result.save(path, claimed=True)
    if session.as_json:
        session.print_json(summary_of(record, str(path)))
    else:
        show(record, str(path), session.console)
    return 0 if record.reached else 1


def task_of(asked: Task | None, data: Data) -> Task | None:
    """The task that is asked for; of sound that a network writes down, with its words as the metric."""
    return seq2seq(data.decode) if data.decode is not None and asked in (None, TASKS["seq2seq"]) else asked


def _kinds(option: str | None) -> tuple[str, ...]:
    """The stand-ins that --stand-ins names: just these, or with a plus the usual ones and these."""
    if option is None:
        return DEFAULT_KINDS
    named = tuple(name.strip() for name in option.removeprefix("+").split(","))
    return (*DEFAULT_KINDS, *named) if option.startswith("+") else named


def _recovery(
    session: Session, request: CompressRequest, opened: OpenedFolder
) -> tuple[TrainingBudget | None, Data | None]:
    """The budget of recovery, and the unlabelled data for it.

    Raises:
        UsageError: unlabelled data, or plans to try, without recovery.
    """
    budget = read_budget(request.recover)
    if {"race", "try_plans"} & session.explicit and request.race and budget is None:
        raise UsageError(
            "--race is for plans that are recovered, and there are none",
            "Leave it out, or ask for a budget (--latency 0.6) and --recover 10m.",
        )
    for option in ("lora", "accumulate", "cache_teacher", "checkpointing", "bf16", "self_data"):
        if getattr(request, option) != getattr(CompressRequest, option) and budget is None:
            raise UsageError(f"{_flag(option)} is for recovery, and there is none", "Add --recover 10m.")
    if budget is not None:
        check_cacheable(_settings(request).cache_teacher, budget, request.out or "a new folder")
    if request.self_data and request.unlabelled is not None:
        raise UsageError("--self-data and --unlabelled both say what the extra data is", "Leave out one of the two.")
    if request.unlabelled is None:
        return budget, None
    if budget is None:
        raise UsageError("--unlabelled is for recovery, and there is none", "Add --recover 10m.")
    return budget, open_data(session, request.unlabelled, request.data_options, opened)


def _recover(
    budget: TrainingBudget, request: CompressRequest, data: Data, extra: Data | None, path: Path
) -> RecoveryConfig:
    return RecoveryConfig(
        budget,
        _settings(request),
        training=epochs_of(data),
        unlabelled=epochs_of(extra) if extra is not None else None,
        folder=path,
        race=request.race,
        self_data=request.self_data,
        required=request.recovery_asked,
    )


def _settings(request: CompressRequest) -> DistillConfig:
    seed, channels_last = request.data_options.seed, request.channels_last or None
    return DistillConfig(seed=seed, channels_last=channels_last, **_learning(request))


def _learning(request: CompressRequest) -> dict[str, Any]:
    """How recovery learns, as far as that is not the default."""
    options = {
        "lora": request.lora,
        "accumulate": request.accumulate,
        "cache_teacher": request.cache_teacher,
        "checkpointing": request.checkpointing,
        "precision": "bf16" if request.bf16 else "fp32",
    }
    return {name: value for name, value in options.items() if value != getattr(DistillConfig, name)}


def epochs_of(data: Data) -> LoaderFactory:
    """The calibration part by epoch, each augmented anew."""
    return lambda epoch: data.calibration(augment=True, epoch=epoch)


def _provenance(request: CompressRequest, spec: str, data: Data) -> RunInfo:
    warnings = []
    if request.weights is None and spec.split(":")[0] in ("torchvision", "timm") and "@" not in spec:
        warnings.append(f"no --weights were given: {spec} was measured with random weights")
    return RunInfo(spec, data.spec, request.data_options.seed, request.command, warnings)


def _arguments(request: CompressRequest, model: nn.Module, device: str) -> dict[str, Any]:
    """All that decides the result: the same on an unfinished folder resumes it."""
    return {
        "model": request.model,
        "weights": model_digest(model)[:16],
        "weights_file": str(request.weights) if request.weights else None,
        "data": request.data,
        "goal": request.goal.to_dict(),
        "mean": request.data_options.mean,
        "std": request.data_options.std,
        "size": request.data_options.size,
        "limit": request.data_options.limit,
        "seed": request.data_options.seed,
        "batch_size": request.data_options.batch_size,
        "tokenizer": str(request.data_options.tokenizer) if request.data_options.tokenizer else None,
        "sequence_length": request.data_options.sequence_length,
        "images": request.images,
        "channels_last": request.channels_last,
        **({"refit": True} if request.refit else {}),
        "fold": request.fold,
        "latency_from": request.latency_from,
        "tables": str(request.tables) if request.tables else None,
        "recover": request.recover,
        "recovery_asked": request.recovery_asked,
        **_learning(request),
        **({"race": request.race} if request.race != RACE_PLANS else {}),
        "stand_ins": request.stand_ins,
        "student_budget": request.student_budget,
        **({"output": request.output} if request.output else {}),
        **({"latency_batch_sizes": list(request.latency_batch_sizes)} if request.latency_batch_sizes else {}),
        **({"task": request.task} if request.task else {}),
        "unlabelled": request.unlabelled,
        **({"self_data": request.self_data} if request.self_data else {}),
        "device": device,
    }


def _show_plan(session: Session, request: CompressRequest, model: nn.Module, data: Data) -> int:
    """What would be done, and about how long it would take on this machine."""
    batch = next(batches(data.calibration(augment=True), device_of(model)))
    graph = analyze(model, batch.take(2))
    patterns = request.goal.include, request.goal.exclude
    if by_units(request.goal):
        units = graph.chain.select_units(*patterns)
        candidates = [graph.chain[path] for path, numbers in units.items() if graph.chain[path].removable or numbers]
        tries = sum(max(1, len(units[block.path])) for block in candidates)
    else:
        candidates = list(graph.chain.select(*patterns))
        tries = len(candidates)
    with evaluating(model):
        call(model, batch)
        start = time.perf_counter()
        call(model, batch)
        seconds = time.perf_counter() - start
    sweep = seconds * (request.images / batch.size) * (1 + tries / 2)
    steps = _steps(request.goal, tries)
    total = sweep * max(1, steps / 2) + 10
    document = {
        "dry_run": True,
        "model": request.model,
        "data": data.describe(),
        "goal": request.goal.to_dict(),
        "blocks": len(graph.chain),
        "removable": len(graph.chain.removable),
        "candidates": [block.path for block in candidates],
        "seconds": round(total),
    }
    if session.as_json:
        session.print_json(document)
        return 0
    session.say(f"{len(graph.chain)} residual blocks, {len(candidates)} of them candidates.")
    session.say(
        f"Would fit stand-ins for every span on {request.images} calibration samples, plan, then measure on test."
        if request.goal.by_plan
        else f"Would try up to {steps} removals on {request.images} calibration samples, then measure on test."
    )
    if read_budget(request.recover) is not None:
        session.say(f"Would then recover for {read_budget(request.recover)}.")
    if request.fold:
        session.say("Would then fold batch norms, constants and chains of linear maps.")
    session.say(f"About {max(total, 15):.0f} seconds at most on this machine. Nothing was written.")
    return 0


def _steps(goal: Goal, candidates: int) -> int:
    if goal.by_plan:
        return 1
    if isinstance(goal, RemoveBlocks):
        return min(goal.count, candidates)
    return candidates if isinstance(goal, MaxDrop) else 1


def _as_grain(name: str) -> Grain:
    """The grain that --grain names.

    Raises:
        UsageError: neither block nor unit.
    """
    grains: dict[str, Grain] = {"block": "block", "unit": "unit"}
    if name in grains:
        return grains[name]
    raise UsageError(f"--grain is '{name}', expected block or unit", "Leave it out for whole blocks.")
