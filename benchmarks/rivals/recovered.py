"""One cell with recovery: the cut network of a method at a point, recovered within a budget, measured and kept.

Every method gets the same images, the same budget and, but for PRACTISE's own tuning, the same distillation.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from rivals.cell import Place, Sets, judged, run_cell
from rivals.ground import Ground
from rivals.keeping import again, keep
from rivals.made import Made
from rivals.practise import last_block
from rivals.tuning import tuned
from shoal.errors import UsageError
from shoal.files.writing import write_text
from shoal.pipeline import RecoveryConfig
from shoal.pipeline.recovery import RecoveryTask
from shoal.plan import Plan, read_plan
from shoal.recover import DistillConfig, TrainingBudget
from shoal.replace.kinds.scale import ChannelScale
from shoal.store.folder import PLAN
from shoal.surgery import model_digest
from shoal.training.loaders import LoaderFactory


@dataclass(frozen=True)
class Way:
    """Whose cut it is, and how it is recovered; `fresh`: its weights are thrown away first."""

    cut: str
    how: Literal["distil", "features"] = "distil"
    fresh: bool = False


WAYS = {
    "shoal": Way("shoal"),
    "greedy": Way("greedy"),
    "influence": Way("influence"),
    "practise": Way("practise", "features"),
    "practise-distil": Way("practise"),
    "width": Way("width"),
    "taylor": Way("taylor"),
    "scratch": Way("shoal", fresh=True),
}


@dataclass(frozen=True)
class Lessons:
    """What everybody recovers on.

    Args:
        training: mini-batches by epoch, augmented anew in each; labels are not looked at.
        validation: what distillation chooses on.
        budget: for each network.
        unlabelled: extra data by epoch.
        seed: of it all.
    """

    training: LoaderFactory
    validation: Iterable[Any]
    budget: TrainingBudget
    unlabelled: LoaderFactory | None = None
    seed: int = 0
    settings: DistillConfig = field(default_factory=DistillConfig)


def place_of(place: Place) -> Place:
    """Where the recovered network is kept; that of the cut is its neighbour."""
    return Place(place.work, place.point, f"recovered-{place.method}")


def run_recovered(ground: Ground, sets: Sets, place: Place, lessons: Lessons) -> dict[str, Any]:
    """Make the cell of a method of WAYS and keep it; the cut is made first, where it is missing."""
    way, own = WAYS[place.method], place_of(place)
    beside = Place(place.work, place.point, way.cut)
    before = beside.finished() or run_cell(ground, sets, beside)
    head = {"method": place.method, "point": place.point, "cut": way.cut, "reached": before["reached"]}
    own.folder.mkdir(parents=True, exist_ok=True)
    if not before["reached"]:
        return _kept(own, head | {"why": before["why"], "fastest_share": before["fastest_share"]})
    started = time.perf_counter()
    network = again(ground, beside.folder)
    plan = read_plan(beside.folder / PLAN) if (beside.folder / PLAN).exists() else None
    if way.fresh:
        renew_(network, lessons.seed)
    network, said = _taught(ground, network, plan, way, own, lessons)
    keep(Made(network, {}, plan), own.folder)
    cell = head | {
        "share": before["share"],
        "how": way.how,
        "fresh": way.fresh,
        "recovery": said,
        "network": model_digest(network),
        "held_back_kl": ground.damage(network),
        "before": before["quality"] if not way.fresh else None,
        "quality": judged(network, sets, own),
        "seconds": time.perf_counter() - started,
    }
    return _kept(own, cell)


def _kept(place: Place, cell: dict[str, Any]) -> dict[str, Any]:
    write_text(place.folder / "cell.json", json.dumps(cell, indent=1) + "\n")
    return cell


def _taught(
    ground: Ground, network: nn.Module, plan: Plan | None, way: Way, place: Place, lessons: Lessons
) -> tuple[nn.Module, dict[str, Any]]:
    if way.how == "features":
        return tuned(
            network,
            ground.model,
            last_block(ground),
            lessons.training,
            budget=lessons.budget,
            unlabelled=lessons.unlabelled,
            seed=lessons.seed,
            progress=ground.progress,
        )
    asked = RecoveryConfig(lessons.budget, lessons.settings, lessons.training, lessons.unlabelled, place.folder)
    actions = plan.actions if plan is not None else []
    task = RecoveryTask(asked, ground.model, ground.calibration, lessons.validation, ground.fit_on, ground.progress)
    found = task.run(network, actions)
    return found.model, found.recovery.model_dump(mode="json")


def renew_(network: nn.Module, seed: int) -> nn.Module:
    """Fresh weights for every layer, in place: the compressed architecture from scratch.

    Raises:
        UsageError: parameters that no layer sets anew (a class token, a layer scale): they would keep what was learned.
    """
    kept = bare_parameters(network)
    if kept:
        raise UsageError(
            f"{len(kept)} parameters cannot be set anew, since no layer of torch holds them: {', '.join(kept[:4])}",
            "Leave out the method 'scratch', or build the network anew from its own factory.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, ChannelScale):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif (reset := _reset_of(module)) is not None:
                reset()
    return network


def bare_parameters(network: nn.Module) -> list[str]:
    """The names of parameters whose module does not know how to set them anew."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, module in network.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if not isinstance(module, ChannelScale) and _reset_of(module) is None
    ]


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    """How a module sets its own parameters anew; attention spells it with an underscore."""
    names = ("reset_parameters", "_reset_parameters")
    return next((found for name in names if callable(found := getattr(module, name, None))), None)
