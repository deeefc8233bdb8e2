"""One cell with recovery: the cut network of a method at a point, recovered within a budget, measured and kept.

Every method gets the same images, the same budget and, but for PRACTISE's own, the same distillation.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rivals.cell import Place, Sets, judged, run_cell
from rivals.ground import Ground
from rivals.keeping import is_small, keep, reload
from rivals.made import Made
from rivals.practise_recovery import RATES, FeatureTuning, tuned
from rivals.tuning import FEATURES, TRIAL_RATE, best_value, validation_kl
from shoal.batches import Batch
from shoal.errors import UsageError
from shoal.files.writing import write_text
from shoal.pipeline import RecoveryConfig
from shoal.pipeline.plan_race import remaining, settings_after
from shoal.pipeline.recovery import RecoveryTask
from shoal.plan import Plan, read_plan
from shoal.record import PlanRace
from shoal.recover import DistillConfig, TrainingBudget
from shoal.recover.evaluation import validation_samples
from shoal.replace.kinds.scale import ChannelScale
from shoal.store.folder import PLAN
from shoal.surgery import model_digest
from shoal.training.loaders import LoaderFactory


@dataclass(frozen=True)
class Way:
    """Whose cut it is, and how it is recovered; `fresh`: its weights are set anew first."""

    cut: str
    how: Literal["distil", "features", "none"] = "distil"
    fresh: bool = False


WAYS = {
    "shoal": Way("shoal"),
    "small": Way("small", "none"),
    "small-distil": Way("small"),
    "influence": Way("influence"),
    "tinyfusion": Way("tinyfusion"),
    "practise": Way("practise", "features"),
    "practise-distil": Way("practise"),
    "last-k": Way("last-k"),
    "uniform": Way("uniform"),
    "greedy": Way("greedy"),
    "width": Way("width"),
    "taylor": Way("taylor"),
    "scratch": Way("shoal", fresh=True),
}


@dataclass(frozen=True)
class RecoverySetup:
    """What everybody recovers on.

    Args:
        training: mini-batches by epoch, augmented anew in each; labels are not looked at.
        validation: what distillation chooses on.
        budget: for each network.
        unlabelled: extra data by epoch.
        seed: of it all.
        settings: of the distillation.
    """

    training: LoaderFactory
    validation: Iterable[Any]
    budget: TrainingBudget
    unlabelled: LoaderFactory | None = None
    seed: int = 0
    settings: DistillConfig = field(default_factory=DistillConfig)

    @cached_property
    def validation_samples(self) -> list[Batch]:
        """Those that recovery is tuned on, as many as a distillation is judged on."""
        return validation_samples(self.validation, self.settings.validation_images)


def place_of(place: Place) -> Place:
    """Where the recovered network is kept; that of the cut is its neighbour."""
    return Place(place.work, place.point, f"recovered-{place.method}")


def run_recovered(ground: Ground, sets: Sets, place: Place, setup: RecoverySetup) -> dict[str, Any]:
    """Make the cell of a method of WAYS and keep it; the cut is made first, where it is missing."""
    way, own_place = WAYS[place.method], place_of(place)
    cut_place = Place(place.work, place.point, way.cut)
    cut = cut_place.finished() or run_cell(ground, sets, cut_place)
    head = {"method": place.method, "point": place.point, "cut": way.cut, "reached": cut["reached"]}
    own_place.folder.mkdir(parents=True, exist_ok=True)
    if not cut["reached"]:
        return _write(own_place, head | {"why": cut["why"], "fastest_share": cut["fastest_share"]})
    head |= {"share": cut["share"], "how": way.how, "fresh": way.fresh, "cut_network": cut["network"]}
    twin = _twin(place, cut["network"])
    if twin is not None:
        shutil.copytree(twin.folder, own_place.folder, dirs_exist_ok=True)
        return _write(own_place, (twin.finished() or {}) | head)
    started = time.perf_counter()
    network, recovery = _Recovery(ground, place, setup).run()
    plan = _plan_of(cut_place)
    keep(Made(network, {}, plan, small=is_small(cut_place.folder)), own_place.folder)
    cell = head | {
        "recovery": recovery,
        "network": model_digest(network),
        "held_back_kl": ground.damage(network),
        "before": cut["quality"] if not (way.fresh or has_learned(cut)) else None,
        "quality": judged(network, sets, own_place),
        "seconds": time.perf_counter() - started,
    }
    return _write(own_place, cell)


def _twin(place: Place, network: str) -> Place | None:
    """Where another point has the same cut recovered: then the result is the same."""
    for folder in sorted(place.work.glob(f"point-*/{place_of(place).method}")):
        point = float(folder.parent.name.removeprefix("point-"))
        other = place_of(replace(place, point=point))
        if point != place.point and (other.finished() or {}).get("cut_network") == network:
            return other
    return None


def race_of_cell(cut: dict[str, Any]) -> PlanRace | None:
    """The race that a cut network was chosen by, if any; its steps are spent, whether the network learned in them."""
    race = (cut.get("done") or {}).get("race")
    return PlanRace.model_validate(race) if race else None


def has_learned(cut: dict[str, Any]) -> bool:
    """Whether a cut network comes with what it learned in its race."""
    race = race_of_cell(cut)
    return race is not None and race.continued


def _plan_of(place: Place) -> Plan | None:
    return read_plan(place.folder / PLAN) if (place.folder / PLAN).exists() else None


def _write(place: Place, cell: dict[str, Any]) -> dict[str, Any]:
    write_text(place.folder / "cell.json", json.dumps(cell, indent=1) + "\n")
    return cell


@dataclass(frozen=True)
class _Recovery:
    """The recovery of one cut, tuned as `rivals.tuning` says."""

    ground: Ground
    place: Place
    setup: RecoverySetup

    def run(self) -> tuple[nn.Module, dict[str, Any]]:
        """The recovered network, and what was done."""
        way = WAYS[self.place.method]
        network = reload(self.ground, self._cut.folder)
        if way.fresh:
            renew_(network, self.setup.seed)
        if way.how == "none":
            return network, {"steps": 0}
        setup, folder = self._setup_after_race, place_of(self.place).folder
        record = self.place.work / "tuned" / f"{self.place.method}.json"
        if way.how == "features":
            rate = best_value(
                record, RATES, setup.budget, lambda value, part: self._features_left(network, value, part)
            )
            return self._on_features(network, rate, setup.budget)
        weight = best_value(record, FEATURES, setup.budget, partial(self._left, network))
        return self._distilled(network, replace(setup.settings, features=weight), setup.budget, folder)

    @property
    def _cut(self) -> Place:
        return replace(self.place, method=WAYS[self.place.method].cut)

    @property
    def _setup_after_race(self) -> RecoverySetup:
        """The budget less the steps of the race that Shoal's plan was chosen by; it goes on from what that learned."""
        race, setup = race_of_cell(self._cut.finished() or {}), self.setup
        if WAYS[self.place.method].fresh:
            return setup
        return replace(setup, budget=remaining(setup.budget, race), settings=settings_after(setup.settings, race))

    def _left(self, network: nn.Module, weight: float, budget: TrainingBudget) -> float:
        settings = replace(self.setup.settings, features=weight, rate=TRIAL_RATE, looks=1)
        return self._kl(self._distilled(network, settings, budget, None)[0])

    def _features_left(self, network: nn.Module, rate: float, budget: TrainingBudget) -> float:
        return self._kl(self._on_features(network, rate, budget)[0])

    def _kl(self, network: nn.Module) -> float:
        return validation_kl(self.ground, network, self.setup.validation_samples)

    def _on_features(self, network: nn.Module, rate: float, budget: TrainingBudget) -> tuple[nn.Module, dict[str, Any]]:
        setup = self.setup
        return tuned(
            network, self.ground, FeatureTuning(setup.training, budget, setup.unlabelled, rate=rate, seed=setup.seed)
        )

    def _distilled(
        self, network: nn.Module, settings: DistillConfig, budget: TrainingBudget, folder: Path | None
    ) -> tuple[nn.Module, dict[str, Any]]:
        setup, ground = self.setup, self.ground
        plan = _plan_of(self._cut)
        config = RecoveryConfig(budget, settings, setup.training, setup.unlabelled, folder)
        task = RecoveryTask(config, ground.model, ground.calibration, setup.validation, ground.fit_on, ground.progress)
        result = task.run(network, plan.actions if plan is not None else [])
        done = result.recovery.model_dump(mode="json")
        return result.model, done | {"features_weight": settings.weight_of_features("sgd")}


def renew_(network: nn.Module, seed: int) -> nn.Module:
    """Fresh weights for every layer, in place: the compressed architecture from scratch.

    Raises:
        UsageError: parameters that no layer sets anew (a class token, a layer scale): they would keep what was learned.
    """
    bare = bare_parameters(network)
    if bare:
        raise UsageError(
            f"{len(bare)} parameters cannot be set anew, since no layer of torch holds them: {', '.join(bare[:4])}",
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
    return next((reset for name in names if callable(reset := getattr(module, name, None))), None)
