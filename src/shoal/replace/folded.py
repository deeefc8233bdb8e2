"""Maps that fold into the network: blocks go, and the last linear layer of the block before them makes up for it.

The output of that layer is added to the stream untouched otherwise, so with other weights it can add, too, what the
removed blocks would have added, as far as a linear map of its inputs tells: y = x + (W + dW) h. Nothing is left in the
place of the blocks, and the network is one of its own class. dW is sought in two forms and the better one on held-out
tokens is taken: any matrix, and T W with T a map of what the layer returns, which has fewer unknowns.

Source: ReplaceMe, arXiv:2505.02819, which has the second form, and no choice of the ridge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.offloaded import is_offloaded
from shoal.plan import Replacement
from shoal.preserve import copied, evaluating
from shoal.regress import Moments, fits, r2
from shoal.replace.early_stop import StopForward, run_until_stopped
from shoal.replace.fitting import MAX_UNKNOWNS, FittedReplacement, fit_in_passes
from shoal.replace.heldout_moments import HeldOutMoments
from shoal.replace.last_linear import LastLinear, last_linear
from shoal.replace.output_format import PLAIN
from shoal.replace.recording import recording
from shoal.replace.row_sampler import RowSampler
from shoal.replace.segments import SegmentChain
from shoal.replace.spans import Span

FOLDED = "folded"
# None so small that a Gram matrix of fewer tokens than inputs would have to be split into its eigenvectors.
_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# A layer is set anew if that takes this share off the error on tokens held out.
_MIN_GAIN = 0.01


@dataclass(frozen=True, eq=False)
class FoldedSpec:
    """A fold to be fitted: the first block of `span` stays, with other weights in its layer `linear`."""

    span: Span
    linear: LastLinear
    original: nn.Module
    kind: str = FOLDED

    @property
    def host(self) -> str:
        """The block that stays."""
        return self.span.paths[0]

    @property
    def stand_in(self) -> Replacement:
        """The replacement as plain data."""
        return Replacement(
            kind=FOLDED,
            layout=self.span.layout,
            in_channels=self.span.in_channels,
            out_channels=self.span.out_channels,
            copies=(self.host,),
        )

    @property
    def name(self) -> str:
        """The name of this replacement at this span, unique in a network."""
        return f"{self.kind} {self.span.name}"


def folded_specs(graph: BlockGraph, chain: SegmentChain, spans: Sequence[Span]) -> list[FoldedSpec]:
    """A fold for each span of at least two blocks on tokens or features that allows one.

    All blocks keep the shape of the stream, the first takes and returns it as a plain tensor, and nothing follows their
    sums. Offloaded weights are loaded for each call: there is nothing to fold into.
    """
    if is_offloaded(graph.model):
        return []
    linears: dict[str, LastLinear | None] = {}
    specs = []
    for span in spans:
        segments = chain.segments[span.start : span.stop]
        plain = all(step.residual and step.tail == "identity" and not step.replaces_output for step in segments)
        same = span.layout == "channels_last" and span.keeps_shape and segments[0].out_shape == span.out_shape
        if len(segments) < 2 or not plain or not same or segments[0].output_format != PLAIN:
            continue
        host = segments[0]
        if host.path not in linears:
            linears[host.path] = last_linear(graph, host, MAX_UNKNOWNS)
        linear = linears[host.path]
        if (
            linear is not None
            and linear.norm is None
            and linear.factor is None
            and not linear.moved
            and isinstance(graph.model.get_submodule(linear.layer), nn.Linear)
        ):
            specs.append(FoldedSpec(span, linear, graph.model))
    return specs


def fit_folded(
    graph: BlockGraph,
    batches: Sequence[Batch],
    specs: Sequence[FoldedSpec],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[FittedReplacement]:
    """Fit every fold of `specs` to the activations of the network on `batches`.

    Args:
        graph: the original network; it is left as it was.
        batches: calibration mini-batches; a fifth of the samples is held out to choose form and ridge.
        specs: what to fit.
        seed: of the positions drawn.
        on_progress: called with (passes over the data done, passes).

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations.
    """
    samples = sum(batch.size for batch in batches)
    hosts: dict[str, list[FoldedSpec]] = {}
    for spec in specs:
        hosts.setdefault(spec.host, []).append(spec)
    groups = [HostMoments(graph, members, samples, seed) for members in hosts.values()]
    return fit_in_passes(groups, partial(_collect, graph, batches), on_progress)


def _collect(graph: BlockGraph, batches: Sequence[Batch], hosts: Sequence["HostMoments"]) -> None:
    """One pass over the data."""
    paths = sorted(
        {path for host in hosts for path in (host.path, *host.ends)}, key=lambda path: graph.calls[path].start
    )
    features: dict[str, Tensor] = {}

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise StopForward  # the head of a language model may cost as much as many blocks

    def hook(path: str) -> Any:
        return lambda module, args: features.__setitem__(path, args[0])

    handles = [
        graph.model.get_submodule(host.linear.layer).register_forward_pre_hook(hook(host.path)) for host in hosts
    ]
    try:
        with evaluating(graph.model), torch.no_grad(), recording(graph, paths) as record:
            handles.append(graph.model.get_submodule(paths[-1]).register_forward_hook(stop))
            for batch in batches:
                run_until_stopped(graph.model, batch)
                for host in hosts:
                    x, host_sum = features[host.path], record.sums[host.path]
                    host.add(x, [record.sums[end] - host_sum for end in host.ends], batch.counted_in(x))
    finally:
        for handle in handles:
            handle.remove()


class HostMoments(HeldOutMoments):
    """The moments of all folds into one block: the inputs of its last layer, what the blocks behind it add."""

    def __init__(self, graph: BlockGraph, members: Sequence[FoldedSpec], samples: int, seed: int) -> None:
        self.graph, self.members, self.linear, self.path = graph, members, members[0].linear, members[0].host
        self.ends = [spec.span.end for spec in members]
        inputs = cast(nn.Linear, graph.model.get_submodule(self.linear.layer)).in_features
        sampler = RowSampler(inputs, samples, None, seed=seed)
        super().__init__(sampler, inputs, len(self.ends) * members[0].span.out_channels, f"at '{self.path}'")

    def solve_all(self) -> list[FittedReplacement]:
        """Every fold, fitted; the moments are given up."""
        train, held_out = self.given_up(biased=self.linear.biased)
        solutions = solve_update(train, held_out, self.linear.fused_weight(self.graph.model), len(self.members))
        return [self._fitted(spec, update) for spec, update in zip(self.members, solutions, strict=True)]

    def _fitted(self, spec: FoldedSpec, update: "WeightUpdate") -> FittedReplacement:
        original = self.graph.model.get_submodule(self.path)
        block = copied(original)
        # Of many folds each has weights of its own in one layer only: the others lie where those of the original do.
        for parameter, shared in zip(block.parameters(), original.parameters(), strict=True):
            parameter.data = shared.data
        layer: Any = block.get_submodule(self.linear.layer.removeprefix(f"{self.path}."))
        layer.weight.data = layer.weight.data + update.weight.to(layer.weight)
        if self.linear.biased:
            layer.bias.data = layer.bias.data + update.bias.to(layer.bias)
        return FittedReplacement(
            spec.span, spec.kind, spec.stand_in, block.eval(), update.ridge, update.r2_fit, update.r2_held_out
        )


@dataclass(frozen=True, eq=False)
class WeightUpdate:
    """What is added to the weights of a layer, float64, and how well that does on the rows fitted and held out."""

    weight: Tensor
    bias: Tensor
    ridge: float
    r2_fit: float
    r2_held_out: float


def solve_update(train: Moments, held_out: Moments, weight: Tensor, ends: int = 1) -> list[WeightUpdate]:
    """For each of `ends` groups of outputs what to add to a layer of this weight, so that it makes up the outputs.

    Of both forms, any matrix and a map of what the layer returns, the better one on the rows held out.
    """
    width = train.outputs // ends
    columns = [slice(number * width, (number + 1) * width) for number in range(ends)]
    free = fits(train, held_out, columns, ridges=_RIDGES)
    through = fits(train.mapped(weight), held_out.mapped(weight), columns, ridges=_RIDGES)
    updates = []
    for column, first, second in zip(columns, free, through, strict=True):
        best = first if first.r2_held_out >= second.r2_held_out else second
        matrix = best.weight if best is first else best.weight @ weight.to(best.weight)
        parts = train.part(column), held_out.part(column)
        scores = [r2(part, matrix, best.bias) for part in parts]
        updates.append(WeightUpdate(matrix, best.bias, best.ridge, *scores))
    return updates


def is_better(held_out: Moments, fitted: tuple[Tensor, Tensor], current: tuple[Tensor, Tensor]) -> bool:
    """Whether a fitted map (weight, bias) does clearly better on rows held out than the one there is.

    With fewer tokens than unknowns a refit of a layer far behind a cut makes it worse for any text but that of the fit.
    """
    error, before = (float(held_out.error(*each).sum()) for each in (fitted, current))
    return error < (1 - _MIN_GAIN) * before
