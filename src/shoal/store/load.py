"""Read an output folder back: rebuild the network from its original factory, carry out the plan, load the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from shoal.alignment import align_
from shoal.arguments import as_path
from shoal.errors import FolderError, ModelRaisedError, SpecError, check_memory, naming_memory_shortage
from shoal.files.reading import from_home, is_file, is_folder, parse_json, read_json, read_text, refusing
from shoal.intake import check_network
from shoal.plan import Plan, read_plan
from shoal.record import Record
from shoal.sources import Consent, load_model
from shoal.sources.user_code import is_file_spec
from shoal.store.extras import Extras, check_answers, read_extras, restore_extras_, states_of
from shoal.store.folder import EXTRAS, PLAN, RECORD, RUN, WEIGHTS
from shoal.store.save import restore_weights
from shoal.surgery import apply


@dataclass(frozen=True)
class OpenedFolder:
    """A network that can be worked on: in eval mode, with where it came from."""

    model: nn.Module
    spec: str
    runs_code: bool = False
    fetch: bool = True  # whether what belongs to it, such as a tokenizer, may be fetched from the network


@naming_memory_shortage()
def load(
    folder: str | Path,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    trust_code: bool = False,
    verify: bool = True,
) -> nn.Module:
    """The network in an output folder of Shoal, in eval mode. Nothing is unpickled.

    Args:
        folder: written by `shoal compress` or `Result.save`.
        model: the original network or its factory, where the folder does not know it (a network made in Python) or it
            has moved. Its weights do not matter.
        trust_code: where the plan names `FILE.py:FUNCTION`, run that file; where it names a network that is not on this
            machine, fetch it. For folders of your own, or of somebody you trust.
        verify: refuse a network whose outputs on a seeded input differ from those of the saved one.

    Raises:
        UsageError: `folder` is no path, or `model` neither a network nor its factory.
        ConsentError: code would have to be run, or a network fetched, and `trust_code` is not set.
        FolderError: no output folder, or the run is unfinished.
        PlanError: the network is another one than the plan was made for; says what differs.
        WeightsError: the weights do not fit, or the outputs differ from those of the saved network.
    """
    return load_folder(as_path("folder", folder), Consent(trust_code=trust_code), model, verify=verify)


def load_folder(
    path: Path,
    consent: Consent,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    verify: bool = True,
) -> nn.Module:
    """The network in an output folder of Shoal; its plan may name nothing but what `consent` covers, see `load`."""
    plan = read_folder_plan(path)
    loaded, extras = _loaded(path, plan, consent, model)
    if verify:
        check_answers(loaded, plan.inputs, extras)
    return loaded


def check_reload(folder: Path, factory: Callable[[], nn.Module] | None = None) -> None:
    """Load a folder again that was written just now, and refuse it where it does not come back as it was saved.

    Args:
        folder: whole but for its record.
        factory: of the original network, where the plan does not name it.

    Raises:
        ShoalError: the network cannot be rebuilt, or its outputs differ; says why.
    """
    plan = read_folder_plan(folder)
    loaded, extras = _loaded(folder, plan, Consent(trust_code=True), factory)  # it was open just now
    check_answers(loaded, plan.inputs, extras, by_rounding=True)


def _loaded(
    path: Path, plan: Plan, consent: Consent, model: nn.Module | Callable[[], nn.Module] | None
) -> tuple[nn.Module, Extras]:
    extras, tensors = read_extras(path / EXTRAS)
    cut = apply(_original(path, plan, consent, model), plan, weights_follow=True).to("cpu")
    restore_weights(cut, path / WEIGHTS, states_of(extras, tensors, path / EXTRAS))
    restore_extras_(cut, extras, tensors)
    return align_(cut).eval(), extras


def _original(path: Path, plan: Plan, consent: Consent, model: nn.Module | Callable[[], nn.Module] | None) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if model is not None:
        return _called(model)
    hint = "Call load(folder, model=...) with the original network or its factory."
    if plan.model is None:
        raise SpecError(f"'{path}' does not know the factory of its network", hint)
    try:
        return original_of(path, plan, consent)
    except SpecError as error:
        raise SpecError(
            f"the network of '{path}' cannot be made again from '{plan.model}': {error.message}", hint
        ) from error


def original_of(path: Path, plan: Plan, consent: Consent) -> nn.Module:
    """The network that the plan in a folder names.

    Raises:
        ConsentError: code would have to be run, or the network fetched, and `consent` does not cover that.
        SpecError: it names none.
    """
    if plan.model is None:
        raise SpecError(f"'{path}' does not know the factory of its original", "Only `shoal compress` writes it.")
    consent.check(plan.model, f"'{path / PLAN}'")
    return load_model(plan.model, fetch=consent.covers(plan.model)).model


def _called(factory: Callable[[], nn.Module]) -> nn.Module:
    if not callable(factory):
        check_network(factory)
    try:
        made = factory()
    except Exception as error:
        check_memory(error, "in the factory given as model=")
        raise ModelRaisedError(
            f"the factory given as model= raised {type(error).__name__}: {error}",
            "Give a function without arguments that returns the original network.",
        ) from error
    if not isinstance(made, nn.Module):
        raise SpecError(
            f"the factory given as model= returned {type(made).__name__}, not a torch.nn.Module",
            "Give the original network, or a function without arguments that returns it.",
        )
    return made


def read_folder_plan(path: Path) -> Plan:
    """The plan of a finished output folder.

    Raises:
        FolderError: no such folder, no folder of Shoal, or unfinished.
    """
    check_finished(path, PLAN)
    return read_plan(path / PLAN)


def check_finished(path: Path, *needed: str) -> None:
    """Refuse what is no output folder with these files.

    Raises:
        FolderError: no folder, another command's, unfinished, or not one of Shoal's; says which.
    """
    if not is_folder(path):
        problem = f"'{path}' is a file, not an output folder" if is_file(path) else f"there is no folder '{path}'"
        raise FolderError(problem, "Give the folder that `shoal compress` named.")
    missing = [name for name in needed if not (path / name).exists()]
    if not missing:
        return
    command = _command_of(path)
    if command and ((path / RECORD).exists() or command == "apply"):  # which measures nothing
        raise FolderError(
            f"'{path}' is of `shoal {command}`: it holds no {missing[0]}", "Give the folder of `shoal compress`."
        )
    if (path / RUN).exists():
        raise FolderError(f"the run in '{path}' is unfinished", "Repeat the same command to resume it.")
    raise FolderError(f"'{path}' is no output folder of Shoal: it holds no {missing[0]}", "Give the folder of a run.")


def _command_of(path: Path) -> str:
    """The command that wrote a folder; empty where that cannot be read."""
    try:
        claim = read_json(path / RUN)
    except (OSError, ValueError):
        return ""
    return str(claim.get("command", "")) if isinstance(claim, dict) else ""


def read_record(path: Path) -> Record:
    """The record of a finished output folder of `shoal compress`.

    Raises:
        FolderError: missing, damaged, of another command or of a later version; says which.
    """
    check_finished(path, RECORD)
    command = _command_of(path)
    if command not in ("", "compress"):
        raise FolderError(f"'{path}' is of `shoal {command}`", "Give the folder of `shoal compress`.")
    message = f"'{path / RECORD}' is damaged, or of another version of Shoal"
    with refusing(FolderError, message, "Leave that folder out, or run its command again."):
        text = read_text(path / RECORD)
        parse_json(text)
        try:
            return Record.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise ValueError(f"{where}: {first['msg']}") from error


def open_model(spec: str, weights: Path | None = None, consent: Consent | None = None) -> OpenedFolder:
    """The network that MODEL names: an output folder, or anything `sources.load_model` knows.

    Args:
        spec: of the network.
        weights: a checkpoint to load into it.
        consent: what may be run and fetched; by default `spec` itself, and nothing that a folder names.
    """
    consent = consent or Consent.of_specs([spec], trust_code=False)
    folder = from_home(spec)
    if is_folder(folder):
        if weights is not None:
            raise SpecError("an output folder brings its own weights", "Leave out --weights.")
        plan = read_folder_plan(folder)
        model, source = load_folder(folder, consent), plan.model or ""
        return OpenedFolder(model, spec, runs_code=is_file_spec(source), fetch=consent.covers(source))
    fetch = consent.covers(spec)
    loaded = load_model(spec, weights, fetch=fetch)
    return OpenedFolder(loaded.model, loaded.spec, loaded.runs_code, fetch)
