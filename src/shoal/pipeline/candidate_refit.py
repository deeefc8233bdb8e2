"""The cheapest repair of a candidate change: closed forms for the next few maps behind it, and for the head.

A whole refit (`replace.refit`) sets every linear map behind a change anew. Most of what it wins is won by the first
maps behind the change and by the last layer of the network, so a table of hundreds of candidates refits only these, on
a part of the samples, from the student's own activations to the original's sums. The network itself is never written
to: copies of single layers are refitted, and take the places of theirs while a candidate is measured.

On a ResNet-20 the sum of these damages ranks plans by what a whole refit leaves with Spearman 0.95 (two maps and the
head), against 0.70 of damages without a refit, 0.80 with the head alone, 0.98 with every map (benchmarks/guesses.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, like_of
from shoal.blocks import BlockGraph
from shoal.blocks.interception import intercept_additions
from shoal.blocks.prefix_cache import Forward, PrefixCache
from shoal.offloaded import is_offloaded
from shoal.pipeline.profiling import PlacedModule
from shoal.preserve import evaluating
from shoal.regress import fits
from shoal.replace import (
    PLAIN,
    REPLACEMENTS,
    FittedReplacement,
    OutputFormat,
    ReplacementSpec,
    Segment,
    SegmentChain,
    Span,
    recording,
)
from shoal.replace.early_stop import StopForward, until_stopped
from shoal.replace.fitting import SpanMoments
from shoal.replace.folded import is_better
from shoal.replace.kv_cache import without_kv_cache
from shoal.replace.last_linear import LastLinear, last_linear, network_head
from shoal.replace.recording import Recording
from shoal.replace.refit import LayerMoments

Forwards = dict[nn.Module, Forward]


@dataclass(frozen=True, eq=False)
class PlacedChange:
    """What is done to the segments `start` to `stop` - 1.

    Args:
        name: unique among the changes of a network.
        start: index of the first segment.
        stop: index after the last.
        forwards: what runs in the place of modules.
        fitted: the replacement; None for a removal.
    """

    name: str
    start: int
    stop: int
    forwards: Mapping[nn.Module, Forward]
    fitted: FittedReplacement | None = None


@dataclass(frozen=True)
class CandidateRefitConfig:
    """How much a candidate is refitted.

    Args:
        maps: how many kept segments behind a change have their last linear map refitted.
        head: whether the last layer of the network is refitted too.
        samples: at most so many are refitted on.
        memory: bytes for the original's activations on them; with less, fewer samples.
        rows_per_unknown: of a map. Fewer than for a first fit, since the ridge shrinks towards the map that is there.
        max_unknowns: of a map; wider ones are left as they are.
        ridges: what to choose from.
        seed: of the positions drawn.
    """

    maps: int = 2
    head: bool = True
    samples: int = 128
    memory: float = 5e8
    rows_per_unknown: float = 4.0
    max_unknowns: int = 1024
    ridges: tuple[float, ...] = (1e-4, 1e-2, 1.0)
    seed: int = 2


def replacement_change(model: nn.Module, fitted: FittedReplacement) -> PlacedChange:
    """A fitted replacement as a change."""
    forwards = span_forwards(model, fitted.span, fitted.module)
    return PlacedChange(f"{fitted.kind} {fitted.span.name}", fitted.span.start, fitted.span.stop, forwards, fitted)


def removal_change(graph: BlockGraph, segments: SegmentChain, index: int) -> PlacedChange:
    """The removal of a residual segment as a change."""
    path = segments.paths[index]
    forwards = {graph.model.get_submodule(path): graph.shortcut_modules[path].forward}
    return PlacedChange(f"remove {path}", index, index + 1, forwards)


def span_forwards(model: nn.Module, span: Span, module: nn.Module) -> Forwards:
    """Forwards that put `module` in the place of a span."""
    placed = PlacedModule(module, span.in_shape, span.paths, span.output_formats)
    return {model.get_submodule(path): forward for path, forward in placed.forwards}


@dataclass
class CandidateRefit:
    """Refits candidates of one network, one after the other; see the module.

    Args:
        graph: of the original; it is left as it was.
        segments: of the original.
        batches: calibration mini-batches; as many are used as the configuration allows.
        config: how much is refitted.
    """

    graph: BlockGraph
    segments: SegmentChain
    batches: Sequence[Batch]
    config: CandidateRefitConfig = field(default_factory=CandidateRefitConfig)

    def __post_init__(self) -> None:
        graph, limit = self.graph, self.config.max_unknowns
        # Offloaded weights are read from the disk in each run: nothing about them is cheap.
        offloaded = is_offloaded(graph.model)
        self.maps = [None if offloaded else last_linear(graph, segment, limit) for segment in self.segments.segments]
        self.head = network_head(graph, self.segments, limit) if self.config.head and not offloaded else None
        self.parts: list[Batch] = []
        remaining = self._affordable_samples()
        for batch in self.batches:
            if min(remaining, batch.size) >= 2:
                self.parts.append(batch.take(remaining))
                remaining -= self.parts[-1].size

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which runs the original itself."""
        return {name: value for name, value in vars(self).items() if name != "runs"}

    @property
    def applies(self) -> bool:
        """Whether there is anything to refit, and something to refit it on."""
        return bool(self.parts) and (any(self.maps) or self.head is not None)

    @property
    def description(self) -> str:
        """What is refitted, for a record."""
        parts = [f"a refit of the next {self.config.maps} maps behind the change"] if any(self.maps) else []
        parts += ["of the last layer"] if self.head is not None else []
        return f"{' and '.join(parts)} on {self._samples} samples"

    def refitted(self, changes: Sequence[PlacedChange]) -> "RefittedChanges":
        """The network with these changes, refitted from the first of them on.

        Args:
            changes: in the order of their segments, without overlap.

        Raises:
            NonFiniteError: NaN or Inf in the activations of the changed network.
        """
        forwards: Forwards = {}
        remaining = 0  # maps that a change had no kept segments for: those behind the next one get them
        segments, start = self.segments.segments, self.segments.paths[changes[0].start]
        stops = [*(change.start for change in changes[1:]), len(segments)]
        with self._quietly():
            for number, (change, stop) in enumerate(zip(changes, stops, strict=True)):
                forwards |= self._refitted_replacement(change, start, forwards) if number else change.forwards
                behind = zip(segments[change.stop : stop], self.maps[change.stop : stop], strict=True)
                kept = [(segment, linear) for segment, linear in behind if linear is not None]
                remaining += self.config.maps
                for segment, linear in kept[:remaining]:
                    forwards |= self._refitted_map(segment, linear, start, forwards)
                remaining = max(0, remaining - len(kept))
            if self.head is not None:
                forwards |= self._refitted_head(self.head, start, forwards)
        return RefittedChanges(forwards)

    @cached_property
    def runs(self) -> list["_OriginalRun"]:
        """The original on these samples, with what every segment computes; made when a candidate is first refitted."""
        runs = []
        with self._quietly(), recording(self.graph, self.segments.paths) as record:
            for part in self.parts:
                prefix = PrefixCache(self.graph)
                with _listening(self.graph.model, self.head) as answers:
                    prefix.record(part)
                kept = Recording()
                kept.sums, kept.outputs = dict(record.sums), dict(record.outputs)
                runs.append(_OriginalRun(part, prefix, kept, answers[-1:]))
        return runs

    def _affordable_samples(self) -> int:
        """As many samples as the original's activations fit into memory for: outputs and sums of every segment."""
        values = sum(torch.Size(segment.out_shape).numel() for segment in self.segments.segments)
        return min(self.config.samples, int(self.config.memory / max(1, 2 * 4 * values)))

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        with evaluating(self.graph.model), without_kv_cache(self.graph.model):
            yield

    def _run(self, run: "_OriginalRun", start: str, forwards: Forwards) -> Any:
        with until_stopped():
            return run.prefix.run_from(run.prefix.segment_of(start), forwards)
        return None

    def _refitted_map(self, segment: Segment, linear: LastLinear, start: str, forwards: Forwards) -> Forwards:
        """The last linear map of a kept segment, refitted to what is missing at its sum."""
        moments = self._moments(linear)
        for run in self.runs:
            features, stream = self._map_inputs(segment, linear, partial(self._run, run, start, forwards))
            target = run.record.sums[segment.path]
            missing = linear.as_output(target if stream is None else target - stream)
            moments.add(features, [missing], run.batch.counted_in(features))
        return self._solved(linear, moments)

    def _map_inputs(self, segment: Segment, linear: LastLinear, run: Callable[[], Any]) -> tuple[Tensor, Tensor | None]:
        """The input of a segment's last linear map, and the stream that its output is added to, in a run."""
        model, streams = self.graph.model, list[Tensor]()
        if not segment.residual:
            with _listening(model, linear, inputs=True) as features:
                run()
            return features[0], None
        block = self.graph.chain[segment.path]

        def capture_stream(path: str, unit: int, stream: Tensor, branch: Tensor) -> None:
            if unit == len(block.units) - 1:
                streams.append(stream.clone())
                raise StopForward

        with (
            _listening(model, linear, inputs=True, stop=False) as features,
            intercept_additions(model, [block], capture_stream),
        ):
            run()
        return features[0], streams[0]

    def _refitted_head(self, head: LastLinear, start: str, forwards: Forwards) -> Forwards:
        """The last layer of the network, refitted to the answers of the original."""
        moments = self._moments(head)
        for run in self.runs:
            with _listening(self.graph.model, head, inputs=True) as features:
                self._run(run, start, forwards)
            moments.add(features[0], [run.answers[0]], run.batch.counted_in(features[0]))
        return self._solved(head, moments)

    def _refitted_replacement(self, change: PlacedChange, start: str, forwards: Forwards) -> Forwards:
        """A replacement behind another change, refitted on what really enters it."""
        fitted, model = change.fitted, self.graph.model
        closed_form = fitted is not None and fitted.kind in REPLACEMENTS
        if fitted is None or not closed_form or not any(True for _ in fitted.module.parameters()):
            return dict(change.forwards)
        spec = ReplacementSpec(fitted.span, fitted.kind, fitted.stand_in.shortcut)
        moments = SpanMoments(spec.key, [spec], self._samples, self.config.seed, self.config.rows_per_unknown)
        for run in self.runs:
            with _listening(model, fitted.span.paths[0], inputs=True, form=fitted.span.output_formats[0]) as entering:
                self._run(run, start, forwards)
            x = entering[0]
            moments.add(x, [run.record.target(fitted.span.end)], run.batch.counted_in(x))
        [refitted] = moments.solve_all(like_of(model))
        return span_forwards(model, fitted.span, refitted.module)

    @property
    def _samples(self) -> int:
        return sum(part.size for part in self.parts)

    def _moments(self, linear: LastLinear) -> LayerMoments:
        layer = self.graph.model.get_submodule(linear.layer)
        return LayerMoments(layer, self._samples, self.config.seed, self.config.rows_per_unknown)

    def _solved(self, linear: LastLinear, moments: LayerMoments) -> Forwards:
        """Copies of a layer and its norm that compute the refitted map, as forwards."""
        model = self.graph.model
        train, held_out = moments.given_up(biased=linear.biased)
        weight = linear.fused_weight(model)
        fit = fits(train, held_out, [slice(0, len(weight))], target=weight, ridges=self.config.ridges)[0]
        if not is_better(held_out, (fit.weight, fit.bias), (weight, linear.fused_bias(model))):
            return {}
        layers = linear.copies(model)
        linear.set_fused_(layers, fit.weight, fit.bias)
        return {model.get_submodule(path): layers.get_submodule(path).forward for path in linear.paths}


@dataclass(frozen=True, eq=False)
class RefittedChanges:
    """What runs in the place of modules: replacements, shortcuts, and copies of layers that were refitted."""

    forwards: Forwards

    @property
    def bytes(self) -> int:
        """Of the parameters of everything that runs in the place of a module."""
        modules = {getattr(forward, "__self__", None) for forward in self.forwards.values()}
        parameters = [part for module in modules if isinstance(module, nn.Module) for part in module.parameters()]
        return sum(part.numel() * part.element_size() for part in parameters)


@dataclass(frozen=True, eq=False)
class _OriginalRun:
    """The original on one mini-batch: what its modules returned, its sums, and what its head returned."""

    batch: Batch
    prefix: PrefixCache
    record: Recording
    answers: list[Tensor]


@contextmanager
def _listening(
    model: nn.Module,
    at: LastLinear | str | None,
    *,
    inputs: bool = False,
    stop: bool = True,
    form: OutputFormat = PLAIN,
) -> Iterator[list[Tensor]]:
    """What a module returns each time it runs; or its `inputs`, copied, and then the network is stopped there.

    `form` is how it is called.
    """
    heard: list[Tensor] = []

    def on_enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        heard.append(form.entering(args, kwargs).clone())
        if stop:
            raise StopForward

    def on_leave(module: nn.Module, args: Any, output: Tensor) -> None:
        heard.append(output.clone())

    if at is None:
        yield heard
        return
    module = model.get_submodule(at if isinstance(at, str) else at.layer)
    if inputs:
        handle = module.register_forward_pre_hook(on_enter, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_leave)
    try:
        yield heard
    finally:
        handle.remove()
