"""Where and how a step runs: device, processes, precision, memory layout, compiler."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.errors import ShoalError, UsageError, WorkersError
from shoal.preserve import copied
from shoal.training.budget import TrainingBudget
from shoal.training.processes import are_several, broadcast_from_main, is_launched_with, joined
from shoal.training.sharding import is_sharded, shard_

Value = TypeVar("Value")
# Buffers are not those of the first process in each forward; versions of torch call that by two names.
_NAMES = signature(nn.parallel.DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers": False
}
# How long processes may take to report after another was lost.
_REPORT_SECONDS = 10.0


def favours_channels_last(model: nn.Module, device: str) -> bool:
    """Whether a network runs faster with the channels last in memory: one of dense 2-d convolutions on a CPU."""
    dense = any(isinstance(module, nn.Conv2d) and module.groups == 1 for module in model.modules())
    return dense and torch.device(device).type == "cpu"


def take_layout_(model: nn.Module, like: nn.Module) -> nn.Module:
    """The model with its 4-d tensors contiguous wherever those of the same name in `like` are; in place."""
    layouts = dict(_tensors(like))
    for name, tensor in _tensors(model):
        if tensor.dim() == 4 and name in layouts and layouts[name].is_contiguous():
            tensor.data = tensor.data.contiguous()
    return model


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse bfloat16 on a device that cannot compute in it, or merely emulates it, and what a launcher asks otherwise.

    Raises:
        UsageError: names the device; or `accelerate launch --mixed_precision` asks for another precision.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in ("", "no", precision):
        raise UsageError(
            f"accelerate launch asks for mixed precision in {launched}, and this run is to learn in {precision}",
            "Give --bf16 (precision='bf16')." if launched == "bf16" else "Launch with --mixed_precision no or bf16.",
        )
    if precision != "bf16":
        return
    hint = "Leave out --bf16 (precision='bf16')."
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise UsageError(f"mixed precision (bf16) is asked for, and the device '{name}' does not compute in it", hint)
    try:
        with warnings.catch_warnings(), torch.autocast(device.type, dtype=torch.bfloat16):
            warnings.simplefilter("error")
    except (RuntimeError, UserWarning) as error:
        raise UsageError(
            f"mixed precision (bf16) is asked for, and the device '{device}' has none: {error}", hint
        ) from error


# What torch calls them: x86, then Arm. Without any of them every product is made of several steps.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")


def warn_of_slow_precision(precision: str, device: torch.device, budget: TrainingBudget | None) -> None:
    """Say that mixed precision may use up a budget of time on a processor that has no instructions for bfloat16.

    Nothing is said of a processor that torch does not know.
    """
    ask = getattr(torch.cpu, "get_capabilities", None)  # later than the lowest torch
    if precision != "bf16" or device.type != "cpu" or budget is None or budget.seconds is None or ask is None:
        return
    able = ask()
    known = [able[name] for name in _BF16_INSTRUCTIONS if name in able]
    if known and not any(known):
        warnings.warn(
            "this processor has no instructions for bfloat16: a step in mixed precision (bf16) may take many times as"
            " long as one in float32, and a budget of time be used up by the first few; leave out --bf16"
            " (precision='fp32')",
            stacklevel=1,  # one place for all callers: it is said once
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


class Engine:
    """The machinery of one run.

    Args:
        device: 'cpu', 'cuda', ...; with several processes accelerate gives each its own.
        precision: 'fp32' or 'bf16'.
        compile_: run the network through torch.compile.
        channels_last: keep images with the channels last in memory.
        shard: divide the weights of networks over the processes.
    """

    def __init__(
        self,
        device: str,
        precision: str,
        *,
        compile_: bool = False,
        channels_last: bool = False,
        shard: bool = False,
    ) -> None:
        self.device, self.processes, self.rank = torch.device(device), 1, 0
        if are_several():
            state = joined(device)
            self.processes, self.rank = state.num_processes, state.process_index
            self.device = state.device if self.processes > 1 else self.device
        self.is_main, self.shard = self.rank == 0, shard
        if shard and self.processes == 1:
            raise UsageError(
                "weights are divided over several processes (shard), and there is one",
                "Start several, like torchrun --nproc-per-node 4 -m shoal distill ..., or leave out --shard.",
            )
        if self.processes > 1 and not shard and is_launched_with("ACCELERATE_USE_FSDP"):
            raise UsageError(
                "accelerate launch --use_fsdp asks for divided weights, and this run would hold them whole",
                "Add --shard to `shoal distill`, or leave out --use_fsdp.",
            )
        check_precision(precision, self.device)
        self.mixed = torch.bfloat16 if precision == "bf16" else None
        self.compile, self.format = compile_, torch.channels_last if channels_last else None
        self._runner: nn.Module | None = None
        self._learner: nn.parallel.DistributedDataParallel | None = None
        self._random: dict[str, Tensor] = {}

    def placed(self, model: nn.Module) -> nn.Module:
        """A copy of the model on the device, in the memory layout asked for; what will be divided stays where it is.

        Raises:
            SurgeryError: it cannot be copied.
        """
        placed = copied(model) if self.shard else copied(model).to(self.device)
        return placed.to(memory_format=self.format) if self.format else placed

    def moved(self, batch: Batch) -> Batch:
        """The batch where and how the network wants it."""
        return batch.to(self.device, self.format)

    def runner(self, pair: nn.Module) -> nn.Module:
        """What to call in training instead of `pair`: compiled, and with gradients synchronised over processes."""
        if self._runner is None:
            runner = self._synchronised(pair) if self.processes > 1 else pair
            self._runner = torch.compile(runner) if self.compile else runner  # type: ignore[assignment]
        return self._runner  # type: ignore[return-value]

    def _synchronised(self, pair: nn.Module) -> nn.Module:
        on_card = self.device.type == "cuda"
        return nn.parallel.DistributedDataParallel(pair, device_ids=[self.device.index or 0] if on_card else None)

    def changed(self) -> None:
        """The network has lost a block: compile and wrap it anew."""
        self._runner = None

    def learner(self, model: nn.Module) -> nn.Module:
        """What to call instead of `model` in a step, so that gradients are summed over processes."""
        if self.processes == 1 or self.shard:
            return model
        if self._learner is None or self._learner.module is not model:
            device_ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self._learner = nn.parallel.DistributedDataParallel(
                model, device_ids=device_ids, find_unused_parameters=True, **_OWN_BUFFERS
            )
        return self._learner

    def sharded(self, model: nn.Module) -> nn.Module:
        """The model with its weights divided over the processes, where that was asked for; in place."""
        return shard_(model, self.device, self.processes) if self.shard and not is_sharded(model) else model

    def shares(self, batch: Batch, accumulate: int = 1) -> list[tuple[Batch, float]]:
        """The parts of a mini-batch that this process learns from, in turn, each with its share of all samples.

        Every sample is in one part of one process, however many there are; a process without any learns from the first
        one with a share of zero, since all of them take every step together; with divided weights every part, too.
        """
        by_process = [
            [part for part in mine.divided(accumulate) if part.size] for mine in batch.divided(self.processes)
        ]
        shares = [(part, part.size / batch.size) for part in by_process[self.rank]]
        # Divided weights are brought together for every part, so that all processes need as many.
        count = max(map(len, by_process)) if self.shard else 1
        return [*shares, *[(batch.take(1), 0.0)] * (count - len(shares))]

    def holding_gradients(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around a backward pass: gradients are summed over processes with the last part of a mini-batch alone."""
        return nullcontext() if last or self._learner is None else self._learner.no_sync()

    def average_statistics_(self, model: nn.Module) -> None:
        """Batch norms have the statistics of all processes' samples afterwards; in place."""
        if self.processes == 1:
            return
        norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
        if statistics:
            averaged = self.averaged(torch.cat([value.flatten() for value in statistics]))
            for value, part in zip(statistics, averaged.split([value.numel() for value in statistics]), strict=True):
                value.copy_(part.view_as(value))

    def on_main(self, function: Callable[[], Value]) -> Value:
        """What the main process computes, in every process."""
        return broadcast_from_main(function() if self.is_main else None, str(self.device))  # type: ignore[return-value]

    @contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """What torch raises where another process is gone comes out with the number of that process."""
        try:
            yield
        except RuntimeError as error:
            lost = self._lost() if self.processes > 1 and not isinstance(error, ShoalError) else []
            if not lost:
                raise
            raise WorkersError(
                f"process {', '.join(map(str, lost))} of {self.processes} ended, and the others cannot go on alone",
                "Its own output says why. The same command goes on from the last checkpoint.",
            ) from error

    def _lost(self) -> list[int]:
        """The processes that do not report within a few seconds; where their store is gone, the one that holds it."""
        keys = {rank: f"shoal/alive/{rank}" for rank in range(self.processes)}
        try:
            store = torch.distributed.distributed_c10d._get_default_store()
            store.set(keys[self.rank], "1")
            until = time.monotonic() + _REPORT_SECONDS
            while time.monotonic() < until and not store.check(list(keys.values())):
                time.sleep(0.2)
            return [rank for rank, key in keys.items() if not store.check([key])]
        except (RuntimeError, ValueError):
            return [0]

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, dtype=self.mixed) if self.mixed else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        loss.backward()

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(values, "SUM")

    def averaged(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return self._reduced(values, "SUM") / self.processes

    def highest(self, values: Tensor) -> Tensor:
        """The maximum over all processes, value by value."""
        return self._reduced(values, "MAX")

    def _reduced(self, values: Tensor, operation: str) -> Tensor:
        if self.processes == 1 or values.numel() == 0:
            return values
        reduced = values.clone()
        torch.distributed.all_reduce(reduced, op=getattr(torch.distributed.ReduceOp, operation))
        return reduced

    def random_state(self) -> dict[str, Tensor]:
        """The state of the random numbers that the network itself draws."""
        state = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_random_state(self, tensors: dict[str, Tensor]) -> None:
        """Remember what a checkpoint holds, for `apply_random_state`."""
        self._random = {name: value for name, value in tensors.items() if name.startswith("random.")}

    def apply_random_state(self) -> None:
        """Go on drawing where the checkpoint stopped."""
        if "random.cpu" in self._random:
            torch.set_rng_state(self._random["random.cpu"])
        if "random.cuda" in self._random and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["random.cuda"], self.device)
