"""What every segment, shortcut and replacement costs: latency, MACs, parameters; each kind is measured once."""

import hashlib
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, like_of
from shoal.blocks import BlockGraph
from shoal.errors import ModelRaisedError
from shoal.measure import cost
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.kind_timing import KindTimer
from shoal.pipeline.latency_backends import (
    WHOLE,
    EstimatedLatency,
    LatencyBackend,
    MeasuredLatency,
    Shape,
    parts_of,
)
from shoal.pipeline.profiling import PlacedModule
from shoal.preserve import patched
from shoal.quantities import Cost, combined
from shoal.replace import ReplacementSpec, Segment, SegmentChain, Span, StudentSpec, build_replacement
from shoal.workers import LocalWorkers, Workers

ZERO_COST = Cost(0.0, 0.0, 0.0)
# A layer with more than this many times the MACs of the layers it replaces is not faster than they are.
_MAX_MACS_RATIO = 1.5


class CostModel:
    """The costs of one network by one latency backend.

    Args:
        graph: of the original.
        segments: of the original.
        batch: the mini-batch that is timed, or one that MACs are counted on.
        backend: where latencies come from; at several batch sizes, costs have further latencies.
        cache: keeps them.
        workers: who times kinds where this machine is measured, each alone on its node; by default this process.
    """

    def __init__(
        self,
        graph: BlockGraph,
        segments: SegmentChain,
        batch: Batch,
        backend: LatencyBackend,
        cache: MeasurementCache,
        workers: Workers | None = None,
    ) -> None:
        self.graph, self.segments, self.batch, self.backend, self.cache = graph, segments, batch, backend, cache
        self.workers = workers or LocalWorkers()
        self.like = like_of(graph.model)
        self.candidates: dict[str, Cost] = {}
        self.labels: dict[str, str] = {}
        self.macs_cache: dict[str, float] = {}
        self.steps: dict[str, Cost] = {}
        self.whole = ZERO_COST
        self.fixed = ZERO_COST

    def measure(self, candidates: Mapping[str, PlacedModule]) -> None:
        """The whole network, its segments, and everything that might take the place of some."""
        parts = parts_of(self.backend)
        counts = cost(self.graph.model, self.batch.take(1))
        self.whole = _cost([self._whole_ms(part) for part in parts], counts.macs, counts.params)
        kinds = self._kinds(candidates)
        originals = {
            segment.path: PlacedModule(self._module(segment), segment.in_shape, segment.paths)
            for segment in self.segments.segments
        }
        timed = [self._latencies(part, originals, kinds) for part in parts]
        for segment in self.segments.segments:
            macs, params = self._segment_macs(segment), _params(originals[segment.path].module)
            self.steps[segment.path] = _cost([ms[segment.path] for ms, _ in timed], macs, params)
        for key, placed in kinds.items():
            self.candidates[key] = _cost(
                [ms[key] for _, ms in timed], self._placed_macs(placed), _params(placed.module)
            )
            self.labels[key] = f"{type(placed.module).__name__} on {placed.shape}"
        steps = combined(math.fsum, [ZERO_COST, *self.steps.values()])
        self.fixed = combined(lambda values: max(0.0, values[0] - values[1]), [self.whole, steps])

    def can_be_cheaper(self, spec: ReplacementSpec | StudentSpec) -> bool:
        """Whether a replacement may be faster than its span, by its MACs: what has no chance is not even timed."""
        span = spec.span
        replaced = sum(self._segment_macs(self.segments.segment(path)) for path in self._paths(span))
        module = build_replacement(spec.stand_in, self.like, spec.original)
        placed = PlacedModule(module, span.in_shape, span.paths, span.output_formats)
        return self._placed_macs(placed) <= _MAX_MACS_RATIO * replaced

    def lookup(self, module: nn.Module, shape: Shape) -> Cost:
        """The cost of a module of a kind that was among the candidates; zero for an identity."""
        return ZERO_COST if isinstance(module, nn.Identity) else self.candidates[shape_key(module, shape)]

    def span(self, span: Span) -> Cost:
        """The cost of the segments of a span, one after the other."""
        return combined(math.fsum, [self.steps[path] for path in self._paths(span)])

    def latencies(self) -> dict[str, float]:
        """Milliseconds by key, of everything that was measured."""
        steps = {
            shape_key(self._module(segment), segment.in_shape): self.steps[segment.path].latency_ms
            for segment in self.segments.segments
        }
        return {key: cost.latency_ms for key, cost in self.candidates.items()} | steps

    def _paths(self, span: Span) -> tuple[str, ...]:
        return self.segments.paths[span.start : span.stop]

    def _module(self, segment: Segment) -> nn.Module:
        return self.segments.module(self.graph.model, segment.path)

    def _kinds(self, candidates: Mapping[str, PlacedModule]) -> dict[str, PlacedModule]:
        """The first candidate of each kind, by shape key."""
        kinds: dict[str, PlacedModule] = {}
        for placed in candidates.values():
            if not isinstance(placed.module, nn.Identity):
                kinds.setdefault(shape_key(placed.module, placed.shape), placed)
        return kinds

    def _latencies(
        self, part: LatencyBackend, originals: Mapping[str, PlacedModule], kinds: Mapping[str, PlacedModule]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Milliseconds of the segments by path and of the kinds by key; what the cache holds is not measured again."""
        keys = {path: shape_key(placed.module, placed.shape) for path, placed in originals.items()}
        known = self._known_latencies(part)
        if any(key not in known for key in (*keys.values(), *kinds)):
            if isinstance(part, EstimatedLatency):
                return self._estimated_latencies(kinds)
            if isinstance(part, MeasuredLatency):
                self._profile_in_network(part, keys, kinds, known)
            else:
                by_key = {keys[path]: placed for path, placed in originals.items()}
                measured = _profile_isolated(part, {**by_key, **kinds})
                self.cache.add_latencies(self._cached_as(part), measured)
                known |= measured
        elif isinstance(part, EstimatedLatency):  # an earlier goal had them timed
            part.source = MeasuredLatency.source
        return {path: known[key] for path, key in keys.items()}, {key: known[key] for key in kinds}

    def _estimated_latencies(self, kinds: Mapping[str, PlacedModule]) -> tuple[dict[str, float], dict[str, float]]:
        ms = self.whole.latency_ms / max(self.whole.macs, 1.0)
        return (
            {segment.path: ms * self._segment_macs(segment) for segment in self.segments.segments},
            {key: ms * self._placed_macs(placed) for key, placed in kinds.items()},
        )

    def _profile_in_network(
        self, part: MeasuredLatency, keys: Mapping[str, str], kinds: Mapping[str, PlacedModule], known: dict[str, float]
    ) -> None:
        """Add to `known`, and to the cache as it comes, what is not in it yet."""
        missing = {key: placed for key, placed in kinds.items() if key not in known}
        timer = KindTimer(self.graph.model, self.segments, missing, part.batch, part.channels_last)
        for timed in timer.timed(self.workers):
            by_key: dict[str, list[float]] = {}
            for path, share in timed.segments.items():
                by_key.setdefault(keys[path], []).append(share)
            # Segments of one kind take the same time: the mean of theirs, so that their sum stays what it is.
            means = {key: statistics.fmean(shares) for key, shares in by_key.items() if key not in known}
            measured = {key: share * known[WHOLE] for key, share in {**timed.kinds, **means}.items()}
            self.cache.add_latencies(self._cached_as(part), measured)
            known |= measured

    def _whole_ms(self, part: LatencyBackend) -> float:
        times = self._known_latencies(part)
        if WHOLE not in times:
            times = part.time_models({WHOLE: self.graph.model}, precise=True)
            self.cache.add_latencies(self._cached_as(part), {WHOLE: times[WHOLE]})
        return times[WHOLE]

    def _known_latencies(self, part: LatencyBackend) -> dict[str, float]:
        """What the cache holds of this source; where it only estimates, of what was measured before."""
        sources = [self._cached_as(part)]
        if isinstance(part, MeasuredLatency):
            # Tables of version 0.1.0 belong to one number of threads and do not name it here.
            sources = [MeasuredLatency.source, self._cached_as(part, MeasuredLatency.source), *sources]
            sources = sources if part.batch_size == self.backend.batch_size else sources[1:]
        return {key: ms for source in sources for key, ms in self.cache.latencies(source).items()}

    def _cached_as(self, part: LatencyBackend, source: str | None = None) -> str:
        """The source, and on what its times depend: the threads here, the batch size where it is not that of all."""
        name = source or part.source
        if isinstance(part, MeasuredLatency):
            name = f"{name}, threads: {torch.get_num_threads()}"
        return name if part.batch_size == self.backend.batch_size else f"{name}, batch {part.batch_size}"

    def _macs(self, module: nn.Module, shape: Shape, in_network: Callable[[], float]) -> float:
        """Of a module by itself; `in_network` counts one that takes more than the stream."""
        key = shape_key(module, shape)
        if key not in self.macs_cache:
            like = self.like
            zeros = torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
            try:
                self.macs_cache[key] = float(cost(module, Batch((zeros,))).macs)
            except ModelRaisedError:
                self.macs_cache[key] = in_network()
        return self.macs_cache[key]

    def _placed_macs(self, placed: PlacedModule) -> float:
        """Of a replacement: by itself, or by what the network has more with it than without anything in its place."""
        return self._macs(
            placed.module,
            placed.shape,
            lambda: self._network_macs(dict(placed.forwards)) - self._network_macs(self._shortcuts(placed.paths)),
        )

    def _segment_macs(self, segment: Segment) -> float:
        """Of a segment: by itself, or by what the network has less without it."""
        return self._macs(
            self._module(segment),
            segment.in_shape,
            lambda: self._network_macs({}) - self._network_macs(self._shortcuts([segment.path])),
        )

    def _shortcuts(self, paths: Sequence[str]) -> dict[str, Callable[..., Any]]:
        return {path: self.graph.shortcut_modules[path].forward for path in paths}

    def _network_macs(self, forwards: Mapping[str, Callable[..., Any]]) -> float:
        """Of the network with other functions in the place of modules, by path."""
        model = self.graph.model
        with patched({model.get_submodule(path): forward for path, forward in forwards.items()}):
            return float(cost(model, self.batch.take(1)).macs)


def _profile_isolated(part: LatencyBackend, modules: Mapping[str, PlacedModule]) -> dict[str, float]:
    groups: dict[Shape, dict[str, nn.Module]] = {}
    for key, placed in modules.items():
        groups.setdefault(placed.shape, {})[key] = placed.module
    times: dict[str, float] = {}
    for shape, group in groups.items():
        times |= part.time_modules(group, shape)
    return times


def _cost(latencies: Sequence[float], macs: float, params: float) -> Cost:
    return Cost(latencies[0], macs, params, tuple(latencies[1:]))


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# By the current name of a class its name in version 0.1.0: keys of tables outlive the names of Shoal's classes.
_FORMER_NAMES = {
    "AffineReplacement": "Mapped",
    "DigitsBlock": "Block",
    "PassThrough": "Through",
    "ResidualReplacement": "ShortcutPlus",
    "ShortcutModule": "Remainder",
    "ZeroStub": "Vacant",
}
_RENAMED = re.compile(rf"\b({'|'.join(_FORMER_NAMES)})(?=\()")
# Newer versions of torch also say whether a norm has a bias; tables are read under every version.
_WITHOUT_BIAS = re.compile(
    r"((?:Batch|Instance|Group|Layer)Norm\w*\((?:\([^()]*\)|[^()])*?affine=(True|False))(?!, bias=)"
)


def shape_key(module: nn.Module, shape: Shape) -> str:
    """The same for modules that take the same time: classes, settings, parameters and input shape."""
    parameters = ",".join(str(tuple(parameter.shape)) for parameter in module.parameters())
    # The repr tells strides, activations and the steps of a shortcut apart.
    text = _WITHOUT_BIAS.sub(r"\1, bias=\2", _RENAMED.sub(lambda match: _FORMER_NAMES[match[0]], repr(module)))
    return hashlib.sha256(f"{text} {tuple(shape)} {parameters}".encode()).hexdigest()[:16]
