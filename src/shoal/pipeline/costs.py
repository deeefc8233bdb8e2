"""What every step, remainder and stand-in costs: latency, MACs, parameters; alike ones are asked for once."""

import hashlib
import re
import statistics
from collections.abc import Mapping

import torch
from torch import nn

from shoal.batches import Batch, like_of
from shoal.blocks import BlockGraph
from shoal.errors import ModelRaisedError
from shoal.measure import cost
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.latency_backends import LatencyBackend, MeasuredLatency
from shoal.pipeline.profiling import PlacedModule, latency_shares
from shoal.preserve import patched
from shoal.quantities import Cost
from shoal.replace import ReplacementSpec, Segment, SegmentChain, Span, StudentSpec, build_replacement

FREE = Cost(0.0, 0.0, 0.0)
# One layer with so many times the MACs of the layers it replaces is not faster than they are.
_TIMES = 1.5
Shape = tuple[int, ...]


class CostModel:
    """The prices of one network by one clock.

    Args:
        anatomy: the original.
        line: its steps.
        batch: the mini-batch that is timed.
        clock: tells latencies.
        shelf: keeps them.
    """

    def __init__(
        self, anatomy: BlockGraph, line: SegmentChain, batch: Batch, clock: LatencyBackend, shelf: MeasurementCache
    ) -> None:
        self.anatomy, self.line, self.batch, self.clock, self.shelf = anatomy, line, batch, clock, shelf
        self.found: dict[str, Cost] = {}
        self.words: dict[str, str] = {}
        self.counted: dict[str, float] = {}
        self.steps: dict[str, Cost] = {}
        self.whole = FREE
        self.fixed = FREE

    def measure(self, others: Mapping[str, PlacedModule]) -> None:
        """The whole network, its steps, and everything that might take the place of some."""
        self.whole = self._whole()
        kinds = self._kinds(others)
        own = {
            path: PlacedModule(self.line.module(self.anatomy.model, path), step.in_shape, step.paths)
            for path, step in zip(self.line.paths, self.line.segments, strict=True)
        }
        steps, latencies = self._latencies(own, kinds)
        for step in self.line.segments:
            macs, params = self._step_macs(step), _params(own[step.path].module)
            self.steps[step.path] = Cost(steps[step.path], macs, params)
        for key, one in kinds.items():
            self.found[key] = Cost(latencies[key], self._placed_macs(one), _params(one.module))
            self.words[key] = f"{type(one.module).__name__} on {one.shape}"
        sums = [sum(getattr(one, name) for one in self.steps.values()) for name in ("latency_ms", "macs", "params")]
        whole = self.whole.latency_ms, self.whole.macs, self.whole.params
        self.fixed = Cost(*(max(0.0, all_ - some) for all_, some in zip(whole, sums, strict=True)))

    def may_pay(self, one: ReplacementSpec | StudentSpec) -> bool:
        """Whether a stand-in may be faster than its span, by its MACs: what has no chance is not even timed."""
        span = one.span
        steps = [self.line.segment(path) for path in self.line.paths[span.start : span.stop]]
        replaced = sum(self._step_macs(step) for step in steps)
        module = build_replacement(one.stand_in, like_of(self.anatomy.model), one.original)
        return (
            self._placed_macs(PlacedModule(module, span.in_shape, span.paths, span.output_formats)) <= _TIMES * replaced
        )

    def of(self, module: nn.Module, shape: Shape) -> Cost:
        """The price of something alike that was among the others; nothing for an identity."""
        return FREE if isinstance(module, nn.Identity) else self.found[shape_key(module, shape)]

    def span(self, span: Span) -> float:
        """The latency of the steps of a span, one after the other."""
        return sum(self.steps[path].latency_ms for path in self.line.paths[span.start : span.stop])

    def latencies(self) -> dict[str, float]:
        """Milliseconds by key, of everything that was asked for."""
        model = self.anatomy.model
        steps = {
            shape_key(self.line.module(model, step.path), step.in_shape): self.steps[step.path].latency_ms
            for step in self.line.segments
        }
        return {key: price.latency_ms for key, price in self.found.items()} | steps

    def _kinds(self, others: Mapping[str, PlacedModule]) -> dict[str, PlacedModule]:
        """One of each kind, by likeness."""
        found: dict[str, PlacedModule] = {}
        for one in others.values():
            if not isinstance(one.module, nn.Identity):
                found.setdefault(shape_key(one.module, one.shape), one)
        return found

    def _latencies(
        self, own: Mapping[str, PlacedModule], kinds: Mapping[str, PlacedModule]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Milliseconds of the steps by path and of the kinds by key; what the shelf holds is not asked for again."""
        keys = {path: shape_key(one.module, one.shape) for path, one in own.items()}
        known = self.shelf.prices(self.clock.source)
        if any(key not in known for key in (*keys.values(), *kinds)):
            by_key = {keys[path]: one for path, one in own.items()}
            fresh = (
                self._in_place(keys, kinds)
                if isinstance(self.clock, MeasuredLatency)
                else self._alone({**by_key, **kinds})
            )
            self.shelf.add_prices(self.clock.source, fresh)
            known |= fresh
        return {path: known[key] for path, key in keys.items()}, {key: known[key] for key in kinds}

    def _in_place(self, keys: Mapping[str, str], kinds: Mapping[str, PlacedModule]) -> dict[str, float]:
        channels_last = isinstance(self.clock, MeasuredLatency) and self.clock.channels_last
        steps, others = latency_shares(self.anatomy.model, self.line, kinds, self.batch, channels_last=channels_last)
        alike: dict[str, list[float]] = {}
        for path, share in steps.items():
            alike.setdefault(keys[path], []).append(share)
        # Steps that are alike take the same time: the mean of theirs, so that their sum stays what it is.
        shares = others | {key: statistics.fmean(values) for key, values in alike.items()}
        return {key: share * self.whole.latency_ms for key, share in shares.items()}

    def _alone(self, modules: Mapping[str, PlacedModule]) -> dict[str, float]:
        groups: dict[Shape, dict[str, nn.Module]] = {}
        for key, one in modules.items():
            groups.setdefault(one.shape, {})[key] = one.module
        found: dict[str, float] = {}
        for shape, group in groups.items():
            found |= self.clock.modules(group, shape)
        return found

    def _whole(self) -> Cost:
        price = cost(self.anatomy.model, self.batch.take(1))
        known = self.shelf.prices(self.clock.source)
        if "whole" not in known:
            known = self.clock.networks({"whole": self.anatomy.model}, longer=True)
            self.shelf.add_prices(self.clock.source, {"whole": known["whole"]})
        return Cost(known["whole"], price.macs, price.params)

    def _macs(self, module: nn.Module, shape: Shape) -> float:
        key = shape_key(module, shape)
        if key not in self.counted:
            like = like_of(self.anatomy.model)
            zeros = torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
            self.counted[key] = float(cost(module, Batch((zeros,))).macs)
        return self.counted[key]

    def _placed_macs(self, one: PlacedModule) -> float:
        """Of a stand-in; one that takes more than the stream is counted by what the network has more with it."""
        try:
            return self._macs(one.module, one.shape)
        except ModelRaisedError:
            batch, model = self.batch.take(1), self.anatomy.model
            with patched(
                {model.get_submodule(path): self.anatomy.shortcut_modules[path].forward for path in one.paths}
            ):
                rest = cost(model, batch).macs
            with patched({model.get_submodule(path): forward for path, forward in one.forwards}):
                self.counted[shape_key(one.module, one.shape)] = float(cost(model, batch).macs - rest)
            return self.counted[shape_key(one.module, one.shape)]

    def _step_macs(self, step: Segment) -> float:
        """Of a step; one that takes more than the stream is counted by what the network has less without it."""
        module = self.line.module(self.anatomy.model, step.path)
        try:
            return self._macs(module, step.in_shape)
        except ModelRaisedError:
            one = self.batch.take(1)
            with patched({module: self.anatomy.shortcut_modules[step.path].forward}):
                rest = cost(self.anatomy.model, one).macs
            self.counted[shape_key(module, step.in_shape)] = float(cost(self.anatomy.model, one).macs - rest)
            return self.counted[shape_key(module, step.in_shape)]


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


_FORMER_NAMES = {
    "AffineReplacement": "Mapped",
    "DigitsBlock": "Block",
    "PassThrough": "Through",
    "ResidualReplacement": "ShortcutPlus",
    "ShortcutModule": "Remainder",
    "ZeroStub": "Vacant",
}
_RENAMED = re.compile(rf"\b({'|'.join(_FORMER_NAMES)})(?=\()")


def shape_key(module: nn.Module, shape: Shape) -> str:
    """The same for modules that take the same time: classes, settings, parameters and input shape."""
    parameters = ",".join(str(tuple(one.shape)) for one in module.parameters())
    # The repr tells strides, activations and the steps of a shortcut apart. Keys outlive the names of Shoal's classes.
    text = _RENAMED.sub(lambda match: _FORMER_NAMES[match[0]], repr(module))
    return hashlib.sha256(f"{text} {tuple(shape)} {parameters}".encode()).hexdigest()[:16]
