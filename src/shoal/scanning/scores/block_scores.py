"""Cheap scores of blocks, all from one pass over the data: a function of `BlockStatistics` each, and the table of them.

To add one: a function, a line in the table, its tests. Another distribution adds its own by an entry point in the group
`shoal.scores` that refers to a `Score`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from shoal.plugins import Plugin, PluginTable
from shoal.regress import fit
from shoal.scanning.scores.statistics import BlockStatistics

ScoreFunction = Callable[[BlockStatistics], float | None]


@dataclass(frozen=True)
class Score:
    """A score of a block.

    Args:
        source: the paper.
        high_means: 'keep' where a high value marks an important block, 'remove' where it marks an unimportant one.
        function: from the statistics of a block; returns None where the score is not defined for it.
        summary: what it measures, in a few words; `shoal list scores` shows it.
    """

    source: str
    high_means: Literal["keep", "remove"]
    function: ScoreFunction
    summary: str = ""


def largest_response(statistics: BlockStatistics) -> float | None:
    """Largest |F| over all samples, positions, channels and units.

    Source: Yu, Yu, Ramalingam 2018, arXiv:1804.01661, Sec. 3: a block is discarded if every response is below epsilon.
    """
    return statistics.largest if statistics.branch_count else None


def mean_response(statistics: BlockStatistics) -> float | None:
    """Mean |F| over all samples, positions and channels, F the sum of the branches of all units.

    Source: as `largest_response`, with the mean in place of the maximum, which a single outlier decides.
    """
    return statistics.branch_sum / statistics.branch_count if statistics.branch_count else None


def relative_response(statistics: BlockStatistics) -> float | None:
    """Mean over samples of norm(F) / norm(x); samples whose stream is zero everywhere do not count.

    Source: Jastrzebski et al. 2018, arXiv:1710.04773 (the ratio of the norms of branch and stream).
    """
    return statistics.ratio_sum / statistics.ratio_count if statistics.ratio_count else None


def block_influence(statistics: BlockStatistics) -> float | None:
    """1 - mean cosine of the block's input and output over positions; None where their shapes differ.

    Source: Men et al. 2024, ShortGPT, arXiv:2403.03853 (Block Influence).
    """
    return 1 - statistics.cosine_sum / statistics.cosine_count if statistics.cosine_count else None


def linear_cka(statistics: BlockStatistics) -> float | None:
    """|Sxy|^2 / (|Sxx| |Syy|) in Frobenius norms of centred moments; None where one side is constant.

    Similarity of a block's input and output up to rotation and scale, with positions as rows.
    Source: Kornblith, Norouzi, Lee, Hinton 2019, arXiv:1905.00414, Sec. 3 (linear centred kernel alignment); this is
    the plain, biased estimate, which needs many more rows than channels.
    """
    if statistics.halves is None:
        return None
    moments = statistics.halves[0].merged(statistics.halves[1])
    norm_x, norm_y = float(moments.xx.norm()), float(moments.yy.norm())
    if norm_x == 0 or norm_y == 0:
        return None
    return min(1.0, float(moments.xy.norm()) ** 2 / (norm_x * norm_y))


def linear_map_r2(statistics: BlockStatistics) -> float | None:
    """R2 on every other sample of the ridge regression (with bias) on the rest; None with a single sample.

    How much of a block's output a linear map of its input explains, position by position. Where input and output have
    the same width the ridge shrinks towards the identity. The ridge is chosen among ten on the held-out samples
    themselves, which flatters the figure a little where samples are few.
    Source: Razzhigaev et al. 2024, Your Transformer is Secretly Linear, arXiv:2405.12250 (their linearity score is
    computed on the rows of the fit; here on others).
    """
    if statistics.halves is None or not all(half.n for half in statistics.halves):
        return None
    train, held_out = statistics.halves
    target = torch.eye(train.inputs) if train.inputs == train.outputs else None
    return fit(train, held_out, target=target).r2_held_out


def taylor(statistics: BlockStatistics) -> float | None:
    """Mean over samples of -(F . dL/dF), summed over units, in nats; None without gradients.

    The increase of the loss that the gradient predicts for removing the block.
    Source: attribution patching, Kramar et al. 2024, AtP*, arXiv:2403.00745, with zero patched in; as a pruning
    criterion: Molchanov et al. 2017, arXiv:1611.06440, whose absolute value is not taken here.
    """
    return 0.0 - statistics.product_sum / statistics.product_count if statistics.product_count else None


_BUILT_IN: dict[str, Score] = {
    "largest_response": Score("arXiv:1804.01661", "keep", largest_response, "largest output of the branch"),
    "mean_response": Score("arXiv:1804.01661", "keep", mean_response, "mean output of the branch"),
    "relative_response": Score(
        "arXiv:1710.04773", "keep", relative_response, "size of the branch relative to its input"
    ),
    "block_influence": Score("arXiv:2403.03853", "keep", block_influence, "1 - cosine of input and output"),
    "linear_cka": Score("arXiv:1905.00414", "remove", linear_cka, "similarity of input and output (linear CKA)"),
    "linear_map_r2": Score("arXiv:2405.12250", "remove", linear_map_r2, "how well a linear map imitates the block"),
    "taylor": Score("arXiv:2403.00745", "keep", taylor, "rise of the loss that the gradient predicts for a removal"),
}


def _from_plugin(plugin: Plugin) -> Score:
    """The score of another distribution; what it raises or returns is checked at every call."""
    score = plugin.expect(Score, "a shoal.scanning.Score")
    if score.high_means not in ("keep", "remove") or not callable(score.function):
        raise plugin.error(f"has high_means={score.high_means!r} and function={score.function!r}")

    def function(statistics: BlockStatistics) -> float | None:
        with plugin.guard():
            value = score.function(statistics)
            number = None if value is None else float(value)
        if number is not None and math.isnan(number):
            raise plugin.error("returned NaN, expected a number, or None where the score is not defined")
        return number

    return replace(score, source=str(score.source), function=function)


SCORES: PluginTable[Score] = PluginTable("shoal.scores", _BUILT_IN, _from_plugin)


def all_scores(statistics: BlockStatistics) -> dict[str, float]:
    """Every score that is defined for a block and finite, by name."""
    values = {name: score.function(statistics) for name, score in SCORES.items()}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
