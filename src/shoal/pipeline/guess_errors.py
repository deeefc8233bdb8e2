"""How far the damages that tables promise are from those of the plans that were built and refitted."""

import math
import statistics
from collections.abc import Sequence

import scipy

from shoal.pipeline.candidate_table import CandidateTable
from shoal.pipeline.plan_measure import MeasuredPlan
from shoal.record import GuessError, GuessErrors

# Ranks of fewer plans say nothing.
_MIN_RANKED = 4
_LEAST = 1e-9


def guess_errors(tables: CandidateTable, plans: Sequence[MeasuredPlan]) -> GuessErrors | None:
    """The errors over the plans whose damage after a refit is known and not nothing; None where there is none."""
    refitted = [plan for plan in plans if _LEAST < plan.refit_damage < math.inf]
    if not refitted:
        return None
    damages = [plan.refit_damage for plan in refitted]
    guesses = [tables.guess(plan.path.edges) for plan in refitted]
    errors = {name: _error([getattr(guess, name) for guess in guesses], damages) for name in _GUESSES}
    return GuessErrors(n=len(refitted), **errors)


_GUESSES = ("raw", "refitted", "corrected")


def _error(guesses: Sequence[float], damages: Sequence[float]) -> GuessError:
    logs = [abs(math.log(max(guess, _LEAST) / damage)) for guess, damage in zip(guesses, damages, strict=True)]
    ranked = len(damages) >= _MIN_RANKED and len(set(guesses)) > 1 and len(set(damages)) > 1
    spearman = float(scipy.stats.spearmanr(guesses, damages).statistic) if ranked else None
    return GuessError(median_log_ratio=statistics.median(logs), spearman=spearman)
