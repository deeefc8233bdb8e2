"""A race of plans as the record holds it: contenders, their ranks after each rung, and how well ranks foretell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import scipy

from shoal.pipeline.learning_curve import extrapolated
from shoal.pipeline.plan_measure import MeasuredPlan
from shoal.plan import Remove, Replace
from shoal.record import PlanRace, RaceContender
from shoal.recover import TrainingBudget
from shoal.recover.rungs import RungResult


@dataclass
class Track:
    """One contender and what it came to at each rung; `steps` are those of the whole recovery."""

    plan: MeasuredPlan
    steps: int
    results: list[RungResult] = field(default_factory=list)
    failure: str = ""

    @property
    def divergences(self) -> list[float]:
        """After each rung; infinite where it diverged."""
        return [result.divergence for result in self.results]

    @property
    def expected(self) -> list[float]:
        """The divergence at the end of the recovery, as the learning curve foretells it after each rung."""
        looks = [(result.steps, result.divergence) for result in self.results]
        return [extrapolated(looks[: index + 1], self.steps) for index in range(len(looks))]

    @property
    def is_out(self) -> bool:
        """Whether it diverged or could not be distilled."""
        return bool(self.failure) or not all(map(math.isfinite, self.divergences))

    @property
    def order(self) -> tuple[int, float, float]:
        """Sorts contenders, the best first: who came further, then who is expected nearer to the original."""
        finite = [divergence for divergence in self.expected if math.isfinite(divergence)]
        return -len(finite), finite[-1] if finite else math.inf, self.plan.least_damage


def race_of(
    contenders: list[RaceContender], tracks: Sequence[Track], rungs: list[int], budget: TrainingBudget
) -> PlanRace:
    """The whole race, for a recovery within a budget."""
    final = [contender.final_rank for contender in contenders]
    first = _ranks([track.expected[:2][-1] if track.results else math.inf for track in tracks])
    results = [track.results[-1] for track in tracks if track.results]
    steps, seconds = sum(result.steps for result in results), seconds_of(tracks)
    return PlanRace(
        contenders=contenders,
        rungs=rungs,
        rate=results[0].rate if results else 0.0,
        n=results[0].n if results else 0,
        tau=_tau(first, final) if len(rungs) > 2 else None,  # before the third all ranks are those of the first two
        tau_damage=_tau(_ranks([track.plan.least_damage for track in tracks]), final),
        steps=steps,
        seconds=seconds,
        budget=str(budget),
        share=budget.spent(steps, seconds),
    )


def seconds_of(tracks: Sequence[Track]) -> float:
    """What contenders took, over all rungs and interruptions."""
    return math.fsum(result.seconds for track in tracks for result in track.results)


def _ranks(values: Sequence[float]) -> list[int]:
    """From 0, the least first; of equal ones the first."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    return [order.index(index) for index in range(len(values))]


def _tau(first: Sequence[int], second: Sequence[int]) -> float | None:
    """Kendall's correlation of two rankings; None where there is none."""
    tau = float(scipy.stats.kendalltau(first, second).statistic)
    return tau if math.isfinite(tau) else None


def contender_of(
    track: Track, tracks: Sequence[Track], plan: int, actions: Sequence[Remove | Replace]
) -> RaceContender:
    """As the record holds it; `plan` is its number, `actions` what it does."""
    results, spans = track.results, [action for action in actions if isinstance(action, Replace)]
    final = sorted(tracks, key=lambda track: track.order).index(track)
    lost = "failed" if track.failure else "diverged" if track.is_out else "eliminated"
    return RaceContender(
        plan=plan,
        origin=track.plan.origin,
        removed=sum(isinstance(action, Remove) for action in actions),
        replaced=sum(len(span.paths) for span in spans),
        stand_ins=len(spans),
        latency_ratio=track.plan.latency_ratio,
        damage=track.plan.least_damage,
        divergence_before=results[0].divergence_before if results else None,
        divergences=[divergence if math.isfinite(divergence) else None for divergence in track.divergences],
        expected=[divergence if math.isfinite(divergence) else None for divergence in track.expected],
        ranks=[1 + _better(track, tracks, index) for index in range(len(results))],
        final_rank=1 + final,
        steps=results[-1].steps if results else 0,
        seconds=seconds_of([track]),
        outcome=lost if final else "won",  # type: ignore[arg-type]
        note=track.failure,
    )


def _better(track: Track, tracks: Sequence[Track], rung: int) -> int:
    """How many contenders were expected nearer to the original at a rung."""
    there = (other.expected[rung] for other in tracks if len(other.results) > rung)
    return sum(divergence < track.expected[rung] for divergence in there)
