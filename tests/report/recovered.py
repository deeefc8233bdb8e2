"""Records of a recovery, made by hand: worse at first, nearer in the end."""

from handmade import make_record
from planned import planned_record

from shoal.record import Record, Recovery

CURVE = [
    {"step": 0, "seconds": 4.0, "rate": 0.3, "divergence": 0.02},
    {"step": 50, "seconds": 8.0, "rate": 0.3, "loss": 0.1, "divergence": 0.05},
    {"step": 100, "seconds": 12.0, "rate": 0.2, "loss": 0.06, "divergence": 0.012},
    {"step": 150, "seconds": 16.0, "rate": 0.0, "loss": 0.04, "divergence": 0.009},
]


def make_recovery(**changes: object) -> Recovery:
    values: dict[str, object] = {
        "budget": "150 steps",
        "steps": 150,
        "samples": 19_200,
        "seconds": 16.2,
        "rate": 0.3,
        "rates_tried": {"0.3": 0.1, "0.1": 0.09, "0.03": None},
        "optimizer": "sgd",
        "divergence_before": 0.02,
        "divergence_after": 0.008,
        "n": 287,
        "stopped": "budget",
        "kept": "averaged weights",
        "kept_step": 150,
        "features": 9,
        "settings": {"rate": None, "optimizer": "auto", "patience": 10, "labels": 0.0},
        "curve": CURVE,
    }
    return Recovery.model_validate({**values, **changes})


def recovered_record(**changes: object) -> Record:
    """A cut that was planned, and recovered."""
    return planned_record().model_copy(update={"recovery": make_recovery(**changes)})


def removed_and_recovered() -> Record:
    """Plain removal, then recovery; the looks were not kept, as in records of older versions."""
    return make_record(recovery=make_recovery(curve=[]))
