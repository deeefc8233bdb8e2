"""One cell: one method at one point, made, timed, measured and kept; the JSON comes last and says that it is finished.

The same rule for every method: its network is timed beside the original, in turns, whatever its own search measured. If
it is slower than the point allows, the method runs again for proportionally less; if needlessly fast, for more.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rivals import METHODS
from rivals.answers import Answers, against, against_original
from rivals.ground import SLACK, Ground, share_of
from rivals.keeping import keep, reload, same
from rivals.made import Made, Unreached
from shoal.files.writing import write_text
from shoal.measure import Predictions, cost, predictions
from shoal.record import Latency
from shoal.sources import Data
from shoal.surgery import model_digest

_ATTEMPTS = 4
_SECONDS = 6.0
# A network this near below the point is left as it is.
_NEAR = 0.95


class Sets:
    """The test parts, by name, and the original's predictions on each, made once a process."""

    def __init__(self, ground: Ground, data: Mapping[str, Data]) -> None:
        self.ground, self.data = ground, data
        self._originals: dict[str, Predictions] = {}

    def original(self, name: str) -> Predictions:
        """The original's predictions on this test part."""
        if name not in self._originals:
            self._originals[name] = predictions(self.ground.model, self.data[name].test())
        return self._originals[name]


@dataclass(frozen=True)
class Place:
    """Where the cell of a method at a point is kept."""

    work: Path
    point: float
    method: str

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.work / f"point-{self.point:g}" / self.method

    def answers(self, name: str) -> Path:
        """The answers on one test part."""
        return self.folder / f"answers-{name}.npz"

    def finished(self) -> dict[str, Any] | None:
        """The cell, if it is there."""
        path = self.folder / "cell.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_cell(ground: Ground, sets: Sets, place: Place) -> dict[str, Any]:
    """Make the cell and keep it."""
    start = time.perf_counter()
    place.folder.mkdir(parents=True, exist_ok=True)
    made, cell = _made(ground, place)
    if made is not None:
        keep(made, place.folder)
        cell["network"] = model_digest(made.network)
        cell["rebuilt_bitwise"] = same(ground, made.network, reload(ground, place.folder))
        cell["cost"] = cost(made.network, ground.timed.take(1)).model_dump(mode="json")
        cell["held_back_kl"] = ground.damage(made.network)
        cell["quality"] = judged(made.network, sets, place)
    cell["seconds"] = time.perf_counter() - start
    write_text(place.folder / "cell.json", json.dumps(cell, indent=1) + "\n")
    return cell


def _made(ground: Ground, place: Place) -> tuple[Made | None, dict[str, Any]]:
    """The network that meets the point by its own timing, or none."""
    cell: dict[str, Any] = {"method": place.method, "point": place.point, "reached": False}
    attempts: list[dict[str, float]] = []
    target, fastest, reason = place.point, None, f"still too slow after {_ATTEMPTS} attempts"
    best: tuple[Made, dict[str, Any]] | None = None
    for _ in range(_ATTEMPTS):
        try:
            made = METHODS[place.method](ground, target)
        except Unreached as unreached:
            fastest, reason = unreached.fastest, str(unreached)
            break
        ground.progress("timing beside the original", 0, 1)
        times = ground.times({"cut": made.network}, _SECONDS)
        share = share_of(times["cut"])
        attempts.append({"asked": target, "share": share})
        if share <= place.point * SLACK:
            if best is not None and (share <= best[1]["share"] or made.done == best[1]["done"]):
                break
            best = made, {"reached": True, "share": share, "latency": plain(times), "done": made.done}
            if share >= _NEAR * place.point:
                break
        elif best is not None:
            break
        target *= place.point / share
    if best is not None:
        return best[0], cell | best[1] | {"attempts": attempts}
    shares = [attempt["share"] for attempt in attempts] + ([fastest] if fastest is not None else [])
    return None, cell | {"why": reason, "fastest_share": min(shares, default=None), "attempts": attempts}


def judged(network: nn.Module, sets: Sets, place: Place) -> dict[str, Any]:
    """The network's quality on every test part, against the original; its answers are kept."""
    qualities = {}
    for name, data in sets.data.items():
        original, other = sets.original(name), predictions(network, data.test())
        Answers.of(original, other).keep(place.answers(name))
        qualities[name] = against_original(original, other)
    return qualities


def versus(shoal: Place, rival: Place, names: list[str]) -> dict[str, Any] | None:
    """The rival's network against Shoal's at the same point, image by image; None where there is no pair."""
    if rival == shoal or not (shoal.finished() or {}).get("reached"):
        return None
    return {name: against(Answers.kept(shoal.answers(name)), Answers.kept(rival.answers(name))) for name in names}


def plain(times: Mapping[str, Latency]) -> dict[str, Any]:
    """Latencies as plain data."""
    return {name: latency.model_dump(mode="json") for name, latency in times.items()}
