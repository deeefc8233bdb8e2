"""The sentences about a scan, shared by the page and the terminal; a name in backticks is code."""

from collections.abc import Sequence

from shoal.record import Ablation, ScannedBlock, ScannedLayer, ScanRecord, ScoreQuality, Verdict
from shoal.report import numbers, readings, scan_tables

SCORES = {
    "largest_response": "the largest value the block adds to the stream, max |F|",
    "mean_response": "the mean size of what the block adds, mean |F|",
    "relative_response": "how large what the block adds is beside the stream, |F| / |x|",
    "block_influence": "how far the block turns the stream, 1 − cosine of input and output",
    "linear_cka": "how alike input and output of the block are up to rotation and scale",
    "linear_map_r2": "how much of the block one linear map explains on samples it was not fitted to",
    "taylor": "the loss increase the gradient predicts for taking the block out",
}


def headline(record: ScanRecord) -> str:
    """How many blocks do nothing, in one plain sentence."""
    one = record.baseline
    where = f"on {numbers.count(one.n)} {one.split} sample{'' if one.n == 1 else 's'} of {record.data}"
    if record.blocks:
        return f"{_split(record.blocks, 'residual block')}; {where}"
    if record.layers:
        return f"No residual block found; {_split(record.layers, 'layer')}; {where}"
    return f"No residual block and no layer found; {where}"


def _split(items: Sequence[ScannedBlock | ScannedLayer], thing: str) -> str:
    found = readings.counts(items)
    plural = thing if len(items) == 1 else f"{thing}s"
    first = f"{found['trivial']} of {len(items)} {plural} {_are(found['trivial'])} trivial"
    rest = [f"{found[word]} {_are(found[word])} {word}" for word in ("non-trivial", "undecided") if found[word]]
    if found[None]:
        rest.append(f"{found[None]} could not be measured")
    return f"{first}; {', '.join(rest)}" if rest else first


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def importance(record: ScanRecord) -> list[str]:
    """Which block matters most and which least; nothing where no two were measured."""
    ranked = readings.ranked(record.blocks)
    if len(ranked) < 2:
        return []
    most, least = ranked[0], ranked[-1]
    top, low = readings.main(most), readings.main(least)
    if top is None or low is None:
        return []
    said = [f"`{most.path}` matters most: without it {_effect(top, record)}."]
    ties = [block for block in ranked if (one := readings.main(block)) and one.kl == low.kl]
    if len(ties) == len(ranked):
        return []
    others = f" and {len(ties) - 1} other{'' if len(ties) == 2 else 's'} matter" if len(ties) > 1 else " matters"
    without = "them, one at a time," if len(ties) > 1 else "it"
    same = low.kl == 0
    what = "no answer moves on these samples" if same else _effect(low, record)
    return [*said, f"`{ties[0].path}`{others} least: without {without} {what}."]


def _effect(one: Ablation, record: ScanRecord) -> str:
    kl = f"KL {numbers.significant(one.kl)} nats"
    if record.metric == "kl":
        return f"the answers move by {numbers.significant(one.kl)} nats (KL)"
    if record.metric == "top1" and one.top1_drop is not None:
        gained = one.top1_drop < 0
        write = numbers.points_interval if gained else numbers.lost_interval
        points, interval = numbers.lost(abs(one.top1_drop)), write(one.top1_drop_interval)
        known = "" if interval == numbers.MISSING else f"95 % interval {interval}; "
        return f"{points} points of top-1 are {'gained' if gained else 'lost'} ({known}{kl})"
    word = "rises" if one.loss_increase >= 0 else "falls"
    return f"the loss {word} by {numbers.significant(abs(one.loss_increase))} nats ({kl})"


def tolerance(record: ScanRecord) -> str:
    """What the verdicts mean, with the tolerance in it."""
    value = numbers.significant(readings.tolerance(record))
    what = f"{value} points of top-1" if record.metric == "top1" else f"{value} nats of the {_LOSS[record.metric]}"
    return (
        f"Trivial: the whole 95 % interval of the difference lies within the tolerance, {what} either way. "
        "Non-trivial: the interval excludes no difference, and its centre lies beyond the tolerance. "
        "Undecided: neither can be said with these samples."
    )


_LOSS = {"loss": "loss", "kl": "divergence from the whole network"}


def baseline(record: ScanRecord) -> str:
    """How good the whole network is."""
    one = record.baseline
    n = f"n = {numbers.count(one.n)}"
    parts = []
    if one.top1 is not None:
        interval = numbers.percent_interval(one.top1_interval)
        parts.append(f"top-1 {numbers.percent(one.top1)} (95 % interval {interval})")
    if one.loss is not None:
        parts.append(f"loss {numbers.significant(one.loss)} nats")
    return f"{', '.join(parts) or 'no labels, so no accuracy'}; {one.split}, {n}"


def claim(record: ScanRecord) -> str:
    """The sentence of the channel claim, closed by a full stop; empty where there is none."""
    if record.claim is None or not record.claim.sentence:
        return ""
    return f"{record.claim.sentence.rstrip('.')}."


def by_correlation(scores: Sequence[ScoreQuality]) -> list[ScoreQuality]:
    """The scores that order the blocks best first; those nothing is known of last."""
    return sorted(scores, key=lambda one: -one.correlation if _is_known(one) else 2.0)  # type: ignore[operator]


def _is_known(one: ScoreQuality) -> bool:
    return numbers.known(one.correlation)


def meaning(one: ScoreQuality) -> str:
    """What a correlation says, in words that its interval allows."""
    rho, interval = one.correlation, one.correlation_interval
    if rho is None or not numbers.known(rho):
        return "Cannot be said: too few blocks, or all alike."
    if interval is None or not all(map(numbers.known, interval)):
        return "There is no interval, so this may be chance."
    if interval[0] <= 0 <= interval[1]:
        return "Its interval holds 0: here it cannot be told from an order by chance."
    if rho < 0:
        return "Puts the blocks the wrong way round here."
    strength = next(text for least, text in _STRENGTHS if rho >= least)
    return f"{strength}."


_STRENGTHS = (
    (0.9, "Puts the blocks almost in the order of the true damage"),
    (0.7, "A good first guess at the order of the true damage"),
    (0.4, "A rough hint at the order of the true damage"),
    (0.0, "Better than chance, but no guide"),
)


def second(record: ScanRecord) -> str:
    """How the verdicts on the second data set compare; empty where there is none."""
    if record.also is None:
        return ""
    rows = scan_tables.parted(record)
    here, there = scan_tables.data_names(record)
    if not rows:
        return f"Every ablation has the same verdict on {here} and on {there}."
    idle = sum(a.verdict == "trivial" and b.verdict == "non-trivial" for _, _, a, b in rows)
    wakes = sum(a.verdict == "non-trivial" and b.verdict == "trivial" for _, _, a, b in rows)
    verb = "ablation has" if len(rows) == 1 else "ablations have"
    parts = [f"{len(rows)} {verb} another verdict on {there} than on {here}"]
    if idle:
        parts.append(f"{idle} {_are(idle)} trivial on {here} and non-trivial on {there}")
    if wakes:
        parts.append(f"{wakes} the other way round")
    return f"{'; '.join(parts)}."


def tally(found: dict[Verdict, int]) -> str:
    """Counts by verdict: `6 non-trivial, 0 undecided, 0 trivial`."""
    return ", ".join(f"{numbers.count(found.get(word, 0))} {word}" for word in readings.VERDICTS)


def methods(record: ScanRecord) -> list[tuple[str, str]]:
    """How every kind of figure was computed, of those that are there."""
    return [*_top1(record), *_ablations(record), *_differences(record), *_scores(record)]


def _top1(record: ScanRecord) -> list[tuple[str, str]]:
    if record.metric != "top1":
        return []
    return [
        ("Top-1", "share of right answers, with Wilson's 95 % score interval"),
        ("Top-1 lost", "paired, sample by sample, with Tango's 95 % score interval for paired proportions"),
    ]


def _ablations(record: ScanRecord) -> list[tuple[str, str]]:
    names = [name for block in record.blocks for name in block.ablations]
    names += [name for layer in record.layers for name in layer.ablations]
    used = {name.partition(":")[0] for name in names}
    return [(name, how) for name, how in _ABLATIONS.items() if name in used]


_ABLATIONS = {
    "block": "the block taken out: what it adds is zero, the shortcut and the activation after it stay",
    "branch": "what the block adds is zero, all else stays; the same as taking it out, where it can be taken out",
    "mean": "what the branch adds is set to its mean over the samples",
    "unit": "one of several additions of a block taken out alone",
    "kernel": "the weights of one layer set to zero, a bias left as it is",
}


def _differences(record: ScanRecord) -> list[tuple[str, str]]:
    m = numbers.count(record.comparisons)
    name = readings.MEASURES["kl" if record.metric == "kl" else "loss"].name
    return [
        (name, "paired, sample by sample, in nats, with a 95 % t interval over samples"),
        ("KL", "mean KL(whole network ‖ with the ablation) in nats"),
        ("Changed", "share of samples whose answer is another one"),
        ("Family-wise", f"the verdict with Bonferroni's correction, so that all {m} comparisons hold together at 95 %"),
    ]


def _scores(record: ScanRecord) -> list[tuple[str, str]]:
    if not record.scores:
        return []
    return [("Correlation", "Spearman's rank correlation with a 95 % interval by Fisher's z (Bonett and Wright)")]
