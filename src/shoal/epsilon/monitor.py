"""What the gates did over an epoch, block by block, without waiting for the device at every step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.epsilon.gate import Gate
from shoal.training.engine import Engine


@dataclass(frozen=True)
class EpochSummary:
    """One epoch; blocks in order. See `shoal.training_record.EpochRow`."""

    closed: list[str]
    shares: dict[str, float]
    largest: dict[str, float]
    means: dict[str, float]


class GateMonitor:
    """Counts openings.

    Args:
        gates: all gates of the network.
        engine: adds up the counts of several processes.
    """

    def __init__(self, gates: Sequence[Gate], engine: Engine) -> None:
        self.gates, self.engine = list(gates), engine
        self.streaks = dict.fromkeys((gate.block for gate in gates), 0)
        self._start()

    def _start(self) -> None:
        self.steps = 0
        self.opened: Tensor = torch.zeros(len(self.gates), device=self.engine.device)
        self.largest: Tensor = torch.zeros(len(self.gates), device=self.engine.device)

    def update(self) -> None:
        """Take in what the gates saw in the last step."""
        self.steps += 1
        if not self.gates:
            return
        largest = torch.stack([_number(gate.largest) for gate in self.gates]).float()
        epsilon = self.gates[0].epsilon
        self.opened += ~(largest <= epsilon)  # NaN counts as open
        self.largest = torch.maximum(self.largest, largest)

    def end_epoch(self, *, gates_work: bool) -> EpochSummary:
        """Close the epoch: a block is closed if all of its gates were, on every step and in every process.

        Args:
            gates_work: whether epsilon was above 0; otherwise no block counts as closed.
        """
        shares: dict[str, float] = {}
        largest: dict[str, float] = {}
        means: dict[str, float] = {}
        opened = self.engine.averaged(self.opened / max(self.steps, 1)).tolist()
        highest = self.engine.highest(self.largest).tolist()
        for gate, share, top in zip(self.gates, opened, highest, strict=True):
            shares[gate.block] = max(share, shares.get(gate.block, 0.0))
            largest[gate.block] = max(top, largest.get(gate.block, 0.0))
            if gate.mean is not None:
                means[gate.block] = max(float(gate.mean), means.get(gate.block, 0.0))
        closed = [path for path, share in shares.items() if share == 0 and gates_work]
        for path in shares:
            self.streaks[path] = self.streaks[path] + 1 if path in closed else 0
        self._start()
        return EpochSummary(closed, shares, largest, means)

    def closed_epochs(self, epochs: int) -> list[str]:
        """The blocks that were closed on every step of the last so many epochs."""
        present = dict.fromkeys(gate.block for gate in self.gates)
        return [path for path in present if self.streaks[path] >= epochs]

    def forget(self, paths: Sequence[str]) -> None:
        """Watch these blocks no longer."""
        self.gates = [gate for gate in self.gates if gate.block not in paths]
        for path in paths:
            self.streaks.pop(path, None)
        self._start()


def _number(largest: Tensor | None) -> Tensor:
    return torch.zeros(()) if largest is None else largest
