"""The section of a page about recovery: what distillation regained, how, and the curve."""

from dataclasses import dataclass

from shoal.record import Recovery
from shoal.report import numbers
from shoal.report.comparison import Cell
from shoal.report.damage import KL, Damage
from shoal.report.plots import curves
from shoal.report.text import plural

_OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


@dataclass(frozen=True)
class RecoverySection:
    """Everything that the template needs; no plots if the record holds no curve."""

    lead: str
    rows: list[tuple[str, Cell]]
    plots: dict[str, str]
    legend: list[tuple[str, str]]
    how: str


def recovery_section(recovery: Recovery | None, damage: Damage = KL) -> RecoverySection | None:
    """The section; None for a network that did not recover."""
    if recovery is None:
        return None
    plots = {size: curves.recovery_plot(recovery, size, damage) for size in curves.SIZES}
    return RecoverySection(
        lead=lead(recovery),
        rows=rows(recovery, damage),
        plots=plots if all(plots.values()) else {},
        legend=curves.recovery_legend(),
        how=_how(recovery, damage),
    )


def lead(recovery: Recovery) -> str:
    """What was done and what it achieved."""
    if recovery.stopped == "nothing":
        return "The compressed network equalled the original up to rounding, so there was nothing to recover."
    labels = ", and to fit the labels" if recovery.settings.get("labels") else ""
    process = (
        f"The compressed network was trained to match the answers of the original{labels}. It was evaluated on "
        "validation samples at regular intervals, and the weights with the lowest divergence were kept."
    )
    if not recovery.kept_step:
        return f"{process} No weights were better than those before recovery, so these were kept."
    return f"{process} Their divergence is {_change(recovery)} than before recovery."


def _change(recovery: Recovery) -> str:
    return numbers.less(recovery.divergence_before, recovery.divergence_after)


def rows(recovery: Recovery, damage: Damage = KL) -> list[tuple[str, Cell]]:
    """The table: labels and values, with what a reader has to know about them."""
    n = plural(recovery.n, "validation sample")
    # After a race the figure before is that before its first step: recovery alone may have changed nothing.
    unchanged = not recovery.kept_step and not recovery.divergence_after < recovery.divergence_before
    after = "unchanged" if unchanged else _change(recovery)
    blends = f"{n} and, for inputs that can be mixed, as many mixtures of them"
    return [
        ("Divergence before", Cell(damage.figure(recovery.divergence_before), blends)),
        ("Divergence after", Cell(damage.figure(recovery.divergence_after), f"{after}; the same samples")),
        *(_training(recovery) if recovery.stopped != "nothing" else []),
        ("Stopped because", Cell(_stopped(recovery))),
    ]


def _training(recovery: Recovery) -> list[tuple[str, Cell]]:
    """The rows about a training of at least one step."""
    resumed = "; resumed after an interruption" if recovery.resumed else ""
    kept = f"of step {numbers.count(recovery.kept_step)}" if recovery.kept_step else "no later weights were better"
    requested = recovery.settings.get("optimizer", "auto") != "auto"
    optimizer = "as requested" if requested else "chosen by the type of network"
    return [
        ("Steps", Cell(numbers.count(recovery.steps), plural(recovery.samples, "training sample"))),
        ("Time", Cell(numbers.duration(recovery.seconds), f"budget: {recovery.budget}; evaluations included{resumed}")),
        ("Learning rate", Cell(numbers.tick(recovery.rate), _rate(recovery))),
        ("Optimizer", Cell(_OPTIMIZERS.get(recovery.optimizer, recovery.optimizer), optimizer)),
        ("Weights kept", Cell(recovery.kept, kept)),
    ]


def _rate(recovery: Recovery) -> str:
    """How the learning rate was chosen."""
    if recovery.settings.get("rate") is not None:
        return "as requested"
    if not recovery.rates_tried:
        return "a safe default: the budget left no room for a search"
    return f"the largest stable one of {', '.join(recovery.rates_tried)} in a short test on copies"


def _stopped(recovery: Recovery) -> str:
    patience = recovery.settings.get("patience")
    evaluations = f"{patience} evaluations in a row" if isinstance(patience, int) else "the last evaluations"
    return {
        "budget": "the budget was used up",
        "early": f"it no longer improved: {evaluations} were not better",
        "nothing": "there was nothing to recover",
        "diverged": "it diverged; the last good weights were kept",
    }[recovery.stopped]


def _how(recovery: Recovery, damage: Damage) -> str:
    """What the curves show."""
    weight = recovery.features_weight
    times = f"{numbers.tick(weight)} times " if weight is not None else ""
    features = f", plus {times}the error of its features after {plural(recovery.features, 'block')}"
    labels = ", plus its cross-entropy with the labels" if recovery.settings.get("labels") else ""
    return (
        f"Top: each dot is an evaluation, the {damage.quantity}, of the weights averaged over the latest "
        "steps. The learning rate is warmed up, so the divergence may rise before it falls. Bottom: the training "
        f"loss, which is the divergence{features if recovery.features else ''}{labels}, on the training samples."
    )
