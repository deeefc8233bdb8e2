"""Removal that looks at nothing: the last blocks, or evenly spaced ones.

Neither has a score; after recovery they are hard to beat all the same (Wang et al. 2024, arXiv:2411.15558, for the last
layers of language models; Fang et al. 2024, arXiv:2412.01199, for evenly spaced blocks of diffusion transformers).
"""

from collections.abc import Sequence

from rivals.ground import Ground
from rivals.made import Made, Unreached
from rivals.prefixes import fewest, shortest_prefix, without


def last_k(ground: Ground, target: float) -> Made:
    """The network without its last blocks, as few as meet `target`; those that change the shape stay."""
    folder = ground.folder / "last-k"
    folder.mkdir(parents=True, exist_ok=True)
    return shortest_prefix(ground, alike(ground)[::-1], target, folder)


def uniform(ground: Ground, target: float) -> Made:
    """The network without evenly spaced blocks, as few as meet `target`; those that change the shape stay."""
    folder = ground.folder / "uniform"
    folder.mkdir(parents=True, exist_ok=True)
    paths = alike(ground)
    removals = [evenly_spaced(paths, count) for count in range(1, len(paths) + 1)]
    return without(ground, removals[fewest(ground, removals, target, folder)])


def alike(ground: Ground) -> list[str]:
    """The removable blocks that keep the shape of the stream, in order.

    Raises:
        Unreached: there are none.
    """
    paths = [block.path for block in ground.graph.chain.removable if block.in_shape == block.out_shape]
    if not paths:
        raise Unreached(None, "no removable block keeps the shape of the stream")
    return paths


def evenly_spaced(paths: Sequence[str], count: int) -> list[str]:
    """So many of the paths, at distances as equal as possible, the ends at half a distance."""
    return [paths[(2 * index + 1) * len(paths) // (2 * count)] for index in range(count)]
