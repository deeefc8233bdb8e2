"""All scores of all blocks from one pass: a forward and a backward for each mini-batch, reduced at once.

Additions are looked into by taps, blocks by hooks. The gradient with respect to a branch is that of a zero added to it,
one and the same scalar for all branches, so that a hook sees each gradient as it comes by and none is kept.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import IGNORED, Batch, batches, call, device_of, first_samples
from shoal.blocks import Block, BlockGraph
from shoal.blocks.hooks import has_forward_hooks
from shoal.blocks.interception import intercept_additions
from shoal.blocks.shortcut_modules import main_output
from shoal.blocks.template import TensorRef, template
from shoal.errors import DataError, NonFiniteError, SurgeryError, UsageError
from shoal.measure import Reading, inferred, log_probabilities
from shoal.measure.classes import checked_labels
from shoal.measure.output_reading import OutputReading, padding_of, squared_error
from shoal.offloaded import is_offloaded
from shoal.preserve import evaluating
from shoal.scanning.scores.block_scores import all_scores
from shoal.scanning.scores.rows import channel_axis, channels_last, narrowed, some_positions
from shoal.scanning.scores.statistics import BlockStatistics

_CUT_OFF = "its gradients are cut off"
_NO_TARGETS = "outputs other than class scores need targets of their shape"


def block_scores(
    graph: BlockGraph, loader: Iterable[Any], *, limit: int | None = None, reading: Reading | None = None
) -> dict[str, dict[str, float]]:
    """Every score in the table for every block with a residual addition; undefined scores are left out.

    The network is left as it was: modes, random state, hooks, `requires_grad`, and no parameter receives a gradient.
    Memory: one mini-batch with the graph of its forward, whatever the number of mini-batches.

    Args:
        graph: the analysed network.
        loader: mini-batches; read once. Where there are labels the loss of `taylor` is the cross-entropy to them,
            without them (or with such as are no class indices) to the network's own most likely answer.
        limit: maximum number of samples.
        reading: how outputs are read; by default as the first sample tells. Of values the loss is the
            squared error to targets of their shape; without such there is no `taylor`.

    Raises:
        DataError: no samples, labels out of range, outputs that are no logits.
        NonFiniteError: NaN or Inf in the outputs, or in a block, which is named.
        ModelRaisedError: the model raised.
        UsageError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit = {limit} samples", "Expected at least one.")
    blocks = [block for block in graph.chain if block.units and block.path]
    watched = {block.path: _Watched.of(graph, block) for block in blocks}
    collector = _Collector(watched, device_of(graph.model), reading)
    with (
        evaluating(graph.model),
        _without_gradients(graph.model),
        intercept_additions(graph.model, blocks, collector.tap),
        _watching(graph.model, collector),
    ):
        for batch in first_samples(batches(loader, collector.device), limit):
            if collector.samples == 0:
                collector.try_backward(graph.model, batch.take(1))
            collector.run(graph.model, batch)
    if collector.samples == 0:
        raise DataError("there is no data to score on", "Give a loader with at least one mini-batch.")
    return {path: all_scores(watched.seen) for path, watched in collector.watched.items()}


@dataclass
class _Watched:
    """One block: where its stream enters and leaves, its statistics, and tensors held during one call."""

    block: Block
    branch: list[nn.Module]
    entry: int
    exit: int | None
    overwrites: bool
    seen: BlockStatistics = field(default_factory=BlockStatistics)
    before: Tensor | None = None
    stream: Tensor | None = None
    added: Tensor | None = None
    reached: bool = False

    @classmethod
    def of(cls, graph: BlockGraph, block: Block) -> "_Watched":
        """Where the stream is among the tensors that go in and come out, as the trace saw it."""
        run, call, additions = graph.trace, graph.calls[block.path], list(graph.additions[block.path])
        entry = next((value for value in call.inputs if run.depends(additions[0].origin, value)), -1)
        try:
            leaving = call.outputs.index(main_output(run, call, additions))
        except SurgeryError:
            leaving = None
        changed = {value for op in run.ops[call.start : call.stop] for value in op.changed}
        branch = [graph.model.get_submodule(path) for unit in block.units for path in unit.branch]
        place = call.inputs.index(entry) if entry >= 0 else -1
        return cls(block, branch, place, leaving if entry >= 0 else None, entry in changed)

    def clear(self) -> None:
        self.before = self.stream = self.added = None


class _Collector:
    def __init__(self, watched: dict[str, _Watched], device: torch.device, reading: Reading | None) -> None:
        self.watched, self.reading = watched, reading
        self.device = device
        self.samples = 0  # before the mini-batch at hand
        self.turn = 0
        self.root: Tensor | None = None
        self.differentiable = True
        self.reason = _CUT_OFF

    def try_backward(self, model: nn.Module, sample: Batch) -> None:
        """Find out on one sample whether gradients reach the branches; the other scores do not need them.

        Code that never trains may overwrite what a backward needs, or switch gradients off.
        """
        if is_offloaded(model):  # the graph of a backward would hold the weights of all modules at once
            self.differentiable = False
            warnings.warn("no Taylor scores, the weights of the network are not in memory", stacklevel=3)
            return
        reason = None
        try:
            self.run(model, sample)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a model that raises whatever the mode will do so again, in the pass itself
            self.differentiable, reason = False, str(error)
        if not any(watched.seen.product_count for watched in self.watched.values()):
            self.differentiable = False
        if not self.differentiable and self.watched:
            warnings.warn(
                f"no Taylor scores, the network cannot be differentiated: {reason or self.reason}", stacklevel=3
            )
        for watched in self.watched.values():
            watched.seen = BlockStatistics()
        self.samples = self.turn = 0

    def run(self, model: nn.Module, batch: Batch) -> None:
        """One forward and one backward."""
        try:
            with torch.set_grad_enabled(self.differentiable):
                self.root = torch.zeros((), device=self.device, requires_grad=True) if self.differentiable else None
                output = call(model, batch)
                self.reading = self.reading or inferred(model, output, batch).scaled_by(output, batch)
                tensors = self.reading.tensors(output, batch)
                losses = [
                    _loss(head, tensors[head.name], batch)
                    for head in self.reading.outputs
                    if _has_loss(head, tensors[head.name], batch.target)
                ]
                self.reason = _CUT_OFF if losses else _NO_TARGETS
                loss = torch.stack(losses).sum() if losses else None
                if self.root is not None and loss is not None and loss.requires_grad:
                    torch.autograd.grad(loss, self.root, allow_unused=True)
            for watched in self.watched.values():
                watched.seen.product_count += batch.size if watched.reached else 0
        finally:
            self.root = None
            for watched in self.watched.values():
                watched.clear()
                watched.reached = False
        self.samples += batch.size
        self.turn += 1

    def tap(self, path: str, unit: int, stream: Tensor, branch: Tensor) -> Tensor | None:
        """Take in one addition; what is added instead is the same branch with a zero that the loss can be traced to."""
        watched = self.watched[path]
        watched.seen.add_unit(branch.detach())
        self._sum_up(watched, stream.detach(), branch.detach())
        if self.root is None or not torch.is_grad_enabled():
            return None
        shifted = branch + self.root.to(branch.dtype)
        values = shifted.detach()

        def come_by(gradient: Tensor | None) -> None:
            if gradient is None:  # an operation behind it has no derivative: a quantised layer
                return
            watched.reached = True
            watched.seen.add_gradient(values, gradient)

        shifted.register_hook(come_by)
        return shifted

    def _sum_up(self, watched: _Watched, stream: Tensor, branch: Tensor) -> None:
        branch = branch.expand_as(stream) if branch.shape != stream.shape else branch
        if watched.stream is None or watched.added is None:
            # Copies where a later in-place addition would change them before the block is through.
            several = len(watched.block.units) > 1
            watched.stream, watched.added = (stream.clone(), branch.clone()) if several else (stream, branch)
        elif watched.added.shape == branch.shape:
            watched.added += branch
        if len(watched.block.units) == 1:
            self._close(watched)

    def _close(self, watched: _Watched) -> None:
        if watched.stream is None or watched.added is None:
            return
        watched.seen.add_branch(watched.stream, watched.added)
        watched.stream = watched.added = None
        if not math.isfinite(watched.seen.branch_sum + watched.seen.ratio_sum):
            raise NonFiniteError(
                f"NaN or Inf in block '{watched.block.path}'", "Check the weights and the scale of the input."
            )

    def entering(self, watched: _Watched) -> Callable[..., None]:
        """A hook that keeps the block's input until it leaves."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            watched.clear()
            entry = _tensor_at((args, kwargs), watched.entry)
            if entry is not None and watched.exit is not None:
                watched.before = entry.detach().clone() if watched.overwrites else entry.detach()

        return enter

    def leaving(self, watched: _Watched) -> Callable[..., None]:
        """A hook that compares the block's output with its input."""

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._close(watched)
            after = _tensor_at(output, watched.exit if watched.exit is not None else -1)
            if watched.before is not None and after is not None:
                self._compare(watched, watched.before, after.detach())
            watched.clear()

        return leave

    def _compare(self, watched: _Watched, before: Tensor, after: Tensor) -> None:
        if before.dim() < 2 or before.dim() != after.dim() or before.shape[0] != after.shape[0]:
            return
        axis = channel_axis(before, watched.branch)
        before, after = channels_last(before, axis), channels_last(after, axis)
        if before.shape[1] != after.shape[1]:
            return  # the positions are others: no row of one belongs to a row of the other
        if before.shape == after.shape:
            watched.seen.add_pair(before, after)
        chosen = some_positions(before.shape[0], before.shape[1], self.turn, before.device)
        numbers = torch.arange(self.samples, self.samples + before.shape[0], device=before.device)
        half = (numbers % 2 == 1).repeat_interleave(len(chosen))
        rows, targets = (narrowed(stream[:, chosen].flatten(0, 1)) for stream in (before, after))
        watched.seen.add_rows(rows, targets, half)


def _tensor_at(item: Any, place: int) -> Tensor | None:
    """The tensor at this place among all tensors of arguments or results, counted as the trace counts them."""
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> TensorRef:
        tensors.append(tensor)
        return TensorRef(len(tensors) - 1)

    template(item, note)
    return tensors[place] if 0 <= place < len(tensors) else None


def _has_loss(head: OutputReading, output: Tensor, target: Tensor | None) -> bool:
    """Whether something is known that the output should be; of classes the most likely one stands in for the label."""
    if head.task == "values":
        return head.rows and target is not None and target.numel() == output.numel()
    return head.task == "classes"


def _loss(head: OutputReading, output: Tensor, batch: Batch) -> Tensor:
    """Sum over samples of the cross-entropy, averaged over the positions of each; a sum keeps half precision awake.

    Of values the squared error to the target.
    """
    target = batch.target
    if head.task == "values" and target is not None:
        numbers = target.reshape(output.shape).to(output)
        return squared_error(numbers, output, padding_of(output, batch)).sum() / (head.scale or 1.0)
    log_probs = log_probabilities(head.scores(output), axis=head.axis)
    labels = _labels(target, log_probs)
    counted = labels != IGNORED
    picked = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * counted
    shares = counted.flatten(1).sum(dim=1).clamp(min=1) if counted.dim() > 1 else 1
    return -((picked.flatten(1).sum(dim=1) if picked.dim() > 1 else picked) / shares).sum()


def _labels(target: Tensor | None, log_probs: Tensor) -> Tensor:
    """The labels where they are class indices of the answers' shape, else the most likely answers."""
    labels = checked_labels(target, log_probs)
    return log_probs.detach().argmax(dim=-1) if labels is None else labels.to(log_probs.device)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient while the context lasts: only the branches are asked about."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _watching(model: nn.Module, collector: _Collector) -> Iterator[None]:
    handles = []
    try:
        for path, watched in collector.watched.items():
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(collector.entering(watched), with_kwargs=True))
            first = has_forward_hooks(module)
            handles.append(module.register_forward_hook(collector.leaving(watched), with_kwargs=True, prepend=first))
        yield
    finally:
        for handle in handles:
            handle.remove()
