"""What is held in memory at once: items in order, in portions of a bounded size."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def fill_portions(items: Iterable[T], size: Callable[[T], float], most: float) -> list[list[T]]:
    """The items in order, each portion as full as it may be; an item that is larger than that is one by itself.

    Args:
        items: in the order they stay in.
        size: of an item.
        most: size of a portion.
    """
    portions: list[list[T]] = []
    remaining = 0.0
    for item in items:
        needed = size(item)
        if not portions or needed > remaining:
            portions.append([])
            remaining = most
        portions[-1].append(item)
        remaining -= needed
    return portions
