"""The commands that change no network of their own: trace, certify, apply, export, bench."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from shoal.blocks import analyze
from shoal.cli.console import Session
from shoal.cli.loading import example_for, open_data, open_network, output_folder, pick_device
from shoal.cli.options import (
    ApplyRequest,
    BenchRequest,
    CertifyRequest,
    DataOptions,
    ExportRequest,
    PushRequest,
    ReportRequest,
    TraceRequest,
)
from shoal.errors import ExportError, UsageError, count_of
from shoal.files.writing import write_text
from shoal.measure import latency_beside, machine, within_noise
from shoal.pipeline import block_records
from shoal.plan import read_plan
from shoal.record import Latency
from shoal.report import NamedRun, render_runs, show_certificate, show_chain
from shoal.store import (
    ExportConfig,
    RunFolder,
    check_output_file,
    export_finished,
    export_program,
    load_folder,
    open_finished,
    original_of,
    push,
    read_folder_plan,
    read_record,
    save,
)
from shoal.store.export import Format
from shoal.store.folder import PROGRAM, REPORT
from shoal.store.serving.gguf_file import read_number_type
from shoal.surgery import apply, certify, example_of, retargeted
from shoal.surgery.signature import random_like


def run_trace(session: Session, request: TraceRequest) -> int:
    """Show the chain of residual blocks."""
    opened = open_network(session, request.model, request.weights)
    data = open_data(session, request.data, DataOptions(size=request.size), opened) if request.data else None
    chain = analyze(opened.model, example_for(opened, data, request.shape)).chain
    if session.as_json:
        session.print_json(chain.to_dict())
    else:
        show_chain(block_records(chain), session.console)
        if chain.note:
            session.say(chain.note)
    return 0


def run_certify(session: Session, request: CertifyRequest) -> int:
    """Compare two networks; 1 where they are different."""
    device = pick_device(request.device)
    original = open_network(session, request.a, request.weights, device)
    candidate = open_network(session, request.b, request.weights_b, device)
    data = open_data(session, request.data, request.data_options, original)
    certificate = certify(
        original.model, candidate.model, data.test(), tolerance=request.tolerance, output=request.output
    )
    if session.as_json:
        session.print_json(certificate.model_dump(mode="json"))
    else:
        show_certificate(certificate, session.console)
    return 1 if certificate.verdict == "different" else 0


def run_apply(session: Session, request: ApplyRequest) -> int:
    """Carry a plan out and write weights, plan and program."""
    session.check_alone("apply")
    plan = read_plan(request.plan)
    opened = open_network(session, request.model, request.weights)
    if request.any_weights:
        plan = retargeted(plan, opened.model)
    cut = apply(opened.model, plan).eval()
    path = output_folder(request.out, "apply")
    warning = None
    with RunFolder(
        path,
        "apply",
        {"model": request.model, "plan": json.loads(plan.model_dump_json())},
        configuration=session.configuration,
    ):
        try:
            export_program(cut, random_like(example_of(plan.inputs)), path / PROGRAM)
        except ExportError as error:
            warning = f"no {PROGRAM} was written: {error.message}"
        save(path, cut, plan.model_copy(update={"model": opened.spec}))
    if session.as_json:
        removals = {"removed": plan.removed, "removed_units": plan.removed_units}
        session.print_json({**removals, "out": str(path), "warnings": [warning] if warning else []})
    else:
        session.say(f"removed {', '.join([*plan.removed, *plan.removed_units]) or 'nothing'}")
        if warning:
            session.say(f"warning: {warning}")
        session.say(f"written to {path}")
    return 0


def run_export(session: Session, request: ExportRequest) -> int:
    """Write the files asked for and say how far they are from the network."""
    session.check_alone("export")
    if request.no_tokenizer and request.tokenizer is not None:
        raise UsageError("--tokenizer and --no-tokenizer exclude each other", "Give one of them.")
    formats: list[Format] = [to for to in get_args(Format) if getattr(request, to)] or ["torch_export"]
    if not request.onnx and (request.opset is not None or not request.dynamic):
        raise UsageError("--opset and --static are for ONNX", "Add --onnx.")
    config = ExportConfig(
        read_number_type(request.gguf_type),
        request.tokenizer,
        not request.no_tokenizer,
        opset=request.opset,
        dynamic=request.dynamic,
    )
    finished = open_finished(request.folder, session.consent)
    made = {to: export_finished(finished, to, config) for to in formats}
    if session.as_json:
        session.print_json({to: {**asdict(exported), "path": str(exported.path)} for to, exported in made.items()})
        return 0
    for exported in made.values():
        batch = "any batch size" if exported.dynamic_batch else "this batch size only"
        session.say(
            f"{exported.path}: loaded again; largest deviation {exported.max_abs_diff:.3g}, top-1 agreement "
            f"{100 * exported.top1_agreement:.1f} % on {exported.n} random {exported.unit}; {batch}"
        )
    return 0


def run_report(session: Session, request: ReportRequest) -> int:
    """Write the page of several runs."""
    session.check_alone("report")
    check_output_file(request.out)
    folders = list(dict.fromkeys(folder.resolve() for folder in request.folders))
    place = request.out.resolve().parent
    records = [read_record(folder) for folder in folders]
    above = Path(os.path.commonpath([folder.parent for folder in folders]))
    runs = [
        NamedRun(
            str(folder.relative_to(above)), record, quote(Path(os.path.relpath(folder / REPORT, place)).as_posix())
        )
        for folder, record in zip(folders, records, strict=True)
    ]
    write_text(request.out, render_runs(runs))
    if session.as_json:
        session.print_json({"out": str(request.out), "runs": [run.name for run in runs]})
    else:
        session.say(f"{count_of(len(runs), 'run')}: {request.out}")
    return 0


def run_push(session: Session, request: PushRequest) -> int:
    """Send a folder to the hub, or say what would be sent."""
    session.check_alone("push")
    pushed = push(request.folder, request.repo, form=request.form, private=request.private, send=not request.dry_run)
    if session.as_json:
        session.print_json({**asdict(pushed), "dry_run": request.dry_run})
        return 0
    session.say(f"{'Would send' if request.dry_run else 'Sent'} to {request.repo}: {', '.join(pushed.files)}")
    if pushed.url:
        session.say(pushed.url)
    return 0


def run_bench(session: Session, request: BenchRequest) -> int:
    """Time the original factory's network and the one in the folder, in turns."""
    folder = request.folder
    plan, device = read_folder_plan(folder), pick_device(request.device)
    networks = {
        "original": original_of(folder, plan, session.consent).to(device),
        "compressed": load_folder(folder, session.consent).to(device),
    }
    times: dict[str, list[Latency]] = {"original": [], "compressed": []}
    for size in dict.fromkeys((1, request.batch_size)):
        batch = random_like(example_of(plan.inputs, batch=size)).to(device)
        timed = latency_beside(
            networks,
            batch,
            reference="original",
            channels_last=request.channels_last,
            seconds=request.seconds,
            isolate=request.isolate,
        )
        for name, timing in timed.items():
            times[name].append(timing)
    if session.as_json:
        plain = {name: [timing.model_dump(mode="json") for timing in timings] for name, timings in times.items()}
        session.print_json({**plain, "machine": machine(device).model_dump(mode="json")})
        return 0
    for before, after in zip(times["original"], times["compressed"], strict=True):
        noise = ", within the noise" if within_noise(before, after) else ""
        session.say(f"batch {before.batch}: {_spread(before)} -> {_spread(after)}: {after.ratio}{noise}")
    first = times["original"][0]
    layout = "channels last" if request.channels_last else "channels first"
    session.say(
        f"{first.device}, {first.dtype}, {count_of(first.threads, 'thread')}, {layout}; medians and quartiles, the "
        "ratio with its 95 % interval"
    )
    return 0


def _spread(timing: Latency) -> str:
    return f"{timing.median_ms:.3g} ms ({timing.q1_ms:.3g} to {timing.q3_ms:.3g})"
