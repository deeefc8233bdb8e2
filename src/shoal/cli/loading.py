"""From the words of a command line to things: device, numbers, data, model, example input, output folder."""

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, call, device_of
from shoal.cli.console import Session
from shoal.cli.options import DataOptions, WorkerOptions
from shoal.errors import ConsentError, ModelRaisedError, SpecError, UsageError
from shoal.files.reading import from_home, is_folder
from shoal.plan import InputSpec
from shoal.plan.plan import LARGEST_INPUT
from shoal.preserve import evaluating
from shoal.sources import AudioFormat, Data, TextFormat, infer_audio_format, infer_text_format, load_data
from shoal.sources.data import AUDIO, TEXT_SOURCES
from shoal.sources.user_code import call_function, is_file_spec, user_modules
from shoal.store import OpenedFolder, RunFolder, open_model, read_folder_plan
from shoal.surgery import example_of
from shoal.tasks import Task, task_named
from shoal.training.processes import are_several, from_main, joined
from shoal.training.tracking import tracking
from shoal.workers import LocalWorkers, RayWorkers, Workers

# Shapes tried, in this order, where nobody says what a network takes.
_USUAL_SHAPES = ((3, 224, 224), (3, 32, 32), (1, 28, 28), (1, 8, 8))


def open_data(session: Session, spec: str, options: DataOptions, network: OpenedFolder | None = None) -> Data:
    """The data; says so where a user's file is run for it. Text is read as the network reads it."""
    session.check_consent(spec)
    _check_fetched(session, spec)
    if ".py:" in spec:
        session.errors.print(f"running {spec} for the data", markup=False, soft_wrap=True)
    return load_data(
        spec,
        mean=numbers(options.mean, "--mean"),
        std=numbers(options.std, "--std"),
        size=options.size,
        seed=options.seed,
        batch_size=options.batch_size,
        limit=options.limit,
        text_format=_reading(session, spec, options, network),
    )


def _check_fetched(session: Session, spec: str) -> None:
    """Refuse to fetch a data set that only a folder names."""
    name, _, place = spec.strip().partition(":")
    local = is_folder(from_home(place)) or is_folder(from_home(place.rpartition(":")[0] or place))
    if name == "hf-data" and not local and not session.consent.covers(spec):
        raise ConsentError(
            f"the folder names the data '{spec}', which would be fetched from the hub",
            "Repeat with --trust-code, or name it yourself.",
        )


def _reading(
    session: Session, spec: str, options: DataOptions, network: OpenedFolder | None
) -> TextFormat | AudioFormat | None:
    name = spec.strip().partition(":")[0]
    if name not in (*TEXT_SOURCES, AUDIO):
        if options.tokenizer is not None or options.sequence_length is not None:
            raise UsageError("--tokenizer and --sequence-length are for text", "Leave them out, or give text:FILE.")
        return None
    if network is None:
        return None
    reading: TextFormat | AudioFormat
    if name == AUDIO:
        if options.sequence_length is not None:
            raise UsageError("--sequence-length is for text", "Leave it out.")
        reading = infer_audio_format(network.model, options.tokenizer)
    else:
        reading = infer_text_format(network.model, options.tokenizer, options.sequence_length)
    fetch = network.fetch if options.tokenizer is None else session.consent.covers(str(options.tokenizer))
    return replace(reading, fetch=fetch)


def open_task(session: Session, spec: str | None) -> Task | None:
    """The task that --task names: of Shoal, of a plugin, or what a function of the user's returns.

    Raises:
        UsageError: there is no task of this name.
        SpecError: the function returns no task.
    """
    if spec is None or not is_file_spec(spec):
        return task_named(spec) if spec is not None else None
    session.check_consent(spec)
    session.errors.print(f"running {spec} for the task", markup=False, soft_wrap=True)
    task = call_function(spec)
    if not isinstance(task, Task):
        raise SpecError(
            f"the function of --task '{spec}' returned a {type(task).__name__}, expected a shoal.tasks.Task",
            "It is called without arguments: see docs/extending.md.",
        )
    return task


def open_network(session: Session, spec: str, weights: Path | None, device: str = "cpu") -> OpenedFolder:
    """The network on its device, in eval mode; says so where a user's file is run for it."""
    session.check_consent(spec)
    _check_fetched(session, spec)
    if ".py:" in spec:
        source = (
            f"weights from '{weights.name}'" if weights else "no --weights, so it keeps those that the code gives it"
        )
        session.errors.print(f"running {spec} for the network; {source}", markup=False, soft_wrap=True)
    opened = open_model(spec, weights, session.consent)
    opened.model.to(device).eval()
    return opened


def open_workers(session: Session, options: WorkerOptions, device: str) -> Workers:
    """Who measures candidates; for use after the network and the data were opened.

    Raises:
        UsageError: Ray is not installed, or its address does not answer.
        ConsentError: a file of the user's would be sent to other machines.
    """
    count, address, gpu = options.workers, options.ray, torch.device(device).type == "cuda"
    if address is None:
        if options.send_code:
            raise UsageError(
                "--send-code is for other machines, and there are none", "Add --ray ADDRESS, or leave it out."
            )
        return RayWorkers(count, gpu=gpu, modules=user_modules()) if count and count > 1 else LocalWorkers()
    if count is None:
        raise UsageError("--ray says where candidates are measured, not by how many", "Add --workers N.")
    modules = user_modules()
    if modules and not options.send_code:
        files = ", ".join(sorted(f"'{Path(str(module.__file__)).name}'" for module in modules))
        raise ConsentError(
            f"the nodes of '{address}' lack the code of {files}", "Add --send-code to send it there, where it is run."
        )
    return RayWorkers(count, address, gpu=gpu, modules=modules)


def pick_device(name: str) -> str:
    """A device torch can use now; of several processes 'cuda' is to each a card of its own.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"the device '{name}' cannot be used: {first}", "Try --device cpu.") from error
    if torch.device(name).type == "cuda" and are_several():
        joined(name)
    return name


def numbers(text: str | None, option: str) -> list[float] | None:
    """`0.5,0.4` as numbers.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"{option} is '{text}', expected numbers like 0.49,0.48,0.45", "Separate by commas."
        ) from error


def sizes(shape: str) -> list[int]:
    """`3,224,224` as the shape of one sample.

    Raises:
        UsageError: something else, or more than an example input may hold.
    """
    hint = "Give the shape of one sample, without the batch: 3,224,224."
    try:
        axes = [int(part) for part in shape.split(",")]
    except ValueError as error:
        raise UsageError(f"--shape is '{shape}', expected whole numbers", hint) from error
    if min(axes) < 1 or math.prod(axes) > LARGEST_INPUT:
        raise UsageError(f"--shape is '{shape}', expected sizes from 1 and at most {LARGEST_INPUT} values in all", hint)
    return axes


def tracked(option: str | None) -> AbstractContextManager[None]:
    """The context in which training reports to the trackers of `--track a,b`.

    Raises:
        UsageError: there is no such tracker, or it is not installed.
    """
    return tracking(names(option))


def names(text: str | None) -> list[str]:
    """`a,b` as names."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def example_for(opened: OpenedFolder, data: Data | None, shape: str | None) -> Batch:
    """An input to trace with: from the data, the shape given, what the network says of itself, or the usual shapes.

    Raises:
        UsageError: nothing fits; says how to give a shape.
    """
    if data is not None:
        return data.example(2)
    if shape is not None:
        return _zeros(sizes(shape))
    folder = from_home(opened.spec)
    if is_folder(folder):
        return example_of(read_folder_plan(folder).inputs)
    if opened.spec == "digits-resnet":
        return load_data("digits").example(2)
    dummy = getattr(opened.model, "dummy_inputs", None)  # Hugging Face
    if isinstance(dummy, dict):
        return Batch(kwargs=dict(dummy))
    size = getattr(opened.model, "default_cfg", {}).get("input_size")  # timm
    for candidate in [size] if size else _USUAL_SHAPES:
        if _runs(opened.model, _zeros(list(candidate))):
            return _zeros(list(candidate))
    raise UsageError(
        "the network takes none of the usual input shapes", "Give DATA, or --shape 3,64,64 (without the batch)."
    )


def _zeros(shape: list[int]) -> Batch:
    return example_of([InputSpec(shape=shape, dtype="float32")])


def _runs(model: nn.Module, batch: Batch) -> bool:
    with evaluating(model):
        try:
            call(model, batch.take(1))
        except ModelRaisedError:
            return False
    return True


def check_input(model: nn.Module, data: Data) -> None:
    """Refuse data that the network does not take, before anything is written."""
    with evaluating(model):
        call(model, data.example(2).to(device_of(model)))


def output_folder(out: Path | None, command: str) -> Path:
    """The folder asked for, or a new one named by command and time."""
    if out is not None:
        return out
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    base = Path("shoal-runs") / f"{command}-{stamp}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def claim_folder(
    session: Session,
    out: Path | None,
    command: str,
    arguments: dict[str, Any],
    device: str,
    legacy: dict[str, Any] | None = None,
) -> tuple[Path, RunFolder | None]:
    """The output folder of a run; of several processes the main one alone claims it, and tells where it is.

    Args:
        session: of the command.
        out: the folder asked for, if one was.
        command: by name.
        arguments: all that decides the result.
        device: where it runs.
        legacy: what folders of earlier versions say of an argument that is called otherwise now.
    """
    claimed: list[RunFolder] = []

    def claim() -> Path:
        path = output_folder(out, command)
        claimed.append(RunFolder(path, command, arguments, configuration=session.configuration, legacy=legacy))
        return path

    path = from_main(claim, device)
    session.resume_hint = f"The same command with --out {path} resumes from the last checkpoint."
    folder = claimed[0] if claimed else None
    if folder is not None and folder.resumed:
        session.say(f"resuming the run in {path}")
    return path, folder


def check_pair(model: str | None, data: str | None, command: str = "compress") -> tuple[str, str]:
    """MODEL and DATA, the embedded default for both where neither is given.

    Raises:
        UsageError: a MODEL of the user's own without DATA.
    """
    if model is None:
        return "digits-resnet", "digits"
    if data is None and model == "digits-resnet":
        return model, "digits"
    if data is None:
        raise UsageError(f"DATA is missing: '{model}' can only be measured on data", f"shoal {command} MODEL DATA")
    return model, data
