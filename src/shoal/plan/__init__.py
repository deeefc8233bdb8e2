"""The plan as data: what to remove from which network, and how it is chosen. No torch in this room."""

from shoal.deprecated import former_names
from shoal.plan.front import front
from shoal.plan.pairs import PairTerm
from shoal.plan.plan import (
    CONSTANT,
    Fold,
    FoldStep,
    Inner,
    InputSpec,
    NetworkSignature,
    Norms,
    Plan,
    Remove,
    Replace,
    Replacement,
    Tail,
    TokenMap,
    check_signature,
    check_state,
    differences,
    parse_plan,
    read_plan,
)
from shoal.plan.solver import Edge, Path, ResourceLimits, best, solve

__all__ = [
    "CONSTANT",
    "Edge",
    "Fold",
    "FoldStep",
    "Inner",
    "InputSpec",
    "NetworkSignature",
    "Norms",
    "PairTerm",
    "Path",
    "Plan",
    "Remove",
    "Replace",
    "Replacement",
    "ResourceLimits",
    "Tail",
    "TokenMap",
    "best",
    "check_signature",
    "check_state",
    "differences",
    "front",
    "parse_plan",
    "read_plan",
    "solve",
]

__getattr__ = former_names(
    __name__,
    {
        "Budget": "shoal.plan:ResourceLimits; shoal.Budget is another class, a goal of compress()",
        "Signature": "shoal.plan:NetworkSignature",
        "StandIn": "shoal.plan:Replacement",
    },
)
