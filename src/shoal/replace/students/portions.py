"""Students in portions that fit into memory while they learn."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.replace.students.making import student_of
from shoal.replace.students.wanted import WantedStudent

# The weights, Adam's two moments and the best weights so far. Gradients are there for one student at a time.
_COPIES = 4
_LEAST_BYTES = 4  # of a number: half precision learns in single


@dataclass(frozen=True)
class Portion:
    """Students that learn side by side, and how much memory they need for it."""

    members: list[WantedStudent]
    bytes: int


def student_portions(wanted: Sequence[WantedStudent], most_bytes: float) -> list[Portion]:
    """`wanted` in its order, in portions that need so much memory at most; one that needs more has its own.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    portions: list[Portion] = []
    for one in wanted:
        size = bytes_to_learn(one)
        if portions and portions[-1].bytes + size <= most_bytes:
            last = portions.pop()
            portions.append(Portion([*last.members, one], last.bytes + size))
        else:
            portions.append(Portion([one], size))
    return portions


def bytes_to_learn(one: WantedStudent) -> int:
    """What a student holds while it learns, without activations.

    Raises:
        SurgeryError: the network has no such blocks.
    """
    # Made and dropped: slices of weights have no size before they are cut.
    module = student_of(one.stand_in, one.original)
    return _COPIES * sum(each.numel() * max(_LEAST_BYTES, each.element_size()) for each in module.parameters())
