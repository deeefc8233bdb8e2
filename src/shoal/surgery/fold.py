"""Fold: the same function in eval mode with fewer operations, by exact algebra read off a trace.

Three kinds, in this order: constants that a branch adds, batch norms, chains of linear maps. What can be folded is a
matter of structure; where the numbers matter too (a constant, a shift of zero), a plan names what was folded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from shoal.batches import as_batch, call
from shoal.blocks import BlockGraph, analyze
from shoal.blocks.shortcut_modules import match_mode_
from shoal.blocks.trace import Trace
from shoal.errors import PlanError, ShoalError, SurgeryError, naming_memory_shortage
from shoal.intake import check_network
from shoal.outputs import distance, mismatch, read_outputs
from shoal.plan import FoldStep
from shoal.preserve import copied, evaluating
from shoal.surgery.fold_constants import ConstantFold, find_constant_folds, take_in
from shoal.surgery.fold_graph import FoldGraph, FoldLayer, runs_of_other_inputs
from shoal.surgery.fold_layers import carry_out_chain, carry_out_norm, find_chain_fold, find_norm_fold


@dataclass(frozen=True)
class FoldResult:
    """The folded network, and what was done to it.

    Args:
        model: the folded network.
        folded: as text: 'layer1.0.bn1 into layer1.0.conv1'.
        refused: what looks foldable and is not, by path, with the reason.
        steps: the same as data, for a plan.
        deviation: largest absolute difference of the outputs on the example; None where it was not measured.
    """

    model: nn.Module
    folded: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    steps: list[FoldStep] = field(default_factory=list)
    deviation: float | None = None


@naming_memory_shortage()
def fold(model: nn.Module, example: object) -> FoldResult:
    """A folded copy of `model`, compared with the original on `example`; `model` stays as it is.

    The same function in eval mode up to rounding. In training mode it is another network: a batch norm that went no
    longer normalises by the mini-batch, and merged layers learn as one. Fold after the last training.

    Raises:
        SurgeryError: the network's own code does not run with the folded layers.
        ModelRaisedError, TraceError, NonFiniteError: the network cannot be traced.
    """
    check_network(model)
    batch = as_batch(example)
    result = fold_(analyze(copied(model), batch))
    with evaluating(model), evaluating(result.model):
        expected = read_outputs(call(model, batch))
        try:
            actual = read_outputs(call(result.model, batch))
        except ShoalError as error:
            raise SurgeryError(
                f"the network does not run once it is folded: {error.message}",
                "Its code asks a layer for more than its result; leave it unfolded, and please report the network.",
            ) from error
    reason = mismatch(expected, actual, rows=batch.size)
    if reason is not None:
        raise SurgeryError(
            f"folded, the network returns something else: {reason} (the original first)",
            "Leave it unfolded, and please report the network.",
        )
    pairs = [(tensor, actual.tensors[name]) for name, tensor in expected.floating.items()]
    deviation = max(
        (distance(before, after).largest for before, after in pairs if before.shape == after.shape), default=0.0
    )
    return replace(result, deviation=deviation)


def fold_(block_graph: BlockGraph) -> FoldResult:
    """Fold `block_graph.model` in place, as far as exact algebra goes; the graph does not describe it afterwards.

    For eval mode: see `fold` about training.
    """
    run = FoldRun(block_graph, runs_of_other_inputs(block_graph))
    with torch.no_grad():
        run.fold_all()
    return FoldResult(block_graph.model, [describe_folds(step) for step in run.steps], run.refused, run.steps)


def fold_as_planned_(block_graph: BlockGraph, steps: Sequence[FoldStep], *, weights_follow: bool = False) -> nn.Module:
    """Carry out exactly these folds, in place.

    Args:
        block_graph: of the network as it stands before the folds.
        steps: what `fold_` did to a network of the same structure.
        weights_follow: the weights are about to be replaced, so only the structure has to be right.

    Raises:
        PlanError: a step cannot be carried out on this network; says why.
    """
    run = FoldRun(block_graph, weights_follow=weights_follow)
    with torch.no_grad():
        for step in steps:
            run.fold_step(step)
    return block_graph.model


def describe_folds(step: FoldStep) -> str:
    """One fold in words."""
    into = ", ".join(step.into)
    return f"the constant of {step.path} into {into}" if step.kind == "constant" else f"{step.path} into {into}"


class FoldRun:
    """One run of folding: the graph as it changes, what was done, what was refused."""

    def __init__(self, block_graph: BlockGraph, others: Sequence[Trace] = (), *, weights_follow: bool = False) -> None:
        self.block_graph, self.weights_follow = block_graph, weights_follow
        self.graph = FoldGraph(block_graph, others)
        self.steps: list[FoldStep] = []
        norms = nn.modules.batchnorm._BatchNorm
        self.refused: dict[str, str] = {
            path: reason
            for path, reason in self.graph.refused.items()
            if isinstance(block_graph.model.get_submodule(path), norms)
        }
        self.constants: dict[str, ConstantFold] = {}
        if not weights_follow:
            folds, refused = find_constant_folds(block_graph, self.graph)
            self.constants = {fold.path: fold for fold in folds}
            self.refused |= refused

    def fold_all(self) -> None:
        """Fold everything that can be folded."""
        for block, fold in self.constants.items():
            self._note(block, self._constant(block, [layer.path for layer, _ in fold.shifts]))
        before = -1
        while before < len(self.steps):  # a fold may put two layers next to each other
            before = len(self.steps)
            for layer in (*self.graph.norms, *self.graph.maps):
                path = self.graph.path(layer)
                if path is not None:
                    done = self._norm(layer, path) if layer in self.graph.norms else self._chain(layer, path)
                    self._note(path, done)

    def fold_step(self, step: FoldStep) -> None:
        """Carry out one planned step."""
        done: FoldStep | str | None
        if step.kind == "constant":
            done = self._constant(step.path, step.into)
        else:
            norm = step.kind == "batch_norm"
            layer = self._layer(step.path, self.graph.norms if norm else self.graph.maps)
            if layer is None:
                done = self.graph.refused.get(step.path, "there is no such layer")
            else:
                done = (self._norm if norm else self._chain)(layer, step.path, step.into)
        if done != step:
            reason = done if isinstance(done, str) else "there is no layer right before it"
            raise PlanError(
                f"the plan folds {describe_folds(step)}, which cannot be done to this network: {reason}",
                "Make a new plan for this network: `shoal compress ... --fold`.",
            )

    def _note(self, path: str, done: FoldStep | str | None) -> None:
        if isinstance(done, str):
            self.refused[path] = done
        elif done is not None:
            self.refused.pop(path, None)
            self.steps.append(done)

    def _layer(self, path: str, layers: list[FoldLayer]) -> FoldLayer | None:
        return next((layer for layer in layers if self.graph.path(layer) == path), None)

    def _constant(self, path: str, into: list[str]) -> FoldStep | str:
        shortcut = self.block_graph.shortcut_modules.get(path)
        if shortcut is None:
            return "there is no such block, or it cannot go"
        if not self.weights_follow:
            fold = self.constants.get(path)
            if fold is None:
                return self.refused.get(path, "its branch does not add a constant")
            if [layer.path for layer, _ in fold.shifts] != into:
                return "other layers read what it adds"
            reason = take_in(fold)
            if reason is not None:
                return reason
        block = self.block_graph.model.get_submodule(path)
        match_mode_(shortcut, block)
        self.block_graph.model.set_submodule(path, shortcut, strict=True)
        additions = self.block_graph.additions[path]
        self.graph.drop([op for addition in additions for op in (*addition.branch_ops, addition.op)])
        for addition in additions:
            self.graph.redirect(addition.result, addition.stream)
        self.graph.update_paths()
        return FoldStep(kind="constant", path=path, into=into)

    def _norm(self, layer: FoldLayer, path: str, into: list[str] | None = None) -> FoldStep | str:
        fold = find_norm_fold(self.graph, layer)
        if isinstance(fold, str):
            return fold
        return self._carry_out("batch_norm", layer, path, fold.into, into, lambda: self._call(carry_out_norm, fold))

    def _chain(self, layer: FoldLayer, path: str, into: list[str] | None = None) -> FoldStep | str | None:
        fold = find_chain_fold(self.graph, layer)
        if fold is None or isinstance(fold, str):
            return fold
        if into is None and fold.costs is not None:
            return fold.costs
        return self._carry_out("linear", layer, path, fold.into, into, lambda: self._call(carry_out_chain, fold))

    def _call(self, carry_out: Callable[..., str | None], fold: object) -> str | None:
        return carry_out(fold, unchecked=self.weights_follow)

    def _carry_out(
        self,
        kind: str,
        layer: FoldLayer,
        path: str,
        target: FoldLayer,
        into: list[str] | None,
        carry_out: Callable[[], str | None],
    ) -> FoldStep | str:
        step = FoldStep.model_validate({"kind": kind, "path": path, "into": [str(self.graph.path(target))]})
        if into is not None and step.into != into:
            return f"it would go into {step.into[0]}"
        reason = carry_out()
        if reason is not None:
            return reason
        self.graph.replace_with_identity(layer, path)
        return step
