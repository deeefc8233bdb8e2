"""`shoal distill`: from the words of the command line to a student that answers as its teacher does."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import batches
from shoal.blocks import Chain, analyze
from shoal.cli.compress import epochs_of, task_of
from shoal.cli.console import Session
from shoal.cli.loading import check_input, claim_folder, open_data, open_network, open_task, pick_device
from shoal.cli.options import DistillRequest
from shoal.errors import TraceError, UsageError
from shoal.files.reading import from_home, is_folder
from shoal.files.writing import write_text
from shoal.measure import Predictions, Reading, compare, machine, paired_predictions, quality
from shoal.plan import Fold, Plan, Replace
from shoal.record import Comparison, DistillRecord, MetricComparison
from shoal.recover import DistillConfig, DistillData, DistillResult, TrainingBudget, distill, read_budget
from shoal.report import metrics
from shoal.sources import Data
from shoal.store import CardFigures, OpenedFolder, read_folder_plan, save
from shoal.store.folder import RECORD
from shoal.surgery import input_specs, model_digest, signature_of
from shoal.tasks import (
    OutputRequest,
    TaskChoice,
    check_metrics,
    compare_metrics,
    dense_copy,
    restore_usual,
    usual_outputs,
)

_READ = 8  # mini-batches that tell how outputs are read, and how far they vary
_DISTANCES = {
    "agreement": "divergence from the teacher",
    "mse": "squared error, as a share of the variance of the teacher's output,",
    "cosine_distance": "one minus the cosine with the teacher's output",
    "differing": "share of elements that differ from the teacher's",
}
_SET_ON = 4  # mini-batches that the batch norms of stand-ins are set from


def _config(request: DistillRequest) -> DistillConfig:
    """How to distill."""
    config = DistillConfig(
        seed=request.data_options.seed,
        rate=request.rate,
        labels=request.labels,
        precision="bf16" if request.bf16 else "fp32",
        channels_last=request.channels_last or None,
        lora=request.lora,
        accumulate=request.accumulate,
        shard=request.shard,
        cache_teacher=request.cache_teacher,
        checkpointing=request.checkpointing,
    )
    return config if request.features is None else replace(config, features=request.features)


@dataclass(frozen=True)
class _Inputs:
    """What was opened: `home` is where the whole networks are, `device` where they learn."""

    student: OpenedFolder
    teacher: OpenedFolder
    data: Data
    extra: Data | None
    settings: DistillConfig
    budget: TrainingBudget
    device: str
    home: str
    task: TaskChoice
    reading: Reading


def run_distill(session: Session, request: DistillRequest) -> int:
    """Carry it out; returns the exit code."""
    session.check_launcher("distill")
    inputs = _opened(session, request)
    if request.dry_run:
        return _show_plan(session, request, inputs)
    path, folder = claim_folder(session, request.out, "distill", _arguments(request, inputs), inputs.device)
    with folder or nullcontext(), session.progress() as progress:
        plan, warnings = _plan(inputs)
        result = _distilled(inputs, plan, path, progress)
        if folder is None:  # one process of several measures and writes
            return 0
        progress("measuring on test", 0, 1)
        networks = [inputs.teacher.model, inputs.student.model, result.model]
        answers = paired_predictions(networks, inputs.data.test(), inputs.home, reading=inputs.reading)
        record = _record(request, inputs, result, answers, [*warnings, *result.warnings], folder.seconds)
        measured = CardFigures(record.data, record.seed, record.teacher_quality, record.quality_after, record.after)
        save(path, restore_usual(result.model), plan, measured=measured)
        write_text(path / RECORD, record.model_dump_json(indent=2) + "\n")
    if session.as_json:
        session.print_json({**record.model_dump(mode="json"), "out": str(path)})
    else:
        _show(session, record, path)
    return 0 if record.recovery.kept_step else 1


def _opened(session: Session, request: DistillRequest) -> _Inputs:
    settings, budget = _config(request), read_budget(request.budget)
    if budget is None:
        raise UsageError("the budget of the distillation is none", "Give --budget 10m, or a number of steps.")
    device = pick_device(request.device)
    asked = open_task(session, request.task)
    home = "cpu" if request.shard else device  # a device need not hold what is divided
    student = open_network(session, request.student, request.weights, home)
    teacher = open_network(session, request.teacher, request.teacher_weights, home)
    data = open_data(session, request.data, request.data_options, teacher)
    for network in (student, teacher):
        check_input(network.model, data)
    outputs = OutputRequest(request.output, task_of(asked, data))
    known = outputs.known(teacher.model).task
    student, teacher = (replace(opened, model=dense_copy(known, opened.model)) for opened in (student, teacher))
    extra = open_data(session, request.unlabelled, request.data_options, teacher) if request.unlabelled else None
    samples = [batch for _, batch in zip(range(_READ), batches(data.calibration(augment=False), home), strict=False)]
    task = outputs.choose(teacher.model, samples[0])
    reading = outputs.read(task, teacher.model, samples)
    # As at the end: labels that do not fit would be found when all is learned.
    paired_predictions([teacher.model], samples[:1], home, reading=reading)
    if task.task is not None:  # a metric that raises would do so when all is learned
        with usual_outputs(teacher.model):
            check_metrics(task.task, teacher.model, samples[0])
    return _Inputs(student, teacher, data, extra, settings, budget, device, home, task, reading)


def _plan(inputs: _Inputs) -> tuple[Plan, list[str]]:
    """The plan that rebuilds the student, and what is to be said about it."""
    spec = inputs.student.spec
    folder = from_home(spec)
    if is_folder(folder):
        plan = read_folder_plan(folder)
        folded = any(isinstance(action, Fold) for action in plan.actions)
        return plan, ["the student is folded already: it learns best before it is folded"] if folded else []
    example, warnings = inputs.data.example(2), []
    model = copy.deepcopy(inputs.student.model).to("cpu").eval()
    try:
        chain = analyze(model, example).chain
    except TraceError as error:
        chain = Chain(())
        warnings = [
            "the student cannot be traced, so `shoal.load` cannot make it again from the folder: load "
            f"model.safetensors into a network of your own ({error.message})"
        ]
    return Plan(model=spec, inputs=input_specs(example), network=signature_of(model, chain), actions=[]), warnings


def _replaced(plan: Plan) -> list[Replace]:
    """The stand-ins of an output folder, where they are still as the plan says: nothing was folded into them."""
    if any(isinstance(action, Fold) for action in plan.actions):
        return []
    return [action for action in plan.actions if isinstance(action, Replace)]


def _distilled(inputs: _Inputs, plan: Plan, path: Path, progress: Any) -> DistillResult:
    replaced = _replaced(plan)
    data = DistillData(
        epochs_of(inputs.data),
        unlabelled=epochs_of(inputs.extra) if inputs.extra is not None else None,
        replaced=replaced,
        norm_batches=list(batches(inputs.data.calibration(limit=_SET_ON * 128), inputs.home)) if replaced else [],
        reading=inputs.reading,
    )
    return distill(
        inputs.student.model,
        inputs.teacher.model,
        data,
        validation=inputs.data.validation(),
        budget=inputs.budget,
        config=replace(inputs.settings, device=inputs.device),
        callbacks=progress,
        folder=path,
    )


def _record(
    request: DistillRequest,
    inputs: _Inputs,
    result: DistillResult,
    answers: list[Predictions],
    warnings: list[str],
    seconds: float,
) -> DistillRecord:
    teacher, before, after = answers
    notes: list[str] = []
    of_before, of_after = _metrics(inputs, result.model, notes)
    return DistillRecord(
        command=request.command,
        student=inputs.student.spec,
        teacher=inputs.teacher.spec,
        data=inputs.data.spec,
        unlabelled=inputs.extra.spec if inputs.extra is not None else None,
        seed=inputs.settings.seed,
        recovery=result.recovery,
        teacher_quality=quality(teacher, "test"),
        quality_before=quality(before, "test"),
        quality_after=quality(after, "test"),
        before=compare(teacher, before, "test").model_copy(update={"metrics": of_before}),
        after=compare(teacher, after, "test").model_copy(update={"metrics": of_after}),
        machine=machine(inputs.device),
        warnings=[*warnings, *dict.fromkeys(notes)],
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _metrics(inputs: _Inputs, learned: nn.Module, notes: list[str]) -> list[list[MetricComparison]]:
    """The task's metrics of the student, before and after, beside the teacher's; `notes` takes what to know of them."""
    task, teacher, student = inputs.task.task, inputs.teacher.model, inputs.student.model
    if task is None:
        return [[], []]
    with usual_outputs(teacher, student, learned):
        return [
            compare_metrics(task, teacher, network, inputs.data.test(), notes=notes) for network in (student, learned)
        ]


def _arguments(request: DistillRequest, inputs: _Inputs) -> dict[str, Any]:
    """All that decides the result: the same on an unfinished folder resumes it."""
    options = request.data_options
    return {
        "student": request.student,
        "student_weights": _digest(inputs.student.model),
        "teacher": request.teacher,
        "teacher_weights": _digest(inputs.teacher.model),
        "data": request.data,
        "unlabelled": request.unlabelled,
        "budget": str(inputs.budget),
        "settings": inputs.settings.to_dict(),
        "mean": options.mean,
        "std": options.std,
        "size": options.size,
        "limit": options.limit,
        "batch_size": options.batch_size,
        **({"output": request.output} if request.output else {}),
        **({"task": request.task} if request.task else {}),
        "tokenizer": str(options.tokenizer) if options.tokenizer else None,
        "sequence_length": options.sequence_length,
        "device": inputs.device,
    }


def _digest(model: nn.Module) -> str:
    return model_digest(model)[:16]


def _show(session: Session, record: DistillRecord, path: Path) -> None:
    for warning in record.warnings:
        session.say(f"warning: {warning}")
    if record.quality_after.top1 is not None and record.quality_before.top1 is not None:
        session.say(
            f"top-1 {100 * record.quality_before.top1:.1f} % → {100 * record.quality_after.top1:.1f} % on "
            f"{record.quality_after.n} test samples (teacher {100 * (record.teacher_quality.top1 or 0.0):.1f} %)"
        )
    before, after = record.before, record.after
    earlier = {metric.name: metric for metric in before.metrics}
    for metric in (metric for metric in after.metrics if metric.name in earlier):
        values = " → ".join(metrics.value(each, each.compressed) for each in (earlier[metric.name], metric))
        teacher = f" (teacher {metrics.value(metric, metric.original)})" if metric.original is not None else ""
        session.say(f"{metric.label} {values} on {metric.n} test samples{teacher}")
    session.say(_distance(before, after))
    session.say(record.recovery.summary)
    session.say(f"written to {path}")


def _distance(before: Comparison, after: Comparison) -> str:
    """How far the student is from its teacher, in the words of what its outputs are."""
    kinds = [name for field, name in _DISTANCES.items() if getattr(after, field) is not None]
    if before.agreement is None or after.agreement is None or len(kinds) > 1:
        what = kinds[0] if len(kinds) == 1 else "damage, the mean over the outputs,"
        return f"{what} on test: {before.kl:.4g} → {after.kl:.4g}"
    return (
        f"divergence from the teacher on test {before.kl:.4f} → {after.kl:.4f} nats, agreement "
        f"{100 * before.agreement:.1f} % → {100 * after.agreement:.1f} %"
    )


def _show_plan(session: Session, request: DistillRequest, inputs: _Inputs) -> int:
    document = {
        "dry_run": True,
        "student": request.student,
        "teacher": request.teacher,
        "data": inputs.data.describe(),
        "unlabelled": inputs.extra.describe() if inputs.extra is not None else None,
        "budget": str(inputs.budget),
        "settings": inputs.settings.to_dict(),
    }
    if session.as_json:
        session.print_json(document)
    else:
        session.say(
            f"Would distil {request.student} from {request.teacher} for {inputs.budget} on {document['data']}. "
            "Nothing was written."
        )
    return 0
