"""Where and how a step runs: device, processes, precision, memory layout, compiler. accelerate is underneath."""

import os
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.errors import UsageError
from shoal.preserve import copied

Told = TypeVar("Told")


def told_by_main(value: Told, device: str) -> Told:
    """The value that the main process has, in every process that trains together; with one process it is `value`.

    Args:
        value: plain data; what the other processes give is ignored.
        device: where they train.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return value
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=torch.device(device).type == "cpu")
    told = [value]
    broadcast_object_list(told)
    return told[0]


class Engine:
    """The machinery of one run.

    Args:
        device: 'cpu', 'cuda', ...; with several processes accelerate gives each its own.
        precision: 'fp32' or 'bf16'.
        compile_: run the network through torch.compile.
        channels_last: keep images with the channels last in memory.
    """

    def __init__(self, device: str, precision: str, *, compile_: bool = False, channels_last: bool = False) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
        except ImportError as error:
            raise UsageError("training needs accelerate, which is not installed", "pip install accelerate") from error
        if AcceleratorState._shared_state:  # one process may train twice, in another precision or on another device
            AcceleratorState._reset_state(reset_partial_state=True)
        wanted = torch.device(device)
        mixed = "bf16" if precision == "bf16" else "no"
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=wanted.type == "cpu")
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.is_main = self.accelerator.is_main_process
        self.device = self.accelerator.device if self.processes > 1 else wanted
        self.compile, self.format = compile_, torch.channels_last if channels_last else None
        self._runner: nn.Module | None = None
        self._random: dict[str, Tensor] = {}

    def placed(self, model: nn.Module) -> nn.Module:
        """A copy of the model on the device, in the memory layout asked for.

        Raises:
            SurgeryError: it cannot be copied.
        """
        placed = copied(model).to(self.device)
        return placed.to(memory_format=self.format) if self.format else placed

    def moved(self, batch: Batch) -> Batch:
        """The batch where and how the network wants it."""
        return batch.to(self.device, self.format)

    def runner(self, pair: nn.Module) -> nn.Module:
        """What to call in training instead of `pair`: compiled, and with gradients synchronised over processes."""
        if self._runner is None:
            runner = self.accelerator.prepare_model(pair) if self.processes > 1 else pair
            self._runner = torch.compile(runner) if self.compile else runner  # type: ignore[assignment]
        return self._runner  # type: ignore[return-value]

    def changed(self) -> None:
        """The network has lost a block: compile and wrap it anew."""
        self._runner = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        self.accelerator.backward(loss)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(values, "sum") if self.processes > 1 else values

    def averaged(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return self.accelerator.reduce(values, "mean") if self.processes > 1 else values

    def highest(self, values: Tensor) -> Tensor:
        """The maximum over all processes, value by value."""
        if self.processes == 1 or values.numel() == 0:
            return values
        return self.accelerator.gather(values).view(self.processes, -1).amax(dim=0)

    def random_state(self) -> dict[str, Tensor]:
        """The state of the random numbers that the network itself draws."""
        found = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def set_random_state(self, tensors: dict[str, Tensor]) -> None:
        """Remember what a checkpoint holds, for `apply_random_state`."""
        self._random = {name: value for name, value in tensors.items() if name.startswith("random.")}

    def apply_random_state(self) -> None:
        """Go on drawing where the checkpoint stopped."""
        if "random.cpu" in self._random:
            torch.set_rng_state(self._random["random.cpu"])
        if "random.cuda" in self._random and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["random.cuda"], self.device)
