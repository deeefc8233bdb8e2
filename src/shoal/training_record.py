"""A training run as plain data: what happened in every epoch, which blocks were lost, and what became of them."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from shoal.record import BlockRecord, Certificate, Comparison, FrozenModel, Machine, Network, Quality


class EpochRow(FrozenModel):
    """One epoch, counted from 1.

    `shares` holds for every block still there the share of steps in which its gate was open (of two gates the one that
    was open more often); `largest` the largest response of its branch in the whole epoch, `means` its mean magnitude in
    the last step. `taken_out` are the blocks that were frozen and removed at its end. Errors are fractions.
    """

    epoch: int
    rate: float
    decay: float
    epsilon: float
    loss: float
    train_error: float
    test_error: float | None = None
    alive: int
    closed: list[str]
    taken_out: list[str] = Field(default_factory=list)
    lost: bool = False
    shares: dict[str, float] = Field(default_factory=dict)
    largest: dict[str, float] = Field(default_factory=dict)
    means: dict[str, float] = Field(default_factory=dict)
    seconds: float


def last_epsilon(rows: Sequence[EpochRow]) -> float:
    """Epsilon in the last epoch in which gates worked; 0 if there was none."""
    return next((row.epsilon for row in reversed(rows) if row.epsilon > 0), 0.0)


class PrunedBlock(FrozenModel):
    """One block that was lost.

    `epoch` is the one at whose end it was frozen; `largest` the largest response of its branch in that epoch;
    `weight_left` over `weight_before` tells how far its last weights had died; `opens_on_test` is the share of test
    mini-batches on which its gate would open if it were live, `largest_on_test` the largest response there.
    """

    path: str
    stage: int
    epoch: int
    at_end: bool
    largest: float
    weight_before: float
    weight_left: float
    opens_on_test: float
    largest_on_test: float


class LiveGates(FrozenModel):
    """The whole network with live gates on test, against the network that came out: what freezing changed."""

    quality: Quality
    comparison: Comparison
    batches: int
    batch_size: int
    batches_with_an_opening: int


class FinalNetworks(FrozenModel):
    """What came out of a run: the whole network with frozen gates, and the plain one without the lost blocks."""

    whole: Network
    plain: Network
    comparison: Comparison
    certificate: Certificate
    live: LiveGates | None = None


class BaselineRun(FrozenModel):
    """Another run of the same epochs: how it ended, and this run against it (positive = this is worse)."""

    name: str
    epsilon: float
    side: bool
    lost: int
    quality: Quality
    comparison: Comparison


class TrainRecord(FrozenModel):
    """One training run: what was asked, what happened, what came out.

    `blocks` is the chain as it began; `gated` how many of them had gates; `target` how many were to be lost, where the
    run held epsilon itself. The errors in `rows` were looked at on the
    way and nothing was chosen by them; `settled.plain.quality` is that of the network that came out.
    """

    schema_version: int = 1
    command: str
    model: str
    data: str
    seed: int
    recipe: str
    settings: dict[str, Any]
    samples: int
    steps: int
    blocks: list[BlockRecord]
    gated: int
    target: int | None = None
    rows: list[EpochRow]
    lost: list[PrunedBlock]
    settled: FinalNetworks
    beside: list[BaselineRun] = Field(default_factory=list)
    machine: Machine
    warnings: list[str] = Field(default_factory=list)
    seconds: float
    created: str

    @property
    def epsilon(self) -> float:
        """Epsilon as it was set, or as a run that held it itself had it when it last worked; 0 without gates."""
        epsilon = self.settings.get("epsilon", 0.0)
        return last_epsilon(self.rows) if isinstance(epsilon, str) else float(epsilon)

    @property
    def share_lost(self) -> float:
        """The lost blocks over all residual blocks."""
        return len(self.lost) / len(self.blocks) if self.blocks else 0.0
