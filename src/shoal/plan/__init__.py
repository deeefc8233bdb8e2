"""The plan as data: what to remove from which network, and how it is chosen. No torch in this room."""

from shoal.plan.front import front
from shoal.plan.plan import (
    Fold,
    FoldStep,
    Inner,
    InputSpec,
    Norms,
    Plan,
    Remove,
    Replace,
    Signature,
    StandIn,
    Tail,
    check_signature,
    check_state,
    differences,
    parse_plan,
    read_plan,
)
from shoal.plan.solver import Budget, Edge, Path, best, drop_dominated, solve

__all__ = [
    "Budget",
    "Edge",
    "Fold",
    "FoldStep",
    "Inner",
    "InputSpec",
    "Norms",
    "Path",
    "Plan",
    "Remove",
    "Replace",
    "Signature",
    "StandIn",
    "Tail",
    "best",
    "check_signature",
    "check_state",
    "differences",
    "drop_dominated",
    "front",
    "parse_plan",
    "read_plan",
    "solve",
]
