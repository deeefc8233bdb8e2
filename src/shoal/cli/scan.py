"""`shoal scan`: from the words of the command line to the scan, its record and its report."""

from dataclasses import replace
from typing import Any

from shoal.cli.console import Session
from shoal.cli.loading import (
    check_input,
    check_pair,
    open_data,
    open_network,
    open_task,
    open_workers,
    output_folder,
    pick_device,
)
from shoal.cli.options import ScanRequest
from shoal.errors import UsageError
from shoal.files.writing import write_text
from shoal.progress import Callbacks
from shoal.record import ScanRecord
from shoal.report import render_scan, show_scan
from shoal.scanning import ScanRunInfo, scan
from shoal.sources import Data
from shoal.store import RunFolder
from shoal.store.folder import RECORD, REPORT
from shoal.surgery import model_digest

SPLITS = ("train", "validation", "test")


def run_scan(session: Session, request: ScanRequest) -> int:
    """Carry it out; returns the exit code."""
    session.check_alone("scan")
    if request.split not in SPLITS:
        raise UsageError(f"--split is '{request.split}', expected one of {', '.join(SPLITS)}", "Leave it out for test.")
    model, source = check_pair(request.model, request.data, "scan")
    request = replace(request, model=model, data=source)
    device = pick_device(request.device)
    task = open_task(session, request.task)
    opened = open_network(session, model, request.weights, device)
    data = open_data(session, source, request.data_options, opened)
    other = open_data(session, request.also, request.data_options, opened) if request.also else None
    for dataset in (data, other):
        if dataset is not None:
            check_input(opened.model, dataset)
    if request.dry_run:
        sizes = data.describe()
        session.say(f"Would scan {model} on the {request.split} part of {sizes}. Nothing was written.")
        return 0
    workers = open_workers(session, request.worker_options, device)
    path = output_folder(request.out, "scan")
    session.resume_hint = f"The same command with --out {path} resumes this run."
    with RunFolder(
        path, "scan", _arguments(request, model_digest(opened.model), device), configuration=session.configuration
    ) as folder:
        if folder.resumed:
            session.say(f"resuming the scan in {path}")
        info = ScanRunInfo(
            opened.spec,
            data.spec,
            request.data_options.seed,
            request.command,
            request.split,
            also=other.spec if other is not None else "",
        )
        with session.progress() as progress:
            record = scan(
                opened.model,
                _split(data, request.split),
                also=other.test() if other is not None else None,
                config=replace(request.settings, task=task, run_info=info, workers=workers),
                callbacks=Callbacks(progress, folder),
            )
        record = record.model_copy(update={"seconds": folder.seconds})
        write_text(path / REPORT, render_scan(record))
        write_text(path / RECORD, record.model_dump_json(indent=1) + "\n")
    if session.as_json:
        session.print_json(scan_summary(record) | {"out": str(path)})
    else:
        show_scan(record, str(path), session.console)
    return 0


def _split(data: Data, split: str) -> Any:
    if split == "train":
        return data.calibration(augment=False)
    return data.validation() if split == "validation" else data.test()


def scan_summary(record: ScanRecord) -> dict[str, Any]:
    """What `shoal scan --json` prints: the record, with `layers` and `blocks` as the contract has them."""
    return record.model_dump(mode="json")


def _arguments(request: ScanRequest, digest: str, device: str) -> dict[str, Any]:
    options = request.data_options
    return {
        "model": request.model,
        "weights": digest[:16],
        "data": request.data,
        "also": request.also,
        "split": request.split,
        "tolerance": request.settings.tolerance,
        "fast": request.settings.fast,
        "stack": request.settings.stack,
        "layers": request.settings.layers,
        "scores": request.settings.scores,
        **({"output": request.settings.output} if request.settings.output else {}),
        **({"task": request.task} if request.task else {}),
        "mean": options.mean,
        "std": options.std,
        "size": options.size,
        "limit": options.limit,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "tokenizer": str(options.tokenizer) if options.tokenizer else None,
        "sequence_length": options.sequence_length,
        "device": device,
    }
