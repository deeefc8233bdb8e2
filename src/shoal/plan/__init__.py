"""The plan as data: what to remove from which network. No torch in this room."""

from shoal.plan.plan import (
    Fold,
    FoldStep,
    InputSpec,
    Plan,
    Remove,
    Replace,
    Signature,
    StandIn,
    check_signature,
    check_state,
    differences,
    parse_plan,
    read_plan,
)

__all__ = [
    "Fold",
    "FoldStep",
    "InputSpec",
    "Plan",
    "Remove",
    "Replace",
    "Signature",
    "StandIn",
    "check_signature",
    "check_state",
    "differences",
    "parse_plan",
    "read_plan",
]
