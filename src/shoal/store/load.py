"""Read an output folder back: rebuild the network from its original factory, carry out the plan, load the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from shoal.alignment import align_
from shoal.errors import FolderError, ModelRaisedError, SpecError, check_memory, naming_memory_shortage
from shoal.plan import Plan, read_plan
from shoal.record import Record
from shoal.sources import load_model
from shoal.store.extras import Extras, check_answers, read_extras, restore_extras_, states_of
from shoal.store.folder import EXTRAS, PLAN, RECORD, RUN, WEIGHTS
from shoal.store.save import restore_weights
from shoal.surgery import apply


@dataclass(frozen=True)
class Opened:
    """A network that can be worked on: in eval mode, with where it came from."""

    model: nn.Module
    spec: str
    runs_code: bool = False


@naming_memory_shortage()
def load(
    folder: str | Path, model: nn.Module | Callable[[], nn.Module] | None = None, *, verify: bool = True
) -> nn.Module:
    """The network in an output folder of Shoal, in eval mode. Nothing is unpickled.

    Args:
        folder: written by `shoal compress` or `Result.save`.
        model: the original network or its factory, where the folder does not know it (a network made in Python) or it
            has moved. Its weights do not matter. Without it, a plan that names `FILE.py:FUNCTION` runs that file.
        verify: refuse a network that answers otherwise on a seeded input than the one that was saved did.

    Raises:
        FolderError: no output folder, or the run is unfinished.
        PlanError: the network is another one than the plan was made for; says what differs.
        WeightsError: the weights do not fit, or the network answers otherwise than the one that was saved.
    """
    path = Path(folder)
    plan = read_folder_plan(path)
    loaded, extras = _loaded(path, plan, model)
    if verify:
        check_answers(loaded, plan.inputs, extras)
    return loaded


def check_reload(folder: Path, factory: Callable[[], nn.Module] | None = None) -> None:
    """Load a folder again that was written just now, and refuse it where it does not come back as it was saved.

    Args:
        folder: whole but for its record.
        factory: of the original network, where the plan does not name it.

    Raises:
        ShoalError: the network cannot be built again, or answers otherwise; says why.
    """
    plan = read_folder_plan(folder)
    loaded, extras = _loaded(folder, plan, factory)
    check_answers(loaded, plan.inputs, extras, by_rounding=True)


def _loaded(path: Path, plan: Plan, model: nn.Module | Callable[[], nn.Module] | None) -> tuple[nn.Module, Extras]:
    extras, tensors = read_extras(path / EXTRAS)
    cut = apply(_original(path, plan, model), plan, weights_follow=True).to("cpu")
    restore_weights(cut, path / WEIGHTS, states_of(extras, tensors, path / EXTRAS))
    restore_extras_(cut, extras, tensors)
    return align_(cut).eval(), extras


def _original(path: Path, plan: Plan, given: nn.Module | Callable[[], nn.Module] | None) -> nn.Module:
    if isinstance(given, nn.Module):
        return given
    if given is not None:
        return _called(given)
    hint = "Call load(folder, model=...) with the original network or its factory."
    if plan.model is None:
        raise SpecError(f"'{path}' does not know the factory of its network", hint)
    try:
        return load_model(plan.model).model
    except SpecError as error:
        raise SpecError(
            f"the network of '{path}' cannot be made again from '{plan.model}': {error.message}", hint
        ) from error


def _called(factory: Callable[[], nn.Module]) -> nn.Module:
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
    if not path.is_dir():
        raise FolderError(f"there is no folder '{path}'", "Give the folder that `shoal compress` named.")
    if not (path / PLAN).exists():
        if (path / RUN).exists():
            raise FolderError(f"the run in '{path}' is unfinished", "Repeat the same command to resume it.")
        raise FolderError(f"'{path}' is no output folder of Shoal: it holds no {PLAN}", "Give the folder of a run.")
    return read_plan(path / PLAN)


def read_record(path: Path) -> Record:
    """The record of a finished output folder.

    Raises:
        FolderError: missing or damaged.
    """
    try:
        return Record.model_validate_json((path / RECORD).read_text(encoding="utf-8"))
    except OSError as error:
        raise FolderError(f"'{path}' holds no {RECORD}: the run is unfinished", "Repeat the same command.") from error
    except ValidationError as error:
        raise FolderError(f"'{path / RECORD}' is damaged: {error.errors()[0]['msg']}", "Run it again.") from error


def open_model(spec: str, weights: Path | None = None) -> Opened:
    """The network that MODEL names: an output folder, or anything `sources.load_model` knows."""
    if Path(spec).is_dir():
        if weights is not None:
            raise SpecError("an output folder brings its own weights", "Leave out --weights.")
        plan = read_folder_plan(Path(spec))
        return Opened(load(spec), spec, runs_code=".py:" in (plan.model or ""))
    loaded = load_model(spec, weights)
    return Opened(loaded.model, loaded.spec, loaded.runs_code)
