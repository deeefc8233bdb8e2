"""What planning comes to: the network of the chosen plan, and how it was found."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from shoal.errors import count_of
from shoal.pipeline.greedy import RemovalChoice
from shoal.plan import Remove, Replace
from shoal.record import Comparison, Planning
from shoal.replace import SegmentChain
from shoal.scanning import RemovalDamage


@dataclass(frozen=True)
class PlanResult:
    """The network of the chosen plan and how it was found."""

    model: nn.Module
    actions: list[Remove | Replace]
    planning: Planning
    reached: bool
    message: str
    validation: Comparison | None = None
    removal_damages: dict[str, RemovalDamage] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_choice(self) -> RemovalChoice:
        """In the form the record is made of."""
        return RemovalChoice(
            [action.name for action in self.actions if isinstance(action, Remove)],
            self.removal_damages,
            {},
            self.reached,
            self.message,
            validation=self.validation,
            replaced=[action.paths for action in self.actions if isinstance(action, Replace)],
            planning=self.planning,
        )


def summary_of(actions: Sequence[Remove | Replace], segments: SegmentChain) -> str:
    """What a plan does, in a few words."""
    removals = [action for action in actions if isinstance(action, Remove)]
    units = sum(action.unit is not None for action in removals)
    removed = len(removals) - units
    replacements = [action for action in actions if isinstance(action, Replace)]
    spans = [action for action in replacements if action.stand_in.attention is None]
    maps = len(replacements) - len(spans)
    paths = {path for span in spans for path in span.paths}
    covered = [segment for segment in segments.segments if segment.can_bound_span and segment.path in paths]
    changes = [f"{count_of(removed, 'block')} removed"] if removed else []
    changes += [f"{units} single {'unit' if units == 1 else 'units'} removed"] if units else []
    if spans:
        what = "block" if covered[0].residual else "layer"
        changes.append(f"{count_of(len(covered), what)} replaced by {count_of(len(spans), 'stand-in')}")
    changes += (
        [f"{count_of(maps, 'attention')} replaced by {'a linear map' if maps == 1 else 'linear maps'}"] if maps else []
    )
    return ", ".join(changes) or "nothing changed"
