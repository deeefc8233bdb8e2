"""On how many samples plans are measured and refitted: as many as that takes, fewer where a sample holds many outputs.

A sample of a language model is a row of tokens, with an output at each of them, and a damage is the mean over all: a
few rows tell as much as hundreds of images, and cost as much.
"""

from dataclasses import dataclass

from shoal.blocks import BlockGraph
from shoal.blocks.template import tensor_refs
from shoal.measure import Reading
from shoal.pipeline import screening
from shoal.replace import SegmentChain

# Outputs that a damage in the tables, one of a plan, and a quick refit of a plan are about, at most.
_TABLE_OUTPUTS, _PLAN_OUTPUTS, _REFIT_OUTPUTS = 512, 4096, 4096
_MIN_SEQUENCES = 4


@dataclass(frozen=True)
class Effort:
    """How much is spent on each measurement.

    Args:
        table_samples: that damages in the tables are measured on; None: all there are.
        plan_samples: that damages of plans are measured on; None: all there are.
        refit_samples: of a refit that only tells plans apart.
        quick_refits: plans that are refitted to be told apart, where there is no race.
        reach: kept segments behind each change that such a refit changes; None: all.
    """

    table_samples: int | None = None
    plan_samples: int | None = None
    refit_samples: int = 1024
    quick_refits: int = 8
    reach: int | None = None

    @classmethod
    def for_network(cls, graph: BlockGraph, segments: SegmentChain, reading: Reading | None) -> "Effort":
        """What suits a network, its depth, and its outputs."""
        outputs = outputs_per_sample(graph, reading)
        if outputs == 1:
            return cls(table_samples=screening.JUDGE_SAMPLES if screening.is_screened(segments) else None)

        def rows(count: int) -> int:
            return max(_MIN_SEQUENCES, count // outputs)

        return cls(rows(_TABLE_OUTPUTS), rows(_PLAN_OUTPUTS), rows(_REFIT_OUTPUTS), quick_refits=4, reach=2)


def outputs_per_sample(graph: BlockGraph, reading: Reading | None) -> int:
    """The tokens that get scores of their own in a sample, (batch, tokens, classes); 1 for anything else."""
    head = reading.classes if reading is not None else None
    if head is None or head.axis != -1:
        return 1
    shapes = [graph.trace.values[value].shape for value in tensor_refs(graph.trace.output)]
    return max((shape[1] for shape in shapes if len(shape) == 3 and shape[-1] == head.classes), default=1)
