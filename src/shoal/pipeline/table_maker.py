"""The tables a plan is chosen from: every way to treat every block or span, with its damage and what it costs.

Damage: mean KL(original || network with only this change), on held-back calibration samples, prefixes cached.
Latency: one measurement for each distinct kind of module and input shape, interleaved, on this device and batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, check_logits, device_of, logits_of
from shoal.blocks import Anatomy
from shoal.blocks.prefix import Forward, Prefix
from shoal.measure import cost, kl_per_sample, latency, log_probabilities, mean_interval
from shoal.pipeline.target import Price
from shoal.plan import Edge
from shoal.preserve import evaluating
from shoal.record import Interval
from shoal.replace import Fitted, Line, Span, Wanted, fit_all, line_of, spans_of
from shoal.scanning import Worth

Progress = Callable[[str, int, int], None]


@dataclass
class Tables:
    """Everything the solver needs, and the fitted stand-in behind each replacing edge."""

    line: Line
    edges: list[Edge]
    fitted: dict[int, Fitted]
    whole: Price
    fixed: Price
    worths: list[Worth]
    notes: list[str] = field(default_factory=list)


@dataclass
class TableMaker:
    """Makes the tables of one network on one batch size.

    Args:
        anatomy: the original network.
        fit_on: mini-batches the stand-ins are fitted on.
        judge_on: other mini-batches their damage is measured on.
        timed: the mini-batch latency is measured at.
        longest: blocks in the longest span.
        kinds: which stand-ins to try.
    """

    anatomy: Anatomy
    fit_on: Sequence[Batch]
    judge_on: Sequence[Batch]
    timed: Batch
    longest: int = 5
    kinds: Sequence[str] = ("conv3", "conv1")
    channels_last: bool = False
    seconds: float = 0.15
    progress: Progress = lambda stage, done, total: None
    allowed: frozenset[str] | None = None
    damages: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)

    def make(self) -> Tables:
        """Fit, time and try everything."""
        line = line_of(self.anatomy)
        spans = [one for one in spans_of(self.anatomy, line, self.longest) if self._may(*one.paths)]
        wanted = [Wanted(span, kind) for span in spans for kind in self._kinds_for(span)]  # type: ignore[arg-type]
        self.progress(f"fitting {len(wanted)} stand-ins", 0, len(self.fit_on))
        fitted = fit_all(
            self.anatomy,
            self.fit_on,
            wanted,
            tick=lambda done, total: self.progress(f"fitting {len(wanted)} stand-ins", done, total),
        )
        self.progress("timing every kind of block", 0, 1)
        prices = _Prices(self.anatomy, self.timed, self.channels_last, self.seconds)
        prices.measure(line, fitted)
        cheap = [one for one in fitted if prices.of(one.module, one.span.in_shape).latency_ms < prices.span(one.span)]
        damages = self._all_damages(line, cheap)
        edges, behind = self._edges(line, cheap, prices, damages)
        keeps = [edge for edge in edges if edge.action == "keep"]
        whole = prices.whole
        fixed = Price(
            max(0.0, whole.latency_ms - sum(edge.latency_ms for edge in keeps)),
            max(0.0, whole.macs - sum(edge.macs for edge in keeps)),
            max(0.0, whole.params - sum(edge.params for edge in keeps)),
        )
        warned = [one for one in cheap if one.r2_fit - one.r2_held_out > 0.1]
        notes = (
            [f"{len(warned)} stand-ins were fitted on too little data: held-out R2 far below the fit's"]
            if warned
            else []
        )
        worths = [
            Worth(path, damages[f"remove {path}"], self.intervals[f"remove {path}"], self._judged)
            for path in line.paths
        ]
        return Tables(line, edges, behind, whole, fixed, worths, notes)

    @property
    def _judged(self) -> int:
        return sum(batch.size for batch in self.judge_on)

    def _may(self, *paths: str) -> bool:
        """Whether the user lets these blocks be touched."""
        return self.allowed is None or all(path in self.allowed for path in paths)

    def _kinds_for(self, span: Span) -> Sequence[str]:
        return self.kinds if span.layout == "channels_first" else ("conv1",)

    def _edges(
        self, line: Line, fitted: list[Fitted], prices: "_Prices", damages: dict[str, float]
    ) -> tuple[list[Edge], dict[int, Fitted]]:
        edges, behind = [], {}
        for number, path in enumerate(line.paths):
            block = self.anatomy.chain[path]
            kept = prices.of(self.anatomy.model.get_submodule(path), block.in_shape)
            edges.append(_edge(number, number + 1, "keep", "", 0.0, kept, 1))
            left = prices.of(self.anatomy.remainders[path], block.in_shape)
            if not self._may(path):
                continue
            edges.append(_edge(number, number + 1, "remove", "", damages[f"remove {path}"], left, 0))
        for one in fitted:
            behind[len(edges)] = one
            price = prices.of(one.module, one.span.in_shape)
            edges.append(_edge(one.span.start, one.span.stop, "replace", one.kind, damages[_key(one)], price, 1))
        return edges, behind

    def _all_damages(self, line: Line, fitted: list[Fitted]) -> dict[str, float]:
        """Mean KL of each change alone; what `damages` holds already is not measured again."""
        model = self.anatomy.model
        changes: dict[str, tuple[str, Mapping[nn.Module, Forward]]] = {}
        for path in line.paths:
            changes[f"remove {path}"] = (path, {model.get_submodule(path): self.anatomy.remainders[path].forward})
        for one in fitted:
            changes[_key(one)] = (one.span.paths[0], span_forwards(model, one.span.paths, one.module))
        left = {key: change for key, change in changes.items() if key not in self.damages}
        found: dict[str, list[torch.Tensor]] = {key: [] for key in left}
        total, done = len(left) * len(self.judge_on), 0
        with evaluating(model):
            prefix = Prefix(self.anatomy)
            for batch in self.judge_on:
                original = log_probabilities(logits_of(prefix.capture(batch)), batch.target)
                for key, (start, forwards) in left.items():
                    output = logits_of(prefix.run(start, forwards))
                    check_logits(output)
                    found[key].append(kl_per_sample(original, output).cpu())
                    done += 1
                    self.progress(f"damage of {len(left)} changes", done, total)
        for key, parts in found.items():
            values = torch.cat(parts)
            self.damages[key] = float(values.mean())
            self.intervals[key] = mean_interval(values)
        return self.damages


def span_forwards(model: nn.Module, paths: Sequence[str], module: nn.Module) -> dict[nn.Module, Forward]:
    """Forwards that put `module` in the place of the blocks at `paths`."""
    forwards: dict[nn.Module, Forward] = {model.get_submodule(paths[0]): module.forward}
    return forwards | {model.get_submodule(path): _handed_through for path in paths[1:]}


def _handed_through(x: Any) -> Any:
    return x


def _key(one: Fitted) -> str:
    return f"{one.kind} {one.span.paths[0]}..{one.span.paths[-1]}"


def _edge(start: int, stop: int, action: Any, kind: str, damage: float, price: Price, depth: int) -> Edge:
    return Edge(
        start=start,
        stop=stop,
        action=action,
        kind=kind,
        damage=max(0.0, damage),
        latency_ms=price.latency_ms,
        macs=price.macs,
        params=price.params,
        depth=depth,
    )


class _Prices:
    """Latency, MACs and parameters of blocks and stand-ins; alike ones (class, parameters, shape) are timed once."""

    def __init__(self, anatomy: Anatomy, timed: Batch, channels_last: bool, seconds: float) -> None:
        self.anatomy, self.timed, self.channels_last, self.seconds = anatomy, timed, channels_last, seconds
        self.found: dict[str, Price] = {}
        self.line: Line | None = None
        self.whole = Price(0, 0, 0)

    def measure(self, line: Line, fitted: list[Fitted]) -> None:
        model, chain = self.anatomy.model, self.anatomy.chain
        wanted: dict[tuple[int, ...], dict[str, nn.Module]] = {}
        modules = [(model.get_submodule(path), chain[path].in_shape) for path in line.paths]
        modules += [(self.anatomy.remainders[path], chain[path].in_shape) for path in line.paths]
        modules += [(one.module, one.span.in_shape) for one in fitted]
        for module, shape in modules:
            if not isinstance(module, nn.Identity):
                wanted.setdefault(shape, {}).setdefault(_likeness(module, shape), module)
        for shape, group in wanted.items():
            batch = Batch((self._random(shape),))
            times = latency(group, batch, channels_last=self.channels_last, min_seconds=self.seconds)
            for key, module in group.items():
                price = cost(module, batch.take(1))
                self.found[key] = Price(times[key].median_ms, price.macs, price.params)
        price = cost(model, self.timed.take(1))
        timed = latency({"whole": model}, self.timed, channels_last=self.channels_last, min_seconds=1.0)
        self.whole = Price(timed["whole"].median_ms, price.macs, price.params)

    def of(self, module: nn.Module, shape: tuple[int, ...]) -> Price:
        """The price of a module; nothing for an identity."""
        if isinstance(module, nn.Identity):
            return Price(0.0, 0.0, 0.0)
        return self.found[_likeness(module, shape)]

    def span(self, span: Span) -> float:
        """The latency of the blocks of a span, one after the other."""
        chain, model = self.anatomy.chain, self.anatomy.model
        return sum(self.of(model.get_submodule(path), chain[path].in_shape).latency_ms for path in span.paths)

    def _random(self, shape: tuple[int, ...]) -> torch.Tensor:
        like = next(self.anatomy.model.parameters())
        generator = torch.Generator().manual_seed(0)
        made = torch.rand((self.timed.size, *shape), generator=generator)
        return made.to(device_of(self.anatomy.model), like.dtype)


def _likeness(module: nn.Module, shape: tuple[int, ...]) -> str:
    parameters = ",".join(str(tuple(one.shape)) for one in module.parameters())
    # The repr tells strides, activations and the steps of a remainder apart.
    return f"{module!r} {shape} {parameters}"
