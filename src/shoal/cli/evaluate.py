"""`shoal eval`: public tasks on original and compressed, side by side, into the record and the report of the folder."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from shoal.cli.console import Session
from shoal.cli.loading import names, pick_device
from shoal.cli.options import EvalRequest
from shoal.errors import SpecError, UsageError
from shoal.files.locking import holding
from shoal.files.writing import write_text
from shoal.measure import TaskConfig, evaluate_tasks, machine
from shoal.record import Record, TaskEvaluation
from shoal.report import render, show_tasks
from shoal.store import open_finished, original_of
from shoal.store.folder import RECORD, REPORT
from shoal.store.origin import source_folder
from shoal.surgery import is_hugging_face


def run_eval(session: Session, request: EvalRequest) -> int:
    """Measure the tasks and add them to the record."""
    session.check_alone("eval")
    tasks = names(request.tasks)
    if not tasks:
        raise UsageError("no task is named", "Give --tasks hellaswag,arc_easy.")
    device, began = pick_device(request.device), time.time()
    config = TaskConfig(
        tasks=tasks,
        include=request.include_path,
        limit=request.limit,
        shots=request.shots,
        batch_size=request.batch_size,
        seed=request.seed,
        trust_code=session.trust_code,
    )
    with holding(request.folder if request.folder.is_dir() else None):
        finished = open_finished(request.folder, session.consent)
        original = original_of(request.folder, finished.plan, session.consent)
        for model in (original, finished.model):
            _check_kind(model)
            model.to(device)
        tokenizer = _tokenizer(request.tokenizer or source_folder(original))
        results = evaluate_tasks(original, finished.model, tokenizer, config)
        evaluation = TaskEvaluation(
            command=request.command,
            harness=results.harness,
            limit=request.limit,
            shots=request.shots,
            scores=results.scores,
            notes=results.notes,
            machine=machine(device),
            seconds=time.time() - began,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        kept = finished.record is not None
        if finished.record is not None:
            _add(request.folder, finished.record, evaluation)
    if session.as_json:
        session.print_json(evaluation.model_dump(mode="json"))
        return 0
    show_tasks(evaluation, session.console)
    session.say(f"added to {request.folder / RECORD} and {REPORT}" if kept else "the folder has no record to add it to")
    return 0


def _check_kind(model: nn.Module) -> None:
    if not is_hugging_face(model):
        raise UsageError(
            f"{type(model).__name__} is not a network of transformers, and lm-eval asks no others",
            "Give the folder of a language model.",
        )


def _tokenizer(source: Path | None) -> Any:
    if source is None:
        raise UsageError("it is not known where the tokenizer of this network is", "Give --tokenizer PATH.")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise SpecError(f"there is no tokenizer to open in '{source}': {error}", "Give --tokenizer PATH.") from error


def _add(folder: Path, record: Record, evaluation: TaskEvaluation) -> None:
    updated = record.model_copy(update={"evaluations": [*record.evaluations, evaluation]})
    write_text(folder / REPORT, render(updated))
    write_text(folder / RECORD, updated.model_dump_json(indent=2) + "\n")
