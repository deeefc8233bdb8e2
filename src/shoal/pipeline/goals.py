"""The goals of compress(): what may be asked for, how it is read, and which option goes with which goal."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from shoal.arguments import flag, names_of, real_number, whole_number
from shoal.errors import UsageError
from shoal.quantities import QUANTITIES, Cost
from shoal.replace import STUDENTS

Grain = Literal["block", "unit"]
GoalName = Literal["remove", "max_drop", "blocks", "exact", "budget", "replace", "pick"]
_UNBOUNDED = float("inf")


def _check_grain(grain: str) -> None:
    if grain not in ("block", "unit"):
        raise UsageError(f"grain is '{grain}', expected block or unit", "Leave it out for whole blocks.")


def _units_refused() -> UsageError:
    return UsageError(
        "the grain 'unit' goes with remove, max_drop, a budget or pick",
        "`blocks` names units by themselves (layer.3#1), and a proof is about whole blocks.",
    )


def _grain_to_dict(grain: Grain) -> dict[str, Any]:
    return {} if grain == "block" else {"grain": grain}


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """What all goals have in common but `Blocks`: the patterns of the blocks they are about.

    Args:
        include: patterns of the blocks to consider, or a single one; all by default.
        exclude: patterns of the blocks to keep, or a single one.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            object.__setattr__(self, name, names_of(name, getattr(self, name)))

    def _with_patterns(self, request: Mapping[str, Any]) -> dict[str, Any]:
        patterns = {"include": list(self.include), "exclude": list(self.exclude)}
        return {**request, **{name: value for name, value in patterns.items() if value}}


@dataclass(frozen=True)
class RemoveBlocks(_Selection):
    """Remove this many blocks, those that matter least.

    Args:
        count: how many; with the grain `unit`, how many units.
        grain: `unit` removes the attention and the MLP of a block separately.
    """

    name: ClassVar[GoalName] = "remove"
    by_plan: ClassVar[bool] = False

    count: int
    grain: Grain = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_grain(self.grain)
        object.__setattr__(self, "count", whole_number("remove", self.count, 1, "Give a number of blocks."))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a record holds it."""
        return self._with_patterns({"remove": self.count, **_grain_to_dict(self.grain)})


@dataclass(frozen=True)
class MaxDrop(_Selection):
    """Remove as many blocks as possible with at most this drop of the metric on validation.

    Args:
        points: the largest drop, in points. A point is one of top-1 where there are labels, else one per cent of
            samples with another answer; where outputs are no scores of classes, one per cent of the variance of the
            original's output. Of several outputs the one that lost most counts.
        allow_replacement: blocks may be replaced as well: the fastest plan within the drop.
        grain: `unit` removes the attention and the MLP of a block separately.
    """

    points: float = 1.0
    allow_replacement: bool = False
    grain: Grain = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_grain(self.grain)
        hint = "It is in points of the metric: 1.0."
        object.__setattr__(self, "points", real_number("max_drop", self.points, hint))
        flag("allow_replacement", self.allow_replacement)
        if not 0 <= self.points <= 100:
            raise UsageError(f"max_drop is {self.points}, expected 0 to 100", hint)

    @property
    def name(self) -> GoalName:
        """`replace` where blocks may be replaced, else `max_drop`."""
        return "replace" if self.allow_replacement else "max_drop"

    @property
    def by_plan(self) -> bool:
        """Whether it takes a plan."""
        return self.allow_replacement

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a record holds it."""
        replace = {"replace": True} if self.allow_replacement else {}
        return self._with_patterns({"max_drop": self.points, **replace, **_grain_to_dict(self.grain)})


@dataclass(frozen=True)
class Blocks:
    """Remove exactly these blocks.

    Args:
        paths: of the blocks, as `shoal trace` lists them.
    """

    name: ClassVar[GoalName] = "blocks"
    by_plan: ClassVar[bool] = False
    include: ClassVar[tuple[str, ...]] = ()
    exclude: ClassVar[tuple[str, ...]] = ()

    paths: tuple[str, ...]

    def __init__(self, paths: str | Sequence[str]) -> None:
        object.__setattr__(self, "paths", names_of("blocks", paths))
        if not self.paths:
            raise UsageError("blocks names no block", "`shoal trace` lists them.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a record holds it."""
        return {"blocks": list(self.paths)}


@dataclass(frozen=True)
class ExactOnly(_Selection):
    """Remove only the blocks that are proved to do nothing."""

    name: ClassVar[GoalName] = "exact"
    by_plan: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a record holds it."""
        return self._with_patterns({"exact": True})


@dataclass(frozen=True)
class Budget(_Selection):
    """Keep, remove and replace blocks such that the network meets every bound with the least damage.

    Args:
        latency: at most this fraction of the original's latency (0.5), or an amount ('12ms').
        macs: at most this fraction of the original's MACs, or an amount ('1.2G').
        params: at most this fraction of the original's parameters, or an amount ('3M').
        depth: keep at most this many blocks; a replacement counts as one. With the grain `unit`, at most this many
            units.
        grain: `unit` also removes the attention or the MLP of a block alone.
    """

    name: ClassVar[GoalName] = "budget"
    by_plan: ClassVar[bool] = True

    latency: str | float | None = None
    macs: str | float | None = None
    params: str | float | None = None
    depth: int | None = None
    grain: Grain = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_grain(self.grain)
        if self.depth is not None:
            depth = whole_number("depth", self.depth, 0, f"It is the number of {self.grain}s to be left.")
            object.__setattr__(self, "depth", depth)
        self.limits(Cost(1.0, 1.0, 1.0))  # what cannot be read is refused before anything is measured
        if not self.bounds:
            names = ", ".join((*QUANTITIES, "depth"))
            raise UsageError("the budget bounds nothing", f"Give at least one of {names}.")

    @property
    def bounds(self) -> dict[str, str | float]:
        """The bounds as they were written, by name."""
        written = {name: getattr(self, name) for name in (*QUANTITIES, "depth")}
        return {name: value for name, value in written.items() if value is not None}

    @property
    def latency_is_fraction(self) -> bool:
        """Whether latency is bounded by a share of the original's, not by an amount."""
        quantity = QUANTITIES["latency"]
        return self.latency is not None and quantity.parse(self.latency, 1.0) != quantity.parse(self.latency, 2.0)

    @property
    def quantities(self) -> frozenset[str]:
        """What is bounded besides the depth, by name."""
        return frozenset(self.bounds) & QUANTITIES.keys()

    def limits(self, original: Cost) -> Cost:
        """The bounds as amounts; infinite where there is none. One of latency holds at every batch size, as a share.

        Raises:
            UsageError: not a fraction and not an amount.
        """
        amounts = {}
        for name, quantity in QUANTITIES.items():
            bound = getattr(self, name)
            amounts[quantity.attribute] = _UNBOUNDED if bound is None else quantity.parse(bound, quantity.of(original))
        # The same share of the original's latency at every batch size.
        share = amounts["latency_ms"] / original.latency_ms
        return Cost(**amounts, latencies=tuple(share * latency_ms for latency_ms in original.latencies))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a record holds it."""
        return self._with_patterns({**self.bounds, **_grain_to_dict(self.grain)})


@dataclass(frozen=True)
class ParetoPoint(_Selection):
    """Take one plan of the front: of all plans that no other plan beats in both latency and damage.

    Args:
        index: from 1, the fastest first.
        grain: `unit` also removes the attention or the MLP of a block alone.
    """

    name: ClassVar[GoalName] = "pick"
    by_plan: ClassVar[bool] = True

    index: int
    grain: Grain = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_grain(self.grain)
        object.__setattr__(self, "index", whole_number("pick", self.index, 1, "1 is the fastest plan of the front."))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a record holds it."""
        return self._with_patterns({"pick": self.index, **_grain_to_dict(self.grain)})


def by_units(goal: "Goal") -> bool:
    """Whether a goal is about the units of blocks, not only about whole blocks."""
    return getattr(goal, "grain", "block") == "unit"


Goal = RemoveBlocks | MaxDrop | Blocks | ExactOnly | Budget | ParetoPoint
DEFAULT_GOAL = MaxDrop(1.0)


def check_batch_sizes(goal: Goal, sizes: Sequence[int]) -> None:
    """Refuse a budget that means nothing at several batch sizes.

    Raises:
        UsageError: latency in milliseconds.
    """
    if len(sizes) > 1 and isinstance(goal, Budget) and goal.latency is not None and not goal.latency_is_fraction:
        raise UsageError(
            f"latency is '{goal.latency}', at the batch sizes {', '.join(map(str, sizes))}",
            "An amount holds at one batch size: give a fraction of the original's latency, like 0.5.",
        )


# What a goal is called in JSON and in options, and with it everything else that is part of a goal.
GOAL_KEYS = ("remove", "max_drop", "blocks", "exact", "latency", "macs", "params", "depth", "pick")
GOAL_OPTIONS = ("include", "exclude", "replace", "grain")


def parse_goal(request: Mapping[str, Any], spell: Callable[[str], str] = str) -> Goal:
    """The goal that flat options ask for; the inverse of `to_dict`, and the default where nothing is asked for.

    Args:
        request: values by the names in `GOAL_KEYS` and `GOAL_OPTIONS`; None, False and empty lists ask for nothing.
        spell: how the caller writes an option.

    Raises:
        UsageError: options that do not go together, or a value out of range.
    """
    values = {name: value for name, value in request.items() if value is not None and value is not False}
    patterns: dict[str, Any] = {name: names_of(name, values.get(name) or ()) for name in ("include", "exclude")}
    grain, replace = values.get("grain", "block"), flag("replace", values.get("replace", False))
    bounds = {name: values[name] for name in (*QUANTITIES, "depth") if name in values}
    requested = [name for name in ("remove", "max_drop", "blocks", "exact", "pick") if name in values]
    if len(requested) + bool(bounds) > 1:
        groups = (*(("remove",), ("max_drop",), ("blocks",), ("exact",)), (*QUANTITIES, "depth"), ("pick",))
        choices = ", ".join("/".join(map(spell, group)) for group in groups)
        raise UsageError(f"give exactly one of {choices}", f"Without a goal: {spell('max_drop')}, of 1.0 points.")
    if replace and requested and requested[0] in ("remove", "blocks", "exact"):
        raise UsageError("replace goes with max_drop or a budget", "remove, blocks and exact only remove.")
    _check_grain(grain)
    goal: Goal
    match "budget" if bounds else requested[0] if requested else None:
        case "budget":
            goal = Budget(**bounds, grain=grain, **patterns)
        case "remove":
            goal = RemoveBlocks(values["remove"], grain, **patterns)
        case "blocks":
            goal = Blocks(values["blocks"])
        case "exact":
            flag("exact", values["exact"])
            goal = ExactOnly(**patterns)
        case "pick":
            goal = ParetoPoint(values["pick"], grain, **patterns)
        case _:
            goal = MaxDrop(values.get("max_drop", DEFAULT_GOAL.points), replace, grain, **patterns)
    if grain == "unit" and isinstance(goal, Blocks | ExactOnly):
        raise _units_refused()
    unused = {name for name in GOAL_OPTIONS if values.get(name)} - {"grain"}
    check_options(goal, unused, spell=spell)
    return goal


def goal_from_dict(data: Mapping[str, Any]) -> Goal:
    """The goal that `to_dict` wrote.

    Raises:
        UsageError: something else.
    """
    unknown = sorted(set(data) - {*GOAL_KEYS, *GOAL_OPTIONS})
    if unknown:
        raise UsageError(f"'{unknown[0]}' is no part of a goal", f"Expected {', '.join((*GOAL_KEYS, *GOAL_OPTIONS))}.")
    return parse_goal(data)


_GREEDY: frozenset[GoalName] = frozenset({"remove", "max_drop"})
PLANNED: frozenset[GoalName] = frozenset({"budget", "replace", "pick"})
_ALL: frozenset[GoalName] = _GREEDY | PLANNED | {"blocks", "exact"}

_FOR_PLANS = "it is for plans, which a budget (latency, macs, params, depth), pick, or max_drop with replace asks for"
_NAMED = "the blocks to remove are named one by one"
_EXACT = "an exact removal loses nothing that could be won back"

# Option: the goals that use it, and why the others do not. What is not here is used by every goal. In Python the kinds
# of replacement and their budget are in `MeasureConfig`, which serves many calls: there they are not held against one.
USED_BY: dict[str, tuple[frozenset[GoalName], str]] = {
    "include": (_ALL - {"blocks"}, _NAMED),
    "exclude": (_ALL - {"blocks"}, _NAMED),
    "replace": (frozenset({"replace"}), "plans for a budget, and those of a front, replace blocks anyway"),
    "latency_from": (PLANNED, _FOR_PLANS),
    "tables": (PLANNED, _FOR_PLANS),
    "stand_ins": (PLANNED, _FOR_PLANS),
    "student_budget": (PLANNED, _FOR_PLANS),
    "race": (frozenset({"budget"}), "only for a budget do several plans contend"),
    "refit": (
        _GREEDY | {"blocks"},
        "a plan is refitted anyway, and an exact removal loses nothing that could be won back",
    ),
    "recover": (_ALL - {"exact"}, _EXACT),
    "unlabelled": (_ALL - {"exact"}, _EXACT),
    "self_data": (_ALL - {"exact"}, _EXACT),
}


def check_options(
    goal: Goal, options: Collection[str], kinds: Collection[str] | None = None, spell: Callable[[str], str] = str
) -> None:
    """Refuse an option that the goal does not use.

    Args:
        goal: what is asked for.
        options: the names of the options that were set.
        kinds: of replacements that are tried.
        spell: how the caller writes an option.

    Raises:
        UsageError: names the first such option, and says why.
    """
    for option, (goals, reason) in USED_BY.items():
        if option in options and goal.name not in goals:
            request = ", ".join(spell(key) for key in goal.to_dict() if key not in ("include", "exclude"))
            raise UsageError(f"{spell(option)} does nothing with {request}: {reason}", f"Leave out {spell(option)}.")
    if "student_budget" in options and not any(kind in STUDENTS for kind in kinds or ()):
        raise UsageError(
            f"{spell('student_budget')} does nothing: no students are among the stand-ins",
            f"Name some in {spell('stand_ins')}: {', '.join(STUDENTS)}; or leave it out.",
        )


def points_text(points: float) -> str:
    """A number of points for a message: `1 point`, `0.5 points`."""
    return f"{points:g} point{'' if points == 1 else 's'}"
