"""Which removals can still be the least damaging one, told from what each did before the last removal.

After one more removal the damages of all candidates have grown, by amounts that differ little from each other. So
those of the least damage before are measured first, and a candidate is left out only where even the lower end of the
interval that its growth is predicted to lie in leaves it above the best one measured.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from shoal.scanning import RemovalDamage

# Of the one-sided prediction interval of a growth.
CONFIDENCE = 0.99
# Candidates measured before any is left out, and growths among them that an interval is computed from.
_FIRST_WAVE, _LEAST_GROWTHS = 6, 4
_NEXT_WAVE = 4

Measure = Callable[[Sequence[str]], Sequence[RemovalDamage]]


@dataclass
class RemovalScreen:
    """What is known of each candidate from the step before; without it everything is measured.

    Args:
        measured: the damage of those that were measured in it.
        bounds: of those that were left out, what their damage is at least.
    """

    measured: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, damages: Iterable[RemovalDamage]) -> "RemovalScreen":
        """After a step in which all of these were measured."""
        return cls({damage.path: damage.damage for damage in damages})

    @classmethod
    def read(cls, plain: Mapping[str, Mapping[str, float]] | None) -> "RemovalScreen":
        """As `dataclasses.asdict` wrote it; an empty one where nothing was written."""
        return cls(dict(plain["measured"]), dict(plain["bounds"])) if plain else cls()

    def measure(self, names: Sequence[str], measure: Measure) -> list[RemovalDamage]:
        """Measure the candidates that may be the least damaging, the others are bounded; in the order of `names`."""
        damages: dict[str, RemovalDamage] = {}
        pending = sorted(names, key=self._before)
        shift, best, size = -math.inf, math.inf, _FIRST_WAVE
        while pending:
            hopeful = [name for name in pending if self._before(name) + shift <= best]
            # What was never measured cannot be bounded.
            unknown = sum(self._before(name) == -math.inf for name in hopeful)
            wave = hopeful[: max(size, unknown)]
            if not wave:
                break
            damages |= {damage.path: damage for damage in measure(wave)}
            pending = [name for name in pending if name not in damages]
            best = min(damage.damage for damage in damages.values())
            shift, size = self._least_growth(damages), _NEXT_WAVE
        self.bounds = {name: self._before(name) + shift for name in pending}
        self.measured = {name: damage.damage for name, damage in damages.items()}
        return [damages[name] for name in names if name in damages]

    def _before(self, name: str) -> float:
        return self.measured.get(name, self.bounds.get(name, -math.inf))

    def _least_growth(self, damages: dict[str, RemovalDamage]) -> float:
        """What a damage grows by at least, by those measured now and in the step before; -inf where too few were."""
        growths = [damage.damage - self.measured[name] for name, damage in damages.items() if name in self.measured]
        if len(growths) < _LEAST_GROWTHS:
            return -math.inf
        count, spread = len(growths), float(np.std(growths, ddof=1))
        quantile = float(stats.t.ppf(CONFIDENCE, count - 1))
        return float(np.mean(growths)) - quantile * spread * math.sqrt(1 + 1 / count)
