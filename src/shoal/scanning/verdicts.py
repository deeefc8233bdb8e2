"""Verdicts on ablations, from intervals of paired differences."""

import scipy

from shoal.measure import Accumulator
from shoal.record import Ablation, ChannelChangeHypothesis, Interval, ScannedLayer, Verdict

_CONFIDENCE = 0.95


def verdict_of(interval: Interval, centre: float, tolerance: float) -> Verdict:
    """The verdict on a difference and its interval.

    *trivial* if the whole interval lies within the tolerance, *non-trivial* if it excludes zero and its centre lies
    beyond the tolerance, else *undecided*.

    Args:
        interval: of a paired difference.
        centre: the difference itself.
        tolerance: in the same unit, both sides of zero.
    """
    low, high = interval
    if -tolerance <= low and high <= tolerance:
        return "trivial"
    if (low > 0 or high < 0) and abs(centre) > tolerance:
        return "non-trivial"
    return "undecided"


def ablation_of(sums: Accumulator, *, tolerance: float, comparisons: int, counted: bool = True) -> Ablation:
    """The figures of one ablation, with its verdict alone and its verdict among all comparisons of the scan.

    Args:
        sums: paired sums over the samples.
        tolerance: a fraction of top-1, or nats of the loss where there is no top-1.
        comparisons: how many ablations the scan makes; `familywise` uses intervals of 1 - 0.05 / comparisons.
        counted: whether there are answers, so that it could be counted how many changed.
    """
    strict = 1 - (1 - _CONFIDENCE) / max(comparisons, 1)
    increase = sums.increase / sums.n
    drop, interval = sums.top1_drop, sums.drop_interval()
    if drop is not None and interval is not None:
        wide = sums.drop_interval(strict) or interval
        verdict, familywise = verdict_of(interval, drop, tolerance), verdict_of(wide, drop, tolerance)
    else:
        verdict = verdict_of(sums.increase_interval(), increase, tolerance)
        familywise = verdict_of(sums.increase_interval(strict), increase, tolerance)
    return Ablation(
        n=sums.n,
        loss=sums.loss / sums.n if sums.labelled == sums.n else sums.kl / sums.n,
        top1=sums.top1,
        kl=sums.kl / sums.n,
        changed=sums.changed / sums.n if counted else None,
        top1_drop=drop,
        top1_drop_interval=interval,
        loss_increase=increase,
        loss_increase_interval=sums.increase_interval(),
        verdict=verdict,
        familywise=familywise,
    )


def channel_change_hypothesis(layers: list[ScannedLayer]) -> ChannelChangeHypothesis | None:
    """Whether the layers that matter concentrate where the number of channels changes, as arXiv:2009.09938 claims."""
    if not layers:
        return None
    changing = _counts([layer for layer in layers if layer.changes_channels])
    unchanged = _counts([layer for layer in layers if not layer.changes_channels])
    table = [[counts["non-trivial"], sum(counts.values()) - counts["non-trivial"]] for counts in (changing, unchanged)]
    p_value = None
    if all(sum(row) for row in table):
        p_value = float(scipy.stats.fisher_exact(table)[1])
    return ChannelChangeHypothesis(
        changing=changing, others=unchanged, p_value=p_value, sentence=_sentence(table, p_value)
    )


def _counts(layers: list[ScannedLayer]) -> dict[Verdict, int]:
    counts: dict[Verdict, int] = {"trivial": 0, "undecided": 0, "non-trivial": 0}
    for layer in layers:
        for ablation in layer.ablations.values():
            counts[ablation.verdict] += 1
    return counts


def _sentence(table: list[list[int]], p_value: float | None) -> str:
    (matter, idle), (other_matter, other_idle) = table
    shares = (
        f"{matter} of the {matter + idle} layers that change the number of channels are non-trivial, "
        f"and {other_matter} of the {other_matter + other_idle} others"
    )
    if p_value is None:
        return f"{shares}: one group is empty, so nothing can be compared"
    more = matter * (other_matter + other_idle) > other_matter * (matter + idle)
    if p_value < 0.05:
        held = "the claim of arXiv:2009.09938 holds here" if more else "the opposite of what arXiv:2009.09938 claims"
        return f"{shares}: {held} (Fisher's exact test, p = {p_value:.2g})"
    return f"{shares}: no difference that these figures can show (Fisher's exact test, p = {p_value:.2g})"
