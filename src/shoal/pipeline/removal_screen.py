"""Which removals can still be the least damaging one, told from what each did before the last removal.

After one more removal the damages of all candidates have grown, by amounts that differ little from each other. So
those of the least damage before are measured first, and a candidate is left out only where even the lower end of the
interval that its growth is predicted to lie in leaves it above the best one measured.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import scipy

from shoal.scanning import RemovalDamage

# Of the one-sided prediction interval of a growth.
CONFIDENCE = 0.99
# Candidates measured before any is left out, and growths among them that an interval is computed from.
_FIRST_WAVE, _LEAST_GROWTHS = 6, 4
_NEXT_WAVE = 4

Measure = Callable[[Sequence[str]], Sequence[RemovalDamage]]


@dataclass
class RemovalScreen:
    """What is known of each candidate from the steps before; without it everything is measured.

    Args:
        measured: the damage of those that were measured in the last step.
        expected: of those that were left out, the damage that they are expected to have.
        variance: of that expectation.
    """

    measured: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    variance: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, damages: Iterable[RemovalDamage]) -> "RemovalScreen":
        """After a step in which all of these were measured."""
        return cls({damage.path: damage.damage for damage in damages})

    @classmethod
    def read(cls, plain: Mapping[str, Mapping[str, float]] | None) -> "RemovalScreen":
        """As `dataclasses.asdict` wrote it; an empty one where nothing was written."""
        names = [field_.name for field_ in fields(cls)]
        return cls(*(dict(plain[name]) for name in names)) if plain and plain.keys() >= set(names) else cls()

    def measure(self, names: Sequence[str], measure: Measure) -> list[RemovalDamage]:
        """Measure the candidates that may be the least damaging, the others are bounded; in the order of `names`."""
        damages: dict[str, RemovalDamage] = {}
        pending = sorted(names, key=lambda name: self._known().get(name, -math.inf))
        growth, best, size = _UNKNOWN, math.inf, _FIRST_WAVE
        while pending:
            hopeful = [name for name in pending if self._least(name, growth) <= best]
            # What was never measured cannot be bounded.
            unknown = sum(name not in self._known() for name in hopeful)
            wave = hopeful[: max(size, unknown)]
            if not wave:
                break
            damages |= {damage.path: damage for damage in measure(wave)}
            pending = [name for name in pending if name not in damages]
            best = min(damage.damage for damage in damages.values())
            growth, size = self._growth(damages), _NEXT_WAVE
        known = self._known()
        self.expected = {name: known[name] + growth.mean for name in pending}
        self.variance = {name: self.variance.get(name, 0.0) + growth.variance for name in pending}
        self.measured = {name: damage.damage for name, damage in damages.items()}
        return [damages[name] for name in names if name in damages]

    def _known(self) -> dict[str, float]:
        return {**self.expected, **self.measured}

    def _least(self, name: str, growth: "_Growth") -> float:
        """The lower end of the interval that the damage of a candidate is predicted to lie in."""
        known = self._known().get(name)
        if known is None or growth.quantile == math.inf:
            return -math.inf
        return known + growth.mean - growth.quantile * math.sqrt(self.variance.get(name, 0.0) + growth.variance)

    def _growth(self, damages: Mapping[str, RemovalDamage]) -> "_Growth":
        """What a damage grows by, told from those that were measured now and in the step before."""
        growths = [damage.damage - self.measured[name] for name, damage in damages.items() if name in self.measured]
        if len(growths) < _LEAST_GROWTHS:
            return _UNKNOWN
        count = len(growths)
        quantile = float(scipy.stats.t.ppf(CONFIDENCE, count - 1))
        return _Growth(float(np.mean(growths)), float(np.var(growths, ddof=1)) * (1 + 1 / count), quantile)


@dataclass(frozen=True)
class _Growth:
    """The mean growth of a damage, the variance of a single one about it, and how many deviations are allowed for."""

    mean: float
    variance: float
    quantile: float


_UNKNOWN = _Growth(0.0, 0.0, math.inf)
