"""What two changes close together do beyond the sum of both, measured on pairs that good plans hold.

A refit behind the first change reaches the second, and what the first did to the stream the second meets: there a sum
of damages is furthest off. All pairs are too many to measure, so a sample is taken from plans that come out near the
best: those of the front, and of fronts of damages that are randomly off by about as much as a guess is.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from shoal.errors import PlanError
from shoal.pipeline.candidate_damage import DamageMeter
from shoal.plan import Edge, PairTerm, front

# Changes with at most this many segments between them are close together.
_NEAR = 2
# Pairs measured for each candidate change, and at most.
_SHARE, _MOST = 0.25, 64
# Fronts of randomly changed damages, points of each, and by what factor (its logarithm's standard deviation).
_FRONTS, _POINTS, _SPREAD = 4, 10, 0.5
# A chain of more segments than these has the plain front alone: each takes its time.
_LONG = 128


def measured_pairs(edges: Sequence[Edge], changes: Mapping[int, str], meter: DamageMeter) -> list[PairTerm]:
    """The corrections for a sample of pairs; none where nothing can be refitted.

    Args:
        edges: of the table, with their damages after a refit.
        changes: their names, by edge.
        meter: measures both changes of a pair at once, with the refit of single changes.
    """
    refit = meter.scorer.refit
    if refit is None or not refit.applies:
        return []
    count = min(_MOST, math.ceil(_SHARE * len(changes)))
    pairs = {
        f"{changes[first]} + {changes[second]}": (first, second)
        for first, second in likely_pairs(edges, len(refit.segments.segments), count)
    }
    combinations = {name: [changes[first], changes[second]] for name, (first, second) in pairs.items()}
    terms = []
    for name, samples in meter.refitted(combinations).items():
        first, second = pairs[name]
        alone = edges[first].damage, edges[second].damage
        # Two changes are taken to be no better than the worse of both.
        terms.append(PairTerm(first=first, second=second, damage=max(float(samples.mean()) - sum(alone), -min(alone))))
    return terms


def likely_pairs(edges: Sequence[Edge], length: int, count: int) -> list[tuple[int, int]]:
    """Pairs of changes close together that most often stand in plans near the best, most frequent first.

    Args:
        edges: of the table.
        length: of the chain.
        count: at most so many.
    """
    frequency: Counter[tuple[int, int]] = Counter()
    generator = random.Random(0)
    for number in range(_FRONTS if length <= _LONG else 1):
        table = [_randomly_off(edge, generator) for edge in edges] if number else edges
        try:
            paths = front(table, length, points=_POINTS)
        except PlanError:  # without latencies there is no front
            return []
        for path in paths:
            changes = [index for index in path.edges if edges[index].action != "keep"]
            frequency.update(
                (first, second)
                for first, second in pairwise(changes)
                if edges[second].start - edges[first].stop <= _NEAR
            )
    return [pair for pair, _ in frequency.most_common(count)]


def _randomly_off(edge: Edge, generator: random.Random) -> Edge:
    return edge.model_copy(update={"damage": edge.damage * math.exp(generator.gauss(0.0, _SPREAD))})
