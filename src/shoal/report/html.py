"""The page of a compression."""

from shoal.record import Record
from shoal.report import fates, page, plot, tables, words
from shoal.report.fate_table import fate_table
from shoal.report.figures import figures
from shoal.report.page import Part
from shoal.report.plan_part import plan_part
from shoal.report.recovery_part import recovery_part

# A wide drawing for a desk and for paper, a narrow one for a phone; the style sheet shows one of them.
_CHAIN_WIDTHS = {"wide": 1000.0, "narrow": 340.0}
_PLOT_WIDTHS = {"wide": 480.0, "narrow": 340.0}
_STATISTICS = (
    ("Top-1", "share of right answers, with Wilson's 95 % score interval"),
    (
        "Change in top-1",
        "paired, sample by sample, with Tango's 95 % score interval; McNemar's exact test on the samples that changed "
        "sides",
    ),
    (
        "Perplexity",
        "e to the power of the mean cross-entropy of a token; its 95 % interval takes the sequences as independent, "
        "and the ratio is paired by sequence",
    ),
    ("Divergence", "mean KL(original ‖ compressed) in nats, with a 95 % t interval over samples"),
    (
        "Latency",
        "median and quartiles of one forward; “no difference beyond noise” where the quartiles overlap",
    ),
    (
        "Damage",
        "mean KL(original ‖ network) in nats, on calibration samples held back from fitting; on the front the sum "
        "over the changes of the plan, each made alone",
    ),
    ("MACs", "multiply-adds for one sample; FLOPs are twice that"),
)


def render(record: Record) -> str:
    """The whole page for one record, as text to be written in UTF-8."""
    splits = tables.comparisons(record)
    return page.write(
        record,
        verb="compressed",
        headline=words.headline(record),
        lead=[record.message] if record.reached and record.message else [],
        parts=_parts(record),
        splits=[(one.split, one.n) for one in splits],
        statistics=_statistics(record),
        goal=words.goal(record.goal),
        figures=figures(record),
        rows=tables.before_after(record),
        compared=splits,
        paired=tables.paired(record),
        verdict=words.VERDICTS[record.certificate.verdict],
        evidence=words.evidence(record.certificate),
        plan=plan_part(record),
        recovery=recovery_part(record.recovery),
        chains={size: fates.chain(record.blocks, w, f"chain-{size}") for size, w in _CHAIN_WIDTHS.items()},
        legend=fates.legend(),
        blocks_table=fate_table(record.blocks),
        plots={size: _plots(record, size) for size in _PLOT_WIDTHS},
    )


def _statistics(record: Record) -> list[tuple[str, str]]:
    """What was measured and how; accuracy, or perplexity where the network answers token by token."""
    tokens = record.original.quality.tokens is not None
    unsaid = {"Top-1", "Change in top-1"} if tokens else {"Perplexity"}
    unsaid |= set() if record.planning else {"Damage"}
    return [one for one in _STATISTICS if one[0] not in unsaid]


def _parts(record: Record) -> list[Part]:
    found = [
        Part("notices.html.j2"),
        Part("figures.html.j2"),
        Part("compared.html.j2", "compared", "Before and after"),
        Part("certificate.html.j2", "certificate", "Certificate"),
    ]
    if record.planning:
        found.append(Part("plan.html.j2", "plan", "The plan"))
    if record.recovery:
        found.append(Part("recovery.html.j2", "recovery", "What recovery won back"))
    if record.blocks:
        found.append(Part("chain.html.j2", "chain", "The chain"))
    if record.steps:
        found.append(Part("steps.html.j2", "steps", "Step by step"))
    if record.blocks:
        found.append(Part("blocks.html.j2", "blocks", "All blocks"))
    return [
        *found,
        Part("asked.html.j2", "asked", "Asked and done"),
        Part("load.html.j2", "load", "How to load it"),
        Part("measured.html.j2", "measured", "How it was measured"),
    ]


def _stays(step: str, record: Record) -> bool:
    """Whether what a step removed is gone in the end: a unit may have gone with its whole block."""
    return step in record.removed_units or step.partition("#")[0].removesuffix("+norms") in record.removed


def _plots(record: Record, size: str) -> list[str]:
    width = _PLOT_WIDTHS[size]
    asked = record.goal.get("max_drop")
    kept = [step.removed for step in record.steps if _stays(step.removed, record)]
    limit = float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) else None
    drawn = [
        plot.plot(
            plot.divergences(record.steps, kept),
            "Divergence from the original",
            "nats",
            width,
            f"kl-{size}",
        ),
        plot.plot(
            plot.drops(record.steps, kept),
            "Drop on validation",
            "points lost",
            width,
            f"drop-{size}",
            limit=limit,
        ),
    ]
    return [one for one in drawn if one]
