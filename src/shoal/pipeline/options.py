"""Which goal uses which option: one that would do nothing is refused, from the command line and from Python alike."""

from collections.abc import Callable, Collection
from typing import Literal

from shoal.errors import UsageError
from shoal.pipeline.greedy import Goal
from shoal.replace import STUDENTS

GoalName = Literal["remove", "max_drop", "blocks", "exact", "budget", "replace", "pick"]

_GREEDY: frozenset[GoalName] = frozenset({"remove", "max_drop"})
PLANNED: frozenset[GoalName] = frozenset({"budget", "replace", "pick"})
_ALL: frozenset[GoalName] = _GREEDY | PLANNED | {"blocks", "exact"}

_FOR_PLANS = "it is for plans, which a budget (latency, macs, params, depth), pick, or max_drop with replace asks for"
_NAMED = "the blocks to remove are named one by one"
_EXACT = "an exact removal loses nothing that could be won back"

# Option: the goals that use it, and why the others do not. What is not here is used by every goal. In Python stand-ins
# and their budget stand in `Settings`, which serve many calls: there they are not held against the goal of one.
USED_BY: dict[str, tuple[frozenset[GoalName], str]] = {
    "include": (_ALL - {"blocks"}, _NAMED),
    "exclude": (_ALL - {"blocks"}, _NAMED),
    "replace": (frozenset({"replace"}), "plans for a budget, and those of a front, replace blocks anyway"),
    "latency_from": (PLANNED, _FOR_PLANS),
    "tables": (PLANNED, _FOR_PLANS),
    "stand_ins": (PLANNED, _FOR_PLANS),
    "student_budget": (PLANNED, _FOR_PLANS),
    "try_plans": (frozenset({"budget"}), "only for a budget do several plans contend"),
    "recover": (_ALL - {"exact"}, _EXACT),
    "unlabelled": (_ALL - {"exact"}, _EXACT),
}


def name_of(goal: Goal) -> GoalName:
    """What kind of goal it is."""
    if goal.target.to_dict():
        return "budget"
    if goal.pick is not None:
        return "pick"
    if goal.max_drop is not None:
        return "replace" if goal.replace else "max_drop"
    if goal.remove is not None:
        return "remove"
    return "exact" if goal.exact else "blocks"


def check_options(
    goal: Goal, given: Collection[str], kinds: Collection[str] = (), spelled: Callable[[str], str] = str
) -> None:
    """Refuse what the goal does not use.

    Args:
        goal: what is asked.
        given: the names of the options that were given.
        kinds: of stand-ins that are tried.
        spelled: how the caller writes an option.

    Raises:
        UsageError: names the first such option, and says why.
    """
    name = name_of(goal)
    for option in USED_BY:
        goals, reason = USED_BY[option]
        if option in given and name not in goals:
            asked = ", ".join(spelled(key) for key in goal.to_dict() if key not in ("include", "exclude"))
            raise UsageError(f"{spelled(option)} does nothing with {asked}: {reason}", f"Leave out {spelled(option)}.")
    if "student_budget" in given and not any(kind in STUDENTS for kind in kinds):
        raise UsageError(
            f"{spelled('student_budget')} does nothing: no students are among the stand-ins",
            f"Name some in {spelled('stand_ins')}: {', '.join(STUDENTS)}; or leave it out.",
        )
