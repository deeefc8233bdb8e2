"""Attentions that give way to a linear map of the normalised stream: W fitted so that W norm(x) is what they add.

Nothing else of the block changes. A runtime that knows Nemotron-NAS calls it `replace_with_linear`: such a map has no
bias, and as it looks at no other token it has no cache.

Source: replacement of attentions by linear layers, Puzzle, arXiv:2411.19146, Sec. 2; fitted here in closed form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.blocks.module_replacements import branch_call, vacated_reason, with_modules
from shoal.blocks.operations import plain_name
from shoal.blocks.template import TensorRef
from shoal.blocks.trace import ModuleCall, OpRecord, Trace
from shoal.errors import DataError
from shoal.offloaded import is_offloaded
from shoal.plan import Replacement, TokenMap
from shoal.preserve import evaluating
from shoal.regress import fit
from shoal.replace.attention_map import AttentionMap
from shoal.replace.early_stop import StopForward, run_until_stopped
from shoal.replace.fitting import MAX_UNKNOWNS, FittedReplacement, fit_in_passes
from shoal.replace.heldout_moments import HeldOutMoments
from shoal.replace.kv_cache import without_kv_cache
from shoal.replace.output_format import PLAIN
from shoal.replace.row_sampler import RowSampler
from shoal.replace.segments import SegmentChain
from shoal.replace.spans import Span

LINEAR_ATTENTION = "linear_attention"
_ATTENTIONS = frozenset(["scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention"])
_PRODUCTS = frozenset(["matmul", "bmm", "baddbmm", "einsum"])


@dataclass(frozen=True, eq=False)
class LinearAttentionSpec:
    """A map to be fitted for the attention of the block that `span` consists of.

    Args:
        span: the block.
        unit: the number of the unit that is its attention.
        token_map: where the map stands.
        original: the network.
    """

    span: Span
    unit: int
    token_map: TokenMap
    original: nn.Module
    kind: str = LINEAR_ATTENTION

    @property
    def stand_in(self) -> Replacement:
        """The replacement as plain data."""
        return Replacement(
            kind=LINEAR_ATTENTION,
            layout=self.span.layout,
            in_channels=self.span.in_channels,
            out_channels=self.span.out_channels,
            copies=self.span.paths,
            attention=self.token_map,
        )

    @property
    def name(self) -> str:
        """The name of this replacement at this span, unique in a network."""
        return f"{self.kind} {self.span.name}"

    def attention_map(self) -> AttentionMap:
        """The map, of zeros."""
        replaced = self.original.get_submodule(self.token_map.module)
        return AttentionMap(self.token_map, self.span.out_channels, replaced)

    def block_with(self, attention_map: AttentionMap) -> nn.Module:
        """The block with this map in it; it shares all else with the block of the network."""
        [path] = self.span.paths
        inside = {self.token_map.module.removeprefix(f"{path}."): attention_map}
        return with_modules(self.original.get_submodule(path), inside)


def linear_attention_specs(graph: BlockGraph, chain: SegmentChain, spans: Sequence[Span]) -> list[LinearAttentionSpec]:
    """A map for the first attention of each block among `spans` that one may stand in for.

    The attention is a module of its own, which alone computes what its unit adds, from tokens as wide as the stream;
    the block takes and returns the stream as a plain tensor. Offloaded weights are loaded for each call: there is
    nothing to exchange.
    """
    if is_offloaded(graph.model):
        return []
    found = (_spec(graph, chain, span) for span in spans if span.stop - span.start == 1)
    return [spec for spec in found if spec is not None]


def fit_linear_attentions(
    graph: BlockGraph,
    batches: Sequence[Batch],
    specs: Sequence[LinearAttentionSpec],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[FittedReplacement]:
    """Fit the map of every spec to what its attention is given and returns on `batches`.

    Args:
        graph: the original network; it is left as it was.
        batches: calibration mini-batches; a fifth of the samples is held out to choose the ridge. Positions
            that a mask hides do not count.
        specs: what to fit.
        seed: of the positions drawn.
        on_progress: called with (passes over the data done, passes).

    Raises:
        DataError: too little data to hold any out.
        NonFiniteError: NaN or Inf in the activations.
    """
    samples = sum(batch.size for batch in batches)
    if specs and not samples:
        raise DataError("no data to fit linear maps to", "Give at least one mini-batch.")
    groups = [_MapMoments(graph, spec, samples, seed) for spec in specs]
    return fit_in_passes(groups, partial(_collect, graph, batches), on_progress)


def _spec(graph: BlockGraph, chain: SegmentChain, span: Span) -> LinearAttentionSpec | None:
    segment = chain.segments[span.start]
    plain = segment.residual and segment.output_format == PLAIN and span.layout == "channels_last" and span.keeps_shape
    if not plain or len(span.paths) != 1 or span.out_channels > MAX_UNKNOWNS:
        return None
    for unit in range(len(graph.chain[segment.path].removable_units)):
        inside = branch_call(graph, segment.path, unit)
        if inside is None or inside.path == segment.path or not _is_attention(graph.trace, inside):
            continue
        token_map = _token_map(graph.trace, inside, span.out_channels)
        if token_map is None:
            return None
        spec = LinearAttentionSpec(span, unit, token_map, graph.model)
        reason = vacated_reason(graph, segment.path, unit, inside, spec.attention_map())
        return None if reason else spec
    return None


def _is_attention(run: Trace, inside: ModuleCall) -> bool:
    """Whether tokens are mixed by weights that are themselves computed from tokens."""
    return any(_mixes_tokens(run, inside, op) for op in run.ops[inside.start : inside.stop])


def _mixes_tokens(run: Trace, inside: ModuleCall, op: OpRecord) -> bool:
    name = plain_name(op.name)
    computed = [value for value in op.inputs if inside.holds(run.values[value].producer)]
    return name in _ATTENTIONS or (name in _PRODUCTS and len(computed) > 1)


def _token_map(run: Trace, inside: ModuleCall, width: int) -> TokenMap | None:
    """What of the arguments is mapped, and to which form; None where the module returns more than what is added."""
    returned = inside.output if isinstance(inside.output, tuple) else (inside.output,)
    read = [_is_read(run, inside, item) for item in returned]
    if not returned or not read[0] or any(read[1:]):
        return None
    shape = run.values[returned[0].value].shape
    if len(shape) < 3 or shape[-1] != width:
        return None
    arguments: list[tuple[int | str, Any]] = [*enumerate(inside.args), *inside.kwargs.items()]
    tensors = [(key, run.values[item.value]) for key, item in arguments if isinstance(item, TensorRef)]
    argument = next((key for key, value in tensors if value.shape == shape and value.dtype.is_floating_point), None)
    if argument is None:
        return None
    outputs = len(returned) if isinstance(inside.output, tuple) else None
    return TokenMap(module=inside.path, argument=argument, outputs=outputs)


def _is_read(run: Trace, inside: ModuleCall, item: Any) -> bool:
    """Whether a part of what a module returns is a tensor that anything behind it reads."""
    return isinstance(item, TensorRef) and any(op >= inside.stop for op in run.readers.get(item.value, []))


def _collect(graph: BlockGraph, batches: Sequence[Batch], portion: Sequence["_MapMoments"]) -> None:
    """One pass over the data, up to the last of these attentions."""
    last = max(portion, key=lambda moments: graph.calls[moments.block].start)
    handles = []
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(moments: "_MapMoments") -> Callable[..., None]:
        def on_leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen[moments.block] = moments.map.input_of(args, kwargs), moments.map.output_of(output)
            if moments is last:
                raise StopForward

        return on_leave

    try:
        for moments in portion:
            module = graph.model.get_submodule(moments.spec.token_map.module)
            handles.append(module.register_forward_hook(hook(moments), with_kwargs=True))
        with evaluating(graph.model), without_kv_cache(graph.model), torch.no_grad():
            for batch in batches:
                run_until_stopped(graph.model, batch)
                for moments in portion:
                    x, y = seen.pop(moments.block)
                    moments.add(x, [y], batch.counted_in(x))
    finally:
        for handle in handles:
            handle.remove()


class _MapMoments(HeldOutMoments):
    """Moments of what an attention is given and returns, and the map they come to."""

    def __init__(self, graph: BlockGraph, spec: LinearAttentionSpec, samples: int, seed: int) -> None:
        self.spec, self.map, [self.block] = spec, spec.attention_map(), spec.span.paths
        width = spec.span.out_channels
        sampler = RowSampler(width, samples, None, seed=seed)
        super().__init__(sampler, width, width, f"at '{spec.token_map.module}'")

    def solve_all(self) -> list[FittedReplacement]:
        """The map, fitted, in its block; the moments are given up."""
        best = fit(*self.given_up(biased=False))
        self.map.linear_attn.weight.data = best.weight.to(self.map.linear_attn.weight)
        block, spec = self.spec.block_with(self.map), self.spec
        return [
            FittedReplacement(spec.span, spec.kind, spec.stand_in, block, best.ridge, best.r2_fit, best.r2_held_out)
        ]
