"""The part of a page about recovery: what it won back, how it went, and the curve."""

from dataclasses import dataclass

from shoal.record import Recovery
from shoal.report import numbers, recovery_plot
from shoal.report.tables import Cell

# A wide drawing for a desk and for paper, a narrow one for a phone; the style sheet shows one of them.
_WIDTHS = {"wide": 1000.0, "narrow": 340.0}
_OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


@dataclass(frozen=True)
class RecoveryPart:
    """All that the template asks for; no pictures where the record holds no curve."""

    lead: str
    rows: list[tuple[str, Cell]]
    pictures: dict[str, str]
    legend: list[tuple[str, str]]
    how: str


def recovery_part(recovery: Recovery | None) -> RecoveryPart | None:
    """The part in full; None for a network that did not recover."""
    if recovery is None:
        return None
    pictures = {size: recovery_plot.plot(recovery, width, f"recovery-{size}") for size, width in _WIDTHS.items()}
    return RecoveryPart(
        lead=lead(recovery),
        rows=rows(recovery),
        pictures=pictures if all(pictures.values()) else {},
        legend=recovery_plot.legend(),
        how=_how(recovery),
    )


def lead(recovery: Recovery) -> str:
    """What was done and what came of it, in plain sentences."""
    if recovery.stopped == "nothing":
        return "After the cut the network was as near to the original as rounding allows: nothing had to be won back."
    labels = ", and by the labels too" if recovery.settings.get("labels") else ""
    done = (
        f"After the cut the network learned to answer as the original does{labels}. Every now and then it was looked "
        "at on validation samples, and whatever was nearest to the original there is what came out."
    )
    if not recovery.kept_step:
        return f"{done} Nothing nearer than the cut itself was found, so the cut came out as it was."
    return f"{done} Its divergence there is {_change(recovery)} than after the cut."


def _change(recovery: Recovery) -> str:
    return numbers.less(recovery.divergence_before, recovery.divergence_after)


def rows(recovery: Recovery) -> list[tuple[str, Cell]]:
    """The table: a label and its value, with what has to be known about it."""
    n = numbers.count(recovery.n)
    after = "unchanged" if not recovery.kept_step else _change(recovery)
    found = [
        (
            "Divergence before",
            Cell(
                _nats(recovery.divergence_before),
                f"{n} validation samples and, where they can be blended, as many blends",
            ),
        ),
        ("Divergence after", Cell(_nats(recovery.divergence_after), f"{after}; the same samples")),
    ]
    if recovery.stopped != "nothing":
        found += _way(recovery)
    return [*found, ("Stopped because", Cell(_stopped(recovery)))]


def _nats(value: float) -> str:
    return f"{numbers.significant(value)} nats"


def _way(recovery: Recovery) -> list[tuple[str, Cell]]:
    """What there is to say where at least a step was made."""
    resumed = "; it went on after an interruption" if recovery.resumed else ""
    rate = Cell(numbers.tick(recovery.rate), _rate(recovery))
    kept = f"of step {numbers.count(recovery.kept_step)}" if recovery.kept_step else "nothing better was found"
    chosen = "as asked" if recovery.settings.get("optimizer", "auto") != "auto" else "chosen by the kind of network"
    return [
        ("Steps", Cell(numbers.count(recovery.steps), f"{numbers.count(recovery.samples)} samples were seen")),
        ("Time", Cell(numbers.duration(recovery.seconds), f"budget: {recovery.budget}; all looks included{resumed}")),
        ("Learning rate", rate),
        ("Optimizer", Cell(_OPTIMIZERS.get(recovery.optimizer, recovery.optimizer), chosen)),
        ("Weights kept", Cell(recovery.kept, kept)),
    ]


def _rate(recovery: Recovery) -> str:
    """Where the highest rate comes from."""
    if recovery.settings.get("rate") is not None:
        return "as asked"
    if not recovery.rates_tried:
        return "a careful one: the budget left no room to try any"
    tried = ", ".join(recovery.rates_tried)
    return f"the highest that destroyed nothing in a short test on copies, of {tried}"


def _stopped(recovery: Recovery) -> str:
    patience = recovery.settings.get("patience")
    looks = f"{patience} looks in a row were" if isinstance(patience, int) else "the last looks were"
    return {
        "budget": "the budget was used up",
        "early": f"nothing more was won: {looks} no better",
        "nothing": "there was nothing to win back",
        "diverged": "it diverged; the last good weights are kept",
    }[recovery.stopped]


def _how(recovery: Recovery) -> str:
    """What the curves are."""
    features = recovery.features
    blocks = f"{numbers.count(features)} block{'' if features == 1 else 's'}"
    weight = recovery.features_weight
    times = f"{numbers.tick(weight)} times " if weight is not None else ""
    features_too = f", and {times}how far off its features behind {blocks} were" if features else ""
    labels = ", and its cross-entropy with the labels" if recovery.settings.get("labels") else ""
    return (
        "Above, each dot is a look: mean KL(original ‖ network) of the weights averaged over the latest steps. The "
        "learning rate rises first, so the divergence may rise too before it falls. Below, the loss it learned by, on "
        f"the samples it learned from: the divergence{features_too}{labels}."
    )
