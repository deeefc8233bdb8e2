"""How each method's recovery is tuned: the same rule for Shoal and for every rival.

What is tuned: the weight of the features in the distillation, or the rate of PRACTISE's own recovery. The rule: at the
first point where the method has a network, a tenth of the budget with each value; the one that leaves the least KL on
validation samples and their blends is taken, and serves all points. The distillation's rate is found anew each time by
its own search, for everybody alike.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from rivals.ground import Ground
from shoal.batches import Batch, call, logits_of
from shoal.files.writing import write_text
from shoal.measure import kl_per_sample, log_probabilities
from shoal.pipeline.data_splits import with_mixup
from shoal.preserve import evaluating
from shoal.recover import TrainingBudget

# Of squared errors of features, relative to their variance; 0: outputs alone.
FEATURES = (0.0, 0.5, 4.0, 64.0)
SHARE = 0.1
# A tenth of a budget is too short for a search of its own.
TRIAL_RATE = 0.1


def best_value(
    path: Path, values: Sequence[float], budget: TrainingBudget, trial: Callable[[float, TrainingBudget], float]
) -> float:
    """The value whose short trial leaves least; kept in a file.

    Args:
        path: of the file.
        values: to try.
        budget: of a whole recovery.
        trial: recovers with a value for a budget; the KL that is left.
    """
    if path.exists():
        return float(json.loads(path.read_text(encoding="utf-8"))["value"])
    part = budget.part(SHARE)
    left = {value: trial(value, part) for value in values}
    value = min(values, key=left.__getitem__)
    document = {"value": value, "kl_left": {f"{key:g}": kl for key, kl in left.items()}, "budget": str(part)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1) + "\n")
    return value


def validation_kl(ground: Ground, network: nn.Module, samples: Sequence[Batch]) -> float:
    """Mean KL(original || network) on these samples and their blends."""
    total, count = 0.0, 0
    with evaluating(ground.model), evaluating(network):
        for batch in with_mixup(samples):
            expected = log_probabilities(logits_of(call(ground.model, batch)), None)
            total += float(kl_per_sample(expected, logits_of(call(network, batch))).sum())
            count += batch.size
    return total / count
