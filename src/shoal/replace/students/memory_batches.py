"""Students in portions that fit into memory while they learn."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.replace.students.build import student_of
from shoal.replace.students.specs import StudentSpec

# The weights, Adam's two moments and the best weights so far. Gradients are there for one student at a time.
_COPIES = 4
_LEAST_BYTES = 4  # of a number: half precision learns in single


@dataclass(frozen=True)
class MemoryBatch:
    """Students that learn side by side, and how much memory they need for it."""

    members: list[StudentSpec]
    bytes: int


def memory_batches(wanted: Sequence[StudentSpec], most_bytes: float) -> list[MemoryBatch]:
    """`wanted` in its order, in portions that need so much memory at most; one that needs more has its own.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    portions: list[MemoryBatch] = []
    for one in wanted:
        size = bytes_to_learn(one)
        if portions and portions[-1].bytes + size <= most_bytes:
            last = portions.pop()
            portions.append(MemoryBatch([*last.members, one], last.bytes + size))
        else:
            portions.append(MemoryBatch([one], size))
    return portions


def bytes_to_learn(one: StudentSpec) -> int:
    """What a student holds while it learns, without activations.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    # Made and dropped: slices of weights have no size before they are cut.
    module = student_of(one.stand_in, one.original)
    return _COPIES * sum(each.numel() * max(_LEAST_BYTES, each.element_size()) for each in module.parameters())
