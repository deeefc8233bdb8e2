"""The sentences about a scan that the page and the terminal share; a name in backticks is code."""

from collections.abc import Sequence

from shoal.record import Ablation, ScannedBlock, ScannedLayer, ScanRecord, ScoreQuality, Verdict
from shoal.report import numbers, scan_metrics, scan_tables
from shoal.report.text import plural

SCORES = {
    "largest_response": "the largest value the block adds to the stream, max |F|",
    "mean_response": "the mean magnitude of what the block adds, mean |F|",
    "relative_response": "the magnitude of what the block adds relative to the stream, |F| / |x|",
    "block_influence": "how far the block turns the stream, 1 − cosine of input and output",
    "linear_cka": "the similarity of the block's input and output up to rotation and scale",
    "linear_map_r2": "how much of the block a linear map explains on held-out samples",
    "taylor": "the loss increase that the gradient predicts for removing the block",
}
_STRENGTHS = (
    (0.9, "Ranks the blocks almost as the true damage does"),
    (0.7, "A good first estimate of the ranking by true damage"),
    (0.4, "A rough indication of the ranking by true damage"),
    (0.0, "Better than chance, but not a guide"),
)
_LOSS = {
    "loss": "nats of the loss",
    "kl": "nats of the divergence from the full network",
    "mse": "of the variance of the full network's output",
    "damage": "of the damage to the outputs",
}
_ABLATIONS = {
    "block": "the block is removed: its branch adds zero, the shortcut and the activation after the addition stay",
    "branch": "the branch adds zero and everything else stays; the same as removing the block, where it is removable",
    "mean": "the branch adds its mean over the samples",
    "unit": "one of several additions of a block is removed alone",
    "kernel": "the weights of one layer are zeroed, its bias stays",
}


def headline(record: ScanRecord) -> str:
    """How many blocks are trivial, in one plain sentence."""
    where = f"on {plural(record.baseline.n, f'{record.baseline.split} sample')} of {record.data}"
    if record.blocks:
        return f"{_verdicts_of(record.blocks, 'residual block')}; {where}"
    if record.layers:
        return f"No residual block detected; {_verdicts_of(record.layers, 'layer')}; {where}"
    return f"No residual block and no layer detected; {where}"


def _verdicts_of(items: Sequence[ScannedBlock | ScannedLayer], noun: str) -> str:
    totals = scan_metrics.counts(items)
    trivial = totals["trivial"]
    first = f"{trivial} of {plural(len(items), noun)} {_are(trivial)} trivial"
    others: tuple[Verdict, ...] = ("non-trivial", "undecided")
    rest = [f"{totals[verdict]} {_are(totals[verdict])} {verdict}" for verdict in others if totals[verdict]]
    if totals[None]:
        rest.append(f"{totals[None]} could not be measured")
    return f"{first}; {', '.join(rest)}" if rest else first


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def importance(record: ScanRecord) -> list[str]:
    """Which block matters most and which least; nothing unless two measured blocks differ."""
    ranked = scan_metrics.ranked(record.blocks)
    if len(ranked) < 2:
        return []
    top, low = scan_metrics.main(ranked[0]), scan_metrics.main(ranked[-1])
    if top is None or low is None:
        return []
    ties = [block for block in ranked if (ablation := scan_metrics.main(block)) and ablation.kl == low.kl]
    if len(ties) == len(ranked):
        return []
    others = f" and {plural(len(ties) - 1, 'other')} matter" if len(ties) > 1 else " matters"
    without = "them, one at a time," if len(ties) > 1 else "it"
    effect = "the answers stay the same on these samples" if low.kl == 0 else _effect(low, record)
    return [
        f"`{ranked[0].path}` matters most: without it {_effect(top, record)}.",
        f"`{ties[0].path}`{others} least: without {without} {effect}.",
    ]


def _effect(ablation: Ablation, record: ScanRecord) -> str:
    kl = f"KL {numbers.significant(ablation.kl)} nats"
    if record.metric in ("mse", "damage"):
        return f"the outputs move by {numbers.significant(ablation.kl)} {scan_metrics.MEASURES[record.metric].unit}"
    if record.metric == "kl":
        return f"the answers diverge by {numbers.significant(ablation.kl)} nats (KL)"
    if record.metric == "top1" and ablation.top1_drop is not None:
        gained = ablation.top1_drop < 0
        write = numbers.points_interval if gained else numbers.lost_interval
        points, interval = numbers.lost(abs(ablation.top1_drop)), write(ablation.top1_drop_interval)
        known = "" if interval == numbers.MISSING else f"95 % interval {interval}; "
        return f"{points} points of top-1 are {'gained' if gained else 'lost'} ({known}{kl})"
    verb = "rises" if ablation.loss_increase >= 0 else "falls"
    return f"the loss {verb} by {numbers.significant(abs(ablation.loss_increase))} nats ({kl})"


def margin(record: ScanRecord) -> str:
    """What the verdicts mean, with the equivalence margin."""
    value = numbers.significant(scan_metrics.margin(record))
    amount = f"{value} points of top-1" if record.metric == "top1" else f"{value} {_LOSS[record.metric]}"
    return (
        f"Equivalence margin: ±{amount}. Trivial: the whole 95 % interval of the difference lies within the margin. "
        "Non-trivial: the interval excludes zero, and its centre lies outside the margin. "
        "Undecided: these samples do not support either verdict."
    )


def baseline(record: ScanRecord) -> str:
    """The quality of the full network."""
    quality = record.baseline
    parts = []
    if quality.top1 is not None:
        interval = numbers.percent_interval(quality.top1_interval)
        parts.append(f"top-1 {numbers.percent(quality.top1)} (95 % interval {interval})")
    if quality.loss is not None:
        parts.append(f"loss {numbers.significant(quality.loss)} nats")
    return f"{', '.join(parts) or 'no labels, so no accuracy'}; {quality.split}, n = {numbers.count(quality.n)}"


def channel_hypothesis(record: ScanRecord) -> str:
    """The result of the test about layers that change the number of channels, with a full stop; empty without one."""
    if record.claim is None or not record.claim.sentence:
        return ""
    return f"{record.claim.sentence.rstrip('.')}."


def by_correlation(scores: Sequence[ScoreQuality]) -> list[ScoreQuality]:
    """The scores, best ranking of the blocks first; those of unknown correlation last."""
    return sorted(scores, key=lambda score: -_correlation(score, unknown=-2.0))


def _correlation(score: ScoreQuality, unknown: float) -> float:
    rho = score.correlation
    return rho if rho is not None and numbers.known(rho) else unknown


def meaning(score: ScoreQuality) -> str:
    """What a correlation means, as far as its interval supports it."""
    interval = score.correlation_interval
    if not numbers.known(score.correlation):
        return "Not known: too few blocks, or all alike."
    if interval is None or not all(map(numbers.known, interval)):
        return "There is no interval, so this may be chance."
    if interval[0] <= 0 <= interval[1]:
        return "Its interval includes 0: here it is indistinguishable from a random order."
    rho = _correlation(score, unknown=0.0)
    if rho < 0:
        return "Ranks the blocks in reverse here."
    return f"{next(text for least, text in _STRENGTHS if rho >= least)}."


def second(record: ScanRecord) -> str:
    """How the verdicts on the second data set compare; empty without one."""
    if record.also is None:
        return ""
    rows = scan_tables.differing(record)
    first, other = scan_tables.data_names(record)
    if not rows:
        return f"Every ablation has the same verdict on {first} and on {other}."
    only_other = sum(a.verdict == "trivial" and b.verdict == "non-trivial" for _, _, a, b in rows)
    only_first = sum(a.verdict == "non-trivial" and b.verdict == "trivial" for _, _, a, b in rows)
    has = "has" if len(rows) == 1 else "have"
    clauses = [f"{plural(len(rows), 'ablation')} {has} another verdict on {other} than on {first}"]
    if only_other:
        clauses.append(f"{only_other} {_are(only_other)} trivial on {first} and non-trivial on {other}")
    if only_first:
        clauses.append(f"{only_first} the other way round")
    return f"{'; '.join(clauses)}."


def tally(counts: dict[Verdict | None, int]) -> str:
    """Counts by verdict: `6 non-trivial, 0 undecided, 0 trivial`."""
    return ", ".join(f"{numbers.count(counts.get(verdict, 0))} {verdict}" for verdict in scan_metrics.VERDICTS)


def _unit(record: ScanRecord) -> str:
    if record.metric in ("mse", "damage"):
        return record.outputs.damage if record.outputs else scan_metrics.MEASURES[record.metric].unit
    return "in nats"


_BY_CLASSES = (
    ("KL", "mean KL(full network ‖ with the ablation) in nats"),
    ("Changed", "share of samples whose answer changes"),
)


def methods(record: ScanRecord) -> list[tuple[str, str]]:
    """How every figure of this record was computed."""
    names = [name for block in record.blocks for name in block.ablations]
    names += [name for layer in record.layers for name in layer.ablations]
    used = {name.partition(":")[0] for name in names}
    count = numbers.count(record.comparisons)
    return [
        *(_TOP1 if record.metric == "top1" else ()),
        *((name, how) for name, how in _ABLATIONS.items() if name in used),
        (
            scan_metrics.MEASURES[record.metric if record.metric in scan_metrics.ALONE else "loss"].name,
            f"paired by sample, {_unit(record)}, with a 95 % t interval over samples",
        ),
        *(_BY_CLASSES if record.metric not in ("mse", "damage") else ()),
        ("Family-wise", f"the verdict with Bonferroni's correction: all {count} comparisons hold jointly at 95 %"),
        *(_CORRELATION if record.scores else ()),
    ]


_TOP1 = (
    ("Top-1", "share of correct answers, with Wilson's 95 % score interval"),
    ("Top-1 lost", "paired by sample, with Tango's 95 % score interval for paired proportions"),
)
_CORRELATION = (("Correlation", "Spearman's rank correlation with a 95 % interval by Fisher's z (Bonett and Wright)"),)
